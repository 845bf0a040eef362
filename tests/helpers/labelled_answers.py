"""Labelled answers for tests, from a utility and a number of words."""

from __future__ import annotations

from mmrlhf.records import Claim, Verdict
from mmrlhf.training.feedback.labels import LabelledAnswer, SampledAnswer
from mmrlhf.training.feedback.pairs import Comparison

SUPPORTED, CONTRADICTED, UNKNOWN = "supported", "contradicted", "unknown"


def verdict(judged: str, subject: str = "ring", **fields: object) -> Verdict:
    return Verdict(Claim(**{"kind": "object", "subject": subject, **fields}), judged)  # type: ignore[arg-type]


def labelled(
    utility: float, words: int = 3, true_utility: float | None = None, row: int = 0, number: int = 0, text: str = "",
    unusable: str = "", value: str = SUPPORTED,
) -> LabelledAnswer:  # fmt: skip
    """Return an answer of this many words, with one claim; another number has other words."""
    answer = text or " ".join([f"w{number}"] * words)
    sampled = SampledAnswer(row, number, answer, len(answer.split()), unusable)
    return LabelledAnswer(sampled, (verdict(value),), 0, 0.0, None, utility, true_utility)


def comparison(gap: float, length_gap: int = 0, true_gap: float | None = None, first_better: bool = True) -> Comparison:
    """Return a comparison of answers that differ in utility, length and true utility by these."""
    true = None if true_gap is None else 0.0
    better = labelled(gap, 10 + length_gap, true_gap, number=0 if first_better else 1)
    return Comparison(better, labelled(0.0, 10, true, number=1 if first_better else 0))
