"""Kill training at random moments with `kill -9`, resume it, and compare with a run left alone.

    python eval/studies/crash.py --kills 20 --out runs/crash

For each stage, one run is left alone, and each of the others is killed once: while it samples,
updates, saves, logs, or writes its result, at a random moment of a random one of these. The same
command then resumes it. It is identical if its weights, and the best ones, have the same bits, and
metrics, ledger, warnings, samples and evaluations the same rows, each step once. Only clocks and
the counts of images that a process has encoded are left out.

Runs are the real command line in processes of their own, on the CPU, on the bundled tiny model and
a few synthetic scenes. The last line is JSON: `kills` per stage, and how many of them, at every
stage, ended `identical`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrlhf.cli import main as mmrlhf
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.bundled import folder
from mmrlhf.models.loading import load
from mmrlhf.scenes import export_dataset

BASE = str(folder("data") / "tiny_vlm")
COMMON = "--model_name_or_path {base} --output_dir {run} --seed {seed}"
TRAINING = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 6, "save_steps": 2, "logging_steps": 3}
"""Settings of all training: flags, and those of feedback's rounds in its recipe `dpo.yaml`."""
STAGES = {
    "sft": "--dataset_name {data}/sft.jsonl --tuning full",
    "reward": (
        "--dataset_name {data}/pairs.jsonl --eval_dataset_name {held_out}/pairs.jsonl --lora_r 4 --injected_claim_rate 0.3 "
        "--fact_noise 0.2 --eval_steps 2 --load_best_model_at_end true --metric_for_best_model loss"
    ),
    "ppo": (
        "--dataset_name {data}/prompts.jsonl --reward_model_path {reward} --min_probe_detection_rate 0 --allow_worse_reward_model true "
        "--lora_r 4 --num_generations 2 --response_length 24 --length_bounds auto --reward_terms 'fact_rm=1, missing_eos=-1, "
        "hallucination=1' --multi_objective_aggregation normalize_then_sum --term_statistics running --eval_benchmarks scenes "
        "--eval_limit 4 --eval_steps 2 --metric_for_best_model scenes/claim_f1"
    ),
    "dpo": "--dataset_name {data}/pairs.jsonl --lora_r 4 --loss_type sigmoid,sft --eval_benchmarks scenes --eval_limit 4 --eval_steps 2",
    "rft": (
        "--dataset_name {data}/prompts.jsonl --reward_terms hallucination=1 --lora_r 4 --num_generations 2 --response_length 24 "
        "--num_rounds 2"
    ),
    "feedback": (
        "--dataset_name {data}/prompts.jsonl --num_generations 3 --response_length 32 --batch_size 8 --num_rounds 2 --algorithm dpo "
        "--dpo_config {recipe} --no-balance_lengths --eval_benchmarks scenes --eval_limit 4 --eval_steps 3 "
        "--metric_for_best_model scenes/claim_f1"
    ),
}
"""Flags of each stage. ppo comes after reward, whose untouched run is its reward model."""
MOMENTS = {
    "rollout": ["mmrlhf.engine.rollout:LocalEngine.sample", "mmrlhf.training.answer_batches:sample_completions"],
    "update": ["mmrlhf.models.micro_batch:Budget.retry_on_oom", "torch.optim:AdamW.step"],
    "saving": ["mmrlhf.training.checkpoint_files:save"],
    "logging": ["mmrlhf.training.run:Run._append_lines"],
    "result": ["mmrlhf.training.run:Run.finish", "mmrlhf.sft:save_model", "mmrlhf.ppo:save_policy", "mmrlhf.dpo:save_policy",
               "mmrlhf.rewards.checkpoint:save_reward_model"],
}  # fmt: skip
"""Functions that a run is in at each kind of moment."""
LOGS = ("*.jsonl", "finished.json")
CLOCKS = ("time", "eps", "memory/", "image_encodes", "image_reencodes")
"""How the keys begin that a resumed run cannot repeat."""


@dataclass(frozen=True)
class Call:
    """One call of a function of `MOMENTS`, in a run that was left alone."""

    moment: str
    number: int
    seconds: float


# ---- runs in processes of their own --------------------------------------------------------------


