"""Does a judge check better if it writes down what it sees before it scores?

    python eval/studies/critique.py --out runs/recipes --seeds 4 5 6
    python eval/studies/critique.py --out runs/recipes --analyse

MJ1 and R1-Reward let a judge write observations, then score. Here a writer describes the picture
greedily, its claims become typed facts, and the judge reads them where an annotator's facts would
be. The writer is the SFT model, whose weights the judge has (`sft`), or the base before SFT, which
has not learnt the captions' bias (`base`). The judge is untrained, or trained on labelled pairs
with the demo's recipe. It is compared with the same judge without facts and with the annotator's:
slopes, J and accuracy as in `reward_recipes.py`, whose seeds, pairs and samples these are if
--out is its directory. Each cell is a file.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Experiment,
    cached_result,
    claim_arguments,
    format_mean,
    markdown_table,
    run_and_report,
    run_parallel,
)
from facts_map_judges import LEXICON_FILE, arm_facts, measure_reward, scene_index, sft_samples
from reward_recipes import training_pairs, utility_slope, value_of

from mmrlhf import scenes
from mmrlhf.claims import Lexicon, load_lexicon
from mmrlhf.commands.reward_eval import accuracy
from mmrlhf.config import RewardConfig
from mmrlhf.demo import data
from mmrlhf.demo.pipeline import stage_config
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.bundled import folder
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.labeling.typed_facts import facts_from_sentence
from mmrlhf.models.loading import load
from mmrlhf.records import Example, Fact, Message
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.training.reward_model.measured_rows import to_answer_group

WRITERS = ("sft", "base")
READ = ("none", "annotator", *WRITERS)
"""What a judge reads beside picture and answer."""
LABELS = 1000
JUDGES: dict[str, Mapping[str, Any]] = {
    "untrained": {"max_steps": 0},
    "trained": {"num_train_epochs": 2.0, "untrained_score_coefficient": 0.1},
}

PROPERTY = "|".join((*scenes.SIZES, *scenes.PATTERNS, *scenes.COLOURS))
OBJECT_PHRASE = re.compile(rf"\b[Aa]n? ((?:(?:{PROPERTY}) )*(?:{'|'.join(scenes.SHAPES)}))\b")

Observations = Mapping[tuple[str, int], tuple[Fact, ...]]
"""Facts by split and number of a scene."""


def write_observations(experiment: Experiment, writer: str, keys: Sequence[tuple[scenes.Split, int]]) -> Observations:
    """Return the facts that `writer` states of each scene, described greedily.

    Descriptions are written to the seed's directory, or read if they are there.
    """
    path = experiment.directory / f"observations_{writer}.jsonl"
    if not path.exists():
        model_path = experiment.sft_path if writer == "sft" else experiment.base_path or str(folder("data") / "tiny_vlm")
        rows = []
        for split, index in keys:
            scene = data.training_scene(split, index, experiment.data_config)
            question = scenes.description_question(scene, np.random.default_rng([experiment.seed, 71, index]))
            rows.append(Example(f"{split}-{index}", (scene.image_source(),), (Message("user", question.text),)))
        batches = generate_batches(load(model_path), rows, data.GREEDY, batch_size=100)
        write_atomic(path, "".join(json_line({"id": row.id, "description": texts[0]}) for row, texts in batches))
    lexicon, observations = load_lexicon(LEXICON_FILE), {}
    for row in read_jsonl(path):
        split, index = str(row["id"]).split("-")
        observations[split, int(index)] = observed_facts(str(row["description"]), lexicon)
    return observations


def observed_facts(description: str, lexicon: Lexicon) -> tuple[Fact, ...]:
    """Return what a description says as an annotator would list it: each object as a phrase."""
    objects = [Fact("object", phrase) for phrase in OBJECT_PHRASE.findall(description)]
    others = [fact for fact in facts_from_sentence(description, "", lexicon) if fact.kind in ("relation", "count")]
    return (Fact("scope", "incomplete"), *objects, *others)


def measure_cell(experiment: Experiment, judge: str, reads: str) -> dict[str, Any]:
    """Train a judge that reads facts, observations or neither, and measure it on SFT's samples."""
    train, held_out = training_pairs(experiment, LABELS), experiment.pairs[1]
    samples = sft_samples(experiment)
    keys = [*(("pairs", scene_index(row.id)) for row in (*train, *held_out)), *(("rl", scene_index(g.id)) for g in samples)]
    observations = write_observations(experiment, reads, list(dict.fromkeys(keys))) if reads in WRITERS else {}

    def facts_of(split: scenes.Split, row_id: str) -> tuple[Fact, ...]:
        if reads in WRITERS:
            return observations[split, scene_index(row_id)]
        return arm_facts("annotator" if reads == "annotator" else "none", split, row_id, experiment)

    directory = experiment.directory / "critique" / f"{judge}-{reads}"
    train, held_out = ([replace(row, facts=facts_of("pairs", row.id)) for row in rows] for rows in (train, held_out))
    if not (directory / "finished.json").exists():
        settings = {"facts": "none" if reads == "none" else "given", **JUDGES[judge]}
        config = stage_config(RewardConfig, experiment.seed, directory, model_name_or_path=experiment.sft_path, **settings)
        train_reward_model(config, train, held_out)
    model = load_reward_model(str(directory))
    groups = [replace(group, facts=facts_of("rl", group.id)) for group in samples]
    truth = [
        [scenes.verify_description(data.training_scene("rl", scene_index(g.id), experiment.data_config), a) for a in g.answers]
        for g in groups
    ]
    result = {"accuracy": accuracy(held_out, model.score([to_answer_group(row) for row in held_out]))["value"]}
    return result | measure_reward(groups, truth, model.score)


