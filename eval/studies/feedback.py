"""Do labels by verified claims agree with the truth, and do rounds of them remove a habit?

    python eval/studies/feedback.py --out runs/feedback --base data/tiny_vlm --seeds 5
    python eval/studies/feedback.py --out runs/feedback --base data/tiny_vlm --parts rounds
    python eval/studies/feedback.py --out runs/feedback --analyse

`labels`: the SFT model's own answers (8 to a prompt) are labelled by each verifier, and kept pairs
are compared with the true utility by the scene graph. Facts are an annotator's: 80% listed, 5%
wrong. A claim that they do not decide costs nothing (`facts`), or the estimated share of such
claims that are false (`facts_costs`, from the annotator's recall alone). `vlm` is the SFT model's
own yes/no review, `clip` an open_clip model (--clip, a folder with {seed} in its name, as
clip_verifier.py makes them).

`rounds`: three rounds of feedback and dpo on --prompts prompts, and one round on three times as
many, each with `facts`, `facts_costs` and `clip`. Policies are chosen on the selection
scenes and measured greedily on held-out ones. Seeds are worlds: data, SFT, samples. Each cell is a
file, and a killed run continues.

Predictions, written down before the first cell was run:

1. `facts`: labels agree with the truth in 85 to 90% of the kept pairs whose true utilities differ
   by at least 1. It misses the 90% because an invented object is unknown to a list that is not
   complete, not false. At least 60% of the prompts give a pair.
2. `facts_costs`: above 90%.
3. `vlm` alone: 60 to 70%, and a bias to the longer answer, as it says yes too often.
4. `clip`: 75 to 85%: it sees objects and colours, and cannot count.
5. Three rounds with costs bring habit claims to a third of SFT's, with coverage within 3 points.
   Without costs more than half of them stay.
6. One round with three times the data removes less than three rounds.

Added before the first cell of rounds with `clip` was run, after its labels were measured:

7. `clip`: three rounds bring habit claims to a third of SFT's, with coverage within 3 points, as it
   contradicts objects that incomplete facts cannot.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    Experiment,
    cached_result,
    claim_arguments,
    claim_settings,
    format_mean,
    markdown_table,
    mean_and_half_width,
    run_and_report,
    run_parallel,
)
from facts_map_judges import LEXICON_FILE, scene_index

from mmrlhf import scenes
from mmrlhf.claims import load_lexicon
from mmrlhf.config import FeedbackConfig
from mmrlhf.demo import data
from mmrlhf.demo.measure import selection_metrics
from mmrlhf.feedback import TrueUtility, feedback
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import Example
from mmrlhf.training.feedback.labels import read_sampled, read_verdicts

VERIFIERS = ("facts", "facts_costs", "vlm", "clip")
ROUNDS = {"rounds3": (3, 1), "round1": (1, 3)}
"""Rounds of each way to learn, and how many times --prompts each of them samples from."""
ROUND_ARMS = ("facts", "facts_costs", "clip")
HABIT, COVERAGE = "cooccurrence_errors", "coverage"
COUNTED_KINDS = ("object", "attribute", "count")
"""Kinds of claims that one listed object decides. Relations are left out: coarse places and other
objects of the same name leave many true ones unknown, however many objects are listed."""


def true_utility(experiment: Experiment) -> TrueUtility:
    """Return the utility by the scene graph, which no verifier reads."""

    def utility(example: Example, answer: str) -> float:
        scene = data.training_scene("rl", scene_index(example.id), experiment.data_config)
        return scenes.utility(scene, answer, experiment.data_config.false_claim_penalty)

    return utility


def unknown_costs(round_folder: Path, recall: float) -> str | None:
    """Return the estimated share of false claims among unknown ones, as unknown_claim_costs.

    A true claim is supported with probability r, the share of objects that are listed. So S
    supported claims come with S (1 - r) / r true unknown ones, and the other unknown ones are
    false. Repeated and hedged claims, and denials, are left out. Nothing follows about kinds other
    than COUNTED_KINDS, or about one that the facts never support: they cost nothing.
    """
    supported, unknown = Counter[str](), Counter[str]()
    pairs = zip(read_sampled(round_folder / "answers.jsonl"), read_verdicts(round_folder / "verdicts.jsonl"), strict=True)
    for _, verdicts in pairs:
        for claim, value in {v.claim: v.value for v in verdicts if not v.claim.negated and not v.claim.hedged}.items():
            supported[claim.kind] += value == "supported"
            unknown[claim.kind] += value == "unknown"
    costs = {}
    for kind in COUNTED_KINDS:
        if unknown[kind] and supported[kind]:
            costs[kind] = min(1.0, max(0.0, 1 - supported[kind] * (1 - recall) / recall / unknown[kind]))
    return ", ".join(f"{kind}={cost:.3f}" for kind, cost in costs.items() if cost > 0.0005) or None


def run_feedback(
    experiment: Experiment, name: str, prompts: Sequence[Example], args: argparse.Namespace, **settings: Any
) -> Path:
    """Run the stage on some prompts and return its folder."""
    directory = experiment.directory / f"feedback_{name}"
    if not (directory / "finished.json").exists():
        config = FeedbackConfig(
            model_name_or_path=experiment.sft_path,
            dataset_name=data.IN_MEMORY_DATASET,
            output_dir=str(directory),
            lexicon_file=LEXICON_FILE,
            num_generations=args.num_generations,
            response_length=data.RESPONSE_LENGTH,
            batch_size=32,
            seed=experiment.seed,
            **settings,
        )
        trained = config.algorithm != "none"
        evaluation = partial(_evaluate, args.selection_scenes) if trained else None
        feedback(config, prompts, true_utility(experiment), evaluation)
    return directory


def _evaluate(num_scenes: int, vlm: Any) -> dict[str, float]:
    return selection_metrics(vlm, data.benchmark_rows("selection", num_scenes))


def arm_settings(experiment: Experiment, arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of a verifier. Costs are estimated on the labels without them."""
    if arm == "clip":
        return {"verifier": "clip", "clip_model": args.clip.format(seed=experiment.seed)}
    if arm != "facts_costs":
        return {"verifier": arm}
    prompts = data.build_rl_prompts(experiment.data_config)[: args.prompts]
    folder = run_feedback(experiment, "labels_facts", prompts, args, verifier="facts")
    return {"verifier": "facts", "unknown_claim_costs": unknown_costs(folder / "round_1", experiment.fact_recall)}


