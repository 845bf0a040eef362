"""The project's own benchmark: descriptions of rendered scenes, judged claim by claim against the scene graph.

    mmrlhf eval scenes --model_name_or_path runs/demo/sft/model --output_dir runs/eval --limit 1000
    mmrlhf eval scenes ... --data held_out,ood_1,ood_2,ood_3

Every scene is described once; every second one is also asked a yes/no question. Claims are atomic and distinct: repeating a
true one earns nothing, and leaving one out costs coverage. Intervals are 95%, by bootstrap over scenes.
"""

from __future__ import annotations

import numpy as np

from mmrlhf import scenes
from mmrlhf.benchmark import Counted, Task, bootstrap, distinct_n, ead, fold_interval
from mmrlhf.records import Example, InputError, Message

VERSION = "2"
LICENSE = "Apache-2.0"
HEADLINE = "chair_s"
DIRECTION = "lower"
CLUSTER = "scene"
SPLITS = ("held_out", "ood_1", "ood_2", "ood_3")
LAMBDA = 4.0
SEED = 0


def load(task: Task) -> list[Example]:
    """Prompts on the splits named in --data (comma-separated; held_out if not given); `limit` scenes each, 1,000 if not given."""
    return prompts(task.data, task.limit)


def files(task: Task) -> list[str]:
    """None: scenes are drawn."""
    return []


def prompts(data: str | None = None, limit: int | None = None) -> list[Example]:
    """`load` for the demo and the studies."""
    rows = []
    for split in (data or "held_out").split(","):
        if split not in scenes.BUCKETS:
            raise InputError(f"--data {split}: no such split; there are {', '.join(scenes.BUCKETS)}")
        for index in range(limit or 1000):
            scene = scenes.scene(split, index, SEED)  # type: ignore[arg-type]
            source = scene.source()
            asked = description(scene, index)
            meta: dict = {"split": split, "index": index, "kind": "describe"}
            rows.append(Example(f"{scene.id}-describe", (source,), (Message("user", asked.text),), meta=meta))
            if index % 2 == 0:
                asked = _yes_no_question(scene, index)
                meta = {**meta, "kind": "yes_no", "truth": _yes_no(asked.answer)}
                rows.append(Example(f"{scene.id}-yes_no", (source,), (Message("user", asked.text),), meta=meta))
    return rows


def description(scene: scenes.Scene, index: int) -> scenes.Question:
    """How a scene's description is asked for."""
    return scenes.describe(scene, np.random.default_rng([SEED, 23, index]))


def _yes_no_question(scene: scenes.Scene, index: int) -> scenes.Question:
    rng = np.random.default_rng([SEED, 29, index])
    while (asked := scenes.question(scene, rng)).kind != "yes_no":
        pass
    return asked


def truth(split: scenes.Split, index: int) -> str:
    """The right answer to a scene's yes/no question."""
    return _yes_no(_yes_no_question(scenes.scene(split, index, SEED), index).answer)


def score(example: Example, answers: list[str], task: Task | None = None) -> dict:
    """What the graph says of each answer to one prompt."""
    scene = scenes.scene(example.meta["split"], example.meta["index"], SEED)
    row = {**example.meta, "answers": answers}
    if example.meta["kind"] == "yes_no":
        said = [_yes_no(a) for a in answers]
        return row | {"said": said, "unparsed": "unparsed" in said, "right": all(s == row["truth"] for s in said)}
    judged = [scenes.judge(scene, a) for a in answers]
    row["right"] = not any(j.false for j in judged)
    kinds = ("object", "attribute", "count", "relation")
    return row | {
        "true": [len(j.true) for j in judged],
        "habit": [len(j.habit) for j in judged],
        "sight": [len(j.sight) for j in judged],
        "covered": [j.covered for j in judged],
        "owed": [j.owed for j in judged],
        "false_by_type": [[sum(c.kind == k for c in j.false) for k in kinds] for j in judged],
        "claims_by_type": [[sum(c.kind == k for c in j.false | j.true) for k in kinds] for j in judged],
        "length": [len(a.split()) for a in answers],
    }


def _yes_no(answer: str) -> str:
    first = answer.strip().lower().split(",")[0].split(" ")[0].strip(".")
    return first if first in ("yes", "no") else "unparsed"


def marks(example: Example, answer: str, task: Task) -> list[tuple[int, int]]:
    """Where an answer makes false claims."""
    if example.meta["kind"] == "yes_no":
        return []
    scene = scenes.scene(example.meta["split"], example.meta["index"], SEED)
    return [claim.span for claim in scenes.claims(answer) if scenes.verify(scene, claim).value == "contradicted"]


def aggregate(rows: list[dict], task: Task) -> dict[str, Counted]:
    """`by_split` as columns. This script is the official one, and its parser knows what it does not know."""
    rows = [r for r in rows if r["status"] == "ok"]
    splits = list(dict.fromkeys(r["split"] for r in rows))
    clusters, columns = [], []
    for number, split in enumerate(splits):
        for row in (r for r in rows if r["split"] == split):
            blank = np.zeros((len(splits), DESCRIBED + ASKED))
            if row["kind"] == "describe":
                blank[number, :DESCRIBED] = _described([row])[0]
            else:
                blank[number, DESCRIBED:] = _asked([row])[0]
            clusters.append(f"{split}/{row['index']}")
            columns.append(blank.ravel())

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for number, split in enumerate(splits):
            part = sums[..., number * (DESCRIBED + ASKED) : (number + 1) * (DESCRIBED + ASKED)]
            figures = _of_described(part[..., :DESCRIBED]) | _of_asked(part[..., DESCRIBED:])
            found |= {f"{split}/{name}": value for name, value in figures.items()}
        return found

    extra = {
        f"{split}/{name}": leaf for split, values in by_split(rows, task.seed).items() for name, leaf in _leaves(values).items()
    }
    counted = Counted(
        clusters, np.array(columns).reshape(len(columns), -1), metrics, {"": "nothing was asked that says so"}, more=extra
    )
    return {"official": counted}


