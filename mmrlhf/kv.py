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


class Joined(DynamicLayer):
    """Attention with a prefix that is never written; `parts` are the keys and values that the last forward saw."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None):
        super().__init__()
        self.keys, self.values = keys, values
        self.grown: tuple[Tensor, Tensor] | None = None
        self.is_initialized = keys is not None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            key_states = torch.cat([self.keys, key_states], -2)
            value_states = torch.cat([self.values, value_states], -2)
        if self.grown is None:  # a layer that is recomputed comes here twice: the first time counts
            self.grown = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.grown or ()


class JoinedState(LinearAttentionLayer):
    """Linear attention with a state that is never written; `parts` are the convolution's inputs and the state after the forward."""

    def __init__(self, conv: Tensor | None = None, state: Tensor | None = None):
        super().__init__()
        self.grown: dict[str, Tensor] = {}
        if conv is not None and state is not None:
            self.conv_states[0], self.recurrent_states[0], self.conv_kernel_size[0] = conv, state, conv.shape[-1]
            self.dtype, self.device = conv.dtype, conv.device
            self.has_previous_state[0] = self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = True

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any) -> Tensor:
        before = self.conv_states[0]
        whole = conv_states if before is None else torch.cat([before, conv_states], -1)
        size = conv_kernel_size or self.conv_kernel_size[0]
        last = torch.nn.functional.pad(whole, (max(size - whole.shape[-1], 0), 0))[..., -size:]
        self.grown.setdefault("conv", last)
        return whole

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.grown.setdefault("state", recurrent_states)
        return recurrent_states

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(self.grown.values())


class Growing(DynamicLayer):
    """Attention with room for an answer: one token's keys are written in place, nothing is joined."""

    def __init__(self, keys: Tensor, values: Tensor, room: int):
        super().__init__()
        self.length, self.is_initialized = keys.shape[-2], True
        self._keys, self._values = (self._with_room(t, room) for t in (keys, values))
        self._show()

    @staticmethod
    def _with_room(states: Tensor, room: int) -> Tensor:
        wide = states.new_empty(*states.shape[:2], states.shape[2] + room, states.shape[3])
        wide[:, :, : states.shape[2]] = states
        return wide

    def _show(self) -> None:
        """Cross-attention (Mllama) reads these without writing."""
        self.keys, self.values = self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[-2]
        self._keys[:, :, self.length : end], self._values[:, :, self.length : end] = key_states, value_states
        self.length = end
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def keep(self, rows: Tensor) -> None:
        self._keys, self._values = self._keys[rows], self._values[rows]
        self._show()


class Fixed(Growing):
    """The same in shapes that never change, for steps that are captured once and replayed: all of the room is always shown, what is not
    written yet hidden by the caller's mask, and `at` [columns] says where the next keys go."""

    at: Tensor

    @staticmethod
    def _with_room(states: Tensor, room: int) -> Tensor:
        return torch.nn.functional.pad(states, (0, 0, 0, room))  # zeros: what is hidden is still multiplied

    def _show(self) -> None:
        self.keys, self.values = self._keys, self._values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._keys.index_copy_(2, self.at, key_states)
        self._values.index_copy_(2, self.at, value_states)
        return self._keys, self._values


class GrowingState(JoinedState):
    """Linear attention whose state each token replaces."""

    def __init__(self, conv: Tensor, state: Tensor):
        super().__init__(conv.clone(), state.clone())

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any) -> Tensor:
        whole = super().update_conv_state(conv_states, state_idx, conv_kernel_size)
        self.conv_states[0] = self.grown.pop("conv")
        return whole

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.recurrent_states[0] = recurrent_states
        return recurrent_states

    def keep(self, rows: Tensor) -> None:
        self.conv_states[0], self.recurrent_states[0] = self.conv_states[0][rows], self.recurrent_states[0][rows]


KV = list[tuple[Tensor, ...] | None]
"""The parts of each layer; None for a layer that keeps nothing."""


def empty(model: PreTrainedModel) -> Cache:
    """A cache for a prompt."""

    def layer(theirs: Any) -> Any:
        if isinstance(theirs, DummyLayer):
            return DummyLayer()
        return JoinedState() if isinstance(theirs, LinearAttentionLayer) else Joined()

    return Cache(layers=[layer(theirs) for theirs in DynamicCache(config=model.config).layers])


def given(model: PreTrainedModel, cache: Cache) -> dict[str, Any]:
    """How a model's forward is handed a cache: transformers renames the keyword."""
    names = inspect.signature(model.base_model.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache, "use_cache": True}


def parts(cache: Cache) -> KV:
    """What a forward has left in a cache. Raises RuntimeError when the model has dropped it: log-probs would be wrong."""
    found: KV = [None if isinstance(layer, DummyLayer) else layer.parts for layer in cache.layers]
    # A cross-attention layer that has seen no picture keeps nothing.
    if not any(found):
        raise RuntimeError("the model dropped its cache: log-probs would be wrong")
    return [part or None for part in found]


def packs(model: PreTrainedModel) -> bool:
    """Whether answers to a prompt may stand beside one another in one sequence, kept apart by a mask of our own: where every layer
    attends to everything, by attention that takes such a mask."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    full = kinds == {"full_attention"} and not getattr(config, "sliding_window", None) and model.config.model_type != "mllama"
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    return full and plain and config._attn_implementation in ("sdpa", "eager")


def _layers(kv: KV, like: Cache, rows: Tensor, joined: bool, room: int = 0) -> Cache:
    layers: list[Any] = []
    each = _each(rows, next(len(part[0]) for part in kv if part))
    for part, theirs in zip(kv, like.layers, strict=True):
        if part is None:
            layers.append(type(theirs)())
            continue
        own = [_of(t, rows, each) for t in part]
        linear = isinstance(theirs, JoinedState)
        if joined:
            layers.append(JoinedState(*own) if linear else Joined(*own))
        else:
            layers.append(GrowingState(own[0], own[1]) if linear else Growing(own[0], own[1], room))
    return Cache(layers=layers)


def _each(rows: Tensor, prompts: int) -> int:
    """How many rows each prompt has, if it is as many for all of them, in order; else 0."""
    each = len(rows) // max(1, prompts)
    even = each * prompts == len(rows) and torch.equal(rows, torch.arange(prompts, device=rows.device).repeat_interleave(each))
    return each if even else 0


def _of(tensor: Tensor, rows: Tensor, each: int) -> Tensor:
    """A row of a tensor for each answer. By expansion where that does: its backward is a sum, and an index's a slow scatter."""
    if each == 1:
        return tensor
    return tensor[:, None].expand(-1, each, *tensor.shape[1:]).flatten(0, 1) if each else tensor.index_select(0, rows)


def joined(kv: KV, like: Cache, rows: Tensor) -> Cache:
    """Prompts' parts, one row for each answer, to run answers on with gradients."""
    return _layers(kv, like, rows, True)


def growing(kv: KV, like: Cache, rows: Tensor, room: int) -> Cache:
    """The same to sample on, with room for so many tokens."""
    return _layers(kv, like, rows, False, room)


def fixed(kv: KV, rows: Tensor, room: int) -> Cache:
    """The same in fixed shapes, of a model whose every layer attends to everything."""
    each = _each(rows, next(len(part[0]) for part in kv if part))
    return Cache(layers=[Fixed(_of(part[0], rows, each), _of(part[1], rows, each), room) for part in kv if part])
