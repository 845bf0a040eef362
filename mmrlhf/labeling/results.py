"""The annotators' current labels, and the records that follow from them."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

from mmrlhf.commands.claims import claim_to_json
from mmrlhf.config.loader import suggestion
from mmrlhf.labeling.assignments import ANSWERS
from mmrlhf.labeling.sessions import pseudonym
from mmrlhf.labeling.store import Event, Store
from mmrlhf.labeling.tasks import Task
from mmrlhf.records import Claim, Fact, InputError, Preference, Verdict


@dataclass(frozen=True)
class Label:
    """A current label. `order` has the indices of the answers in display order."""

    annotator: int
    task_id: int
    task: Task
    order: tuple[int, ...]
    content: Mapping[str, Any]
    time: float
    seconds: float | None


@dataclass(frozen=True)
class Labels:
    """A store's current labels, in chronological order, and the other answers."""

    labels: Sequence[Label]
    others: Sequence[Event]
    """Current skips and flags."""
    names: Mapping[int, str]
    """Pseudonyms by annotator."""
    tasks: Mapping[int, Task]
    """Tasks with a current label, skip or flag, by id."""

    def by_task(self) -> dict[int, list[Label]]:
        """Return the labels of each task, without those of gold questions."""
        groups: dict[int, list[Label]] = defaultdict(list)
        for label in self.labels:
            if not label.task.gold:
                groups[label.task_id].append(label)
        return dict(groups)


def read_labels(store: Store, *, is_anonymous: bool = False, without: Collection[str] = ()) -> Labels:
    """Return a store's labels, except those of the annotators whose pseudonyms are in `without`.

    Anonymous ones have numbers instead of pseudonyms, and neither times of day nor notes. The
    number of an annotator does not depend on who is left out. Raises InputError if nobody has a
    pseudonym of `without`.
    """
    events = list(store.events())
    names = store.annotators()  # after the events: somebody may join while the page is served
    excluded = _annotators_named(without, names, store)
    undone = {event.target for event in events if event.kind == "undo"}
    orders = {event.token: tuple(event.content["order"]) for event in events if event.kind == "shown"}
    tasks: dict[int, Task] = {}
    labels, others = [], []
    for event in events:
        task_id = event.task
        if event.kind not in ANSWERS or event.id in undone or task_id is None or event.annotator in excluded:
            continue
        if is_anonymous:
            content = {name: value for name, value in event.content.items() if name != "note"}
            event = replace(event, time=0.0, content=content)
        if task_id not in tasks:
            tasks[task_id] = store.task(task_id)
        if event.kind != "label":
            others.append(event)
            continue
        order = orders[event.token]
        labels.append(Label(event.annotator, task_id, tasks[task_id], order, event.content, event.time, event.seconds))
    if is_anonymous:  # in an order that says nothing about who came first
        names = {
            id_: f"annotator {number}" for number, id_ in enumerate(sorted(names, key=lambda id_: store.code_of(id_) or ""), 1)
        }
    return Labels(labels, others, {id_: name for id_, name in names.items() if id_ not in excluded}, tasks)


def _annotators_named(given: Collection[str], names: Mapping[int, str], store: Store) -> set[int]:
    """Return the annotators with these pseudonyms, which may be written as for signing in."""
    ids = {name: id_ for id_, name in names.items()}
    for name in given:
        if pseudonym(name) not in ids:
            raise InputError(f"{store.path} has no annotator {name}: {suggestion(name, ids)}")
    return {ids[pseudonym(name)] for name in given}


# ---- preferences ---------------------------------------------------------------------------------


def preferences(labels: Labels) -> Iterator[Preference]:
    """Yield the annotators' preferences, a record per task; gold questions are left out.

    For a pair, the most frequent choice counts; equal numbers are a tie, and a pair that most call
    "both bad" gives no record. Its margin is the mean strength, positive for the better answer. A
    ranking has the mean rank of each answer over annotators; equal means are a tie. A task of
    claims gives pairs as in RLHF-V (Yu et al. 2024, arXiv:2312.00849): the corrected answer
    preferred to the answer itself, if more than half of its annotators see an error.
    """
    for group in labels.by_task().values():
        task = group[0].task
        if task.mode == "pairwise":
            yield from _pair(task, group)
        elif task.mode == "ranking":
            yield _ranked(task, group)
        elif task.mode == "claims":
            yield from _corrected(task, group)


