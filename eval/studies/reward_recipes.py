"""Which reward model learns from few pairs without forgetting how to check? Slopes, J, then PPO.

    python eval/studies/reward_recipes.py --out runs/recipes --base data/tiny_vlm --seeds 4 5 6
    python eval/studies/reward_recipes.py --out runs/recipes --base data/tiny_vlm --seeds 4 5 6 \
                                          --ppo prior stop_accuracy ensemble
    python eval/studies/reward_recipes.py --out runs/recipes --analyse

A cell is a recipe with a number of labels, with the annotator's facts (80% listed, 5% wrong) or
none. First slopes and J are of the judge on the SFT model's own samples, with truth from the scene
graph (`facts_map_judges.measure_reward`). Nothing is selected on these samples. In the arm without
facts nothing is made from facts either, so recipes that need them are left out there.
`--ppo` trains a policy against each of these recipes and measures greedy answers on held-out
scenes. Seeds are worlds: SFT, pairs and samples are those of `facts_map.py` with the same --out and
sizes. Each cell is a file, and a run that was killed continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from common import (
    Experiment,
    cached_result,
    claim_arguments,
    claim_settings,
    format_mean,
    markdown_table,
    run_and_report,
    run_parallel,
)
from facts_map_judges import LEXICON_FILE, FactsArm, arm_facts, measure_reward, scene_index, sft_samples, with_facts

from mmrlhf import scenes
from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.commands.export import export
from mmrlhf.commands.reward_eval import accuracy
from mmrlhf.config import ExportConfig, RewardConfig, ScenesConfig
from mmrlhf.demo import data
from mmrlhf.demo.measure import sampled_rows
from mmrlhf.demo.pipeline import stage_config
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import InputError, Preference
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.claim_rewards import hallucination
from mmrlhf.rewards.false_rates import false_rates
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.training.reward_model.measured_rows import to_answer_group
from mmrlhf.verifiers import verify_against_facts

ARMS: tuple[FactsArm, ...] = ("annotator", "none")
UNTRAINED = "untrained"
GENTLE = {"learning_rate": 1e-4}
STOPPING = {"num_train_epochs": 4.0, "eval_steps": 4, "load_best_model_at_end": True, "early_stopping_patience": 4}
POLICY_STEPS = 48


@dataclass(frozen=True)
class Recipe:
    """How a judge is made. `settings` change those of the demo's reward model, for two epochs.

    Its score is the mean of its own and those of the recipes in `ensemble`. One that `needs_facts`
    leaves some out, or makes pairs from them. `second_round` takes half of its labels on answers of
    a policy that the judge of the other half has trained. `is_labelled` is False if it reads no
    labels.
    """

    settings: Mapping[str, Any]
    ensemble: tuple[str, ...] = ()
    needs_facts: bool = False
    second_round: bool = False
    is_labelled: bool = True


RECIPES: dict[str, Recipe] = {
    UNTRAINED: Recipe({"max_steps": 0}, is_labelled=False),
    "plain": Recipe({}),
    "gentle": Recipe(GENTLE),
    "prior": Recipe({"untrained_prior": True}),
    "prior_gentle": Recipe({"untrained_prior": True, **GENTLE}),
    "penalty_0.01": Recipe({"untrained_score_coefficient": 0.01}),
    "penalty_0.1": Recipe({"untrained_score_coefficient": 0.1}),
    "head": Recipe({"tuning": "head"}),
    "prior_head": Recipe({"untrained_prior": True, "tuning": "head"}),
    "stop_accuracy": Recipe({"metric_for_best_model": "accuracy", **STOPPING}),
    "stop_j": Recipe({"metric_for_best_model": "j", **STOPPING}, needs_facts=True),
    "dropout_0.5": Recipe({"fact_dropout": 0.5}, needs_facts=True),
    # Each label is read as often as in two epochs, and as many pairs have an injected claim.
    "injected": Recipe({"injected_claim_rate": 0.5, "num_train_epochs": 4.0}, needs_facts=True),
    "injected_gentle": Recipe({"injected_claim_rate": 0.5, "num_train_epochs": 4.0, **GENTLE}, needs_facts=True),
    "prior_injected": Recipe({"untrained_prior": True, "injected_claim_rate": 0.5, "num_train_epochs": 4.0}, needs_facts=True),
    "ensemble": Recipe({}, ensemble=(UNTRAINED,)),
    "second_round": Recipe({}, second_round=True),
}
CLAIM_RECIPES = ("claims", "claims_unknown_cost")
"""Claims checked against facts, without a reward model: unknown claims are free, or cost the share
of claims of their kind that facts contradict in the training pairs."""

Score = Callable[[Sequence[AnswerGroup]], list[list[float]]]


@dataclass(frozen=True)
class Cell:
    """A recipe with a number of labels and facts: `annotator` or `none`."""

    recipe: str
    labels: int
    arm: FactsArm

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.labels}-{self.arm}"


def select_cells(recipes: Sequence[str], labels: Sequence[int], arms: Sequence[FactsArm]) -> list[Cell]:
    """Return the cells of some recipes; those without labels have one for each arm.

    Raises InputError for an unknown recipe.
    """
    if unknown := [name for name in recipes if name not in (*RECIPES, *CLAIM_RECIPES)]:
        raise InputError(f"there is no recipe {unknown[0]}: use {', '.join((*RECIPES, *CLAIM_RECIPES))}")
    cells = []
    for name, arm in itertools.product(recipes, arms):
        needs_facts = name in CLAIM_RECIPES or RECIPES[name].needs_facts
        if arm == "none" and needs_facts:
            continue
        reads_labels = name == "claims_unknown_cost" or (name in RECIPES and RECIPES[name].is_labelled)
        cells += [Cell(name, n, arm) for n in (labels if reads_labels else (0,))]
    return cells


# ---- judges --------------------------------------------------------------------------------------


def build_judges(experiment: Experiment, cell: Cell) -> list[str]:
    """Train the reward models of a cell, and return their directories."""
    recipe = RECIPES[cell.recipe]
    others = [path for name in recipe.ensemble for path in build_judges(experiment, Cell(name, 0, cell.arm))]
    if recipe.ensemble:  # its own part is the plain recipe
        return [*build_judges(experiment, replace(cell, recipe="plain")), *others]
    directory = experiment.directory / "recipes" / cell.name
    if recipe.second_round:
        return [train_second_round(experiment, cell, directory)]
    return [train_judge(experiment, cell, directory, training_pairs(experiment, cell.labels), recipe.settings)]


def training_pairs(experiment: Experiment, labels: int) -> list[Preference]:
    """Return the first pairs, at least one. Raises InputError if there are too few."""
    train, _ = experiment.pairs
    if len(train) < labels:
        raise InputError(f"seed {experiment.seed} has {len(train)} training pairs, not {labels}: raise --pair-scenes")
    return train[: max(labels, 1)]


def train_judge(
    experiment: Experiment, cell: Cell, directory: Path, pairs: Sequence[Preference], settings: Mapping[str, Any]
) -> str:
    if not (directory / "finished.json").exists():
        overrides = {"facts": "none" if cell.arm == "none" else "given", "num_train_epochs": 2.0, **settings}
        config = stage_config(RewardConfig, experiment.seed, directory, model_name_or_path=experiment.sft_path, **overrides)
        rows, held_out = (with_facts(part, cell.arm, experiment) for part in (pairs, experiment.pairs[1]))
        train_reward_model(config, rows, held_out)
    return str(directory)


def train_second_round(experiment: Experiment, cell: Cell, directory: Path) -> str:
    """Train on half of the labels, train a policy, and train on with pairs of its own answers."""
    half = cell.labels // 2
    first = train_judge(experiment, cell, directory / "first", training_pairs(experiment, half), {})
    policy = train_policy(experiment, f"{cell.name}-first", [first], cell.arm, steps=16)
    merged = directory / "merged"
    if not merged.exists():
        export(ExportConfig(model_name_or_path=experiment.sft_path, adapter_path=policy, merge=True, output_dir=str(merged)))
    rows, _ = data.build_preference_pairs(experiment.data_config, str(merged), directory / "pairs.jsonl")
    held_out_scenes = {scene_index(row.id) for row in experiment.pairs[1]}
    rows = [row for row in rows if scene_index(row.id) not in held_out_scenes][: cell.labels - half]
    return train_judge(experiment, cell, directory / "second", rows, {"adapter_path": first})


def claim_score(experiment: Experiment, cell: Cell) -> tuple[Score, dict[str, float]]:
    """Return minus the false claims by the row's facts as a score, and what unknown claims cost."""
    lexicon = load_lexicon(LEXICON_FILE)
    rows = with_facts(training_pairs(experiment, cell.labels), "annotator", experiment) if cell.labels else []
    costs = false_rates(
        verify_against_facts(extract_claims(answer, lexicon), row.facts, lexicon) for row in rows for answer in row.answers
    )

    def answer_score(group: AnswerGroup, answer: str) -> float:
        verdicts = verify_against_facts(extract_claims(answer, lexicon), group.facts, lexicon)
        return -sum(value for *_, value in hallucination(verdicts, costs))

    return lambda groups: [[answer_score(group, answer) for answer in group.answers] for group in groups], costs


