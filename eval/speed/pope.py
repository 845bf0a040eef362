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
from encode import clear_feature_cache, make_photographs, synchronize
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
    """So many questions about each picture, as POPE asks them."""
    return [
        Example(
            f"{i}-{k}", (source,),
            (Message("user", f"Is there a {OBJECTS[(i + k) % len(OBJECTS)]} in the image?"),),
        )
        for i, source in enumerate(sources) for k in range(questions_per_image)
    ]  # fmt: skip


@torch.no_grad()
def baseline_loop(vlm: VLM, rows: list[Example], tokens: int, batch: int) -> list[str]:
    """What a script does that has no engine."""
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, repetition_penalty=1.0, eos_token_id=list(vlm.eos), suppress_tokens=vlm.suppressed_tokens.tolist(),
        pad_token_id=int(vlm.tokenizer.pad_token_id),
    )  # fmt: skip
    answers = []
    for start in range(0, len(rows), batch):
        batch_rows = rows[start : start + batch]
        texts = [vlm.apply_chat_template(e.prompt, 1, generation_prompt=True) for e in batch_rows]
        inputs = vlm.processor(
            text=texts, images=[[open_image(e.images[0])] for e in batch_rows], return_tensors="pt", padding=True
        )
        inputs = inputs.to(vlm.device, vlm.model.dtype)
        completions = vlm.model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        answers += [vlm.decode(ids) for ids in completions]
    return answers


def engine_answers(vlm: VLM, rows: list[Example], tokens: int) -> list[str]:
    clear_feature_cache(vlm)
    return [texts[0] for _, texts in generate_batches(vlm, rows, SamplingParams(tokens, 0.0), batch_size=96)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    for name, default in (("images", 100), ("questions", 6), ("tokens", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes of the plain loop")
    parser.add_argument("--size", default="640x480", help="pixels of the files")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    vlm = load(args.checkpoint, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        rows = make_questions(make_photographs(Path(folder), args.images, width, height), args.questions)
        engine_answers(vlm, rows[: args.questions], args.tokens)  # warm-up, and the check that decides how prompts are run
        baseline_loop(vlm, rows[:2], args.tokens, 2)
        variants: dict[str, Callable[[], list[str]]] = {"engine": lambda: engine_answers(vlm, rows, args.tokens)}
        variants |= {f"loop of {b}": (lambda b=int(b): baseline_loop(vlm, rows, args.tokens, b)) for b in args.batches.split(",")}
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
    baseline_answers = answers["loop of " + args.batches.split(",")[0]]
    num_same = sum(a == b for a, b in zip(answers["engine"], baseline_answers, strict=True))
    best = {
        clock: min(statistics.median(v) for k, v in times.items() if k != "engine")
        for clock, times in (("wall", wall_seconds), ("cpu", cpu_seconds))
    }
    for name in variants:
        rate, cpu_rate = len(rows) / statistics.median(wall_seconds[name]), len(rows) / statistics.median(cpu_seconds[name])
        print(f"{name:<12}{rate:10.2f} questions/s{cpu_rate:10.2f} a second of CPU")
    print(json.dumps({
        "questions_per_s": round(len(rows) / statistics.median(wall_seconds["engine"]), 2), "over_best": round(best["wall"] / statistics.median(wall_seconds["engine"]), 2),
        "over_best_cpu": round(best["cpu"] / statistics.median(cpu_seconds["engine"]), 2), "questions": len(rows), "same_answers": num_same, "shared": vlm.engine.share_prefix_across_prompts,
        "wall_s": {k: [round(s, 3) for s in v] for k, v in wall_seconds.items()}, "cpu_s": {k: [round(s, 3) for s in v] for k, v in cpu_seconds.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
