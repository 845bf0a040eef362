"""The runs of `facts_map.py` as curves: metrics of each evaluation along steps and along the KL.

The KL of an evaluated policy is not measured by itself: step t logs the KL of the policy that
sampled its answers, which t - 1 steps made. `kl_after_steps` estimates it from the neighbours.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from mmrlhf import scenes
from mmrlhf.config import ScenesConfig
from mmrlhf.demo import data
from mmrlhf.demo.measure import sampled_rows
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.metrics import kl_curve
from mmrlhf.metrics.kl_curve import by_root_of_kl, kl_after_steps

FIXED_KLS = (0.5, 1.0, 2.0)
"""KLs, in nats per answer, at which arms are compared if both reach them."""
SELECTED_BY = "selection_claim_f1"
"""The best checkpoint has the highest value of this metric; the start, SFT, is a candidate."""
SLOPE_STEPS = 24
"""Steps from which first slopes are taken."""
GRID_POINTS = 41


@dataclass(frozen=True)
class Run:
    """A policy's run: E evaluations, the first of SFT at step 0 with KL 0, and T steps of training.

    `metrics` maps a name such as held_out_claim_f1 to values [E]; `samples` maps step, kl, score
    and what is true of the sampled answers (utility, false_KIND) to values [T], for the steps that
    were not skipped.
    """

    seed: int
    cell: str
    kl_coef: float
    steps: np.ndarray
    kl: np.ndarray
    metrics: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]
    is_finished: bool
    tried: tuple[float, ...] = ()
    """The KL coefficients that its cell ran this seed with, if `tuned_runs` chose among them."""

    @property
    def best(self) -> int:
        """The number of the best evaluation by the selection split; the earliest of equals."""
        return int(np.argmax(self.metrics[SELECTED_BY]))

    def evaluation_rows(self) -> list[dict[str, float]]:
        """Return a row per evaluation, with its step, KL and metrics, to keep with a cell."""
        columns = {"step": self.steps, "kl": self.kl} | self.metrics
        return [{name: round(float(values[i]), 5) for name, values in columns.items()} for i in range(len(self.steps))]


def split_cell(name: str) -> tuple[str, int, str]:
    """Return the reward of a cell (rm, both, claims, ranked or oracle), its labels, and its facts.

    The labels are 0 without a reward model. The facts of the oracle are "oracle".
    """
    parts = name.split("-")
    return parts[0], int(parts[1]) if len(parts) == 3 else 0, parts[-1]


# ---- reading -------------------------------------------------------------------------------------


def load_runs(out: Path, data_configs: dict[int, ScenesConfig]) -> list[Run]:
    """Return the runs in a directory that have at least one evaluation after the start."""
    runs = []
    for path in sorted(out.glob("*-*/ppo_*_kl*/metrics.jsonl")):
        seed = int(path.parent.parent.name.rpartition("-")[2])
        run = load_run(path.parent, seed, data_configs[seed])
        runs += [run] if run is not None else []
    return runs


def load_run(directory: Path, seed: int, data_config: ScenesConfig) -> Run | None:
    """Return a run, or None if it has no evaluation after the start."""
    match = re.fullmatch(r"ppo_(.+)_kl(.+)", directory.name)
    assert match is not None
    rows = read_jsonl(directory / "metrics.jsonl")
    evaluated = [row for row in rows if f"eval/{SELECTED_BY}" in row]
    if len(evaluated) < 2:
        return None
    steps = np.array([row["step"] for row in evaluated])
    sampled = sampled_rows(rows)
    truth_by_step = {row["step"]: row for row in read_truth(directory, data_config)}
    truth = [truth_by_step[row["step"]] for row in sampled]
    samples = {
        "step": np.array([row["step"] for row in sampled]),
        "kl": np.array([row["objective/kl"] for row in sampled]),
        "score": np.array([row["objective/scores"] for row in sampled]),
    }
    samples |= {name: np.array([row[name] for row in truth]) for name in truth[0] if name != "step"}
    names = [name.removeprefix("eval/") for name in evaluated[0] if name.startswith("eval/")]
    metrics = {name: np.array([row[f"eval/{name}"] for row in evaluated], dtype=float) for name in names}
    kl = kl_after_steps(samples["kl"], samples["step"], steps)
    return Run(seed, match[1], float(match[2]), steps, kl, metrics, samples, (directory / "finished.json").exists())


def write_truth(directory: Path, data_config: ScenesConfig) -> list[dict[str, float]]:
    """Write truth.jsonl to a run: what is true of each step's sampled answers.

    A row has the step, the mean utility and length in words of an answer, and its false claims by
    kind.
    """
    by_step: dict[int, list[list[float]]] = defaultdict(list)
    for row in read_jsonl(directory / "ledger.jsonl"):
        scene = _scene_at(data_config, int(row["id"].split("-")[1]))
        by_step[row["step"]].append(_truth_of(scene, row["answer"], data_config))
    names = ("utility", "length", *(f"false_{kind}" for kind in scenes.CLAIM_KINDS))
    rows = [
        {"step": step, **dict(zip(names, np.mean(values, 0).tolist(), strict=True))} for step, values in sorted(by_step.items())
    ]
    write_atomic(directory / "truth.jsonl", "".join(map(json_line, rows)))
    return rows


def read_truth(directory: Path, data_config: ScenesConfig) -> list[dict[str, float]]:
    """Return the rows of truth.jsonl, rewritten if the run has continued since."""
    path, ledger = directory / "truth.jsonl", directory / "ledger.jsonl"
    if path.exists() and path.stat().st_mtime >= ledger.stat().st_mtime:
        return [dict(row) for row in read_jsonl(path)]
    return write_truth(directory, data_config)


def _truth_of(scene: scenes.Scene, answer: str, data_config: ScenesConfig) -> list[float]:
    verdicts = scenes.verify_answer(scene, answer)
    utility = len(verdicts.true_claims) - data_config.false_claim_penalty * len(verdicts.false_claims)
    false_by_kind = [sum(claim.kind == kind for claim in verdicts.false_claims) for kind in scenes.CLAIM_KINDS]
    return [utility, len(answer.split()), *false_by_kind]


@lru_cache(maxsize=4096)
def _scene_at(data_config: ScenesConfig, index: int) -> scenes.Scene:
    return data.training_scene("rl", index, data_config)


# ---- along the KL --------------------------------------------------------------------------------


def along_kl(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return square roots of KLs, ascending, and a metric's values there."""
    return by_root_of_kl(run.kl, run.metrics[metric])


