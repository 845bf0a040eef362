"""Time steps of sft with adapters in the language model, and in projector and tower as well.

    python eval/speed/vision_adapters.py CHECKPOINT [--rows 8] [--batch 4] [--epochs 4] [--turns 3]

Each row has an image of noise, 336 x 336, and an answer of 48 words. Trains in fp32, LoRA r=16 on
q, k, v and o of the language model, and on what else is named. In the first epoch, the frozen
tower encodes each image; later ones have its features in memory. The lines are JSON: medians over
steps, without the first one, of seconds and of the process's CPU seconds, which other processes on
the machine change less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import tempfile
import time
from dataclasses import replace

from rl_step import LORA, noise_examples

from mmrlhf.config import SFTConfig
from mmrlhf.models.vlm import VLM
from mmrlhf.sft import sft

TARGETS = ("", "projector", "projector,vision_tower")


def measure_steps(checkpoint: str, targets: str, rows: int, batch: int, epochs: int) -> list[tuple[float, float]]:
    """Return the seconds and CPU seconds of each step except the first."""
    ticks: list[tuple[float, float]] = []

    def tick(_: VLM) -> dict[str, float]:
        ticks.append((time.perf_counter(), time.process_time()))
        return {}

    examples = [replace(example, answer="a red circle " * 16) for example in noise_examples(rows, 336)]
    lora = LORA | {"lora_target_modules": ",".join(filter(None, (LORA["lora_target_modules"], targets)))}  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            model_name_or_path=checkpoint, dataset_name="noise", output_dir=f"{folder}/run", per_device_train_batch_size=batch,
            num_train_epochs=epochs, save_steps=10**6, eval_steps=1, num_sample_generations=0, **lora,
        )  # fmt: skip
        sft(config, examples, tick)
    return [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(ticks)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    for name, default in (("rows", 8), ("batch", 4), ("epochs", 4), ("turns", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = vars(parser.parse_args())
    turns = args.pop("turns")
    for turn, targets in itertools.product(range(turns), TARGETS):
        steps = measure_steps(targets=targets, **args)
        first_epoch = args["rows"] // args["batch"] - 1
        result: dict[str, int | float | str] = {"turn": turn, "also": targets}
        for name, part in (("first_epoch", steps[:first_epoch]), ("later", steps[first_epoch:])):
            if not part:  # the one step of the first epoch is the warm-up
                continue
            seconds, cpu_seconds = (round(statistics.median(column), 2) for column in zip(*part, strict=True))
            result |= {f"{name}_s": seconds, f"{name}_cpu_s": cpu_seconds}
        result["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
