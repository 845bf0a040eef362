"""Run stages on one process and on two, forked from a process that has imported everything.

    python -m tests.helpers.forked_stages BASE OUT exact,traces,sampled,lost

Imports take longer than the stages do, so they happen once. `exact` runs every stage in float64, as
`OUT/one`, `OUT/two` and `OUT/shards`, and continues a run of two processes on one, as `OUT/moved`;
`traces` runs more steps in float32, as `OUT/one32` and `OUT/two32`; `sampled` runs `rft` and
`feedback`, as `OUT/sampled1` and `OUT/sampled2`; `lost` kills one of two processes in each stage,
and writes what the other one says to `OUT/lost/STAGE`.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import debug_launcher
from torch.multiprocessing import ProcessExitedException, start_processes

from mmrlhf.config import DPOConfig, FeedbackConfig, PPOConfig, RewardConfig, RFTConfig, SFTConfig
from mmrlhf.dpo import dpo
from mmrlhf.engine import prefill, rollout
from mmrlhf.feedback import feedback
from mmrlhf.files import stop_signals
from mmrlhf.models import adapters, loading, vlm
from mmrlhf.models.processes import Accelerator, wait_for_everyone
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, InputError, Preference
from mmrlhf.report.live_page import LivePage
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.types import Sample
from mmrlhf.rft import rft
from mmrlhf.sft import sft
from mmrlhf.text.plurals import singularize
from mmrlhf.training.run import Run
from tests.helpers.scene_rows import scene_examples


def main(base: str, out: Path, parts: Sequence[str]) -> None:
    """Run the parts, one run after the other."""
    LivePage.refresh = lambda self, *, is_final=False: ""  # type: ignore[method-assign]
    singularize("rings")  # loads a dictionary
    out.mkdir(parents=True)
    row = '{{"prompt": "What is {0} plus {0}?", "answer": "It is {1}.", "images": []}}\n'
    (out / "ptx.jsonl").write_text("".join(row.format(i, "1" * i) for i in range(1, 6)))
    runs = {
        "exact": [(1, exact, "one"), (2, exact, "two"), (2, exact, "shards"), (1, moved, "moved")],
        "traces": [(1, traces, "one32"), (2, traces, "two32")],
        "sampled": [(1, sampled, "sampled1"), (2, sampled, "sampled2")],
        "lost": [(2, lost, stage) for stage in ("sft", "reward", "dpo", "ppo", "rft")],
    }
    for processes, function, name in (run for part in parts for run in runs[part]):
        arguments = (base, out, name, processes)
        if processes == 1:
            start_processes(_call, args=(function, *arguments), nprocs=1, start_method="fork")
            continue
        with contextlib.suppress(ProcessExitedException) if function is lost else contextlib.nullcontext():
            debug_launcher(function, arguments, processes)


def _call(_: int, function: Callable[..., None], *arguments: Any) -> None:
    function(*arguments)


def data() -> tuple[list[Example], list[Preference]]:
    """Return twelve rows, one of them without an image, and a pair from each."""
    rows = scene_examples()
    rows[5] = replace(rows[5], images=())
    return rows, [Preference.from_pair(e.id, e.images, e.prompt, e.answer, "There is a pink ring.", e.facts) for e in rows]


class Float64:
    """The module torch, with float64 in place of float32."""

    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name == "float32" else getattr(torch, name)


class Parity:
    """A reward that is alike for many groups, and not finite the first time a row is answered.

    One process has that row.
    """

    def __init__(self, row_id: str, marker: Path) -> None:
        self.row_id, self.marker = row_id, marker

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        values = [float(len(sample.answer) % 2) for sample in samples]
        for i, sample in enumerate(samples):
            if sample.id == self.row_id and not self.marker.exists():
                self.marker.touch()
                values[i] = math.nan
        return values


def exact(base: str, out: Path, name: str, processes: int) -> None:
    """Take two steps in float64, as in float32 rounding hides small differences.

    Shards are asked for as DeepSpeed's ZeRO-3, which sets the variables of FSDP2 for all stages.
    Two processes stop in the middle of `grpo`, and go on.
    """
    use_float64()
    if is_sharded := name == "shards":
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    # With shards, layers are recomputed in backward, which changes nothing but the memory.
    common = {"max_steps": 2, "learning_rate": 2e-3, "activation_checkpointing": is_sharded}
    rows, pairs = data()
    train_before_ppo(base, out / name, processes, rows, pairs[:4], common, held_out=pairs[4:6])
    policy = policy_settings(base, processes) | common | {"response_length": 24}  # some answers end earlier
    ppo(PPOConfig(output_dir=f"{out}/{name}/ppo", reward_model_path=f"{out}/one/reward", num_mini_batches=2, allow_worse_reward_model=True,
                  multi_objective_aggregation="normalize_then_sum", term_statistics="running", length_bounds="auto",
                  **policy), rows[:3])  # one row twice in every step  # fmt: skip
    if name == "one":
        grpo(base, out, name, processes)
    elif name == "two":
        stop_second_process(lambda: grpo(base, out, name, processes), step=3)
        if torch.distributed.get_rank() == 0:
            shutil.copytree(out / "two" / "grpo", out / "moved" / "grpo", ignore=shutil.ignore_patterns(".lock"))
            shutil.copy(out / "two" / "spoilt", out / "moved")
        wait_for_everyone()
        grpo(base, out, name, processes)


def moved(base: str, out: Path, name: str, processes: int) -> None:
    """Continue on one process what two have stopped."""
    use_float64()
    grpo(base, out, name, processes, allow_change="num_processes,per_device_train_batch_size")


def use_float64() -> None:
    """Compute in float64 what is computed in float32."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[assignment]
    adapters.torch = vlm.torch = Float64()  # type: ignore[attr-defined]
    loading._precision_kwargs = lambda *_: {"dtype": torch.float64}
    prefill.LOGP_TOLERANCE[torch.float64] = 1e-3


