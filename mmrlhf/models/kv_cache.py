"""Five kinds of cache layer for prompts and answers, which transformers' models write to.

|  | attention | linear attention (Qwen3.5) |
|---|---|---|
| scoring and training: never written in place | `FrozenPrefixLayer` | `FrozenPrefixState` |
| sampling: written in place, rows can be dropped | `PreallocatedLayer` | `RecurrentState` |
| sampling in fixed shapes (CUDA graphs) | `StaticLayer` | |

A frozen layer joins an answer's keys to its prompt's in a new tensor. Gradients can therefore flow
back into the prompt, and a layer that is recomputed in backward (activation checkpointing) finds
the prefix unchanged. Linear attention stores a state of fixed size instead of keys. Layers that
share another layer's keys (Gemma 4) store nothing and stay transformers' own `DummyLayer`.

The model's mask applies sliding windows, so layers with a window store every key here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, cache_utils
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, LinearAttentionLayer

from mmrlhf.models.families import family_of

DummyLayer: Any = getattr(cache_utils, "DummyLayer", type("DummyLayer", (), {}))
"""A layer without keys of its own; a cache of earlier transformers leaves such layers out."""

# ---- layers that are never written in place ----------------------------------------------------


class FrozenPrefixLayer(DynamicLayer):
    """Attention on a fixed prefix [rows, heads, L, dim] or, without one, on a new prompt."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        self.keys, self.values = keys, values
        self.updated: tuple[Tensor, Tensor] | None = None
        self.is_initialized = keys is not None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the prefix's keys and values, followed by the new ones."""
        if self.keys is not None and self.values is not None:
            key_states = torch.cat([self.keys, key_states], -2)
            value_states = torch.cat([self.values, value_states], -2)
        # A recomputed layer updates twice. The first time counts: its tensors carry the graph.
        if self.updated is None:
            self.updated = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Keys and values that the last forward saw; empty if the layer did not run."""
        return self.updated or ()


class FrozenPrefixState(LinearAttentionLayer):
    """Linear attention on a fixed state: convolution inputs and a recurrent state."""

    def __init__(self, conv_state: Tensor | None = None, recurrent_state: Tensor | None = None):
        super().__init__()
        self.updated: dict[str, Tensor] = {}
        if conv_state is not None and recurrent_state is not None:
            # The base class keeps lists, for layers with several states; these have one.
            self.conv_states[0], self.recurrent_states[0] = conv_state, recurrent_state
            self.conv_kernel_size[0] = conv_state.shape[-1]
            self.dtype, self.device = conv_state.dtype, conv_state.device
            self.has_previous_state[0] = True
            self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = True

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any) -> Tensor:
        """Return the prefix's last inputs followed by the new ones; record the last of both."""
        previous = self.conv_states[0]
        full_states = conv_states if previous is None else torch.cat([previous, conv_states], -1)
        kernel_size = conv_kernel_size or self.conv_kernel_size[0]
        # The next token's convolution needs the last `kernel_size` inputs, after zeros if too few.
        new_state = torch.nn.functional.pad(full_states, (max(kernel_size - full_states.shape[-1], 0), 0))[..., -kernel_size:]
        self.updated.setdefault("conv", new_state)
        return full_states

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.updated.setdefault("state", recurrent_states)
        return recurrent_states

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Convolution inputs and state after the last forward; empty if the layer did not run."""
        return tuple(self.updated.values())


# ---- layers for sampling -----------------------------------------------------------------------


class PreallocatedLayer(DynamicLayer):
    """Attention with room for an answer: new keys are written in place, old ones are not copied."""

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
        """Expose the keys written so far: Mllama's cross-attention reads them without `update`."""
        self.keys, self.values = self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new keys and values after the old ones and return all of them."""
        end = self.length + key_states.shape[-2]
        self._keys[:, :, self.length : end], self._values[:, :, self.length : end] = key_states, value_states
        self.length = end
        self._set_views()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def select(self, row_indices: Tensor) -> None:
        """Keep these rows of the batch only."""
        self._keys, self._values = self._keys[row_indices], self._values[row_indices]
        self._set_views()


class StaticLayer(PreallocatedLayer):
    """A `PreallocatedLayer` of constant shapes, for steps that are captured once and replayed.

    It always returns the full length, and the caller's mask hides unwritten keys. `cache_position`
    [columns] is the position of the next keys, a tensor so that a replay can change it.
    """

    cache_position: Tensor

    @staticmethod
    def _preallocate(states: Tensor, max_new_tokens: int) -> Tensor:
        # Zeros, not `empty`: masked values are still multiplied, and 0 x NaN is NaN.
        return torch.nn.functional.pad(states, (0, 0, 0, max_new_tokens))

    def _set_views(self) -> None:
        self.keys, self.values = self._keys, self._values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._keys.index_copy_(2, self.cache_position, key_states)
        self._values.index_copy_(2, self.cache_position, value_states)
        return self._keys, self._values


class RecurrentState(FrozenPrefixState):
    """Linear attention on a state that each new token replaces."""

    def __init__(self, conv_state: Tensor, recurrent_state: Tensor):
        super().__init__(conv_state.clone(), recurrent_state.clone())  # the prefix serves other answers, too

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any) -> Tensor:
        full_states = super().update_conv_state(conv_states, state_idx, conv_kernel_size)
        self.conv_states[0] = self.updated.pop("conv")
        return full_states

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.recurrent_states[0] = recurrent_states
        return recurrent_states

    def select(self, row_indices: Tensor) -> None:
        """Keep these rows of the batch only."""
        self.conv_states[0] = self.conv_states[0][row_indices]
        self.recurrent_states[0] = self.recurrent_states[0][row_indices]


# ---- caches ------------------------------------------------------------------------------------

KV = list[tuple[Tensor, ...] | None]
"""The parts of each layer, one row per prompt; None for a layer that stores nothing."""


def new_cache(model: PreTrainedModel) -> Cache:
    """Return an empty cache for prompts, with the layers that the model's configuration needs."""

    def new_layer(default_layer: Any) -> Any:
        if isinstance(default_layer, DummyLayer):
            return DummyLayer()
        return FrozenPrefixState() if isinstance(default_layer, LinearAttentionLayer) else FrozenPrefixLayer()

    return Cache(layers=[new_layer(default_layer) for default_layer in DynamicCache(config=model.config).layers])


