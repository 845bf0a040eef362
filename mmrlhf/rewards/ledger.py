"""The values of a run's reward functions (`reward_terms`) for each answer, and their ledger.

A reward function maps samples to one value each: a number for the whole answer, a list of `(start,
end, value)` for spans of its characters, or None if it does not apply. A function that fails stops
the run: a failure never counts as zero.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from operator import index
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.records import InputError
from mmrlhf.rewards.reward_terms import WeightedReward
from mmrlhf.rewards.types import RewardSpan, Sample

FAILURE_FILE = "failed_term.json"
"""A file of the run's directory: the input on which a reward function failed."""
MAX_REWARD = 3.4028234663852886e38
"""The largest number that float32 can hold."""


@dataclass(frozen=True)
class RewardBreakdown:
    """Each reward function's value for an answer, and its contribution to the reward.

    `values` are the functions' own values, and `terms` their contributions: weight x value, or with
    `normalized` values, weight x normalized value. The amount that length bounds cut off is a term
    as well. `spans` has the contributions of functions that reward spans, without the part of
    normalisation that belongs to the whole answer. A function that does not apply to the answer is
    only in `weights`.
    """

    terms: dict[str, float]
    spans: dict[str, list[RewardSpan]]
    values: dict[str, float]
    weights: Mapping[str, float]
    normalized: dict[str, float] | None = None
    clipped_total: float | None = None
    """The sum in a run that clips it: if a term is 1e17, adding up the terms loses a clipped 5."""

    @property
    def answer_total(self) -> float:
        """Return the sum of all contributions except those of spans."""
        if self.clipped_total is not None:
            return self.clipped_total - math.fsum(reward for spans in self.spans.values() for *_, reward in spans)
        return sum(value - math.fsum(reward for *_, reward in self.spans.get(name, ())) for name, value in self.terms.items())

    @property
    def total(self) -> float:
        """Return the sum of all contributions."""
        return sum(self.terms.values()) if self.clipped_total is None else self.clipped_total

    @property
    def weighted_values(self) -> dict[str, float]:
        """Return weight x value of every function, before anything is normalised or cut off."""
        if self.normalized is None:
            return {name: self.terms[name] for name in self.values}
        return {name: self.weights[name] * value for name, value in self.values.items()}


def score_samples(
    weighted_rewards: Sequence[WeightedReward], samples: Sequence[Sample], failure_file: Path
) -> list[RewardBreakdown]:
    """Evaluate every reward function on every sample.

    Raises InputError if a function raises, returns the wrong number of values, or returns anything
    but numbers, spans within the answer and None, or if no function applies to an answer. Raises
    NotFiniteError for numbers that are not finite or, weighted, beyond float32. The message names
    the function and the first sample on which it fails, which is written to `failure_file`.
    """
    weights = {weighted_reward.name: weighted_reward.weight for weighted_reward in weighted_rewards}
    breakdowns = [RewardBreakdown({}, {}, {}, weights) for _ in samples]
    for weighted_reward in weighted_rewards:
        name, weight = weighted_reward.name, weighted_reward.weight
        values = _call_reward_function(weighted_reward, samples, failure_file)
        for breakdown, value in zip(breakdowns, values, strict=True):
            if value is None:
                continue
            if isinstance(value, Real):
                breakdown.values[name] = float(value)
                breakdown.terms[name] = weight * float(value) + 0.0  # 0, not -0, of a negative weight
            else:
                breakdown.values[name] = math.fsum(span_reward for *_, span_reward in value)
                spans = [(start, end, weight * span_reward) for start, end, span_reward in value]
                breakdown.spans[name] = spans
                breakdown.terms[name] = math.fsum(span_reward for *_, span_reward in spans)
    for sample, breakdown in zip(samples, breakdowns, strict=True):
        if not breakdown.values:
            problem = "returned None, as every other one did,"
            _raise_reward_error(weighted_rewards[-1], sample, problem, failure_file)
    return breakdowns


