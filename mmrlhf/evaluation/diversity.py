"""Diversity of answers: distinct n-grams and EAD, across prompts and within one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrlhf.evaluation.benchmark import first_valid
from mmrlhf.evaluation.results import Result
from mmrlhf.metrics.diversity import distinct_n, ead, whole_folds
from mmrlhf.metrics.intervals import fold_interval
from mmrlhf.records import Example
from mmrlhf.text.word_counts import count_words, split_words

EAD_NOTE = (
    "EAD: distinct words over the number that as many words drawn uniformly from the vocabulary would give. The vocabulary "
    "is all words that these models use there, not a language's, so EAD can be above 1 and compares only within a table."
)
"""Explanation of the table."""
MIN_MEAN_WORDS = 4
"""Mean length above which diversity is meaningful: answers of yes and no are not diverse."""


def diversity(results: Sequence[Result], examples: dict[str, Example], ids: set[str]) -> list[dict[str, Any]]:
    """Return table rows of diversity by part of the benchmark and model, on these examples.

    A part is a split in or out of distribution, or a kind of question. `_within` metrics are over
    several sampled answers to one prompt, the others across prompts. The vocabulary of EAD is all
    words of all these models in the part. Parts with short answers are left out.
    """
    ids_by_part: dict[str, list[str]] = {}
    for id_, example in examples.items():
        if id_ in ids:
            part = " ".join(str(example.meta[key]) for key in ("split", "part", "kind") if example.meta.get(key))
            ids_by_part.setdefault(part, []).append(id_)
    answers_by_model = [{row["id"]: row["answers"] for row in first_valid(result.rows)} for result in results]
    table_rows = []
    for part, part_ids in ids_by_part.items():
        texts = [text for answers_by_id in answers_by_model for id_ in part_ids for text in answers_by_id[id_]]
        words = [word for text in texts for word in split_words(text.lower())]
        if not texts or len(words) / len(texts) < MIN_MEAN_WORDS:
            continue
        vocabulary_size = max(2, len(set(words)))
        for result, answers_by_id in zip(results, answers_by_model, strict=True):
            answers = [answers_by_id[id_] for id_ in part_ids]
            row = {"part": part, "name": result.name, "n": len(part_ids)}
            table_rows.append(row | _diversity_metrics(answers, vocabulary_size))
    return table_rows


def _diversity_metrics(answers: list[list[str]], vocabulary_size: int) -> dict[str, Any]:
    """Return metrics of the answers to each of several prompts, with their intervals."""
    first_answers = [texts[0] for texts in answers]
    folds = whole_folds(first_answers)
    metrics = fold_interval("distinct_2", [distinct_n(fold, 2) for fold in folds])
    metrics |= fold_interval("ead", [ead(fold, vocabulary_size) for fold in folds])
    metrics |= fold_interval("length", [count_words(answer) for answer in first_answers])
    if all(len(texts) > 1 for texts in answers):
        metrics |= fold_interval("distinct_2_within", [distinct_n(texts, 2) for texts in answers])
        metrics |= fold_interval("ead_within", [ead(texts, vocabulary_size) for texts in answers])
    return metrics
