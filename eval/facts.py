"""Hallucination on your own images, claim by claim, against facts that you keep apart.

    mmrlhf eval facts --model runs/sft/model --data held_out.jsonl --out runs/eval
    mmrlhf ppo ... --eval_benchmarks facts --eval_data held_out.jsonl --eval_limit 200

--data is a dataset in any format that training reads, with facts in its rows or in --facts_file.
They should be facts about other images than those trained on: what is optimised cannot measure
itself. A claim is true if the facts state it, false if they exclude it, and unknown otherwise. It
counts once in an answer; hedged claims and true denials do not count.

`chair_s` is the share of answers with a false claim, `chair_i` false claims of those decided,
`unknown_rate` the undecided of all, `recall` the objects in the facts that the answer names, and
`claim_f1` the harmonic mean of 1 - chair_i and recall. There is no other script: `official` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.claims import Lexicon, extract_claims, load_lexicon
from mmrlhf.config import STRICT
from mmrlhf.datasets import read_examples
from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task, first_valid, number_repeated_ids
from mmrlhf.facts import read_facts
from mmrlhf.metrics.intervals import Proportion, SufficientStats
from mmrlhf.records import CLAIM_KINDS, Example, Fact, InputError
from mmrlhf.text.word_counts import count_words
from mmrlhf.verifiers import verify_against_facts
from mmrlhf.verifiers.base import counted_verdicts
from mmrlhf.verifiers.fact_claims import claims_of_fact
from mmrlhf.verifiers.nouns import is_a

VERDICTS = ("supported", "contradicted", "unknown")
SHARES = {
    "chair_s": Proportion(1, 0),
    "chair_i": Proportion(3, (2, 3)),
    "unknown_rate": Proportion(4, (2, 3, 4)),
    "recall": Proportion(5, 6),
}
"""The metrics that are shares, by the columns that `_metrics` reads."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Where facts and words come from."""

    facts_file: str | None = None
    """Facts by image or row id, in any format of training's facts_file; by default those of the
    rows."""
    lexicon_file: str | None = None
    """Further words for claims, as in training."""


class OwnFacts(Benchmark):
    """Answers about a user's images, checked against a user's facts."""

    version = "3"
    license = "the user's own data"
    headline = "chair_s"
    direction = "lower"
    cluster = "image"
    requires_all_answers = False
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return the rows that have facts; further rows of an id get its number appended.

        Raises InputError if none has facts.
        """
        facts = read_facts(task.options.facts_file) if task.options.facts_file else None
        rows = read_examples(str(task.path), "train", task.image_folder, facts)
        with_facts = [row for row in rows if any(fact.kind != "scope" for fact in row.facts)]
        if not with_facts:
            raise InputError(f"{task.path} has no row with facts: add `facts` to its rows, or give --facts_file")
        return number_repeated_ids(with_facts)[: task.limit]

    def files(self, task: Task) -> list[Path]:
        """Return the data, and the file of facts."""
        return [*super().files(task), *([Path(task.options.facts_file)] if task.options.facts_file else [])]

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return the numbers of claims of each answer by verdict and kind, and of objects named."""
        lexicon = load_lexicon(task.options.lexicon_file)
        listed = _listed_objects(example.facts, lexicon)
        rows = [_score_answer(example, answer, listed, lexicon) for answer in answers]
        return {
            "image": example.images[0].name if example.images else example.id,
            "right": not any(row["contradicted"] for row in rows),
            "listed": len(listed),
            **{name: [row[name] for row in rows] for name in (*VERDICTS, "false_by_kind", "named", "length")},
        }

    def false_spans(self, example: Example, row: ScoreRow, task: Task) -> list[tuple[int, int]]:
        """Return the spans of the first answer's claims that facts contradict."""
        lexicon = load_lexicon(task.options.lexicon_file)
        verdicts = verify_against_facts(extract_claims(str(row["answers"][0]), lexicon), example.facts, lexicon)
        return [verdict.claim.span for verdict in verdicts if verdict.value == "contradicted"]

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return rates over all answers, and false claims per answer by kind."""
        rows = first_valid(rows)
        columns = np.array([_columns(row) for row in rows]).reshape(len(rows), -1)
        reasons = {
            "": "no claim was decided",
            "recall": "no fact lists an object",
            "claim_f1": "no claim was decided, or no fact lists an object",
        }
        return {"official": SufficientStats([row["image"] for row in rows], columns, _metrics, reasons, SHARES)}


def _listed_objects(facts: Sequence[Fact], lexicon: Lexicon) -> set[str]:
    """Return the objects that facts list, as claims name them."""
    claims = [claim for fact in facts if fact.kind == "object" for claim in claims_of_fact(fact, lexicon)]
    return {claim.subject for claim in claims if claim.kind == "object"}


def _score_answer(example: Example, answer: str, listed: set[str], lexicon: Lexicon) -> dict[str, Any]:
    claims = extract_claims(answer, lexicon)
    counted = counted_verdicts(verify_against_facts(claims, example.facts, lexicon))
    named = {claim.subject for claim in claims if claim.kind == "object" and not (claim.negated or claim.hedged)}
    return {
        **{value: sum(v.value == value for v in counted) for value in VERDICTS},
        "false_by_kind": [sum(v.value == "contradicted" and v.claim.kind == kind for v in counted) for kind in CLAIM_KINDS],
        "named": sum(any(is_a(noun, object_, lexicon) for noun in named) for object_ in listed),
        "length": count_words(answer),
    }


def _columns(row: ScoreRow) -> list[float]:
    """Return what a row adds to the sums that metrics are functions of."""
    num_answers, with_false = len(row["contradicted"]), sum(count > 0 for count in row["contradicted"])
    return [
        num_answers, with_false, *(sum(row[value]) for value in VERDICTS), sum(row["named"]), num_answers * row["listed"],
        sum(row["length"]), *np.sum(row["false_by_kind"], 0),
    ]  # fmt: skip


def _metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    n, with_false, true, false, unknown, named, listed, length, *false_by_kind = np.moveaxis(sums, -1, 0)
    chair_i, recall = false / (true + false), named / listed
    precision = 1 - chair_i
    return {
        "chair_s": with_false / n,
        "chair_i": chair_i,
        "recall": recall,
        "claim_f1": 2 * precision * recall / np.where(precision + recall == 0, 1, precision + recall),
        "unknown_rate": unknown / (true + false + unknown),
        "claims": (true + false + unknown) / n,
        "mean_length": length / n,
        **{f"false_{kind}": count / n for kind, count in zip(CLAIM_KINDS, false_by_kind, strict=True)},
    }
