"""Pictures a second from file to features: the engine against a plain loop of processor and tower, at batch 1 and at its best batch.

    python eval/speed/encode.py CHECKPOINT [--images 64] [--size 640x480] [--rounds 3]

All ways encode the same JPEG files in turn, A B C A B C. `tower_share` is the tower's own time on ready batches over the engine's whole
time: 1 means that decoding and preprocessing cost nothing. `second_epoch` is how much faster pictures come when they are known. Last line:
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.models.vlm import VLM
from mmrlhf.records import ImageSource


def make_photographs(folder: Path, count: int, width: int, height: int) -> list[ImageSource]:
    """JPEG files that are no two alike: smooth colours under some noise, as a photograph's."""
    rng = np.random.default_rng(0)
    sources = []
    for i in range(count):
        small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{i}.jpg"
        Image.fromarray(noisy).save(path, quality=90)
        sources.append(ImageSource(str(path)))
    return sources


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_call(work: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def baseline_loop(vlm: VLM, sources: list[ImageSource], batch: int) -> None:
    """What a script does that has no engine: open, process, encode, batch after batch."""
    text, base = vlm.encoder._prompt_texts[1], vlm.model.base_model
    names = vlm.encoder._tower_input_names()
    for start in range(0, len(sources), batch):
        images = [open_image(s) for s in sources[start : start + batch]]
        inputs, _ = vlm.encoder.process([text] * len(images), [[p] for p in images])
        tensors = {k: inputs[k].to(vlm.device) for k in names if k in inputs}
        tensors["pixel_values"] = tensors["pixel_values"].to(vlm.encoder.dtype)
        base.get_image_features(**tensors, return_dict=True)


def clear_feature_cache(vlm: VLM) -> None:
    """Forget every picture."""
    for tier in vlm.encoder.cache.tiers:
        tier.entries.clear()
        tier.num_bytes = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", default="640x480", help="pixels of the files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    vlm = load(args.checkpoint, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        sources = make_photographs(Path(folder), args.images, width, height)
        baseline_loop(vlm, sources[:4], 2)  # warm-up
        prepared = [vlm.encoder._preprocess(vlm.encoder._key(s, 1), (s, 1)) for s in sources]
        size = 16 if vlm.device.type == "cuda" else 4
        batches = [prepared[i : i + size] for i in range(0, len(prepared), size)]
        loop_batch_sizes = (1, 2, 4, 8, 16)
        times: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            clear_feature_cache(vlm)
            variants: dict[str, Callable[[], object]] = {"engine": lambda: vlm.encoder.get_features([(s,) for s in sources])}
            variants |= {"second epoch": variants["engine"], "tower": lambda: [vlm.encoder._run_tower(b) for b in batches]}
            variants |= {f"loop of {b}": (lambda b=b: baseline_loop(vlm, sources, b)) for b in loop_batch_sizes}
            for name, work in variants.items():
                times.setdefault(name, []).append(time_call(work))
    median_seconds = {name: statistics.median(run_seconds) for name, run_seconds in times.items()}
    best = min((f"loop of {b}" for b in loop_batch_sizes), key=median_seconds.__getitem__)
    for name, run_seconds in times.items():
        print(f"{name:<14}" + "".join(f"{args.images / s:10.1f}" for s in run_seconds) + "  images/s")
    print(json.dumps({
        "images_per_s": round(args.images / median_seconds["engine"], 2), "over_batch_1": round(median_seconds["loop of 1"] / median_seconds["engine"], 3),
        "over_best": round(median_seconds[best] / median_seconds["engine"], 3), "best": best, "tower_share": round(median_seconds["tower"] / median_seconds["engine"], 3),
        "second_epoch": round(median_seconds["engine"] / median_seconds["second epoch"], 1), "round_s": {k: [round(s, 4) for s in v] for k, v in times.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
