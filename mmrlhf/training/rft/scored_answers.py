"""Sampled answers with their rewards, and conversion to and from rows of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import Example
from mmrlhf.rewards.ledger import RewardBreakdown
from mmrlhf.rewards.types import Sample
from mmrlhf.training.answer_batches import NOT_FINITE


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, its rewards, its claims, and why it cannot be used for training ("" if it can).

    `row` is the index of its prompt in the dataset. An answer of a batch in which something was not
    finite is empty and has no rewards (`without_rewards`, `training.answer_batches`).
    """

    row: int
    sample: Sample
    breakdown: RewardBreakdown
    claims: list[Any] | None
    unusable: str

    @property
    def is_scored(self) -> bool:
        """Return whether the answer has rewards, as its batch was finite."""
        return bool(self.breakdown.values)

    def to_dict(self) -> dict[str, Any]:
        """Return the row of a file; `read_scored_answers` needs the dataset to read it."""
        return {
            "row": self.row,
            "id": self.sample.id,
            "answer": self.sample.answer,
            "num_tokens": self.sample.num_tokens,
            "finished": self.sample.finished,
            "unusable": self.unusable,
            "values": self.breakdown.values,
            "terms": self.breakdown.terms,
            "spans": self.breakdown.spans,
            "claims": self.claims,
        }


def without_rewards(row: int, row_id: str) -> ScoredAnswer:
    """Return what stands for an answer to a row if a number of its batch is not finite."""
    sample = Sample(row_id, (), (), "", finished=False)
    return ScoredAnswer(row, sample, RewardBreakdown({}, {}, {}, {}), None, NOT_FINITE)


def read_scored_answers(
    path: Path, examples: Sequence[Example], weights: Mapping[str, float], max_tokens: int
) -> list[ScoredAnswer]:
    """Read the answers written by `ScoredAnswer.to_dict`, with those to one prompt adjacent."""
    answers, row, example = [], -1, Example("", (), ())
    for fields in read_jsonl(path):
        if fields["row"] != row:
            row, example = fields["row"], examples[fields["row"]]
        sample = Sample(
            example.id, example.images, example.prompt, fields["answer"], example.facts, example.answer, example.meta,
            fields["num_tokens"], max_tokens, fields["finished"],
        )  # fmt: skip
        spans = {name: [(start, end, value) for start, end, value in spans] for name, spans in fields["spans"].items()}
        breakdown = RewardBreakdown(fields["terms"], spans, fields["values"], weights)
        answers.append(ScoredAnswer(row, sample, breakdown, fields["claims"], fields["unusable"]))
    return answers


def with_breakdowns(answers: Sequence[ScoredAnswer], breakdowns: Sequence[RewardBreakdown]) -> list[ScoredAnswer]:
    """Return the answers with other rewards, such as normalised ones."""
    return [replace(answer, breakdown=breakdown) for answer, breakdown in zip(answers, breakdowns, strict=True)]
