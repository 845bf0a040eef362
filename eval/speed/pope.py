"""Questions a second on pictures that are each asked about several times: the engine against a plain loop of processor and generate.

    python eval/speed/pope.py CHECKPOINT [--images 100] [--questions 6] [--tokens 4] [--batches 1,8,32] [--rounds 3]

Both answer the same yes/no questions on the same JPEG files, greedily, with the same tokens banned, in turn, A B C A B C, and must say the same.
The plain loop opens, processes and generates batch after batch, with every question its picture; of its batch sizes the best counts. The engine
starts without features each time. `cpu_s` is the process's own time, which a busy machine changes less. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from encode import fresh, photographs, synchronize
from transformers import GenerationConfig

from mmrlhf.images import open_image
from mmrlhf.loading import load
from mmrlhf.records import Example, ImageSource, Message
from mmrlhf.rollout import answer_all
from mmrlhf.sampling import Sampling
from mmrlhf.vlm import VLM

THINGS = (
    "dog",
    "traffic light",
    "person",
    "bicycle",
    "wine glass",
    "car",
    "bird",
    "chair",
    "umbrella",
    "book",
    "clock",
    "vase",
    "kite",
    "bus",
)


def questions(sources: list[ImageSource], each: int) -> list[Example]:
    """So many questions about each picture, as POPE asks them."""
    return [
        Example(
            f"{i}-{k}", (source,),
            (Message("user", f"Is there a {THINGS[(i + k) % len(THINGS)]} in the image?"),),
        )
        for i, source in enumerate(sources) for k in range(each)
    ]  # fmt: skip


@torch.no_grad()
def plain_loop(vlm: VLM, rows: list[Example], tokens: int, batch: int) -> list[str]:
    """What a script does that has no engine."""
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, repetition_penalty=1.0, eos_token_id=list(vlm.eos), suppress_tokens=vlm.banned.tolist(),
        pad_token_id=int(vlm.tokenizer.pad_token_id),
    )  # fmt: skip
    said = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        texts = [vlm.render(e.prompt, 1, generation_prompt=True) for e in part]
        inputs = vlm.processor(text=texts, images=[[open_image(e.images[0])] for e in part], return_tensors="pt", padding=True)
        inputs = inputs.to(vlm.device, vlm.model.dtype)
        out = vlm.model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        said += [vlm.decode(ids) for ids in out]
    return said


def engine(vlm: VLM, rows: list[Example], tokens: int) -> list[str]:
    fresh(vlm)
    return [texts[0] for _, texts in answer_all(vlm, rows, Sampling(tokens, 0.0), batch_size=96)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    for name, default in (("images", 100), ("questions", 6), ("tokens", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes of the plain loop")
    parser.add_argument("--size", default="640x480", help="pixels of the files")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    vlm = load(given.checkpoint, given.dtype)
    with tempfile.TemporaryDirectory() as folder:
        rows = questions(photographs(Path(folder), given.images, width, height), given.questions)
        engine(vlm, rows[: given.questions], given.tokens)  # warm-up, and the check that decides how prompts are run
        plain_loop(vlm, rows[:2], given.tokens, 2)
        ways: dict[str, Callable[[], list[str]]] = {"engine": lambda: engine(vlm, rows, given.tokens)}
        ways |= {f"loop of {b}": (lambda b=int(b): plain_loop(vlm, rows, given.tokens, b)) for b in given.batches.split(",")}
        wall: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        said: dict[str, list[str]] = {}
        for _ in range(given.rounds):
            for name, work in ways.items():
                synchronize()
                began, began_cpu = time.perf_counter(), time.process_time()
                said[name] = work()
                synchronize()
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - began_cpu)
    first = said["loop of " + given.batches.split(",")[0]]
    same = sum(a == b for a, b in zip(said["engine"], first, strict=True))
    best = {
        kind: min(statistics.median(v) for k, v in times.items() if k != "engine")
        for kind, times in (("wall", wall), ("cpu", cpu))
    }
    for name in ways:
        rate, spent = len(rows) / statistics.median(wall[name]), len(rows) / statistics.median(cpu[name])
        print(f"{name:<12}{rate:10.2f} questions/s{spent:10.2f} a second of CPU")
    print(json.dumps({
        "questions_per_s": round(len(rows) / statistics.median(wall["engine"]), 2), "over_best": round(best["wall"] / statistics.median(wall["engine"]), 2),
        "over_best_cpu": round(best["cpu"] / statistics.median(cpu["engine"]), 2), "questions": len(rows), "same_answers": same, "shared": vlm.stems,
        "wall_s": {k: [round(s, 3) for s in v] for k, v in wall.items()}, "cpu_s": {k: [round(s, 3) for s in v] for k, v in cpu.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