def value_at_kl(run: Run, metric: str, kl: float) -> float:
    """Return a metric at a KL, linear between evaluations in the root of KL; NaN beyond them."""
    return kl_curve.value_at_kl(run.kl, run.metrics[metric], kl)


def kl_of_turn(run: Run, metric: str = "held_out_utility") -> float:
    """Return the KL at which a metric is highest among the evaluations."""
    return float(run.kl[int(np.argmax(run.metrics[metric]))])


# ---- two runs of a seed --------------------------------------------------------------------------


def after_same_steps(a: Run, b: Run, metric: str) -> float:
    """Return a - b at the last evaluation that both have."""
    step = np.intersect1d(a.steps, b.steps)[-1]
    return float(a.metrics[metric][a.steps == step][0] - b.metrics[metric][b.steps == step][0])


def at_best_checkpoints(a: Run, b: Run, metric: str) -> float:
    """Return a - b, each at its best checkpoint by the selection split."""
    return float(a.metrics[metric][a.best] - b.metrics[metric][b.best])


def at_same_kl(a: Run, b: Run, metric: str) -> dict[str, float]:
    """Return a - b at the largest KL that both reached, as the mean up to there, and at FIXED_KLS.

    The mean is over the root of KL. Where a run does not reach a fixed KL, the value is NaN.
    """
    largest = min(a.kl.max(), b.kl.max())
    grid = np.linspace(0, np.sqrt(largest), GRID_POINTS) ** 2
    grid[-1] = largest  # the square of a root may exceed it
    differences = np.array([value_at_kl(a, metric, kl) - value_at_kl(b, metric, kl) for kl in grid])
    mean = float(np.trapezoid(differences) / (GRID_POINTS - 1))
    fixed = {f"KL {kl:g}": value_at_kl(a, metric, kl) - value_at_kl(b, metric, kl) for kl in FIXED_KLS}
    return {"largest common KL": float(differences[-1]), "mean to it": mean, **fixed}


def first_slope(run: Run, name: str, num_steps: int = SLOPE_STEPS) -> float:
    """Return the slope of a quantity of the samples along the root of KL over the first steps."""
    roots, values = np.sqrt(np.maximum(run.samples["kl"][:num_steps], 0)), run.samples[name][:num_steps]
    return float(np.polyfit(roots, values, 1)[0])


# ---- tuning --------------------------------------------------------------------------------------


def tuned_runs(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Return the runs of each cell by seed, with the KL coefficient that is best for the cell.

    It has the highest mean, over the seeds that ran with all of the cell's coefficients, of the
    best value of SELECTED_BY; without such seeds, it is the one with the most seeds.
    """
    by_cell: dict[str, dict[float, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        by_cell[run.cell][run.kl_coef][run.seed] = run
    chosen = {}
    for cell, by_coef in by_cell.items():
        shared_seeds = set.intersection(*(set(by_seed) for by_seed in by_coef.values()))

        def merit(coef: float, shared: set[int] = shared_seeds, by_coef: dict = by_coef) -> tuple[float, int]:
            selected = [float(by_coef[coef][seed].metrics[SELECTED_BY].max()) for seed in sorted(shared)]
            return (float(np.mean(selected)) if selected else 0.0, len(by_coef[coef]))

        chosen[cell] = {
            seed: replace(run, tried=tuple(sorted(coef for coef, by_seed in by_coef.items() if seed in by_seed)))
            for seed, run in by_coef[max(sorted(by_coef), key=merit)].items()
        }
    return chosen


def are_tuned_alike(a: Mapping[int, Run], b: Mapping[int, Run]) -> bool:
    """Return whether two cells chose among the same KL coefficients, in each seed that both have.

    Of two equal cells, the one that has more to choose from looks better.
    """
    return all(a[seed].tried == b[seed].tried for seed in set(a) & set(b))
