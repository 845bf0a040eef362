"""When do facts help the policy? A map of rewards: labels x facts, claims, an oracle, controls.

    python eval/studies/facts_map.py --out runs/facts_map --seeds 4 5 6 7 8 --cells corners
    python eval/studies/facts_map.py --out runs/facts_map --seeds 4 5 6 --cells rest controls
    python eval/studies/facts_map.py --out runs/facts_map --analyse

A cell is a reward, and each seed is a world: all its cells share the SFT model, the preference
pairs (a reward model with N labels learns from the first N), the prompts and PPO's settings. Cells:

rm-N-FACTS      a reward model with N labels (0: the untrained review) that reads FACTS: none, the
                annotator's (80% listed, 5% wrong) or all
claims-FACTS    claims checked against facts: `hallucination` and `coverage`, no reward model
both-N-FACTS    the sum of the two
ranked-N-FACTS  a reward model without facts, whose labels are pairs ranked by claims-FACTS
oracle          the true utility by the scene graph, scaled as a reward model is
rm-N-empty      the judge of rm-N-annotator, and prompts whose facts say that nothing is listed
rm-N-swapped    every row, in training and in PPO, has another picture's facts

The learning rate of PPO is constant, unlike the demo's, so that a run of 48 steps is the beginning
of one of 120, and one that was stopped is as good as its length. Each `eval_steps` steps, greedy
answers on fresh selection and held-out scenes are measured (index 1000 + seed * N onwards, after
those of the benchmark). With several `--kl-coefs`, a cell has a run of each, and its best by the
selection split counts. A run that was killed continues from its last checkpoint. To stop a run,
interrupt it or kill its process group; `--analyse` reports what there is.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Experiment, cached_result, claim_settings, run_and_report, run_parallel
from facts_map_analysis import report
from facts_map_curves import load_run, write_truth
from facts_map_judges import (
    CLAIM_TERMS,
    LEXICON_FILE,
    REWARD_MODEL_TERMS,
    Cell,
    arm_facts,
    build_judge,
    make_oracle,
    measure_judge,
)

from mmrlhf import scenes
from mmrlhf.config import PPOConfig
from mmrlhf.demo import data
from mmrlhf.demo.measure import CURVE_METRICS
from mmrlhf.demo.pipeline import stage_config
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.files.bundled import folder
from mmrlhf.models.vlm import VLM
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, InputError, Message

# ---- cells ---------------------------------------------------------------------------------------

LABELS = (0, 250, 1000, 8000)
CORNER_LABELS = (0, 250, 8000)
LOOKED_AT_SEEDS = range(4)
"""Seeds that the demo and the base were tuned and reported on."""
FIRST_SCENE = 1000
"""Number of the first evaluation scene: the benchmark reports those before it."""


def build_cells() -> dict[str, dict[str, Cell]]:
    """Return the cells by name in three groups, in the order in which they run."""
    rm = {f"rm-{n}-{f}": Cell(REWARD_MODEL_TERMS, f, n) for n in LABELS for f in ("none", "annotator", "all")}
    both = {f"both-{n}-{f}": Cell(f"{REWARD_MODEL_TERMS}, {CLAIM_TERMS}", f, n) for n in LABELS for f in ("annotator", "all")}
    claims = {f"claims-{f}": Cell(CLAIM_TERMS, f) for f in ("annotator", "all")}
    ranked = {f"ranked-8000-{f}": Cell(REWARD_MODEL_TERMS, "none", 8000, f) for f in ("annotator", "all")}
    corners = {k: c for k, c in rm.items() if c.labels in CORNER_LABELS and c.facts != "all"}
    rest = {"oracle": Cell("oracle=1", "none"), **{k: c for k, c in rm.items() if k not in corners}, **claims, **both, **ranked}
    controls = {f"rm-{n}-{f}": Cell(REWARD_MODEL_TERMS, f, n) for n in CORNER_LABELS for f in ("empty", "swapped")}
    return {"corners": corners, "rest": rest, "controls": controls}  # type: ignore[dict-item]


GROUPS = build_cells()
CELLS = {name: cell for cells in GROUPS.values() for name, cell in cells.items()}
NUM_STEPS = 48


def select_cells(names: Sequence[str]) -> list[list[str]]:
    """Return the cells to run, by group: each group is finished for all seeds before the next.

    Raises InputError for an unknown name.
    """
    if unknown := [name for name in names if name not in (*GROUPS, *CELLS, "all")]:
        raise InputError(f"--cells {unknown[0]} does not exist: use all, {', '.join(GROUPS)}, or {', '.join(CELLS)}")
    chosen = [[c for c in cells if {"all", group, c} & set(names)] for group, cells in GROUPS.items()]
    return [cells for cells in chosen if cells]


# ---- a world -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What all cells of a directory share. `base` is the hash of the base model's weights."""

    base: str
    prompts_per_step: int
    eval_scenes: int
    eval_steps: int
    pair_scenes: int
    held_out_pairs: int
    rl_scenes: int


