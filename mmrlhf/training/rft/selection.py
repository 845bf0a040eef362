"""Choose sampled answers for training: best-of-n, a threshold, the best share."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from mmrlhf.config import RFTConfig


@dataclass(frozen=True)
class Candidate:
    """A sampled answer with its score; `unusable` says why training cannot use it, or is ""."""

    answer: str
    score: float
    unusable: str = ""


@dataclass(frozen=True)
class Selection:
    """The chosen candidates, by index in order, and the numbers of those left out, by reason."""

    kept: list[int]
    left_out: Counter[str] = field(default_factory=Counter)


def select(config: RFTConfig, candidates: Sequence[Candidate]) -> Selection:
    """Choose among the answers to P prompts, `num_generations` each and adjacent.

    An answer is left out for the first of these reasons: it is unusable; another one to its prompt
    has the same words and scores as high; it is below `min_score`; it is not in the `top_share` of
    all candidates; it is not `min_margin` above the mean of its prompt's answers; its prompt has
    `max_kept_per_prompt` better ones. Of equal scores the first answer counts as better.
    """
    group_size, left_out, kept = config.num_generations, Counter[str](), list[int]()
    scores = [candidate.score for candidate in candidates]
    edge = top_share_edge(scores, config.top_share)
    for start in range(0, len(candidates), group_size):
        mean = fmean(scores[start : start + group_size])
        seen, chosen = set[str](), list[int]()
        for i in sorted(range(start, start + group_size), key=lambda i: (-scores[i], i)):
            candidate = candidates[i]
            if candidate.unusable:
                reason = candidate.unusable
            elif candidate.answer in seen:
                reason = "repeated"
            elif config.min_score is not None and candidate.score < config.min_score:
                reason = "below min_score"
            elif candidate.score < edge:
                reason = "not in top_share"
            elif config.min_margin is not None and candidate.score - mean < config.min_margin:
                reason = "less than min_margin above the mean"
            elif len(chosen) == config.max_kept_per_prompt:
                reason = "beyond max_kept_per_prompt"
            else:
                chosen.append(i)
                seen.add(candidate.answer)
                continue
            seen.add(candidate.answer)
            left_out[reason] += 1
        kept += sorted(chosen)
    return Selection(kept, left_out)


def top_share_edge(scores: Sequence[float], share: float) -> float:
    """Return the lowest score among the best `share` of scores, at least one of them."""
    if share == 1:
        return -math.inf
    # 0.3 x 10 is 3.0000000000000004 in floating point, and means 3.
    return heapq.nlargest(max(1, math.ceil(share * len(scores) - 1e-9)), scores)[-1]
