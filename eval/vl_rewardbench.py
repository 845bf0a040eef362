"""VL-RewardBench: which of two answers to a question about a picture is better? The model under test is the judge (Li et al. 2024).

    mmrlhf eval vl_rewardbench --model runs/sft/model --data VL_RewardBench.jsonl --image_folder images --votes 9 --temperature 0.2 --out runs/vl
    mmrlhf eval vl_rewardbench --answers infer_results.jsonl --out runs/vl

A pair is judged several times, in an order that is drawn for each vote. Results as the authors' script saves them (`ranking`, `meta.random_number`,
`meta.filter_choice`) say themselves what was asked, and need no --data. A reward model (--reward_model_path) is asked once. Percent.
`official` is cal.py: of each pair the first k votes of a seeded shuffle, k = 1, 3, ... 9 (`k9` stands for itself, too, without a part); pairs
without a majority, and replies that name no answer, are left out, and "Answer 3" agrees. `robust`: all votes, the last answer that a reply calls
better, only 1 or 2; what has no majority counts as wrong.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import Benchmark, Prediction, Task, first_valid, is_self_describing
from mmrlhf.files.rows import Row, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, ImageSource, Message, Preference
from mmrlhf.text.answer_parsing import normalise

GROUPS = ("general", "hallucination", "reasoning")

VOTE_COUNTS, SEED, EPSILON = (1, 3, 5, 7, 9), 1234, 1e-6

TEMPLATE = """Two answers were given to a question about the picture. Which is better: which is true to the picture, answers what was asked, and reasons soundly?

Question: {question}

Answer 1: {first}

Answer 2: {second}

Give your reasons, then end with a line `Overall Judgment: Answer X is better.`, where X is 1 or 2."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How pairs are judged."""

    votes: Annotated[int, Field(ge=1, le=100)] = 1
    """Judgments of each pair; they differ where --temperature is above 0, or by the order."""


