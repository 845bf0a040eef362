"""VL-RewardBench: which of two answers to a question about an image is better?

The model under test is the judge (Li et al. 2024).

    mmrlhf eval vl_rewardbench --model runs/sft/model --data VL_RewardBench.jsonl
        --image_folder images --votes 9 --temperature 0.2 --out runs/vl
    mmrlhf eval vl_rewardbench --answers infer_results.jsonl --out runs/vl

A pair is judged --votes times, each time with a random order of the answers. Results as the
authors' script saves them (`ranking`, `meta.random_number`, `meta.filter_choice`) contain the
questions and need no --data. Logs of lmms-eval and sheets of VLMEvalKit are read in their own order
of the answers. A reward model (--reward_model_path) scores the pair once for each vote. Metrics are
in percent.

`official` follows cal.py: it takes the first k votes on each pair from a seeded shuffle, for k = 1,
3, ... 9 (metrics without a prefix are those of k = 9); pairs without a majority and replies that
name no answer are left out, and "Answer 3" agrees. `robust` takes all votes, and from each reply
the last answer that it calls better, if that is 1 or 2; a pair without a majority counts as wrong.
"""

from __future__ import annotations

import ast
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.answer_rows import ID_FIELDS
from mmrlhf.evaluation.benchmark import (
    Benchmark,
    Fields,
    Prediction,
    ScoreRow,
    Task,
    answered,
    first_present,
    first_valid,
    is_self_describing,
    text_sha256,
)
from mmrlhf.files.rows import Row, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, Message, Preference
from mmrlhf.text.answer_parsing import normalise

GROUPS = ("general", "hallucination", "reasoning")
GROUP_OF_PREFIX = {
    "RLAIF": "hallucination",
    "RLHF": "hallucination",
    "povid": "hallucination",
    "hallucination": "hallucination",
    "mathverse": "reasoning",
    "mmmu": "reasoning",
}
"""Groups of cal.py by the prefix of a pair's id. All other pairs are general."""
VOTE_COUNTS = (1, 3, 5, 7, 9)
SHUFFLE_SEED, EPSILON = 1234, 1e-6
"""cal.py's seed, and the term that it adds to the denominators of its rates."""
VERDICTS = ("agree", "reject", "doesntMatch")
"""cal.py's words for votes for the better answer, for the worse one, and for none."""
IMAGE_TOKEN = "<image>\n"
PROMPT_OF_PAIR = "Question: {question}\n\nAnswer 1: {first}\n\nAnswer 2: {second}"
_PAIR_IN_PROMPT = re.compile(r"Question:(.*Answer 1:.*Answer 2:.*?)(?:\n\s*Please evaluate both answers|\Z)", re.DOTALL)
"""The pair that a prompt of the authors, or of lmms-eval, describes."""
TEMPLATE = """Two answers were given to a question about the picture. Which is better: which is true to the picture, answers what was asked, and reasons soundly?

Question: {question}

Answer 1: {first}

Answer 2: {second}

Give your reasons, then end with a line `Overall Judgment: Answer X is better.`, where X is 1 or 2."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How pairs are judged."""

    votes: Annotated[int, Field(ge=1, le=100)] = 1
    """Judgments of each pair.

    They differ in the order of the answers, and if --temperature is above 0.
    """


