"""Time several yes/no questions per image: the engine against a loop of processor and generate.

    python eval/speed/pope.py CHECKPOINT [--images 100] [--questions 6] [--tokens 4]
        [--batches 1,8,32] [--rounds 3]

Both answer the same questions about the same JPEG files greedily, with the same tokens suppressed,
in turn, A B C A B C, and must give the same answers. The loop opens, processes and generates one
batch after another, with an image per question; its best batch size counts. The engine starts each
round without cached features. `cpu_s` is the CPU time of the process, which depends less on other
load. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _timing import synchronize
from encode import clear_feature_cache, make_photographs
from transformers import GenerationConfig

from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, ImageSource, Message

OBJECTS = (
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


def make_questions(sources: list[ImageSource], questions_per_image: int) -> list[Example]:
    """Create POPE-style questions about each image."""
    examples = []
    for index, source in enumerate(sources):
        for question in range(questions_per_image):
            name = OBJECTS[(index + question) % len(OBJECTS)]
            prompt = (Message("user", f"Is there a {name} in the image?"),)
            examples.append(Example(f"{index}-{question}", (source,), prompt))
    return examples


@torch.no_grad()
def baseline_loop(vlm: VLM, rows: list[Example], tokens: int, batch: int) -> list[str]:
    """Answer one batch after another, as a script without the engine does."""
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, repetition_penalty=1.0, eos_token_id=list(vlm.eos), suppress_tokens=vlm.suppressed_tokens.tolist(),
        pad_token_id=int(vlm.tokenizer.pad_token_id),
    )  # fmt: skip
    answers = []
    for start in range(0, len(rows), batch):
        batch_rows = rows[start : start + batch]
        texts = [vlm.apply_chat_template(row.prompt, 1, generation_prompt=True) for row in batch_rows]
        images = [[open_image(row.images[0])] for row in batch_rows]
        inputs = vlm.processor(text=texts, images=images, return_tensors="pt", padding=True)
        inputs = inputs.to(vlm.device, vlm.model.dtype)
        completions = vlm.model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        answers += [vlm.decode(ids) for ids in completions]
    return answers


def engine_answers(vlm: VLM, rows: list[Example], tokens: int) -> list[str]:
    """Answer with the engine, without cached features."""
    clear_feature_cache(vlm)
    return [texts[0] for _, texts in generate_batches(vlm, rows, SamplingParams(tokens, 0.0), batch_size=96)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    for name, default in (("images", 100), ("questions", 6), ("tokens", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes of the loop")
    parser.add_argument("--size", default="640x480", help="width and height of the images in pixels")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    vlm = load(args.checkpoint, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        rows = make_questions(make_photographs(Path(folder), args.images, width, height), args.questions)
        engine_answers(vlm, rows[: args.questions], args.tokens)  # warm-up, which includes the self-check of prefix sharing
        baseline_loop(vlm, rows[:2], args.tokens, 2)
        variants: dict[str, Callable[[], list[str]]] = {"engine": partial(engine_answers, vlm, rows, args.tokens)}
        for size in args.batches.split(","):
            variants[f"loop of {size}"] = partial(baseline_loop, vlm, rows, args.tokens, int(size))
        wall_seconds: dict[str, list[float]] = {name: [] for name in variants}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in variants}
        answers: dict[str, list[str]] = {}
        for _ in range(args.rounds):
            for name, work in variants.items():
                synchronize()
                start, start_cpu = time.perf_counter(), time.process_time()
                answers[name] = work()
                synchronize()
                wall_seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - start_cpu)
    loop_answers = answers["loop of " + args.batches.split(",")[0]]
    wall = {name: statistics.median(seconds) for name, seconds in wall_seconds.items()}
    cpu = {name: statistics.median(seconds) for name, seconds in cpu_seconds.items()}
    best_wall = min(seconds for name, seconds in wall.items() if name != "engine")
    best_cpu = min(seconds for name, seconds in cpu.items() if name != "engine")
    for name in variants:
        rate, cpu_rate = len(rows) / wall[name], len(rows) / cpu[name]
        print(f"{name:<12}{rate:10.2f} questions/s{cpu_rate:10.2f} per second of CPU time")
    results = {
        "questions_per_s": round(len(rows) / wall["engine"], 2),
        "over_best": round(best_wall / wall["engine"], 2),
        "over_best_cpu": round(best_cpu / cpu["engine"], 2),
        "questions": len(rows),
        "same_answers": sum(ours == theirs for ours, theirs in zip(answers["engine"], loop_answers, strict=True)),
        "shared": vlm.engine.share_prefix_across_prompts == "on",
        "wall_s": {name: [round(value, 3) for value in seconds] for name, seconds in wall_seconds.items()},
        "cpu_s": {name: [round(value, 3) for value in seconds] for name, seconds in cpu_seconds.items()},
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
