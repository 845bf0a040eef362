"""Scalar heads on hidden states, for values and for rewards."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmrlhf.models.vlm import VLM
from mmrlhf.records import InputError, Message


def scalar_head(weight_D: Tensor) -> nn.Linear:
    """Return a float32 head from hidden states [D] to a scalar, with these weights and bias 0.

    A critic starts from zero weights.
    """
    head = nn.Linear(len(weight_D), 1, device=weight_D.device)
    with torch.no_grad():
        head.weight.copy_(weight_D[None])
        head.bias.zero_()
    return head


def random_head(vlm: VLM, seed: int) -> nn.Linear:
    """Return a head with normal weights of standard deviation 1 / sqrt(hidden size + 1).

    Stiennon et al. 2020; Huang et al. 2024, detail 7.
    """
    weight_D = torch.randn(vlm.hidden_size, generator=torch.Generator().manual_seed(seed))
    return scalar_head((weight_D / math.sqrt(vlm.hidden_size + 1)).to(vlm.device))


def yes_no_head(vlm: VLM) -> nn.Linear:
    """Return the head that reads the logit of "Yes" minus the logit of "No" after YES_NO_QUESTION.

    A reward model then starts from its base's own judgment, not from a random direction. Raises
    InputError if one of the words is the beginning of the other.
    """
    yes_ids, no_ids = (vlm.answer_token_ids([Message("user", YES_NO_QUESTION)], word, 0).tolist() for word in ("Yes", "No"))
    # The words may share a first token, such as a mark of white space.
    first_difference = next(((yes, no) for yes, no in zip(yes_ids, no_ids, strict=False) if yes != no), None)
    if first_difference is None:
        raise InputError(
            f'{vlm.name}: its tokenizer does not tell "Yes" from "No", so a head cannot start from them: set head_init to random'
        )
    yes_D, no_D = vlm.model.get_output_embeddings().weight.detach()[list(first_difference)].float()
    return scalar_head(yes_D - no_D)


YES_NO_QUESTION = "Is all of this true of the picture?"
"""The user turn after an answer; the reward is read at its end. A vision-language model can answer
this question before any training. Trained reward models depend on the wording: do not change it."""
