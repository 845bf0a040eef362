"""Answers, token by token, on prompts that were run once.

Shape suffixes: N answers, T answer tokens (right-padded), V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mmrlhf import kv, plain
from mmrlhf.decoding import Captured, Step
from mmrlhf.prefix import Plain, Prefix, prefill
from mmrlhf.vlm import VLM, Prompt


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 keep every token; no answer ends before `min_tokens`, all do
    at `max_tokens` or where a text of `stop` has been said."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether tokens are drawn from the distribution that `VLM.token_logps` is of."""
        return self.temperature > 0 and self.top_p >= 1 and self.top_k == 0


@dataclass(frozen=True)
class Sampled:
    """`ids_NT` right-padded, `mask_NT` 1 on real tokens, `logps_NT` the log-prob of each and `entropy_NT` that of the distribution it was
    drawn from (before top-p and top-k), both 0 on padding; `ended_N` whether an answer came to its end by itself."""

    ids_NT: Tensor
    mask_NT: Tensor
    logps_NT: Tensor
    entropy_NT: Tensor
    ended_N: Tensor


@torch.no_grad()
def sample(vlm: VLM, prompts: Sequence[Prompt], rows: Sequence[int], how: Sampling, draws_NT: Tensor | None = None) -> Sampled:
    """Answers of the current role to prompts; `rows` names the prompt of each.

    `draws_NT` (uniform, [N, max_tokens], not needed when greedy) decides each token by its inverse cumulative distribution, so that
    an answer does not depend on the batch it is in. Answers that are done leave the batch.
    """
    state = Answering(vlm, len(rows), how, draws_NT)
    prefix = prefill(vlm, prompts)
    if isinstance(prefix, Plain):
        plain.generate(vlm, prompts, rows, how.max_tokens, state.step_raw)
    else:
        rows_N = torch.tensor(rows, device=vlm.device)
        if prefix.packs(max(Counter(rows).values()), how.max_tokens):
            decode_packed(prefix, rows_N, rows_N, state)
        elif vlm.captures:
            decode_packed(prefix, rows_N, torch.arange(len(rows_N), device=vlm.device), state)
        else:
            _decode(prefix, rows_N, state)
    return state.result()


def _decode(prefix: Prefix, rows_N: Tensor, state: Answering) -> None:
    vlm = prefix.vlm
    cache = kv.growing(prefix.kv, prefix.like, rows_N, state.how.max_tokens)
    live = torch.arange(len(rows_N), device=vlm.device)  # answers that still stand in the batch
    hidden = prefix.last_PD[rows_N]
    seen = torch.nn.functional.pad(prefix.mask_PL[rows_N], (0, state.how.max_tokens), value=1)
    prompt = prefix.mask_PL.shape[1]
    for t in range(state.how.max_tokens):
        token = state.step(vlm.logits(hidden, state.how.temperature or 1.0), live, t)
        going = state.open[live]
        if not going.any() or t + 1 == state.how.max_tokens:
            break
        if going.float().mean() < 0.6:
            stay = going.nonzero()[:, 0]
            for layer in cache.layers:
                if hasattr(layer, "keep"):
                    layer.keep(stay)
            live, seen, token = live[stay], seen[stay], token[stay]
        hidden = vlm.model.base_model(
            input_ids=token[:, None],
            attention_mask=seen[:, : prompt + t + 1],
            position_ids=prefix.positions(rows_N[live], t, 1),
            **kv.given(vlm.model, cache),
            **prefix.beside(rows_N[live], 1),
        ).last_hidden_state[:, -1]