def start(stage: str, arguments: str, log_file: Path) -> tuple[int, Any]:
    """Start a stage in a fork of this process, which has imported all it needs.

    Return its process id, and a stream of its calls: lines of `begin MOMENT` and `end MOMENT`.
    """
    sys.stdout.flush()
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, os.fdopen(reading)
    try:
        os.close(reading)
        output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        announce_calls(lambda line: os.write(writing, f"{line}\n".encode()))
        code = mmrlhf([stage, *shlex.split(arguments)])
        sys.stdout.flush()
        os._exit(code)
    except BaseException:  # the log has the cause; this fork of the study must end here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(70)


def announce_calls(write: Callable[[str], object]) -> None:
    """From now on, write the begin and the end of each call of the functions of `MOMENTS`."""

    def announcing(function: Callable[..., Any], moment: str) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            write(f"begin {moment}")
            try:
                return function(*args, **kwargs)
            finally:
                write(f"end {moment}")

        return call

    for moment, places in MOMENTS.items():
        for place in places:
            module_name, _, path = place.partition(":")
            owner: Any = import_module(module_name)
            *classes, name = path.split(".")
            for class_name in classes:
                owner = getattr(owner, class_name)
            setattr(owner, name, announcing(getattr(owner, name), moment))


def wait_for(process: int) -> int:
    """Return how a process ended, as a shell would: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run_alone(stage: str, arguments: str, log_file: Path) -> list[Call]:
    """Run a stage to its end, and return its calls. Exits with its log if it fails."""
    process, stream = start(stage, arguments, log_file)
    calls, begun, counts = [], [], dict.fromkeys(MOMENTS, 0)
    for line in stream:
        event, moment = line.split()
        if event == "begin":
            counts[moment] += 1
            begun.append((moment, counts[moment], time.monotonic()))
        else:
            moment, number, start_time = begun.pop()
            calls.append(Call(moment, number, time.monotonic() - start_time))
    if code := wait_for(process):
        sys.exit(f"error: mmrlhf {stage} ended with {code}:\n{log_file.read_text()[-2000:]}")
    return calls


def run_and_kill(stage: str, arguments: str, log_file: Path, call: Call, share: float) -> bool:
    """Kill a stage when a share of the call's time has passed; return whether it was running."""
    process, stream = start(stage, arguments, log_file)
    with stream:
        begun = (line for line in stream if line == f"begin {call.moment}\n")
        if sum(1 for _ in itertools.islice(begun, call.number)) == call.number:
            time.sleep(share * call.seconds)
            os.kill(process, signal.SIGKILL)
            return wait_for(process) == -signal.SIGKILL
    sys.exit(f"error: mmrlhf {stage} ended with {wait_for(process)} before it was killed:\n{log_file.read_text()[-2000:]}")


# ---- comparing -----------------------------------------------------------------------------------


def differences(alone: Path, resumed: Path) -> list[str]:
    """Return in what two finished runs differ: files of weights, rows of logs, steps."""
    weights = [_weights(run) for run in (alone, resumed)]
    found = [
        f"{name} differs" for name in sorted(set(weights[0]) | set(weights[1])) if weights[0].get(name) != weights[1].get(name)
    ]
    logs = {str(file.relative_to(run)) for run in (alone, resumed) for pattern in LOGS for file in run.rglob(pattern)}
    for name in sorted(logs):
        rows = [_rows(run / name) for run in (alone, resumed)]
        if rows[0] != rows[1]:
            steps = [[row.get("step") for row in rows_] for rows_ in rows]
            found.append(f"{name} differs" + (f": steps {steps[1]}, not {steps[0]}" if steps[0] != steps[1] else ""))
        if name.endswith("metrics.jsonl") and len(steps := [row["step"] for row in rows[1]]) != len(set(steps)):
            found.append(f"{name} has a step twice: {steps}")
    return found


def _weights(run: Path) -> dict[str, str]:
    files = run.rglob("*.safetensors")
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _rows(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" and file.exists() else []
    if file.suffix == ".json" and file.exists():
        lines = [json.dumps(json.loads(file.read_text()))]
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(CLOCKS)} for line in lines]


# ---- the study -----------------------------------------------------------------------------------


