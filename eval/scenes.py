"""Descriptions of synthetic scenes, verified claim by claim against the scene graph.

This is the project's own benchmark.

    mmrlhf eval scenes --model_name_or_path runs/demo/sft/model --output_dir runs/eval --limit 1000
    mmrlhf eval scenes ... --data held_out,ood_1,ood_2,ood_3

The model describes each scene, and also answers a yes/no question about every other one. Claims are
atomic and distinct: repeating a true claim gains nothing, and leaving one out costs coverage.
Intervals are 95%, by bootstrap over scenes, or Wilson's for shares that count each scene once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf import scenes
from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task, first_valid
from mmrlhf.metrics.diversity import distinct_n, ead, whole_folds
from mmrlhf.metrics.intervals import Proportion, SufficientStats, mean_interval, with_intervals
from mmrlhf.records import Claim, Example, InputError, Message
from mmrlhf.text.word_counts import count_words

SPLITS = ("held_out", "ood_1", "ood_2", "ood_3")
DEFAULT_NUM_SCENES = 1000
FALSE_CLAIM_PENALTY = 4.0
"""Number of true claims that one false claim cancels in `utility`."""
SEED = 0
VOCABULARY_SIZE = 80
"""Number of words in the scenes' language, for the expectation in EAD."""


class SceneDescriptions(Benchmark):
    """Descriptions of synthetic scenes, and yes/no questions about them."""

    version = "7"
    license = "Apache-2.0"
    headline = "chair_s"
    direction = "lower"
    cluster = "scene"
    selection_data = "selection"

    def load(self, task: Task) -> list[Example]:
        """Return prompts for `limit` scenes of each split in --data (default: held_out)."""
        return prompts(task.data, task.limit)

    def files(self, task: Task) -> list[Path]:
        """Return no files: scenes are generated."""
        return []

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return the scene graph's verdicts on each answer."""
        scene = scenes.generate_scene(example.meta["split"], example.meta["index"], SEED)
        row = {**example.meta, "answers": answers}
        if example.meta["kind"] == "yes_no":
            parsed = [_parse_yes_no(answer) for answer in answers]
            is_right = all(verdict == row["truth"] for verdict in parsed)
            return row | {"said": parsed, "unparsed": "unparsed" in parsed, "right": is_right}
        verdicts = [scenes.verify_answer(scene, answer) for answer in answers]
        return row | {
            "right": not any(v.false_claims for v in verdicts),
            "true": [len(v.true_claims) for v in verdicts],
            "cooccurrence_errors": [len(v.cooccurrence_errors) for v in verdicts],
            "perception_errors": [len(v.perception_errors) for v in verdicts],
            "covered": [v.num_covered for v in verdicts],
            "expected": [v.num_canonical for v in verdicts],
            "false_by_type": [_count_kinds(v.false_claims) for v in verdicts],
            "claims_by_type": [_count_kinds(v.false_claims | v.true_claims) for v in verdicts],
            "length": [count_words(answer) for answer in answers],
        }

    def false_spans(self, example: Example, row: ScoreRow, task: Task) -> list[tuple[int, int]]:
        """Return the spans of the first answer's claims that the scene graph contradicts."""
        if example.meta["kind"] == "yes_no":
            return []
        scene = scenes.generate_scene(example.meta["split"], example.meta["index"], SEED)
        verdicts = scenes.verify_description(scene, str(row["answers"][0]))
        return [verdict.claim.span for verdict in verdicts if verdict.value == "contradicted"]

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return the metrics by split, as `official` only: there is no other script."""
        return {"official": _statistics(first_valid(rows))}


# ---- prompts -------------------------------------------------------------------------------------


def prompts(data: str | None = None, limit: int | None = None) -> list[Example]:
    """Return the prompts on comma-separated splits, for `limit` scenes of each.

    Raises InputError for unknown splits.
    """
    examples = []
    for split in (data or "held_out").split(","):
        if split not in scenes.SPLIT_BUCKETS:
            raise InputError(f"--data {split} is not a split: the splits are {', '.join(scenes.SPLIT_BUCKETS)}")
        for index in range(limit or DEFAULT_NUM_SCENES):
            scene = scenes.generate_scene(split, index, SEED)  # type: ignore[arg-type]
            source = scene.image_source()
            question = description_question(scene, index)
            meta: dict[str, Any] = {"split": split, "index": index, "kind": "describe"}
            examples.append(Example(f"{scene.id}-describe", (source,), (Message("user", question.text),), meta=meta))
            if index % 2 == 0:
                question = _yes_no_question(scene, index)
                meta = {**meta, "kind": "yes_no", "truth": _parse_yes_no(question.answer)}
                examples.append(Example(f"{scene.id}-yes_no", (source,), (Message("user", question.text),), meta=meta))
    return examples


def description_question(scene: scenes.Scene, index: int) -> scenes.Question:
    """Return the question that asks for a scene's description."""
    return scenes.description_question(scene, np.random.default_rng([SEED, 23, index]))


