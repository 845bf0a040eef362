"""Keys and values of prompts and answers: cache layers that transformers' models write to, in five shapes.

`Joined` and `JoinedState` never write what they were given: an answer's keys are joined to its prompt's in a new tensor, so that
autograd flows back into the prompt, and a layer that is recomputed in backward finds the same prefix again. `Growing` and
`GrowingState` are for sampling: written in place, and cut to the answers that are still being written; `Fixed` keeps its shape. The `State` pair is for
linear attention (Qwen3.5), whose layers keep a state instead of keys. Layers that share another's keys (Gemma 4) keep nothing.

Sliding windows are in the mask that the model makes, so that their layers keep every key here.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DummyLayer, DynamicCache, DynamicLayer, LinearAttentionLayer

from mmrlhf.models.families import family_of


class FrozenPrefixLayer(DynamicLayer):
    """Attention with a prefix that is never written; `parts` are the keys and values that the last forward saw."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        self.keys, self.values = keys, values
        self.updated: tuple[Tensor, Tensor] | None = None
        self.is_initialized = keys is not None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            key_states = torch.cat([self.keys, key_states], -2)
            value_states = torch.cat([self.values, value_states], -2)
        if self.updated is None:  # a layer that is recomputed comes here twice: the first time counts
            self.updated = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.updated or ()


class FrozenPrefixState(LinearAttentionLayer):
    """Linear attention with a state that is never written; `parts` are the convolution's inputs and the state after the forward."""

    def __init__(self, conv_state: Tensor | None = None, recurrent_state: Tensor | None = None):
        super().__init__()
        self.updated: dict[str, Tensor] = {}
        if conv_state is not None and recurrent_state is not None:
            self.conv_states[0], self.recurrent_states[0], self.conv_kernel_size[0] = (
                conv_state,
                recurrent_state,
                conv_state.shape[-1],
            )
            self.dtype, self.device = conv_state.dtype, conv_state.device
            self.has_previous_state[0] = self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = True

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any) -> Tensor:
        previous = self.conv_states[0]
        full_states = conv_states if previous is None else torch.cat([previous, conv_states], -1)
        kernel_size = conv_kernel_size or self.conv_kernel_size[0]
        new_state = torch.nn.functional.pad(full_states, (max(kernel_size - full_states.shape[-1], 0), 0))[..., -kernel_size:]
        self.updated.setdefault("conv", new_state)
        return full_states

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.updated.setdefault("state", recurrent_states)
        return recurrent_states

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(self.updated.values())


class PreallocatedLayer(DynamicLayer):
    """Attention with room for an answer: one token's keys are written in place, nothing is joined."""

    def __init__(self, keys: Tensor, values: Tensor, max_new_tokens: int):
        super().__init__()
        self.length, self.is_initialized = keys.shape[-2], True
        self._keys, self._values = (self._preallocate(t, max_new_tokens) for t in (keys, values))
        self._set_views()

    @staticmethod
    def _preallocate(states: Tensor, max_new_tokens: int) -> Tensor:
        buffer = states.new_empty(*states.shape[:2], states.shape[2] + max_new_tokens, states.shape[3])
        buffer[:, :, : states.shape[2]] = states
        return buffer

    def _set_views(self) -> None:
        """Cross-attention (Mllama) reads these without writing."""
        self.keys, self.values = self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[-2]
        self._keys[:, :, self.length : end], self._values[:, :, self.length : end] = key_states, value_states
        self.length = end
        self._set_views()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def select(self, row_indices: Tensor) -> None:
        self._keys, self._values = self._keys[row_indices], self._values[row_indices]
        self._set_views()


class StaticLayer(PreallocatedLayer):
    """The same in shapes that never change, for steps that are captured once and replayed: all of the room is always shown, what is not
    written yet hidden by the caller's mask, and `at` [columns] says where the next keys go."""

    cache_position: Tensor

    @staticmethod
    def _preallocate(states: Tensor, max_new_tokens: int) -> Tensor:
        return torch.nn.functional.pad(states, (0, 0, 0, max_new_tokens))  # zeros: what is hidden is still multiplied

    def _set_views(self) -> None:
        self.keys, self.values = self._keys, self._values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._keys.index_copy_(2, self.cache_position, key_states)
        self._values.index_copy_(2, self.cache_position, value_states)
        return self._keys, self._values


class RecurrentState(FrozenPrefixState):
    """Linear attention whose state each token replaces."""

    def __init__(self, conv_state: Tensor, recurrent_state: Tensor):
        super().__init__(conv_state.clone(), recurrent_state.clone())

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any) -> Tensor:
        full_states = super().update_conv_state(conv_states, state_idx, conv_kernel_size)
        self.conv_states[0] = self.updated.pop("conv")
        return full_states

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.recurrent_states[0] = recurrent_states
        return recurrent_states

    def select(self, row_indices: Tensor) -> None:
        self.conv_states[0], self.recurrent_states[0] = self.conv_states[0][row_indices], self.recurrent_states[0][row_indices]


