"""Uncertainty of tasks: labels of uncertain ones teach the most (`--order uncertainty`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Protocol

from mmrlhf.claims import Lexicon, extract_claims
from mmrlhf.files.rows import Row, is_finite_number, preview
from mmrlhf.files.tables import read_rows
from mmrlhf.metrics.youden import ALL_KINDS
from mmrlhf.records import InputError

CONDITIONS = ("with facts", "without facts")
"""Keys of J in a report of `mmrlhf reward-eval`; the first one present counts."""


class RatedTask(Protocol):
    """The inputs of a task's uncertainty: the row's id, and its answers."""

    @property
    def name(self) -> str: ...
    @property
    def answers(self) -> Sequence[str]: ...


UncertaintyOf = Callable[[RatedTask], float | None]
"""Returns the uncertainty of a task, the higher the more uncertain, or None if nothing is known."""


def number_field(row: Row, name: str) -> float | None:
    """Return a row's finite number, or None without one. Raises InputError for anything else."""
    value = row.fields.get(name)
    if value is None:
        return None
    if not is_finite_number(value):
        row.fail(f"`{name}` must be a finite number, not {preview(value)}")
    return float(value)


# ---- reward models that are in doubt -------------------------------------------------------------


def uncertainty_of_margins(paths: Sequence[str]) -> UncertaintyOf:
    """Return the uncertainty of a pair by margins of reward models, from files of `mmrlhf score`.

    With one model, a small margin is uncertain; with several, margins that differ (their standard
    deviation). Raises InputError for another kind of file.
    """
    margins_by_model = [read_margins(path) for path in paths]

    def uncertainty(task: RatedTask) -> float | None:
        margins = [margins[task.name] for margins in margins_by_model if task.name in margins]
        if len(margins) < len(margins_by_model):
            return None
        return pstdev(margins) if len(margins) > 1 else -abs(margins[0])

    return uncertainty


def read_margins(path: str) -> dict[str, float]:
    """Return the margin of each pair that `mmrlhf score` wrote, by row id. Raises InputError."""
    margins = {}
    for raw_row in read_rows(path):
        row = raw_row.parse()
        chosen, rejected = (number_field(row, row.require_any(name)) for name in ("score_chosen", "score_rejected"))
        assert chosen is not None and rejected is not None
        margins[str(row.require("id"))] = chosen - rejected
    return margins


# ---- reward models that cannot tell a kind of claim ----------------------------------------------


def uncertainty_of_claims(path: str, lexicon: Lexicon | None = None) -> UncertaintyOf:
    """Return the mean of 1 - J over the claims of a task's answers, J by kind from a report.

    The report is that of `mmrlhf reward-eval --answers`. Raises InputError if it has no J.
    """
    j_by_kind = read_j(path)

    def uncertainty(task: RatedTask) -> float | None:
        kinds = [claim.kind for answer in task.answers for claim in extract_claims(answer, lexicon)]
        values = [1 - j for kind in kinds if (j := j_by_kind.get(kind, j_by_kind.get(ALL_KINDS))) is not None]
        return fmean(values) if values else None

    return uncertainty


def read_j(path: str) -> dict[str, float]:
    """Return J by kind of claim from a report of `mmrlhf reward-eval`. Raises InputError."""
    try:
        detection = json.loads(Path(path).read_text(encoding="utf-8"))["policy"]["detection"]
        by_kind: Mapping[str, Mapping[str, Mapping[str, float] | None]] = next(
            detection[condition] for condition in CONDITIONS if condition in detection
        )
        return {kind: float(rates["J"]["value"]) for kind, rates in by_kind.items() if rates["J"] is not None}
    except OSError as error:
        raise InputError(f"reward_eval_file {path} cannot be read ({error.strerror}): correct the path") from None
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        raise InputError(
            f"reward_eval_file {path} has no J by kind of claim: write it with `mmrlhf reward-eval --answers`, with a truth"
        ) from None
