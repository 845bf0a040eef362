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

from mmrlhf.answers import choice, leading_yes_no, number, yes_no
from mmrlhf.files import write_whole
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
    truth: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    most: int = 1
    ended: bool = True


Span = tuple[int, int, float]
"""Characters from, up to, and what they are worth."""
Value = float | Sequence[Span]
Term = Callable[[Sequence[Sample]], Sequence[Value]]


# ---- terms -----------------------------------------------------------------------------------------------------------


def correctness(samples: Sequence[Sample]) -> list[float]:
    """1 for an answer that says what the row's own answer says (yes/no, a letter of multiple choice, a number, or the same words), else 0.

    A row without an answer gets 0. One with LLaVA-RLHF's `caption_type` is judged as Sun et al. 2023 do: a letter 1 or 0; a question
    whose answer is no 0.5 for no and -0.5 for yes; one whose answer is yes always 0, against a bias to yes.
    """
    return [
        _by_caption_type(s) if "caption_type" in s.meta else float(is_correct(s.answer, s.truth, s.prompt[-1].content))
        for s in samples
    ]


def length(samples: Sequence[Sample]) -> list[float]:
    """Tokens as a share of the most there may be, times the row's `length_bonus` (1 if it has none). LLaVA-RLHF."""
    return [s.tokens / s.most * float(s.meta.get("length_bonus", 1.0)) for s in samples]


def missing_eos(samples: Sequence[Sample]) -> list[float]:
    """1 for an answer that was cut off before its end, else 0."""
    return [float(not s.ended) for s in samples]


def repetition(samples: Sequence[Sample]) -> list[float]:
    """The share of an answer's runs of four words that it has said before."""
    found = []
    for sample in samples:
        words = sample.answer.lower().split()
        runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
        found.append(1 - len(set(runs)) / len(runs) if runs else 0.0)
    return found


def question_mark(samples: Sequence[Sample]) -> list[float]:
    """1 for an answer that asks something, else 0. LLaVA-RLHF counts such an answer as one that did not end."""
    return [float("?" in s.answer) for s in samples]


TERMS: dict[str, Term] = {
    "correctness": correctness,
    "length": length,
    "missing_eos": missing_eos,
    "question_mark": question_mark,
    "repetition": repetition,
}

LETTERS = {2: "A", 3: "B", 4: "C", 5: "D"}
NO, YES = 6, 7
"""LLaVA-RLHF's `caption_type`."""


def _by_caption_type(sample: Sample) -> float:
    kind, said = sample.meta["caption_type"], sample.answer.strip()
    if letter := LETTERS.get(kind):
        return float(said.startswith(f"{letter}.") or f"correct option is {letter}." in said)
    return 0.5 * (said.startswith("No") - said.startswith("Yes")) if kind == NO else 0.0


def is_correct(answer: str, truth: str | None, question: str = "") -> bool:
    """Whether an answer says what `truth` says: its yes or no, its letter, its number (as `answers` reads them), or its words."""
    if truth is None:
        return False
    words = truth.strip().rstrip(".").strip()
    if (verdict := leading_yes_no(truth)) is not None:
        return yes_no(answer, question) == verdict
    if re.fullmatch(r"\(?[A-H]\)?", words):
        return choice(answer, "ABCDEFGH") == words.strip("()")
    if re.fullmatch(r"-?\d[\d,]*(?:\.\d+)?", words) and (right := number(words)) is not None:
        said = number(answer)
        return said is not None and math.isclose(said, right)
    return " ".join(answer.lower().split()).rstrip(".") == " ".join(words.lower().split())


# ---- the list --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighted:
    name: str
    weight: float
    term: Term


def parse(reward_terms: str) -> dict[str, float]:
    """`fact_rm=1, missing_eos=-1, my_terms.py:polite=0.5` as weights by name. Raises InputError."""
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in reward_terms.split(","))):
        name, equals, weight = (word.strip() for word in part.rpartition("="))
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not equals or not name or not math.isfinite(number):
            raise InputError(f"reward_terms has {part!r}: write NAME=WEIGHT, such as length=-0.5, with commas between")
        if name in found:
            raise InputError(f"reward_terms names {name} twice: keep one")
        found[name] = number
    if not found:
        raise InputError("reward_terms names no term: write fact_rm=1, for one")
    return found


