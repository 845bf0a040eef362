"""What does a model asked yes or no know of claims, how sure may it be, and what does sharing a prompt save?

    python eval/studies/asking.py --out runs/asking [--seeds 3] [--scenes 400]

The world's small base is asked about hard true and false claims on held-out scenes (labelled.py): AUROC, accuracy of yes and no, and the
expected calibration error of its probabilities by kind of claim, as it says them and after a calibration on other scenes. Speed: claims a second of
the process's own time with all claims of a picture on one prompt, eight a picture, against a prompt for each.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_world import by_kind
from labelled import labelled, words
from scipy.special import expit
from world import arguments, cell, markdown, shown

from mmrlhf import scenes
from mmrlhf.calibration import binned, expected_calibration_error
from mmrlhf.content import folder
from mmrlhf.loading import load
from mmrlhf.roles import Adapters, Role
from mmrlhf.verify import Said
from mmrlhf.verify.asking import AS_IT_SAYS, Asking
from mmrlhf.verify.verifier import KINDS, Certainty, fitted


def rows(asking: Asking, split: scenes.Split, count: int, seed: int) -> list[dict[str, Any]]:
    said, labels = [], []
    for index in range(count):
        scene = scenes.scene(split, index, seed)
        claims = labelled(scene, np.random.default_rng([seed, 73, index]))
        said.append(Said((scene.source(),), (), tuple(c.claim for c in claims)))
        labels += claims
    odds = [x for found in asking.log_odds(said) for x in found]
    return [{"kind": c.claim.kind, "true": c.true, "x": x} for c, x in zip(labels, odds, strict=True)]


def described(found: list[dict[str, Any]], certainty: Certainty) -> dict[str, Any]:
    """By kind: AUROC, accuracy, and calibration error as the model says it and calibrated."""
    for row in found:
        row["verdict"] = "supported" if row["x"] > 0 else "contradicted"
    figures = by_kind(found, "x")
    for kind, figure in figures.items():
        mine = [r for r in found if r["kind"] == kind]
        true = np.array([r["true"] for r in mine])
        figure["ece_as_said"] = expected_calibration_error(binned(expit(np.array([r["x"] for r in mine])), true))
        if kind in certainty.by_kind:
            sure = np.array([certainty.probability(kind, r["x"]) for r in mine])
            figure["ece_calibrated"] = expected_calibration_error(binned(sure, true))
    return figures


def rate(asking: Asking, seed: int, count: int = 24, each: int = 8) -> dict[str, float]:
    """Features are there already in both ways."""
    said = []
    for index in range(count):
        scene = scenes.scene("held_out", index, seed)
        claims = [c.claim for r in range(4) for c in labelled(scene, np.random.default_rng([seed, 79, index, r]))][:each]
        said.append(Said((scene.source(),), (), tuple(claims)))
    apart = [replace(s, claims=(claim,)) for s in said for claim in s.claims]
    asking.log_odds(said[:2])
    found = {}
    for name, some in (("shared_claims_per_s", said), ("apart_claims_per_s", apart)):
        asking.log_odds(some[:2])
        began = time.process_time()
        asking.log_odds(some)
        found[name] = len(apart) / (time.process_time() - began)
    return found | {"speedup": found["shared_claims_per_s"] / found["apart_claims_per_s"]}


def studied(out: Path, count: int, seed: int) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        vlm = load(str(folder("data") / "scenes_base"))
        asking = Asking(Role(Adapters(vlm), None), words(), AS_IT_SAYS)
        certainty = fitted((r["kind"], r["x"], r["true"]) for r in rows(asking, "selection", count, seed))
        return {"by_kind": described(rows(asking, "held_out", count, seed), certainty), **rate(asking, seed)}

    return cell(out, f"asking-{seed}", work)


def main() -> None:
    given = arguments(__doc__, scenes={"type": int, "default": 400, "help": "scenes that calibrate, and as many held-out ones"})
    torch.set_num_threads(1)
    found = [studied(given.out, given.scenes, seed) for seed in range(given.seeds)]
    table = []
    for kind in KINDS:
        mine = [f["by_kind"][kind] for f in found if kind in f["by_kind"]]
        ece = [shown(m[k] for m in mine if k in m) for k in ("ece_as_said", "ece_calibrated")]
        table.append((kind, shown(m["auroc"] for m in mine), shown((m["right"] for m in mine if "right" in m), True), *ece))
    print(markdown(("claims", "AUROC", "accuracy, %", "ECE as said", "ECE calibrated"), table) + "\n")
    print(
        f"shared prompt: {shown(f['speedup'] for f in found)} times the claims a second of a prompt for each, 8 claims a picture\n"
    )
    print(json.dumps({"study": "asking", "seeds": given.seeds, "cells": found}))


if __name__ == "__main__":
    main()