def _yes_no_question(scene: scenes.Scene, index: int) -> scenes.Question:
    rng = np.random.default_rng([SEED, 29, index])
    while True:
        question = scenes.short_question(scene, rng)
        if question.kind == "yes_no":
            return question


def yes_no_truth(split: scenes.Split, index: int) -> str:
    """Return the right answer to a scene's yes/no question."""
    return _parse_yes_no(_yes_no_question(scenes.generate_scene(split, index, SEED), index).answer)


def _parse_yes_no(answer: str) -> str:
    first_word = answer.strip().lower().split(",")[0].split(" ")[0].strip(".")
    return first_word if first_word in ("yes", "no") else "unparsed"


def _count_kinds(claims: frozenset[Claim]) -> list[int]:
    return [sum(claim.kind == kind for claim in claims) for kind in scenes.CLAIM_KINDS]


# ---- metrics -------------------------------------------------------------------------------------

SUMMED_FIELDS = ("true", "cooccurrence_errors", "perception_errors", "covered", "expected", "length")
ERROR_FIELDS = {
    "chair_s": ("cooccurrence_errors", "perception_errors"),
    "chair_s_cooccurrence": ("cooccurrence_errors",),
    "chair_s_perception": ("perception_errors",),
}
"""Errors that each variant of CHAIR_s counts."""
NUM_DESCRIPTION_COLUMNS = 12 + 2 * len(scenes.CLAIM_KINDS)
NUM_YES_NO_COLUMNS = 4
NUM_COLUMNS = NUM_DESCRIPTION_COLUMNS + NUM_YES_NO_COLUMNS
YES_NO_METRICS = ("yes_no_accuracy", "yes_rate", "unparsed")
SHARES = {
    "chair_s": (9, 4), "chair_s_cooccurrence": (10, 4), "chair_s_perception": (11, 4), "chair_i": (0, 1), "coverage": (2, 3),
    **{f"chair_i_{kind}": (12 + i, 12 + len(scenes.CLAIM_KINDS) + i) for i, kind in enumerate(scenes.CLAIM_KINDS)},
    **{name: (NUM_DESCRIPTION_COLUMNS + i, NUM_COLUMNS - 1) for i, name in enumerate(YES_NO_METRICS)},
}  # fmt: skip
"""The metrics that are shares: the columns of a split with their hits and their trials."""


