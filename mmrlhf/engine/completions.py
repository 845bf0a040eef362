"""Batches of answers as token ids: given ones, and sampled ones with their log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.vlm import VLM, Prompt


@dataclass(frozen=True)
class Completions:
    """Answers to P prompts, N rows in prompt order: `rows_N` the prompt of each, `ids_NT` right-padded, `mask_NT` 1 on real tokens."""

    prompts: list[Prompt]
    prompt_index_N: Tensor
    token_ids_NT: Tensor
    mask_NT: Tensor


@dataclass(frozen=True)
class SampledCompletions(Completions):
    """G sampled answers to each prompt. `logps_NT` and `entropy_NT` as they were drawn; `ended_N` whether an answer came to its end;
    `texts` decoded; `how` they were drawn."""

    logps_NT: Tensor
    entropy_NT: Tensor
    finished_N: Tensor
    texts: list[str]
    sampling_params: SamplingParams

    @property
    def finish_reasons(self) -> list[str]:
        """ "stop" for an answer that ended by itself, "length" for one cut at `max_tokens` (vLLM's words)."""
        return ["stop" if finished else "length" for finished in self.finished_N.tolist()]


def char_to_token(vlm: VLM, token_ids: Tensor, text: str) -> list[int]:
    """For each character of `text`, which the answer `ids` [T] was decoded to, the token that completes it. A character of several
    tokens belongs to the last of them."""
    token_indices: list[int] = []
    full_text = vlm.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)
    num_leading_spaces = len(full_text) - len(full_text.lstrip())
    for t in range(len(token_ids)):
        decoded = vlm.tokenizer.decode(token_ids[: t + 1].tolist(), skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
        token_indices += [t] * (min(len(decoded) - num_leading_spaces, len(text)) - len(token_indices))
    return token_indices + [max(0, len(token_ids) - 1)] * (len(text) - len(token_indices))


def select_prompts(completions: SampledCompletions, prompt_indices: Sequence[int]) -> tuple[SampledCompletions, Tensor]:
    """The answers of some prompts, in the order of `out`, and where they stand in it."""
    selected = sorted(prompt_indices)
    is_selected = torch.isin(completions.prompt_index_N, torch.tensor(selected, device=completions.prompt_index_N.device))
    prompt_index_N = torch.searchsorted(
        torch.tensor(selected, device=completions.prompt_index_N.device), completions.prompt_index_N[is_selected]
    )
    texts = [t for t, k in zip(completions.texts, is_selected.tolist(), strict=True) if k]
    selected_tensors = {
        k: getattr(completions, k)[is_selected] for k in ("token_ids_NT", "mask_NT", "logps_NT", "entropy_NT", "finished_N")
    }
    return replace(
        completions,
        prompts=[completions.prompts[p] for p in selected],
        prompt_index_N=prompt_index_N,
        texts=texts,
        **selected_tensors,
    ), is_selected.nonzero()[:, 0]


def pad_right(sequences: Sequence[Tensor], padding_value: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token rows of different lengths -> ids [N, T] and mask [N, T]."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=padding_value).to(device), mask.to(
        device
    )
