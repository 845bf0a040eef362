"""Votes from the content of the file of votes: people's labels, and a judge's replies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.arena.ledger import Judgment, Ledger, Pair, pair_of
from mmrlhf.arena.ratings import Vote
from mmrlhf.arena.style import style_difference
from mmrlhf.labeling.results import Labels, read_labels
from mmrlhf.labeling.store import Store
from mmrlhf.labeling.tasks import Task

Scores = dict[str, list[tuple[str, float]]]
"""By a task's digest, who judged it, and the score of its first answer: 1, 0.5 for a tie, or 0."""

AGREED = {("first", "first"): 1.0, ("second", "second"): 0.0}
"""Scores of a judge's verdicts in both orders; all others are ties."""


@dataclass(frozen=True)
class Ballots:
    """All judgments of voters: tasks by digest, the pairs of models in each, the scores by people,
    and the verdicts of each judge."""

    tasks: Mapping[str, Task]
    pairs: Mapping[str, Sequence[Pair]]
    people: Scores
    num_unusable: Mapping[str, int]
    """By judge, tasks that lack a usable reply."""
    verdicts: Mapping[str, Mapping[str, tuple[str, str]]]
    """By judge and a task's digest, the verdicts with the task's first answer shown first, and
    second, each in the task's own order: first, second or tie."""

    @property
    def judges(self) -> dict[str, Scores]:
        """The scores by each judge."""
        return {
            judge: {digest: [(judge, AGREED.get(both, 0.5))] for digest, both in judged.items()}
            for judge, judged in self.verdicts.items()
        }

    def votes(self, scores: Scores) -> list[Vote]:
        """Return scores as votes on models. A task that several pairs of models share gives a vote
        for each of them."""
        votes = []
        for digest, judged in scores.items():
            task = self.tasks[digest]
            style = style_difference(*task.answers)
            is_lower_first = task.answers[0] < task.answers[1]
            for pair in self.pairs[digest]:
                first, second = (pair.lower, pair.upper) if is_lower_first else (pair.upper, pair.lower)
                votes += [Vote(first, second, score, pair.question, voter, pair.category, style) for voter, score in judged]
        return votes


def read_ballots(store: Store, ledger: Ledger) -> Ballots:
    """Return the judgments in a file. Pairs of `mmrlhf label` count if their models are known."""
    tasks = pairwise_tasks(store)
    pairs: dict[str, Sequence[Pair]] = {**ledger.pairs()}
    for digest, task in tasks.items():
        if digest not in pairs and all(task.models) and len(set(task.models)) == 2:
            pairs[digest] = [pair_of(task, "")]
    tasks = {digest: task for digest, task in tasks.items() if digest in pairs}
    people = _people(read_labels(store), tasks)
    verdicts, num_unusable = _judges(ledger.judgments(), tasks)
    return Ballots(tasks, pairs, people, num_unusable, verdicts)


def pairwise_tasks(store: Store) -> dict[str, Task]:
    """Return the pairs of a file by digest, in the order in which they came; no gold questions."""
    tasks = (store.task(entry.id) for entry in store.task_entries() if not entry.is_gold)
    return {task.digest: task for task in tasks if task.mode == "pairwise"}


def _people(labels: Labels, tasks: Mapping[str, Task]) -> Scores:
    scores: Scores = defaultdict(list)
    for label in labels.labels:
        digest = label.task.digest
        if digest in tasks:
            first, second = label.content["ranks"]
            scores[digest].append((labels.names[label.annotator], 0.5 if first == second else float(first < second)))
    return dict(scores)


def _judges(
    judgments: Sequence[Judgment], tasks: Mapping[str, Task]
) -> tuple[dict[str, dict[str, tuple[str, str]]], dict[str, int]]:
    """Return each judge's verdicts in both orders, and the number of tasks that lack one."""
    templates: dict[str, set[str]] = defaultdict(set)
    for judgment in judgments:
        templates[judgment.judge].add(judgment.template)
    replies: dict[tuple[str, str], list[str]] = defaultdict(list)  # that of the turned order is the second
    for judgment in judgments:
        prompt = f", prompt {judgment.template[:8]}" if len(templates[judgment.judge]) > 1 else ""
        if judgment.digest in tasks:
            replies[judgment.judge + prompt, judgment.digest].append(judgment.verdict)
    verdicts: dict[str, dict[str, tuple[str, str]]] = {judge: {} for judge, _ in replies}
    num_unusable = dict.fromkeys(verdicts, 0)
    for (judge, digest), both in replies.items():
        if len(both) != 2 or "" in both:
            num_unusable[judge] += 1
        else:
            verdicts[judge][digest] = (both[0], both[1])
    return verdicts, num_unusable
