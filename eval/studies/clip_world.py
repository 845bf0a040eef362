"""How well does an open_clip model judge claims about the rendered world, by kind of claim?

    python eval/studies/clip_world.py --out runs/clip [--seeds 3] [--steps 4000] [--scenes 20000] [--held_out 1000]

A small open_clip model is trained from scratch with open_clip's own loss on pictures and what is true of their scenes in words ("a photo of a red
ring", "a photo of a red ring and a blue star and a moon"), and calibrated on scenes it was not trained on. Measured on held-out scenes against hard
false claims (labelled.py): AUROC by kind, the share it leaves unknown, how often it is right of the rest, and claims a second, pictures encoded in
the time and before. Contrastive models know things and colours; numbers and places are what they are weak at. Each seed's checkpoint,
OUT/clip-SEED, serves `--clip_model`.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from labelled import GROUPS, labelled, words
from open_clip.transform import PreprocessCfg, image_transform_v2
from world import arguments, cell, markdown, shown

from mmrlhf import scenes
from mmrlhf.calibration import auroc
from mmrlhf.claims import Lexicon
from mmrlhf.records import Claim
from mmrlhf.scenes.things import SHAPES
from mmrlhf.verify import Said
from mmrlhf.verify.clip import CALIBRATION, TEMPLATE, Clip, load_clip, save_clip
from mmrlhf.verify.sentences import phrase
from mmrlhf.verify.verifier import KINDS, fitted, save

CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "layers": 3, "width": 192, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
BATCH, RATE, WARM_UP = 128, 1e-3, 100
TOGETHER = 3
"""Most things that one sentence of the training names."""
CALIBRATED = 400
"""Scenes of the selection split that calibrate."""


def sentences(scene: scenes.Scene, rng: np.random.Generator, lexicon: Lexicon) -> list[str]:
    """What is true of a scene: a thing, one and its colour, any claim, and some of the things together."""
    true = [c.claim for c in labelled(scene, rng) if c.true]
    alone = [phrase(c, lexicon) for c in (true[0], true[1], true[int(rng.integers(len(true)))])]
    some = [scene.things[i] for i in rng.permutation(len(scene.things))[:TOGETHER]]
    together = " and ".join(phrase(Claim("attribute", t.shape, t.colour), lexicon) for t in some)
    return [TEMPLATE.format(text) for text in (*alone, together)]


def train(directory: Path, seed: int, steps: int, count: int) -> None:
    """A checkpoint in `directory`, with what its margins are worth."""
    torch.manual_seed(seed)
    rng, lexicon = np.random.default_rng([seed, 61]), words()
    model = open_clip.CLIP(**CONFIG)
    model.visual.preprocess_cfg = vars(PreprocessCfg(size=96, interpolation="bicubic", resize_mode="shortest"))
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["text_cfg"]["context_length"])
    drawn = [scenes.scene("sft", index, seed) for index in range(count)]
    pixels = torch.stack([preprocess(s.image()).half() for s in drawn])
    loss = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, fused=True)
    for step in range(steps):
        for options in optimizer.param_groups:
            options["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (1 + np.cos(np.pi * step / steps)) / 2
        at = rng.choice(count, min(BATCH, count), replace=False)
        said = zip(*(sentences(drawn[i], rng, lexicon) for i in at), strict=True)
        image_BD = model.encode_image(pixels[at].float(), normalize=True)
        scale = model.logit_scale.exp()
        value = torch.stack([loss(image_BD, model.encode_text(tokenizer(list(t)), normalize=True), scale) for t in said]).mean()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        if (step + 1) % 100 == 0:
            print(f"seed {seed}, step {step + 1}: loss {value.item():.3f}", flush=True)
    model.eval()
    aside = directory.with_name(f".{directory.name}")
    save_clip(aside, model, CONFIG)
    kept = {"nouns": list(SHAPES), "groups": GROUPS}
    save(fitted([]), aside / CALIBRATION, **kept)
    rows = measured(load_clip(str(aside), lexicon), "selection", CALIBRATED, seed)
    save(fitted((r["kind"], r["margin"], r["true"]) for r in rows), aside / CALIBRATION, **kept)
    aside.rename(directory)


def measured(clip: Clip, split: scenes.Split, count: int, seed: int) -> list[dict[str, Any]]:
    """Claims on a split's scenes with what the model measures and says of them."""
    found = []
    for index in range(count):
        scene = scenes.scene(split, index, seed)
        claims = labelled(scene, np.random.default_rng([seed, 67, index]))
        said = Said((scene.source(),), (), tuple(c.claim for c in claims))
        (margins,), (verdicts,) = clip.margins([said]), clip([said])
        for label, (margin, _), verdict in zip(claims, margins, verdicts, strict=True):
            row = {"kind": label.claim.kind, "true": label.true, "margin": margin, "verdict": verdict.value}
            found += [row | {"probability": verdict.probability}] if margin is not None else []
    return found


