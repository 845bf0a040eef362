"""Whether models say many things: distinct n-grams and EAD over the answers to many prompts, and over several answers to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrlhf.evaluation.results import Result
from mmrlhf.metrics.diversity import distinct_n, ead
from mmrlhf.metrics.intervals import fold_interval
from mmrlhf.records import Example

FOLD_SIZE = 50
"""Answers that are measured together: the measures depend on how many there are."""
EAD_NOTE = (
    "EAD: distinct words over those that as many words drawn evenly from the vocabulary would hold. The vocabulary is all that these models say "
    "there, not a language's, so EAD can be above 1 and compares within a table alone."
)
"""What a reader must know of the table."""
MIN_MEAN_WORDS = 4
"""Mean length from which answers are worth measuring: yes and no say nothing."""


def diversity(results: Sequence[Result], examples: dict[str, Example], ids: set[str]) -> list[dict[str, Any]]:
    """By part of the benchmark (splits in and out of distribution, kinds of questions) and model; `across` prompts, and `within` one where several
    answers were sampled. Empty for short answers. The vocabulary of EAD is all that any of the models says there."""
    ids_by_part: dict[str, list[str]] = {}
    for i in examples:
        if i in ids:
            meta = examples[i].meta
            ids_by_part.setdefault(" ".join(str(meta[k]) for k in ("split", "part", "kind") if meta.get(k)), []).append(i)
    table_rows = []
    for part, part_ids in ids_by_part.items():
        answers_by_model = [{r["id"]: r["answers"] for r in result.rows if r["status"] == "ok"} for result in results]
        words = [w for answers_by_id in answers_by_model for i in part_ids for a in answers_by_id[i] for w in a.lower().split()]
        num_answers = sum(len(answers_by_id[i]) for answers_by_id in answers_by_model for i in part_ids)
        if not num_answers or len(words) / num_answers < MIN_MEAN_WORDS:
            continue
        vocabulary_size = max(2, len(set(words)))
        for result, answers_by_id in zip(results, answers_by_model, strict=True):
            first_answers = [answers_by_id[i][0] for i in part_ids]
            folds = [first_answers[k : k + FOLD_SIZE] for k in range(0, len(first_answers) - FOLD_SIZE + 1, FOLD_SIZE)] or [
                first_answers
            ]
            row: dict[str, Any] = {"part": part, "name": result.name, "n": len(part_ids)}
            row |= fold_interval("distinct_2", [distinct_n(f, 2) for f in folds]) | fold_interval(
                "ead", [ead(f, vocabulary_size) for f in folds]
            )
            row |= fold_interval("length", [len(a.split()) for a in first_answers])
            if all(len(answers_by_id[i]) > 1 for i in part_ids):
                row |= fold_interval("distinct_2_within", [distinct_n(answers_by_id[i], 2) for i in part_ids])
                row |= fold_interval("ead_within", [ead(answers_by_id[i], vocabulary_size) for i in part_ids])
            table_rows.append(row)
    return table_rows
