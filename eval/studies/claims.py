"""What do claims add to the reward, and does it help to normalise rewards and to bound lengths?

    python eval/studies/claims.py --out runs/claims --seeds 4 5 6 7 8
    python eval/studies/claims.py --out runs/claims --only rewards
    python eval/studies/claims.py --out runs/claims --analyse

Policies trained on the demo's requests to describe a scene, at the demo's full length.

rewards       weights chosen by hand, all with missing_eos. `terminal`: the reward model with facts.
              `dense`: and a penalty on the tokens of each claim that facts contradict; `at-end`:
              the same at the end of the answer. Further ones add coverage and open_clip's verdicts.
              `claims-alone` has no reward model.
aggregation   all weights 1 or -1, as of a user who does not tune them: `all-...` with the reward
              model and `claims-...` without. `sum` adds values, `group` normalises each reward
              function among a prompt's answers (GDPO), `bounds` also sets --length_bounds auto.
running       the same with running statistics
places        claims-sum and claims-alone with a lexicon that also reads places in the image ("at
              the top left"), for place_claims.py

Facts are the annotator's. They list half of the absent shapes as absent, with the usual error rate.
Each `--eval-steps` steps, greedy answers on 200 selection and 200 held-out scenes of the seed's own
are checked by the scene graph, and runs are compared as those of facts_map.py are. A run that was
killed continues. DIR has checkpoints of clip_verifier.py, which are trained if it is not given.

Written before any run of `aggregation`:

- Primary outcome: claim F1 on held-out scenes at the largest KL that both runs reached (a
  normalised reward has another size beside the KL penalty, so equal steps do not mean equal KL).
- Two comparisons decide, each the mean within a seed over `all` and `claims`: group - sum, and
  bounds - no bounds (over sum and group as well). Each has a 97.5% interval.
- A difference of 1 point of F1 would matter: half of the 1.9 points that PPO gained over SFT in the
  demo (docs/results.md).
- Seeds: differences between policies of a seed had a standard deviation of 0.16 points at the
  demo's length (facts - no facts: ± 0.4 from 3 seeds, 0.4 x sqrt 3 / 4.30), and of 0.3 to 1.6 after
  16 steps (critic that reads facts ± 0.7, before - none ± 2.1, before - after ± 3.9). Planned with
  1 point, a paired t-test at 97.5% has a power of 80% from 13 seeds on; with 0.16 points 3 are
  plenty, with 1.5 it would take 24. The table names the seeds that the observed deviation calls
  for.
- With fewer seeds, what was seen is reported with its interval, and the default stays.
- Normalisation becomes the default if group - sum is above 0 at the largest common KL and at best
  checkpoints, by 1 point at one of them; the same for bounds.
- Expected: with weights of 1, a sum is mostly coverage, so `sum` makes answers longer and states
  more false claims than `group`; F1 differs by less than 1 point. Bounds change little in `group`,
  and keep answers of `sum` shorter.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_verifier import ensure_checkpoint
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
    seeds_needed,
)
from facts_map import make_evaluation
from facts_map_analysis import DECISION_CONFIDENCE, PRIMARY_WAY, cells_table, differences, primary_table, secondary_table
from facts_map_curves import Run, load_run, load_runs, tuned_runs, write_truth

from mmrlhf import scenes
from mmrlhf.config import PPOConfig
from mmrlhf.demo import data
from mmrlhf.demo.pipeline import stage_config
from mmrlhf.files.atomic import write_atomic
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, Fact, InputError
from mmrlhf.scenes.vocabulary import SHAPES

LEXICON_FILE = str(Path(scenes.__file__).parent / "lexicon.txt")
LEXICON_FILE_WITH_PLACES = str(Path(scenes.__file__).parent / "lexicon_with_places.txt")
ABSENT_FACT_RATE = 0.5
MATTERS = 0.01
"""Difference in claim F1 that would matter."""
WAYS = ("same steps", PRIMARY_WAY, "mean to it", "best checkpoints")

# ---- variants ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A reward: its terms, and further settings of ppo."""

    reward_terms: str
    settings: dict[str, Any] = field(default_factory=dict)