class VLRewardBench(Benchmark):
    """TODO."""

    version = "1"
    license = "not stated"
    headline = "accuracy"
    direction = "higher"
    cluster = "pair"
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """A vote for each pair and number, with ids PAIR/NUMBER. Without --data, the votes that a file of results holds."""
        if _is_results_file(task):
            return _recorded_votes(task)
        examples = []
        for row in read_json_objects(task.path)[: task.limit]:
            meta = _pair_meta(row, "human_ranking")
            image = row.fields.get("image_path", row.fields.get("image"))
            images = (ImageSource(path=str(task.image_root / str(image))),) if isinstance(image, str) else ()
            for vote in range(task.options.votes):
                swapped = int(random.Random(f"{task.seed}/{meta['pair']}/{vote}").random() < 0.5)
                shown_answers = meta["response"][::-1] if swapped else meta["response"]
                text = TEMPLATE.format(
                    question=meta["query"].replace("<image>\n", ""), first=shown_answers[0], second=shown_answers[1]
                )
                examples.append(
                    Example(f"{meta['pair']}/{vote}", images, (Message("user", text),), meta={**meta, "swapped": swapped})
                )
        return examples

    def read(self, path: Path, task: Task) -> list[Prediction] | None:
        """Results of the authors' script take the place of answers where there is no --data."""
        return [Prediction(e.id, [e.meta["reply"]]) for e in task.examples.values()] if _is_results_file(task) else None

    def pairs(self, task: Task) -> list[Preference]:
        """The pairs for a reward model."""
        preferences = []
        for example in task.examples.values():
            chosen_index = example.meta["ranking"].index(0)
            query = (Message("user", example.meta["query"].replace("<image>\n", "")),)
            preferences.append(
                Preference.from_pair(
                    example.id,
                    example.images,
                    query,
                    example.meta["response"][chosen_index],
                    example.meta["response"][1 - chosen_index],
                )
            )
        return preferences

    def preference_reply(self, example: Example, chosen: float, rejected: float) -> str:
        """What a reward model says, in the words of a judge."""
        if chosen == rejected:
            return "Both are equal."
        rejected_position = example.meta["ranking"].index(0 if example.meta["swapped"] else 1) + 1
        return f"Overall Judgment: Answer {3 - rejected_position if chosen > rejected else rejected_position} is better."

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Which answer a vote prefers, and whether people do. `rejected` is the place at which the worse answer was shown."""
        ranking, swapped = example.meta["ranking"], example.meta["swapped"]
        rejected_position = ranking.index(0 if swapped else 1) + 1
        official_number, choice = official_choice(answers[0]), robust_choice(answers[0])
        official = "doesntMatch" if official_number is None else "reject" if official_number == rejected_position else "agree"
        return {
            "official": official,
            "choice": choice,
            "right": None if choice is None else choice != rejected_position,
            "unparsed": choice is None,
        }

    def aggregate(self, rows: list[dict[str, Any]], task: Task) -> dict[str, SufficientStats]:
        """Accuracy by group for each k, and of all votes."""
        return {"official": _official_stats(rows, task), "robust": _robust_stats(first_valid(rows), task)}

    def categories(self, example: Example) -> list[str]:
        """The group."""
        return [pair_group(example.meta["pair"])]


def _is_results_file(task: Task) -> bool:
    return is_self_describing(task, "ranking", "response", "meta")


def _pair_meta(row: Row, ranking: str) -> dict[str, Any]:
    response, ranks = row.require("response"), row.require(row.require_any(ranking, "human_ranking", "ranking"))
    if not (isinstance(response, list) and len(response) == 2 and isinstance(ranks, list) and sorted(ranks) == [0, 1]):
        row.fail("a pair needs two responses, and a ranking that is [0, 1] or [1, 0]")
    return {"pair": str(row.require("id")), "query": str(row.require("query")), "response": response, "ranking": ranks}


def _recorded_votes(task: Task) -> list[Example]:
    examples, votes = [], Counter[str]()
    for row in read_json_objects(Path(str(task.answers))):
        meta = _pair_meta(row, "ranking")
        row_meta = row.require("meta")
        if not (
            isinstance(row_meta, dict)
            and row_meta.get("random_number") in (0, 1)
            and isinstance(row_meta.get("filter_choice"), str)
        ):
            row.fail("`meta` needs random_number (0 or 1) and filter_choice")
        meta |= {"swapped": row_meta["random_number"], "reply": row_meta["filter_choice"]}
        examples.append(Example(f"{meta['pair']}/{votes[meta['pair']]}", (), (), meta=meta))
        votes[meta["pair"]] += 1
    return examples


# ---- scores ----------------------------------------------------------------------------------------------------------

_OFFICIAL = re.compile(
    r"(?:Overall Judgment|Therefore)\s*.*\s*-*\s*Answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*)?better", re.IGNORECASE
)

_ROBUST = re.compile(r"(?:answer|response)\W*(\d+)\W+(?:is|as)\W+(?:(?:the|slightly|much|clearly|overall)\W+)*better|better (?:answer|response)\W+(?:is\W+)?(?:answer|response)?\W*(\d+)", re.IGNORECASE)  # fmt: skip


def official_choice(reply: str) -> int | None:
    """The number that cal.py reads."""
    match = _OFFICIAL.search(reply.replace("\n", "").replace("*", ""))
    return int(match[1]) if match else None


def robust_choice(reply: str) -> int | None:
    """The last answer that a reply calls better; None unless it is 1 or 2."""
    choices = [int(m[1] or m[2]) for m in _ROBUST.finditer(normalise(reply))]
    return choices[-1] if choices and choices[-1] in (1, 2) else None


def pair_group(id_: str) -> str:
    """The group that cal.py puts a pair in, by what stands before the first `-` or `_` of its id."""
    prefix = re.split(r"[_-]", id_)[0]
    return {"RLAIF": "hallucination", "RLHF": "hallucination", "povid": "hallucination", "hallucination": "hallucination", "mathverse": "reasoning", "mmmu": "reasoning"}.get(prefix, "general")  # fmt: skip


def _official_stats(rows: list[dict[str, Any]], task: Task) -> SufficientStats:
    """Every k reads the results anew, and shuffles them with the same generator."""
    rng = random.Random(SEED)
    answered_rows = [r for r in rows if r["status"] in ("ok", "duplicate")]
    pair_keys = {e.id: e.meta["pair"] + e.meta["query"] + "\t".join(sorted(e.meta["response"])) for e in task.examples.values()}
    pair_index = {pair: i for i, pair in enumerate(dict.fromkeys(pair_keys[r["id"]] for r in answered_rows))}
    columns = np.zeros((len(pair_index), len(VOTE_COUNTS), len(GROUPS), 3))
    reasons = {}
    groups = {pair_keys[r["id"]]: pair_group(task.examples[r["id"]].meta["pair"]) for r in answered_rows}
    for i, k in enumerate(VOTE_COUNTS):
        votes: dict[str, list[str]] = {}
        for row in _official_shuffle(answered_rows, rng):
            if len(counted_votes := votes.setdefault(pair_keys[row["id"]], [])) < k:
                counted_votes.append(row["official"])
        for pair, pair_votes in votes.items():
            majority = [pair_votes.count(word) > len(pair_votes) / 2 for word in ("agree", "reject", "doesntMatch")]
            columns[pair_index[pair], i, GROUPS.index(groups[pair])] = majority
        empty_groups = [g for j, g in enumerate(GROUPS) if not columns[:, i, j, :2].any()]
        reasons[f"k{k}"] = (
            f"no pair of {', '.join(empty_groups)} has a majority: the official script raises ZeroDivisionError"
            if empty_groups
            else ""
        )
    reasons[""] = reasons[f"k{VOTE_COUNTS[-1]}"] or "there are no answers"
    flat = np.concatenate(
        [np.ones((len(pair_index), 1)), columns.reshape(len(pair_index), 3 * len(VOTE_COUNTS) * len(GROUPS))], 1
    )
    return SufficientStats(list(pair_index), flat, _metrics_by_k, reasons)


def _official_shuffle(rows: Sequence[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Every place in turn is swapped with one drawn from all."""
    shuffled = list(rows)
    for i in range(len(shuffled)):
        j = rng.randint(0, len(shuffled) - 1)
        shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
    return shuffled