def cache_kwargs(model: PreTrainedModel, cache: Cache) -> dict[str, Any]:
    """Return the arguments that pass a cache to the model; transformers versions rename them.

    `use_cache` is false while layers are checkpointed, as transformers would set it with a warning;
    the layers of our caches are used all the same.
    """
    is_checkpointed = model.base_model.get_decoder().training and torch.is_grad_enabled()
    return {_cache_parameter(model.base_model.__class__): cache, "use_cache": not is_checkpointed}


@functools.cache
def _cache_parameter(model_class: type[torch.nn.Module]) -> str:
    """Return the parameter's name in `forward`; looking it up at every token would take 0.1 ms."""
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"


def cache_parts(cache: Cache) -> KV:
    """Return a forward pass's keys and states from a cache.

    Raises RuntimeError if the model has dropped the cache: answers would not see their prompt.
    """
    layer_parts: KV = [None if isinstance(layer, DummyLayer) else layer.parts for layer in cache.layers]
    # Some layers may be empty: a cross-attention layer without an image stores nothing.
    if not any(layer_parts):
        raise RuntimeError("the model dropped its cache: log-probs would be wrong")
    return [part or None for part in layer_parts]


def supports_packing(model: PreTrainedModel) -> bool:
    """Return whether several answers to a prompt may share a sequence under our own mask.

    Every layer must attend to all tokens (no windows, states or cross-attention), and the attention
    must accept such a mask.
    """
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    is_full_attention = (
        layer_types == {"full_attention"}
        and not getattr(config, "sliding_window", None)
        and not family_of(model.config).uses_cross_attention
    )
    has_only_dynamic_layers = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    return is_full_attention and has_only_dynamic_layers and config._attn_implementation in ("sdpa", "eager")


def frozen_cache(kv: KV, cache_template: Cache, prompt_index_N: Tensor) -> Cache:
    """Return a cache with a row per answer, never written in place, to run answers on."""

    def new_layer(template_layer: Any, parts: list[Tensor]) -> Any:
        is_linear = isinstance(template_layer, FrozenPrefixState)
        return FrozenPrefixState(*parts) if is_linear else FrozenPrefixLayer(*parts)

    return Cache(layers=_build_layers(kv, cache_template, prompt_index_N, new_layer))


def preallocated_cache(kv: KV, cache_template: Cache, prompt_index_N: Tensor, max_new_tokens: int) -> Cache:
    """Return a cache to sample on: a row per answer, with room for `max_new_tokens` each."""

    def new_layer(template_layer: Any, parts: list[Tensor]) -> Any:
        if isinstance(template_layer, FrozenPrefixState):
            return RecurrentState(*parts)
        return PreallocatedLayer(parts[0], parts[1], max_new_tokens)

    return Cache(layers=_build_layers(kv, cache_template, prompt_index_N, new_layer))


def static_cache(kv: KV, prompt_index_N: Tensor, max_new_tokens: int) -> Cache:
    """Return the same in fixed shapes, for a model that `supports_packing`.

    Such a model's layers have keys only, no linear-attention states.
    """
    group_size = _group_size(prompt_index_N, _num_prompts(kv))
    layers = []
    for part in kv:
        if part:
            keys, values = (_expand_rows(t, prompt_index_N, group_size) for t in part)
            layers.append(StaticLayer(keys, values, max_new_tokens))
    return Cache(layers=layers)


def _build_layers(
    kv: KV, cache_template: Cache, prompt_index_N: Tensor, new_layer: Callable[[Any, list[Tensor]], Any]
) -> list[Any]:
    """Build a layer from each layer's parts, expanded to a row per answer."""
    layers: list[Any] = []
    group_size = _group_size(prompt_index_N, _num_prompts(kv))
    for part, template_layer in zip(kv, cache_template.layers, strict=True):
        if part is None:
            layers.append(type(template_layer)())
        else:
            layers.append(new_layer(template_layer, [_expand_rows(t, prompt_index_N, group_size) for t in part]))
    return layers


def _num_prompts(kv: KV) -> int:
    return next(len(part[0]) for part in kv if part)


def _group_size(prompt_index_N: Tensor, num_prompts: int) -> int:
    """Return the number of rows per prompt if it is the same for all prompts, in order; else 0."""
    group_size = len(prompt_index_N) // max(1, num_prompts)
    is_even = group_size * num_prompts == len(prompt_index_N) and torch.equal(
        prompt_index_N, torch.arange(num_prompts, device=prompt_index_N.device).repeat_interleave(group_size)
    )
    return group_size if is_even else 0


def _expand_rows(tensor: Tensor, prompt_index_N: Tensor, group_size: int) -> Tensor:
    """Repeat each prompt's row for its answers: `tensor[prompt_index_N]`.

    Uses `expand` if all prompts have `group_size` answers: its backward is a sum, that of indexing
    a slow scatter.
    """
    if group_size == 1:
        return tensor
    if group_size == 0:
        return tensor.index_select(0, prompt_index_N)
    return tensor[:, None].expand(-1, group_size, *tensor.shape[1:]).flatten(0, 1)
