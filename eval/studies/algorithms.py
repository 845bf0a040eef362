"""Which algorithm should one use? Thirteen methods on the same labels, judge and sampled answers.

    python eval/studies/algorithms.py --out runs/algorithms --seeds 5
    python eval/studies/algorithms.py --out runs/algorithms --seeds 5 --labels 8000 1000
    python eval/studies/algorithms.py --out runs/algorithms --seeds 5 --analyse

sft                 the model that all others start from, greedy; captions have a co-occurrence bias
sft_t03, sft_t07    the same, sampled at temperature .3 and .7
clean_sft           SFT on the same pictures, with captions without the bias: an upper bound
best_of_n           the best of 16 samples by the reward model, which reads no facts about the
                    measured scenes; ranked with facts it stands beside the table
rft, rft3           rejection-sampling fine-tuning, in one round and in three
dpo                 on the labelled pairs
ddpo                on as many corrections, by the same erring annotator (annotator_corrections.py)
grpo, rloo, ppo     against the reward model; ppo_dense adds claims checked against the facts

Each has `chair_s` (answers with a false claim), `coverage`, `claim_f1`, `u` (true claims minus four
per false one, per answer), `habit` (co-occurrence errors per answer), `sight` (perception errors
per answer), `ead` (expectation-adjusted distinct n-grams across prompts), `kl` (nats per answer, at
temperature 1 or the row's own; of best-of-n the bound log n - (n - 1) / n) and `seconds` (of one
core, from the base: SFT, sampling the labelled answers, reward model and training, as far as the
method needs them; of a process that was killed only what came after), as mean and 95% t-interval
over seeds. Answers are greedy but for the rows that say otherwise, on held-out scenes and on three
shifts: ood_1 has unseen pairings, ood_2 more objects, ood_3 stripes and noise.

Every trained method has one setting with three values (`STRENGTHS`). They are tried on one seed
that is not reported, by u on the selection split, and the best is used on all others. The same
command also compares generalisation and diversity of SFT, DPO, PPO and best-of-n (Kirk et al.
2024), and how well an adaptive KL holds its target. Seeds are worlds, each cell is a file, and a
run that was killed continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from algorithms_measure import measure_diversity, measure_method, selection_utility, tuned_value
from algorithms_report import GENERALISATION_METHODS, report
from algorithms_training import (
    METHODS,
    STRENGTHS,
    Sizes,
    labels_of,
    make_world,
    measure_adaptive_kl,
    policy_of,
    prepare,
    with_seconds,
)
from common import cached_result, claim_settings, run_and_report, run_parallel

from mmrlhf.files.bundled import folder
from mmrlhf.records import InputError

FIRST_SEED = 4
"""Seeds before it have been looked at."""
TUNING_SEED = 3
SLOWEST_FIRST = ("best_of_n", "ppo_dense", "ppo", "ddpo", "dpo", "rloo", "grpo")


@dataclass(frozen=True)
class Task:
    """A unit of work for a process: one seed's part `kind` of a method."""

    kind: str
    seed: int
    method: str = ""
    labels: int = 0
    value: float | None = None

    @property
    def name(self) -> str:
        parts = [self.kind, str(self.seed), *([self.method] if self.method else []), str(self.labels)]
        return "-".join([*parts, f"{self.value:g}"] if self.kind == "tune" else parts)


def run_task(args: argparse.Namespace, sizes: Sizes, task: Task) -> dict[str, Any]:
    """Return the result of a task from its file, or compute it."""
    torch.set_num_threads(1)
    world = make_world(args.out, task.seed, sizes, args.base)
    if task.kind == "prepare":
        return prepare(args.labels, world)
    method = (world, task.method, task.labels, task.value)

    def compute() -> dict[str, Any]:
        if task.kind == "tune":
            return selection_utility(*method)
        if task.kind == "diversity":
            return measure_diversity(*method)
        if task.kind == "adaptive_kl":
            return measure_adaptive_kl(world, task.labels)
        if task.method in ("dpo", "ddpo", "sft_chosen"):
            _ = world.experiment.pairs  # ranked outside the clock: `prepare` has their time
        trained = cached_result(args.out, f"train-{task.seed}-{task.method}-{task.labels}", partial(with_seconds, train))
        return {**measure_method(*method), "core_seconds": trained["core_seconds"], "value": task.value}

    def train() -> None:
        policy_of(*method)

    return cached_result(args.out, task.name, compute)