HAND_WEIGHTED = {
    "terminal": Variant("fact_rm=1, missing_eos=-2"),
    "dense": Variant("fact_rm=1, hallucination=-1, missing_eos=-2"),
    "at-end": Variant("fact_rm=1, hallucination=-1, missing_eos=-2", {"span_credit": "last_token"}),
    "dense-coverage": Variant("fact_rm=1, hallucination=-1, coverage=0.2, missing_eos=-2"),
    "dense-coverage-clip": Variant("fact_rm=1, hallucination=-1, coverage=0.2, verifier_score=1, missing_eos=-2"),
    "claims-alone": Variant("hallucination=-1, coverage=0.2, missing_eos=-2"),
}
EQUAL_WEIGHTS = {
    "all": "fact_rm=1, hallucination=-1, coverage=1, missing_eos=-1",
    "claims": "hallucination=-1, coverage=1, missing_eos=-1",
}
GROUP_NORMALIZED = {"multi_objective_aggregation": "normalize_then_sum"}
RUNNING_NORMALIZED = {**GROUP_NORMALIZED, "term_statistics": "running"}
BOUNDED = {"length_bounds": "auto"}


def build_groups() -> dict[str, dict[str, Variant]]:
    """Return the variants by name, in groups."""

    def cross(aggregations: Mapping[str, dict[str, Any]]) -> dict[str, Variant]:
        return {
            f"{reward}-{aggregation}{suffix}": Variant(terms, {**settings, **bounds})
            for reward, terms in EQUAL_WEIGHTS.items()
            for aggregation, settings in aggregations.items()
            for suffix, bounds in {"": {}, "-bounds": BOUNDED}.items()
        }

    aggregation = cross({"sum": {}, "group": GROUP_NORMALIZED})
    running = cross({"running": RUNNING_NORMALIZED})
    reading_places = {"lexicon_file": LEXICON_FILE_WITH_PLACES}
    places = {
        "claims-sum-places": Variant(EQUAL_WEIGHTS["claims"], reading_places),
        "claims-alone-places": Variant(HAND_WEIGHTED["claims-alone"].reward_terms, reading_places),
    }
    return {"rewards": HAND_WEIGHTED, "aggregation": aggregation, "running": running, "places": places}


GROUPS = build_groups()
VARIANTS = {name: variant for group in GROUPS.values() for name, variant in group.items()}
EFFECTS = {
    "group - sum": [(f"{reward}-group", f"{reward}-sum") for reward in EQUAL_WEIGHTS],
    "bounds - none": [(f"{r}-{a}-bounds", f"{r}-{a}") for r in EQUAL_WEIGHTS for a in ("sum", "group")],
}
"""Comparisons that decide: pairs of variants, whose mean is taken within a seed."""
FURTHER_COMPARISONS = [
    *((f"{reward}-running", f"{reward}-sum") for reward in EQUAL_WEIGHTS),
    ("all-group", "dense-coverage"), ("claims-group", "claims-alone"),
    *((name, "terminal") for name in HAND_WEIGHTED if name != "terminal"), ("dense", "at-end"),
]  # fmt: skip


def select_variants(names: Sequence[str]) -> list[str]:
    """Return the variants in a list of groups and names. Raises InputError for an unknown name."""
    if unknown := [name for name in names if name not in (*GROUPS, *VARIANTS)]:
        raise InputError(f"--only {unknown[0]} does not exist: use {', '.join(GROUPS)}, or {', '.join(VARIANTS)}")
    return [name for group, variants in GROUPS.items() for name in variants if {group, name} & set(names)]


# ---- a policy ------------------------------------------------------------------------------------


def build_prompts(experiment: Experiment) -> list[Example]:
    """Return the demo's requests to describe a scene, with facts about absent shapes added.

    Short questions are left out: their answers would make the lower bound of lengths meaningless.
    """
    rows = []
    for index, row in enumerate(data.build_rl_prompts(experiment.data_config)):
        if not data.is_description(index):
            continue
        rng = np.random.default_rng([experiment.seed, 59, index])
        scene = data.training_scene("rl", index, experiment.data_config)
        present_shapes = {o.shape for o in scene.objects}
        absent_facts = []
        for shape in SHAPES:
            if rng.random() < ABSENT_FACT_RATE and (shape not in present_shapes or rng.random() < experiment.fact_error_rate):
                absent_facts.append(Fact("absent", shape, "annotator"))
        rows.append(replace(row, facts=(*row.facts, *absent_facts)))
    return rows