def _slots(sequence_N: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """The sequences of the answers `live`, and for each its answers' numbers in a row [S, G], -1 where it has fewer than another."""
    sequences, counts = torch.unique_consecutive(sequence_N[live], return_counts=True)
    numbers = [part.tolist() for part in live.split(counts.tolist())]
    most = max(map(len, numbers))
    return sequences, torch.tensor([row + [-1] * (most - len(row)) for row in numbers], device=live.device)


class Tails(NamedTuple):
    """Tokens between a prompt and each of its answers [N, T], right-padded; every answer has one at least."""

    ids_NT: Tensor
    mask_NT: Tensor


def decode_packed(prefix: Prefix, rows_N: Tensor, sequence_N: Tensor, state: Answering, tails: Tails | None = None) -> None:
    """Answers grow side by side in sequences, those with one `sequence_N` in one on their prompt's keys: column after column, each owned by
    an answer that alone sees it.

    tails: what stands between the prompt and each answer, if anything does.
    """
    vlm, total = prefix.vlm, state.how.max_tokens
    live = torch.argsort(sequence_N, stable=True)
    sequences, slots_SG = _slots(sequence_N, live)
    width = 0 if tails is None else tails.ids_NT.shape[1]
    step = (Captured if vlm.captures else Step)(prefix, rows_N[slots_SG[:, 0]], (total + width) * slots_SG.shape[1])
    tokens_N = torch.zeros_like(rows_N)
    if tails is None:
        owners_SC, hidden, begun_N = slots_SG[:, :0], prefix.last_PD[rows_N[live]], torch.zeros_like(rows_N)
    else:
        owners_SC, hidden, begun_N = _begin(step, slots_SG, tails)
    for t in range(total):
        tokens_N[live] = state.step(vlm.logits(hidden, state.how.temperature or 1.0), live, t)
        going = state.open[live]
        if not going.any() or t + 1 == total:
            break
        if going.float().mean() < 0.6:
            live = live[going]
            still, slots_SG = _slots(sequence_N, live)
            kept = torch.isin(sequences, still).nonzero()[:, 0]
            step.keep(kept)
            sequences, owners_SC = sequences[kept], owners_SC[kept]
        owners_SC = torch.cat([owners_SC, slots_SG], 1)
        filled, some = slots_SG >= 0, slots_SG.clamp(min=0)
        ids_SG = torch.where(filled, tokens_N[some], state.ids_NT.new_tensor(vlm.tokenizer.pad_token_id))
        hidden = step(begun_N[some] + t, ids_SG, owners_SC[:, None] == slots_SG[:, :, None])[filled]


def _begin(step: Step, slots_SG: Tensor, tails: Tails) -> tuple[Tensor, Tensor, Tensor]:
    """Run the tails of each sequence's answers side by side. Gives whose each column of keys is, hidden states [n, D] after each tail, and
    how many tokens each answer's tail has."""
    ids_NT, mask_NT = tails
    (count, most), width = slots_SG.shape, ids_NT.shape[1]
    filled, some = slots_SG >= 0, slots_SG.clamp(min=0)
    real = (mask_NT.bool()[some] & filled[..., None]).flatten(1)
    owner = slots_SG[..., None].expand(-1, -1, width).flatten(1)
    causal = torch.ones(most * width, most * width, dtype=torch.bool, device=ids_NT.device).tril()
    place = torch.arange(width, device=ids_NT.device).repeat(most).expand(count, -1)
    hidden = step(place, ids_NT[some].flatten(1), (owner[:, None] == owner[:, :, None]) & causal)
    begun_N = mask_NT.sum(1)
    last = hidden.unflatten(1, (most, width))[filled]
    at = begun_N[slots_SG[filled]] - 1
    return torch.where(real, owner, -2), last[torch.arange(len(last), device=last.device), at], begun_N


class Answering:
    """What has been said so far, and what is said next."""

    def __init__(self, vlm: VLM, count: int, how: Sampling, draws_NT: Tensor | None):
        self.vlm, self.how, self.draws_NT = vlm, how, draws_NT
        self.ids_NT = torch.full((count, how.max_tokens), int(vlm.tokenizer.pad_token_id), device=vlm.device)
        self.mask_NT = torch.zeros_like(self.ids_NT)
        self.logps_NT = torch.zeros(self.ids_NT.shape, device=vlm.device)
        self.entropy_NT = torch.zeros_like(self.logps_NT)
        self.open = torch.ones(count, dtype=torch.bool, device=vlm.device)
        self.eos = torch.tensor(vlm.eos, device=vlm.device)

    def step(self, logits: Tensor, live: Tensor, t: int) -> Tensor:
        """Choose token `t` of the answers `live` from their logits [n, V] (temperature applied) and write it down."""
        if t < self.how.min_tokens:
            logits = logits.index_fill(-1, self.eos, float("-inf"))
        logps = logits.log_softmax(-1)
        probabilities = logps.exp()
        token = self._choose(logps, probabilities, live, t)
        going = live[self.open[live]]
        here = self.open[live]
        self.ids_NT[going, t], self.mask_NT[going, t] = token[here], 1
        self.logps_NT[going, t] = logps.gather(-1, token[:, None])[here, 0]
        self.entropy_NT[going, t] = torch.special.entr(probabilities).sum(-1)[here]
        self.open[going] = ~torch.isin(token[here], self.eos)
        if self.how.stop:
            self._stop_at_texts(going, t)
        return token

    def step_raw(self, logits: Tensor, at: Tensor, t: int) -> Tensor:
        """The same of raw logits, as `plain.generate` asks; answers that have ended are given another end."""
        going = self.open[at].clone()
        token = self.step(self.vlm.logits_of(logits, self.how.temperature or 1.0), at, t)
        return torch.where(going, token, self.eos[0])

    def _choose(self, logps: Tensor, probabilities: Tensor, live: Tensor, t: int) -> Tensor:
        if self.how.temperature == 0:
            return logps.argmax(-1)
        assert self.draws_NT is not None
        if self.how.top_k or self.how.top_p < 1:
            probabilities = _truncated(probabilities, self.how.top_k, self.how.top_p)
        mass = probabilities.cumsum(-1)
        # 1 - u lies in (0, 1] (in float64, before it is rounded): the first id whose cumulative mass reaches it has probability above 0.
        goal = (1 - self.draws_NT[live, t]).to(mass) * mass[:, -1]
        return torch.searchsorted(mass, goal[:, None])[:, 0].clamp(max=mass.shape[-1] - 1)

    def _stop_at_texts(self, going: Tensor, t: int) -> None:
        longest = max(len(s.encode()) for s in self.how.stop)  # a token is a byte at least
        for i in going.tolist():
            tail = self.vlm.tokenizer.decode(self.ids_NT[i, max(0, t - longest) : t + 1].tolist(), skip_special_tokens=True)
            if any(s in tail for s in self.how.stop):
                self.open[i] = False

    def result(self) -> Sampled:
        width = max(int(self.mask_NT.sum(1).max()), 1)
        ids, mask, logps, entropy = (t[:, :width] for t in (self.ids_NT, self.mask_NT, self.logps_NT, self.entropy_NT))
        return Sampled(ids, mask, logps, entropy, ~self.open)


def _truncated(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Without the tokens beyond the `top_k` likeliest, then beyond the fewest that together reach `top_p`; not renormalised."""
    ordered, ids = probabilities.sort(-1, descending=True)
    if top_k:
        ordered[:, top_k:] = 0
    before = ordered.cumsum(-1) - ordered
    ordered[before >= top_p * ordered.sum(-1, keepdim=True)] = 0
    return torch.zeros_like(probabilities).scatter(-1, ids, ordered)
