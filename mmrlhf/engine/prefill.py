"""Prefill once: run a prompt one time, then sample, score and learn through any number of answers to it.

A VLM prompt is hundreds of image tokens and an answer dozens. The prompt's keys and values are expanded to its answers by
index, so that autograd flows back through them; the answers are run on top. Equal to the plain forward (the tests say so, family by
family), and compared with it on the first prompt of every run: a model for which the two differ is run plainly.

Shape suffixes: P prompts, L prompt tokens (left-padded), N answers, T answer tokens (right-padded), D hidden, V vocabulary.
`rows_N` names the prompt of each answer.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mmrlhf.engine import naive
from mmrlhf.models import kv_cache
from mmrlhf.models.vlm import VLM, Prompt

LOGP_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""Nats by which log-probs of the two paths may differ; in 14 families they differ by 4e-5 in float32 and by 0.05 in bfloat16."""

MAX_PACK_RATIO = 3
"""A prompt's answers share a sequence while they have no more than so many times its tokens. Measured on two cores with 590 prompt tokens: 32
answers of 48 tokens take 0.81 of the time of a row each, 16 of 96 as long (0.98), 8 of 192 a little longer (1.04)."""


@dataclass
class Prefix:
    """Prompts after their one forward. `kv` holds each layer's parts, prompts first; `last_PD` predicts each answer's first token;
    `start_P` is the position of that token; `extras` is what an answer's tokens are told besides."""

    vlm: VLM
    kv: kv_cache.KV
    cache_template: Cache
    last_hidden_PD: Tensor
    mask_PL: Tensor
    start_position_P: Tensor
    extras: dict[str, Tensor]

    def extend(self, prompt_index_N: Tensor, token_ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Hidden states [N, T + 1, D]: column 0 stands after the prompt, column t after t answer tokens.

        Column t predicts token t + 1, so that log-probs of T tokens need the first T columns (leave the last token out), and a
        reward at the last real token reads column mask.sum().
        """
        first_hidden_ND = self.last_hidden_PD[prompt_index_N, None]
        width = token_ids_NT.shape[1]
        if width == 0:  # answers of one token: only what stands after the prompt is asked for
            return first_hidden_ND
        if group_size := self._group_size(prompt_index_N, width):
            return torch.cat([first_hidden_ND, self._extend_packed(prompt_index_N, token_ids_NT, group_size)], 1)
        if width == 1:  # linear attention takes a lone token to its decoding kernel, which writes the state in place
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
        """Whether so many answers of so many tokens to a prompt stand beside one another in one sequence, on keys that are not copied.

        Each token then meets the other answers' keys as well, behind a mask: not worth it once they outnumber the prompt's by far.
        """
        return (
            self.vlm.engine.supports_packing
            and num_answers > 1
            and num_answers * num_tokens <= MAX_PACK_RATIO * self.mask_PL.shape[1]
        )

    def _group_size(self, prompt_index_N: Tensor, width: int) -> int:
        """How many answers each prompt has, if it is the same for all, they stand together, and packing them pays; else 0."""
        if not self.vlm.engine.supports_packing:
            return 0
        prompt_indices, counts = torch.unique_consecutive(prompt_index_N, return_counts=True)
        group_size = int(counts[0])
        is_even = bool((counts == group_size).all()) and len(prompt_indices.unique()) == len(prompt_indices)
        return group_size if is_even and self.should_pack(group_size, width) else 0

    def _extend_packed(self, prompt_index_N: Tensor, token_ids_NT: Tensor, group_size: int) -> Tensor:
        """Answers [P x G, T] as P sequences of G x T tokens, of which each sees its prompt and its own answer so far."""
        width, device = token_ids_NT.shape[1], token_ids_NT.device
        prompt_indices = prompt_index_N[::group_size]
        answer_mask = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        answer_mask = torch.block_diag(*[answer_mask] * group_size).bool()
        prompt_mask = self.mask_PL[prompt_indices].bool()[:, None].expand(-1, group_size * width, -1)
        visible = torch.cat([prompt_mask, answer_mask.expand(len(prompt_indices), -1, -1)], -1)
        position_ids = self.answer_position_ids(prompt_index_N, 0, width)
        outputs = self.vlm.model.base_model(
            input_ids=token_ids_NT.reshape(len(prompt_indices), -1),
            attention_mask=self.vlm.build_attention_mask(visible),
            position_ids=position_ids.reshape(*position_ids.shape[:-2], len(prompt_indices), -1),
            **kv_cache.cache_kwargs(self.vlm.model, kv_cache.frozen_cache(self.kv, self.cache_template, prompt_indices)),
        )
        return outputs.last_hidden_state.reshape(len(prompt_index_N), width, -1)

    def answer_position_ids(self, prompt_index_N: Tensor, start: int, num_tokens: int) -> Tensor:
        """Position ids of `count` answer tokens from the `first` on."""
        return self.position_ids(
            prompt_index_N, torch.arange(start, start + num_tokens, device=prompt_index_N.device).expand(len(prompt_index_N), -1)
        )

    def position_ids(self, prompt_index_N: Tensor, offset_NT: Tensor) -> Tensor:
        """Position ids of tokens that stand so many after the prompts `rows_N`."""
        position_ids = self.start_position_P[prompt_index_N, None] + offset_NT
        return position_ids.expand(3, -1, -1) if hasattr(self.vlm.model.base_model, "get_rope_index") else position_ids

    def extra_inputs(self, prompt_index_N: Tensor, num_tokens: int) -> dict[str, Tensor]:
        """Mllama: an answer's tokens look at the pictures that the prompt's last token looks at."""
        return {k: v[prompt_index_N][:, -1:].expand(-1, num_tokens, -1, -1) for k, v in self.extras.items()}


@dataclass
class NaivePrefix:
    """Prompts that are run anew with each of their answers, where `Prefix` would be wrong or is not wanted."""

    vlm: VLM
    prompts: Sequence[Prompt]

    def extend(self, prompt_index_N: Tensor, token_ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """As `Prefix.extend`."""
        return naive.hidden_states(self.vlm, self.prompts, prompt_index_N.tolist(), token_ids_NT, mask_NT)

    @property
    def last_hidden_PD(self) -> Tensor:
        prompt_indices = list(range(len(self.prompts)))
        no_tokens = torch.zeros(len(prompt_indices), 0, dtype=torch.long, device=self.vlm.device)
        return naive.hidden_states(self.vlm, self.prompts, prompt_indices, no_tokens, no_tokens)[:, 0]


def prefill(vlm: VLM, prompts: Sequence[Prompt]) -> Prefix | NaivePrefix:
    """Run the prompts under the current role, with gradients where they are enabled; the first of a run decides how."""
    return run_prefill(vlm, prompts) if is_verified(vlm, prompts) else NaivePrefix(vlm, prompts)


def is_verified(vlm: VLM, prompts: Sequence[Prompt]) -> bool:
    """Whether prompts are run once for all that follows them."""
    if vlm.engine.share_prefix == "auto" and not (vlm.engine.is_verified_on_text and not any(p.images for p in prompts)):
        _choose_path(vlm, prompts)
    return vlm.engine.share_prefix != "off"


def run_prefill(vlm: VLM, prompts: Sequence[Prompt]) -> Prefix:
    max_length = max(len(p.token_ids) for p in prompts)
    pad_token_id = int(vlm.tokenizer.pad_token_id)

    def left_pad_and_stack(rows: list[Tensor], pad_value: int = 0) -> Tensor:
        trailing_pads = [(0, 0)] * (rows[0].dim() - 1)  # the token axis is the first
        pad_widths = [[n for pair in reversed([(max_length - len(r), 0), *trailing_pads]) for n in pair] for r in rows]
        padded = [torch.nn.functional.pad(r, w, value=pad_value) for r, w in zip(rows, pad_widths, strict=True)]
        return torch.stack(padded).to(vlm.device)

    inputs = {
        "input_ids": left_pad_and_stack([p.token_ids for p in prompts], pad_token_id),
        "attention_mask": left_pad_and_stack([torch.ones_like(p.token_ids) for p in prompts]),
        **{k: left_pad_and_stack(_pad_image_axis([p.extras.get(k) for p in prompts])) for k in _extra_names(prompts)},
    }
    image_grids = [features.grid_thw for p in prompts for features in p.image_features if features.grid_thw is not None]
    position_inputs = inputs | ({"image_grid_thw": torch.cat(image_grids).to(vlm.device)} if image_grids else {})
    position_ids, start_position_P = _prompt_position_ids(vlm, position_inputs)
    cache = kv_cache.new_cache(vlm.model)
    outputs = vlm.model.base_model(
        **inputs, **vlm.image_inputs(prompts), position_ids=position_ids, **kv_cache.cache_kwargs(vlm.model, cache)
    )
    extras = {k: v for k, v in inputs.items() if k == "cross_attention_mask"}
    return Prefix(
        vlm,
        kv_cache.cache_parts(cache),
        cache,
        outputs.last_hidden_state[:, -1],
        inputs["attention_mask"],
        start_position_P,
        extras,
    )


def _extra_names(prompts: Sequence[Prompt]) -> list[str]:
    """The names of the per-token rows that any prompt has: Mllama has none for a prompt without pictures."""
    return list(dict.fromkeys(k for p in prompts for k in p.extras))


def _pad_image_axis(masks: Sequence[Tensor | None]) -> list[Tensor]:
    """Mllama's masks [L, pictures, tiles], each as wide as `VLM.join` makes its rows; what is added is not looked at."""
    present = [r for r in masks if r is not None]
    if present[0].dim() == 1:
        return present
    num_images = math.lcm(*(r.shape[1] for r in present))
    blank = present[0].new_zeros(1, num_images, present[0].shape[2])
    return [blank if r is None else torch.nn.functional.pad(r, (0, 0, 0, num_images - r.shape[1])) for r in masks]


def _prompt_position_ids(vlm: VLM, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Position ids of the prompts, and the first position after each."""
    base_model = vlm.model.base_model
    if hasattr(base_model, "get_rope_index"):  # Qwen: three axes
        parameters = inspect.signature(base_model.get_rope_index).parameters
        position_ids = base_model.get_rope_index(**{k: inputs[k] for k in parameters if k in inputs})[0]
        return position_ids, position_ids.amax((0, 2)) + 1
    position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0) + vlm.family.first_position_id
    return position_ids, position_ids.amax(1) + 1


# ---- which path --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def max_logp_gap(vlm: VLM, prompt: Prompt) -> float:
    """The most by which the log-probs of two answers of three tokens differ between the fast path and the plain one, in nats."""
    allowed_ids = [i for i in dict.fromkeys(prompt.token_ids.tolist()) if i not in set(vlm.suppressed_tokens.tolist())] or list(
        vlm.eos
    )
    probe_ids = (allowed_ids * 3)[-3:]
    token_ids_NT = torch.tensor([probe_ids, probe_ids[::-1]], device=vlm.device)
    prompt_index_N, mask_NT = torch.zeros(2, dtype=torch.long, device=vlm.device), torch.ones_like(token_ids_NT)
    naive_logps, fast_logps = (
        vlm.log_softmax(path.extend(prompt_index_N, token_ids_NT, mask_NT))
        for path in (NaivePrefix(vlm, [prompt]), run_prefill(vlm, [prompt]))
    )
    is_finite = torch.isfinite(naive_logps)
    return float((naive_logps - fast_logps)[is_finite].abs().max())


def _choose_path(vlm: VLM, prompts: Sequence[Prompt]) -> None:
    """Compare the two paths on one row, with a picture if there is one, and take the fast one where they agree."""
    prompt = next((p for p in prompts if p.images), prompts[0])
    agree, reason = _paths_agree(vlm, prompt)
    if not agree and vlm.engine.supports_packing:
        vlm.engine.supports_packing = vlm.engine.use_cuda_graphs = False
        agree, reason = _paths_agree(vlm, prompt)
    if not agree:
        print(f"note: {vlm.name} is run the plain way, each answer with its whole prompt ({reason})")
        vlm.engine.share_prefix = "off"
    elif prompt.images:
        print(f"note: {vlm.name}: prompts are run once for all their answers ({reason} from each with its whole prompt)")
        vlm.engine.share_prefix = "on"
    else:
        vlm.engine.is_verified_on_text = True


def _paths_agree(vlm: VLM, prompt: Prompt) -> tuple[bool, str]:
    try:
        gap = max_logp_gap(vlm, prompt)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a family that was never tried may fail in any way: the plain path is there for it
        return False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return gap <= LOGP_TOLERANCE[vlm.model.dtype], f"log-probs differ by {gap:.2g} nats"


# ---- learning ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def two_stage_backward(prefix: Prefix | NaivePrefix) -> Iterator[Prefix | NaivePrefix]:
    """Backward in two stages: each batch of answers may call `backward` inside, and only its own activations live meanwhile; what their
    gradients say of the prompt is gathered, and goes through the prompt once, on leaving."""
    if isinstance(prefix, NaivePrefix) or not torch.is_grad_enabled() or not prefix.last_hidden_PD.requires_grad:
        yield prefix
        return
    pairs: list[tuple[Tensor, Tensor]] = []

    def detach(tensor: Tensor) -> Tensor:
        leaf = tensor.detach()
        if tensor.requires_grad:
            pairs.append((tensor, leaf.requires_grad_()))
        return leaf

    parts: kv_cache.KV = [None if part is None else tuple(detach(t) for t in part) for part in prefix.kv]
    yield replace(prefix, kv=parts, last_hidden_PD=detach(prefix.last_hidden_PD))
    roots_and_grads = [(root, leaf.grad) for root, leaf in pairs if leaf.grad is not None]
    if roots_and_grads:
        torch.autograd.backward([root for root, _ in roots_and_grads], [grad for _, grad in roots_and_grads])


def prompt_lengths(prompts: Sequence[Any]) -> list[int]:
    """Lengths of prompts."""
    return [len(p.token_ids) for p in prompts]
