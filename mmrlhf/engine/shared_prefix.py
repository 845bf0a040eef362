"""Several questions about one picture: what their prompts have in common, picture included, is run once, and each question on top of it.

A benchmark asks six questions about a picture of 576 tokens, and a question has twenty. What follows the common beginning (the stem) is treated as
the first tokens of an answer that were not chosen. Compared with whole prompts on the first group of a run; a model where they differ (PaliGemma
looks both ways within its prompt) has every prompt run whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmrlhf.engine import prefill
from mmrlhf.engine.prefill import LOGP_TOLERANCE, MAX_PACK_RATIO, Prefix
from mmrlhf.engine.sampling import DecodeState, SampleOutput, SamplingParams, Suffixes, decode_packed
from mmrlhf.models.vlm import VLM, Prompt


def group_by_prefix(vlm: VLM, prompts: Sequence[Prompt], sampling_params: SamplingParams) -> list[list[int]]:
    """Numbers of prompts on the same pictures that begin alike, as many together as pay; a prompt alone where nothing is shared."""
    by_images: dict[tuple[str, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_images.setdefault(tuple(i.key for i in prompt.images) or (f"none {index}",), []).append(index)
    index_groups = []
    for prompt_indices in by_images.values():
        group_size = _group_size(vlm, [prompts[i] for i in prompt_indices], sampling_params) if len(prompt_indices) > 1 else 1
        index_groups += [prompt_indices[i : i + group_size] for i in range(0, len(prompt_indices), group_size)]
    return index_groups


def _group_size(vlm: VLM, prompts: Sequence[Prompt], sampling_params: SamplingParams) -> int:
    prefix_length = _common_prefix_length(prompts)
    image_token = getattr(vlm.processor, "image_token", None)
    image_token_id = vlm.tokenizer.convert_tokens_to_ids(image_token) if image_token else None
    if prefix_length == 0 or any(
        (p.token_ids[prefix_length:] == image_token_id).any() for p in prompts if image_token_id is not None
    ):
        return 1
    max_suffix_tokens = max(len(p.token_ids) for p in prompts) - prefix_length + sampling_params.max_tokens
    return max(1, MAX_PACK_RATIO * prefix_length // max_suffix_tokens)


def _common_prefix_length(prompts: Sequence[Prompt]) -> int:
    """Tokens with which all of them begin, one less than the shortest has at most."""
    max_length = min(len(p.token_ids) for p in prompts) - 1
    is_same = torch.stack([p.token_ids[:max_length] for p in prompts]) == prompts[0].token_ids[:max_length]
    return int(is_same.all(0).long().cumprod(0).sum())


def is_supported(vlm: VLM, prompts: Sequence[Prompt]) -> bool:
    """Whether stems may be run once with this model; decided on the first group that there is."""
    if not (prefill.is_verified(vlm, prompts) and vlm.engine.supports_packing) or vlm.engine.share_prefix_across_prompts == "off":
        return False
    if vlm.engine.share_prefix_across_prompts == "auto":
        gap = max_logp_gap(vlm, prompts[:2])
        vlm.engine.share_prefix_across_prompts = "on" if gap <= LOGP_TOLERANCE[vlm.model.dtype] else "off"
        if vlm.engine.share_prefix_across_prompts == "off":
            print(f"note: {vlm.name} runs every question with its picture (log-probs differ by {gap:.2g} nats on a shared one)")
    return vlm.engine.share_prefix_across_prompts == "on"


@torch.no_grad()
def max_logp_gap(vlm: VLM, prompts: Sequence[Prompt]) -> float:
    """The most by which log-probs of the first token of answers differ between a shared stem and whole prompts, in nats."""
    common_prefix, suffixes = _prefill_shared(vlm, [list(prompts)])
    prompt_index_N = torch.zeros(len(prompts), dtype=torch.long, device=vlm.device)
    hidden = common_prefix.extend(prompt_index_N, *suffixes)
    last_hidden = hidden[torch.arange(len(prompts), device=vlm.device), suffixes.mask_NT.sum(1)]
    shared_logps, full_logps = vlm.log_softmax(last_hidden), vlm.log_softmax(prefill.run_prefill(vlm, prompts).last_hidden_PD)
    is_finite = torch.isfinite(full_logps)
    return float((shared_logps - full_logps)[is_finite].abs().max())


def _prefill_shared(vlm: VLM, prompt_groups: Sequence[Sequence[Prompt]]) -> tuple[Prefix, Suffixes]:
    """The stem of each group after its forward, and what follows in each prompt."""
    common_prefixes, suffix_ids = [], []
    for group in prompt_groups:
        length, first = _common_prefix_length(group), group[0]
        common_prefixes.append(
            Prompt(
                first.token_ids[:length],
                {k: v[:length] for k, v in first.extras.items()},
                first.image_features,
                first.text,
                first.images,
            )
        )
        suffix_ids += [p.token_ids[length:] for p in group]
    pad_sequence = torch.nn.utils.rnn.pad_sequence
    token_ids = pad_sequence(suffix_ids, batch_first=True, padding_value=int(vlm.tokenizer.pad_token_id)).to(vlm.device)
    mask = pad_sequence([torch.ones_like(suffix) for suffix in suffix_ids], batch_first=True).to(vlm.device)
    return prefill.run_prefill(vlm, common_prefixes), Suffixes(token_ids, mask)


@torch.no_grad()
def sample(
    vlm: VLM, prompt_groups: Sequence[Sequence[Prompt]], sampling_params: SamplingParams, noise_NT: Tensor | None = None
) -> SampleOutput:
    """An answer to each prompt of groups that begin alike, in their order; `draws_NT` as in `sampling.sample`."""
    common_prefix, suffixes = _prefill_shared(vlm, prompt_groups)
    prompt_index_N = torch.tensor([g for g, group in enumerate(prompt_groups) for _ in group], device=vlm.device)
    state = DecodeState(vlm, len(prompt_index_N), sampling_params, noise_NT)
    decode_packed(common_prefix, prompt_index_N, prompt_index_N, state, suffixes)
    return state.result()