def _leaves(values: dict) -> dict:
    """Of `{"ead": 1, "ead_ci": [0, 2]}` what `_of_described` does not sum up, as `{"ead": {"value": 1, "low": 0, "high": 2}}`."""
    by_type = {f"chair_i_{k}": v for k, v in values["chair_i_by_type"].items()}
    values = {k: v for k, v in values.items() if k.startswith(("ead", "distinct"))} | by_type
    return {
        k: {"value": values[k], "low": values[f"{k}_ci"][0], "high": values[f"{k}_ci"][1]}
        for k in values
        if not k.endswith("_ci")
    }


def by_split(rows: list[dict], seed: int = 0) -> dict[str, dict]:
    """Metrics by split, `NAME_ci` beside each. Rates are fractions; habit, sight and u are per answer; length in words."""
    return {
        split: _aggregate([r for r in rows if r["split"] == split], seed) for split in dict.fromkeys(r["split"] for r in rows)
    }


DESCRIBED = 12
ASKED = 4


def _described(described: list[dict]) -> np.ndarray:
    """Of every described scene what adds up [R, DESCRIBED]."""
    column = {
        k: np.array([np.sum(r[k]) for r in described], dtype=float)
        for k in ("true", "habit", "sight", "covered", "owed", "length")
    }
    answers = np.array([len(r["answers"]) for r in described], dtype=float)
    any_ = {
        name: np.array([sum(sum(r[k][i] for k in kinds) > 0 for i in range(len(r["answers"]))) for r in described], dtype=float)
        for name, kinds in {"chair_s": ("habit", "sight"), "chair_s_habit": ("habit",), "chair_s_sight": ("sight",)}.items()
    }
    false = column["habit"] + column["sight"]
    said = column["true"] + false
    return np.stack([false, said, column["covered"], column["owed"], answers, column["true"], column["habit"], column["sight"],
                     column["length"], *any_.values()], 1)  # fmt: skip


def _of_described(sums: np.ndarray) -> dict[str, np.ndarray]:
    false, said, covered, owed, n, true, habit, sight, length, s, s_habit, s_sight = np.moveaxis(sums, -1, 0)
    chair_i, coverage = false / np.maximum(said, 1), covered / owed
    precision = 1 - chair_i
    return {
        "chair_s": s / n, "chair_i": chair_i, "coverage": coverage,
        "claim_f1": 2 * precision * coverage / np.maximum(precision + coverage, 1e-9),
        "u": (true - LAMBDA * false) / n, "habit": habit / n, "sight": sight / n,
        "chair_s_habit": s_habit / n, "chair_s_sight": s_sight / n, "mean_length": length / n,
    }  # fmt: skip


def _asked(asked: list[dict]) -> np.ndarray:
    """Of every scene that was asked about shares of right, yes and unread answers, and 1 [R, ASKED]."""
    return np.array([[np.mean([s == r["truth"] for s in r["said"]]), np.mean([s == "yes" for s in r["said"]]),
                      np.mean([s == "unparsed" for s in r["said"]]), 1.0] for r in asked])  # fmt: skip


def _of_asked(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {name: sums[..., i] / sums[..., 3] for i, name in enumerate(("yes_no_accuracy", "yes_rate", "unparsed"))}


def _aggregate(rows: list[dict], seed: int) -> dict:
    described = [r for r in rows if r["kind"] == "describe"]
    found = bootstrap(_described(described), _of_described, seed)
    # Diversity across prompts: of the first answer to each, in folds of 50 so that sizes are alike everywhere.
    first = [r["answers"][0] for r in described]
    folds = [first[i : i + 50] for i in range(0, len(first) - 49, 50)] or [first]
    found |= fold_interval("ead", [ead(f, VOCABULARY) for f in folds])
    found |= fold_interval("distinct_2", [distinct_n(f, 2) for f in folds])
    if all(len(r["answers"]) > 1 for r in described):
        found |= fold_interval("ead_within", [ead(r["answers"], VOCABULARY) for r in described])
        found |= fold_interval("distinct_2_within", [distinct_n(r["answers"], 2) for r in described])
    kinds = ("object", "attribute", "count", "relation")
    by_type = np.array([[*np.sum(r["false_by_type"], 0), *np.sum(r["claims_by_type"], 0)] for r in described], dtype=float)
    found["chair_i_by_type"] = bootstrap(
        by_type, lambda s: {k: s[..., i] / np.maximum(s[..., i + len(kinds)], 1) for i, k in enumerate(kinds)}, seed
    )
    asked = [r for r in rows if r["kind"] == "yes_no"]
    if asked:
        found |= bootstrap(_asked(asked), _of_asked, seed)
    return found | {"n": len(described)}


VOCABULARY = 80
"""Words that the world's language has, for the expectation in EAD."""