def resolve(reward_terms: str, more: Mapping[str, Term]) -> list[Weighted]:
    """The terms of a list, `more` among those it may name. Raises InputError for one that is nowhere."""
    known = {**TERMS, **more}
    found = []
    for name, weight in parse(reward_terms).items():
        if name not in known and ".py:" not in name:
            raise InputError(f"reward_terms names {name}: there is {', '.join(sorted(known))}, or FILE.py:NAME")
        found.append(Weighted(name, weight, known[name] if name in known else _from_file(name)))
    return found


def _from_file(name: str) -> Term:
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
    term = getattr(module, attribute, None)
    if not callable(term):
        raise InputError(f"reward_terms names {name}: {path} has no function {attribute}")
    return term  # type: ignore[no-any-return]


# ---- the ledger ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """What each term gave an answer, weights counted in: for the whole of it, and for spans of its characters."""

    terms: dict[str, float]
    spans: dict[str, list[Span]]

    @property
    def whole(self) -> float:
        """What the answer as a whole is worth: the terms that are not spread over spans."""
        return sum(value for name, value in self.terms.items() if name not in self.spans)

    @property
    def total(self) -> float:
        return sum(self.terms.values())


def ledger(terms: Sequence[Weighted], samples: Sequence[Sample], replay: Path) -> list[Entry]:
    """Every term's value of every sample. Raises InputError for a term that fails, with its name and the first sample it fails on,
    which is kept in the file `replay`."""
    entries = [Entry({}, {}) for _ in samples]
    for weighted in terms:
        for entry, value in zip(entries, _values(weighted, samples, replay), strict=True):
            if isinstance(value, Real):
                entry.terms[weighted.name] = weighted.weight * float(value)
            else:
                spans = [(start, end, weighted.weight * worth) for start, end, worth in value]
                entry.spans[weighted.name] = spans
                entry.terms[weighted.name] = math.fsum(worth for *_, worth in spans)
    return entries


def ledger_rows(
    samples: Sequence[Sample], entries: Sequence[Entry], paid: Sequence[float], claimed: Sequence[Sequence[Any]] | None
) -> list[dict[str, Any]]:
    """What each answer was paid, by term; `kl` is the rest, so that the terms and it add up to `total`, which was trained on. `claims` are
    its claims with their verdicts, where there is someone who judges."""
    return [
        {"id": s.id, "answer": s.answer, "terms": e.terms, "kl": total - e.total, "total": total}
        | ({"spans": e.spans} if e.spans else {})
        | ({"images": [image.name for image in s.images], "claims": claims} if claimed is not None else {})
        for s, e, total, claims in zip(samples, entries, paid, claimed or [()] * len(samples), strict=True)
    ]


def _values(weighted: Weighted, samples: Sequence[Sample], replay: Path) -> list[Any]:
    try:
        values = [v.item() if hasattr(v, "item") else v for v in weighted.term(samples)]  # scalars of torch and NumPy
    except Exception as error:
        if isinstance(error, InputError) and ".py:" not in weighted.name:
            raise  # it names what is wrong with the input; a user's own code may meet one, too
        _stop(weighted, _first_failing(weighted, samples), f"raised {type(error).__name__}: {error}", replay, error)
    if len(values) != len(samples):
        _stop(weighted, samples[0], f"gave {len(values)} values for {len(samples)} samples", replay)
    for sample, value in zip(samples, values, strict=True):
        if problem := _problem(value, sample):
            _stop(weighted, sample, problem, replay)
    return values