def by_split(rows: list[ScoreRow], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return the defined metrics by split; each `NAME` has an interval `NAME_ci`.

    Rates are fractions, errors and utility are per answer, and length is in words. `n` is the
    number of scenes described.
    """
    described = Counter(row["split"] for row in rows if row["kind"] == "describe")
    metrics: dict[str, dict[str, Any]] = {row["split"]: {"n": described[row["split"]]} for row in rows}
    for path, interval in with_intervals(_statistics(rows), seed)[0].items():
        split, _, name = path.partition("/")
        if interval is not None:
            metrics[split][name] = interval["value"]
        if interval is not None and "low" in interval:
            metrics[split][f"{name}_ci"] = [interval["low"], interval["high"]]
    return metrics


def _statistics(rows: Sequence[ScoreRow]) -> SufficientStats:
    """Return the statistics of answers, with metrics as `SPLIT/NAME`."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    columns = np.zeros((len(rows), len(splits), NUM_COLUMNS))
    for row_columns, row in zip(columns, rows, strict=True):
        if row["kind"] == "describe":
            row_columns[splits.index(row["split"]), :NUM_DESCRIPTION_COLUMNS] = _description_columns(row)
        else:
            row_columns[splits.index(row["split"]), NUM_DESCRIPTION_COLUMNS:] = _yes_no_columns(row)

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        for number, split in enumerate(splits):
            split_sums = sums[..., NUM_COLUMNS * number : NUM_COLUMNS * (number + 1)]
            split_values = _description_metrics(split_sums[..., :NUM_DESCRIPTION_COLUMNS])
            split_values |= _yes_no_metrics(split_sums[..., NUM_DESCRIPTION_COLUMNS:])
            values |= {f"{split}/{name}": value for name, value in split_values.items()}
        return values

    shares, diversity = {}, {}
    for number, split in enumerate(splits):
        start = NUM_COLUMNS * number
        shares |= {f"{split}/{name}": Proportion(start + hits, start + trials) for name, (hits, trials) in SHARES.items()}
        answers = [row["answers"] for row in rows if row["split"] == split and row["kind"] == "describe"]
        diversity |= {f"{split}/{name}": leaf for name, leaf in _diversity_metrics(answers).items()}
    clusters = [f"{row['split']}/{row['index']}" for row in rows]
    reasons = {"": "no question that was asked measures it"}
    table = columns.reshape(len(rows), NUM_COLUMNS * len(splits))
    return SufficientStats(clusters, table, metrics, reasons, shares, diversity)


def _diversity_metrics(answers: list[list[str]]) -> dict[str, dict[str, float]]:
    """Return the diversity of first answers across prompts, and of several answers to a prompt.

    Each metric has a value and, of several folds or prompts, an interval.
    """
    if not answers:
        return {}
    folds = whole_folds([texts[0] for texts in answers])
    values = {"ead": [ead(fold, VOCABULARY_SIZE) for fold in folds], "distinct_2": [distinct_n(fold, 2) for fold in folds]}
    if all(len(texts) > 1 for texts in answers):
        values["ead_within"] = [ead(texts, VOCABULARY_SIZE) for texts in answers]
        values["distinct_2_within"] = [distinct_n(texts, 2) for texts in answers]
    intervals = {name: mean_interval(of_folds) for name, of_folds in values.items()}
    return {name: leaf if len(values[name]) > 1 else {"value": leaf["value"]} for name, leaf in intervals.items()}


def _description_columns(row: ScoreRow) -> list[float]:
    """Return what a described scene adds to the sums that `_description_metrics` reads."""
    summed = {name: sum(row[name]) for name in SUMMED_FIELDS}
    num_false = summed["cooccurrence_errors"] + summed["perception_errors"]
    return [
        num_false,
        summed["true"] + num_false,
        summed["covered"],
        summed["expected"],
        len(row["answers"]),
        summed["true"],
        summed["cooccurrence_errors"],
        summed["perception_errors"],
        summed["length"],
        *(_count_answers_with(row, error_fields) for error_fields in ERROR_FIELDS.values()),
        *np.sum(row["false_by_type"], 0),
        *np.sum(row["claims_by_type"], 0),
    ]


def _count_answers_with(row: ScoreRow, error_fields: Sequence[str]) -> int:
    """Return the number of answers with any of these errors."""
    return sum(any(row[name][i] > 0 for name in error_fields) for i in range(len(row["answers"])))


def _description_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    columns = np.moveaxis(sums, -1, 0)
    num_false, num_claims, num_covered, num_canonical, n, num_true, cooccurrence, perception, length = columns[:9]
    with_error, with_cooccurrence, with_perception = columns[9:12]
    false_by_kind, claims_by_kind = np.split(columns[12:], 2)
    chair_i, coverage = num_false / np.maximum(num_claims, 1), num_covered / num_canonical
    precision = 1 - chair_i
    return {
        "chair_s": with_error / n,
        "chair_i": chair_i,
        "coverage": coverage,
        "claim_f1": 2 * precision * coverage / np.maximum(precision + coverage, 1e-9),
        "utility": (num_true - FALSE_CLAIM_PENALTY * num_false) / n,
        "cooccurrence_errors": cooccurrence / n,
        "perception_errors": perception / n,
        "chair_s_cooccurrence": with_cooccurrence / n,
        "chair_s_perception": with_perception / n,
        "mean_length": length / n,
        **{f"chair_i_{kind}": false_by_kind[i] / claims_by_kind[i] for i, kind in enumerate(scenes.CLAIM_KINDS)},
    }


def _yes_no_columns(row: ScoreRow) -> list[float]:
    """Return what a question adds to the sums that `_yes_no_metrics` reads: its right answers,
    those of yes, those that say neither, and all."""
    said = row["said"]
    return [said.count(row["truth"]), said.count("yes"), said.count("unparsed"), len(said)]


def _yes_no_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {name: sums[..., i] / sums[..., 3] for i, name in enumerate(YES_NO_METRICS)}
