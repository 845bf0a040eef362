"""Run a prompt once, then sample, score and train on any number of answers to it.

A VLM prompt has hundreds of image tokens, an answer dozens of tokens. The prompt's keys and values
are expanded to its answers by indexing, so gradients flow back through them, and the answers run on
top. The result equals that of the naive path (tests check it for every family). A run compares the
two paths on its first prompt; if they differ, the model runs on the naive path.

Shape suffixes: P prompts, L prompt tokens (left-padded), N answers, T answer tokens (right-padded),
D hidden, V vocabulary. `prompt_index_N` holds the index of each answer's prompt.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mmrlhf.engine import naive
from mmrlhf.models import kv_cache
from mmrlhf.models.device_errors import is_device_error
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.text.printable import first_line

notes = logging.getLogger(__name__)
"""Shown with --verbose."""

LOGP_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""How much the log-probs of the two paths may differ, in nats. Across 14 families they differ by
4e-5 in float32 and by 0.05 in bfloat16."""

MIN_COMPARED_LOGP = -10.0
"""Tokens with a lower log-prob on both paths are not compared: bfloat16 logits of 16 to 32 have
steps of 0.125, so such log-probs differ by more than the tolerance, and they are never sampled."""

MAX_PACK_RATIO = 3
"""A prompt's answers share a sequence if together they have at most this many times its tokens.
Time on two cores with 590 prompt tokens, as a share of the time with one row per answer: 0.81 for
32 answers of 48 tokens, 0.98 for 16 of 96, and 1.04 for 8 of 192."""


