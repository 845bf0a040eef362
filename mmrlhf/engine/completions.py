"""Answers as token ids: given answers, and sampled answers with their log-probs.

Shape suffixes: P prompts, N answers, T answer tokens (right-padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.vlm import VLM, Prompt


@dataclass(frozen=True)
class Completions:
    """Answers to P prompts: N rows in prompt order."""

    prompts: list[Prompt]
    prompt_index_N: Tensor
    """Index of each row's prompt in `prompts`."""
    token_ids_NT: Tensor
    mask_NT: Tensor
    """1 on real tokens."""


@dataclass(frozen=True)
class SampledCompletions(Completions):
    """Sampled answers, the same number for each prompt."""

    logps_NT: Tensor
    """Log-prob of each token when it was sampled, 0 on padding."""
    entropy_NT: Tensor
    """Entropy of the distribution that each token was sampled from, in nats, 0 on padding."""
    finished_N: Tensor
    """Whether an answer ended by itself, not at `max_tokens`."""
    texts: list[str]
    """The decoded answers, cut before the first stop string."""
    sampling_params: SamplingParams


def select_prompts(completions: SampledCompletions, prompt_indices: Sequence[int]) -> tuple[SampledCompletions, Tensor]:
    """Return the answers to some prompts in their original order, and their row indices [n]."""
    selected = sorted(prompt_indices)
    selected_P = torch.tensor(selected, dtype=torch.long, device=completions.prompt_index_N.device)
    is_selected_N = torch.isin(completions.prompt_index_N, selected_P)
    selected_completions = replace(
        completions,
        prompts=[completions.prompts[p] for p in selected],
        prompt_index_N=torch.searchsorted(selected_P, completions.prompt_index_N[is_selected_N]),
        token_ids_NT=completions.token_ids_NT[is_selected_N],
        mask_NT=completions.mask_NT[is_selected_N],
        logps_NT=completions.logps_NT[is_selected_N],
        entropy_NT=completions.entropy_NT[is_selected_N],
        finished_N=completions.finished_N[is_selected_N],
        texts=[text for text, keep in zip(completions.texts, is_selected_N.tolist(), strict=True) if keep],
    )
    return selected_completions, is_selected_N.nonzero()[:, 0]


def replace_prompts(
    completions: SampledCompletions, indices: Sequence[int], replacements: SampledCompletions, pad_token_id: int
) -> SampledCompletions:
    """Return completions with prompts `indices`, and their answers, replaced by other ones."""
    num_prompts = len(completions.prompts)
    prompt_order = list(range(num_prompts))
    for number, index in enumerate(indices):
        prompt_order[index] = num_prompts + number
    num_answers = len(completions.texts) // num_prompts
    answer_order = [p * num_answers + g for p in prompt_order for g in range(num_answers)]
    both = (completions, replacements)
    width = max(part.token_ids_NT.shape[1] for part in both)

    def merge(name: str, pad_value: float = 0) -> Tensor:
        tensors = [getattr(part, name) for part in both]
        if tensors[0].dim() == 2:
            tensors = [torch.nn.functional.pad(t, (0, width - t.shape[1]), value=pad_value) for t in tensors]
        return torch.cat(tensors)[answer_order]

    prompts, texts = completions.prompts + replacements.prompts, completions.texts + replacements.texts
    return replace(
        completions,
        prompts=[prompts[p] for p in prompt_order],
        token_ids_NT=merge("token_ids_NT", pad_token_id),
        mask_NT=merge("mask_NT"),
        logps_NT=merge("logps_NT"),
        entropy_NT=merge("entropy_NT"),
        finished_N=merge("finished_N"),
        texts=[texts[n] for n in answer_order],
    )


def char_to_token(vlm: VLM, token_ids: Tensor, text: str) -> list[int]:
    """Return, for each character of `text`, the index of the token that completes it.

    `token_ids` [T] is the answer that `vlm.decode` turns into `text`, perhaps with white space
    before it or more after it. A character made of several tokens belongs to the last of them.
    """
    decoded = vlm.decode(token_ids)
    lengths = _decoded_lengths(vlm, token_ids)
    if lengths and lengths[-1] != len(decoded):  # a tokenizer whose parts do not add up: decode each prefix
        lengths = [_complete_length(vlm.decode(token_ids[: t + 1])) for t in range(len(token_ids))]
    token_indices: list[int] = []
    start = max(0, decoded.find(text))
    for t, length in enumerate(lengths):
        num_complete = min(length - start, len(text))
        token_indices += [t] * (num_complete - len(token_indices))
    last_token = max(0, len(token_ids) - 1)
    return token_indices + [last_token] * (len(text) - len(token_indices))


def _complete_length(text: str) -> int:
    """Return the number of complete characters: a prefix that ends inside one decodes to U+FFFD."""
    return len(text.rstrip("\N{REPLACEMENT CHARACTER}"))


def _decoded_lengths(vlm: VLM, token_ids: Tensor) -> list[int]:
    """Return how many characters each prefix of the tokens decodes to, in linear time.

    A token is decoded after those of the last complete character, which determine the space before
    it.
    """
    lengths: list[int] = []
    num_chars = context_start = context_end = context_length = 0
    for t in range(len(token_ids)):
        text = vlm.decode(token_ids[context_start : t + 1])
        lengths.append(max(num_chars, num_chars + _complete_length(text) - context_length))
        if len(text) > context_length and _complete_length(text) == len(text):
            num_chars, context_start, context_end = lengths[-1], context_end, t + 1
            context_length = len(vlm.decode(token_ids[context_start:context_end]))
    return lengths


def pad_right(sequences: Sequence[Tensor], padding_value: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack token ids of different lengths into ids [N, T] and a mask [N, T]."""
    pad_sequence = torch.nn.utils.rnn.pad_sequence
    token_ids_NT = pad_sequence(list(sequences), batch_first=True, padding_value=padding_value)
    mask_NT = pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True)
    return token_ids_NT.to(device), mask_NT.to(device)
