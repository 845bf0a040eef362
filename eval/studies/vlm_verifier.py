"""How well does a VLM verify claims by yes/no questions, and how much faster is a shared prompt?

    python eval/studies/vlm_verifier.py --out runs/asking [--seeds 3] [--scenes 400]

The demo's tiny VLM is asked about hard true and false claims on held-out scenes
(labelled_claims.py). Reports, by kind of claim, AUROC, the accuracy of yes and no, and the expected
calibration error of its probabilities, raw and after calibration on other scenes. Speed is claims
per second of CPU time with one prompt for all eight claims about an image, compared with one prompt
per claim.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from clip_verifier import metrics_by_kind
from common import cached_result, claim_arguments, format_mean, markdown_table, parse_args, run_parallel
from labelled_claims import load_scene_lexicon, sample_claims, sample_labelled_claims
from scipy.special import expit

from mmrlhf import scenes
from mmrlhf.files.bundled import folder
from mmrlhf.metrics.calibration import expected_calibration_error, reliability_bins
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.records import InputError
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import PlattScaling
from mmrlhf.verifiers.vlm import UNCALIBRATED, VLMVerifier


def score_claims(verifier: VLMVerifier, split: scenes.Split, num_scenes: int, seed: int) -> list[dict[str, Any]]:
    """Return labelled claims about a split's scenes, with the model's log-odds as `x`."""
    answer_claims, labelled_claims = [], []
    for index in range(num_scenes):
        scene = scenes.generate_scene(split, index, seed)
        claims = sample_labelled_claims(scene, np.random.default_rng([seed, 73, index]))
        answer_claims.append(AnswerClaims((scene.image_source(),), (), tuple(c.claim for c in claims)))
        labelled_claims += claims
    log_odds = [x for claim_log_odds in verifier.log_odds(answer_claims) for x in claim_log_odds]
    return [{"kind": c.claim.kind, "true": c.is_true, "x": x} for c, x in zip(labelled_claims, log_odds, strict=True)]


def evaluate_calibration(rows: list[dict[str, Any]], platt_scaling: PlattScaling) -> dict[str, Any]:
    """Return AUROC, accuracy and calibration error, raw and calibrated, by kind of claim."""
    for row in rows:
        row["verdict"] = "supported" if row["x"] > 0 else "contradicted"
    metrics = metrics_by_kind(rows, "x")
    for kind, kind_metrics in metrics.items():
        kind_rows = [r for r in rows if r["kind"] == kind]
        labels = np.array([r["true"] for r in kind_rows])
        kind_metrics["ece_uncalibrated"] = expected_calibration_error(
            reliability_bins(expit(np.array([r["x"] for r in kind_rows])), labels)
        )
        if kind in platt_scaling.coefficients:
            probabilities = np.array([platt_scaling.probability(kind, r["x"]) for r in kind_rows])
            kind_metrics["ece_calibrated"] = expected_calibration_error(reliability_bins(probabilities, labels))
    return metrics


def measure_throughput(verifier: VLMVerifier, seed: int, num_images: int = 24, claims_per_image: int = 8) -> dict[str, float]:
    """Return claims per second of CPU time with shared and with separate prompts.

    Image features are cached before either is timed.
    """
    shared_prompts = []
    for index in range(num_images):
        scene = scenes.generate_scene("held_out", index, seed)
        claims = sample_claims(scene, [seed, 79, index], claims_per_image)
        shared_prompts.append(AnswerClaims((scene.image_source(),), (), claims))
    separate_prompts = [replace(s, claims=(claim,)) for s in shared_prompts for claim in s.claims]
    verifier.log_odds(shared_prompts)  # encodes the images
    throughput = {}
    for name, batch in (("shared_claims_per_s", shared_prompts), ("apart_claims_per_s", separate_prompts)):
        start_time = time.process_time()
        verifier.log_odds(batch)
        throughput[name] = len(separate_prompts) / (time.process_time() - start_time)
    return throughput | {"speedup": throughput["shared_claims_per_s"] / throughput["apart_claims_per_s"]}


def run_study(output_dir: Path, num_scenes: int, seed: int) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        vlm = load(str(folder("data") / "tiny_vlm"))
        verifier = VLMVerifier(Role(Adapters(vlm), None), load_scene_lexicon(), UNCALIBRATED)
        platt_scaling = PlattScaling.fit(
            (r["kind"], r["x"], r["true"]) for r in score_claims(verifier, "selection", num_scenes, seed)
        )
        return {
            "by_kind": evaluate_calibration(score_claims(verifier, "held_out", num_scenes, seed), platt_scaling),
            **measure_throughput(verifier, seed),
        }

    return cached_result(output_dir, f"asking-{seed}", compute)


def main() -> None:
    args = parse_args(
        __doc__, scenes={"type": int, "default": 400, "help": "scenes for calibration, and the same number of held-out ones"}
    )
    try:
        claim_arguments(args, name="vlm_settings")
    except InputError as error:
        sys.exit(f"error: {error}")
    results = run_parallel(range(args.seeds), partial(run_study, args.out, args.scenes), args.workers)
    table_rows = []
    for kind in scenes.CLAIM_KINDS:
        kind_metrics = [result["by_kind"][kind] for result in results if kind in result["by_kind"]]
        ece = [format_mean(m[k] for m in kind_metrics if k in m) for k in ("ece_uncalibrated", "ece_calibrated")]
        table_rows.append(
            (
                kind,
                format_mean(m["auroc"] for m in kind_metrics),
                format_mean((m["right"] for m in kind_metrics if "right" in m), True),
                *ece,
            )
        )
    print(markdown_table(("claims", "AUROC", "accuracy, %", "ECE raw", "ECE calibrated"), table_rows) + "\n")
    print(
        f"shared prompt: {format_mean(result['speedup'] for result in results)} times the claims per second "
        "of separate prompts, 8 claims per image\n"
    )
    print(json.dumps({"study": "asking", "seeds": args.seeds, "cells": results}))


if __name__ == "__main__":
    main()