def _problem(value: Any, sample: Sample) -> str:
    if isinstance(value, Real):
        return "" if math.isfinite(value) else f"gave {float(value)}"
    try:
        for start, end, worth in value:
            if not (0 <= start < end <= len(sample.answer)):
                return f"gave the span {start}..{end} of an answer of {len(sample.answer)} characters"
            if not math.isfinite(worth):
                return f"gave {worth} for the span {start}..{end}"
    except (TypeError, ValueError):
        return f"gave {value!r}, neither a number nor a list of (start, end, value)"
    return ""


def _first_failing(weighted: Weighted, samples: Sequence[Sample]) -> Sample:
    for sample in samples:
        try:
            weighted.term([sample])
        except Exception:  # looked for
            return sample
    return samples[0]


def _stop(weighted: Weighted, sample: Sample, problem: str, replay: Path, error: Exception | None = None) -> NoReturn:
    kept = {
        "term": weighted.name,
        "problem": problem,
        **{k: getattr(sample, k) for k in ("id", "answer", "truth", "tokens", "most", "ended")},
        "prompt": [asdict(m) for m in sample.prompt],
        "images": [image.path or {"base64": base64.b64encode(image.read()).decode()} for image in sample.images],
        "facts": [asdict(f) for f in sample.facts],
        "meta": json.loads(json.dumps(dict(sample.meta), default=str)),
    }
    write_whole(replay, json_line(kept))
    where = f"on an answer to row {sample.id}" if sample.id else "on an answer"
    raise InputError(f"reward term {weighted.name} {problem} {where}, which is kept in {replay}: correct the term") from error


# ---- guards ----------------------------------------------------------------------------------------------------------

REFUSAL = re.compile(
    r"\W*(?:(?:i am|i'm|i’m) (?:sorry|unable|not able)|sorry\b|i (?:cannot|can't|can’t|won't|won’t|do not|don't|don’t) "
    r"(?:see|help|answer|describe|tell|determine|know|provide|assist|have)|as an ai\b|unfortunately\b|it is not possible to)"
)
"""How an answer that gives none begins."""


def guards(samples: Sequence[Sample], totals: Sequence[float], generations: int) -> dict[str, float]:
    """What shows a reward that is gamed: shares of answers that refuse, say yes, say no, and the correlation of length and reward among
    the answers to one prompt (among all, where prompts have one)."""
    said = [leading_yes_no(s.answer) for s in samples]
    group = generations if generations > 1 else len(samples)  # one answer to each prompt: among all of them
    tokens, reward = (np.array(v, dtype=float).reshape(-1, group) for v in ([s.tokens for s in samples], totals))
    a, b = (v - v.mean(1, keepdims=True) for v in (tokens, reward))
    scale = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return {
        "guard/refusal_rate": float(np.mean([bool(REFUSAL.match(s.answer.lower())) for s in samples])),
        "guard/says_yes": said.count("yes") / len(said),
        "guard/says_no": said.count("no") / len(said),
        "guard/length_reward_correlation": float((a * b).sum()) / scale if scale > 1e-12 else 0.0,
    }


def alarms(means: Mapping[str, float]) -> list[str]:
    """A line for each guard that is out of bounds, given the means over some steps: what the policy may have found out of the reward."""
    found = []
    if (refusals := means["guard/refusal_rate"]) > 0.2:
        found.append(f"{refusals:.0%} of answers refuse: does the reward pay for saying nothing?")
    if (silent := means.get("guard/zero_claim_rate", 0.0)) > 0.5:
        found.append(f"{silent:.0%} of answers claim nothing of their picture: does the reward pay for silence?")
    if (vague := means.get("guard/vagueness", 0.0)) > 0.3:
        found.append(f"{vague:.0%} of claims are hedged: does the reward pay for vagueness?")
    yes, no = means["guard/says_yes"], means["guard/says_no"]
    if yes + no > 0.05 and not 0.1 <= (rate := yes / (yes + no)) <= 0.9:
        found.append(f"{rate:.0%} of answers that begin with yes or no say yes: does the reward pay for one of them?")
    if abs(correlation := means["guard/length_reward_correlation"]) > 0.8:
        found.append(
            f"length and reward correlate by {correlation:+.2f} among a prompt's answers: does the reward pay for length?"
        )
    return found
