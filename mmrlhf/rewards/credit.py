"""Credit assignment: map the rewards of character spans to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmrlhf.engine.completions import SampledCompletions, char_to_token
from mmrlhf.models.vlm import VLM
from mmrlhf.rewards.ledger import RewardBreakdown


def span_rewards(vlm: VLM, completions: SampledCompletions, breakdowns: Sequence[RewardBreakdown]) -> Tensor:
    """Return span rewards as token rewards [N, T], each on the token that completes its span.

    A false claim is thus penalised where it was completed, not at the end of the answer.
    """
    rewards_NT = torch.zeros_like(completions.logps_NT)
    token_ids_NT, mask_NT = completions.token_ids_NT.cpu(), completions.mask_NT.bool().cpu()  # one wait for a GPU
    for n, breakdown in enumerate(breakdowns):
        if not any(breakdown.spans.values()):
            continue
        token_of_char = char_to_token(vlm, token_ids_NT[n][mask_NT[n]], completions.texts[n])
        for spans in breakdown.spans.values():
            for _, end, reward in spans:
                rewards_NT[n, token_of_char[end - 1]] += reward
    return rewards_NT
