"""Run one decoding step: the next token of every answer, on sequences that several answers share.

On a GPU, launching a step's kernels takes longer than running them. The step therefore has fixed
shapes there, and is captured as a CUDA graph that a single launch replays. If the capture fails or
the replay differs, the step runs kernel by kernel.

Shape suffixes: S sequences, G tokens per sequence in this step, C columns added to a sequence so
far (this step's included), L prompt tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mmrlhf.engine.prefill import Prefix
from mmrlhf.models import kv_cache
from mmrlhf.text.printable import first_line

REPLAY_TOLERANCE = 1e-2
"""Largest allowed difference between a replay and the step, as a share of the largest entry."""


class DecodeStep:
    """Runs the next tokens of all answers, in a cache with room for `max_new_tokens` per sequence.

    `prompt_index_S` holds the index of each sequence's prompt.
    """

    is_captured = False
    """Whether a step is captured once per shape, so that dropping sequences is expensive."""

    def __init__(self, prefix: Prefix, prompt_index_S: Tensor, max_new_tokens: int):
        self.prefix, self.prompt_index_S, self.max_new_tokens = prefix, prompt_index_S, max_new_tokens
        self.prompt_mask_SL = prefix.mask_PL[prompt_index_S].bool()
        self.cache = self._new_cache()

    def _new_cache(self) -> Cache:
        return kv_cache.preallocated_cache(self.prefix.kv, self.prefix.cache_template, self.prompt_index_S, self.max_new_tokens)

    def __call__(self, offsets_SG: Tensor, token_ids_SG: Tensor, visible_SGC: Tensor) -> Tensor:
        """Run these tokens and return their hidden states [S, G, D].

        Their keys become the last G columns of the cache. `offsets_SG` is each token's offset after
        its prompt; `visible_SGC` marks the columns that it attends to besides its prompt.
        """
        return self._forward(
            token_ids_SG,
            self.prefix.vlm.build_attention_mask(self._visible_keys(visible_SGC)),
            self.prefix.position_ids(self.prompt_index_S, offsets_SG),
        )

    def select(self, sequence_indices: Tensor) -> None:
        """Keep only these sequences."""
        for layer in self.cache.layers:
            layer.select(sequence_indices)
        self.prompt_index_S = self.prompt_index_S[sequence_indices]
        self.prompt_mask_SL = self.prompt_mask_SL[sequence_indices]

    def _visible_keys(self, visible_SGC: Tensor) -> Tensor:
        """Prepend the prompt's mask and return [S, G, L + C]."""
        return torch.cat([self.prompt_mask_SL[:, None].expand(-1, visible_SGC.shape[1], -1), visible_SGC], -1)

    def _forward(self, token_ids_SG: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        return self.prefix.vlm.model.base_model(
            input_ids=token_ids_SG,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kv_cache.cache_kwargs(self.prefix.vlm.model, self.cache),
        ).last_hidden_state


class CudaGraphDecodeStep(DecodeStep):
    """A `DecodeStep` with fixed shapes.

    The first step of a shape runs as usual, the second is captured, and all later ones replay the
    capture. On a CPU nothing is captured, and the class is used in tests only.
    """

    is_captured = True

    def __init__(self, prefix: Prefix, prompt_index_S: Tensor, max_new_tokens: int):
        super().__init__(prefix, prompt_index_S, max_new_tokens)
        # A graph reads and writes fixed addresses: every step copies its inputs into these tensors.
        self._static_inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], Tensor] | None = None

    def _new_cache(self) -> Cache:
        return kv_cache.static_cache(self.prefix.kv, self.prompt_index_S, self.max_new_tokens)

    def __call__(self, offsets_SG: Tensor, token_ids_SG: Tensor, visible_SGC: Tensor) -> Tensor:
        num_new_tokens, num_columns = token_ids_SG.shape[1], visible_SGC.shape[2]
        start = self.prompt_mask_SL.shape[1] + num_columns - num_new_tokens
        # Every step attends to the cache's full length; unwritten keys are masked.
        visible = torch.nn.functional.pad(self._visible_keys(visible_SGC), (0, self.max_new_tokens - num_columns))
        inputs = (
            token_ids_SG,
            self.prefix.vlm.build_attention_mask(visible),
            self.prefix.position_ids(self.prompt_index_S, offsets_SG),
            torch.arange(start, start + num_new_tokens, device=token_ids_SG.device),
        )
        if not self._static_inputs or self._static_inputs[0].shape != token_ids_SG.shape:
            self._static_inputs, self._replay = tuple(tensor.clone() for tensor in inputs), None
            for layer in self.cache.layers:
                layer.cache_position = self._static_inputs[3]
            return self._run()
        for static_input, tensor in zip(self._static_inputs, inputs, strict=True):
            static_input.copy_(tensor)
        self._replay = self._replay or self._capture()
        return self._replay()

    def select(self, sequence_indices: Tensor) -> None:
        super().select(sequence_indices)
        self._static_inputs = ()

    def _run(self) -> Tensor:
        return self._forward(*self._static_inputs[:3])

    def _capture(self) -> Callable[[], Tensor]:
        """Return a function that replays the step.

        If the step cannot be captured, print a note once and return a function that runs it.
        """
        vlm = self.prefix.vlm
        if vlm.device.type != "cuda" or not vlm.engine.use_cuda_graphs:
            return self._run
        try:
            return _capture_graph(self._run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            vlm.engine.use_cuda_graphs = False
            print(f"note: {vlm.name} is sampled without CUDA graphs ({first_line(error)})")
            return self._run


def _capture_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture `run` as a CUDA graph and return a function that replays it.

    Each call of that function overwrites the result of the previous one. Raises RuntimeError if
    `run` cannot be captured, or if a replay differs from it.
    """
    # Capture needs a side stream, and warm-up runs there first: libraries allocate workspaces and
    # pick kernels on a first call, which is not allowed while a graph is captured.
    current_stream, side_stream = torch.cuda.current_stream(), torch.cuda.Stream()
    side_stream.wait_stream(current_stream)
    with torch.cuda.stream(side_stream):
        run()
        expected = run()
    current_stream.wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    # "thread_local": the threads that preprocess images may call CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = run()
    graph.replay()
    max_difference = REPLAY_TOLERANCE * expected.abs().max()
    if not (output - expected).abs().max() <= max_difference:  # `not <=` also catches NaN
        raise RuntimeError("its replay gives a different result")

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
