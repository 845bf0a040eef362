"""How well does an open_clip model verify claims about synthetic scenes, by kind of claim?

    python eval/studies/clip_verifier.py --out runs/clip [--seeds 3] [--steps 4000] [--scenes 20000]
                                         [--held_out 1000]

A small open_clip model is trained from scratch with open_clip's own loss, on images and true text
about their scenes ("a photo of a red ring", "a photo of a red ring and a blue star and a moon"),
and calibrated on other scenes. It is measured on held-out scenes with hard false claims
(labelled_claims.py): AUROC by kind, share left unknown, accuracy of the rest, and claims per second
with nothing and with everything cached. Contrastive models are good at objects and colours, and
weak at numbers and locations. Each seed's checkpoint, OUT/clip-SEED, can be used as `--clip_model`.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from common import cached_result, claim_arguments, format_mean, markdown_table, parse_args, run_parallel
from labelled_claims import EXCLUSIVE_VALUES, load_scene_lexicon, sample_claims, sample_labelled_claims
from open_clip.transform import PreprocessCfg, image_transform_v2

from mmrlhf import scenes
from mmrlhf.claims import Lexicon
from mmrlhf.metrics.calibration import auroc
from mmrlhf.records import Claim, InputError
from mmrlhf.scenes.vocabulary import SHAPES
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import PlattScaling, save_calibration
from mmrlhf.verifiers.clip import CALIBRATION_FILE, TEMPLATE, ClipVerifier, load_clip, save_clip
from mmrlhf.verifiers.verbalize import claim_phrase

MODEL_CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "layers": 3, "width": 192, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
BATCH_SIZE, LEARNING_RATE, WARMUP_STEPS = 128, 1e-3, 100
MAX_OBJECTS_PER_CAPTION = 3
"""Maximum number of objects that a training caption names."""
NUM_CALIBRATION_SCENES = 400
"""Scenes of the selection split used for calibration."""


def training_captions(scene: scenes.Scene, rng: np.random.Generator, lexicon: Lexicon) -> list[str]:
    """Return true captions: an object, an object with its colour, any claim, several objects."""
    true_claims = [c.claim for c in sample_labelled_claims(scene, rng) if c.is_true]
    # The first two are an object and its colour.
    chosen_claims = (true_claims[0], true_claims[1], true_claims[int(rng.integers(len(true_claims)))])
    single_claims = [claim_phrase(c, lexicon) for c in chosen_claims]
    objects = [scene.objects[i] for i in rng.permutation(len(scene.objects))[:MAX_OBJECTS_PER_CAPTION]]
    joint_caption = " and ".join(claim_phrase(Claim("attribute", o.shape, o.colour), lexicon) for o in objects)
    return [TEMPLATE.format(text) for text in (*single_claims, joint_caption)]


def train_clip(directory: Path, seed: int, num_steps: int, num_scenes: int) -> None:
    """Train and calibrate a model, and write its checkpoint to `directory`."""
    torch.manual_seed(seed)
    rng, lexicon = np.random.default_rng([seed, 61]), load_scene_lexicon()
    model = open_clip.CLIP(**MODEL_CONFIG)
    model.visual.preprocess_cfg = vars(PreprocessCfg(size=96, interpolation="bicubic", resize_mode="shortest"))
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    train_scenes = [scenes.generate_scene("sft", index, seed) for index in range(num_scenes)]
    pixels = torch.stack([preprocess(s.image()).half() for s in train_scenes])
    loss_fn = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05, fused=True)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (1 + np.cos(np.pi * step / num_steps)) / 2
        indices = rng.choice(num_scenes, min(BATCH_SIZE, num_scenes), replace=False)
        caption_batches = zip(*(training_captions(train_scenes[i], rng, lexicon) for i in indices), strict=True)
        image_BD = model.encode_image(pixels[indices].float(), normalize=True)
        logit_scale = model.logit_scale.exp()
        text_batches = (model.encode_text(tokenizer(list(texts)), normalize=True) for texts in caption_batches)
        mean_loss = torch.stack([loss_fn(image_BD, text_BD, logit_scale) for text_BD in text_batches]).mean()
        optimizer.zero_grad()
        mean_loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        if (step + 1) % 100 == 0:
            print(f"seed {seed}, step {step + 1}: loss {mean_loss.item():.3f}", flush=True)
    model.eval()
    temporary_dir = directory.with_name(f".{directory.name}")
    save_clip(temporary_dir, model, MODEL_CONFIG)
    metadata = {"nouns": list(SHAPES), "groups": EXCLUSIVE_VALUES}
    save_calibration(PlattScaling.fit([]), temporary_dir / CALIBRATION_FILE, **metadata)
    rows = score_claims(load_clip(str(temporary_dir), lexicon), "selection", NUM_CALIBRATION_SCENES, seed)
    save_calibration(
        PlattScaling.fit((r["kind"], r["margin"], r["true"]) for r in rows), temporary_dir / CALIBRATION_FILE, **metadata
    )
    temporary_dir.rename(directory)


def score_claims(clip: ClipVerifier, split: scenes.Split, num_scenes: int, seed: int) -> list[dict[str, Any]]:
    """Return the claims about a split's scenes with the model's margins and verdicts."""
    rows = []
    for index in range(num_scenes):
        scene = scenes.generate_scene(split, index, seed)
        claims = sample_labelled_claims(scene, np.random.default_rng([seed, 67, index]))
        answer_claims = AnswerClaims((scene.image_source(),), (), tuple(c.claim for c in claims))
        (margins,), (verdicts,) = clip.margins([answer_claims]), clip([answer_claims])
        for labelled_claim, (margin, _), verdict in zip(claims, margins, verdicts, strict=True):
            row = {"kind": labelled_claim.claim.kind, "true": labelled_claim.is_true, "margin": margin, "verdict": verdict.value}
            if margin is not None:
                rows.append(row | {"probability": verdict.probability})
    return rows


def ensure_checkpoint(output_dir: Path, seed: int, num_steps: int, num_scenes: int) -> Path:
    """Return the seed's checkpoint; train it if it does not exist."""
    directory = output_dir / f"clip-{seed}"
    if not directory.exists():
        train_clip(directory, seed, num_steps, num_scenes)
    return directory


