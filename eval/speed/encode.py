"""Time encoding images, from files to features: the engine against a loop of processor and tower.

    python eval/speed/encode.py CHECKPOINT [--images 64] [--size 640x480] [--rounds 3]

The loop runs at several batch sizes. All variants encode the same JPEG files in turn, A B C A B C.
`tower_share` is the time of the tower alone, on prepared batches, divided by the engine's total
time: 1 means that decoding and preprocessing cost nothing. `second_epoch` is the speed-up once
features are cached. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _timing import time_call
from PIL import Image

from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.models.vlm import VLM
from mmrlhf.records import ImageSource


def make_photographs(folder: Path, count: int, width: int, height: int) -> list[ImageSource]:
    """Write distinct JPEG files with smooth colours and some noise, like photographs."""
    rng = np.random.default_rng(0)
    sources = []
    for index in range(count):
        small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{index}.jpg"
        Image.fromarray(noisy).save(path, quality=90)
        sources.append(ImageSource(str(path)))
    return sources


@torch.no_grad()
def baseline_loop(vlm: VLM, sources: list[ImageSource], batch: int) -> None:
    """Open, process and encode one batch after another, as a script without the engine does."""
    text, base = vlm.encoder._prompt_texts[1], vlm.model.base_model
    names = vlm.encoder._tower_input_names()
    for start in range(0, len(sources), batch):
        images = [open_image(source) for source in sources[start : start + batch]]
        inputs, _ = vlm.encoder.process([text] * len(images), [[image] for image in images])
        tensors = {name: inputs[name].to(vlm.device) for name in names if name in inputs}
        tensors["pixel_values"] = tensors["pixel_values"].to(vlm.encoder.dtype)
        base.get_image_features(**tensors, return_dict=True)


def clear_feature_cache(vlm: VLM) -> None:
    """Remove all features from the cache."""
    for tier in vlm.encoder.cache.tiers:
        tier.entries.clear()
        tier.num_bytes = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", default="640x480", help="width and height of the images in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    vlm = load(args.checkpoint, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        sources = make_photographs(Path(folder), args.images, width, height)
        baseline_loop(vlm, sources[:4], 2)  # warm-up
        prepared = [vlm.encoder._preprocess(vlm.encoder.feature_key(source, 1), (source, 1)) for source in sources]
        tower_batch_size = 16 if vlm.device.type == "cuda" else 4
        batches = [prepared[start : start + tower_batch_size] for start in range(0, len(prepared), tower_batch_size)]

        def engine() -> None:
            vlm.encoder.get_features([(source,) for source in sources])

        variants: dict[str, Callable[[], object]] = {
            "engine": engine,
            "second epoch": engine,
            "tower": lambda: [vlm.encoder.run_tower(tower_batch) for tower_batch in batches],
        }
        loop_batch_sizes = (1, 2, 4, 8, 16)
        variants |= {f"loop of {size}": partial(baseline_loop, vlm, sources, size) for size in loop_batch_sizes}
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(args.rounds):
            clear_feature_cache(vlm)
            for name, work in variants.items():
                times[name].append(time_call(work)[0])
    seconds = {name: statistics.median(round_seconds) for name, round_seconds in times.items()}
    best = min((f"loop of {size}" for size in loop_batch_sizes), key=seconds.__getitem__)
    for name, round_seconds in times.items():
        print(f"{name:<14}" + "".join(f"{args.images / value:10.1f}" for value in round_seconds) + "  images/s")
    results = {
        "images_per_s": round(args.images / seconds["engine"], 2),
        "over_batch_1": round(seconds["loop of 1"] / seconds["engine"], 3),
        "over_best": round(seconds[best] / seconds["engine"], 3),
        "best": best,
        "tower_share": round(seconds["tower"] / seconds["engine"], 3),
        "second_epoch": round(seconds["engine"] / seconds["second epoch"], 1),
        "round_s": {name: [round(value, 4) for value in round_seconds] for name, round_seconds in times.items()},
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
