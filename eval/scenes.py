"""The project's own benchmark: descriptions of rendered scenes, judged claim by claim against the scene graph.

    mmrlhf eval scenes --model_name_or_path runs/demo/sft/model --output_dir runs/eval --limit 1000
    mmrlhf eval scenes ... --data held_out,ood_1,ood_2,ood_3

Every scene is described once; every second one is also asked a yes/no question. Claims are atomic and distinct: repeating a
true one earns nothing, and leaving one out costs coverage. Intervals are 95%, by bootstrap over scenes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmrlhf import scenes
from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task
from mmrlhf.metrics.diversity import distinct_n, ead
from mmrlhf.metrics.intervals import SufficientStats, bootstrap, fold_interval
from mmrlhf.records import Example, InputError, Message

SPLITS = ("held_out", "ood_1", "ood_2", "ood_3")

FALSE_CLAIM_PENALTY = 4.0

SEED = 0


class SceneDescriptions(Benchmark):
    """TODO."""

    version = "2"
    license = "Apache-2.0"
    headline = "chair_s"
    direction = "lower"
    cluster = "scene"

    def load(self, task: Task) -> list[Example]:
        """Prompts on the splits named in --data (comma-separated; held_out if not given); `limit` scenes each, 1,000 if not given."""
        return prompts(task.data, task.limit)

    def files(self, task: Task) -> list[Path]:
        """Return no files: scenes are generated."""
        return []

    def score(self, example: Example, answers: list[str], task: Task | None = None) -> dict:
        """What the graph says of each answer to one prompt."""
        scene = scenes.generate_scene(example.meta["split"], example.meta["index"], SEED)
        row = {**example.meta, "answers": answers}
        if example.meta["kind"] == "yes_no":
            parsed = [_parse_yes_no(a) for a in answers]
            return row | {"said": parsed, "unparsed": "unparsed" in parsed, "right": all(s == row["truth"] for s in parsed)}
        verdicts = [scenes.verify_answer(scene, a) for a in answers]
        row["right"] = not any(j.false_claims for j in verdicts)
        kinds = ("object", "attribute", "count", "relation")
        return row | {
            "true": [len(j.true_claims) for j in verdicts],
            "cooccurrence_errors": [len(j.cooccurrence_errors) for j in verdicts],
            "perception_errors": [len(j.perception_errors) for j in verdicts],
            "covered": [j.num_covered for j in verdicts],
            "owed": [j.num_canonical for j in verdicts],
            "false_by_type": [[sum(c.kind == k for c in j.false_claims) for k in kinds] for j in verdicts],
            "claims_by_type": [[sum(c.kind == k for c in j.false_claims | j.true_claims) for k in kinds] for j in verdicts],
            "length": [len(a.split()) for a in answers],
        }

    def aggregate(self, rows: list[dict], task: Task) -> dict[str, SufficientStats]:
        """`by_split` as columns. This script is the official one, and its parser knows what it does not know."""
        rows = [r for r in rows if r["status"] == "ok"]
        splits = list(dict.fromkeys(r["split"] for r in rows))
        clusters, columns = [], []
        for number, split in enumerate(splits):
            for row in (r for r in rows if r["split"] == split):
                row_columns = np.zeros((len(splits), NUM_DESCRIPTION_COLUMNS + NUM_YES_NO_COLUMNS))
                if row["kind"] == "describe":
                    row_columns[number, :NUM_DESCRIPTION_COLUMNS] = _description_columns([row])[0]
                else:
                    row_columns[number, NUM_DESCRIPTION_COLUMNS:] = _yes_no_columns([row])[0]
                clusters.append(f"{split}/{row['index']}")
                columns.append(row_columns.ravel())

        def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
            values = {}
            for number, split in enumerate(splits):
                split_sums = sums[
                    ...,
                    number * (NUM_DESCRIPTION_COLUMNS + NUM_YES_NO_COLUMNS) : (number + 1)
                    * (NUM_DESCRIPTION_COLUMNS + NUM_YES_NO_COLUMNS),
                ]
                split_metrics = _description_metrics(split_sums[..., :NUM_DESCRIPTION_COLUMNS]) | _yes_no_metrics(
                    split_sums[..., NUM_DESCRIPTION_COLUMNS:]
                )
                values |= {f"{split}/{name}": value for name, value in split_metrics.items()}
            return values

        extra = {
            f"{split}/{name}": leaf
            for split, values in by_split(rows, task.seed).items()
            for name, leaf in _extra_metrics(values).items()
        }
        stats = SufficientStats(
            clusters, np.array(columns).reshape(len(columns), -1), metrics, {"": "nothing was asked that says so"}, extra=extra
        )
        return {"official": stats}

    def false_spans(self, example: Example, row: ScoreRow, task: Task) -> list[tuple[int, int]]:
        """Return the spans of the first answer's claims that the scene graph contradicts."""
        if example.meta["kind"] == "yes_no":
            return []
        scene = scenes.generate_scene(example.meta["split"], example.meta["index"], SEED)
        claims = scenes.parse_claims(str(row["answers"][0]))
        return [claim.span for claim in claims if scenes.verify_claim(scene, claim).value == "contradicted"]


