"""The naive path: run each answer with its whole prompt, pixels included.

Nothing is shared or cached. A run starts by comparing the fast path with this one, which takes over
if the two differ or if `share_prefix` is off. The model computes its own positions and masks;
sampling is transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mmrlhf.models.images import open_image

if TYPE_CHECKING:
    from mmrlhf.models.vlm import VLM, Prompt


def processor_inputs(vlm: VLM, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Return the processor's batch for these prompts, pixels included, on the model's device."""
    batch, _ = vlm.encoder.process([p.text for p in prompts], [[open_image(i) for i in p.images] for p in prompts])
    tensors = {k: v.to(vlm.device) for k, v in batch.items() if torch.is_tensor(v) and k != "labels"}
    if "pixel_values" in tensors:
        tensors["pixel_values"] = tensors["pixel_values"].to(vlm.encoder.dtype)
    return tensors


def _group_by_image_count(prompts: Sequence[Prompt], prompt_indices: Sequence[int]) -> list[list[int]]:
    """Group answers by the number of images in their prompts.

    A processor may refuse mixed numbers, and Mllama's tokens before an image would attend to the
    padding of shorter rows.
    """
    image_counts = [len(prompts[p].images) for p in prompt_indices]
    return [[i for i, image_count in enumerate(image_counts) if image_count == count] for count in sorted(set(image_counts))]


def hidden_states(
    vlm: VLM, prompts: Sequence[Prompt], prompt_indices: Sequence[int], token_ids_NT: Tensor, mask_NT: Tensor
) -> Tensor:
    """Return the answers' hidden states [N, T + 1, D], as `Prefix.extend` does.

    Answer i belongs to `prompts[prompt_indices[i]]`.
    """
    groups = _group_by_image_count(prompts, prompt_indices)
    outputs = [
        _group_hidden_states(vlm, [prompts[prompt_indices[i]] for i in indices], token_ids_NT[indices], mask_NT[indices])
        for indices in groups
    ]
    order = torch.tensor([i for indices in groups for i in indices], device=vlm.device).argsort()
    return torch.cat(outputs)[order]


def _group_hidden_states(vlm: VLM, prompts: Sequence[Prompt], token_ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Append the answers to the processor's batch of prompts and run both together."""
    batch = processor_inputs(vlm, prompts)
    prompt_length, width = batch["input_ids"].shape[1], token_ids_NT.shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], token_ids_NT], 1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], mask_NT], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in batch:
            answer_types = torch.full_like(token_ids_NT, vlm.family.answer_token_type_id)
            batch[name] = torch.cat([batch[name], answer_types], 1)
    if "cross_attention_mask" in batch:  # answer tokens attend to the images of the prompt's last token
        prompt_mask = batch["cross_attention_mask"]
        answer_mask = prompt_mask[:, -1:].expand(-1, width, -1, -1)
        batch["cross_attention_mask"] = torch.cat([prompt_mask, answer_mask], 1)
    # Prompts are left-padded: their last tokens share a column, and the answers begin after it.
    return vlm.model.base_model(**batch, use_cache=False).last_hidden_state[:, prompt_length - 1 :]


TokenChooser = Callable[[Tensor, Tensor, int], Tensor]
"""Takes logits [n, V] of some answers, their indices [n], and t; returns token t of each [n]."""


class ForcedTokens(LogitsProcessor):
    """Forces `generate` to take the token that `choose_tokens` picks."""

    def __init__(self, prompt_length: int, answer_indices: Tensor, choose_tokens: TokenChooser):
        self.prompt_length, self.answer_indices, self.choose_tokens = prompt_length, answer_indices, choose_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        next_token_N = self.choose_tokens(scores.float(), self.answer_indices, input_ids.shape[1] - self.prompt_length)
        return torch.full_like(scores, float("-inf")).scatter(1, next_token_N[:, None], 0.0)


def generate(
    vlm: VLM, prompts: Sequence[Prompt], prompt_indices: Sequence[int], max_tokens: int, choose_tokens: TokenChooser
) -> None:
    """Generate answers to `prompts[prompt_indices]` from the tokens that `choose_tokens` picks.

    Returns nothing: `choose_tokens` must record its picks. An answer ends at its end-of-sequence
    token.
    """
    for answer_indices in _group_by_image_count(prompts, prompt_indices):
        batch = processor_inputs(vlm, [prompts[prompt_indices[i]] for i in answer_indices])
        generation_config = GenerationConfig(  # the checkpoint's own may set penalties and temperatures
            max_new_tokens=max_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=list(vlm.eos),
            pad_token_id=int(vlm.tokenizer.pad_token_id),
        )
        indices = torch.tensor(answer_indices, device=vlm.device)
        processors = LogitsProcessorList([ForcedTokens(batch["input_ids"].shape[1], indices, choose_tokens)])
        vlm.model.generate(**batch, generation_config=generation_config, logits_processor=processors)
