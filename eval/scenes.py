"""Descriptions of synthetic scenes, verified claim by claim against the scene graph.

This is the project's own benchmark.

    mmrlhf eval scenes --model_name_or_path runs/demo/sft/model --output_dir runs/eval --limit 1000
    mmrlhf eval scenes ... --data held_out,ood_1,ood_2,ood_3

The model describes each scene, and also answers a yes/no question about every other one. Claims are
atomic and distinct: repeating a true claim gains nothing, and leaving one out costs coverage.
Intervals are 95%, by bootstrap over scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf import scenes
from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task, first_valid
from mmrlhf.metrics.diversity import distinct_n, ead, whole_folds
from mmrlhf.metrics.intervals import SufficientStats, bootstrap, fold_interval
from mmrlhf.records import Claim, Example, InputError, Message

SPLITS = ("held_out", "ood_1", "ood_2", "ood_3")
DEFAULT_NUM_SCENES = 1000
FALSE_CLAIM_PENALTY = 4.0
"""Number of true claims that one false claim cancels in `utility`."""
SEED = 0
VOCABULARY_SIZE = 80
"""Number of words in the scenes' language, for the expectation in EAD."""


class SceneDescriptions(Benchmark):
    """Descriptions of synthetic scenes, and yes/no questions about them."""

    version = "6"
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
            "length": [len(answer.split()) for answer in answers],
        }

    def false_spans(self, example: Example, row: ScoreRow, task: Task) -> list[tuple[int, int]]:
        """Return the spans of the first answer's claims that the scene graph contradicts."""
        if example.meta["kind"] == "yes_no":
            return []
        scene = scenes.generate_scene(example.meta["split"], example.meta["index"], SEED)
        verdicts = scenes.verify_description(scene, str(row["answers"][0]))
        return [verdict.claim.span for verdict in verdicts if verdict.value == "contradicted"]

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return the metrics of `by_split`, as `official` only: there is no other script."""
        rows = first_valid(rows)
        splits = list(dict.fromkeys(row["split"] for row in rows))
        clusters, columns = [], []
        for number, split in enumerate(splits):
            for row in rows:
                if row["split"] != split:
                    continue
                row_columns = np.zeros((len(splits), NUM_COLUMNS))
                if row["kind"] == "describe":
                    row_columns[number, :NUM_DESCRIPTION_COLUMNS] = _description_columns([row])[0]
                else:
                    row_columns[number, NUM_DESCRIPTION_COLUMNS:] = _yes_no_columns([row])[0]
                clusters.append(f"{split}/{row['index']}")
                columns.append(row_columns.ravel())

        def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
            values: dict[str, np.ndarray] = {}
            for number, split in enumerate(splits):
                split_sums = sums[..., NUM_COLUMNS * number : NUM_COLUMNS * (number + 1)]
                split_values = _description_metrics(split_sums[..., :NUM_DESCRIPTION_COLUMNS])
                split_values |= _yes_no_metrics(split_sums[..., NUM_DESCRIPTION_COLUMNS:])
                values |= {f"{split}/{name}": value for name, value in split_values.items()}
            return values

        extra = {
            f"{split}/{name}": leaf
            for split, values in by_split(rows, task.seed).items()
            for name, leaf in _extra_metrics(values).items()
        }
        table = np.array(columns).reshape(len(columns), NUM_COLUMNS * len(splits))
        reasons = {"": "no question that was asked measures it"}
        return {"official": SufficientStats(clusters, table, metrics, reasons, extra=extra)}


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
NUM_DESCRIPTION_COLUMNS = 12
NUM_YES_NO_COLUMNS = 4
NUM_COLUMNS = NUM_DESCRIPTION_COLUMNS + NUM_YES_NO_COLUMNS


def by_split(rows: list[ScoreRow], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return metrics by split; each `NAME` has an interval `NAME_ci`.

    Rates are fractions, errors and utility are per answer, and length is in words.
    """
    splits = dict.fromkeys(row["split"] for row in rows)
    return {split: _split_metrics([row for row in rows if row["split"] == split], seed) for split in splits}