def prompts(data: str | None = None, limit: int | None = None) -> list[Example]:
    """`load` for the demo and the studies."""
    examples = []
    for split in (data or "held_out").split(","):
        if split not in scenes.SPLIT_BUCKETS:
            raise InputError(f"--data {split}: no such split; there are {', '.join(scenes.SPLIT_BUCKETS)}")
        for index in range(limit or 1000):
            scene = scenes.generate_scene(split, index, SEED)  # type: ignore[arg-type]
            source = scene.image_source()
            question = description_question(scene, index)
            meta: dict = {"split": split, "index": index, "kind": "describe"}
            examples.append(Example(f"{scene.id}-describe", (source,), (Message("user", question.text),), meta=meta))
            if index % 2 == 0:
                question = _yes_no_question(scene, index)
                meta = {**meta, "kind": "yes_no", "truth": _parse_yes_no(question.answer)}
                examples.append(Example(f"{scene.id}-yes_no", (source,), (Message("user", question.text),), meta=meta))
    return examples


def description_question(scene: scenes.Scene, index: int) -> scenes.Question:
    """How a scene's description is asked for."""
    return scenes.description_question(scene, np.random.default_rng([SEED, 23, index]))


def _yes_no_question(scene: scenes.Scene, index: int) -> scenes.Question:
    rng = np.random.default_rng([SEED, 29, index])
    while (question := scenes.short_question(scene, rng)).kind != "yes_no":
        pass
    return question


def yes_no_truth(split: scenes.Split, index: int) -> str:
    """The right answer to a scene's yes/no question."""
    return _parse_yes_no(_yes_no_question(scenes.generate_scene(split, index, SEED), index).answer)


def _parse_yes_no(answer: str) -> str:
    first_word = answer.strip().lower().split(",")[0].split(" ")[0].strip(".")
    return first_word if first_word in ("yes", "no") else "unparsed"


def _extra_metrics(values: dict) -> dict:
    """Of `{"ead": 1, "ead_ci": [0, 2]}` what `_of_described` does not sum up, as `{"ead": {"value": 1, "low": 0, "high": 2}}`."""
    by_type = {f"chair_i_{k}": v for k, v in values["chair_i_by_type"].items()}
    values = {k: v for k, v in values.items() if k.startswith(("ead", "distinct"))} | by_type
    return {
        k: {"value": values[k], "low": values[f"{k}_ci"][0], "high": values[f"{k}_ci"][1]}
        for k in values
        if not k.endswith("_ci")
    }


def by_split(rows: list[dict], seed: int = 0) -> dict[str, dict]:
    """Metrics by split, `NAME_ci` beside each. Rates are fractions; cooccurrence, perception and u are per answer; length in words."""
    return {
        split: _split_metrics([r for r in rows if r["split"] == split], seed) for split in dict.fromkeys(r["split"] for r in rows)
    }


NUM_DESCRIPTION_COLUMNS = 12

NUM_YES_NO_COLUMNS = 4


