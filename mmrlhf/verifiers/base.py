"""The type of a verifier, and Platt scaling, which turns its scores into probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.files.atomic import write_atomic
from mmrlhf.metrics.calibration import fit_logistic
from mmrlhf.records import CLAIM_KINDS, Claim, Fact, ImageSource, InputError, Verdict


@dataclass(frozen=True)
class AnswerClaims:
    """The claims of one answer, with the images it is about and the known facts about them."""

    images: tuple[ImageSource, ...]
    facts: tuple[Fact, ...]
    claims: tuple[Claim, ...]


Verifier = Callable[[Sequence[AnswerClaims]], list[list[Verdict]]]
"""Maps answers to a verdict for each of their claims, in order."""


def unknown_verdict(claim: Claim, evidence: str = "") -> Verdict:
    """Return the verdict of a verifier that cannot judge a claim; `evidence` may say why."""
    return Verdict(claim, "unknown", evidence, None)


def counted_verdicts(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts that benchmarks count: those of an answer's distinct claims, without
    hedged ones and true denials."""
    distinct = {verdict.claim: verdict for verdict in verdicts if not verdict.claim.hedged}.values()
    return [verdict for verdict in distinct if not verdict.claim.negated or verdict.value == "contradicted"]


def strip_negation(claim: Claim) -> tuple[Claim, bool]:
    """Return a claim's positive form, and whether the verdict on it must be flipped.

    "No dog" is verified as "a dog"; a count of zero is a negated object.
    """
    if claim.kind == "count" and claim.value == "0":
        return replace(claim, kind="object", value="", negated=False), not claim.negated
    return replace(claim, negated=False), claim.negated


@dataclass(frozen=True)
class PlattScaling:
    """Maps a verifier's score x to the probability sigmoid(a x + b) of a claim (Platt 1999).

    `coefficients` are (a, b) by kind of claim; other kinds cannot be judged. Between `low` and
    `high`, both excluded, the verdict is unknown.
    """

    coefficients: Mapping[str, tuple[float, float]]
    low: float = 0.3
    high: float = 0.7

    @classmethod
    def fit(cls, measurements: Iterable[tuple[str, float, bool]], low: float = 0.3, high: float = 0.7) -> PlattScaling:
        """Fit the coefficients by maximum likelihood on labelled claims.

        A measurement is a claim's kind, its score, and whether it is true. A kind with only true or
        only false claims is left out.
        """
        samples = list(measurements)
        coefficients = {}
        for kind in CLAIM_KINDS:
            scores = np.array([score for sample_kind, score, _ in samples if sample_kind == kind])
            labels = np.array([is_true for sample_kind, _, is_true in samples if sample_kind == kind], dtype=bool)
            if 0 < labels.sum() < len(labels):
                coefficients[kind] = fit_logistic(scores, labels)
        return cls(coefficients, low, high)

    def probability(self, kind: str, score: float) -> float | None:
        """Return the probability that a claim is true; None for a kind without coefficients."""
        if kind not in self.coefficients:
            return None
        a, b = self.coefficients[kind]
        logit = a * score + b
        return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0  # exp(710) overflows

    def verdict(self, claim: Claim, score: float, evidence: str) -> Verdict:
        """Return the verdict on a claim, given the score of its positive form."""
        positive_claim, is_flipped = strip_negation(claim)
        probability = self.probability(positive_claim.kind, score)
        if probability is None:
            return unknown_verdict(claim, f"{evidence}; not calibrated for claims of kind {positive_claim.kind}")
        probability = 1 - probability if is_flipped else probability
        if probability >= self.high:
            return Verdict(claim, "supported", evidence, probability)
        if probability <= self.low:
            return Verdict(claim, "contradicted", evidence, probability)
        return Verdict(claim, "unknown", evidence, probability)


# ---- on disk -----------------------------------------------------------------------------------


def save_calibration(calibration: PlattScaling, path: Path, **metadata: Any) -> None:
    """Write a calibration and its metadata as JSON."""
    content = {
        "certainty": {kind: list(pair) for kind, pair in calibration.coefficients.items()},
        "unknown_between": [calibration.low, calibration.high],
    }
    write_atomic(path, json.dumps(content | metadata, indent=1))


def load_calibration(path: Path) -> tuple[PlattScaling, dict[str, Any]]:
    """Return a calibration and its metadata, as `save_calibration` wrote them.

    Raises InputError for a file that is missing, malformed, or has coefficients out of range.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        coefficients = {str(kind): (float(a), float(b)) for kind, (a, b) in content.pop("certainty").items()}
        low, high = (float(value) for value in content.pop("unknown_between"))
        if unknown_kinds := [name for name in coefficients if name not in CLAIM_KINDS]:
            raise ValueError(f"unknown kind of claim {unknown_kinds[0]}")
        if not all(math.isfinite(value) for pair in coefficients.values() for value in pair) or not 0 <= low <= high <= 1:
            raise ValueError("numbers out of range")
    except FileNotFoundError:
        raise InputError(f"calibration {path} does not exist: correct the path") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"calibration {path} cannot be read ({reason}): it needs `certainty`, with [a, b] for each kind of claim, and "
            "`unknown_between` [low, high]"
        ) from None
    return PlattScaling(coefficients, low, high), content
