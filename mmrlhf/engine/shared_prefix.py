"""Share the prefill of several prompts about the same images.

A benchmark may ask six questions of twenty tokens about an image of 576. The prefix that the
prompts have in common, images included, is prefilled once. The rest of each prompt, its suffix,
runs on top, like the first tokens of an answer but given instead of sampled. A run compares its
first group of prompts with separate prefills. If they differ (PaliGemma attends in both directions
within its prompt), every prompt is prefilled by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmrlhf.engine import prefill
from mmrlhf.engine.completions import pad_right
from mmrlhf.engine.prefill import LOGP_TOLERANCE, MAX_PACK_RATIO, Prefix
from mmrlhf.engine.sampling import DecodeState, SampleOutput, SamplingParams, Suffixes, decode_packed
from mmrlhf.models.vlm import VLM, Prompt


def group_by_prefix(vlm: VLM, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
    """Group the indices of prompts about the same images, in groups small enough to pay off.

    A prompt that shares nothing forms its own group.
    """
    by_images: dict[tuple[str, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        image_keys = tuple(image.key for image in prompt.images) or (f"none {index}",)
        by_images.setdefault(image_keys, []).append(index)
    index_groups = []
    for prompt_indices in by_images.values():
        group_size = 1
        if len(prompt_indices) > 1:
            group_size = _group_size(vlm, [prompts[i] for i in prompt_indices], params)
        index_groups += [prompt_indices[i : i + group_size] for i in range(0, len(prompt_indices), group_size)]
    return index_groups


def _group_size(vlm: VLM, prompts: Sequence[Prompt], params: SamplingParams) -> int:
    """Return the number of these prompts that should share a sequence (see MAX_PACK_RATIO)."""
    prefix_length = _common_prefix_length(prompts)
    if prefix_length == 0 or _has_image_token(vlm, [p.token_ids[prefix_length:] for p in prompts]):
        return 1  # a suffix runs without image features
    max_suffix_tokens = max(len(p.token_ids) for p in prompts) - prefix_length + params.max_tokens
    return max(1, MAX_PACK_RATIO * prefix_length // max_suffix_tokens)


def _has_image_token(vlm: VLM, token_ids: Sequence[Tensor]) -> bool:
    image_token = getattr(vlm.processor, "image_token", None)
    if not image_token:
        return False
    image_token_id = vlm.tokenizer.convert_tokens_to_ids(image_token)
    return any(bool((ids == image_token_id).any()) for ids in token_ids)


def _common_prefix_length(prompts: Sequence[Prompt]) -> int:
    """Return the number of leading tokens that are equal in all prompts.

    At least one token of every prompt is left over: an answer needs the hidden state after it.
    """
    max_length = min(len(p.token_ids) for p in prompts) - 1
    is_same = torch.stack([p.token_ids[:max_length] for p in prompts]) == prompts[0].token_ids[:max_length]
    return int(is_same.all(0).long().cumprod(0).sum())  # cumprod is 0 from the first difference on


def is_supported(vlm: VLM, prompts: Sequence[Prompt]) -> bool:
    """Return whether this model may share prefixes; a run's first group of prompts decides."""
    if not prefill.is_verified(vlm, prompts) or not vlm.engine.supports_packing:
        return False
    if vlm.engine.share_prefix_across_prompts == "auto":
        gap = max_logp_gap(vlm, prompts[:2])
        if gap <= LOGP_TOLERANCE[vlm.model.dtype]:
            vlm.engine.share_prefix_across_prompts = "on"
        else:
            vlm.engine.share_prefix_across_prompts = "off"
            print(
                f"note: shared-prefix batching is off across questions for {vlm.name}: each runs with its image "
                f"(log-probs differ by {gap:.2g} nats if questions share it)"
            )
    return vlm.engine.share_prefix_across_prompts == "on"


@torch.no_grad()
def max_logp_gap(vlm: VLM, prompts: Sequence[Prompt]) -> float:
    """Return the largest log-prob difference between a shared and separate prefills, in nats.

    The log-probs are those of each answer's first token.
    """
    common_prefix, suffixes = _prefill_shared(vlm, [list(prompts)])
    prompt_index_N = torch.zeros(len(prompts), dtype=torch.long, device=vlm.device)
    hidden = common_prefix.extend(prompt_index_N, *suffixes)
    last_hidden = hidden[torch.arange(len(prompts), device=vlm.device), suffixes.mask_NT.sum(1)]
    full_hidden = prefill.run_prefill(vlm, prompts).last_hidden_PD
    return prefill.max_logp_difference(vlm.log_softmax(full_hidden), vlm.log_softmax(last_hidden))


def _prefill_shared(vlm: VLM, prompt_groups: Sequence[Sequence[Prompt]]) -> tuple[Prefix, Suffixes]:
    """Prefill each group's common prefix; return it, and the suffixes of all prompts in order."""
    common_prefixes, suffix_ids = [], []
    for group in prompt_groups:
        length, first = _common_prefix_length(group), group[0]
        extras = {name: extra[:length] for name, extra in first.extras.items()}
        common_prefixes.append(replace(first, token_ids=first.token_ids[:length], extras=extras))
        suffix_ids += [p.token_ids[length:] for p in group]
    suffixes = Suffixes(*pad_right(suffix_ids, int(vlm.tokenizer.pad_token_id), vlm.device))
    return prefill.run_prefill(vlm, common_prefixes), suffixes


@torch.no_grad()
def sample(
    vlm: VLM, prompt_groups: Sequence[Sequence[Prompt]], params: SamplingParams, noise_NT: Tensor | None = None
) -> SampleOutput:
    """Sample an answer to each prompt, in the order of the groups.

    `noise_NT` is as in `sampling.sample`.
    """
    common_prefix, suffixes = _prefill_shared(vlm, prompt_groups)
    group_indices = [g for g, group in enumerate(prompt_groups) for _ in group]
    group_index_N = torch.tensor(group_indices, device=vlm.device)
    state = DecodeState(vlm, len(group_indices), params, noise_NT)
    decode_packed(common_prefix, group_index_N, group_index_N, state, suffixes)
    return state.result()