# ---- measurements --------------------------------------------------------------------------------


def measure_cell(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Return accuracy on held-out pairs as labelled, `slopes` and `detection` of a cell's judge."""
    result: dict[str, Any] = {}
    if cell.recipe in CLAIM_RECIPES:
        score, result["unknown_costs"] = claim_score(experiment, cell)
    else:
        models = [load_reward_model(path) for path in build_judges(experiment, cell)]
        result["reward_j"] = models[0].j

        def score(groups: Sequence[AnswerGroup]) -> list[list[float]]:
            scores_by_model = [model.score(groups) for model in models]
            return [np.mean(scores, axis=0).tolist() for scores in zip(*scores_by_model, strict=True)]

    held_out = with_facts(experiment.pairs[1], cell.arm, experiment)
    result["accuracy"] = accuracy(held_out, score([to_answer_group(row) for row in held_out]))["value"]
    groups = [replace(group, facts=arm_facts(cell.arm, "rl", group.id, experiment)) for group in sft_samples(experiment)]
    truth = [
        [scenes.verify_description(data.training_scene("rl", scene_index(g.id), experiment.data_config), a) for a in g.answers]
        for g in groups
    ]
    return result | measure_reward(groups, truth, score)


def train_policy(experiment: Experiment, name: str, judges: Sequence[str], arm: FactsArm, steps: int, **overrides: Any) -> str:
    prompts = [
        replace(row, facts=arm_facts(arm, "rl", row.id, experiment)) for row in data.build_rl_prompts(experiment.data_config)
    ]
    if judges:
        overrides["reward_model_path"] = ",".join(judges)
    return experiment.train_policy(f"recipe_{name}", prompts, max_steps=steps, **overrides)


def measure_policy(experiment: Experiment, steps: int, cell: Cell) -> dict[str, Any]:
    """Train a policy against a cell's judge; return metrics of greedy held-out answers, and KL."""
    overrides: dict[str, Any] = {}
    if cell.recipe in CLAIM_RECIPES:
        _, costs = claim_score(experiment, cell)
        overrides = {"reward_terms": "hallucination=-1, coverage=0.2, missing_eos=-2", "lexicon_file": LEXICON_FILE}
        if costs:
            overrides["unknown_claim_costs"] = ", ".join(f"{kind}={cost:.4f}" for kind, cost in costs.items())
    judges = [] if cell.recipe in CLAIM_RECIPES else build_judges(experiment, cell)
    policy = train_policy(experiment, cell.name, judges, cell.arm, steps, **overrides)
    last = sampled_rows(read_jsonl(Path(policy).parent / "metrics.jsonl"))[-1]
    return {**experiment.evaluate(policy), "kl": last["objective/kl"]}


def run_world(cells: Sequence[Cell], policy_steps: int, experiment: Experiment) -> None:
    """Measure the judges of one seed; train their policies instead if `policy_steps` is not 0."""
    torch.set_num_threads(1)
    for cell in cells:
        if policy_steps:
            name, measure = f"recipe_ppo-{experiment.seed}-{cell.name}", partial(measure_policy, experiment, policy_steps, cell)
        else:
            name, measure = f"recipe-{experiment.seed}-{cell.name}", partial(measure_cell, experiment, cell)
        cached_result(experiment.output_dir, name, measure)


# ---- report --------------------------------------------------------------------------------------

Results = dict[Cell, dict[int, dict[str, Any]]]
"""Results of each cell by seed."""


def read_results(directory: Path, prefix: str) -> Results:
    results: Results = {}
    for path in sorted((directory / "cells").glob(f"{prefix}-*.json")):
        seed, recipe, labels, arm = path.stem.removeprefix(f"{prefix}-").split("-")
        results.setdefault(Cell(recipe, int(labels), cast(FactsArm, arm)), {})[int(seed)] = json.loads(path.read_text())
    return results


def value_of(result: Mapping[str, Any], figure: str, kind: str = "all") -> float:
    """Return J of a kind of claim, or the slope of its `false` or `true` claims; NaN without
    claims to measure it."""
    figures = result["detection" if figure == "J" else "slopes"].get(kind, {}).get(figure)
    return float("nan") if figures is None else float(figures["value"])


def utility_slope(result: Mapping[str, Any]) -> float:
    """Return the first slope of true utility: of true claims, minus the penalty times the other."""
    return value_of(result, "true") - ScenesConfig().false_claim_penalty * value_of(result, "false")


def judge_table(results: Results, arm: FactsArm) -> str:
    """Return a table of the judges with one kind of facts, the steepest rise of u first."""
    untrained = results.get(Cell(UNTRAINED, 0, arm), {})
    rows = []
    for cell, by_seed in results.items():
        if cell.arm != arm:
            continue

        def over_seeds(figure: str, kind: str = "all", by_seed: Mapping[int, Any] = by_seed) -> list[float]:
            return [v for result in by_seed.values() if not np.isnan(v := value_of(result, figure, kind))]

        slopes = {seed: utility_slope(result) for seed, result in by_seed.items()}
        differences = [slope - utility_slope(untrained[seed]) for seed, slope in slopes.items() if seed in untrained]
        cells = (
            cell.recipe,
            str(cell.labels),
            format_mean(slopes.values(), sign="+"),
            format_mean(differences, sign="+"),
            format_mean(over_seeds("false"), sign="+"),
            *(format_mean(over_seeds("false", kind), sign="+") for kind in scenes.CLAIM_KINDS),
            format_mean(over_seeds("true"), sign="+"),
            format_mean(over_seeds("J"), True),
            format_mean((r["accuracy"] for r in by_seed.values()), True),
            str(len(by_seed)),
        )
        rows.append((float(np.mean(list(slopes.values()))), cells))
    header = (
        "recipe", "labels", "slope of u", "minus untrained", "slope of false claims", *(f"{kind}s" for kind in scenes.CLAIM_KINDS),
        "slope of true claims", "J %", "pair accuracy %", "seeds",
    )  # fmt: skip
    return markdown_table(header, [cells for _, cells in sorted(rows, key=lambda row: -row[0])])


def policy_table(results: Results) -> str:
    """Return a table of the policies, with u minus that of the plain recipe's in the same seeds."""
    metrics = {"claim_f1": True, "utility": False, "chair_s": True, "coverage": True, "perception_errors": False, "kl": False}
    rows = []
    for cell, by_seed in sorted(results.items(), key=lambda item: (item[0].arm, item[0].labels, item[0].recipe)):
        plain = results.get(replace(cell, recipe="plain"), {})
        differences = [r["utility"] - plain[seed]["utility"] for seed, r in by_seed.items() if seed in plain]
        means = (format_mean((r[m] for r in by_seed.values()), percent) for m, percent in metrics.items())
        rows.append((cell.recipe, str(cell.labels), cell.arm, *means, format_mean(differences, sign="+"), str(len(by_seed))))
    return markdown_table(("recipe", "labels", "facts", *metrics, "utility - plain", "seeds"), rows)


def report(directory: Path) -> None:
    """Print the tables of what there is, and one line of JSON."""
    judges, policies = read_results(directory, "recipe"), read_results(directory, "recipe_ppo")
    for arm in ARMS:
        print(f"judges, facts: {arm}\n\n{judge_table(judges, arm)}\n")
    if policies:
        print(f"policies\n\n{policy_table(policies)}\n")
    cells = [{"cell": cell.name, "seed": seed, **result} for cell, by_seed in judges.items() for seed, result in by_seed.items()]
    print(json.dumps({"study": "reward_recipes", "cells": cells}))


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="DIR", help="model that SFT starts from, by default the bundled one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything that is built and measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6], metavar="SEED")
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES, *CLAIM_RECIPES], metavar="RECIPE")
    parser.add_argument("--labels", type=int, nargs="+", default=[250, 1000], metavar="N")
    parser.add_argument("--facts", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--ppo", nargs="+", metavar="RECIPE", help="train policies against these recipes instead")
    parser.add_argument("--ppo-steps", type=int, default=POLICY_STEPS)
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="seeds at a time, one core each")
    parser.add_argument("--pair-scenes", type=int, default=6000, help="scenes whose answers are compared in pairs")
    parser.add_argument("--held-out-pairs", type=int, default=500)
    parser.add_argument("--rl-scenes", type=int, default=2880)
    parser.add_argument("--sft-rows", type=int, help="rows of SFT, by default the demo's")
    parser.add_argument("--analyse", action="store_true", help="run nothing, report what there is")
    return parser.parse_args(argv)


def run_study(args: argparse.Namespace) -> None:
    """Run the chosen cells, each seed in a process. Raises InputError for an unknown recipe, or if
    --out has a study with other sizes."""
    cells = select_cells(args.ppo or args.recipes, args.labels, args.facts)
    claim_arguments(args, ("recipes", "labels", "facts", "ppo", "ppo_steps"), "recipes_settings")  # facts_map.py may share --out
    if args.ppo:
        claim_settings(args.out, {"ppo_steps": args.ppo_steps}, "recipes_ppo_settings")
    names = ("pair_scenes", "held_out_pairs", "rl_scenes", "sft_rows")
    overrides = {name: value for name in names if (value := getattr(args, name)) is not None}
    experiments = [Experiment(args.out, seed, base_path=args.base, data_overrides=overrides) for seed in args.seeds]
    policy_steps = args.ppo_steps if args.ppo else 0
    run_parallel(experiments, partial(run_world, cells, policy_steps), min(args.workers, len(experiments)))


def main() -> None:
    args = parse_arguments()
    run_and_report(args, run_study, lambda: report(args.out))


if __name__ == "__main__":
    main()
