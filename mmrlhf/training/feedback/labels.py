"""Answers labelled claim by claim: verdicts, utilities, and conversion to and from rows of files.

An answer's utility is the number of its distinct supported claims, minus `false_claim_penalty` for
each distinct contradicted one, and a part of that for an unknown one. Both sides count: an answer
that claims less has fewer errors and less coverage. Verdicts of single claims are simpler than one
on a whole answer (Yu et al. 2024, RLAIF-V), which adds up errors only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import Claim, Verdict
from mmrlhf.rewards.claim_rewards import NO_COSTS, coverage, hallucination
from mmrlhf.text.word_counts import count_words


@dataclass(frozen=True)
class SampledAnswer:
    """The answer `number` (from 0) to the prompt of row `row` of the data.

    `unusable` is the reason why no pair may contain it, "" if it may be in one.
    """

    row: int
    number: int
    answer: str
    num_tokens: int
    unusable: str = ""

    @property
    def num_words(self) -> int:
        return count_words(self.answer)

    def to_dict(self) -> dict[str, Any]:
        """Return the row of a file, which `read_sampled` reads."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer with the verdicts on its claims, its utility by these, and its true utility.

    supported: distinct supported claims. contradicted: distinct contradicted ones, and the costs of
    unknown ones. coverage: the share of the distinct claims that are supported in any answer to the
    prompt, None if there are none. true_utility: None if the truth is not known.
    """

    sampled: SampledAnswer
    verdicts: tuple[Verdict, ...]
    supported: int
    contradicted: float
    coverage: float | None
    utility: float
    true_utility: float | None = None

    @property
    def precision(self) -> float | None:
        """Return the share of supported claims among those that are decided, None without any."""
        decided = self.supported + self.contradicted
        return self.supported / decided if decided else None

    @property
    def is_decided(self) -> bool:
        """Return whether any claim is supported or contradicted."""
        return any(verdict.value != "unknown" for verdict in self.verdicts)

    def scores(self) -> dict[str, Any]:
        """Return the row of a file: numbers without texts."""
        names = ("supported", "contradicted", "precision", "coverage", "utility", "true_utility")
        place = {"row": self.sampled.row, "number": self.sampled.number, "unusable": self.sampled.unusable}
        return place | {name: getattr(self, name) for name in names}


# ---- what verdicts are worth ---------------------------------------------------------------------


def count_claims(verdicts: Sequence[Verdict], unknown_costs: Mapping[str, float] = NO_COSTS) -> tuple[int, float]:
    """Return an answer's supported claims, and its contradicted ones with costs of unknown ones.

    A claim counts once, however often it is repeated; the colour and other properties of an absent
    object are part of that error (`rewards.claim_rewards.hallucination`).
    """
    distinct = list({verdict.claim: verdict for verdict in reversed(verdicts)}.values())
    # Rounded, so that the same claims in another order give a tie.
    return len(coverage(distinct)), round(math.fsum(cost for *_, cost in hallucination(distinct, unknown_costs)), 9)


def utility(verdicts: Sequence[Verdict], false_claim_penalty: float, unknown_costs: Mapping[str, float] = NO_COSTS) -> float:
    """Return supported claims minus `false_claim_penalty` times contradicted ones."""
    supported, contradicted = count_claims(verdicts, unknown_costs)
    return round(supported - false_claim_penalty * contradicted, 9)


def label_group(
    answers: Sequence[tuple[SampledAnswer, tuple[Verdict, ...]]],
    false_claim_penalty: float,
    unknown_costs: Mapping[str, float] = NO_COSTS,
    true_utilities: Sequence[float | None] | None = None,
) -> list[LabelledAnswer]:
    """Return the answers to one prompt with their labels. Coverage is relative to all of them."""
    covered = [{verdict.claim for verdict in verdicts if _is_covered(verdict)} for _, verdicts in answers]
    pool = set[Claim]().union(*covered)
    labelled = []
    for index, (sampled, verdicts) in enumerate(answers):
        supported, contradicted = count_claims(verdicts, unknown_costs)
        labelled.append(
            LabelledAnswer(
                sampled,
                verdicts,
                supported,
                contradicted,
                coverage=len(covered[index]) / len(pool) if pool else None,
                utility=utility(verdicts, false_claim_penalty, unknown_costs),
                true_utility=true_utilities[index] if true_utilities is not None else None,
            )
        )
    return labelled


def _is_covered(verdict: Verdict) -> bool:
    return verdict.value == "supported" and not verdict.claim.negated and not verdict.claim.hedged


# ---- files ---------------------------------------------------------------------------------------


def read_sampled(path: Path) -> list[SampledAnswer]:
    """Read answers, written by `SampledAnswer.to_dict`, with those to one prompt adjacent."""
    return [SampledAnswer(**row) for row in read_jsonl(path)]


def verdicts_row(sampled: SampledAnswer, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the verdicts on an answer as the row of a file, which `read_verdicts` reads."""
    return {"row": sampled.row, "number": sampled.number, "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts]}


def read_verdicts(path: Path) -> list[tuple[Verdict, ...]]:
    """Read the verdicts on each answer, in order."""
    return [tuple(map(_parse_verdict, row["verdicts"])) for row in read_jsonl(path)]


def _parse_verdict(fields: Mapping[str, Any]) -> Verdict:
    claim = Claim(**{**fields["claim"], "span": tuple(fields["claim"]["span"])})
    return Verdict(claim, fields["value"], fields["evidence"], fields["probability"])
