"""One token of every answer at a time, on sequences of answers that stand side by side behind a mask.

On a GPU a step's kernels take less time than launching them, so that there its shapes are fixed and it is captured as a CUDA graph, which one
launch replays. Whatever cannot be captured, or comes out otherwise, is run step by step.

Shape suffixes: S sequences, G answers beside one another in each, C columns that answers have written so far, K keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmrlhf import kv
from mmrlhf.prefix import Prefix


class Step:
    """Runs the next tokens of all answers. `prompts_S` names each sequence's prompt, `room` is how many tokens one may grow by."""

    def __init__(self, prefix: Prefix, prompts_S: Tensor, room: int):
        self.prefix, self.prompts_S, self.room = prefix, prompts_S, room
        self.before_SL = prefix.mask_PL[prompts_S].bool()
        self.cache = kv.growing(prefix.kv, prefix.like, prompts_S, room)

    def __call__(self, places_SG: Tensor, ids_SG: Tensor, own_SGC: Tensor) -> Tensor:
        """Hidden states [S, G, D] of tokens that stand so many places after their prompt, each of which sees that and the columns that are
        its own; these tokens are the last G columns."""
        return self._forward(ids_SG, self.prefix.vlm.mask(self._sees(own_SGC)), self.prefix.at(self.prompts_S, places_SG))

    def keep(self, sequences: Tensor) -> None:
        """Go on with some of the sequences."""
        for layer in self.cache.layers:
            layer.keep(sequences)
        self.prompts_S, self.before_SL = self.prompts_S[sequences], self.before_SL[sequences]

    def _sees(self, own_SGC: Tensor) -> Tensor:
        return torch.cat([self.before_SL[:, None].expand(-1, own_SGC.shape[1], -1), own_SGC], -1)

    def _forward(self, ids_SG: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self.prefix.vlm.model.base_model(
            input_ids=ids_SG, attention_mask=mask, position_ids=positions, **kv.given(self.prefix.vlm.model, self.cache)
        ).last_hidden_state


class Captured(Step):
    """The same in fixed shapes: the first tokens of a shape run as they are, the second are captured, which all that follow replay. On a CPU,
    where nothing is captured, a way to test the rest."""

    def __init__(self, prefix: Prefix, prompts_S: Tensor, room: int):
        self.prefix, self.prompts_S, self.room = prefix, prompts_S, room
        self.before_SL = prefix.mask_PL[prompts_S].bool()
        self.cache = kv.fixed(prefix.kv, prompts_S, room)
        self._given: tuple[Tensor, ...] = ()
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, places_SG: Tensor, ids_SG: Tensor, own_SGC: Tensor) -> Tensor:
        each, columns = ids_SG.shape[1], own_SGC.shape[2]
        first = self.before_SL.shape[1] + columns - each
        sees = torch.nn.functional.pad(self._sees(own_SGC), (0, self.room - columns))
        at = torch.arange(first, first + each, device=ids_SG.device)
        given = (ids_SG, self.prefix.vlm.mask(sees), self.prefix.at(self.prompts_S, places_SG), at)
        if not self._given or self._given[0].shape != ids_SG.shape:
            self._given, self._replay = tuple(tensor.clone() for tensor in given), None
            for layer in self.cache.layers:
                layer.at = self._given[3]
            return self._run()
        for place, tensor in zip(self._given, given, strict=True):
            place.copy_(tensor)
        self._replay = self._replay or self._captured()
        return self._replay()

    def keep(self, sequences: Tensor) -> None:
        super().keep(sequences)
        self._given = ()

    def _run(self) -> Tensor:
        return self._forward(*self._given[:3])

    def _captured(self) -> Callable[[], Tensor]:
        """The step as one launch; as it is where that cannot be, which is said once."""
        vlm = self.prefix.vlm
        if vlm.device.type != "cuda" or not vlm.captures:
            return self._run
        try:
            return _graph(self._run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            vlm.captures = False
            print(f"note: {vlm.name} is sampled without CUDA graphs ({(str(error).splitlines() or [''])[0]})")
            return self._run


def _graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`run` as a CUDA graph, whose result is overwritten by the next launch. Raises RuntimeError where it cannot be captured, or gives
    something else when it is replayed."""
    now, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(now)
    with torch.cuda.stream(side):
        run()  # what is made on a first call is there before the capture
        expected = run()
    now.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    graph.replay()
    if not (found - expected).abs().max() <= 1e-2 * expected.abs().max():  # NaN is no match either
        raise RuntimeError("replayed, it gives something else")

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay
