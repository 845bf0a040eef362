"""Time DPO steps of this package and of TRL in turn, with the reference in the loop and without.

    pip install trl peft pillow torchvision        # in an environment of its own, here TRL_ENV
    python eval/speed/dpo_trl.py CHECKPOINT --trl_python TRL_ENV/bin/python
        [--pairs 2] [--tokens 48] [--steps 4] [--turns 3] [--size 336]

Both sides train the same pairs about images of noise, a new one for each pair, with two answers of
`tokens` tokens: float32, LoRA r=16 on q, k, v and o of the language model, sigmoid loss, AdamW. A
side runs in a process of its own, and the first of its `steps` is the warm-up. TRL has no
precomputed log-probs for pictures, so its second variant is given constants in their place, which
costs nothing. Here, the second variant reads the kept log-probs of the reference; it is measured
with images encoded in the step, as TRL does, and with features that the reference's pass has left
in the cache. The limit is what the counts of tokens and of images allow at TRL's time per token.
Ratios are given of seconds and of the processes' CPU seconds, which other work on the machine
changes less. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

VARIANTS = ("trl, reference in the loop", "ours, reference in the loop", "trl, kept", "ours, kept", "ours, kept, images cached")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
BETA, LEARNING_RATE = 0.1, 1e-5


def make_rows(checkpoint: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Create pairs about images of noise; each answer has `tokens` tokens and an end of its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rng = np.random.default_rng(0)
    words = ["red", "blue", "circle", "square", "left", "right", "top", "a", "the", "is", "and", "small"]

    def answer() -> str:
        text = "A"
        while len(tokenizer(text, add_special_tokens=False).input_ids) < args.tokens - 1:
            text += f" {rng.choice(words)}"
        return text

    rows = []
    for _ in range(args.pairs * args.steps):
        pixels = rng.integers(0, 255, (args.size, args.size, 3), dtype=np.uint8)
        rows.append({"image": Image.fromarray(pixels), "chosen": answer(), "rejected": answer()})
    return rows


# ---- the two sides -------------------------------------------------------------------------------


def clocks() -> tuple[float, float]:
    """Return the time and the CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def run_trl(args: argparse.Namespace) -> list[tuple[float, float]]:
    """Return the clocks after each of TRL's steps."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    ticks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ticks.append(clocks())

    rows = [
        {
            "images": [row["image"]],
            "prompt": [{"role": "user", "content": "Describe the image."}],
            **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")},
        }
        for row in make_rows(args.checkpoint, args)
    ]
    trainer = DPOTrainer(
        args.checkpoint,
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=args.pairs, max_steps=args.steps, beta=BETA,
            learning_rate=LEARNING_RATE, logging_steps=1, report_to=[], save_strategy="no", bf16=False, use_cpu=True,
            gradient_checkpointing=False, max_length=None, model_init_kwargs={"dtype": torch.float32},
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", target_modules=rf".*language_model.*\.({'|'.join(LORA_TARGETS)})"),
        callbacks=[Clock()],
    )  # fmt: skip
    if "kept" in args.variant:
        collate = trainer.data_collator

        def collate_with_logps(examples: list[Any]) -> dict[str, Any]:
            zeros = torch.zeros(len(examples))
            return {**collate(examples), "ref_chosen_logps": zeros, "ref_rejected_logps": zeros}

        trainer.data_collator, trainer.precompute_ref_logps = collate_with_logps, True
    trainer.train()
    return ticks


def run_ours(args: argparse.Namespace) -> list[tuple[float, float]]:
    """Return the clocks after each of our steps, as it is logged."""
    from mmrlhf.config import DPOConfig
    from mmrlhf.dpo import dpo
    from mmrlhf.records import ImageSource, Message, Preference
    from mmrlhf.training.run import Run

    preferences, ticks = [], []
    for index, row in enumerate(make_rows(args.checkpoint, args)):
        file = io.BytesIO()
        row["image"].save(file, "PNG")
        prompt = (Message("user", "Describe the image."),)
        images = (ImageSource(data=file.getvalue()),)
        preferences.append(Preference.from_pair(f"row-{index}", images, prompt, row["chosen"], row["rejected"]))
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            model_name_or_path=args.checkpoint, dataset_name="noise", output_dir=f"{folder}/run", max_length=8192,
            per_device_train_batch_size=args.pairs, max_steps=args.steps, beta=BETA, learning_rate=LEARNING_RATE,
            lora_r=16, lora_alpha=32.0, lora_target_modules=",".join(LORA_TARGETS), save_steps=10**6, num_sample_generations=0,
            precompute_ref_log_probs="kept" in args.variant, feature_memory_gib=2.0 if "cached" in args.variant else 1e-6,
        )  # fmt: skip
        with mock.patch.object(Run, "log", lambda *_, **__: ticks.append(clocks())):
            dpo(config, preferences)
    return ticks


def measure_variant(args: argparse.Namespace) -> None:
    """Run one variant and print its seconds and its peak memory as the last line."""
    ticks = (run_trl if args.variant.startswith("trl") else run_ours)(args)
    steps = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(ticks)]
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds, cpu_seconds = ([round(value, 3) for value in values] for values in zip(*steps, strict=True))
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gib": round(peak_gib, 2)}))


# ---- in turn -------------------------------------------------------------------------------------


def prompt_length(checkpoint: str, size: int) -> int:
    """Return the tokens of the prompt with its image, as the processor writes them."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return int(processor(text=[text], images=[[Image.new("RGB", (size, size))]], return_tensors="pt")["input_ids"].shape[1])


def limits(seconds: dict[str, float], prompt: int, tokens: int, pairs: int) -> dict[str, float]:
    """Return how many times as fast as TRL the counts of tokens and images let a step be.

    A token costs what it costs TRL; a backward pass counts as two forward passes.
    """
    image_s = max(0.0, (seconds["ours, kept"] - seconds["ours, kept, images cached"]) / pairs)
    bounds = {}
    for name, passes, trl_images in (("reference in the loop", 4, 4), ("kept", 3, 2)):
        trl = seconds[f"trl, {name}"] / pairs
        token_s = (trl - trl_images * image_s) / (passes * 2 * (prompt + tokens))
        ours = passes * (prompt + 2 * tokens) * token_s
        bounds[name] = trl / (ours + image_s)
        if name == "kept":
            bounds["kept, images cached"] = trl / ours
    return bounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--trl_python", default=sys.executable, help="Python of an environment with TRL")
    for name, default in (("pairs", 2), ("tokens", 48), ("steps", 4), ("turns", 3), ("size", 336)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--variant", choices=VARIANTS, help="run this one only, in this process")
    args = parser.parse_args()
    if args.variant:
        measure_variant(args)
        return
    sizes = [word for name in ("pairs", "tokens", "steps", "size") for word in (f"--{name}", str(getattr(args, name)))]
    results: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for turn in range(args.turns):
        for variant in VARIANTS:
            python = args.trl_python if variant.startswith("trl") else sys.executable
            command = [python, str(Path(__file__).resolve()), args.checkpoint, "--variant", variant, *sizes]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[variant].append(json.loads(process.stdout.splitlines()[-1]))
            print(f"turn {turn + 1}  {variant:<28} {results[variant][-1]}", flush=True)
    prompt = prompt_length(args.checkpoint, args.size)
    summary: dict[str, Any] = {
        "peak_gib": {variant: max(turn["peak_gib"] for turn in turns) for variant, turns in results.items()}
    }
    for clock in ("seconds", "cpu_seconds"):
        medians = {variant: statistics.median(s for turn in turns for s in turn[clock]) for variant, turns in results.items()}
        bounds = limits(medians, prompt, args.tokens, args.pairs)
        ratios = {
            "reference in the loop": medians["trl, reference in the loop"] / medians["ours, reference in the loop"],
            "kept": medians["trl, kept"] / medians["ours, kept"],
            "kept, images cached": medians["trl, kept"] / medians["ours, kept, images cached"],
        }
        for name, ratio in ratios.items():
            print(f"{clock:<12} {name:<24} {ratio:5.2f} times as fast as TRL; the counts allow {bounds[name]:.2f}")
        summary[clock] = {"step": medians, "times_trl": ratios, "limit": bounds}
    print(json.dumps({"prompt": prompt, "tokens": args.tokens, **summary, "turns": results}))


if __name__ == "__main__":
    main()