class VLRewardBench(Benchmark):
    """VL-RewardBench."""

    version = "2"
    license = "not stated"
    headline = "accuracy"
    direction = "higher"
    cluster = "pair"
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return each vote on each pair, from --data or a results file, with ids PAIR/NUMBER."""
        if _is_results_file(task):
            return _recorded_votes(task)
        rows = read_json_objects(task.path)
        metas = _label_pairs([_pair_meta(row, "human_ranking") for row in rows])
        num_pairs = len({meta["pair"] for meta in metas})
        if num_pairs < len(rows):
            print(f"note: {len(rows) - num_pairs} rows of {task.path} repeat a pair, and are left out", file=sys.stderr)
        examples: dict[str, Example] = {}
        is_harness = _is_harness_log(task)
        for row, meta in list(zip(rows, metas, strict=True))[: task.limit]:
            name, image = next(((name, row.fields[name]) for name in ("image_path", "image") if name in row.fields), ("", None))
            images = (task.image_source(image, location=row.location, name=name),) if isinstance(image, str) else ()
            for vote in range(1 if is_harness else task.options.votes):
                drawn = random.Random(f"{task.seed}/{meta['pair']}/{vote}").random() < 0.5
                is_swapped = _harness_swaps(meta["response"]) if is_harness else int(drawn)
                first, second = meta["response"][::-1] if is_swapped else meta["response"]
                prompt = TEMPLATE.format(question=_question(meta), first=first, second=second)
                example = Example(
                    f"{meta['pair']}/{vote}", images, (Message("user", prompt),), meta={**meta, "swapped": is_swapped}
                )
                examples.setdefault(example.id, example)
        return list(examples.values())

    def read(self, path: Path, task: Task) -> list[Prediction] | None:
        """Return the replies of a results file, which `load` has read."""
        if not _is_results_file(task):
            return None
        return [Prediction(example.id, [example.meta["reply"]]) for example in task.examples.values()]

    def rename_fields(self, fields: Fields, task: Task) -> Fields:
        """Return a row of VLMEvalKit's sheet with what its prompt says about the pair."""
        if "prediction" not in fields or not isinstance(fields.get("response"), str):
            return fields
        try:
            first, second = response = ast.literal_eval(fields["response"])
            if _harness_swaps(response):
                first, second = second, first
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # no list of two texts
            return fields
        return {**fields, "question": PROMPT_OF_PAIR.format(question=fields.get("question"), first=first, second=second)}

    def match_id(self, fields: Fields, task: Task) -> str | None:
        """Return the id of a row's vote; lmms-eval names the pair."""
        id_ = first_present(fields, ID_FIELDS)
        return f"{id_}/0" if "doc_id" in fields and f"{id_}/0" in task.examples else id_

    def identity(self, example: Example) -> tuple[str, str]:
        """Return question and answers as in a prompt, and no image."""
        first, second = example.meta["response"][:: -1 if example.meta["swapped"] else 1]
        return PROMPT_OF_PAIR.format(question=_question(example.meta), first=first, second=second), ""

    def question_key(self, text: str) -> str:
        """Return a hash of the question and the two answers of a prompt, "" for any other text."""
        pair = _PAIR_IN_PROMPT.search(text.replace(IMAGE_TOKEN, ""))
        return text_sha256(" ".join(pair[1].split())) if pair else ""

    def pairs(self, task: Task) -> list[Preference]:
        """Return the pairs for a reward model."""
        preferences = []
        for example in task.examples.values():
            prompt = (Message("user", _question(example.meta)),)
            responses, better = example.meta["response"], example.meta["ranking"].index(0)
            preferences.append(Preference.from_pair(example.id, example.images, prompt, responses[better], responses[1 - better]))
        return preferences

    def preference_reply(self, example: Example, chosen: float, rejected: float) -> str:
        """Return a reward model's preference in the words of a judge."""
        if not (chosen < rejected or chosen > rejected):  # also if one is not a number
            return "Both are equal."
        worse = _rejected_position(example)
        return f"Overall Judgment: Answer {3 - worse if chosen > rejected else worse} is better."

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return which answer a vote prefers, and whether that agrees with people."""
        rejected_position = _rejected_position(example)
        official_number, choice = official_choice(answers[0]), robust_choice(answers[0])
        official = "reject" if official_number == rejected_position else "agree"
        return {
            "official": "doesntMatch" if official_number is None else official,
            "choice": choice,
            "right": None if choice is None else choice != rejected_position,
            "unparsed": choice is None,
        }

    def categories(self, example: Example) -> list[str]:
        """Return the group."""
        return [pair_group(example.meta["id"])]

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return accuracy by group: for each k, and for all votes."""
        return {"official": _official_stats(answered(rows), task), "robust": _robust_stats(first_valid(rows), task)}


# ---- pairs ---------------------------------------------------------------------------------------


def _is_results_file(task: Task) -> bool:
    return is_self_describing(task, "ranking", "response", "meta")


def _is_harness_log(task: Task) -> bool:
    path = Path(task.answers or "")
    file = next(iter(sorted(path.glob("*_samples_*.jsonl"))), path) if path.is_dir() else path
    return file.suffix in (".tsv", ".csv", ".xlsx") or is_self_describing(replace(task, answers=str(file)), "doc_id")


def _harness_swaps(response: Sequence[str]) -> int:
    """Return whether lmms-eval and VLMEvalKit show the second answer first, as 0 or 1."""
    return sum(map(len, response)) % 2


def _pair_meta(row: Row, ranking_field: str) -> dict[str, Any]:
    response, ranking = row.require("response"), row.require(row.require_any(ranking_field, "human_ranking", "ranking"))
    is_pair = isinstance(response, list) and len(response) == 2 and all(isinstance(text, str) for text in response)
    if not is_pair or ranking not in ([0, 1], [1, 0]):
        row.fail("a pair needs two responses that are texts, and a ranking that is [0, 1] or [1, 0]")
    return {"id": str(row.require("id")), "query": str(row.require("query")), "response": response, "ranking": ranking}


def _pair_key(meta: Mapping[str, Any]) -> str:
    """Return the key that identifies a pair for cal.py."""
    return str(meta["id"] + meta["query"] + "\t".join(sorted(map(str, meta["response"]))))