def run_world(judges: Sequence[str], reads: Sequence[str], experiment: Experiment) -> None:
    torch.set_num_threads(1)
    for judge in judges:
        for name in reads:
            cached_result(
                experiment.output_dir,
                f"critique-{experiment.seed}-{judge}-{name}",
                partial(measure_cell, experiment, judge, name),
            )


def report(args: argparse.Namespace) -> None:
    """Print a table of each judge, minus the same judge without facts in the same seeds."""
    results: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for path in sorted((args.out / "cells").glob("critique-*.json")):
        seed, judge, reads = path.stem.removeprefix("critique-").split("-")
        results.setdefault((judge, reads), {})[int(seed)] = json.loads(path.read_text())
    rows = []
    for judge in JUDGES:
        blind = results.get((judge, "none"), {})
        for reads in READ:
            by_seed = results.get((judge, reads), {})
            rises = [utility_slope(result) - utility_slope(blind[seed]) for seed, result in by_seed.items() if seed in blind]
            gains = [value_of(result, "J") - value_of(blind[seed], "J") for seed, result in by_seed.items() if seed in blind]
            rows.append(
                (
                    judge, reads,
                    format_mean((utility_slope(r) for r in by_seed.values()), sign="+"), format_mean(rises, sign="+"),
                    format_mean((value_of(r, "J") for r in by_seed.values()), True), format_mean(gains, True, sign="+"),
                    format_mean((r["accuracy"] for r in by_seed.values()), True), str(len(by_seed)),
                )
            )  # fmt: skip
    header = ("judge", "reads", "slope of u", "minus none", "J %", "minus none", "pair accuracy %", "seeds")
    print(markdown_table(header, rows))
    cells = [
        {"judge": j, "reads": r, "seed": s, **result} for (j, r), by_seed in results.items() for s, result in by_seed.items()
    ]
    print(json.dumps({"study": "critique", "cells": cells}))


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="DIR", help="model that SFT starts from, by default the bundled one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything that is built and measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6], metavar="SEED")
    parser.add_argument("--judges", nargs="+", default=list(JUDGES), choices=JUDGES)
    parser.add_argument("--reads", nargs="+", default=list(READ), choices=READ)
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="seeds at a time, one core each")
    parser.add_argument("--pair-scenes", type=int, default=2000, help="scenes whose answers are compared in pairs")
    parser.add_argument("--held-out-pairs", type=int, default=500)
    parser.add_argument("--rl-scenes", type=int, default=2880)
    parser.add_argument("--analyse", action="store_true", help="run nothing, report what there is")
    return parser.parse_args(argv)


def run_study(args: argparse.Namespace) -> None:
    """Run the chosen cells, each seed in a process. Raises InputError if --out has other sizes."""
    claim_arguments(args, ("judges", "reads"), "critique_settings")
    overrides = {name: getattr(args, name) for name in ("pair_scenes", "held_out_pairs", "rl_scenes")}
    experiments = [Experiment(args.out, seed, base_path=args.base, data_overrides=overrides) for seed in args.seeds]
    run_parallel(experiments, partial(run_world, args.judges, args.reads), min(args.workers, len(experiments)))


def main() -> None:
    args = parse_arguments()
    run_and_report(args, run_study, lambda: report(args))


if __name__ == "__main__":
    main()
