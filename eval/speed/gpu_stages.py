"""Train sft, reward, dpo and ppo on the CPU and on the GPU, and compare their metrics.

    python eval/speed/gpu_stages.py --out runs/gpu_stages [--devices cpu gpu bfloat16 nf4 nccl]

`cpu` and `gpu` train in float32, and the losses of their first steps must agree; `bfloat16` and
`nf4` are the other precisions on the GPU, and `nccl` is bfloat16 under torchrun, in a group of one
process. All train the bundled tiny model on synthetic scenes at the same time, a few steps of each
stage. Prints each stage's exit status (with the end of its log if it failed) and its metrics by
step, and exits with 1 if a stage failed or the first losses differ.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from mmrlhf.files.bundled import folder
from mmrlhf.files.jsonl import read_jsonl

TINY_VLM = str(folder("data") / "tiny_vlm")
STAGES = ("sft", "reward", "dpo", "ppo")
FIRST_METRIC = {"sft": "loss", "reward": "loss", "dpo": "grad_norm", "ppo": "objective/scores"}
"""What is compared after a stage's first step, where the loss of DPO is always log 2."""
SHOWN = (
    "loss", "grad_norm", "rewards/margins", "objective/scores", "objective/kl", "objective/entropy", "val/ratio_first",
    "loss/policy_avg", "loss/value_avg", "memory/peak_gib", "memory/planned_gib",
)  # fmt: skip
TOLERANCE = 1e-3
"""Largest relative difference of the first step's metric in float32."""
TIME_LIMIT_S = 60.0
"""Of a stage, which takes seconds."""
CPU_ONLY = {"CUDA_VISIBLE_DEVICES": ""}
PYTHON = (sys.executable, "-m", "mmrlhf")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m", "mmrlhf")


@dataclass(frozen=True)
class Device:
    """Where and in which precision the stages run."""

    dtype: str = "float32"
    environment: Mapping[str, str] | None = None
    launcher: Sequence[str] = PYTHON


DEVICES = {
    "cpu": Device(environment=CPU_ONLY),
    "gpu": Device(),
    "bfloat16": Device("bfloat16"),
    "nf4": Device("nf4"),
    "nccl": Device("bfloat16", launcher=TORCHRUN),
}


def run(command: Sequence[str], log: Path, environment: Mapping[str, str] | None) -> bool:
    """Run a command, print how it ended, and return whether it succeeded."""
    start = time.monotonic()
    try:
        with log.open("w") as file:
            env = {"OMP_NUM_THREADS": "1", **os.environ, "NO_COLOR": "1", **(environment or {})}
            status = subprocess.run(command, env=env, stdout=file, stderr=file, timeout=TIME_LIMIT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        status = -1
    print(f"{log.stem}: exit status {status} after {time.monotonic() - start:.0f} s", flush=True)
    if status:
        print("\n".join(log.read_text(errors="replace").splitlines()[-25:]), flush=True)
    return status == 0


def train(name: str, device: Device, out: Path) -> bool:
    """Run the four stages on the tiny model, and return whether all succeeded."""
    data, run_dir = out / "data", out / name
    all_succeeded = True
    own_settings = {
        # Four-bit weights cannot be trained themselves.
        "sft": ("--dataset_name", data / "sft.jsonl", *(("--tuning", "lora") if device.dtype == "nf4" else ())),
        "reward": ("--dataset_name", data / "pairs.jsonl"),
        "dpo": ("--dataset_name", data / "pairs.jsonl", "--num_train_epochs", 1),
        "ppo": ("--dataset_name", data / "prompts.jsonl", "--reward_model_path", run_dir / "reward", "--max_steps", 4),
    }
    for stage in STAGES:
        settings = {
            "--config": f"demo/{stage}",
            "--model_name_or_path": TINY_VLM,
            "--output_dir": run_dir / stage,
            "--per_device_train_batch_size": 8 if stage == "ppo" else 16,
            "--logging_steps": 1,
            "--dtype": device.dtype,
        }
        words = [word for setting in settings.items() for word in setting]
        command = [*device.launcher, stage, *map(str, words), *map(str, own_settings[stage])]
        all_succeeded &= run(command, out / f"{name}-{stage}.log", device.environment)
    return all_succeeded


def read_metrics(out: Path, name: str, stage: str) -> dict[str, list[float]]:
    """Return the values of each shown metric by step; {} for a stage that logged nothing."""
    path = out / name / stage / "metrics.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    series = {metric: [float(row[metric]) for row in rows if metric in row] for metric in SHOWN}
    return {metric: values for metric, values in series.items() if values}


def differences(metrics: Mapping[tuple[str, str], Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """Yield a sentence for each stage whose first step on the GPU is not the CPU's.

    `metrics` has series of values by device and stage.
    """
    for stage in STAGES:
        cpu, gpu = (metrics.get((name, stage), {}).get(FIRST_METRIC[stage], ()) for name in ("cpu", "gpu"))
        if not cpu or not gpu:
            yield f"{stage}: {FIRST_METRIC[stage]} of the first step is missing"
        elif not abs(gpu[0] - cpu[0]) <= TOLERANCE * abs(cpu[0]):  # also if it is not a number
            yield f"{stage}: {FIRST_METRIC[stage]} of the first step is {cpu[0]:.6g} on the CPU and {gpu[0]:.6g} on the GPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--rows", type=int, default=112, help="scenes of each kind of data")
    args = parser.parse_args()
    if set(args.devices) != {"cpu"} and not torch.cuda.is_available():
        sys.exit("there is no GPU, or torch was not built for it: give --devices cpu")
    for name in ("data", *args.devices):  # a finished stage would not run again
        shutil.rmtree(args.out / name, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    scenes = ["data", "scenes", "--output_dir", str(args.out / "data"), "--rows", str(args.rows), "--seed", "5"]
    if not run([*PYTHON, *scenes], args.out / "scenes.log", CPU_ONLY):
        sys.exit(1)
    with ThreadPoolExecutor(len(args.devices)) as pool:
        succeeded = list(pool.map(lambda name: train(name, DEVICES[name], args.out), args.devices))

    metrics = {(name, stage): read_metrics(args.out, name, stage) for stage in STAGES for name in args.devices}
    for (name, stage), series in metrics.items():
        for metric, values in series.items():
            print(f"{stage:7} {name:9} {metric:20}", " ".join(f"{value:.5g}" for value in values[:7]))
    failed = list(differences(metrics)) if {"cpu", "gpu"} <= set(args.devices) else []
    print(json.dumps({"succeeded": dict(zip(args.devices, succeeded, strict=True)), "differ": failed}))
    if failed or not all(succeeded):
        sys.exit(1)


if __name__ == "__main__":
    main()
