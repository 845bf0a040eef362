"""Prefill once: run a prompt one time, then sample, score and learn through any number of answers to it.

A VLM prompt is hundreds of image tokens and an answer dozens. The prompt's keys and values are expanded to its answers by
index, so that autograd flows back through them; the answers are run on top. Equal to the plain forward (the tests say so).

Shape suffixes: P prompts, L prompt tokens (left-padded), N answers, T answer tokens (right-padded), D hidden.
`rows_N` names the prompt of each answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from mmrlhf.vlm import VLM, Prompt


class _Functional(DynamicLayer):
    """A cache layer whose prefix is never written: an answer's keys are joined to it in a new tensor."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        self.keys, self.values = keys, values
        self.grown: tuple[Tensor, Tensor] | None = None
        self.is_initialized = keys is not None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            key_states = torch.cat([self.keys, key_states], -2)
            value_states = torch.cat([self.values, value_states], -2)
        self.grown = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]


class _Growing(DynamicLayer):
    """A cache layer with room for an answer: one token's keys are written in place, nothing is joined."""

    def __init__(self, keys: Tensor, values: Tensor, room: int):
        super().__init__()
        self.length, self.is_initialized = keys.shape[-2], True
        self.keys = torch.cat([keys, keys.new_empty(*keys.shape[:2], room, keys.shape[-1])], -2)
        self.values = torch.cat([values, values.new_empty(*values.shape[:2], room, values.shape[-1])], -2)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = key_states, value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def keep(self, rows: Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


@dataclass
class Prefix:
    """Prompts after their one forward. `kv` per layer [P, heads, L, d]; `last_PD` predicts each answer's first token;
    `start_P` is the position of that token."""

    kv: list[tuple[Tensor, Tensor]]
    last_PD: Tensor
    mask_PL: Tensor
    start_P: Tensor


def _positions(vlm: VLM, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Position ids of the prompts, and the first position after each."""
    base = vlm.model.base_model
    if hasattr(base, "get_rope_index"):  # Qwen: three axes
        names = inspect.signature(base.get_rope_index).parameters
        positions = base.get_rope_index(**{k: inputs[k] for k in names if k in inputs})[0]
        return positions, positions.amax((0, 2)) + 1
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0) + int(vlm.model.config.model_type == "paligemma")
    return positions, positions.amax(1) + 1


def prefill(vlm: VLM, prompts: Sequence[Prompt]) -> Prefix:
    """Run the prompts under the current role, with gradients where they are enabled."""
    longest = max(len(p.ids) for p in prompts)
    pad = int(vlm.tokenizer.pad_token_id)

    def stack(rows: list[Tensor], fill: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(r, (longest - len(r), 0), value=fill) for r in rows]).to(vlm.device)

    inputs = {
        "input_ids": stack([p.ids for p in prompts], pad),
        "attention_mask": stack([torch.ones_like(p.ids) for p in prompts], 0),
        **{k: stack([p.extras[k] for p in prompts], 0) for k in prompts[0].extras},
    }
    grids = [p.grid for p in prompts if p.grid is not None]
    located = inputs | ({"image_grid_thw": torch.cat(grids).to(vlm.device)} if grids else {})
    positions, start_P = _positions(vlm, located)
    encoded = vlm.join(prompts)
    cache = Cache(layers=[_Functional() for _ in range(vlm.model.config.get_text_config().num_hidden_layers)])
    out = vlm.model.base_model(
        **inputs,
        **({} if encoded is None else {"mm_encoder_outputs": {"image": encoded}}),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    kv = [layer.grown for layer in cache.layers]
    if any(pair is None for pair in kv):
        raise RuntimeError("the model dropped its cache (activation checkpointing does): log-probs would be wrong")
    return Prefix(kv, out.last_hidden_state[:, -1], inputs["attention_mask"], start_P)  # type: ignore[arg-type]


def extend(vlm: VLM, prefix: Prefix, rows_N: Tensor, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Hidden states [N, T + 1, D]: column 0 stands after the prompt, column t after t answer tokens.

    Column t predicts token t + 1, so that log-probs of T tokens need the first T columns (leave the last token out), and a
    reward at the last real token reads column mask.sum().
    """
    if ids_NT.shape[1] == 0:  # answers of one token: only what stands after the prompt is asked for
        return prefix.last_PD[rows_N, None]
    cache = Cache(layers=[_Functional(k.index_select(0, rows_N), v.index_select(0, rows_N)) for k, v in prefix.kv])
    positions = prefix.start_P[rows_N, None] + torch.arange(ids_NT.shape[1], device=ids_NT.device)
    out = vlm.model.base_model(
        input_ids=ids_NT,
        attention_mask=torch.cat([prefix.mask_PL[rows_N], mask_NT], 1),
        position_ids=positions.expand(3, -1, -1) if hasattr(vlm.model.base_model, "get_rope_index") else positions,
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([prefix.last_PD[rows_N, None], out.last_hidden_state], 1)


@torch.no_grad()
def sample(
    vlm: VLM, prompts: Sequence[Prompt], rows: Sequence[int], max_tokens: int, temperature: float, draws_NT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Answers to prompts: ids [N, T] (padded) and mask [N, T], each up to its end-of-sequence token or `max_tokens`.

    `rows` names the prompt of each answer. Temperature 0 is greedy; otherwise `draws_NT` (uniform, [N, max_tokens]) decides
    each token by its inverse cumulative distribution, so that an answer does not depend on the batch it is in. Answers
    that are done leave the batch.
    """
    prefix = prefill(vlm, prompts)
    rows_N = torch.tensor(rows, device=vlm.device)
    ids_NT = torch.full((len(rows), max_tokens), int(vlm.tokenizer.pad_token_id), device=vlm.device)
    mask_NT = torch.zeros_like(ids_NT)
    eos = torch.tensor(vlm.eos, device=vlm.device)
    cache = Cache(layers=[_Growing(k[rows_N], v[rows_N], max_tokens) for k, v in prefix.kv])
    live = torch.arange(len(rows), device=vlm.device)  # answers that still stand in the batch
    open_ = torch.ones_like(live, dtype=torch.bool)  # those of them that have not ended
    hidden, seen = prefix.last_PD[rows_N], prefix.mask_PL[rows_N]
    three = hasattr(vlm.model.base_model, "get_rope_index")
    for t in range(max_tokens):
        logps = vlm.log_softmax(hidden, temperature or 1.0)
        if temperature == 0:
            token = logps.argmax(-1)
        else:
            assert draws_NT is not None
            mass = logps.exp().cumsum(-1)
            # 1 - u lies in (0, 1] (in float64, before it is rounded): the first id whose cumulative mass reaches it has probability above 0.
            goal = (1 - draws_NT[live, t]).to(mass) * mass[:, -1]
            token = torch.searchsorted(mass, goal[:, None])[:, 0].clamp(max=mass.shape[-1] - 1)
        ids_NT[live[open_], t], mask_NT[live[open_], t] = token[open_], 1
        open_ = open_ & ~torch.isin(token, eos)
        if not open_.any() or t + 1 == max_tokens:
            break
        if open_.float().mean() < 0.6:
            stay = open_.nonzero()[:, 0]
            for layer in cache.layers:
                layer.keep(stay)
            live, seen, token, open_ = live[stay], seen[stay], token[stay], open_[stay]
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
        positions = (prefix.start_P[rows_N[live]] + t)[:, None]
        hidden = vlm.model.base_model(
            input_ids=token[:, None],
            attention_mask=seen,
            position_ids=positions.expand(3, -1, -1) if three else positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    width = max(int(mask_NT.sum(1).max()), 1)
    return ids_NT[:, :width], mask_NT[:, :width]