def run_tasks(args: argparse.Namespace, sizes: Sizes, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    run: Callable[[Task], dict[str, Any]] = partial(run_task, args, sizes)
    return run_parallel(tasks, run, max(1, min(args.workers, len(tasks)))) if tasks else []


def prepare_worlds(args: argparse.Namespace, sizes: Sizes) -> list[int]:
    """Build what the methods share in each world, and return the seeds that are reported."""
    seeds = list(range(FIRST_SEED, FIRST_SEED + args.seeds))
    run_tasks(args, sizes, [Task("prepare", seed) for seed in (args.tuning_seed, *seeds)])
    return seeds


def tune(args: argparse.Namespace, sizes: Sizes, methods: Sequence[str]) -> dict[tuple[str, int], float]:
    """Return the value of each trained method's setting, by method and number of labels.

    Each is chosen on the tuning seed, among the three values of `STRENGTHS`.
    """
    tasks = [
        Task("tune", args.tuning_seed, method, labels, value)
        for labels in args.labels
        for method in by_cost(methods)
        if method in STRENGTHS
        for value in STRENGTHS[method][1]
    ]
    utilities: dict[tuple[str, int], dict[float, float]] = {}
    for task, result in zip(tasks, run_tasks(args, sizes, tasks), strict=True):
        assert task.value is not None
        utilities.setdefault((task.method, task.labels), {})[task.value] = result["u"]
    return {key: tuned_value(by_value) for key, by_value in utilities.items()}


def by_cost(methods: Sequence[str]) -> list[str]:
    """Return methods with the slowest first, so that no process waits for another at the end."""
    return sorted(methods, key=lambda method: SLOWEST_FIRST.index(method) if method in SLOWEST_FIRST else len(SLOWEST_FIRST))


def run_study(args: argparse.Namespace) -> None:
    """Tune, then run all methods of all seeds. Raises InputError if the directory has others."""
    sizes = directory_sizes(args)
    seeds = prepare_worlds(args, sizes)
    values = tune(args, sizes, args.methods)
    main_labels = args.labels[0]

    def measured(kind: str, seed: int, method: str, labels: int) -> Task:
        return Task(kind, seed, method, labels_of(method, labels), values.get((method, labels)))

    for seed in seeds:
        tasks = [measured("measure", seed, m, n) for n in args.labels for m in by_cost(args.methods)]
        tasks = list(dict.fromkeys(tasks))  # a method without labels is measured once
        tasks.append(Task("adaptive_kl", seed, labels=main_labels))
        run_tasks(args, sizes, tasks)
        diverse = [m for m in GENERALISATION_METHODS if m in args.methods]
        run_tasks(args, sizes, [measured("diversity", seed, m, main_labels) for m in by_cost(diverse)])


def directory_sizes(args: argparse.Namespace) -> Sizes:
    """Return the sizes, which --out keeps. Raises InputError if it holds a study of others."""
    base_path = Path(args.base or folder("data") / "tiny_vlm") / "model.safetensors"
    if not base_path.exists():
        raise InputError(f"--base {args.base} has no model.safetensors: give the folder of a model")
    names = [name for name in Sizes.__dataclass_fields__ if name != "base"]
    sizes = Sizes(hashlib.sha256(base_path.read_bytes()).hexdigest(), **{name: getattr(args, name) for name in names})
    step = 4 * sizes.prompts_per_step
    if sizes.answers % step or not sizes.answers:
        raise InputError(
            f"--answers {sizes.answers} is not a multiple of four answers to {sizes.prompts_per_step} prompts: use {step}"
        )
    claim_settings(args.out, asdict(sizes) | {"tuning_seed": args.tuning_seed})
    return sizes


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that studies of these methods share."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything that is built and measured")
    parser.add_argument("--base", metavar="DIR", help="model that SFT starts from, by default the bundled one")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help=f"seeds {FIRST_SEED} to {FIRST_SEED} + N - 1")
    parser.add_argument("--tuning-seed", type=int, default=TUNING_SEED, metavar="SEED", help="seed that settings are chosen on")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="one core each")
    parser.add_argument("--sft-rows", type=int, default=8000)
    parser.add_argument(
        "--pair-scenes", type=int, default=6000, help="scenes with four sampled answers each, ranked in two pairs"
    )
    parser.add_argument("--held-out-pairs", type=int, default=500, help="pairs that the reward model is scaled on")
    parser.add_argument("--answers", type=int, default=4608, help="answers that a method samples in training")
    parser.add_argument("--prompts-per-step", type=int, default=24, help="prompts of a step of grpo, rloo and ppo")
    parser.add_argument("--selection-scenes", type=int, default=200)
    parser.add_argument("--held-out-scenes", type=int, default=1000)
    parser.add_argument("--shift-scenes", type=int, default=300, help="scenes of each shift")
    parser.add_argument("--kl-scenes", type=int, default=200, help="scenes of each split that the KL is measured on")
    parser.add_argument("--diversity-scenes", type=int, default=200)
    parser.add_argument("--best-of-n", type=int, default=16, metavar="N")
    parser.add_argument("--analyse", action="store_true", help="run nothing, report what there is")


def parse_sizes(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; refuse seeds that reach the tuning seed."""
    args = parser.parse_args(argv)
    if args.seeds < 1 or FIRST_SEED <= args.tuning_seed < FIRST_SEED + args.seeds:
        parser.error("--seeds must be at least 1 and must not reach --tuning-seed, which is not reported")
    return args


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument(
        "--labels", type=int, nargs="+", default=[8000], metavar="N", help="labels; the first are the main table's"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    return parse_sizes(parser, argv)


def main() -> None:
    args = parse_arguments()
    print("\n" + json.dumps(run_and_report(args, run_study, lambda: report(args.out, args.labels))))


if __name__ == "__main__":
    main()