def values_by_name(breakdowns: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return each function's values, given by name, of the answers that have one."""
    by_name: dict[str, list[float]] = {}
    for values in breakdowns:
        for name, value in values.items():
            by_name.setdefault(name, []).append(value)
    return by_name


def mean_values(breakdowns: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each function's values, given by name, over the answers that have one."""
    return {name: fmean(values) for name, values in values_by_name(breakdowns).items()}


def ledger_rows(
    samples: Sequence[Sample],
    breakdowns: Sequence[RewardBreakdown],
    total_rewards: Sequence[float],
    claim_rows: Sequence[Sequence[Any]] | None,
) -> list[dict[str, Any]]:
    """Return a ledger row per answer: each function's contribution, and the `total` for training.

    `kl` is the difference between `total` and the sum of the contributions. If values are
    normalised, a row also has the values before and after, and the weights. `claim_rows` holds each
    answer's claims with their verdicts, or is None in a run that verifies no claims; with claims, a
    row also has the paths of its images and the prompt's last question.
    """
    rows = []
    for sample, breakdown, total, claims in zip(
        samples, breakdowns, total_rewards, claim_rows or [()] * len(samples), strict=True
    ):
        row = {
            "id": sample.id,
            "answer": sample.answer,
            "terms": breakdown.terms,
            "kl": total - breakdown.total,
            "total": total,
        }
        if breakdown.normalized is not None:
            row |= {"values": breakdown.values, "normalized": breakdown.normalized, "weights": dict(breakdown.weights)}
        if breakdown.spans:
            row["spans"] = breakdown.spans
        if claim_rows is not None:
            images = [image.name if image.path is None else image.path for image in sample.images]
            question = next((message.content for message in reversed(sample.prompt) if message.role == "user"), "")
            row |= {"images": images, "question": question, "claims": claims}
        rows.append(row)
    return rows


# ---- failures ----------------------------------------------------------------------------------


def _call_reward_function(weighted_reward: WeightedReward, samples: Sequence[Sample], failure_file: Path) -> list[Any]:
    """Return a validated value for each sample. Raises InputError as `score_samples` does."""
    try:
        results: Sequence[Any] = weighted_reward.function(samples)
        # `item` turns scalars of torch and NumPy into Python numbers.
        values = [v.item() if hasattr(v, "item") else v for v in results]
    except Exception as error:
        # The InputError of a built-in function already explains the problem. That of a user's
        # function needs the function's name.
        if isinstance(error, InputError) and ".py:" not in weighted_reward.name:
            raise
        failing_sample = _first_failing_sample(weighted_reward, samples)
        _raise_reward_error(weighted_reward, failing_sample, f"raised {type(error).__name__}: {error}", failure_file, error)
    if len(values) != len(samples):
        _raise_reward_error(
            weighted_reward, samples[0], f"returned {len(values)} values for {len(samples)} samples", failure_file
        )
    for sample, value in zip(samples, values, strict=True):
        if problem := _find_problem(value, sample):
            _raise_reward_error(weighted_reward, sample, problem, failure_file)
        if problem := _find_overflow(value, weighted_reward.weight):
            _raise_reward_error(weighted_reward, sample, problem, failure_file, error_class=NotFiniteError)
    return values


def _find_problem(value: Any, sample: Sample) -> str:
    """Return what is wrong with a value, as the predicate of a sentence, or "" if it is valid."""
    if value is None or isinstance(value, Real):
        return ""
    try:
        for start, end, span_reward in value:
            if not 0 <= index(start) < index(end) <= len(sample.answer):
                return f"returned the span {start}..{end} of an answer of {len(sample.answer)} characters"
            if not isinstance(span_reward, Real):
                float(span_reward)
    except (TypeError, ValueError):
        return f"returned {value!r}, which is neither a number, a list of (start, end, value) nor None"
    return ""


def _find_overflow(value: Any, weight: float) -> str:
    """Return which number of a value is not finite, phrased as in `_find_problem`, or ""."""
    if value is None:
        return ""
    try:
        parts = [("", float(value))] if isinstance(value, Real) else [(f" for the span {a}..{b}", float(x)) for a, b, x in value]
    except OverflowError:  # a Python integer
        return "returned a number that is beyond float64,"
    for where, number in parts:
        if not abs(weight * number) <= MAX_REWARD:  # `not <=` also catches NaN
            weighted = f" times its weight {weight:g}" if abs(number) <= MAX_REWARD else ""
            reason = f", which{weighted} is beyond float32," if math.isfinite(number) else ""
            return f"returned {number}{where}{reason}"
    return ""


def _first_failing_sample(weighted_reward: WeightedReward, samples: Sequence[Sample]) -> Sample:
    """Return the first sample that fails on its own, or `samples[0]` if none does."""
    for sample in samples:
        try:
            weighted_reward.function([sample])
        except Exception:  # any error of the user's code
            return sample
    return samples[0]


def _raise_reward_error(
    weighted_reward: WeightedReward,
    sample: Sample,
    problem: str,
    failure_file: Path,
    error: Exception | None = None,
    error_class: type[InputError] = InputError,
) -> NoReturn:
    """Write the sample to `failure_file` and raise an error of this class."""
    record = {
        "term": weighted_reward.name,
        "problem": problem,
        "id": sample.id,
        "answer": sample.answer,
        "reference": sample.reference,
        "num_tokens": sample.num_tokens,
        "max_tokens": sample.max_tokens,
        "finished": sample.finished,
        "prompt": [m.to_dict() for m in sample.prompt],
        "images": [image.path or {"base64": base64.b64encode(image.read()).decode()} for image in sample.images],
        "facts": [asdict(f) for f in sample.facts],
        "meta": json.loads(json.dumps(dict(sample.meta), default=str)),
    }
    write_atomic(failure_file, json_line(record))
    location = f"on an answer to row {sample.id}" if sample.id else "on an answer"
    text = f"reward function {weighted_reward.name} {problem} {location}{saved_in(failure_file)}"
    raise error_class(text) from error


def saved_in(failure_file: Path) -> str:
    """Return the end of an error's message, true until the next failure overwrites the file."""
    return f", which is saved in {failure_file}: correct the function"
