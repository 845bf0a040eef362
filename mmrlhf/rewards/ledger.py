"""The reward that a policy is trained on: a weighted list of named terms, and the ledger of what each gave to each answer.

A term is a plain function from samples to one value each: a number for the whole answer, or a list of `(start, end, value)` for spans of
its characters. Terms come from here (`TERMS`), from the stage (`fact_rm`), or from a Python file of the user's. A term that fails stops
the run: it never counts as zero.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line
from mmrlhf.records import InputError
from mmrlhf.rewards.functions import REWARD_FUNCTIONS
from mmrlhf.rewards.types import RewardFunction, RewardSpan, Sample

# ---- terms -----------------------------------------------------------------------------------------------------------


# ---- the list --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightedReward:
    name: str
    weight: float
    function: RewardFunction


def parse_reward_spec(reward_terms: str) -> dict[str, float]:
    """`fact_rm=1, missing_eos=-1, my_terms.py:polite=0.5` as weights by name. Raises InputError."""
    weights: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in reward_terms.split(","))):
        name, equals, weight_text = (word.strip() for word in part.rpartition("="))
        try:
            value = float(weight_text)
        except ValueError:
            value = math.nan
        if not equals or not name or not math.isfinite(value):
            raise InputError(f"reward_terms has {part!r}: write NAME=WEIGHT, such as length=-0.5, with commas between")
        if name in weights:
            raise InputError(f"reward_terms names {name} twice: keep one")
        weights[name] = value
    if not weights:
        raise InputError("reward_terms names no term: write fact_rm=1, for one")
    return weights


def resolve_rewards(reward_terms: str, extra: Mapping[str, RewardFunction]) -> list[WeightedReward]:
    """The terms of a list, `more` among those it may name. Raises InputError for one that is nowhere."""
    available = {**REWARD_FUNCTIONS, **extra}
    weighted_rewards = []
    for name, weight in parse_reward_spec(reward_terms).items():
        if name not in available and ".py:" not in name:
            raise InputError(f"reward_terms names {name}: there is {', '.join(sorted(available))}, or FILE.py:NAME")
        weighted_rewards.append(WeightedReward(name, weight, available[name] if name in available else _load_from_file(name)))
    return weighted_rewards


def _load_from_file(name: str) -> RewardFunction:
    path, _, attribute = name.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise InputError(f"reward_terms names {name}: the file {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"mmrlhf_term_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there for their module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code
        raise InputError(f"reward_terms names {name}: {path} cannot be imported ({type(error).__name__}: {error})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"reward_terms names {name}: {path} has no function {attribute}")
    return function  # type: ignore[no-any-return]


# ---- the ledger ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardBreakdown:
    """What each term gave an answer, weights counted in: for the whole of it, and for spans of its characters."""

    terms: dict[str, float]
    spans: dict[str, list[RewardSpan]]

    @property
    def answer_total(self) -> float:
        """What the answer as a whole is worth: the terms that are not spread over spans."""
        return sum(value for name, value in self.terms.items() if name not in self.spans)

    @property
    def total(self) -> float:
        return sum(self.terms.values())


def score_samples(
    weighted_rewards: Sequence[WeightedReward], samples: Sequence[Sample], failure_file: Path
) -> list[RewardBreakdown]:
    """Every term's value of every sample. Raises InputError for a term that fails, with its name and the first sample it fails on,
    which is kept in the file `replay`."""
    breakdowns = [RewardBreakdown({}, {}) for _ in samples]
    for weighted_reward in weighted_rewards:
        for breakdown, value in zip(breakdowns, _call_reward_function(weighted_reward, samples, failure_file), strict=True):
            if isinstance(value, Real):
                breakdown.terms[weighted_reward.name] = weighted_reward.weight * float(value)
            else:
                spans = [(start, end, weighted_reward.weight * span_reward) for start, end, span_reward in value]
                breakdown.spans[weighted_reward.name] = spans
                breakdown.terms[weighted_reward.name] = math.fsum(span_reward for *_, span_reward in spans)
    return breakdowns


def ledger_rows(
    samples: Sequence[Sample],
    breakdowns: Sequence[RewardBreakdown],
    total_rewards: Sequence[float],
    claim_rows: Sequence[Sequence[Any]] | None,
) -> list[dict[str, Any]]:
    """What each answer was paid, by term; `kl` is the rest, so that the terms and it add up to `total`, which was trained on. `claims` are
    its claims with their verdicts, where there is someone who judges."""
    return [
        {"id": s.id, "answer": s.answer, "terms": e.terms, "kl": total - e.total, "total": total}
        | ({"spans": e.spans} if e.spans else {})
        | ({"images": [image.name for image in s.images], "claims": claims} if claim_rows is not None else {})
        for s, e, total, claims in zip(samples, breakdowns, total_rewards, claim_rows or [()] * len(samples), strict=True)
    ]


def _call_reward_function(weighted_reward: WeightedReward, samples: Sequence[Sample], failure_file: Path) -> list[Any]:
    try:
        values = [v.item() if hasattr(v, "item") else v for v in weighted_reward.function(samples)]  # scalars of torch and NumPy
    except Exception as error:
        if isinstance(error, InputError) and ".py:" not in weighted_reward.name:
            raise  # it names what is wrong with the input; a user's own code may meet one, too
        _raise_reward_error(
            weighted_reward,
            _first_failing_sample(weighted_reward, samples),
            f"raised {type(error).__name__}: {error}",
            failure_file,
            error,
        )
    if len(values) != len(samples):
        _raise_reward_error(weighted_reward, samples[0], f"gave {len(values)} values for {len(samples)} samples", failure_file)
    for sample, value in zip(samples, values, strict=True):
        if problem := _find_problem(value, sample):
            _raise_reward_error(weighted_reward, sample, problem, failure_file)
    return values


def _find_problem(value: Any, sample: Sample) -> str:
    if isinstance(value, Real):
        return "" if math.isfinite(value) else f"gave {float(value)}"
    try:
        for start, end, span_reward in value:
            if not (0 <= start < end <= len(sample.answer)):
                return f"gave the span {start}..{end} of an answer of {len(sample.answer)} characters"
            if not math.isfinite(span_reward):
                return f"gave {span_reward} for the span {start}..{end}"
    except (TypeError, ValueError):
        return f"gave {value!r}, neither a number nor a list of (start, end, value)"
    return ""


def _first_failing_sample(weighted_reward: WeightedReward, samples: Sequence[Sample]) -> Sample:
    for sample in samples:
        try:
            weighted_reward.function([sample])
        except Exception:  # looked for
            return sample
    return samples[0]


def _raise_reward_error(
    weighted_reward: WeightedReward, sample: Sample, problem: str, failure_file: Path, error: Exception | None = None
) -> NoReturn:
    record = {
        "term": weighted_reward.name,
        "problem": problem,
        "id": sample.id,
        "answer": sample.answer,
        "reference": sample.reference,
        "num_tokens": sample.num_tokens,
        "max_tokens": sample.max_tokens,
        "finished": sample.finished,
        "prompt": [asdict(m) for m in sample.prompt],
        "images": [image.path or {"base64": base64.b64encode(image.read()).decode()} for image in sample.images],
        "facts": [asdict(f) for f in sample.facts],
        "meta": json.loads(json.dumps(dict(sample.meta), default=str)),
    }
    write_atomic(failure_file, json_line(record))
    location = f"on an answer to row {sample.id}" if sample.id else "on an answer"
    raise InputError(
        f"reward term {weighted_reward.name} {problem} {location}, which is kept in {failure_file}: correct the term"
    ) from error


# ---- guards ----------------------------------------------------------------------------------------------------------
