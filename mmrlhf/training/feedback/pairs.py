"""Choose preference pairs among labelled answers: a minimal gap, widest first, lengths balanced.

The answers to a prompt come from one policy at one temperature, and differ by their random seed
alone. So only the label distinguishes the better one, not its author's style or its length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mmrlhf.datasets.balance import balance_lengths
from mmrlhf.datasets.conversations import visible_form
from mmrlhf.records import Preference
from mmrlhf.training.feedback.labels import LabelledAnswer

UNDECIDED = "no claim is decided"
TIE = "tie"
BELOW_GAP = "gap below min_gap"
BEYOND = "beyond max_pairs_per_prompt"
UNBALANCED = "length balance"
REASONS = (UNDECIDED, TIE, BELOW_GAP, BEYOND, UNBALANCED)
"""Reasons for which a comparison of two answers is dropped, in the order of the checks."""
REPEATED = "repeated"
"""Reason for not comparing an answer: an earlier answer to its prompt has the same words."""


@dataclass(frozen=True)
class Comparison:
    """Two answers to a prompt, the one with the higher utility first; of equal ones the earlier."""

    better: LabelledAnswer
    worse: LabelledAnswer

    @property
    def gap(self) -> float:
        """Return the difference of their utilities."""
        return self.better.utility - self.worse.utility

    @property
    def true_gap(self) -> float | None:
        """Return the difference of their true utilities, below 0 if the label is wrong."""
        if self.better.true_utility is None or self.worse.true_utility is None:
            return None
        return self.better.true_utility - self.worse.true_utility

    @property
    def length_gap(self) -> int:
        """Return how many words the better answer is longer."""
        return self.better.sampled.num_words - self.worse.sampled.num_words

    @property
    def is_first_better(self) -> bool:
        """Return whether the better answer was sampled before the worse one."""
        return self.better.sampled.number < self.worse.sampled.number


@dataclass(frozen=True)
class PairSelection:
    """The comparisons that become pairs, the dropped ones with their reasons, and the numbers of
    unusable answers by reason."""

    kept: list[Comparison]
    dropped: list[tuple[Comparison, str]]
    unusable: Counter[str]

    @property
    def comparisons(self) -> list[Comparison]:
        """Return all comparisons of usable answers."""
        return self.kept + [comparison for comparison, _ in self.dropped]

    @property
    def reasons(self) -> dict[str, int]:
        """Return how many comparisons each reason drops."""
        counts = Counter(reason for _, reason in self.dropped)
        return {reason: counts[reason] for reason in REASONS if counts[reason]}


def select_pairs(
    groups: Sequence[Sequence[LabelledAnswer]], min_gap: float, max_pairs_per_prompt: int, balanced: bool, seed: int
) -> PairSelection:
    """Compare the usable answers to each prompt with one another, and choose pairs.

    A comparison is dropped for the first of REASONS that applies. A prompt's pairs are those with
    the widest gaps; of equal gaps the one with the more similar lengths. The balance of lengths
    comes last, over the pairs of all prompts (`datasets.balance.balance_lengths`).
    """
    candidates: list[Comparison] = []
    dropped: list[tuple[Comparison, str]] = []
    unusable = Counter[str]()
    for group in groups:
        usable = _usable(group, unusable)
        wide_enough = []
        for index, first in enumerate(usable):
            for second in usable[index + 1 :]:
                comparison = Comparison(first, second) if first.utility >= second.utility else Comparison(second, first)
                if reason := _reason(comparison, min_gap):
                    dropped.append((comparison, reason))
                else:
                    wide_enough.append(comparison)
        wide_enough.sort(key=lambda c: (-c.gap, abs(c.length_gap), c.better.sampled.number, c.worse.sampled.number))
        candidates += wide_enough[:max_pairs_per_prompt]
        dropped += [(comparison, BEYOND) for comparison in wide_enough[max_pairs_per_prompt:]]
    if not balanced:
        return PairSelection(candidates, dropped, unusable)
    texts = [(comparison.better.sampled.answer, comparison.worse.sampled.answer) for comparison in candidates]
    kept = set(balance_lengths([Preference("", (), (), pair, (1, 2)) for pair in texts], seed))
    dropped += [(comparison, UNBALANCED) for index, comparison in enumerate(candidates) if index not in kept]
    return PairSelection([candidates[index] for index in sorted(kept)], dropped, unusable)


def _usable(group: Sequence[LabelledAnswer], unusable: Counter[str]) -> list[LabelledAnswer]:
    """Return the answers that may be compared; `unusable` counts why others are left out."""
    seen, usable = set[str](), []
    for answer in group:
        form = visible_form(answer.sampled.answer)  # as the reader of pairs compares them
        if reason := answer.sampled.unusable or (REPEATED if form in seen else ""):
            unusable[reason] += 1
            continue
        seen.add(form)
        usable.append(answer)
    return usable


def _reason(comparison: Comparison, min_gap: float) -> str:
    """Return why two answers cannot be a pair, by themselves, "" if they can."""
    if not comparison.better.is_decided and not comparison.worse.is_decided:
        return UNDECIDED
    if comparison.gap == 0:
        return TIE
    return BELOW_GAP if comparison.gap < min_gap else ""
