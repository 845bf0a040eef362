"""Whether models say many things: distinct n-grams and EAD over the answers to many prompts, and over several answers to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrlhf.benchmark import distinct_n, ead, fold_interval
from mmrlhf.compare.runs import Result
from mmrlhf.records import Example

FOLD = 50
"""Answers that are measured together: the measures depend on how many there are."""
NOTE = (
    "EAD: distinct words over those that as many words drawn evenly from the vocabulary would hold. The vocabulary is all that these models say "
    "there, not a language's, so EAD can be above 1 and compares within a table alone."
)
"""What a reader must know of the table."""
WORDS = 4
"""Mean length from which answers are worth measuring: yes and no say nothing."""


def diversity(results: Sequence[Result], examples: dict[str, Example], ids: set[str]) -> list[dict[str, Any]]:
    """By part of the benchmark (splits in and out of distribution, kinds of questions) and model; `across` prompts, and `within` one where several
    answers were sampled. Empty for short answers. The vocabulary of EAD is all that any of the models says there."""
    parts: dict[str, list[str]] = {}
    for i in examples:
        if i in ids:
            meta = examples[i].meta
            parts.setdefault(" ".join(str(meta[k]) for k in ("split", "part", "kind") if meta.get(k)), []).append(i)
    found = []
    for part, members in parts.items():
        said = [{r["id"]: r["answers"] for r in result.rows if r["status"] == "ok"} for result in results]
        words = [w for s in said for i in members for a in s[i] for w in a.lower().split()]
        answers = sum(len(s[i]) for s in said for i in members)
        if not answers or len(words) / answers < WORDS:
            continue
        vocabulary = max(2, len(set(words)))
        for result, s in zip(results, said, strict=True):
            first = [s[i][0] for i in members]
            folds = [first[k : k + FOLD] for k in range(0, len(first) - FOLD + 1, FOLD)] or [first]
            row: dict[str, Any] = {"part": part, "name": result.name, "n": len(members)}
            row |= fold_interval("distinct_2", [distinct_n(f, 2) for f in folds]) | fold_interval(
                "ead", [ead(f, vocabulary) for f in folds]
            )
            row |= fold_interval("length", [len(a.split()) for a in first])
            if all(len(s[i]) > 1 for i in members):
                row |= fold_interval("distinct_2_within", [distinct_n(s[i], 2) for i in members])
                row |= fold_interval("ead_within", [ead(s[i], vocabulary) for i in members])
            found.append(row)
    return found