def measure(out: Path, stage: str, kill: int, seed: int) -> dict[str, Any]:
    """Return what became of a killed run; one of an earlier call of the study is not repeated."""
    cell, killed = out / "cells" / f"{stage}-{seed}-{kill}.json", out / f"{stage}-{seed}-killed{kill}"
    if not cell.exists():
        calls, rng = run_alone_once(out, stage, seed), np.random.default_rng([seed, kill, *stage.encode()])
        moments = [moment for moment in MOMENTS if any(call.moment == moment for call in calls)]
        candidates = [call for call in calls if call.moment == moments[kill % len(moments)]]
        call, share = candidates[int(rng.integers(len(candidates)))], float(rng.random())
        arguments, log_file = arguments_of(out, stage, killed, seed), out / "logs" / f"{killed.name}.txt"
        shutil.rmtree(killed, ignore_errors=True)
        while not run_and_kill(stage, arguments, log_file, call, share):
            shutil.rmtree(killed)  # it had ended: kill another one earlier
            share /= 2
        run_alone(stage, arguments, log_file)
        found = differences(out / f"{stage}-{seed}-alone", killed)
        write_atomic(cell, json.dumps({"moment": call.moment, "number": call.number, "share": share, "differences": found}))
        if not found:
            shutil.rmtree(killed)
    result: dict[str, Any] = json.loads(cell.read_text())
    where = f"{result['moment']} {result['number']}"
    print(f"{stage} {kill + 1}, killed in {where}: {', '.join(result['differences']) or 'identical'}", flush=True)
    return result


def run_alone_once(out: Path, stage: str, seed: int) -> list[Call]:
    """Return the calls of the run that is left alone, which runs unless it has already."""
    cell, run = out / "cells" / f"{stage}-{seed}-alone.json", out / f"{stage}-{seed}-alone"
    if not cell.exists():
        if stage == "ppo":
            run_alone_once(out, "reward", seed)  # its reward model
        shutil.rmtree(run, ignore_errors=True)
        calls = run_alone(stage, arguments_of(out, stage, run, seed), out / "logs" / f"{run.name}.txt")
        write_atomic(cell, json.dumps([[call.moment, call.number, call.seconds] for call in calls]))
    return [Call(*values) for values in json.loads(cell.read_text())]


def arguments_of(out: Path, stage: str, run: Path, seed: int) -> str:
    """Return the flags of a stage's run in the folder `run`."""
    paths = {"base": BASE, "data": out / "data", "held_out": out / "held_out", "reward": out / f"reward-{seed}-alone", "run": run}
    paths["recipe"] = out / "dpo.yaml"
    training = "" if stage == "feedback" else "".join(f" --{name} {value}" for name, value in TRAINING.items())
    flags = f"{COMMON}{training} {STAGES[stage]}"
    return flags.format(**{k: shlex.quote(str(path)) for k, path in paths.items()}, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="runs to kill, at each stage (20)")
    parser.add_argument("--stages", default=",".join(STAGES), metavar="NAME,...", help=f"of {', '.join(STAGES)} (all)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="the runs take seeds 0 to N-1 in turn (1)")
    parser.add_argument("--out", type=Path, default=Path("runs/crash"), metavar="DIR", help="folder for everything (runs/crash)")
    args = parser.parse_args()
    stages = args.stages.split(",")
    if args.kills < 1 or args.seeds < 1 or not set(stages) <= set(STAGES):
        parser.error(f"--kills and --seeds are at least 1, and --stages are of {', '.join(STAGES)}")
    torch.set_num_threads(1)  # processes are forked, and threads are not
    load(BASE)  # so that none of them has to import all that
    for place in itertools.chain(*MOMENTS.values()):
        import_module(place.partition(":")[0])
    (args.out / "logs").mkdir(parents=True, exist_ok=True)
    (args.out / "dpo.yaml").write_text("".join(f"{name}: {value}\n" for name, value in {**TRAINING, "lora_r": 4}.items()))
    for name, num_rows, seed in (("data", 24, 0), ("held_out", 6, 1)):
        if not (args.out / name / "prompts.jsonl").exists():
            export_dataset(str(args.out / name), num_rows, seed)
    results = {
        stage: [measure(args.out, stage, kill, kill % args.seeds) for kill in range(args.kills)]
        for stage in STAGES
        if stage in stages
    }
    print("\n| stage | killed in | kills | identical |\n|---|---|---|---|")
    for stage, rows in results.items():
        for moment in MOMENTS:
            if of_moment := [row for row in rows if row["moment"] == moment]:
                print(f"| {stage} | {moment} | {len(of_moment)} | {sum(not row['differences'] for row in of_moment)} |")
    identical = {stage: sum(not row["differences"] for row in rows) for stage, rows in results.items()}
    print(json.dumps({"kills": args.kills, "identical": min(identical.values()), "stages": identical}))


if __name__ == "__main__":
    main()
