"""Do facts make a reward model better? Compare on held-out pairs, at three difficulties.

    python eval/studies/reward_accuracy.py --out runs/studies [--seeds 3]
                                           [--difficulties demo easier harder]

The models with and without facts see the same pairs once, injected claims included. 10% of labels
are wrong, also in held-out pairs, so 90% is the maximum. `clean` is accuracy against the scenes,
also by what decides a pair. A probe puts a false claim, made from the scene in words unlike any in
training, before a clean caption. At the demo's difficulty, accuracy is also measured with facts
that are missing, of another image, or contradicted.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
from common import DIFFICULTIES, Experiment, cached_result, format_mean, markdown_table, parse_args, run_parallel

from mmrlhf import scenes
from mmrlhf.commands.reward_metrics import SCORE_TOLERANCE, accuracy, perturbed_facts
from mmrlhf.demo import data
from mmrlhf.metrics.calibration import expected_calibration_error, preference_bins
from mmrlhf.records import Message, Preference
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.scenes.captions import OPPOSITE_RELATION, sample_relation
from mmrlhf.training.reward_model.measured_rows import score_margins, to_answer_group

INJECTED_CLAIM_RATE = 0.3
NUM_PROBE_SCENES = 200
FACTS_SETTINGS = {"facts": {"facts": "given", "fact_dropout": 0.2}, "none": {"facts": "none"}}


def probe_sentences(scene: scenes.Scene, kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """Return a false and a true claim in the same words, or None if the scene allows none."""
    obj = scene.objects[int(rng.integers(len(scene.objects)))]
    if kind == "object":
        shape = str(rng.choice([s for s in scenes.SHAPES if s not in {o.shape for o in scene.objects}]))
        absent_object = f"{rng.choice(list(scenes.COLOURS))} {shape}"
        template, false_value, true_value = "Somewhere in it you find {}.", absent_object, obj.name
        return template.format(scenes.with_article(false_value)), template.format(scenes.with_article(true_value))
    if kind == "attribute":
        present_colours = {o.colour for o in scene.objects if o.shape == obj.shape}
        wrong_colour = str(rng.choice([c for c in scenes.COLOURS if c not in present_colours]))
        return f"Colour of the {obj.shape}: {wrong_colour}.", f"Colour of the {obj.shape}: {obj.colour}."
    if kind == "count":
        count = len(scene.objects)
        wrong_count = scenes.off_by_one(count, rng)
        template = "Someone put {} in it."
        return template.format(scenes.count_phrase(wrong_count, "object")), template.format(scenes.count_phrase(count, "object"))
    # With two objects of one name a relation may hold in both directions.
    if len({o.name for o in scene.objects}) < max(2, len(scene.objects)):
        return None
    a, b = (scene.objects[i] for i in rng.choice(len(scene.objects), 2, replace=False))
    relation = sample_relation(a, b, rng)
    template = f"You find the {a.name} {{}} the {b.name}."
    return template.format(OPPOSITE_RELATION[relation]), template.format(relation)


def measure_probes(experiment: Experiment, model: RewardModel) -> dict[str, dict[str, float]]:
    """Return how a claim put before a clean caption changes its score, by kind of claim.

    `lowers` and `true_lowers` are the shares of captions that score lower with a false and with a
    true claim. `below_true` is the share that score lower with the false claim than with the true.
    """
    metrics = {}
    for kind in scenes.CLAIM_KINDS:
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
            "lowers": float((false_scores < clean_scores).mean()),
            "true_lowers": float((true_scores < clean_scores).mean()),
            "below_true": float((false_scores < true_scores).mean()),
        }
    return metrics


DECIDING_FACTORS = ("perception_errors", "cooccurrence_errors", "completeness")


def clean_accuracy(experiment: Experiment, rows: list[Preference], scores: list[list[float]]) -> dict[str, float]:
    """Return accuracy against the scenes, not the labels: on all pairs, and by what decides a pair.

    A pair is decided by perception errors or by co-occurrence errors if only their number differs,
    and by completeness if neither number differs.
    """
    penalty = experiment.data_config.false_claim_penalty
    outcomes_by_kind: dict[str, list[bool]] = {"clean": [], **{kind: [] for kind in DECIDING_FACTORS}}
    for row, (first_score, second_score) in zip(rows, scores, strict=True):
        scene = data.training_scene("pairs", int(row.id.split("-")[1]), experiment.data_config)
        a, b = (scenes.verify_answer(scene, answer) for answer in row.answers)
        utility_gap = len(a.true_claims) - len(b.true_claims) - penalty * (len(a.false_claims) - len(b.false_claims))
        is_correct = (utility_gap > 0) == (first_score > second_score + SCORE_TOLERANCE)
        perception_differs = len(a.perception_errors) != len(b.perception_errors)
        cooccurrence_differs = len(a.cooccurrence_errors) != len(b.cooccurrence_errors)
        outcomes_by_kind["clean"].append(is_correct)
        if perception_differs and not cooccurrence_differs:
            outcomes_by_kind["perception_errors"].append(is_correct)
        elif cooccurrence_differs and not perception_differs:
            outcomes_by_kind["cooccurrence_errors"].append(is_correct)
        elif not perception_differs:
            outcomes_by_kind["completeness"].append(is_correct)
    return {kind: float(np.mean(outcomes)) for kind, outcomes in outcomes_by_kind.items()}


def evaluate_reward_model(experiment: Experiment, name: str) -> dict[str, Any]:
    """Train a reward model of FACTS_SETTINGS; return its metrics on held-out pairs and probes."""
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
    prefix = f"reward_accuracy-{experiment.difficulty}-{experiment.seed}"
    return {
        name: cached_result(experiment.output_dir, f"{prefix}-{name}", partial(evaluate_reward_model, experiment, name))
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
            rows.append([difficulty, name, *(format_mean((result[k] for result in seed_results), k != "ece") for k in keys)])
        pairs = list(zip(models["facts"], models["none"], strict=True))
        rows.append([difficulty, "difference", *(format_mean((a[k] - b[k] for a, b in pairs), k != "ece", "+") for k in keys)])
    print(markdown_table(("difficulty", "reward model", *(f"{k} %" for k in keys[:-1]), "calibration error"), rows) + "\n")
    if "demo" in results:
        demo_results = results["demo"]["facts"]
        states = [k for k in demo_results[0] if k.endswith("left") or k in ("another image's", "contradicted")]
        print(
            markdown_table(
                ("facts", "accuracy %"), [(s, format_mean((result[s] for result in demo_results), True)) for s in states]
            )
            + "\n"
        )
    table = [
        (
            difficulty,
            name,
            probe_name,
            *(format_mean((result["probes"][k][key] for result in seed_results), True) for k in scenes.CLAIM_KINDS),
        )
        for difficulty, models in results.items()
        for name, seed_results in models.items()
        for probe_name, key in (("false lowers", "lowers"), ("true lowers", "true_lowers"), ("false below true", "below_true"))
    ]
    print(markdown_table(("difficulty", "reward model", "probe %", *scenes.CLAIM_KINDS), table) + "\n")
    print(json.dumps({"study": "reward_accuracy", "seeds": args.seeds, "cells": results}))


if __name__ == "__main__":
    main()
