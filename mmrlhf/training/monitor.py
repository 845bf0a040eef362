"""Named warnings of a run: conditions, the window of steps that they cover, stopping at one.

    proxy_divergence           the optimised signal rises while a held-out metric falls
    entropy_collapse           the policy has stopped exploring
    constant_reward            all answers have the same reward
    unfinished_answers         the policy does not end its answers
    logp_difference            the engine that samples disagrees with the trainer
    length_reward_correlation  and the other warnings of `rewards.monitors`

At each logging step the metrics of the steps since the last one are checked together, so that a
single odd step raises no warning. `stop_on_warning` names the warnings that stop a run or, if the
run writes its best weights at the end, end it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from accelerate import Accelerator

from mmrlhf.config.loader import suggestion
from mmrlhf.models.processes import broadcast_object_list
from mmrlhf.records import InputError
from mmrlhf.report.progress import format_number
from mmrlhf.rewards.monitors import MAX_ZERO_CLAIM_RATE, hacking_warnings
from mmrlhf.training.run import Run

ENTROPY_KEY = "policy/entropy_avg"
ZERO_STD_KEY = "frac_reward_zero_std"
CLIPPED_KEY = "completions/clipped_ratio"
ZERO_CLAIM_KEY = "hacking/zero_claim_rate"
LOGP_DIFFERENCE_KEY = "sampling/logp_difference/mean"
MIN_ENTROPY_SHARE = 0.1
"""Share of the first step's entropy per token, below which `entropy_collapse` is raised."""
MAX_CLIPPED_RATIO = 0.9
"""Share of answers that are cut off, above which `unfinished_answers` is raised."""
MAX_LOGP_DIFFERENCE = 0.05
"""Nats per token between the log-probs of trainer and engine, above which `logp_difference` is
raised: more than rounding in bfloat16, less than different weights would cause."""
NUM_WORSE = 2
"""Evaluations in a row that must be worse than the best one for `proxy_divergence`."""
NUM_WORSE_WITHOUT_INTERVAL = 3
"""The same for a metric without an interval, whose noise is unknown."""
CLAIM_WARNINGS = ("zero_claim_rate", "vagueness")
"""Warnings that need the claims of answers: see `rewards.claim_rewards.counts_claims`."""
HACKING_WARNINGS = ("length_reward_correlation", "refusal_rate", "yes_rate", *CLAIM_WARNINGS)
ANSWER_WARNINGS = ("constant_reward", "unfinished_answers", *HACKING_WARNINGS)
"""Warnings about sampled answers and their rewards."""
ROLLOUT_WARNINGS = ("entropy_collapse", *ANSWER_WARNINGS)
"""Warnings of a policy that samples while it learns."""
DIVERGENCE = "proxy_divergence"
UNDEFINED = "undefined_evaluation"
"""The warning of an evaluation with non-finite logits or scores. It never stops a run."""
LOGP_DIFFERENCE = "logp_difference"
WARNINGS = (DIVERGENCE, *ROLLOUT_WARNINGS, LOGP_DIFFERENCE)
"""The names of all warnings. docs/watching.md lists their thresholds."""


class HeldOut(NamedTuple):
    """A held-out metric at an evaluation, with a 95% interval if it has one."""

    value: float
    low: float | None
    high: float | None
    higher_is_better: bool


class Proxy(NamedTuple):
    """The signal that a stage optimises: its key in metrics.jsonl, and its name in a sentence."""

    key: str
    title: str
    higher_is_better: bool


REWARD = Proxy("objective/scores", "the reward", True)
LOSS = Proxy("loss", "the training loss", False)


def parse_stop_on_warning(value: str | None, possible: Sequence[str]) -> tuple[str, ...]:
    """Return the names in `stop_on_warning`; `any` is all of `possible`, the run's own warnings.

    Raises InputError for a name that is not a warning, or one that this run cannot raise.
    """
    if value is None:
        return ()
    names = [name.strip() for name in value.split(",")]
    if names == ["any"] and possible:
        return tuple(possible)
    if names == ["any"]:
        raise InputError(
            "stop_on_warning any: this run raises no warnings: add eval_benchmarks (dpo: or eval_dataset_name; reward: eval_steps)"
        )
    for name in names:
        if name not in WARNINGS:
            raise InputError(f"stop_on_warning {name!r} is no warning: {suggestion(name, ('any', *WARNINGS))}")
        if name in possible:
            continue
        needs = "it is about sampled answers, and this stage samples none: leave it out"
        if name == "entropy_collapse" and set(ANSWER_WARNINGS) & set(possible):
            needs = "it is about the entropy of a policy that samples at every step: leave it out"
        elif name == DIVERGENCE:
            needs = "it compares with held-out metrics along the way: add eval_benchmarks (dpo: or eval_dataset_name; reward: eval_steps)"
        elif name == LOGP_DIFFERENCE:
            needs = "it compares the trainer with another engine: give ppo a rollout_engine, or leave it out"
        elif name in CLAIM_WARNINGS and set(ROLLOUT_WARNINGS) & set(possible):
            needs = "it needs the claims of answers: add monitor_verifiers, or leave it out"
        raise InputError(f"stop_on_warning {name}: {needs}")
    return tuple(names)