def train_variant(experiment: Experiment, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train the policy of a variant, or go on with it, and write the truth about its samples."""
    variant, directory = VARIANTS[name], experiment.directory / f"ppo_{name}_kl{args.kl_coef:g}"
    if not (directory / "finished.json").exists():
        settings: dict[str, Any] = {
            "model_name_or_path": experiment.sft_path,
            "reward_terms": variant.reward_terms,
            "kl_coef": args.kl_coef,
            "eval_steps": args.eval_steps,
            "min_probe_detection_rate": 0.0,
            "allow_worse_reward_model": True,
            "lexicon_file": LEXICON_FILE,
            **variant.settings,
        }
        settings |= {"max_steps": args.steps} if args.steps else {}
        settings |= {"per_device_train_batch_size": args.prompts_per_step} if args.prompts_per_step else {}
        if "verifier_score=" in variant.reward_terms:
            checkpoint = ensure_checkpoint(args.clip or args.out, experiment.seed, args.clip_steps, args.clip_scenes)
            settings["clip_model"] = str(checkpoint)
        if "fact_rm=" in variant.reward_terms:
            judge = {"facts": "given", "fact_dropout": 0.2, "injected_claim_rate": 0.3}
            settings["reward_model_path"] = experiment.train_reward("claims", **judge)
        config = stage_config(PPOConfig, experiment.seed, directory, **settings)
        evaluation = make_evaluation(experiment, args.eval_scenes)
        ppo(config, build_prompts(experiment), evaluation)
    write_truth(directory, experiment.data_config)
    run = load_run(directory, experiment.seed, experiment.data_config)
    return {"variant": name, "evaluations": run.evaluation_rows() if run is not None else []}


def run_world(names: Sequence[str], args: argparse.Namespace, experiment: Experiment) -> None:
    """Train the policies of one seed, in order."""
    torch.set_num_threads(1)
    for name in names:
        cached_result(
            args.out, f"policy-{experiment.seed}-{name}-kl{args.kl_coef:g}", partial(train_variant, experiment, name, args)
        )


# ---- tables --------------------------------------------------------------------------------------


def effect(runs: Mapping[str, Mapping[int, Run]], pairs: Sequence[tuple[str, str]], metric: str) -> dict[str, list[float]]:
    """Return the mean of a - b over pairs in each seed that has all of them, by way of comparison.

    It is empty if a variant is missing, or no seed has all.
    """
    names = {name for pair in pairs for name in pair}
    seeds = sorted(set.intersection(*(set(runs.get(name, {})) for name in names)))
    complete = {name: {seed: runs[name][seed] for seed in seeds} for name in names if seeds}
    by_pair = [differences(complete, a, b, metric) for a, b in pairs] if seeds else []
    return {way: np.mean([by_way[way] for by_way in by_pair], 0).tolist() for way in WAYS} if by_pair else {}


def verdict(values: Sequence[float]) -> str:
    """Return what differences of F1 over seeds allow to say, by their 97.5% interval."""
    mean, half_width = mean_and_half_width(values, DECISION_CONFIDENCE) if len(values) > 1 else (0.0, float("inf"))
    if abs(mean) > half_width:
        size = "by a difference that matters" if abs(mean) >= MATTERS else "by less than matters"
        return f"{'better' if mean > 0 else 'worse'} {size}"
    return "no difference that matters" if abs(mean) + half_width < MATTERS else "open"


def effects_table(runs: Mapping[str, Mapping[int, Run]]) -> str:
    """Return the comparisons that decide, in points of F1, with the seeds that they call for."""
    rows = []
    for name, pairs in EFFECTS.items():
        for way, values in effect(runs, pairs, "claim_f1").items():
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
            needed = seeds_needed(deviation, MATTERS, DECISION_CONFIDENCE) if deviation > 0 else "-"
            difference = format_mean(values, True, "+", DECISION_CONFIDENCE)
            rows.append((name, way, str(len(values)), difference, f"{100 * deviation:.2f}", str(needed), verdict(values)))
    header = ("effect", "way", "seeds", "claim F1, points, 97.5%", "deviation", f"seeds for {100 * MATTERS:g} point", "says")
    return markdown_table(header, rows)


def report(out: Path) -> None:
    """Print tables of all runs in a directory, and a line of JSON.

    Raises InputError if there are no runs.
    """
    seeds = sorted({int(path.name.rpartition("-")[2]) for path in out.glob("demo-*")})
    found = [run for run in load_runs(out, {s: Experiment(out, s).data_config for s in seeds}) if run.cell in VARIANTS]
    if not found:
        raise InputError(f"{out} has no policy that was evaluated after its start: run some variants first")
    runs = tuned_runs(found)
    decisive = [pair for pairs in EFFECTS.values() for pair in pairs]
    compared = [pair for pair in (*decisive, *FURTHER_COMPARISONS) if set(pair) <= set(runs)]
    sections = {
        "Policies": cells_table(runs, {}),
        "Does it help to normalise, or to bound lengths?": effects_table(runs),
        "Claim F1 by way of comparison": primary_table(runs, compared),
        "At the largest KL that both reached": secondary_table(runs, compared, PRIMARY_WAY),
        "At best checkpoints": secondary_table(runs, compared, "best checkpoints"),
    }
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in sections.items())
    print(text, flush=True)
    write_atomic(out / "report.md", text + "\n")
    effects = {name: effect(runs, pairs, "claim_f1") for name, pairs in EFFECTS.items()}
    print("\n" + json.dumps({"study": "claims", "seeds": seeds, "effects": effects}))


# ---- command -------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything that is built and measured")
    parser.add_argument("--base", metavar="DIR", help="model that SFT starts from, by default the bundled one")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(4, 17)), metavar="SEED", help="by default 4 to 16")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="seeds at a time, one core each")
    parser.add_argument("--only", nargs="+", default=["aggregation", "dense-coverage"], metavar="NAME", help="groups or variants")
    parser.add_argument("--kl-coef", type=float, default=0.3, metavar="C")
    parser.add_argument("--steps", type=int, help="steps of PPO, by default the demo's")
    parser.add_argument("--prompts-per-step", type=int, help="prompts of a step, by default the demo's")
    parser.add_argument("--eval-scenes", type=int, default=200, help="selection scenes, and held-out scenes, of a seed")
    parser.add_argument("--eval-steps", type=int, default=4, help="steps between evaluations")
    for name in ("sft-rows", "pair-scenes", "rl-scenes"):
        parser.add_argument(f"--{name}", type=int, help="by default the demo's")
    parser.add_argument("--clip", type=Path, metavar="DIR")
    parser.add_argument("--clip-steps", type=int, default=4000)
    parser.add_argument("--clip-scenes", type=int, default=20000)
    parser.add_argument("--analyse", action="store_true", help="run nothing, report what there is")
    return parser.parse_args(argv)


def run_study(args: argparse.Namespace) -> None:
    """Train the chosen policies of all seeds. Raises InputError for an unknown variant, or if
    --out has a study with other sizes."""
    names = select_variants(args.only)
    of_clip = ("clip", "clip_steps", "clip_scenes")
    claim_arguments(args, ("only", "kl_coef", *of_clip))
    if any("verifier_score=" in VARIANTS[name].reward_terms for name in names):
        claim_settings(args.out, {name: str(getattr(args, name)) for name in of_clip}, "claims_clip_settings")
    sizes = {name: getattr(args, name) for name in ("sft_rows", "pair_scenes", "rl_scenes") if getattr(args, name)}
    experiments = [Experiment(args.out, seed, base_path=args.base, data_overrides=sizes) for seed in args.seeds]
    run_parallel(experiments, partial(run_world, names, args), min(args.workers, len(experiments)))


def main() -> None:
    args = parse_arguments()
    run_and_report(args, run_study, lambda: report(args.out))


if __name__ == "__main__":
    main()
