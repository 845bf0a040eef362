"""Evaluate the policy during a run, on the run's own model, and keep the best one.

Every process answers its share of the examples, greedily unless a suite says otherwise; the main
process scores them. Training does not depend on it: nothing random is shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from mmrlhf.config import PolicyEvalConfig, RewardTermsConfig
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams, make_sampling_params
from mmrlhf.evaluation.policy_benchmarks import (
    ANSWER_METRICS,
    DEFAULT_EVAL_STEPS,
    PolicyBenchmark,
    best_metric,
    check_eval_settings,
    open_benchmarks,
)
from mmrlhf.models.adapters import Role
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.processes import gather_object
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, ImageSource, InputError, Preference
from mmrlhf.report.progress import format_number
from mmrlhf.rewards.claim_rewards import claim_reward_verifiers
from mmrlhf.training.best_model import BestModel
from mmrlhf.training.monitor import DIVERGENCE, LOSS, UNDEFINED, HeldOut, Monitor, Proxy, parse_stop_on_warning
from mmrlhf.training.run import Run

EvalFunction = Callable[[VLM], Mapping[str, float]]
"""Called with the policy's adapter active, on the main process. Its metrics are logged as
`eval/NAME`, and metric_for_best_model may name them."""
WatchFunction = Callable[[Mapping[str, float]], Mapping[str, HeldOut]]
"""Called with all metrics of an evaluation, on the main process. Returns those that a stage
measures on its own held-out rows, for `proxy_divergence`."""

NUM_SAMPLED_STEPS = 5
"""Number of times, after step 0, that the fixed prompts are answered in a run."""
SAMPLE_BATCH_SIZE = 8
NUM_SHOWN_METRICS = 2
"""Number of metrics of an evaluation function that are printed: the first ones."""


class PolicyEvaluation:
    """The evaluations of a run, its best policy so far, and the warnings it may raise.

    Call `claim`, then `plan`, then `restore` in a resumed run, then `evaluate` at step 0 of a new
    one and, with `after_step`, after each step.

    num_steps: the step after which the run ends, possibly before the planned last one.
    """

    def __init__(
        self,
        config: PolicyEvalConfig,
        function: EvalFunction | None = None,
        proxy: Proxy = LOSS,
        warnings: Sequence[str] = (),
        held_out_metrics: Mapping[str, bool] = MappingProxyType({}),
        watch: WatchFunction | None = None,
    ) -> None:
        """Open the benchmarks of the configuration. Raises InputError if its settings are wrong.

        `proxy` is the stage's objective, and `warnings` are those that it may raise besides
        `proxy_divergence`. `held_out_metrics` are the metrics of the function that may choose the
        best policy although their names are the stage's own, and whether higher is better; `watch`
        returns those that may warn.
        """
        check_eval_settings(config, function is not None)
        self.config, self.function, self.watch = config, function, watch
        self.benchmarks = open_benchmarks(config)
        _refuse_rewarded_clip(config, self.benchmarks)
        chosen = best_metric(config, self.benchmarks, function is not None, held_out_metrics)
        if chosen:
            _refuse_rewarded_facts(config, chosen[0])
        self.best = BestModel(*chosen) if chosen else None
        divergence = (DIVERGENCE,) if self.benchmarks or self.best or watch else ()  # it needs a held-out metric
        stop_on = parse_stop_on_warning(config.stop_on_warning, (*divergence, *warnings))
        self.monitor = Monitor(proxy, stop_on, ends_run=config.load_best_model_at_end)
        self.num_steps = self.samples_every = 0
        self.sampled: Sequence[Example] = ()

    def claim(self, run: Run, examples: Iterable[Example | Preference]) -> None:
        """Record the evaluation data in the run, or compare it; print a note on training images in
        it.

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
                run.print(
                    f"note: {shared} of {len(images)} images of {item.name} are in the training data too: it is not held out"
                )

    def plan(self, rows: Sequence[Example] | Sequence[Preference], num_steps: int) -> None:
        """Set the steps after which to evaluate, and the fixed prompts: rows of the data, if there
        are no benchmarks."""
        self.num_steps, self.samples_every = num_steps, max(1, -(-num_steps // NUM_SAMPLED_STEPS))
        count = min(self.config.num_sample_generations, len(rows))
        if not self.benchmarks:
            self.sampled = [_as_example(rows[i * len(rows) // count]) for i in range(count)]

    def evaluate(self, run: Run, accelerator: Accelerator, policy: Role, step: int) -> dict[str, float]:
        """Return metrics of the policy after `step` steps as `eval/NAME`, {} on other processes.

        {} if no evaluation is due. Evaluations are before the first step, every `eval_steps`, and
        after the last. Log the metrics with their intervals, print the main ones, keep the policy
        if it is the best so far; and log answers to the fixed prompts when these are due.

        Warn and return {} if the model's logits are not finite: a later evaluation may be defined.
        Before the first step this raises NotFiniteError, on all processes.
        """
        try:
            return self._evaluate(run, accelerator, policy, step)
        except NotFiniteError as error:
            if step == 0:
                raise
            run.warn(step, UNDEFINED, f"this evaluation is left out, and the run goes on: {error}")
            return {}

    def _evaluate(self, run: Run, accelerator: Accelerator, policy: Role, step: int) -> dict[str, float]:
        is_end = step in (0, self.num_steps)
        if self.sampled and (is_end or step % self.samples_every == 0):
            with policy.active():
                params = SamplingParams(self.config.response_length, temperature=0.0)
                answers = _answer(policy.vlm, self.sampled, params, SAMPLE_BATCH_SIZE, 1, accelerator)
            if accelerator.is_main_process:
                _log_fixed(run, step, self.sampled, answers)
        measures = bool(self.benchmarks) or self.function is not None
        if not measures or not (is_end or step % (self.config.eval_steps or DEFAULT_EVAL_STEPS) == 0):
            return {}
        metrics: dict[str, float] = {}
        rows = []
        with policy.active():
            for number, item in enumerate(self.benchmarks):
                examples = list(item.task.examples.values())
                settings = item.config.batch_size, item.config.num_generations
                answers = _answer(policy.vlm, examples, make_sampling_params(item.config), *settings, accelerator)
                if accelerator.is_main_process:
                    rows.append(item.score({example.id: texts for example, texts in zip(examples, answers, strict=True)}))
                    if number == 0:
                        count = self.config.num_sample_generations
                        _log_fixed(run, step, examples[:count], answers[:count])
            if self.function is not None and accelerator.is_main_process:
                metrics |= self.function(policy.vlm)
        if not accelerator.is_main_process:
            return {}
        shown = [f"{item.name}/{item.headline}" for item in self.benchmarks] + list(metrics)[:NUM_SHOWN_METRICS]
        self._choose(run, step, metrics | _values(rows), policy, shown)
        return self.record(run, step, rows, metrics)

    def record(
        self,
        run: Run,
        step: int,
        rows: Sequence[Mapping[str, Any]],
        of_function: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, float]:
        """Log rows of eval.jsonl and watch their main metrics; return all metrics as `eval/NAME`.

        `of_function` are the metrics of the evaluation function. Rows may be from another run, such
        as the one in which a round of rft is trained.
        """
        metrics = {**of_function, **_values(rows)}
        run.log_evaluations(step, rows)
        self.monitor.add_evaluation(step, self._held_out(rows, metrics))
        return {f"eval/{name}": value for name, value in metrics.items()}

    def after_step(
        self, run: Run, accelerator: Accelerator, step: int, metrics: Mapping[str, float], is_logging_step: bool
    ) -> str | None:
        """Warn as `Monitor.after_step` does; at a warning that ends the run, `num_steps` is `step`.

        Return why the run is to be interrupted, or None.
        """
        is_last = step == self.num_steps
        stop = self.monitor.after_step(run, accelerator, step, metrics, is_logging_step, is_last=is_last)
        if self.monitor.ended:
            self.num_steps = step
        return stop

    def _held_out(self, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]) -> dict[str, HeldOut]:
        """Return the benchmarks' main metrics, the one that chooses, and the stage's own, for
        warnings."""
        held_out = {}
        for row in rows:
            if leaf := row["metrics"].get(row["headline"]):
                higher = row["direction"] == "higher"
                held_out[f"{row['benchmark']}/{row['headline']}"] = HeldOut(leaf["value"], leaf["low"], leaf["high"], higher)
        if self.best is not None and (name := self.best.metric) in metrics:
            benchmark, _, metric = name.partition("/")
            leaves = (row["metrics"][metric] for row in rows if row["benchmark"] == benchmark and metric in row["metrics"])
            leaf = next(leaves, None) or {"low": None, "high": None}
            held_out[name] = HeldOut(float(metrics[name]), leaf["low"], leaf["high"], self.best.greater_is_better)
        return held_out | dict(self.watch(metrics) if self.watch else {})  # last, since these have intervals

    def _choose(self, run: Run, step: int, metrics: Mapping[str, float], policy: Role, shown: Sequence[str]) -> None:
        """Keep the policy if it is the best so far; print `shown` and the metric that chooses."""
        remark = ""
        if self.best is not None:
            name = self.best.metric
            if self.function is not None and name not in metrics and not self._is_undefined(name):
                given = ", ".join(metrics) or "nothing"
                raise InputError(f"metric_for_best_model {name} is not what the evaluation gives: {given}")
            shown = [*shown, name]
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

    def save_best(self, run: Run, policy: Role) -> None:
        """Write the best adapter so far to the run's folder `best`, if it is not there yet."""
        if run.main_process and self.best is not None and policy.adapter is not None:
            self.best.save(policy, run.path / "best")

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the best weights, which the main process has, and the rest as JSON."""
        best_tensors, best_state = ({}, {}) if self.best is None else self.best.checkpoint()
        return best_tensors, {"monitor": self.monitor.state_dict()} | best_state

    def finish(self, run: Run, policy: Role, result: Path) -> dict[str, Any]:
        """Return the entries of finished.json about the best policy, and write it to the folder
        `best`.

        With `load_best_model_at_end`, load it into `policy` instead, which is then written to
        `result`.
        """
        if self.best is None:
            return {}
        stopped = {"stopped": self.monitor.ended} if self.monitor.ended else {}
        if self.best.step is None:
            run.print(f"note: {self.best.metric} was undefined at every evaluation: there is no best policy")
            return {"policy_step": self.num_steps} | stopped
        is_loaded = self.config.load_best_model_at_end
        run.print(self.best.describe(self.num_steps, result if is_loaded else run.path / "best"))
        if is_loaded:
            policy.load_state_dict(self.best.tensors)
            self.best.discard(run.path / "best")
            return {"best": self.best.result(), "policy_step": self.best.step} | stopped
        self.best.save(policy, run.path / "best")
        return {"best": self.best.result(), "policy_step": self.num_steps}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], step: int) -> None:
        """Continue from what `checkpoint` returned after `step` steps."""
        self.monitor.load_state_dict(state.get("monitor", {}))
        if self.monitor.ended:
            self.num_steps = step
        if self.best is not None:
            self.best.restore(tensors, state)


def _refuse_rewarded_facts(config: PolicyEvalConfig, metric: str) -> None:
    """Raise InputError if the benchmark `facts` would choose the best policy and its verifier is
    part of the reward: facts about other images have the same gaps."""
    measured = metric.removeprefix("facts/")
    if (
        measured == metric
        or measured in ANSWER_METRICS
        or not isinstance(config, RewardTermsConfig)
        or config.allow_monitoring_reward_verifiers
    ):
        return
    verifiers = claim_reward_verifiers(config.reward_terms)
    if rewarded := next((name for name, verifier in verifiers.items() if "facts" in verifier.split("+")), None):
        raise InputError(
            f"metric_for_best_model {metric} is measured by the verifier facts, which the reward {rewarded} uses: what is optimised "
            "must not choose; give a metric of another benchmark, or --allow_monitoring_reward_verifiers true"
        )


def _refuse_rewarded_clip(config: PolicyEvalConfig, benchmarks: Sequence[PolicyBenchmark]) -> None:
    """Raise InputError if the open_clip model of a benchmark verifies claims for the reward."""
    if not isinstance(config, RewardTermsConfig) or config.clip_model is None or config.allow_monitoring_reward_verifiers:
        return
    verifiers = claim_reward_verifiers(config.reward_terms)
    rewarded = next((name for name, verifier in verifiers.items() if "clip" in verifier.split("+")), None)
    for item in benchmarks:
        model = getattr(item.task.options, "clip_model", None)
        if rewarded and model is not None and Path(model).resolve() == Path(config.clip_model).resolve():
            raise InputError(
                f"eval_benchmarks {item.name} verifies claims by {model}, as the reward {rewarded} does: what is optimised must not "
                "evaluate; give the benchmark another clip_model, or --allow_monitoring_reward_verifiers true"
            )


def _values(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the defined metrics of rows of eval.jsonl, as BENCHMARK/METRIC."""
    return {
        f"{row['benchmark']}/{name}": leaf["value"] for row in rows for name, leaf in row["metrics"].items() if leaf is not None
    }


def _as_example(row: Example | Preference) -> Example:
    """Return a row with its answer, a preference with its best one."""
    if isinstance(row, Example):
        return row
    return Example(row.id, row.images, row.prompt, row.answers[0])


def _answer(
    vlm: VLM,
    examples: Sequence[Example],
    params: SamplingParams,
    batch_size: int,
    num_generations: int,
    accelerator: Accelerator,
) -> list[list[str]]:
    """Return the answers to each of some examples, whose ids may repeat, from all processes.

    Raises NotFiniteError, on all processes, if the logits of one are not finite.
    """
    own = range(accelerator.process_index, len(examples), accelerator.num_processes)
    local = [examples[index] for index in own]
    numbered, problem = [], ""
    try:
        answers = generate_batches(vlm, local, params, batch_size=batch_size, num_generations=num_generations)
        numbered = [(index, texts) for index, (_, texts) in zip(own, answers, strict=True)]
    except NotFiniteError as error:
        problem = str(error)
    shares = gather_object([(numbered, problem)])
    if problem := next((text for _, text in shares if text), ""):
        raise NotFiniteError(problem)
    return [texts for _, texts in sorted(item for share, _ in shares for item in share)]


def _log_fixed(run: Run, step: int, examples: Sequence[Example], answers: Sequence[list[str]]) -> None:
    """Log the answers to the fixed prompts, which are the same at every step."""
    rows = []
    for example, (answer, *_) in zip(examples, answers, strict=True):
        row = {"id": example.id, "prompt": example.prompt[-1].content, "answer": answer, "fixed": True}
        reference = {"reference": example.answer} if example.answer else {}
        rows.append(row | reference | {"images": [run.image_file(image) for image in example.images]})
    run.log_samples(step, rows, show=False)


def _image_name(image: ImageSource) -> str:
    return image.key if image.path is None else os.path.realpath(image.path)
