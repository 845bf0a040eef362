"""Do facts make a better judge? Reward models with facts and without on the world's held-out pairs, at three difficulties.

    python eval/studies/reward_accuracy.py --out runs/studies [--seeds 3] [--difficulties demo easier harder]

Both models see the same pairs, planted claims included, each once; labels are wrong in 10% of pairs, held-out ones included, so that 90% is the
most. `clean` is against what the scenes say, also by what decides a pair. Then what becomes of accuracy at the demo's difficulty when facts are missing, another picture's,
or contradicted; and the contradiction probe, by an injector of this study alone: other sentences than any that were trained on, made from the
scene itself and put in front of a clean caption.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from world import DIFFICULTIES, Experiment, cached_result, format_mean, markdown_table, parse_args, run_parallel

from mmrlhf import scenes
from mmrlhf.commands.reward_eval import SCORE_TOLERANCE, accuracy, perturbed_facts
from mmrlhf.demo import data
from mmrlhf.metrics.calibration import expected_calibration_error, preference_bins
from mmrlhf.records import Message, Preference
from mmrlhf.reward_model import score_margins, to_answer_group
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.scenes.captions import OPPOSITE_RELATION, sample_relation

INJECTED_CLAIM_RATE = 0.3
NUM_PROBE_SCENES = 200
FACTS_SETTINGS = {"facts": {"facts": "given", "fact_dropout": 0.2}, "none": {"facts": "none"}}


def probe_sentences(scene: scenes.Scene, kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """A false claim on a scene and a true one in the same words."""
    obj = scene.objects[int(rng.integers(len(scene.objects)))]
    if kind == "object":
        shape = str(rng.choice([s for s in scenes.SHAPES if s not in {t.shape for t in scene.objects}]))
        absent_object = f"{rng.choice(list(scenes.COLOURS))} {shape}"
        return tuple(f"Somewhere in it you find {scenes.with_article(n)}." for n in (absent_object, obj.name))  # type: ignore[return-value]
    if kind == "attribute":
        present_colours = {t.colour for t in scene.objects if t.shape == obj.shape}
        colours = (str(rng.choice([c for c in scenes.COLOURS if c not in present_colours])), obj.colour)
        return tuple(f"Colour of the {obj.shape}: {c}." for c in colours)  # type: ignore[return-value]
    if kind == "count":
        count = len(scene.objects)
        wrong_count = count + 1 if count == 1 else count + int(rng.choice([-1, 1]))
        return tuple(f"Someone put {scenes.count_phrase(n, 'object')} in it." for n in (wrong_count, count))  # type: ignore[return-value]
    if len({t.name for t in scene.objects}) < max(2, len(scene.objects)):  # two of a name make a relation true both ways
        return None
    a, b = (scene.objects[i] for i in rng.choice(len(scene.objects), 2, replace=False))
    relation = sample_relation(a, b, rng)
    return tuple(f"You find the {a.name} {r} the {b.name}." for r in (OPPOSITE_RELATION[relation], relation))  # type: ignore[return-value]


def measure_probes(experiment: Experiment, model: RewardModel) -> dict[str, dict[str, float]]:
    """By kind of claim, the share of clean captions whose score a false claim lowers, and whose false claim scores below a true one."""
    metrics = {}
    for kind in ("object", "attribute", "count", "relation"):
        groups = []
        for index in range(NUM_PROBE_SCENES):
            scene, rng = scenes.generate_scene("selection", index, 0), np.random.default_rng([61, index])
            question, sentence_pair = scenes.description_question(scene, rng), probe_sentences(scene, kind, rng)
            if sentence_pair:
                facts = scenes.annotator_facts(scene, rng, recall=experiment.fact_recall, error_rate=experiment.fact_error_rate)
                answers = (question.answer, *(f"{sentence} {question.answer}" for sentence in sentence_pair))
                groups.append(AnswerGroup((scene.image_source(),), (Message("user", question.text),), answers, facts, scene.id))
        clean_scores, false_scores, true_scores = np.array(model.score(groups)).T
        metrics[kind] = {
            "lowers": float((false_scores < clean_scores).mean()), "true_lowers": float((true_scores < clean_scores).mean()), "below_true": float((false_scores < true_scores).mean())
        }  # fmt: skip
    return metrics


DECIDING_FACTORS = ("perception_errors", "cooccurrence_errors", "completeness")


def clean_accuracy(experiment: Experiment, rows: list[Preference], scores: list[list[float]]) -> dict[str, float]:
    """Accuracy against what the scenes say, turned labels turned back: of all pairs, and by what decides them: one answer misreads more
    (`sight`) or says more out of habit, all else alike, or both are as false and one tells more (`completeness`)."""
    outcomes_by_kind: dict[str, list[bool]] = {"clean": [], **{kind: [] for kind in DECIDING_FACTORS}}
    for row, (first_score, second_score) in zip(rows, scores, strict=True):
        scene = data.training_scene("pairs", int(row.id.split("-")[1]), experiment.data_config)
        a, b = (scenes.verify_answer(scene, answer) for answer in row.answers)
        utility_gap = (
            len(a.true_claims)
            - len(b.true_claims)
            - experiment.data_config.false_claim_penalty * (len(a.false_claims) - len(b.false_claims))
        )
        is_correct = (utility_gap > 0) == (first_score > second_score + SCORE_TOLERANCE)
        perception_gap, cooccurrence_gap = (
            len(a.perception_errors) - len(b.perception_errors),
            len(a.cooccurrence_errors) - len(b.cooccurrence_errors),
        )
        kinds = (
            ["perception_errors"] * bool(perception_gap and not cooccurrence_gap)
            + ["cooccurrence_errors"] * bool(cooccurrence_gap and not perception_gap)
            + ["completeness"] * (not perception_gap and not cooccurrence_gap)
        )
        for kind in ("clean", *kinds):
            outcomes_by_kind[kind].append(is_correct)
    return {kind: float(np.mean(outcomes)) for kind, outcomes in outcomes_by_kind.items()}


def evaluate_reward_model(experiment: Experiment, name: str) -> dict[str, Any]:
    _, held_out = experiment.pairs
    model = load_reward_model(experiment.train_reward(name, injected_claim_rate=INJECTED_CLAIM_RATE, **FACTS_SETTINGS[name]))
    scores = model.score([to_answer_group(p) for p in held_out])
    metrics: dict[str, Any] = {"accuracy": accuracy(held_out, scores)["value"], **clean_accuracy(experiment, held_out, scores)}
    metrics["ece"] = expected_calibration_error(preference_bins(score_margins(held_out, scores), model.temperature))
    if name == "facts" and experiment.difficulty == "demo":
        for state, facts in perturbed_facts(held_out, 0).items():
            groups = [AnswerGroup(p.images, p.prompt, p.answers, f, p.id) for p, f in zip(held_out, facts, strict=True)]
            metrics[state] = accuracy(held_out, model.score(groups))["value"]
    return metrics | {"probes": measure_probes(experiment, model)}


def run_study(experiment: Experiment) -> dict[str, dict[str, Any]]:
    return {
        name: cached_result(
            experiment.output_dir,
            f"reward_accuracy-{experiment.difficulty}-{experiment.seed}-{name}",
            lambda n=name: evaluate_reward_model(experiment, n),
        )  # type: ignore[misc]
        for name in FACTS_SETTINGS
    }


def main() -> None:
    args = parse_args(__doc__, difficulties={"nargs": "+", "choices": list(DIFFICULTIES), "default": list(DIFFICULTIES)})
    experiments = [Experiment(args.out, seed, difficulty) for difficulty in args.difficulties for seed in range(args.seeds)]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {d: {name: [] for name in FACTS_SETTINGS} for d in args.difficulties}
    for experiment, by_name in zip(experiments, run_parallel(experiments, run_study, args.workers), strict=True):
        for name, row in by_name.items():
            results[experiment.difficulty][name].append(row)
    rows, keys = [], ("accuracy", "clean", *DECIDING_FACTORS, "ece")
    for difficulty, models in results.items():
        for name, seed_results in models.items():
            rows.append([difficulty, name, *(format_mean((c[k] for c in seed_results), k != "ece") for k in keys)])
        pairs = list(zip(models["facts"], models["none"], strict=True))
        rows.append([difficulty, "difference", *(format_mean((a[k] - b[k] for a, b in pairs), k != "ece", "+") for k in keys)])
    print(markdown_table(("difficulty", "reward model", *(f"{k} %" for k in keys[:-1]), "calibration error"), rows) + "\n")
    if "demo" in results:
        demo_results = results["demo"]["facts"]
        states = [k for k in demo_results[0] if k.endswith("left") or k in ("another picture's", "contradicted")]
        print(
            markdown_table(("facts", "accuracy %"), [(s, format_mean((c[s] for c in demo_results), True)) for s in states]) + "\n"
        )
    kinds = ("object", "attribute", "count", "relation")
    table = [
        (difficulty, name, probe_name, *(format_mean((c["probes"][k][key] for c in seed_results), True) for k in kinds))
        for difficulty, models in results.items() for name, seed_results in models.items()
        for probe_name, key in (("false lowers", "lowers"), ("true lowers", "true_lowers"), ("false below true", "below_true"))
    ]  # fmt: skip
    print(markdown_table(("difficulty", "reward model", "probe %", *kinds), table) + "\n")
    print(json.dumps({"study": "reward_accuracy", "seeds": args.seeds, "cells": results}))


if __name__ == "__main__":
    main()