def _label_pairs(metas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pairs' fields with a label of their own under `pair`: the id, and a hash behind it
    if other pairs share the id."""
    keys_of_id: dict[str, set[str]] = defaultdict(set)
    for meta in metas:
        keys_of_id[meta["id"]].add(_pair_key(meta))
    num_shared = sum(len(keys) > 1 for keys in keys_of_id.values())
    if num_shared:
        print(f"note: {num_shared} ids name several pairs, which question and answers tell apart", file=sys.stderr)
    return [
        {**meta, "pair": meta["id"] if len(keys_of_id[meta["id"]]) == 1 else f"{meta['id']}~{text_sha256(_pair_key(meta))[:8]}"}
        for meta in metas
    ]


def _question(meta: Mapping[str, Any]) -> str:
    return str(meta["query"]).replace(IMAGE_TOKEN, "")


def _recorded_votes(task: Task) -> list[Example]:
    examples, num_votes = [], Counter[str]()
    rows = read_json_objects(Path(str(task.answers)))
    for row, meta in zip(rows, _label_pairs([_pair_meta(row, "ranking") for row in rows]), strict=True):
        vote = row.require("meta")
        is_vote = isinstance(vote, dict) and vote.get("random_number") in (0, 1)
        if not (is_vote and isinstance(vote.get("filter_choice"), str)):
            row.fail("`meta` needs random_number (0 or 1) and filter_choice")
        meta |= {"swapped": vote["random_number"], "reply": vote["filter_choice"]}
        examples.append(Example(f"{meta['pair']}/{num_votes[meta['pair']]}", (), (), meta=meta))
        num_votes[meta["pair"]] += 1
    return examples


def _rejected_position(example: Example) -> int:
    """Return the position, 1 or 2, of the worse answer in the prompt."""
    return int(example.meta["ranking"].index(0 if example.meta["swapped"] else 1)) + 1


def pair_group(id_: str) -> str:
    """Return the group that cal.py puts a pair in, by the prefix of its id."""
    return GROUP_OF_PREFIX.get(re.split(r"[_-]", id_)[0], "general")


# ---- votes ---------------------------------------------------------------------------------------

_OFFICIAL = re.compile(
    r"(?:Overall Judgment|Therefore)\s*.*\s*-*\s*Answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*)?better",
    re.IGNORECASE,
)
"""cal.py's own pattern."""
_ROBUST = re.compile(
    # Answer 2 is the better ...
    r"(?:answer|response)\W*(\d+)\W+(?:is|as)\W+(?:(?:the|slightly|much|clearly|overall|far|generally)\W+)*"
    r"(?:better|superior|preferred|preferable)\b"
    # The better answer is Answer 2; Overall Judgment: Answer 2
    r"|(?:better|preferred|superior) (?:answer|response)\W+(?:is\W+)?(?:answer|response)?\W*(\d+)"
    r"|\boverall judge?ment\W+(?:is\W+)?(?:answer|response)\W*(\d+)(?=[^\w\n]*(?:\n|$))"
    # I prefer Answer 2; Answer 1 is worse than Answer 2
    r"|\b(?:prefer|choose|pick|favou?r|(?:is|as)\W+(?:(?:slightly|much|clearly|far)\W+)*(?:worse than|inferior to))\W+(?:answer|response)\W*(\d+)",
    re.IGNORECASE,
)


def official_choice(reply: str) -> int | None:
    """Return the number of the answer that cal.py reads, or None."""
    # Two blanks or dashes match as more do, which would take minutes.
    match = _OFFICIAL.search(re.sub("-{3,}", "--", re.sub(r"\s{3,}", "  ", reply.replace("\n", "").replace("*", ""))))
    return int(match[1]) if match else None


def robust_choice(reply: str) -> int | None:
    """Return the last answer that a reply calls better, or None if that is not 1 or 2."""
    choices = [int(match[match.lastindex or 1]) for match in _ROBUST.finditer(normalise(reply))]
    return choices[-1] if choices and choices[-1] in (1, 2) else None


# ---- metrics -------------------------------------------------------------------------------------


def _official_stats(rows: list[ScoreRow], task: Task) -> SufficientStats:
    """Return statistics with a row for each pair: 1, then a majority flag by k, group and verdict.

    For every k, cal.py reads the results again and shuffles them with the same generator.
    """
    rng = random.Random(SHUFFLE_SEED)
    # For cal.py, votes with equal ids, questions and answers are votes on one pair.
    pair_keys = {example.id: _pair_key(example.meta) for example in task.examples.values()}
    group_of_pair = {pair_keys[row["id"]]: pair_group(task.examples[row["id"]].meta["id"]) for row in rows}
    pair_index = {pair: index for index, pair in enumerate(group_of_pair)}
    majorities = np.zeros((len(pair_index), len(VOTE_COUNTS), len(GROUPS), len(VERDICTS)))
    reasons = {}
    for i, k in enumerate(VOTE_COUNTS):
        votes: dict[str, list[str]] = {pair: [] for pair in pair_index}
        for row in _official_shuffle(rows, rng):
            pair_votes = votes[pair_keys[row["id"]]]
            if len(pair_votes) < k:
                pair_votes.append(row["official"])
        for pair, pair_votes in votes.items():
            majority = [pair_votes.count(verdict) > len(pair_votes) / 2 for verdict in VERDICTS]
            majorities[pair_index[pair], i, GROUPS.index(group_of_pair[pair])] = majority
        empty_groups = [group for j, group in enumerate(GROUPS) if not majorities[:, i, j, :2].any()]
        reason = f"no pair of {', '.join(empty_groups)} has a majority: the official script raises ZeroDivisionError"
        reasons[f"k{k}"] = reason if empty_groups else ""
    reasons[""] = reasons[f"k{VOTE_COUNTS[-1]}"] or "there are no answers"
    flat = majorities.reshape(len(pair_index), len(VOTE_COUNTS) * len(GROUPS) * len(VERDICTS))
    columns = np.concatenate([np.ones((len(pair_index), 1)), flat], 1)
    return SufficientStats(list(pair_index), columns, _metrics_by_k, reasons)


def _official_shuffle(rows: Sequence[ScoreRow], rng: random.Random) -> list[ScoreRow]:
    """Shuffle as cal.py does: swap each row with one drawn from all rows, which is not uniform."""
    shuffled = list(rows)
    for i in range(len(shuffled)):
        j = rng.randint(0, len(shuffled) - 1)
        shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
    return shuffled


def _metrics_by_k(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return what cal.py prints for each k, and for the largest k also without a prefix.

    Rates are fractions of all pairs, `normalized_` rates of pairs with a majority for an answer.
    """
    num_pairs = sums[..., 0] + EPSILON
    by_k = sums[..., 1:].reshape(*sums.shape[:-1], len(VOTE_COUNTS), len(GROUPS), len(VERDICTS))
    metrics: dict[str, np.ndarray] = {}
    last: dict[str, np.ndarray] = {}
    for i, k in enumerate(VOTE_COUNTS):
        agree, reject, unmatched = np.moveaxis(by_k[..., i, :, :], -1, 0)
        values = _accuracies(agree, agree + reject)
        # cal.py stops, and prints nothing, if a group is empty.
        values = {name: np.where(np.isfinite(values["macro_accuracy"]), value, np.nan) for name, value in values.items()}
        num_decided = (agree + reject).sum(-1) + EPSILON
        values["agree_rate"] = agree.sum(-1) / num_pairs
        values["reject_rate"] = reject.sum(-1) / num_pairs
        values["doesnt_match_rate"] = unmatched.sum(-1) / num_pairs
        values["normalized_agree_rate"] = agree.sum(-1) / num_decided
        values["normalized_reject_rate"] = reject.sum(-1) / num_decided
        metrics |= {f"k{k}/{name}": value for name, value in values.items()}
        last = values
    return last | metrics


def _robust_stats(rows: list[ScoreRow], task: Task) -> SufficientStats:
    votes: dict[str, list[bool | None]] = {}
    for row in rows:
        votes.setdefault(task.examples[row["id"]].meta["pair"], []).append(row["right"])
    columns = np.zeros((len(votes), len(GROUPS), 2))
    for pair_columns, (pair, pair_votes) in zip(columns, votes.items(), strict=True):
        is_right = pair_votes.count(True) > pair_votes.count(False)
        pair_columns[GROUPS.index(pair_group(pair))] = is_right, 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        by_group = sums.reshape(*sums.shape[:-1], len(GROUPS), 2)
        return _accuracies(by_group[..., 0], by_group[..., 1])

    reasons = dict.fromkeys(GROUPS, "there are no pairs of this group") | {"": "a group has no pairs"}
    return SufficientStats(list(votes), columns.reshape(len(votes), 2 * len(GROUPS)), metrics, reasons)


def _accuracies(right: np.ndarray, total: np.ndarray) -> dict[str, np.ndarray]:
    """Return accuracy, its mean over groups, and each group's, from counts [..., GROUPS]."""
    group_accuracies = 100 * right / total
    return {
        "accuracy": 100 * right.sum(-1) / total.sum(-1),
        "macro_accuracy": group_accuracies.mean(-1),
        **{group: group_accuracies[..., i] for i, group in enumerate(GROUPS)},
    }