def checkpoint(out: Path, seed: int, steps: int, count: int) -> Path:
    """The seed's checkpoint, trained if it is not there."""
    directory = out / f"clip-{seed}"
    if not directory.exists():
        train(directory, seed, steps, count)
    return directory


def by_kind(rows: list[dict[str, Any]], score: str) -> dict[str, dict[str, float]]:
    """AUROC with its half width, share unknown, and how often a verdict that is given is right."""
    found = {}
    for kind in KINDS:
        mine = [r for r in rows if r["kind"] == kind]
        if not mine:
            continue
        area, low, high = auroc(np.array([r[score] for r in mine]), np.array([r["true"] for r in mine], dtype=bool))
        given = [r for r in mine if r["verdict"] != "unknown"]
        right = [(r["verdict"] == "supported") == r["true"] for r in given]
        found[kind] = {"auroc": area, "auroc_half_width": (high - low) / 2, "n": len(mine), "unknown": 1 - len(given) / len(mine)}
        if right:
            found[kind]["right"] = float(np.mean(right))
    return found


def rate(clip: Clip, seed: int) -> dict[str, float]:
    """Claims a second of the process's own time, eight a picture: pictures and phrases new to the model, and both known."""
    said = []
    for index in range(64):
        scene = scenes.scene("held_out", index, seed)
        claims = [c.claim for r in range(4) for c in labelled(scene, np.random.default_rng([seed, 71, index, r]))][:8]
        said.append(Said((scene.source(),), (), tuple(claims)))
    number, found = sum(len(s.claims) for s in said), {}
    clip._images.clear(), clip._texts.clear()
    for name in ("claims_per_s_new", "claims_per_s_known"):
        began = time.process_time()
        clip(said)
        found[name] = number / (time.process_time() - began)
    return found


def studied(out: Path, steps: int, count: int, held_out: int, seed: int) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        clip = load_clip(str(checkpoint(out, seed, steps, count)), words())
        return {"by_kind": by_kind(measured(clip, "held_out", held_out, seed), "margin"), **rate(clip, seed)}

    return cell(out, f"clip-{seed}", work)


def main() -> None:
    given = arguments(
        __doc__,
        steps={"type": int, "default": 4000},
        scenes={"type": int, "default": 20000},
        held_out={"type": int, "default": 1000},
    )
    with ProcessPoolExecutor(given.workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = list(pool.map(partial(studied, given.out, given.steps, given.scenes, given.held_out), range(given.seeds)))
    rows = []
    for kind in KINDS:
        mine = [f["by_kind"][kind] for f in found if kind in f["by_kind"]]
        rows.append(
            (
                kind,
                shown(m["auroc"] for m in mine),
                shown((m["unknown"] for m in mine), True),
                shown((m["right"] for m in mine if "right" in m), True),
            )
        )
    print(markdown(("claims", "AUROC", "unknown, %", "right of the rest, %"), rows) + "\n")
    print(json.dumps({"study": "clip_world", "seeds": given.seeds, "steps": given.steps, "cells": found}))


if __name__ == "__main__":
    main()
