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

from mmrlhf import kv, plain
from mmrlhf.vlm import VLM, Prompt

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""Nats by which log-probs of the two paths may differ; in 14 families they differ by 4e-5 in float32 and by 0.05 in bfloat16."""

PACKED = 3
"""A prompt's answers share a sequence while they have no more than so many times its tokens. Measured on two cores with 590 prompt tokens: 32
answers of 48 tokens take 0.81 of the time of a row each, 16 of 96 as long (0.98), 8 of 192 a little longer (1.04)."""


@dataclass
class Prefix:
    """Prompts after their one forward. `kv` holds each layer's parts, prompts first; `last_PD` predicts each answer's first token;
    `start_P` is the position of that token; `extras` is what an answer's tokens are told besides."""

    vlm: VLM
    kv: kv.KV
    like: Cache
    last_PD: Tensor
    mask_PL: Tensor
    start_P: Tensor
    extras: dict[str, Tensor]

    def extend(self, rows_N: Tensor, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """Hidden states [N, T + 1, D]: column 0 stands after the prompt, column t after t answer tokens.

        Column t predicts token t + 1, so that log-probs of T tokens need the first T columns (leave the last token out), and a
        reward at the last real token reads column mask.sum().
        """
        first_ND = self.last_PD[rows_N, None]
        width = ids_NT.shape[1]
        if width == 0:  # answers of one token: only what stands after the prompt is asked for
            return first_ND
        if each := self._packed(rows_N, width):
            return torch.cat([first_ND, self._extend_packed(rows_N, ids_NT, each)], 1)
        if width == 1:  # linear attention takes a lone token to its decoding kernel, which writes the state in place
            ids_NT, mask_NT = (torch.nn.functional.pad(t, (0, 1)) for t in (ids_NT, mask_NT))
        out = self.vlm.model.base_model(
            input_ids=ids_NT,
            attention_mask=torch.cat([self.mask_PL[rows_N], mask_NT], 1),
            position_ids=self.positions(rows_N, 0, ids_NT.shape[1]),
            **kv.given(self.vlm.model, kv.joined(self.kv, self.like, rows_N)),
            **self.beside(rows_N, ids_NT.shape[1]),
        )
        return torch.cat([first_ND, out.last_hidden_state[:, :width]], 1)

    def packs(self, answers: int, tokens: int) -> bool:
        """Whether so many answers of so many tokens to a prompt stand beside one another in one sequence, on keys that are not copied.

        Each token then meets the other answers' keys as well, behind a mask: not worth it once they outnumber the prompt's by far.
        """
        return self.vlm.packs and answers > 1 and answers * tokens <= PACKED * self.mask_PL.shape[1]

    def _packed(self, rows_N: Tensor, width: int) -> int:
        """How many answers each prompt has, if it is the same for all, they stand together, and packing them pays; else 0."""
        if not self.vlm.packs:
            return 0
        prompts, counts = torch.unique_consecutive(rows_N, return_counts=True)
        each = int(counts[0])
        even = bool((counts == each).all()) and len(prompts.unique()) == len(prompts)
        return each if even and self.packs(each, width) else 0

    def _extend_packed(self, rows_N: Tensor, ids_NT: Tensor, each: int) -> Tensor:
        """Answers [P x G, T] as P sequences of G x T tokens, of which each sees its prompt and its own answer so far."""
        width, device = ids_NT.shape[1], ids_NT.device
        prompts = rows_N[::each]
        own = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        own = torch.block_diag(*[own] * each).bool()
        before = self.mask_PL[prompts].bool()[:, None].expand(-1, each * width, -1)
        sees = torch.cat([before, own.expand(len(prompts), -1, -1)], -1)
        positions = self.positions(rows_N, 0, width)
        out = self.vlm.model.base_model(
            input_ids=ids_NT.reshape(len(prompts), -1),
            attention_mask=self.vlm.mask(sees),
            position_ids=positions.reshape(*positions.shape[:-2], len(prompts), -1),
            **kv.given(self.vlm.model, kv.joined(self.kv, self.like, prompts)),
        )
        return out.last_hidden_state.reshape(len(rows_N), width, -1)

    def positions(self, rows_N: Tensor, first: int, count: int) -> Tensor:
        """Position ids of `count` answer tokens from the `first` on."""
        return self.at(rows_N, torch.arange(first, first + count, device=rows_N.device).expand(len(rows_N), -1))

    def at(self, rows_N: Tensor, place_NT: Tensor) -> Tensor:
        """Position ids of tokens that stand so many after the prompts `rows_N`."""
        found = self.start_P[rows_N, None] + place_NT
        return found.expand(3, -1, -1) if hasattr(self.vlm.model.base_model, "get_rope_index") else found

    def beside(self, rows_N: Tensor, count: int) -> dict[str, Tensor]:
        """Mllama: an answer's tokens look at the pictures that the prompt's last token looks at."""
        return {k: v[rows_N][:, -1:].expand(-1, count, -1, -1) for k, v in self.extras.items()}


@dataclass
class Plain:
    """Prompts that are run anew with each of their answers, where `Prefix` would be wrong or is not wanted."""

    vlm: VLM
    prompts: Sequence[Prompt]

    def extend(self, rows_N: Tensor, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """As `Prefix.extend`."""
        return plain.hidden(self.vlm, self.prompts, rows_N.tolist(), ids_NT, mask_NT)

    @property
    def last_PD(self) -> Tensor:
        rows = list(range(len(self.prompts)))
        nothing = torch.zeros(len(rows), 0, dtype=torch.long, device=self.vlm.device)
        return plain.hidden(self.vlm, self.prompts, rows, nothing, nothing)[:, 0]


def prefill(vlm: VLM, prompts: Sequence[Prompt]) -> Prefix | Plain:
    """Run the prompts under the current role, with gradients where they are enabled; the first of a run decides how."""
    return _prefill(vlm, prompts) if trusted(vlm, prompts) else Plain(vlm, prompts)


def trusted(vlm: VLM, prompts: Sequence[Prompt]) -> bool:
    """Whether prompts are run once for all that follows them."""
    if vlm.prefix == "auto" and not (vlm.agreed_on_text and not any(p.images for p in prompts)):
        _decide(vlm, prompts)
    return vlm.prefix != "off"


def _prefill(vlm: VLM, prompts: Sequence[Prompt]) -> Prefix:
    longest = max(len(p.ids) for p in prompts)
    pad = int(vlm.tokenizer.pad_token_id)

    def stack(rows: list[Tensor], fill: int = 0) -> Tensor:
        beyond = [(0, 0)] * (rows[0].dim() - 1)  # the token axis is the first
        widths = [[n for pair in reversed([(longest - len(r), 0), *beyond]) for n in pair] for r in rows]
        padded = [torch.nn.functional.pad(r, w, value=fill) for r, w in zip(rows, widths, strict=True)]
        return torch.stack(padded).to(vlm.device)

    inputs = {
        "input_ids": stack([p.ids for p in prompts], pad),
        "attention_mask": stack([torch.ones_like(p.ids) for p in prompts]),
        **{k: stack(_same_pictures([p.extras.get(k) for p in prompts])) for k in _extras(prompts)},
    }
    grids = [picture.grid for p in prompts for picture in p.pictures if picture.grid is not None]
    located = inputs | ({"image_grid_thw": torch.cat(grids).to(vlm.device)} if grids else {})
    positions, start_P = _positions(vlm, located)
    cache = kv.empty(vlm.model)
    out = vlm.model.base_model(**inputs, **vlm.join(prompts), position_ids=positions, **kv.given(vlm.model, cache))
    extras = {k: v for k, v in inputs.items() if k == "cross_attention_mask"}
    return Prefix(vlm, kv.parts(cache), cache, out.last_hidden_state[:, -1], inputs["attention_mask"], start_P, extras)


def _extras(prompts: Sequence[Prompt]) -> list[str]:
    """The names of the per-token rows that any prompt has: Mllama has none for a prompt without pictures."""
    return list(dict.fromkeys(k for p in prompts for k in p.extras))


def _same_pictures(rows: Sequence[Tensor | None]) -> list[Tensor]:
    """Mllama's masks [L, pictures, tiles], each as wide as `VLM.join` makes its rows; what is added is not looked at."""
    there = [r for r in rows if r is not None]
    if there[0].dim() == 1:
        return there
    most = math.lcm(*(r.shape[1] for r in there))
    blank = there[0].new_zeros(1, most, there[0].shape[2])
    return [blank if r is None else torch.nn.functional.pad(r, (0, 0, 0, most - r.shape[1])) for r in rows]


def _positions(vlm: VLM, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Position ids of the prompts, and the first position after each."""
    base = vlm.model.base_model
    if hasattr(base, "get_rope_index"):  # Qwen: three axes
        names = inspect.signature(base.get_rope_index).parameters
        positions = base.get_rope_index(**{k: inputs[k] for k in names if k in inputs})[0]
        return positions, positions.amax((0, 2)) + 1
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0) + int(vlm.model.config.model_type == "paligemma")
    return positions, positions.amax(1) + 1


# ---- which path --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def difference(vlm: VLM, prompt: Prompt) -> float:
    """The most by which the log-probs of two answers of three tokens differ between the fast path and the plain one, in nats."""
    allowed = [i for i in dict.fromkeys(prompt.ids.tolist()) if i not in set(vlm.banned.tolist())] or list(vlm.eos)
    some = (allowed * 3)[-3:]
    ids = torch.tensor([some, some[::-1]], device=vlm.device)
    rows, mask = torch.zeros(2, dtype=torch.long, device=vlm.device), torch.ones_like(ids)
    slow, fast = (vlm.log_softmax(way.extend(rows, ids, mask)) for way in (Plain(vlm, [prompt]), _prefill(vlm, [prompt])))
    told = torch.isfinite(slow)
    return float((slow - fast)[told].abs().max())


def _decide(vlm: VLM, prompts: Sequence[Prompt]) -> None:
    """Compare the two paths on one row, with a picture if there is one, and take the fast one where they agree."""
    prompt = next((p for p in prompts if p.images), prompts[0])
    agreed, reason = _agree(vlm, prompt)
    if not agreed and vlm.packs:
        vlm.packs = vlm.captures = False
        agreed, reason = _agree(vlm, prompt)
    if not agreed:
        print(f"note: {vlm.name} is run the plain way, each answer with its whole prompt ({reason})")
        vlm.prefix = "off"
    elif prompt.images:
        print(f"note: {vlm.name}: prompts are run once for all their answers ({reason} from each with its whole prompt)")
        vlm.prefix = "on"
    else:
        vlm.agreed_on_text = True


def _agree(vlm: VLM, prompt: Prompt) -> tuple[bool, str]:
    try:
        gap = difference(vlm, prompt)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a family that was never tried may fail in any way: the plain path is there for it
        return False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return gap <= TOLERANCE[vlm.model.dtype], f"log-probs differ by {gap:.2g} nats"


# ---- learning ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def learning(prefix: Prefix | Plain) -> Iterator[Prefix | Plain]:
    """Backward in two stages: each batch of answers may call `backward` inside, and only its own activations live meanwhile; what their
    gradients say of the prompt is gathered, and goes through the prompt once, on leaving."""
    if isinstance(prefix, Plain) or not torch.is_grad_enabled() or not prefix.last_PD.requires_grad:
        yield prefix
        return
    pairs: list[tuple[Tensor, Tensor]] = []

    def cut(tensor: Tensor) -> Tensor:
        leaf = tensor.detach()
        if tensor.requires_grad:
            pairs.append((tensor, leaf.requires_grad_()))
        return leaf

    parts: kv.KV = [None if part is None else tuple(cut(t) for t in part) for part in prefix.kv]
    yield replace(prefix, kv=parts, last_PD=cut(prefix.last_PD))
    told = [(root, leaf.grad) for root, leaf in pairs if leaf.grad is not None]
    if told:
        torch.autograd.backward([root for root, _ in told], [grad for _, grad in told])


def tokens_of(prompts: Sequence[Any]) -> list[int]:
    """Lengths of prompts."""
    return [len(p.ids) for p in prompts]