def _split_metrics(rows: list[ScoreRow], seed: int) -> dict[str, Any]:
    descriptions = [row for row in rows if row["kind"] == "describe"]
    metrics: dict[str, Any] = {}
    if descriptions:
        metrics |= bootstrap(_description_columns(descriptions), _description_metrics, seed)
        metrics |= _diversity_metrics([row["answers"] for row in descriptions])
        counts = np.array(
            [[*np.sum(row["false_by_type"], 0), *np.sum(row["claims_by_type"], 0)] for row in descriptions], dtype=float
        )
        metrics["chair_i_by_type"] = bootstrap(counts, _chair_i_by_type, seed)
    yes_no_rows = [row for row in rows if row["kind"] == "yes_no"]
    if yes_no_rows:
        metrics |= bootstrap(_yes_no_columns(yes_no_rows), _yes_no_metrics, seed)
    return metrics | {"n": len(descriptions)}


def _diversity_metrics(answers: list[list[str]]) -> dict[str, Any]:
    """Return the diversity of first answers across prompts, and of several answers to a prompt."""
    first_answers = [texts[0] for texts in answers]
    folds = whole_folds(first_answers)
    metrics = fold_interval("ead", [ead(fold, VOCABULARY_SIZE) for fold in folds])
    metrics |= fold_interval("distinct_2", [distinct_n(fold, 2) for fold in folds])
    if all(len(texts) > 1 for texts in answers):
        metrics |= fold_interval("ead_within", [ead(texts, VOCABULARY_SIZE) for texts in answers])
        metrics |= fold_interval("distinct_2_within", [distinct_n(texts, 2) for texts in answers])
    return metrics


def _extra_metrics(values: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return a split's metrics that are not functions of its sums, with value and interval."""
    by_type = {f"chair_i_{kind}": value for kind, value in values.get("chair_i_by_type", {}).items()}
    extra = {name: value for name, value in values.items() if name.startswith(("ead", "distinct"))} | by_type
    return {
        name: {"value": value, **dict(zip(("low", "high"), extra.get(f"{name}_ci", ()), strict=False))}
        for name, value in extra.items()
        if not name.endswith("_ci")
    }


def _description_columns(rows: Sequence[ScoreRow]) -> np.ndarray:
    """Return the additive columns of R described scenes [R, NUM_DESCRIPTION_COLUMNS]."""
    summed = {name: np.array([np.sum(row[name]) for row in rows], dtype=float) for name in SUMMED_FIELDS}
    num_answers = np.array([len(row["answers"]) for row in rows], dtype=float)
    num_false = summed["cooccurrence_errors"] + summed["perception_errors"]
    num_hallucinated = [
        np.array([_count_answers_with(row, fields) for row in rows], dtype=float) for fields in ERROR_FIELDS.values()
    ]
    columns = [
        num_false,
        summed["true"] + num_false,
        summed["covered"],
        summed["expected"],
        num_answers,
        summed["true"],
        summed["cooccurrence_errors"],
        summed["perception_errors"],
        summed["length"],
        *num_hallucinated,
    ]
    return np.stack(columns, 1)


def _count_answers_with(row: ScoreRow, error_fields: Sequence[str]) -> int:
    """Return the number of answers with any of these errors."""
    return sum(any(row[name][i] > 0 for name in error_fields) for i in range(len(row["answers"])))


def _description_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    columns = np.moveaxis(sums, -1, 0)
    num_false, num_claims, num_covered, num_canonical, n, num_true, cooccurrence, perception, length = columns[:9]
    with_error, with_cooccurrence, with_perception = columns[9:]
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
    }


def _chair_i_by_type(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return the share of false claims of each kind.

    `sums` [..., 2 * kinds] are false claims by kind, then all claims by kind.
    """
    num_false, num_claims = np.split(sums, 2, axis=-1)
    return {kind: num_false[..., i] / np.maximum(num_claims[..., i], 1) for i, kind in enumerate(scenes.CLAIM_KINDS)}


def _yes_no_columns(rows: Sequence[ScoreRow]) -> np.ndarray:
    """Return the additive columns of R yes/no questions [R, NUM_YES_NO_COLUMNS].

    They are the shares of right, of yes and of unread answers, and 1.
    """
    columns = []
    for row in rows:
        verdicts = np.array(row["said"])
        columns.append([np.mean(verdicts == row["truth"]), np.mean(verdicts == "yes"), np.mean(verdicts == "unparsed"), 1.0])
    return np.array(columns)


def _yes_no_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {name: sums[..., i] / sums[..., 3] for i, name in enumerate(("yes_no_accuracy", "yes_rate", "unparsed"))}