def _pair(task: Task, group: Sequence[Label]) -> Iterator[Preference]:
    votes = Counter(_vote(label) for label in group)
    (vote, count), *rest = votes.most_common()
    if rest and rest[0][1] == count:
        vote = "tie"
    if vote == "both bad":
        return
    better = 1 if vote == "second" else 0
    ranks = (1, 1) if vote == "tie" else (1, 2)
    margin = fmean(signed_strength(label) for label in group) * (-1 if better else 1)
    # Votes and strengths may disagree.
    ratings = (margin, 0.0) if (margin == 0 if vote == "tie" else margin > 0) else ()
    answers = task.answers[better], task.answers[1 - better]
    yield Preference(task.name, task.images, task.prompt, answers, ranks, ratings, task.facts)


def _vote(label: Label) -> str:
    strength = signed_strength(label)
    return "both bad" if label.content.get("both_bad") else "first" if strength > 0 else "second" if strength else "tie"


def _ranked(task: Task, group: Sequence[Label]) -> Preference:
    means = [fmean(label.content["ranks"][index] for label in group) for index in range(len(task.answers))]
    distinct = sorted(set(means))
    order = sorted(range(len(means)), key=lambda index: means[index])
    ranks = tuple(distinct.index(means[index]) + 1 for index in order)
    answers = tuple(task.answers[index] for index in order)
    return Preference(task.name, task.images, task.prompt, answers, ranks, facts=task.facts)


def signed_strength(label: Label) -> int:
    """Return how much better a pair's first answer is: -3 to 3, 0 for a tie."""
    first, second = label.content["ranks"]
    return 0 if first == second else label.content.get("strength", 2) * (1 if first < second else -1)


def sees_error(label: Label) -> bool:
    """Return whether an annotator of claims marks words, or corrects the answer without marks."""
    return bool(label.content["spans"]) or label.content["corrected"].split() != label.task.answers[0].split()


def _corrected(task: Task, group: Sequence[Label]) -> Iterator[Preference]:
    answer = task.answers[0]
    with_errors = [label for label in group if sees_error(label)]
    if 2 * len(with_errors) <= len(group):
        return
    corrections = dict.fromkeys(label.content["corrected"] for label in with_errors)
    for number, corrected in enumerate((text for text in corrections if text and text != answer), 1):
        name = task.name if len(corrections) == 1 else f"{task.name}-{number}"
        yield Preference.from_pair(name, task.images, task.prompt, corrected, answer, task.facts, hallucinated=True)


# ---- claims and facts ----------------------------------------------------------------------------


def claim_rows(labels: Labels) -> Iterator[dict[str, Any]]:
    """Yield answers with the annotators' verdicts on their claims, as `mmrlhf claims` writes them:
    the majority of several annotators, `unknown` if there is none."""
    for group in labels.by_task().values():
        task = group[0].task
        if task.mode != "claims":
            continue
        verdicts: dict[tuple[Any, ...], Counter[Any]] = defaultdict(Counter)
        claims: dict[tuple[Any, ...], dict[str, Any]] = {}
        for label in group:
            for claim in label.content["claims"]:
                key = claim_key(claim)
                verdicts[key][claim["verdict"]] += 1
                claims[key] = claim
        rows = [_claim_row(claims[key], verdicts[key]) for key in sorted(claims, key=lambda key: key[1])]
        yield {"id": task.name, "text": task.answers[0], "claims": rows}


def claim_key(claim: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a key that distinguishes a claim from the others of its answer."""
    return claim["kind"], tuple(claim["span"]), claim["value"], claim["relation"], claim["target"]


def _claim_row(labelled: Mapping[str, Any], votes: Counter[Any]) -> dict[str, Any]:
    (best, count), *rest = votes.most_common()
    claim = Claim(**{field.name: labelled[field.name] for field in fields(Claim)})
    return claim_to_json(claim, Verdict(claim, "unknown" if rest and rest[0][1] == count else best))


def typed_facts(labels: Labels) -> Iterator[tuple[Task, list[Fact]]]:
    """Yield the facts about each task's images that more than half of its annotators typed.

    The list is complete if every annotator's list is marked as complete, and no fact was left out.
    """
    for group in labels.by_task().values():
        task = group[0].task
        if task.mode != "facts":
            continue
        lists = [{Fact(entry["kind"], entry["text"], "annotators"): None for entry in label.content["facts"]} for label in group]
        votes = Counter(itertools.chain.from_iterable(lists))
        facts = [fact for fact, count in votes.items() if 2 * count > len(group)]
        is_complete = all(label.content["complete"] for label in group) and len(facts) == len(votes)
        yield task, [Fact("scope", "complete" if is_complete else "incomplete", "annotators"), *facts]