def grpo(base: str, out: Path, name: str, processes: int, **settings: Any) -> None:
    """Replace prompts, mix in rows, refresh the reference, skip a step, keep the best policy."""
    policy = policy_settings(base, processes) | {"max_steps": 5, "learning_rate": 2e-3} | settings
    rows, _ = data()
    ppo(PPOConfig(output_dir=f"{out}/{name}/grpo", reward_terms="parity=1", advantage_estimator="grpo", dynamic_sampling=True,
                  num_mini_batches=4, feature_cache_dir=f"{out}/{name}/features", ptx_dataset_name=f"{out}/ptx.jsonl", ptx_coef=0.5,
                  sync_ref_model=True, ref_model_sync_steps=2, eval_benchmarks="scenes", eval_limit=2, eval_steps=3,
                  metric_for_best_model="scenes/utility", greater_is_better=False, **policy),  # it falls at first
        rows, extra_reward_functions={"parity": Parity(rows[0].id, out / name / "spoilt")})  # fmt: skip


def stop_second_process(run_stage: Callable[[], object], step: int) -> None:
    """Send SIGTERM to the second process in a step, after which both have to stop."""
    log = Run.log

    def log_and_stop(run: Run, logged_step: int, *args: Any, **kwargs: Any) -> None:
        log(run, logged_step, *args, **kwargs)
        if logged_step == step and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    Run.log = log_and_stop  # type: ignore[method-assign]
    try:
        with stop_signals.handled():
            run_stage()
    except stop_signals.Stopped:
        Run.log = log  # type: ignore[method-assign]
        return
    raise AssertionError("the stage did not stop")