# ---- evaluation along the way --------------------------------------------------------------------


def evaluation_rows(split: scenes.Split, seed: int, num_scenes: int) -> list[Example]:
    """Return requests to describe a seed's own scenes of a split of the benchmark."""
    module, rows = load_benchmark("scenes").module, []
    for index in range(FIRST_SCENE + seed * num_scenes, FIRST_SCENE + (seed + 1) * num_scenes):
        scene = scenes.generate_scene(split, index, module.SEED)
        message = Message("user", module.description_question(scene, index).text)
        meta = {"split": split, "index": index, "kind": "describe"}
        rows.append(Example(f"{scene.id}-describe", (scene.image_source(),), (message,), meta=meta))
    return rows


def measure_answers(rows: Sequence[Example], answers: Mapping[str, list[str]]) -> dict[str, float]:
    """Return the curves' metrics of answers to rows of one split, and false claims by kind."""
    benchmark = load_benchmark("scenes")
    scored = [{"id": row.id, **benchmark.score(row, answers[row.id], Task())} for row in rows]
    (metrics,) = benchmark.module.by_split(scored).values()
    false_by_kind = np.mean([np.mean(row["false_by_type"], 0) for row in scored], 0)
    named = dict(zip(scenes.CLAIM_KINDS, false_by_kind, strict=True))
    return {name: metrics[name] for name in CURVE_METRICS} | {f"false_{k}": float(v) for k, v in named.items()}


def make_evaluation(experiment: Experiment, num_scenes: int) -> Callable[[VLM], dict[str, float]]:
    """Return the measurement of greedy answers on selection and held-out scenes."""
    splits: tuple[scenes.Split, ...] = ("selection", "held_out")
    rows_by_split = {split: evaluation_rows(split, experiment.seed, num_scenes) for split in splits}

    def evaluate(vlm: VLM) -> dict[str, float]:
        values = {}
        for split, rows in rows_by_split.items():
            answers = {e.id: texts for e, texts in generate_batches(vlm, rows, data.GREEDY, batch_size=100)}
            values |= {f"{split}_{name}": value for name, value in measure_answers(rows, answers).items()}
        return values

    return evaluate


# ---- a cell --------------------------------------------------------------------------------------


def train_cell(experiment: Experiment, settings: Settings, name: str, steps: int, kl_coef: float) -> Path:
    """Train the policy of a cell, or go on with it, and write the truth about its samples.

    Returns the folder of its run.
    """
    cell = CELLS[name]
    directory = experiment.directory / f"ppo_{name}_kl{kl_coef:g}"
    if not (directory / "finished.json").exists():
        overrides: dict[str, Any] = {
            "model_name_or_path": experiment.sft_path,
            "reward_terms": f"{cell.reward_terms}, missing_eos=-2",
            "kl_coef": kl_coef,
            "max_steps": steps,
            "per_device_train_batch_size": settings.prompts_per_step,
            "lr_scheduler_type": "constant",
            "eval_steps": settings.eval_steps,
            "min_probe_detection_rate": 0.0,
            "allow_worse_reward_model": True,
            "lexicon_file": LEXICON_FILE if CLAIM_TERMS in cell.reward_terms else None,
        }
        if cell.labels is not None:
            overrides["reward_model_path"] = build_judge(experiment, cell.labels, cell.facts, cell.ranked_by)
        prompts = [
            replace(row, facts=arm_facts(cell.facts, "rl", row.id, experiment))
            for row in data.build_rl_prompts(experiment.data_config)
        ]
        extra = {"oracle": make_oracle(experiment)} if name == "oracle" else None
        config = stage_config(PPOConfig, experiment.seed, directory, **overrides)
        evaluation = make_evaluation(experiment, settings.eval_scenes)
        ppo(config, prompts, evaluation, extra)
    write_truth(directory, experiment.data_config)
    return directory