def _metrics_by_k(sums: np.ndarray) -> dict[str, np.ndarray]:
    """What cal.py prints for each k: the rates are fractions of all pairs, `normalized_` ones of those with a majority for an answer."""
    metrics = {}
    pairs, by_k = sums[..., 0] + EPSILON, sums[..., 1:].reshape(*sums.shape[:-1], len(VOTE_COUNTS), len(GROUPS), 3)
    for i, k in enumerate(VOTE_COUNTS):
        agree, reject, unmatched = np.moveaxis(by_k[..., i, :, :], -1, 0)
        values = _accuracies(agree, agree + reject)
        values = {name: np.where(np.isfinite(values["macro_accuracy"]), v, np.nan) for name, v in values.items()}
        num_decided = (agree + reject).sum(-1) + EPSILON
        rates = {"agree_rate": agree, "reject_rate": reject, "doesnt_match_rate": unmatched}
        values |= {name: count.sum(-1) / pairs for name, count in rates.items()}
        values |= {"normalized_agree_rate": agree.sum(-1) / num_decided, "normalized_reject_rate": reject.sum(-1) / num_decided}
        metrics |= {f"k{k}/{name}": v for name, v in values.items()}
    return {name: metrics[f"k{VOTE_COUNTS[-1]}/{name}"] for name in values} | metrics


def _accuracies(right: np.ndarray, total: np.ndarray) -> dict[str, np.ndarray]:
    """Of counts by group [..., 3]: accuracy, its mean over groups, and each group's."""
    group_accuracies = 100 * right / total
    return {
        "accuracy": 100 * right.sum(-1) / total.sum(-1),
        "macro_accuracy": group_accuracies.mean(-1),
        **{g: group_accuracies[..., i] for i, g in enumerate(GROUPS)},
    }


def _robust_stats(rows: list[dict[str, Any]], task: Task) -> SufficientStats:
    votes: dict[str, list[bool | None]] = {}
    for row in rows:
        votes.setdefault(task.examples[row["id"]].meta["pair"], []).append(row["right"])
    columns = np.zeros((len(votes), len(GROUPS), 2))
    for i, (pair, pair_votes) in enumerate(votes.items()):
        columns[i, GROUPS.index(pair_group(pair))] = pair_votes.count(True) > pair_votes.count(False), 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        by_group = sums.reshape(*sums.shape[:-1], len(GROUPS), 2)
        return _accuracies(by_group[..., 0], by_group[..., 1])

    reasons = dict.fromkeys(GROUPS, "there are no pairs of this group") | {"": "a group has no pairs"}
    return SufficientStats(list(votes), columns.reshape(len(votes), 2 * len(GROUPS)), metrics, reasons)
