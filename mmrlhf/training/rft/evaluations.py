"""The evaluations of a round, which its run of sft makes, and the best round by them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.training.best_model import BestModel


def first_evaluation(sft_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of eval.jsonl about the model from which a round's sft started."""
    return _rows(sft_dir, 0)


def last_evaluation(sft_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of eval.jsonl about the model that a round's sft wrote.

    There are none without benchmarks, or if the evaluation was not defined.
    """
    finished = _finished(sft_dir)
    return _rows(sft_dir, finished.get("policy_step", finished["steps"]))


def best_round(sft_dirs: Sequence[Path], best: BestModel) -> tuple[int, dict[str, Any]] | None:
    """Return the number of the first round whose model is the best, and `best` of finished.json.

    `sft_dirs` are those of the rounds from 1 on. The `step` of the result is a round: 0 if the best
    model is the one that the first round started from. None if no round has such a metric.
    """
    rounds = [(number, _finished(folder).get("best")) for number, folder in enumerate(sft_dirs, 1)]
    comparable = [(number, found) for number, found in rounds if found is not None and found["metric"] == best.metric]
    if not comparable:
        return None
    sign = 1 if best.greater_is_better else -1
    number, found = max(comparable, key=lambda item: sign * item[1]["value"])
    return number, {**found, "step": 0 if number == 1 and found["step"] == 0 else number}


def _finished(sft_dir: Path) -> Mapping[str, Any]:
    return json.loads((sft_dir / "finished.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _rows(sft_dir: Path, step: int) -> list[dict[str, Any]]:
    path = sft_dir / "eval.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    return [{name: value for name, value in row.items() if name != "step"} for row in rows if row["step"] == step]