def reuse_labels(experiment: Experiment, arm: str) -> None:
    """Copy the answers that all verifiers label, and the verdicts that differ in costs alone.

    The stage refuses them if they are of other inputs.
    """
    source, target = (experiment.directory / f"feedback_labels_{name}" / "round_1" for name in ("facts", arm))
    names = ("answers", "verdicts") if arm == "facts_costs" else ("answers",)
    if arm == "facts" or target.exists() or not source.exists():
        return
    target.mkdir(parents=True)
    for name in names:
        for file in (f"{name}.jsonl", f".{name}.jsonl.inputs.json"):
            shutil.copy2(source / file, target / file)


# ---- cells ---------------------------------------------------------------------------------------


def measure_labels(experiment: Experiment, arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what labels.json says of the labels of a verifier."""
    prompts = data.build_rl_prompts(experiment.data_config)[: args.prompts]
    settings = arm_settings(experiment, arm, args)
    reuse_labels(experiment, arm)
    folder = run_feedback(experiment, f"labels_{arm}", prompts, args, **settings)
    return {**json.loads((folder / "round_1" / "labels.json").read_text()), "costs": settings.get("unknown_claim_costs")}


def measure_rounds(experiment: Experiment, way: str, arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train a policy and return its metrics on held-out scenes, greedily."""
    num_rounds, times = ROUNDS[way]
    prompts = data.build_rl_prompts(experiment.data_config)[: times * args.prompts]
    settings = {
        "algorithm": "dpo", "dpo_config": args.recipe, "num_rounds": num_rounds, "metric_for_best_model": "utility", "eval_steps": 8,
    }  # fmt: skip
    folder = run_feedback(experiment, f"{way}_{arm}", prompts, args, **settings, **arm_settings(experiment, arm, args))
    rounds = read_jsonl(folder / "metrics.jsonl")
    return {**experiment.evaluate(str(folder / "policy"), args.eval_scenes), "rounds": rounds}


def run_world(args: argparse.Namespace, experiment: Experiment) -> None:
    """Measure the cells of one seed."""
    torch.set_num_threads(1)
    seed, directory = experiment.seed, experiment.output_dir
    if "labels" in args.parts:
        for arm in args.verifiers:
            if arm != "clip" or args.clip:
                cached_result(directory, f"labels-{seed}-{arm}", partial(measure_labels, experiment, arm, args))
    if "rounds" in args.parts:
        cached_result(directory, f"rounds-{seed}-sft-none", lambda: experiment.evaluate(None, args.eval_scenes))
        for way in ROUNDS:
            for arm in ROUND_ARMS:
                if arm in args.verifiers and (arm != "clip" or args.clip):
                    cached_result(directory, f"rounds-{seed}-{way}-{arm}", partial(measure_rounds, experiment, way, arm, args))


# ---- report --------------------------------------------------------------------------------------

Cells = dict[tuple[str, ...], dict[int, dict[str, Any]]]
"""Results by the names of a cell and its seed."""


def read_cells(directory: Path, part: str) -> Cells:
    """Return the results of a part that there are."""
    cells: Cells = {}
    for path in sorted((directory / "cells").glob(f"{part}-*.json")):
        _, seed, *names = path.stem.split("-")
        cells.setdefault(tuple(names), {})[int(seed)] = json.loads(path.read_text())
    return cells


def labels_table(cells: Cells) -> str:
    """Return the table of verifiers: agreement, what is kept, and biases."""
    rows = []
    for (arm,), by_seed in cells.items():
        results = list(by_seed.values())

        def shares(*path: str, results: Sequence[dict[str, Any]] = results) -> str:
            values = []
            for result in results:
                value: Any = result
                for key in path:
                    value = value[key]
                values += [] if value is None else [value]
            return format_mean(values, True)

        rows.append(
            (
                arm,
                shares("agreement", "pairs", "clear", "value"),
                shares("agreement", "comparisons", "clear", "value"),
                shares("pairs", "prompts_with_pair_share"),
                shares("biases", "length", "labelled_where_untied", "value"),
                shares("biases", "length", "true_where_untied", "value"),
                shares("biases", "length", "labelled_at_equal_truth", "value"),
                shares("biases", "length", "bias"),
                shares("biases", "position", "labelled", "value"),
                str(len(results)),
            )
        )
    header = (
        "verifier", "agreement on kept pairs %", "on all comparisons %", "prompts with a pair %", "longer labelled better %",
        "longer truly better %", "verbosity: longer of two equally good %", "length bias", "first labelled better %", "seeds",
    )  # fmt: skip
    return markdown_table(header, rows)


def rounds_table(cells: Cells) -> str:
    """Return the table of policies, with their differences from SFT within a seed."""
    base = cells.get(("sft", "none"), {})
    rows = []
    for names, by_seed in cells.items():
        seeds = [seed for seed in by_seed if seed in base]
        ratios = [by_seed[s][HABIT] / base[s][HABIT] for s in seeds if base[s][HABIT]]
        rows.append(
            (
                " ".join(names),
                format_mean(r[HABIT] for r in by_seed.values()),
                format_mean(ratios, True),
                format_mean((r[COVERAGE] for r in by_seed.values()), True),
                format_mean((by_seed[s][COVERAGE] - base[s][COVERAGE] for s in seeds), True, "+"),
                format_mean((r["claim_f1"] for r in by_seed.values()), True),
                format_mean(r["utility"] for r in by_seed.values()),
                str(len(by_seed)),
            )
        )
    header = ("policy", "habit claims", "of SFT's %", "coverage %", "minus SFT's", "claim F1 %", "utility", "seeds")
    return markdown_table(header, rows)


def paired_differences(cells: Cells, arm: str) -> dict[str, dict[str, float]]:
    """Return the mean difference of three rounds minus one, with the half width of its interval."""
    three, one = cells.get(("rounds3", arm), {}), cells.get(("round1", arm), {})
    seeds = sorted(three.keys() & one.keys())
    differences = {}
    for name in (HABIT, COVERAGE, "claim_f1", "utility") if seeds else ():
        mean, half_width = mean_and_half_width(three[seed][name] - one[seed][name] for seed in seeds)
        differences[name] = {"mean": mean, "half_width": half_width if half_width == half_width else None, "seeds": len(seeds)}
    return differences


def report(directory: Path) -> None:
    """Print the tables of what there is, and one line of JSON."""
    labels, rounds = read_cells(directory, "labels"), read_cells(directory, "rounds")
    if labels:
        print(f"labels\n\n{labels_table(labels)}\n")
    differences = {arm: paired_differences(rounds, arm) for arm in ROUND_ARMS}
    if rounds:
        print(f"rounds\n\n{rounds_table(rounds)}\n")
        for arm, by_metric in differences.items():
            for name, d in by_metric.items():
                half_width = "" if d["half_width"] is None else f" ± {d['half_width']:.3f}"
                print(f"three rounds minus one, {arm}, {name}: {d['mean']:+.3f}{half_width} over {d['seeds']} seeds")
    print(
        json.dumps(
            {
                "study": "feedback",
                "labels": {arm: by_seed for (arm,), by_seed in labels.items()},
                "rounds": {"-".join(names): by_seed for names, by_seed in rounds.items()},
                "three_minus_one": differences,
            }
        )
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything that is built and measured")
    parser.add_argument("--base", metavar="DIR", help="model that SFT starts from, by default the bundled one")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1")
    parser.add_argument("--parts", nargs="+", default=["labels", "rounds"], choices=("labels", "rounds"))
    parser.add_argument("--verifiers", nargs="+", default=list(VERIFIERS), choices=VERIFIERS)
    parser.add_argument("--clip", metavar="DIR", help="folder of an open_clip model, with {seed} where the seed belongs")
    parser.add_argument("--prompts", type=int, default=480, help="prompts of a round")
    parser.add_argument("--num-generations", type=int, default=8, help="answers to a prompt")
    parser.add_argument("--recipe", default="demo/dpo", help="recipe of dpo")
    parser.add_argument("--selection-scenes", type=int, default=100)
    parser.add_argument("--eval-scenes", type=int, default=300)
    parser.add_argument("--sft-rows", type=int, help="rows of SFT, by default the demo's")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="seeds at a time, one core each")
    parser.add_argument("--analyse", action="store_true", help="run nothing, report what there is")
    return parser.parse_args(argv)


def run_study(args: argparse.Namespace) -> None:
    """Run the chosen cells, each seed in a process.

    Raises InputError if --out has a study of other sizes.
    """
    of_rounds = ("recipe", "selection_scenes")
    claim_arguments(args, ("parts", "verifiers", "clip", *of_rounds))
    if "rounds" in args.parts:
        claim_settings(args.out, {name: getattr(args, name) for name in of_rounds}, "rounds_settings")
    overrides = {"rl_scenes": max(times for _, times in ROUNDS.values()) * args.prompts}
    if args.sft_rows is not None:
        overrides["sft_rows"] = args.sft_rows
    experiments = [Experiment(args.out, seed, base_path=args.base, data_overrides=overrides) for seed in range(args.seeds)]
    run_parallel(experiments, partial(run_world, args), min(args.workers, len(experiments)))


def main() -> None:
    args = parse_arguments()
    load_lexicon(LEXICON_FILE)
    run_and_report(args, run_study, lambda: report(args.out))


if __name__ == "__main__":
    main()