def run_world(cells: Sequence[str], settings: Settings, args: argparse.Namespace, experiment: Experiment) -> None:
    """Run cells of one seed, in order."""
    torch.set_num_threads(1)
    for name, kl_coef in itertools.product(cells, args.kl_coefs):
        cached_result(args.out, f"judge-{experiment.seed}-{name}", partial(measure_judge, experiment, CELLS[name]))

        def train(name: str = name, kl_coef: float = kl_coef) -> dict[str, Any]:
            directory = train_cell(experiment, settings, name, args.steps, kl_coef)
            run = load_run(directory, experiment.seed, experiment.data_config)
            return {"steps": args.steps, "evaluations": run.evaluation_rows() if run is not None else []}

        steps = cached_result(args.out, f"policy-{experiment.seed}-{name}-kl{kl_coef:g}", train)["steps"]
        if steps != args.steps:
            raise InputError(
                f"{args.out} has {name} of seed {experiment.seed} after {steps} steps, not {args.steps}: give another --out"
            )


# ---- command -------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="DIR", help="model that SFT starts from, by default the bundled one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything that is built and measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6, 7, 8], metavar="SEED")
    parser.add_argument("--cells", nargs="+", default=["corners"], metavar="CELL", help="corners, rest, controls, all, or names")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="seeds at a time, one core each")
    parser.add_argument("--kl-coefs", type=float, nargs="+", default=[0.03, 0.1, 0.3], metavar="C")
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="steps of PPO")
    parser.add_argument("--prompts-per-step", type=int, default=24, help="prompts of a step, with four answers each")
    parser.add_argument("--eval-scenes", type=int, default=200, help="selection scenes, and held-out scenes, of a seed")
    parser.add_argument("--eval-steps", type=int, default=8, help="steps between evaluations")
    parser.add_argument("--pair-scenes", type=int, default=6000, help="scenes whose answers are compared in pairs")
    parser.add_argument("--held-out-pairs", type=int, default=500)
    parser.add_argument("--rl-scenes", type=int, default=2880)
    parser.add_argument("--analyse", action="store_true", help="run nothing, report what there is")
    args = parser.parse_args(argv)
    if looked_at := sorted(set(args.seeds) & set(LOOKED_AT_SEEDS)):
        parser.error(f"--seeds {looked_at[0]} has been looked at: give seeds from {len(LOOKED_AT_SEEDS)} on")
    return args


def run_map(args: argparse.Namespace) -> None:
    """Run the chosen cells: each group for all seeds, and all of its cells of a seed in a row.

    Raises InputError if the directory holds another map, or a cell does not exist.
    """
    groups = select_cells(args.cells)
    base_path = args.base or str(folder("data") / "tiny_vlm")
    base_hash = hashlib.sha256((Path(base_path) / "model.safetensors").read_bytes()).hexdigest()
    settings = Settings(
        base_hash, args.prompts_per_step, args.eval_scenes, args.eval_steps, args.pair_scenes, args.held_out_pairs, args.rl_scenes
    )  # fmt: skip
    claim_settings(args.out, asdict(settings))
    overrides = {name: getattr(args, name) for name in ("pair_scenes", "held_out_pairs", "rl_scenes")}
    experiments = [Experiment(args.out, seed, base_path=base_path, data_overrides=overrides) for seed in args.seeds]
    num_workers = min(args.workers, os.cpu_count() or 1, len(experiments))
    for cells in groups:
        run_parallel(experiments, partial(run_world, cells, settings, args), num_workers)


def main() -> None:
    args = parse_arguments()
    run_and_report(args, run_map, lambda: report(args.out))


if __name__ == "__main__":
    main()
