"""How far do labels alone go? SFT on chosen answers, DPO, and a reward model with PPO.

    python eval/studies/feedback_scaling.py --out runs/algorithms --seeds 5

With 250, 1,000 and 8,000 labelled pairs: `sft_chosen` learns the better answers, `dpo` the pairs,
and `ppo` is trained on prompts that nobody has labelled, against a reward model of the pairs. All
start from the same SFT model, and each has one setting with three values, chosen for every number
of labels on a seed that is not reported. Metrics are those of `algorithms.py`, whose worlds and
cells this study shares if both have the same --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from algorithms import Task, add_sizes, by_cost, directory_sizes, parse_sizes, prepare_worlds, run_tasks, tune
from algorithms_report import METRICS, Cells, intervals, method_cells, method_table, settings_of
from common import format_mean, markdown_table, run_and_report

from mmrlhf.files.atomic import write_atomic
from mmrlhf.records import InputError

METHODS = ("sft_chosen", "dpo", "ppo")
LABELS = (250, 1000, 8000)
COMPARED = ("u", "claim_f1", "habit")


def run_study(args: argparse.Namespace) -> None:
    sizes = directory_sizes(args)
    seeds = prepare_worlds(args, sizes)
    values = tune(args, sizes, METHODS)
    for seed in seeds:
        tasks = [Task("measure", seed, m, n, values[m, n]) for n in args.labels for m in by_cost(METHODS)]
        run_tasks(args, sizes, [*tasks, Task("measure", seed, "sft")])


def report(out: Path, labels: Sequence[int]) -> dict[str, Any]:
    """Print a table per number of labels, and the differences from SFT; return the JSON.

    Raises InputError if nothing has been measured.
    """
    found = {n: {m: cells for m in METHODS if (cells := method_cells(out, m, n))["held_out"]} for n in labels}
    if not any(found.values()):
        raise InputError(f"{out} has no method that was measured: run some first")
    sft = method_cells(out, "sft", 0)["held_out"]
    sections = {f"held_out, {n} labels": method_table(by_method, "held_out") for n, by_method in found.items()}
    rows = [
        (method, str(n), *(format_mean(gain(cells["held_out"], sft, name), name == "claim_f1", "+") for name in COMPARED))
        for n, by_method in found.items()
        for method, cells in by_method.items()
    ]
    sections["Minus SFT, within a seed"] = markdown_table(("method", "labels", *COMPARED), rows)
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in sections.items())
    print(text, flush=True)
    write_atomic(out / "feedback_scaling.md", text + "\n")
    return {
        "study": "feedback_scaling",
        "seeds": sorted({s for by_method in found.values() for cells in by_method.values() for s in cells["held_out"]}),
        "settings": settings_of(out, METHODS, labels),
        "metrics": METRICS,
        "sft": intervals(sft) if sft else None,
        "labels": {str(n): {m: intervals(cells["held_out"]) for m, cells in by_method.items()} for n, by_method in found.items()},
    }


def gain(cells: Cells, sft: Cells, name: str) -> list[float]:
    """Return a method's metric minus SFT's in each seed that has both."""
    return [cells[seed][name] - sft[seed][name] for seed in sorted(set(cells) & set(sft))]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS), metavar="N", help="numbers of labelled pairs")
    return parse_sizes(parser, argv)


def main() -> None:
    args = parse_arguments()
    print("\n" + json.dumps(run_and_report(args, run_study, lambda: report(args.out, args.labels))))


if __name__ == "__main__":
    main()
