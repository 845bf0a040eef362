"""What can an untrained base check? Its reviews of captions, with and without facts, by kind.

    python eval/studies/base_review.py data/tiny_vlm [BASE...]

A share is how often a true caption scores above the same caption with one planted fault, on scenes
of the selection split. The score is the log-odds of Yes at the question whether all of it is true.
Kinds are those of the false claim: a wrong shape is an `object`, a wrong colour, size or pattern an
`attribute`, a wrong place or relation a `relation`. A wrong colour is also counted by itself: an
`absent colour` is found by looking for the word, and `another object's colour` only by a reader who
binds colours to objects. In `hidden` pictures hardly anything can be seen. `annotator` facts list
80% and are wrong in 5%; `all` are complete and true.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from common import markdown_table

from mmrlhf import scenes
from mmrlhf.metrics.calibration import proportion
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import yes_no_head
from mmrlhf.models.loading import load
from mmrlhf.records import Message
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel

DIFFICULTIES = {
    "demo": None,
    "hidden": scenes.Difficulty(noise_std=40, occluded_share=1, max_fade=0.95, max_occlusion=0.8),
}
FACTS = {"none": None, "annotator": (0.8, 0.05), "all": (1.0, 0.0)}
"""Recall and error rate of each list of facts."""
Shares = Mapping[str, Mapping[str, Any]]
"""Shares of pairs by kind of claim, each with value, low, high and n."""
COLOUR_FAULTS = ("absent colour", "another object's colour")


def fault_kind(scene: scenes.Scene, text: str) -> str | None:
    """Return the kind of a text's false claims, None without one; a wrong object counts first."""
    kinds = {v.claim.kind for v in scenes.verify_description(scene, text) if v.value == "contradicted"}
    return next((kind for kind in scenes.CLAIM_KINDS if kind in kinds), None)


def colour_fault(scene: scenes.Scene, text: str) -> str | None:
    """Return whether a text's one wrong colour is another object's; None for any other fault."""
    claims = [v.claim for v in scenes.verify_description(scene, text) if v.value == "contradicted"]
    colours = {claim.value for claim in claims if claim.value in scenes.COLOURS}
    if len(colours) != 1 or any(claim.kind == "object" for claim in claims):
        return None
    return "another object's colour" if colours <= {obj.colour for obj in scene.objects} else "absent colour"


def review_shares(model: RewardModel, difficulty: scenes.Difficulty | None, num_scenes: int) -> dict[str, Shares]:
    """Return, by list of facts, the share of pairs ranked right, by kind of claim and over all.

    Each share has Wilson's interval, as a scene has one pair.
    """
    kinds: list[str] = []
    colour_faults: list[str | None] = []
    groups: dict[str, list[AnswerGroup]] = {name: [] for name in FACTS}
    for index in range(num_scenes):
        scene, rng = scenes.generate_scene("selection", index, 0, difficulty), np.random.default_rng([67, index])
        question = scenes.description_question(scene, rng)
        answers = scenes.caption_with_and_without_fault(scene, rng)
        kind = fault_kind(scene, answers[1])
        if kind is None:
            continue
        kinds.append(kind)
        colour_faults.append(colour_fault(scene, answers[1]))
        for name, quality in FACTS.items():
            facts = scenes.annotator_facts(scene, rng, recall=quality[0], error_rate=quality[1]) if quality else ()
            groups[name].append(AnswerGroup((scene.image_source(),), (Message("user", question.text),), answers, facts, scene.id))
    shares = {}
    for name, rows in groups.items():
        scores_R2 = np.array(model.score(rows))
        is_right_R = scores_R2[:, 0] > scores_R2[:, 1]
        by_kind = {kind: proportion(is_right_R[np.array(kinds) == kind]) for kind in scenes.CLAIM_KINDS}
        by_kind |= {fault: proportion(is_right_R[np.array(colour_faults) == fault]) for fault in COLOUR_FAULTS}
        signs = {"false caught": proportion(scores_R2[:, 1] < 0), "true passed": proportion(scores_R2[:, 0] > 0)}
        shares[name] = by_kind | {"any": proportion(is_right_R)} | signs
    return shares


def untrained_judge(base: str) -> RewardModel:
    vlm = load(base)
    return RewardModel(Role(Adapters(vlm), None, yes_no_head(vlm)), "given", "before")


def table(results: Mapping[str, Mapping[str, Shares]]) -> str:
    """Return the shares in percent with their 95% intervals, as Markdown."""
    columns = (*scenes.CLAIM_KINDS, *COLOUR_FAULTS, "any", "false caught", "true passed")
    rows = [
        (difficulty, name, *(_format_share(shares[column]) for column in columns))
        for difficulty, by_facts in results.items()
        for name, shares in by_facts.items()
    ]
    return markdown_table(("pictures", "facts", *(f"{column} %" for column in columns)), rows)


def _format_share(share: Mapping[str, Any]) -> str:
    """Return a share in percent with its interval; a dash without pairs to measure it on."""
    if not share["n"]:
        return "-"
    return "{:.1f} ({:.0f} to {:.0f})".format(*(100 * share[key] for key in ("value", "low", "high")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+", metavar="BASE", help="checkpoint directories")
    parser.add_argument("--scenes", type=int, default=600, metavar="N", help="selection scenes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = {}
    for base in args.bases:
        model = untrained_judge(base)
        cells[base] = {name: review_shares(model, difficulty, args.scenes) for name, difficulty in DIFFICULTIES.items()}
        print(f"{base}\n\n{table(cells[base])}\n", flush=True)
    print(json.dumps({"study": "base_review", "scenes": args.scenes, "cells": cells}))


if __name__ == "__main__":
    main()
