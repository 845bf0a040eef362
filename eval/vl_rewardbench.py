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

from mmrlhf.answers import plain
from mmrlhf.benchmark import Counted, Given, Task, first, says_it_all
from mmrlhf.config import STRICT
from mmrlhf.records import Example, ImageSource, Message, Preference
from mmrlhf.rows import Row, objects

VERSION, LICENSE = "1", "not stated"
HEADLINE, DIRECTION, CLUSTER = "accuracy", "higher", "pair"
GROUPS = ("general", "hallucination", "reasoning")
KS, SEED, TINY = (1, 3, 5, 7, 9), 1234, 1e-6
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


# ---- pairs -----------------------------------------------------------------------------------------------------------


def load(task: Task) -> list[Example]:
    """A vote for each pair and number, with ids PAIR/NUMBER. Without --data, the votes that a file of results holds."""
    if _own(task):
        return _recorded(task)
    found = []
    for row in objects(task.path)[: task.limit]:
        meta = _pair(row, "human_ranking")
        image = row.fields.get("image_path", row.fields.get("image"))
        images = (ImageSource(path=str(task.pictures / str(image))),) if isinstance(image, str) else ()
        for vote in range(task.options.votes):
            swapped = int(random.Random(f"{task.seed}/{meta['pair']}/{vote}").random() < 0.5)
            shown = meta["response"][::-1] if swapped else meta["response"]
            text = TEMPLATE.format(question=meta["query"].replace("<image>\n", ""), first=shown[0], second=shown[1])
            found.append(Example(f"{meta['pair']}/{vote}", images, (Message("user", text),), meta={**meta, "swapped": swapped}))
    return found


def _own(task: Task) -> bool:
    return says_it_all(task, "ranking", "response", "meta")


def _pair(row: Row, ranking: str) -> dict[str, Any]:
    response, ranks = row.need("response"), row.need(row.either(ranking, "human_ranking", "ranking"))
    if not (isinstance(response, list) and len(response) == 2 and isinstance(ranks, list) and sorted(ranks) == [0, 1]):
        row.fail("a pair needs two responses, and a ranking that is [0, 1] or [1, 0]")
    return {"pair": str(row.need("id")), "query": str(row.need("query")), "response": response, "ranking": ranks}


def _recorded(task: Task) -> list[Example]:
    found, votes = [], Counter[str]()
    for row in objects(Path(str(task.answers))):
        meta = _pair(row, "ranking")
        said = row.need("meta")
        if not (isinstance(said, dict) and said.get("random_number") in (0, 1) and isinstance(said.get("filter_choice"), str)):
            row.fail("`meta` needs random_number (0 or 1) and filter_choice")
        meta |= {"swapped": said["random_number"], "reply": said["filter_choice"]}
        found.append(Example(f"{meta['pair']}/{votes[meta['pair']]}", (), (), meta=meta))
        votes[meta["pair"]] += 1
    return found


def read(place: Path, task: Task) -> list[Given] | None:
    """Results of the authors' script take the place of answers where there is no --data."""
    return [Given(e.id, [e.meta["reply"]]) for e in task.examples.values()] if _own(task) else None


def pairs(task: Task) -> list[Preference]:
    """The pairs for a reward model."""
    found = []
    for e in task.examples.values():
        best = e.meta["ranking"].index(0)
        query = (Message("user", e.meta["query"].replace("<image>\n", "")),)
        found.append(Preference.pair(e.id, e.images, query, e.meta["response"][best], e.meta["response"][1 - best]))
    return found


def preferred(example: Example, chosen: float, rejected: float) -> str:
    """What a reward model says, in the words of a judge."""
    if chosen == rejected:
        return "Both are equal."
    worse = example.meta["ranking"].index(0 if example.meta["swapped"] else 1) + 1
    return f"Overall Judgment: Answer {3 - worse if chosen > rejected else worse} is better."


# ---- scores ----------------------------------------------------------------------------------------------------------

_OFFICIAL = re.compile(
    r"(?:Overall Judgment|Therefore)\s*.*\s*-*\s*Answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*)?better", re.IGNORECASE
)
_BETTER = re.compile(r"(?:answer|response)\W*(\d+)\W+(?:is|as)\W+(?:(?:the|slightly|much|clearly|overall)\W+)*better|better (?:answer|response)\W+(?:is\W+)?(?:answer|response)?\W*(\d+)", re.IGNORECASE)  # fmt: skip


def official_choice(reply: str) -> int | None:
    """The number that cal.py reads."""
    found = _OFFICIAL.search(reply.replace("\n", "").replace("*", ""))
    return int(found[1]) if found else None


def robust_choice(reply: str) -> int | None:
    """The last answer that a reply calls better; None unless it is 1 or 2."""
    found = [int(m[1] or m[2]) for m in _BETTER.finditer(plain(reply))]
    return found[-1] if found and found[-1] in (1, 2) else None


def score(example: Example, answers: list[str], task: Task) -> dict[str, Any]:
    """Which answer a vote prefers, and whether people do. `rejected` is the place at which the worse answer was shown."""
    ranking, swapped = example.meta["ranking"], example.meta["swapped"]
    rejected = ranking.index(0 if swapped else 1) + 1
    named, said = official_choice(answers[0]), robust_choice(answers[0])
    official = "doesntMatch" if named is None else "reject" if named == rejected else "agree"
    return {"official": official, "choice": said, "right": None if said is None else said != rejected, "unparsed": said is None}