@dataclass
class Prefix:
    """Prefilled prompts, ready to be extended by answers."""

    vlm: VLM
    kv: kv_cache.KV
    """Keys and values (or states) of each layer, one row per prompt."""
    cache_template: Cache
    """The prompts' cache; it gives the kind of each layer."""
    last_hidden_PD: Tensor
    """Hidden states at the prompts' last tokens: they predict each answer's first token."""
    mask_PL: Tensor
    start_position_P: Tensor
    """Position id of each answer's first token."""
    extras: dict[str, Tensor]
    """Further per-token inputs of the prompts that answers need too (`extra_inputs`)."""

    def extend(self, prompt_index_N: Tensor, token_ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Run answers on their prompts and return hidden states [N, T + 1, D].

        Column 0 is after the prompt, column t after t answer tokens; each predicts the next token.
        Log-probs of T tokens therefore need the first T columns (leave the last token out), and a
        reward at the last real token reads column `mask.sum()`.
        """
        first_hidden_ND = self.last_hidden_PD[prompt_index_N, None]
        width = token_ids_NT.shape[1]
        if width == 0:  # answers of one token need the state after the prompt only
            return first_hidden_ND
        if group_size := self._group_size(prompt_index_N, width):
            return torch.cat([first_hidden_ND, self._extend_packed(prompt_index_N, token_ids_NT, group_size)], 1)
        if width == 1:  # linear attention runs a lone token in its decoding kernel, which writes the state in place
            token_ids_NT, mask_NT = (torch.nn.functional.pad(t, (0, 1)) for t in (token_ids_NT, mask_NT))
        outputs = self.vlm.model.base_model(
            input_ids=token_ids_NT,
            attention_mask=torch.cat([self.mask_PL[prompt_index_N], mask_NT], 1),
            position_ids=self.answer_position_ids(prompt_index_N, 0, token_ids_NT.shape[1]),
            **kv_cache.cache_kwargs(self.vlm.model, kv_cache.frozen_cache(self.kv, self.cache_template, prompt_index_N)),
            **self.extra_inputs(prompt_index_N, token_ids_NT.shape[1]),
        )
        return torch.cat([first_hidden_ND, outputs.last_hidden_state[:, :width]], 1)

    def should_pack(self, num_answers: int, num_tokens: int) -> bool:
        """Return whether this number of answers of this length should share a sequence.

        They then attend to the prompt's keys without copying them. But attention is also computed
        over the other answers' masked keys, which is too slow once these far outnumber the
        prompt's.
        """
        if not self.vlm.engine.supports_packing or num_answers <= 1:
            return False
        return num_answers * num_tokens <= MAX_PACK_RATIO * self.mask_PL.shape[1]

    def _group_size(self, prompt_index_N: Tensor, width: int) -> int:
        """Return the number of answers per prompt if they should be packed, else 0.

        Packing needs the same number of answers to each prompt, in adjacent rows.
        """
        if not self.vlm.engine.supports_packing:
            return 0
        prompt_indices, counts = torch.unique_consecutive(prompt_index_N, return_counts=True)
        group_size = int(counts[0])
        is_even = bool((counts == group_size).all()) and len(prompt_indices.unique()) == len(prompt_indices)
        return group_size if is_even and self.should_pack(group_size, width) else 0

    def _extend_packed(self, prompt_index_N: Tensor, token_ids_NT: Tensor, group_size: int) -> Tensor:
        """Run answers [P x G, T] as P sequences of G x T tokens.

        Returns their hidden states [P x G, T, D].
        """
        width, device = token_ids_NT.shape[1], token_ids_NT.device
        prompt_indices = prompt_index_N[::group_size]
        # Every token sees its prompt's real tokens and, by one causal block per answer on the
        # diagonal, the tokens before it in its own answer. Right padding needs no mask: nothing
        # real comes after it.
        answer_mask = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        answer_mask = torch.block_diag(*[answer_mask] * group_size).bool()
        prompt_mask = self.mask_PL[prompt_indices].bool()[:, None].expand(-1, group_size * width, -1)
        visible = torch.cat([prompt_mask, answer_mask.expand(len(prompt_indices), -1, -1)], -1)
        # Positions restart at the prompt's end for each answer. Rotary axes, if any, come first.
        position_ids = self.answer_position_ids(prompt_index_N, 0, width)
        outputs = self.vlm.model.base_model(
            input_ids=token_ids_NT.reshape(len(prompt_indices), -1),
            attention_mask=self.vlm.build_attention_mask(visible),
            position_ids=position_ids.reshape(*position_ids.shape[:-2], len(prompt_indices), -1),
            **kv_cache.cache_kwargs(self.vlm.model, kv_cache.frozen_cache(self.kv, self.cache_template, prompt_indices)),
        )
        return outputs.last_hidden_state.reshape(len(prompt_index_N), width, -1)

    def answer_position_ids(self, prompt_index_N: Tensor, start: int, num_tokens: int) -> Tensor:
        """Return position ids of `num_tokens` answer tokens from token `start` on."""
        offsets = torch.arange(start, start + num_tokens, device=prompt_index_N.device)
        return self.position_ids(prompt_index_N, offsets.expand(len(prompt_index_N), -1))

    def position_ids(self, prompt_index_N: Tensor, offset_NT: Tensor) -> Tensor:
        """Return position ids of tokens `offset_NT` places after their prompts.

        Their shape is [N, T], or [3, N, T] for rotary axes.
        """
        position_ids = self.start_position_P[prompt_index_N, None] + offset_NT
        return position_ids.expand(3, -1, -1) if _has_rope_axes(self.vlm) else position_ids

    def extra_inputs(self, prompt_index_N: Tensor, num_tokens: int) -> dict[str, Tensor]:
        """Return the extras of answer tokens.

        In Mllama, they attend to the same images as the prompt's last token.
        """
        return {k: v[prompt_index_N][:, -1:].expand(-1, num_tokens, -1, -1) for k, v in self.extras.items()}


@dataclass
class NaivePrefix:
    """Prompts that run again with each answer, if `Prefix` would be wrong or is turned off."""

    vlm: VLM
    prompts: Sequence[Prompt]

    def extend(self, prompt_index_N: Tensor, token_ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Return hidden states as `Prefix.extend` does."""
        return naive.hidden_states(self.vlm, self.prompts, prompt_index_N.tolist(), token_ids_NT, mask_NT)

    @property
    def last_hidden_PD(self) -> Tensor:
        """Run the prompts alone and return the hidden states at their last tokens."""
        prompt_indices = list(range(len(self.prompts)))
        no_tokens = torch.zeros(len(prompt_indices), 0, dtype=torch.long, device=self.vlm.device)
        return naive.hidden_states(self.vlm, self.prompts, prompt_indices, no_tokens, no_tokens)[:, 0]


# ---- running prompts ---------------------------------------------------------------------------


def prefill(vlm: VLM, prompts: Sequence[Prompt]) -> Prefix | NaivePrefix:
    """Run the prompts under the active adapter, with gradients if they are enabled.

    The first call of a run decides between the two paths.
    """
    return run_prefill(vlm, prompts) if is_verified(vlm, prompts) else NaivePrefix(vlm, prompts)


def run_prefill(vlm: VLM, prompts: Sequence[Prompt]) -> Prefix:
    """Run the prompts on the fast path, left-padded to one length."""
    pad_token_id = int(vlm.tokenizer.pad_token_id)
    inputs = {
        "input_ids": _left_pad([p.token_ids for p in prompts], pad_token_id),
        "attention_mask": _left_pad([torch.ones_like(p.token_ids) for p in prompts]),
        **{
            name: _left_pad(_pad_image_axis([p.extras.get(name) for p in prompts]), min_length=max(prompt_lengths(prompts)))
            for name in _extra_names(prompts)
        },
    }
    inputs = {name: tensor.to(vlm.device) for name, tensor in inputs.items()}
    image_grids = [features.grid_thw for p in prompts for features in p.image_features if features.grid_thw is not None]
    position_inputs = inputs | ({"image_grid_thw": torch.cat(image_grids).to(vlm.device)} if image_grids else {})
    position_ids, start_position_P = _prompt_position_ids(vlm, position_inputs)
    cache = kv_cache.new_cache(vlm.model)
    outputs = vlm.model.base_model(
        **inputs, **vlm.image_inputs(prompts), position_ids=position_ids, **kv_cache.cache_kwargs(vlm.model, cache)
    )
    return Prefix(
        vlm=vlm,
        kv=kv_cache.cache_parts(cache),
        cache_template=cache,
        last_hidden_PD=outputs.last_hidden_state[:, -1],
        mask_PL=inputs["attention_mask"],
        start_position_P=start_position_P,
        extras={name: tensor for name, tensor in inputs.items() if name == "cross_attention_mask"},
    )


def _left_pad(rows: Sequence[Tensor], pad_value: int = 0, min_length: int = 0) -> Tensor:
    """Stack tensors [l, ...] of different lengths l into [P, L, ...], padded at the start."""
    max_length = max(min_length, *(len(row) for row in rows))
    # `pad` takes (before, after) pairs from the last axis to the first; only the first axis grows.
    unpadded_axes = [0, 0] * (rows[0].dim() - 1)
    return torch.stack(
        [torch.nn.functional.pad(row, [*unpadded_axes, max_length - len(row), 0], value=pad_value) for row in rows]
    )


def _extra_names(prompts: Sequence[Prompt]) -> list[str]:
    """Return the names of all prompts' extras; Mllama's prompts without images have none."""
    return list(dict.fromkeys(name for p in prompts for name in p.extras))


def _pad_image_axis(rows: Sequence[Tensor | None]) -> list[Tensor]:
    """Pad Mllama's masks [L, images, tiles] to the same number of images.

    Nothing attends to the added images. Their number matches `VLM.image_inputs`. Extras without an
    image axis are returned unchanged.
    """
    present = [row for row in rows if row is not None]
    if present[0].dim() == 1:
        return present
    num_images = math.lcm(*(row.shape[1] for row in present))
    blank = present[0].new_zeros(1, num_images, present[0].shape[2])
    return [blank if row is None else torch.nn.functional.pad(row, (0, 0, 0, num_images - row.shape[1])) for row in rows]


def _has_rope_axes(vlm: VLM) -> bool:
    """Return whether positions have three axes: time, height, width (Qwen)."""
    return hasattr(vlm.model.base_model, "get_rope_index")


def _prompt_position_ids(vlm: VLM, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the prompts' position ids, and the first position id after each prompt [P]."""
    if _has_rope_axes(vlm):
        get_rope_index = vlm.model.base_model.get_rope_index
        parameters = inspect.signature(get_rope_index).parameters
        position_ids = get_rope_index(**{k: inputs[k] for k in parameters if k in inputs})[0]
        # An image spans fewer positions than tokens: an answer continues after the largest one.
        return position_ids, position_ids.amax((0, 2)) + 1
    # The first real token gets the family's first position; that of left padding does not matter.
    position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0) + vlm.family.first_position_id
    return position_ids, position_ids.amax(1) + 1


def prompt_lengths(prompts: Sequence[Prompt]) -> list[int]:
    """Return the number of tokens of each prompt."""
    return [len(p.token_ids) for p in prompts]


# ---- choosing a path ---------------------------------------------------------------------------


def is_verified(vlm: VLM, prompts: Sequence[Prompt]) -> bool:
    """Return whether prompts may run on the fast path, after checking it if necessary.

    A check on a prompt without images is valid only for such prompts; the first one with images is
    checked as well.
    """
    has_images = any(p.images for p in prompts)
    if vlm.engine.share_prefix == "auto" and (has_images or not vlm.engine.is_verified_on_text):
        _choose_path(vlm, prompts)
    return vlm.engine.share_prefix != "off"


def _choose_path(vlm: VLM, prompts: Sequence[Prompt]) -> None:
    """Compare the two paths on one prompt, with images if any has them, and record the result."""
    prompt = next((p for p in prompts if p.images), prompts[0])
    agree, reason = _paths_agree(vlm, prompt)
    if not agree and vlm.engine.supports_packing:  # the mask of packed answers may be at fault: try without
        vlm.engine.supports_packing = vlm.engine.use_cuda_graphs = False
        agree, reason = _paths_agree(vlm, prompt)
    if not agree:
        print(f"note: shared-prefix batching is off for {vlm.name}: each answer runs with its whole prompt ({reason})")
        vlm.engine.share_prefix = "off"
    elif prompt.images:
        notes.info("shared-prefix batching is on for %s (%s)", vlm.name, reason)
        vlm.engine.share_prefix = "on"
    else:
        vlm.engine.is_verified_on_text = True


def _paths_agree(vlm: VLM, prompt: Prompt) -> tuple[bool, str]:
    """Return whether the two paths agree on a prompt, and a description of how they differ."""
    try:
        gap = max_logp_gap(vlm, prompt)
    except Exception as error:  # an untested family may fail in any way; the naive path is the fallback
        if is_device_error(error):
            raise
        return False, f"{type(error).__name__}: {first_line(error)}"
    return gap <= LOGP_TOLERANCE[vlm.model.dtype], f"max log-prob difference {gap:.2g} nats"


@torch.no_grad()
def max_logp_gap(vlm: VLM, prompt: Prompt) -> float:
    """Return the two paths' largest log-prob difference on two short answers, in nats."""
    # Three of the prompt's own tokens, forwards and backwards: the model knows and may sample them.
    suppressed = set(vlm.suppressed_tokens.tolist())
    allowed_ids = [i for i in dict.fromkeys(prompt.token_ids.tolist()) if i not in suppressed] or list(vlm.eos)
    probe_ids = (allowed_ids * 3)[-3:]
    token_ids_NT = torch.tensor([probe_ids, probe_ids[::-1]], device=vlm.device)
    prompt_index_N, mask_NT = torch.zeros(2, dtype=torch.long, device=vlm.device), torch.ones_like(token_ids_NT)
    naive_hidden = NaivePrefix(vlm, [prompt]).extend(prompt_index_N, token_ids_NT, mask_NT)
    # A longer prompt in the same batch makes the fast path pad the first one on the left.
    longer_prompt = replace(
        prompt,
        token_ids=torch.cat([prompt.token_ids, prompt.token_ids[-1:]]),
        extras={name: torch.cat([extra, extra[-1:]]) for name, extra in prompt.extras.items()},
    )
    fast_hidden = run_prefill(vlm, [prompt, longer_prompt]).extend(prompt_index_N, token_ids_NT, mask_NT)
    return max_logp_difference(vlm.log_softmax(naive_hidden), vlm.log_softmax(fast_hidden))


def max_logp_difference(reference: Tensor, actual: Tensor) -> float:
    """Return the largest difference between log-probs, leaving out pairs below MIN_COMPARED_LOGP.

    The likeliest tokens are always compared: a flat distribution over more than e^10 tokens has
    none above that limit. The difference is NaN if any log-prob is.
    """
    likelier = torch.maximum(reference, actual)
    lowest_compared = likelier.amax(-1, keepdim=True).clamp(max=MIN_COMPARED_LOGP)
    is_compared = ~(likelier < lowest_compared)  # true for NaN
    return float((reference - actual)[is_compared].abs().max())


# ---- training ----------------------------------------------------------------------------------


@contextlib.contextmanager
def two_stage_backward(prefix: Prefix | NaivePrefix) -> Iterator[Prefix | NaivePrefix]:
    """Let batches of answers call `backward` inside the block; run the prompts' own once, on exit.

    The yielded prefix has detached leaves in place of the prompts' keys, values and last hidden
    states. Each `backward` inside the block stops there, frees its own activations, and adds to the
    leaves' gradients. On exit, these are propagated through the prompts' forward pass. Without
    gradients, and on the naive path, the prefix is yielded unchanged.
    """
    if isinstance(prefix, NaivePrefix) or not torch.is_grad_enabled() or not prefix.last_hidden_PD.requires_grad:
        yield prefix
        return
    roots_and_leaves: list[tuple[Tensor, Tensor]] = []

    def detach(tensor: Tensor) -> Tensor:
        leaf = tensor.detach()
        if tensor.requires_grad:
            roots_and_leaves.append((tensor, leaf.requires_grad_()))
        return leaf

    detached_kv: kv_cache.KV = [None if part is None else tuple(detach(t) for t in part) for part in prefix.kv]
    yield replace(prefix, kv=detached_kv, last_hidden_PD=detach(prefix.last_hidden_PD))
    roots_and_grads = [(root, leaf.grad) for root, leaf in roots_and_leaves if leaf.grad is not None]
    if roots_and_grads:
        torch.autograd.backward([root for root, _ in roots_and_grads], [grad for _, grad in roots_and_grads])
