"""What a verifier is, and how sure one is of a number that it has measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.calibration import fit_logistic
from mmrlhf.files import write_whole
from mmrlhf.records import Claim, Fact, ImageSource, InputError, Verdict

KINDS = ("object", "attribute", "count", "relation")


@dataclass(frozen=True)
class Said:
    """Claims of one answer, with the pictures that it is about and what is known of them."""

    images: tuple[ImageSource, ...]
    facts: tuple[Fact, ...]
    claims: tuple[Claim, ...]


Verifier = Callable[[Sequence[Said]], list[list[Verdict]]]
"""A verdict for each claim of each answer, in their order."""


def unknown(claim: Claim, why: str = "") -> Verdict:
    return Verdict(claim, "unknown", why, None)


def positive(claim: Claim) -> tuple[Claim, bool]:
    """The claim that can be looked for, and whether what is found of it must be turned round: "no dog" is asked as "a dog"."""
    if claim.kind == "count" and claim.value == "0":
        return replace(claim, kind="object", value="", negated=False), not claim.negated
    return replace(claim, negated=False), claim.negated


@dataclass(frozen=True)
class Certainty:
    """The probability that a claim is true, sigmoid(a x + b), from a number x that a verifier measures: a and b by kind of claim. Of a kind that
    is not there nobody knows. Between `low` and `high` the verdict is unknown."""

    by_kind: Mapping[str, tuple[float, float]]
    low: float = 0.3
    high: float = 0.7

    def probability(self, kind: str, x: float) -> float | None:
        if kind not in self.by_kind:
            return None
        a, b = self.by_kind[kind]
        z = a * x + b
        return 1 / (1 + math.exp(-z)) if z > -700 else 0.0

    def verdict(self, claim: Claim, x: float, evidence: str) -> Verdict:
        """Of a claim, given x of its positive form."""
        asked, turned = positive(claim)
        p = self.probability(asked.kind, x)
        if p is None:
            return unknown(claim, f"{evidence}; not calibrated for claims of kind {asked.kind}")
        p = 1 - p if turned else p
        value = "supported" if p >= self.high else "contradicted" if p <= self.low else "unknown"
        return Verdict(claim, value, evidence, p)  # type: ignore[arg-type]


def fitted(measured: Iterable[tuple[str, float, bool]], low: float = 0.3, high: float = 0.7) -> Certainty:
    """By maximum likelihood on labelled claims: their kind, what was measured, whether they are true. A kind of which only true or
    only false ones are there is left out."""
    rows = list(measured)
    by_kind = {}
    for kind in KINDS:
        x, true = np.array([r[1] for r in rows if r[0] == kind]), np.array([r[2] for r in rows if r[0] == kind], dtype=bool)
        if 0 < true.sum() < len(true):
            by_kind[kind] = fit_logistic(x, true)
    return Certainty(by_kind, low, high)


# ---- on disk -----------------------------------------------------------------------------------------------------------


def save(certainty: Certainty, path: Path, **more: Any) -> None:
    kept = {"certainty": {k: list(v) for k, v in certainty.by_kind.items()}, "unknown_between": [certainty.low, certainty.high]}
    write_whole(path, json.dumps(kept | more, indent=1))


def load(path: Path) -> tuple[Certainty, dict[str, Any]]:
    """What `save` wrote, and what else it was given. Raises InputError."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        by_kind = {str(kind): (float(a), float(b)) for kind, (a, b) in kept.pop("certainty").items()}
        low, high = (float(v) for v in kept.pop("unknown_between"))
        if unfit := [k for k in by_kind if k not in KINDS]:
            raise ValueError(f"there is no kind {unfit[0]}")
        if not all(math.isfinite(v) for pair in by_kind.values() for v in pair) or not 0 <= low <= high <= 1:
            raise ValueError("numbers out of range")
    except FileNotFoundError:
        raise InputError(f"calibration {path} does not exist: correct the path") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"calibration {path} cannot be read ({reason}): it has `certainty`, for each kind of claim [a, b], and `unknown_between` [low, high]"
        ) from None
    return Certainty(by_kind, low, high), kept