def traces(base: str, out: Path, name: str, processes: int) -> None:
    """Take ten steps of ppo, and four of the others, in float32."""
    rows, pairs = data()
    common: dict[str, Any] = {"max_steps": 4, "learning_rate": 5e-5, "per_device_train_batch_size": 2 // processes}
    train_before_ppo(base, out / name, processes, rows, pairs[:4], common)
    policy = policy_settings(base, processes) | common | {"max_steps": 10}
    ppo(
        PPOConfig(
            output_dir=f"{out}/{name}/ppo", reward_model_path=f"{out}/one32/reward", allow_worse_reward_model=True, **policy
        ),
        rows,
    )


def train_before_ppo(
    base: str,
    out: Path,
    processes: int,
    rows: list[Example],
    pairs: list[Preference],
    common: dict[str, Any],
    held_out: list[Preference] | None = None,
) -> None:
    """Run the stages that do not sample; `reward` keeps its best weights on `held_out`."""
    common = {
        "model_name_or_path": base,
        "dataset_name": "x",
        "lora_r": 4,
        "per_device_train_batch_size": 4 // processes,
    } | common
    best = {"eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss"} if held_out else {}
    train_reward_model(RewardConfig(output_dir=f"{out}/reward", **best, **common), pairs, held_out)
    common["num_sample_generations"] = 0
    sft(SFTConfig(output_dir=f"{out}/sft", **common), rows)
    dpo(DPOConfig(output_dir=f"{out}/dpo", loss_type="sigmoid,sft", image_pairs="other", **common), pairs)


def policy_settings(base: str, processes: int) -> dict[str, Any]:
    """Return settings of `ppo`."""
    return {
        "model_name_or_path": base,
        "dataset_name": "x",
        "lora_r": 4,
        "per_device_train_batch_size": 4 // processes,
        "num_generations": 2,
        "response_length": 6,
        "num_ppo_epochs": 1,
        "min_probe_detection_rate": 0,
        "num_sample_generations": 0,
    }


def sampled(base: str, out: Path, name: str, processes: int) -> None:
    """Let `rft` and `feedback` write answers, verdicts, scores and pairs."""
    common = {"model_name_or_path": base, "dataset_name": "x", "num_generations": 2, "response_length": 48}
    rows = scene_examples()[:5]  # of the last batch, the second process has none
    rft(RFTConfig(output_dir=f"{out}/{name}/rft", reward_terms="length=1", per_device_train_batch_size=4 // processes, max_steps=2,
                  lora_r=4, num_sample_generations=0, **common), rows)  # fmt: skip
    feedback(FeedbackConfig(output_dir=f"{out}/{name}/feedback", batch_size=4 // processes, **common), rows)


def lost(base: str, out: Path, stage: str, processes: int) -> None:
    """Kill the second process in the second step, while it samples or before it has a gradient."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what the launcher sends to the other one
    samples = stage in ("ppo", "rft")
    owner, name = (rollout, "sample") if samples else (Accelerator, "backward")
    real, calls = getattr(owner, name), []

    def deadly(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 2 and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, deadly)
    rows, pairs = data()
    common: dict[str, Any] = {"model_name_or_path": base, "dataset_name": "x", "output_dir": f"{out}/lost-{stage}", "lora_r": 4}
    common |= {"per_device_train_batch_size": 1, "max_steps": 3}
    rewarded = {"reward_terms": "length=1", "num_generations": 2, "response_length": 4, "num_mini_batches": 1}
    try:
        if stage == "sft":
            sft(SFTConfig(**common), rows)
        elif stage == "reward":
            train_reward_model(RewardConfig(**common), pairs)
        elif stage == "dpo":
            dpo(DPOConfig(**common), pairs)
        elif stage == "ppo":
            ppo(PPOConfig(advantage_estimator="rloo", **common, **rewarded), rows)
        else:
            del rewarded["num_mini_batches"]
            rft(RFTConfig(**common, **rewarded), rows)
    except InputError as error:
        (out / "lost").mkdir(exist_ok=True)
        (out / "lost" / stage).write_text(str(error))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(","))