KV = list[tuple[Tensor, ...] | None]
"""The parts of each layer; None for a layer that keeps nothing."""


def new_cache(model: PreTrainedModel) -> Cache:
    """A cache for a prompt."""

    def new_layer(default_layer: Any) -> Any:
        if isinstance(default_layer, DummyLayer):
            return DummyLayer()
        return FrozenPrefixState() if isinstance(default_layer, LinearAttentionLayer) else FrozenPrefixLayer()

    return Cache(layers=[new_layer(default_layer) for default_layer in DynamicCache(config=model.config).layers])


def cache_kwargs(model: PreTrainedModel, cache: Cache) -> dict[str, Any]:
    """How a model's forward is handed a cache: transformers renames the keyword."""
    parameters = inspect.signature(model.base_model.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": cache, "use_cache": True}


def cache_parts(cache: Cache) -> KV:
    """What a forward has left in a cache. Raises RuntimeError when the model has dropped it: log-probs would be wrong."""
    layer_parts: KV = [None if isinstance(layer, DummyLayer) else layer.parts for layer in cache.layers]
    # A cross-attention layer that has seen no picture keeps nothing.
    if not any(layer_parts):
        raise RuntimeError("the model dropped its cache: log-probs would be wrong")
    return [part or None for part in layer_parts]


def supports_packing(model: PreTrainedModel) -> bool:
    """Whether answers to a prompt may stand beside one another in one sequence, kept apart by a mask of our own: where every layer
    attends to everything, by attention that takes such a mask."""
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    is_full_attention = (
        layer_types == {"full_attention"}
        and not getattr(config, "sliding_window", None)
        and not family_of(model.config).uses_cross_attention
    )
    has_only_dynamic_layers = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    return is_full_attention and has_only_dynamic_layers and config._attn_implementation in ("sdpa", "eager")


def _build_cache(kv: KV, cache_template: Cache, prompt_index_N: Tensor, is_frozen: bool, max_new_tokens: int = 0) -> Cache:
    layers: list[Any] = []
    group_size = _group_size(prompt_index_N, next(len(part[0]) for part in kv if part))
    for part, template_layer in zip(kv, cache_template.layers, strict=True):
        if part is None:
            layers.append(type(template_layer)())
            continue
        expanded = [_expand_rows(t, prompt_index_N, group_size) for t in part]
        is_linear = isinstance(template_layer, FrozenPrefixState)
        if is_frozen:
            layers.append(FrozenPrefixState(*expanded) if is_linear else FrozenPrefixLayer(*expanded))
        else:
            layers.append(
                RecurrentState(expanded[0], expanded[1])
                if is_linear
                else PreallocatedLayer(expanded[0], expanded[1], max_new_tokens)
            )
    return Cache(layers=layers)


def _group_size(prompt_index_N: Tensor, num_prompts: int) -> int:
    """How many rows each prompt has, if it is as many for all of them, in order; else 0."""
    group_size = len(prompt_index_N) // max(1, num_prompts)
    is_even = group_size * num_prompts == len(prompt_index_N) and torch.equal(
        prompt_index_N, torch.arange(num_prompts, device=prompt_index_N.device).repeat_interleave(group_size)
    )
    return group_size if is_even else 0


def _expand_rows(tensor: Tensor, prompt_index_N: Tensor, group_size: int) -> Tensor:
    """A row of a tensor for each answer. By expansion where that does: its backward is a sum, and an index's a slow scatter."""
    if group_size == 1:
        return tensor
    return (
        tensor[:, None].expand(-1, group_size, *tensor.shape[1:]).flatten(0, 1)
        if group_size
        else tensor.index_select(0, prompt_index_N)
    )


def frozen_cache(kv: KV, cache_template: Cache, prompt_index_N: Tensor) -> Cache:
    """Prompts' parts, one row for each answer, to run answers on with gradients."""
    return _build_cache(kv, cache_template, prompt_index_N, True)


def preallocated_cache(kv: KV, cache_template: Cache, prompt_index_N: Tensor, max_new_tokens: int) -> Cache:
    """The same to sample on, with room for so many tokens."""
    return _build_cache(kv, cache_template, prompt_index_N, False, max_new_tokens)


def static_cache(kv: KV, prompt_index_N: Tensor, max_new_tokens: int) -> Cache:
    """The same in fixed shapes, of a model whose every layer attends to everything."""
    group_size = _group_size(prompt_index_N, next(len(part[0]) for part in kv if part))
    return Cache(
        layers=[
            StaticLayer(
                _expand_rows(part[0], prompt_index_N, group_size),
                _expand_rows(part[1], prompt_index_N, group_size),
                max_new_tokens,
            )
            for part in kv
            if part
        ]
    )
