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
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mmrlhf.answers import leading_yes_no, parse_choice, parse_number, parse_yes_no
from mmrlhf.files import write_atomic
from mmrlhf.records import Fact, ImageSource, InputError, Message
from mmrlhf.run import json_line


@dataclass(frozen=True)
class Sample:
    """One sampled answer as terms see it. `truth` is the row's own answer, if it has one; `meta` the row's other fields; `tokens` how
    many the answer has of the `most` it may have; `ended` whether it came to its end."""

    id: str
    images: tuple[ImageSource, ...]
    prompt: tuple[Message, ...]
    answer: str
    facts: tuple[Fact, ...] = ()
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    num_tokens: int = 0
    max_tokens: int = 1
    finished: bool = True


RewardSpan = tuple[int, int, float]
"""Characters from, up to, and what they are worth."""
RewardValue = float | Sequence[RewardSpan]
RewardFunction = Callable[[Sequence[Sample]], Sequence[RewardValue]]


# ---- terms -----------------------------------------------------------------------------------------------------------


def correctness(samples: Sequence[Sample]) -> list[float]:
    """1 for an answer that says what the row's own answer says (yes/no, a letter of multiple choice, a number, or the same words), else 0.

    A row without an answer gets 0. One with LLaVA-RLHF's `caption_type` is judged as Sun et al. 2023 do: a letter 1 or 0; a question
    whose answer is no 0.5 for no and -0.5 for yes; one whose answer is yes always 0, against a bias to yes.
    """
    return [
        _score_by_caption_type(s) if "caption_type" in s.meta else float(is_correct(s.answer, s.reference, s.prompt[-1].content))
        for s in samples
    ]


def length(samples: Sequence[Sample]) -> list[float]:
    """Tokens as a share of the most there may be, times the row's `length_bonus` (1 if it has none). LLaVA-RLHF."""
    return [s.num_tokens / s.max_tokens * float(s.meta.get("length_bonus", 1.0)) for s in samples]


def missing_eos(samples: Sequence[Sample]) -> list[float]:
    """1 for an answer that was cut off before its end, else 0."""
    return [float(not s.finished) for s in samples]


def repetition(samples: Sequence[Sample]) -> list[float]:
    """The share of an answer's runs of four words that it has said before."""
    shares = []
    for sample in samples:
        words = sample.answer.lower().split()
        ngrams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
        shares.append(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
    return shares


def question_mark(samples: Sequence[Sample]) -> list[float]:
    """1 for an answer that asks something, else 0. LLaVA-RLHF counts such an answer as one that did not end."""
    return [float("?" in s.answer) for s in samples]


REWARD_FUNCTIONS: dict[str, RewardFunction] = {
    "correctness": correctness,
    "length": length,
    "missing_eos": missing_eos,
    "question_mark": question_mark,
    "repetition": repetition,
}

CAPTION_TYPE_LETTERS = {2: "A", 3: "B", 4: "C", 5: "D"}
CAPTION_TYPE_NO, CAPTION_TYPE_YES = 6, 7
"""LLaVA-RLHF's `caption_type`."""


def _score_by_caption_type(sample: Sample) -> float:
    caption_type, answer = sample.meta["caption_type"], sample.answer.strip()
    if letter := CAPTION_TYPE_LETTERS.get(caption_type):
        return float(answer.startswith(f"{letter}.") or f"correct option is {letter}." in answer)
    return 0.5 * (answer.startswith("No") - answer.startswith("Yes")) if caption_type == CAPTION_TYPE_NO else 0.0


def is_correct(answer: str, reference: str | None, question: str = "") -> bool:
    """Whether an answer says what `truth` says: its yes or no, its letter, its number (as `answers` reads them), or its words."""
    if reference is None:
        return False
    expected = reference.strip().rstrip(".").strip()
    if (expected_yes_no := leading_yes_no(reference)) is not None:
        return parse_yes_no(answer, question) == expected_yes_no
    if re.fullmatch(r"\(?[A-H]\)?", expected):
        return parse_choice(answer, "ABCDEFGH") == expected.strip("()")
    if re.fullmatch(r"-?\d[\d,]*(?:\.\d+)?", expected) and (expected_number := parse_number(expected)) is not None:
        answer_number = parse_number(answer)
        return answer_number is not None and math.isclose(answer_number, expected_number)
    return " ".join(answer.lower().split()).rstrip(".") == " ".join(expected.lower().split())


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

REFUSAL_PATTERN = re.compile(
    r"\W*(?:(?:i am|i'm|i’m) (?:sorry|unable|not able)|sorry\b|i (?:cannot|can't|can’t|won't|won’t|do not|don't|don’t) "
    r"(?:see|help|answer|describe|tell|determine|know|provide|assist|have)|as an ai\b|unfortunately\b|it is not possible to)"
)
"""How an answer that gives none begins."""


def hacking_metrics(samples: Sequence[Sample], total_rewards: Sequence[float], num_generations: int) -> dict[str, float]:
    """What shows a reward that is gamed: shares of answers that refuse, say yes, say no, and the correlation of length and reward among
    the answers to one prompt (among all, where prompts have one)."""
    yes_no_answers = [leading_yes_no(s.answer) for s in samples]
    group_size = num_generations if num_generations > 1 else len(samples)  # one answer to each prompt: among all of them
    lengths, grouped_rewards = (
        np.array(v, dtype=float).reshape(-1, group_size) for v in ([s.num_tokens for s in samples], total_rewards)
    )
    centered_lengths, centered_rewards = (v - v.mean(1, keepdims=True) for v in (lengths, grouped_rewards))
    norm_product = math.sqrt(float((centered_lengths**2).sum() * (centered_rewards**2).sum()))
    return {
        "hacking/refusal_rate": float(np.mean([bool(REFUSAL_PATTERN.match(s.answer.lower())) for s in samples])),
        "hacking/says_yes": yes_no_answers.count("yes") / len(yes_no_answers),
        "hacking/says_no": yes_no_answers.count("no") / len(yes_no_answers),
        "hacking/length_reward_correlation": float((centered_lengths * centered_rewards).sum()) / norm_product
        if norm_product > 1e-12
        else 0.0,
    }


def hacking_warnings(means: Mapping[str, float]) -> list[str]:
    """A line for each guard that is out of bounds, given the means over some steps: what the policy may have found out of the reward."""
    messages = []
    if (refusal_rate := means["hacking/refusal_rate"]) > 0.2:
        messages.append(f"{refusal_rate:.0%} of answers refuse: does the reward pay for saying nothing?")
    if (zero_claim_rate := means.get("hacking/zero_claim_rate", 0.0)) > 0.5:
        messages.append(f"{zero_claim_rate:.0%} of answers claim nothing of their picture: does the reward pay for silence?")
    if (hedged_share := means.get("hacking/vagueness", 0.0)) > 0.3:
        messages.append(f"{hedged_share:.0%} of claims are hedged: does the reward pay for vagueness?")
    yes_share, no_share = means["hacking/says_yes"], means["hacking/says_no"]
    if yes_share + no_share > 0.05 and not 0.1 <= (yes_rate := yes_share / (yes_share + no_share)) <= 0.9:
        messages.append(f"{yes_rate:.0%} of answers that begin with yes or no say yes: does the reward pay for one of them?")
    if abs(correlation := means["hacking/length_reward_correlation"]) > 0.8:
        messages.append(
            f"length and reward correlate by {correlation:+.2f} among a prompt's answers: does the reward pay for length?"
        )
    return messages