def _description_columns(rows: list[dict]) -> np.ndarray:
    """Of every described scene what adds up [R, DESCRIBED]."""
    columns = {
        k: np.array([np.sum(r[k]) for r in rows], dtype=float)
        for k in ("true", "cooccurrence_errors", "perception_errors", "covered", "owed", "length")
    }
    answers = np.array([len(r["answers"]) for r in rows], dtype=float)
    has_false = {
        name: np.array([sum(sum(r[k][i] for k in kinds) > 0 for i in range(len(r["answers"]))) for r in rows], dtype=float)
        for name, kinds in {
            "chair_s": ("cooccurrence_errors", "perception_errors"),
            "chair_s_cooccurrence": ("cooccurrence_errors",),
            "chair_s_perception": ("perception_errors",),
        }.items()
    }
    num_false = columns["cooccurrence_errors"] + columns["perception_errors"]
    num_claims = columns["true"] + num_false
    return np.stack([num_false, num_claims, columns["covered"], columns["owed"], answers, columns["true"], columns["cooccurrence_errors"], columns["perception_errors"],
                     columns["length"], *has_false.values()], 1)  # fmt: skip


def _description_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    (
        num_false,
        num_claims,
        covered,
        num_expected,
        n,
        num_true,
        cooccurrence,
        perception,
        length,
        s,
        s_cooccurrence,
        s_perception,
    ) = np.moveaxis(sums, -1, 0)
    chair_i, coverage = num_false / np.maximum(num_claims, 1), covered / num_expected
    precision = 1 - chair_i
    return {
        "chair_s": s / n, "chair_i": chair_i, "coverage": coverage,
        "claim_f1": 2 * precision * coverage / np.maximum(precision + coverage, 1e-9),
        "utility": (num_true - FALSE_CLAIM_PENALTY * num_false) / n, "cooccurrence_errors": cooccurrence / n, "perception_errors": perception / n,
        "chair_s_cooccurrence": s_cooccurrence / n, "chair_s_perception": s_perception / n, "mean_length": length / n,
    }  # fmt: skip


def _yes_no_columns(rows: list[dict]) -> np.ndarray:
    """Of every scene that was asked about shares of right, yes and unread answers, and 1 [R, ASKED]."""
    return np.array([[np.mean([s == r["truth"] for s in r["said"]]), np.mean([s == "yes" for s in r["said"]]),
                      np.mean([s == "unparsed" for s in r["said"]]), 1.0] for r in rows])  # fmt: skip


def _yes_no_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {name: sums[..., i] / sums[..., 3] for i, name in enumerate(("yes_no_accuracy", "yes_rate", "unparsed"))}


def _split_metrics(rows: list[dict], seed: int) -> dict:
    description_rows = [r for r in rows if r["kind"] == "describe"]
    metrics = bootstrap(_description_columns(description_rows), _description_metrics, seed)
    # Diversity across prompts: of the first answer to each, in folds of 50 so that sizes are alike everywhere.
    first_answers = [r["answers"][0] for r in description_rows]
    folds = [first_answers[i : i + 50] for i in range(0, len(first_answers) - 49, 50)] or [first_answers]
    metrics |= fold_interval("ead", [ead(f, VOCABULARY_SIZE) for f in folds])
    metrics |= fold_interval("distinct_2", [distinct_n(f, 2) for f in folds])
    if all(len(r["answers"]) > 1 for r in description_rows):
        metrics |= fold_interval("ead_within", [ead(r["answers"], VOCABULARY_SIZE) for r in description_rows])
        metrics |= fold_interval("distinct_2_within", [distinct_n(r["answers"], 2) for r in description_rows])
    kinds = ("object", "attribute", "count", "relation")
    by_type = np.array([[*np.sum(r["false_by_type"], 0), *np.sum(r["claims_by_type"], 0)] for r in description_rows], dtype=float)
    metrics["chair_i_by_type"] = bootstrap(
        by_type, lambda s: {k: s[..., i] / np.maximum(s[..., i + len(kinds)], 1) for i, k in enumerate(kinds)}, seed
    )
    yes_no_rows = [r for r in rows if r["kind"] == "yes_no"]
    if yes_no_rows:
        metrics |= bootstrap(_yes_no_columns(yes_no_rows), _yes_no_metrics, seed)
    return metrics | {"n": len(description_rows)}


VOCABULARY_SIZE = 80

"""Words that the world's language has, for the expectation in EAD."""