def group(id_: str) -> str:
    """The group that cal.py puts a pair in, by what stands before the first `-` or `_` of its id."""
    prefix = re.split(r"[_-]", id_)[0]
    return {"RLAIF": "hallucination", "RLHF": "hallucination", "povid": "hallucination", "hallucination": "hallucination", "mathverse": "reasoning", "mmmu": "reasoning"}.get(prefix, "general")  # fmt: skip


def categories(example: Example) -> list[str]:
    """The group."""
    return [group(example.meta["pair"])]


def aggregate(rows: list[dict[str, Any]], task: Task) -> dict[str, Counted]:
    """Accuracy by group for each k, and of all votes."""
    return {"official": _official(rows, task), "robust": _robust(first(rows), task)}


def _official(rows: list[dict[str, Any]], task: Task) -> Counted:
    """Every k reads the results anew, and shuffles them with the same generator."""
    rng = random.Random(SEED)
    mine = [r for r in rows if r["status"] in ("ok", "duplicate")]
    keys = {e.id: e.meta["pair"] + e.meta["query"] + "\t".join(sorted(e.meta["response"])) for e in task.examples.values()}
    place = {pair: i for i, pair in enumerate(dict.fromkeys(keys[r["id"]] for r in mine))}
    columns = np.zeros((len(place), len(KS), len(GROUPS), 3))
    reasons = {}
    groups = {keys[r["id"]]: group(task.examples[r["id"]].meta["pair"]) for r in mine}
    for i, k in enumerate(KS):
        votes: dict[str, list[str]] = {}
        for row in _shuffled(mine, rng):
            if len(so_far := votes.setdefault(keys[row["id"]], [])) < k:
                so_far.append(row["official"])
        for pair, said in votes.items():
            majority = [said.count(word) > len(said) / 2 for word in ("agree", "reject", "doesntMatch")]
            columns[place[pair], i, GROUPS.index(groups[pair])] = majority
        empty = [g for j, g in enumerate(GROUPS) if not columns[:, i, j, :2].any()]
        reasons[f"k{k}"] = (
            f"no pair of {', '.join(empty)} has a majority: the official script raises ZeroDivisionError" if empty else ""
        )
    reasons[""] = reasons[f"k{KS[-1]}"] or "there are no answers"
    flat = np.concatenate([np.ones((len(place), 1)), columns.reshape(len(place), 3 * len(KS) * len(GROUPS))], 1)
    return Counted(list(place), flat, _by_k, reasons)


def _shuffled(rows: Sequence[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Every place in turn is swapped with one drawn from all."""
    found = list(rows)
    for i in range(len(found)):
        j = rng.randint(0, len(found) - 1)
        found[i], found[j] = found[j], found[i]
    return found


def _by_k(sums: np.ndarray) -> dict[str, np.ndarray]:
    """What cal.py prints for each k: the rates are fractions of all pairs, `normalized_` ones of those with a majority for an answer."""
    found = {}
    pairs, by_k = sums[..., 0] + TINY, sums[..., 1:].reshape(*sums.shape[:-1], len(KS), len(GROUPS), 3)
    for i, k in enumerate(KS):
        agree, reject, unmatched = np.moveaxis(by_k[..., i, :, :], -1, 0)
        values = _figures(agree, agree + reject)
        values = {name: np.where(np.isfinite(values["macro_accuracy"]), v, np.nan) for name, v in values.items()}
        told = (agree + reject).sum(-1) + TINY
        rates = {"agree_rate": agree, "reject_rate": reject, "doesnt_match_rate": unmatched}
        values |= {name: count.sum(-1) / pairs for name, count in rates.items()}
        values |= {"normalized_agree_rate": agree.sum(-1) / told, "normalized_reject_rate": reject.sum(-1) / told}
        found |= {f"k{k}/{name}": v for name, v in values.items()}
    return {name: found[f"k{KS[-1]}/{name}"] for name in values} | found


def _figures(right: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    """Of counts by group [..., 3]: accuracy, its mean over groups, and each group's."""
    each = 100 * right / asked
    return {
        "accuracy": 100 * right.sum(-1) / asked.sum(-1),
        "macro_accuracy": each.mean(-1),
        **{g: each[..., i] for i, g in enumerate(GROUPS)},
    }


def _robust(rows: list[dict[str, Any]], task: Task) -> Counted:
    votes: dict[str, list[bool | None]] = {}
    for row in rows:
        votes.setdefault(task.examples[row["id"]].meta["pair"], []).append(row["right"])
    columns = np.zeros((len(votes), len(GROUPS), 2))
    for i, (pair, said) in enumerate(votes.items()):
        columns[i, GROUPS.index(group(pair))] = said.count(True) > said.count(False), 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        by_group = sums.reshape(*sums.shape[:-1], len(GROUPS), 2)
        return _figures(by_group[..., 0], by_group[..., 1])

    reasons = dict.fromkeys(GROUPS, "there are no pairs of this group") | {"": "a group has no pairs"}
    return Counted(list(votes), columns.reshape(len(votes), 2 * len(GROUPS)), metrics, reasons)
