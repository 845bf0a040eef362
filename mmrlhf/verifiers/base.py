"""What a verifier is, and how sure one is of a number that it has measured."""

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
from mmrlhf.records import Claim, Fact, ImageSource, InputError, Verdict

CLAIM_KINDS = ("object", "attribute", "count", "relation")


@dataclass(frozen=True)
class AnswerClaims:
    """Claims of one answer, with the pictures that it is about and what is known of them."""

    images: tuple[ImageSource, ...]
    facts: tuple[Fact, ...]
    claims: tuple[Claim, ...]


Verifier = Callable[[Sequence[AnswerClaims]], list[list[Verdict]]]
"""A verdict for each claim of each answer, in their order."""


def unknown_verdict(claim: Claim, evidence: str = "") -> Verdict:
    return Verdict(claim, "unknown", evidence, None)


def strip_negation(claim: Claim) -> tuple[Claim, bool]:
    """The claim that can be looked for, and whether what is found of it must be turned round: "no dog" is asked as "a dog"."""
    if claim.kind == "count" and claim.value == "0":
        return replace(claim, kind="object", value="", negated=False), not claim.negated
    return replace(claim, negated=False), claim.negated


@dataclass(frozen=True)
class PlattScaling:
    """The probability that a claim is true, sigmoid(a x + b), from a number x that a verifier measures: a and b by kind of claim. Of a kind that
    is not there nobody knows. Between `low` and `high` the verdict is unknown."""

    coefficients: Mapping[str, tuple[float, float]]
    low: float = 0.3
    high: float = 0.7

    def probability(self, kind: str, score: float) -> float | None:
        if kind not in self.coefficients:
            return None
        a, b = self.coefficients[kind]
        logit = a * score + b
        return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0

    def verdict(self, claim: Claim, score: float, evidence: str) -> Verdict:
        """Of a claim, given x of its positive form."""
        positive_claim, is_flipped = strip_negation(claim)
        probability = self.probability(positive_claim.kind, score)
        if probability is None:
            return unknown_verdict(claim, f"{evidence}; not calibrated for claims of kind {positive_claim.kind}")
        probability = 1 - probability if is_flipped else probability
        value = "supported" if probability >= self.high else "contradicted" if probability <= self.low else "unknown"
        return Verdict(claim, value, evidence, probability)  # type: ignore[arg-type]


def fit_platt_scaling(measurements: Iterable[tuple[str, float, bool]], low: float = 0.3, high: float = 0.7) -> PlattScaling:
    """By maximum likelihood on labelled claims: their kind, what was measured, whether they are true. A kind of which only true or
    only false ones are there is left out."""
    samples = list(measurements)
    coefficients = {}
    for kind in CLAIM_KINDS:
        scores, labels = (
            np.array([sample[1] for sample in samples if sample[0] == kind]),
            np.array([sample[2] for sample in samples if sample[0] == kind], dtype=bool),
        )
        if 0 < labels.sum() < len(labels):
            coefficients[kind] = fit_logistic(scores, labels)
    return PlattScaling(coefficients, low, high)


# ---- on disk -----------------------------------------------------------------------------------------------------------


def save_calibration(calibration: PlattScaling, path: Path, **metadata: Any) -> None:
    content = {
        "certainty": {kind: list(pair) for kind, pair in calibration.coefficients.items()},
        "unknown_between": [calibration.low, calibration.high],
    }
    write_atomic(path, json.dumps(content | metadata, indent=1))


def load_calibration(path: Path) -> tuple[PlattScaling, dict[str, Any]]:
    """What `save` wrote, and what else it was given. Raises InputError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        coefficients = {str(kind): (float(a), float(b)) for kind, (a, b) in content.pop("certainty").items()}
        low, high = (float(value) for value in content.pop("unknown_between"))
        if unknown_kinds := [name for name in coefficients if name not in CLAIM_KINDS]:
            raise ValueError(f"there is no kind {unknown_kinds[0]}")
        if not all(math.isfinite(value) for pair in coefficients.values() for value in pair) or not 0 <= low <= high <= 1:
            raise ValueError("numbers out of range")
    except FileNotFoundError:
        raise InputError(f"calibration {path} does not exist: correct the path") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"calibration {path} cannot be read ({reason}): it has `certainty`, for each kind of claim [a, b], and `unknown_between` [low, high]"
        ) from None
    return PlattScaling(coefficients, low, high), content