def metrics_by_kind(rows: list[dict[str, Any]], score_key: str) -> dict[str, dict[str, float]]:
    """Return AUROC with half width, share unknown, and accuracy of the rest, by kind of claim."""
    metrics = {}
    for kind in scenes.CLAIM_KINDS:
        kind_rows = [r for r in rows if r["kind"] == kind]
        if not kind_rows:
            continue
        area, low, high = auroc(np.array([r[score_key] for r in kind_rows]), np.array([r["true"] for r in kind_rows], dtype=bool))
        decided_rows = [r for r in kind_rows if r["verdict"] != "unknown"]
        is_correct = [(r["verdict"] == "supported") == r["true"] for r in decided_rows]
        metrics[kind] = {
            "auroc": area,
            "auroc_half_width": (high - low) / 2,
            "n": len(kind_rows),
            "unknown": 1 - len(decided_rows) / len(kind_rows),
        }
        if is_correct:
            metrics[kind]["right"] = float(np.mean(is_correct))
    return metrics


def measure_throughput(clip: ClipVerifier, seed: int) -> dict[str, float]:
    """Return claims per second of CPU time, eight per image, with nothing or everything cached."""
    answer_claims = []
    for index in range(64):
        scene = scenes.generate_scene("held_out", index, seed)
        claims = sample_claims(scene, [seed, 71, index], num_claims=8)
        answer_claims.append(AnswerClaims((scene.image_source(),), (), claims))
    num_claims, throughput = sum(len(s.claims) for s in answer_claims), {}
    clip._image_features.clear()
    clip._text_features.clear()
    for name in ("claims_per_s_new", "claims_per_s_known"):
        start_time = time.process_time()
        clip(answer_claims)
        throughput[name] = num_claims / (time.process_time() - start_time)
    return throughput


def run_study(output_dir: Path, num_steps: int, num_scenes: int, num_held_out: int, seed: int) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        clip = load_clip(str(ensure_checkpoint(output_dir, seed, num_steps, num_scenes)), load_scene_lexicon())
        return {
            "by_kind": metrics_by_kind(score_claims(clip, "held_out", num_held_out, seed), "margin"),
            **measure_throughput(clip, seed),
        }

    return cached_result(output_dir, f"clip-{seed}", compute)


def main() -> None:
    args = parse_args(
        __doc__,
        steps={"type": int, "default": 4000},
        scenes={"type": int, "default": 20000},
        held_out={"type": int, "default": 1000},
    )
    try:
        claim_arguments(args, name="clip_settings")
    except InputError as error:
        sys.exit(f"error: {error}")
    run = partial(run_study, args.out, args.steps, args.scenes, args.held_out)
    results = run_parallel(range(args.seeds), run, args.workers)
    rows = []
    for kind in scenes.CLAIM_KINDS:
        kind_metrics = [result["by_kind"][kind] for result in results if kind in result["by_kind"]]
        rows.append(
            (
                kind,
                format_mean(m["auroc"] for m in kind_metrics),
                format_mean((m["unknown"] for m in kind_metrics), True),
                format_mean((m["right"] for m in kind_metrics if "right" in m), True),
            )
        )
    print(markdown_table(("claims", "AUROC", "unknown, %", "right of the rest, %"), rows) + "\n")
    print(json.dumps({"study": "clip_world", "seeds": args.seeds, "steps": args.steps, "cells": results}))


if __name__ == "__main__":
    main()
