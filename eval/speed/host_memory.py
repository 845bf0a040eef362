"""Does a process's memory stay flat over many images and many answers?

    python eval/speed/host_memory.py [--images 20000] [--answers 4000] [--budget_gib 0.05]

Encodes that many distinct small images with a cache of `--budget_gib`, and then samples that many
answers, four to a prompt, with the bundled tiny model. After each tenth it notes the memory of the
process, once Python has collected its garbage. The last line is one JSON object: MiB after each
tenth, the bytes in the cache, and the growth in bytes per image and per answer over the second
half, when all buffers have their size.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
from collections.abc import Callable

import numpy as np
import psutil
from PIL import Image

from mmrlhf.config import EngineConfig
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.files.bundled import folder
from mmrlhf.models.loading import load
from mmrlhf.records import Example, ImageSource, Message

TENTHS = 10
BATCH = 100
SIZE = 64
"""Pixels per side."""


def small_image(number: int) -> ImageSource:
    """Return a distinct image, as a file in memory."""
    file = io.BytesIO()
    colour = tuple(number >> shift & 255 for shift in (0, 8, 16))
    Image.fromarray(np.full((SIZE, SIZE, 3), colour, dtype=np.uint8)).save(file, "PNG")
    return ImageSource(data=file.getvalue())


def memory_bytes() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def measure(total: int, work: Callable[[range], object]) -> tuple[list[float], float]:
    """Do the work in batches; return MiB after each tenth, and bytes an item in the second half."""
    measured = []
    for tenth in range(TENTHS):
        for start in range(total * tenth // TENTHS, total * (tenth + 1) // TENTHS, BATCH):
            work(range(start, min(start + BATCH, total * (tenth + 1) // TENTHS)))
        measured.append(memory_bytes())
        print(f"{total * (tenth + 1) // TENTHS:>8}: {measured[-1] / 2**20:.0f} MiB", flush=True)
    growth = (measured[-1] - measured[TENTHS // 2 - 1]) / (total / 2)
    return [round(value / 2**20, 1) for value in measured], round(growth, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--answers", type=int, default=4_000)
    parser.add_argument("--budget_gib", type=float, default=0.05)
    args = parser.parse_args()
    vlm = load(str(folder("data") / "tiny_vlm"), engine=EngineConfig(feature_memory_gib=args.budget_gib))

    def encode(numbers: range) -> None:
        vlm.encoder.get_features([(small_image(number),) for number in numbers])

    def answer(numbers: range) -> None:
        prompts = [
            Example(f"row-{number}", (small_image(args.images + number),), (Message("user", "Describe the picture."),))
            for number in numbers[::4]
        ]
        for _ in generate_batches(vlm, prompts, SamplingParams(32, 1.0), batch_size=len(prompts), num_generations=4):
            pass

    print("images")
    images_mib, bytes_per_image = measure(args.images, encode)
    cache_bytes = {str(tier.device): tier.num_bytes for tier in vlm.encoder.cache.tiers}
    print("answers")
    answers_mib, bytes_per_answer = measure(args.answers, answer)
    results = {
        "images": args.images,
        "images_mib": images_mib,
        "bytes_per_image": bytes_per_image,
        "cache_mib": {device: round(value / 2**20, 1) for device, value in cache_bytes.items()},
        "budget_mib": round(args.budget_gib * 1024, 1),
        "answers": args.answers,
        "answers_mib": answers_mib,
        "bytes_per_answer": bytes_per_answer,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