class Monitor:
    """The metrics since the last logging step and the evaluations so far, and their warnings."""

    def __init__(self, proxy: Proxy, stop_on: Sequence[str] = (), *, ends_run: bool = False) -> None:
        """Stop at the warnings `stop_on`; with `ends_run`, they end the run like its last step."""
        self.proxy, self.stop_on, self.ends_run = proxy, stop_on, ends_run
        self.ended = ""
        """Why the run ended at a warning; empty if it did not."""
        self._window: list[dict[str, float]] = []
        self._proxy_values: list[float] = []  # since the last evaluation
        self._first_entropy: float | None = None
        self._starts_silent: bool | None = None  # what a run without verdicts does not warn of
        # For each evaluation: its proxy, None until a step has measured it, and held-out metrics.
        self._evaluations: list[tuple[float | None, dict[str, HeldOut]]] = []
        self._held_out: dict[str, HeldOut] = {}  # of this step's evaluation
        self._has_new_evaluation = False  # since the last logging step

    def add_evaluation(self, step: int, held_out: Mapping[str, HeldOut]) -> None:
        """Add the held-out metrics after a step, before the step's own metrics."""
        if step > 0:
            self._held_out = dict(held_out)
        elif held_out:
            self._evaluations = [(None, dict(held_out))]

    def after_step(
        self,
        run: Run,
        accelerator: Accelerator,
        step: int,
        metrics: Mapping[str, float],
        is_logging_step: bool,
        *,
        is_last: bool = False,
    ) -> str | None:
        """Add a step's metrics. At a logging step, raise the warnings of the steps since the last
        one, and refresh the run's page.

        Return why the run must be interrupted, the same on every process, or None; always None
        after the last step. With `ends_run`, set `ended` instead.
        """
        self._add(metrics)
        if not is_logging_step:
            return None
        warnings = self._warnings()
        self._window, self._has_new_evaluation = [], False
        for name, text in warnings.items():
            run.warn(step, name, text)
        run.refresh_report()
        if is_last or not self.stop_on:
            return None
        stop = next(((name, text) for name, text in warnings.items() if name in self.stop_on), None)
        if accelerator.num_processes > 1:  # only the main process has evaluations
            stop = broadcast_object_list([stop])[0]
        if stop is None:
            return None
        if self.ends_run:
            name, text = stop
            self.ended = f"ended after step {step} at the warning {name} (stop_on_warning): {text}"
            run.print(self.ended)
            return None
        run.refresh_report(is_final=True)
        return _stop_sentence(run, step, *stop)

    def _add(self, metrics: Mapping[str, float]) -> None:
        watched = (self.proxy.key, ENTROPY_KEY, ZERO_STD_KEY, CLIPPED_KEY, LOGP_DIFFERENCE_KEY)
        self._window.append({k: float(v) for k, v in metrics.items() if k in watched or k.startswith("hacking/")})
        if self._first_entropy is None and ENTROPY_KEY in metrics:
            self._first_entropy = float(metrics[ENTROPY_KEY])
        if self._starts_silent is None and ZERO_CLAIM_KEY in metrics:
            has_verdicts = any(name.startswith("claims/") for name in metrics)
            self._starts_silent = metrics[ZERO_CLAIM_KEY] > MAX_ZERO_CLAIM_RATE and not has_verdicts
        if self.proxy.key in metrics:  # a skipped step has none
            self._proxy_values.append(float(metrics[self.proxy.key]))
        if (
            self._proxy_values and self._evaluations and self._evaluations[0][0] is None
        ):  # the untrained policy's is the first step's
            self._evaluations[0] = self._proxy_values[0], self._evaluations[0][1]
        if self._held_out:
            self._evaluations.append((fmean(self._proxy_values) if self._proxy_values else None, self._held_out))
            self._proxy_values, self._held_out, self._has_new_evaluation = [], {}, True

    def _warnings(self) -> dict[str, str]:
        warnings = {}
        if self._has_new_evaluation and (divergence := self._divergence()):
            warnings[DIVERGENCE] = divergence
        entropies = [metrics[ENTROPY_KEY] for metrics in self._window if ENTROPY_KEY in metrics]
        if entropies and self._first_entropy and fmean(entropies) < MIN_ENTROPY_SHARE * self._first_entropy:
            warnings["entropy_collapse"] = (
                f"entropy fell from {format_number(self._first_entropy)} to {format_number(fmean(entropies))} nats per token, and "
                "answers to a prompt become alike: lower the learning rate, or raise kl_coef or temperature?"
            )
        constant = [metrics[ZERO_STD_KEY] for metrics in self._window if ZERO_STD_KEY in metrics]
        if constant and min(constant) == 1:
            warnings["constant_reward"] = (
                "all answers to a prompt had the same reward, for every prompt, so that none is better than another: change "
                "reward_terms, raise temperature, or give other prompts"
            )
        cut_off = [metrics[CLIPPED_KEY] for metrics in self._window if CLIPPED_KEY in metrics]
        if cut_off and fmean(cut_off) > MAX_CLIPPED_RATIO:
            warnings["unfinished_answers"] = (
                f"{fmean(cut_off):.0%} of answers were cut off at response_length: raise it, or give missing_eos a negative weight in "
                "reward_terms"
            )
        differences = [metrics[LOGP_DIFFERENCE_KEY] for metrics in self._window if LOGP_DIFFERENCE_KEY in metrics]
        if differences and fmean(differences) > MAX_LOGP_DIFFERENCE:
            warnings[LOGP_DIFFERENCE] = (
                f"log-probs of the engine that samples differ from the trainer's by {format_number(fmean(differences))} nats per token, "
                "more than rounding does: does it serve the same checkpoint, in the same precision, with logprobs-mode "
                "processed_logprobs?"
            )
        names = dict.fromkeys(name for metrics in self._window for name in metrics if name.startswith("hacking/"))
        means = {name: fmean(metrics[name] for metrics in self._window if name in metrics) for name in names}
        if self._starts_silent:  # such as questions for a word: the reward has not made it silent
            means.pop(ZERO_CLAIM_KEY, None)
        return warnings | hacking_warnings(means)

    def _divergence(self) -> str:
        """Return a sentence if the proxy is better and a held-out metric worse than at its best."""
        keys = dict.fromkeys(key for _, held_out in self._evaluations for key in held_out)
        return next((sentence for key in keys if (sentence := self._divergence_of(key))), "")

    def _divergence_of(self, key: str) -> str:
        points = [(proxy, held_out[key]) for proxy, held_out in self._evaluations if proxy is not None and key in held_out]
        if len(points) < NUM_WORSE + 1:
            return ""
        sign = 1 if points[0][1].higher_is_better else -1
        proxy_sign = 1 if self.proxy.higher_is_better else -1
        best_index = max(range(len(points)), key=lambda i: sign * points[i][1].value)  # on a tie, the first
        best_proxy, best = points[best_index]
        has_intervals = all(point.low is not None for _, point in points)
        num_worse = NUM_WORSE if has_intervals else NUM_WORSE_WITHOUT_INTERVAL
        later = points[best_index + 1 :][-num_worse:]
        if len(later) < num_worse:
            return ""
        for proxy, point in later:
            if proxy_sign * (proxy - best_proxy) <= 0 or sign * (best.value - point.value) <= _noise(best, point):
                return ""
        proxy, last = later[-1]
        change = "rose" if proxy_sign > 0 else "fell"
        return (
            f"{self.proxy.title} {change} from {format_number(best_proxy)} to {format_number(proxy)} while {key}, held out, got "
            f"worse, from {format_number(best.value)} to {format_number(last.value)}: what is optimised is no longer what is wanted"
        )

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue, as JSON."""
        evaluations = [[proxy, {key: list(point) for key, point in held_out.items()}] for proxy, held_out in self._evaluations]
        return {
            "window": self._window,
            "proxy_values": self._proxy_values,
            "first_entropy": self._first_entropy,
            "starts_silent": self._starts_silent,
            "evaluations": evaluations,
            "has_new_evaluation": self._has_new_evaluation,
            "ended": self.ended,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned; an empty mapping, as checkpoints of earlier
        versions have, changes nothing."""
        if state_dict:
            self._window, self._proxy_values = state_dict["window"], state_dict["proxy_values"]
            self._first_entropy, self._has_new_evaluation = state_dict["first_entropy"], state_dict["has_new_evaluation"]
            self.ended, self._starts_silent = state_dict.get("ended", ""), state_dict.get("starts_silent")
            self._evaluations = [
                (proxy, {key: HeldOut(*point) for key, point in held_out.items()})
                for proxy, held_out in state_dict["evaluations"]
            ]


def _noise(a: HeldOut, b: HeldOut) -> float:
    """Return the half-width of the 95% interval of the difference of two metrics, 0 if unknown."""
    halves = [(point.high - point.low) / 2 for point in (a, b) if point.low is not None and point.high is not None]
    return sum(half**2 for half in halves) ** 0.5


def _stop_sentence(run: Run, step: int, name: str, text: str) -> str:
    full_stop = "" if text.endswith("?") else "."
    return (
        f"{run.path} stopped after step {step} at the warning {name} (stop_on_warning), with a checkpoint: {text}{full_stop} "
        f"Read its answers (`mmrlhf report {run.path}`); the same command goes on, to the next warning"
    )
