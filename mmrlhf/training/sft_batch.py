"""Rows for supervised fine-tuning: prompts with their continuations, and their gradients.

sft trains on them alone, and ppo mixes them in (`ptx_coef`). Shape suffixes: N continuations,
T tokens (right-padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf.engine.completions import Completions, pad_right
from mmrlhf.engine.scoring import hidden_states
from mmrlhf.models.adapters import Role
from mmrlhf.models.chat_text import Continuation
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.models.vlm import VLM, Conversation
from mmrlhf.records import Example, Message
from mmrlhf.training import losses
from mmrlhf.training.row_checks import Length

TrainOn = Literal["all", "last"]


@dataclass(frozen=True)
class SFTBatch:
    """A step's rows: prompts with their continuations, padded to T tokens."""

    completions: Completions
    targets_NT: Tensor
    """The tokens to predict."""
    is_learnt_NT: Tensor
    """The loss mask: 1 on the tokens to learn."""


def learnt_continuations(vlm: VLM, example: Example, train_on: TrainOn) -> list[tuple[Conversation, Continuation]]:
    """Return the prompts of an example, each with its continuation. Raises InputError."""
    messages = (*example.prompt, Message("assistant", example.answer or ""))
    continuations = vlm.chat.learnt_continuations(messages, len(example.images), train_on=train_on, row_id=example.id)
    return [((messages[: c.num_messages], example.images[: c.num_images]), c) for c in continuations]


def example_lengths(vlm: VLM, lengths: PromptLengths, example: Example, max_length: int, train_on: TrainOn) -> list[Length]:
    """Return the tokens of each prompt of an example with its continuation. Raises InputError."""
    return [
        Length(lengths.count(*prompt) + len(continuation.token_ids), lengths.limit(max_length))
        for prompt, continuation in learnt_continuations(vlm, example, train_on)
    ]


def build_sft_batch(vlm: VLM, rows: Sequence[Example], max_length: int, train_on: TrainOn) -> SFTBatch:
    """Build the prompts and continuations of some rows. Raises InputError that names the row."""
    learnt = [(row.id, *pair) for row in rows for pair in learnt_continuations(vlm, row, train_on)]
    continuations = [continuation for _, _, continuation in learnt]
    pad_token_id = int(vlm.tokenizer.pad_token_id)
    token_ids_NT, mask_NT = pad_right([c.token_ids for c in continuations], pad_token_id, vlm.device)
    targets_NT, _ = pad_right([c.targets for c in continuations], pad_token_id, vlm.device)
    is_learnt_NT, _ = pad_right([c.is_learnt for c in continuations], 0, vlm.device)
    max_prompt_lengths = [max_length - len(c.token_ids) for c in continuations]
    prompts = vlm.build_prompts([prompt for _, prompt, _ in learnt], max_prompt_lengths, [row_id for row_id, _, _ in learnt])
    completions = Completions(prompts, torch.arange(len(prompts), device=vlm.device), token_ids_NT, mask_NT)
    return SFTBatch(completions, targets_NT, is_learnt_NT)


def accumulate_sft_gradients(
    accelerator: Accelerator, role: Role, batch: SFTBatch, num_tokens: Tensor, coefficient: float = 1.0
) -> float:
    """Add the gradients of this process's rows, a micro-batch at a time; return the loss.

    `num_tokens` is the step's count of learnt tokens over all processes. The loss that is returned
    is not multiplied by `coefficient`; its gradients are.
    """
    total_loss = torch.zeros((), device=role.vlm.device)
    for indices, hidden_NTD in hidden_states(role, batch.completions):
        width = hidden_NTD.shape[1]
        targets_NT, is_learnt_NT = batch.targets_NT[indices, :width], batch.is_learnt_NT[indices, :width]
        loss = losses.sft(role.vlm.token_logps(hidden_NTD, targets_NT, is_learnt_NT), is_learnt_NT, num_tokens)
        accelerator.backward(loss if coefficient == 1 else coefficient * loss)
        total_loss += loss.detach()
    return total_loss.item()
