"""One token of every answer at a time, on sequences of answers that stand side by side behind a mask.

On a GPU a step's kernels take less time than launching them, so that there its shapes are fixed and it is captured as a CUDA graph, which one
launch replays. Whatever cannot be captured, or comes out otherwise, is run step by step.

Shape suffixes: S sequences, G answers beside one another in each, C columns that answers have written so far, K keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmrlhf.engine.prefill import Prefix
from mmrlhf.models import kv_cache


class DecodeStep:
    """Runs the next tokens of all answers. `prompts_S` names each sequence's prompt, `room` is how many tokens one may grow by."""

    def __init__(self, prefix: Prefix, prompt_index_S: Tensor, max_new_tokens: int):
        self.prefix, self.prompt_index_S, self.max_new_tokens = prefix, prompt_index_S, max_new_tokens
        self.prompt_mask_SL = prefix.mask_PL[prompt_index_S].bool()
        self.cache = kv_cache.preallocated_cache(prefix.kv, prefix.cache_template, prompt_index_S, max_new_tokens)

    def __call__(self, offsets_SG: Tensor, token_ids_SG: Tensor, visible_SGC: Tensor) -> Tensor:
        """Hidden states [S, G, D] of tokens that stand so many places after their prompt, each of which sees that and the columns that are
        its own; these tokens are the last G columns."""
        return self._forward(
            token_ids_SG,
            self.prefix.vlm.build_attention_mask(self._visible_keys(visible_SGC)),
            self.prefix.position_ids(self.prompt_index_S, offsets_SG),
        )

    def select(self, sequence_indices: Tensor) -> None:
        """Go on with some of the sequences."""
        for layer in self.cache.layers:
            layer.select(sequence_indices)
        self.prompt_index_S, self.prompt_mask_SL = self.prompt_index_S[sequence_indices], self.prompt_mask_SL[sequence_indices]

    def _visible_keys(self, visible_SGC: Tensor) -> Tensor:
        return torch.cat([self.prompt_mask_SL[:, None].expand(-1, visible_SGC.shape[1], -1), visible_SGC], -1)

    def _forward(self, token_ids_SG: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        return self.prefix.vlm.model.base_model(
            input_ids=token_ids_SG,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kv_cache.cache_kwargs(self.prefix.vlm.model, self.cache),
        ).last_hidden_state


class CudaGraphDecodeStep(DecodeStep):
    """The same in fixed shapes: the first tokens of a shape run as they are, the second are captured, which all that follow replay. On a CPU,
    where nothing is captured, a way to test the rest."""

    def __init__(self, prefix: Prefix, prompt_index_S: Tensor, max_new_tokens: int):
        self.prefix, self.prompt_index_S, self.max_new_tokens = prefix, prompt_index_S, max_new_tokens
        self.prompt_mask_SL = prefix.mask_PL[prompt_index_S].bool()
        self.cache = kv_cache.static_cache(prefix.kv, prompt_index_S, max_new_tokens)
        self._static_inputs: tuple[Tensor, ...] = ()
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, offsets_SG: Tensor, token_ids_SG: Tensor, visible_SGC: Tensor) -> Tensor:
        num_new_tokens, num_columns = token_ids_SG.shape[1], visible_SGC.shape[2]
        start = self.prompt_mask_SL.shape[1] + num_columns - num_new_tokens
        visible = torch.nn.functional.pad(self._visible_keys(visible_SGC), (0, self.max_new_tokens - num_columns))
        cache_position = torch.arange(start, start + num_new_tokens, device=token_ids_SG.device)
        inputs = (
            token_ids_SG,
            self.prefix.vlm.build_attention_mask(visible),
            self.prefix.position_ids(self.prompt_index_S, offsets_SG),
            cache_position,
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
        """The step as one launch; as it is where that cannot be, which is said once."""
        vlm = self.prefix.vlm
        if vlm.device.type != "cuda" or not vlm.engine.use_cuda_graphs:
            return self._run
        try:
            return _capture_graph(self._run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            vlm.engine.use_cuda_graphs = False
            print(f"note: {vlm.name} is sampled without CUDA graphs ({(str(error).splitlines() or [''])[0]})")
            return self._run


def _capture_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`run` as a CUDA graph, whose result is overwritten by the next launch. Raises RuntimeError where it cannot be captured, or gives
    something else when it is replayed."""
    current_stream, side_stream = torch.cuda.current_stream(), torch.cuda.Stream()
    side_stream.wait_stream(current_stream)
    with torch.cuda.stream(side_stream):
        run()  # what is made on a first call is there before the capture
        expected = run()
    current_stream.wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    graph.replay()
    if not (output - expected).abs().max() <= 1e-2 * expected.abs().max():  # NaN is no match either
        raise RuntimeError("replayed, it gives something else")

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
