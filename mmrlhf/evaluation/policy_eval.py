"""Evaluate the policy of a run along the way, on the run's own model, and keep the best one.

Every process answers its share of the examples, greedily unless a suite says otherwise; the main
process scores them. Training does not depend on it: nothing random is shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mmrlhf.config import PPOConfig
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import make_sampling_params
from mmrlhf.evaluation.policy_benchmarks import (
    DEFAULT_EVAL_STEPS,
    PolicyBenchmark,
    best_metric,
    check_eval_settings,
    open_benchmarks,
)
from mmrlhf.models.adapters import Role
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, ImageSource, InputError
from mmrlhf.report.progress import format_number
from mmrlhf.training.best_model import BestModel
from mmrlhf.training.run import Run

EvalFunction = Callable[[VLM], Mapping[str, float]]
"""Called under the policy's adapter, on the main process. What it returns is logged as `eval/NAME`,
and metric_for_best_model may name it."""


class PolicyEvaluation:
    """What a run measures its policy with, and its best policy so far."""

    def __init__(self, config: PPOConfig, function: EvalFunction | None) -> None:
        """Open the benchmarks of the configuration. Raises InputError if its settings are wrong."""
        check_eval_settings(config, function is not None)
        self.function = function
        self.benchmarks = open_benchmarks(config)
        self.every = config.eval_steps or DEFAULT_EVAL_STEPS
        chosen = best_metric(config, self.benchmarks, function is not None)
        self.best = BestModel(*chosen) if chosen else None

    def claim(self, run: Run, examples: Iterable[Example]) -> None:
        """Record in the run what is evaluated on, or compare it; note images that are trained on.

        Raises InputError if the run was started with something else.
        """
        folder = run.path / "best"
        if self.best is not None and folder.exists() and not (folder / "best.json").is_file():
            raise InputError(
                f"{folder} would hold the best policy, and holds something else: give another --output_dir, or move it"
            )
        for item in self.benchmarks:
            inputs = {f"eval {item.name} file {name}": {"path": name, "sha256": digest} for name, digest in item.hashes.items()}
            run.claim_inputs({f"version of eval {item.name}": item.benchmark.version, **inputs})
            run.claim_rows(list(item.task.examples.values()), f"eval {item.name}")
        if not self.benchmarks or run.is_finished:
            return
        trained_on = {_image_name(image) for example in examples for image in example.images}
        for item in self.benchmarks:
            images = {_image_name(image) for example in item.task.examples.values() for image in example.images}
            if shared := len(images & trained_on):
                run.print(f"note: {shared} of {len(images)} images of {item.name} are in the prompts too: it is not held out")

    def is_due(self, step: int) -> bool:
        """Return whether the policy is evaluated after this step, apart from the first and last."""
        return step % self.every == 0

    def evaluate(self, run: Run, accelerator: Accelerator, policy: Role, step: int) -> dict[str, float]:
        """Return metrics of the policy after `step` steps as `eval/NAME`, {} on other processes.

        Log them with intervals, print the main ones, and keep the policy if it is the best so far.
        """
        metrics: dict[str, float] = {}
        rows = []
        with policy.active():
            for item in self.benchmarks:
                answers = _answer(policy.vlm, item, accelerator)
                if accelerator.is_main_process:
                    rows.append(item.score(answers))
            if self.function is not None and accelerator.is_main_process:
                metrics |= self.function(policy.vlm)
        if not accelerator.is_main_process:
            return {}
        for row in rows:
            defined = {name: leaf["value"] for name, leaf in row["metrics"].items() if leaf is not None}
            metrics |= {f"{row['benchmark']}/{name}": value for name, value in defined.items()}
        run.log_evaluations(step, rows)
        self._choose(run, step, metrics, policy)
        return {f"eval/{name}": value for name, value in metrics.items()}

    def _choose(self, run: Run, step: int, metrics: Mapping[str, float], policy: Role) -> None:
        """Keep the policy if it is the best so far, and print the main metrics."""
        shown, remark = [f"{item.name}/{item.headline}" for item in self.benchmarks], ""
        if self.best is not None:
            name = self.best.metric
            if self.function is not None and name not in metrics and not self._is_undefined(name):
                given = ", ".join(metrics) or "nothing"
                raise InputError(f"metric_for_best_model {name} is not what the evaluation gives: {given}")
            shown.append(name)
            if name in metrics and self.best.update(step, float(metrics[name]), policy):
                remark = ", the best so far"
            elif self.best.step is not None:
                remark = f", best {format_number(self.best.value)} at step {self.best.step}"
        texts = [f"{name} {format_number(metrics.get(name))}" for name in dict.fromkeys(shown)]
        if texts:
            run.print(f"eval at step {step}: {', '.join(texts)}{remark}")

    def _is_undefined(self, name: str) -> bool:
        """Return whether a benchmark has this metric, although these answers did not define it."""
        return any(name == f"{item.name}/{metric}" for item in self.benchmarks for metric in item.metric_names)

    # ---- checkpoints and the end -----------------------------------------------------------------

    def checkpoint(self, run: Run, policy: Role) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint needs to continue, and update the run's folder `best`."""
        if self.best is None or not run.main_process:
            return {}, {}
        self.best.save(policy, run.path / "best")
        return self.best.checkpoint()

    def finish(self, run: Run, policy: Role, last_step: int, load_best: bool) -> dict[str, Any]:
        """Return what finished.json says of the best policy, and put it into the folder `best`.

        With `load_best`, load it into `policy` instead.
        """
        if self.best is None:
            return {}
        if self.best.step is None:
            run.print(f"note: {self.best.metric} was undefined at every evaluation: there is no best policy")
            return {"policy_step": last_step}
        run.print(self.best.describe(last_step, run.path / ("policy" if load_best else "best")))
        if load_best:
            policy.load_state_dict(self.best.tensors)
            self.best.discard(run.path / "best")
            return {"best": self.best.result(), "policy_step": self.best.step}
        self.best.save(policy, run.path / "best")
        return {"best": self.best.result(), "policy_step": last_step}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        if self.best is not None:
            self.best.restore(tensors, state)


def _answer(vlm: VLM, item: PolicyBenchmark, accelerator: Accelerator) -> dict[str, list[str]]:
    """Return the answers to a benchmark's examples by id, from all processes."""
    examples: Sequence[Example] = list(item.task.examples.values())[accelerator.process_index :: accelerator.num_processes]
    answers = generate_batches(
        vlm,
        examples,
        make_sampling_params(item.config),
        batch_size=item.config.batch_size,
        num_generations=item.config.num_generations,
    )
    return dict(gather_object([(example.id, texts) for example, texts in answers]))


def _image_name(image: ImageSource) -> str:
    return image.key if image.path is None else os.path.realpath(image.path)
