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

from mmrlhf.config import EvalConfig, GenerateConfig
from mmrlhf.engine import naive
from mmrlhf.engine.decoding import CudaGraphDecodeStep, DecodeStep
from mmrlhf.engine.prefill import NaivePrefix, Prefix, prefill
from mmrlhf.models import kv_cache
from mmrlhf.models.vlm import VLM, Prompt


@dataclass(frozen=True)
class SamplingParams:
    """How to sample answers.

    `temperature` 0 is greedy decoding; `top_p` 1 and `top_k` 0 keep every token. An answer has at least
    `min_tokens` and at most `max_tokens` tokens, and ends at the first string of `stop`. The noise of an
    answer follows from `seed`, its prompt's id and its number among that prompt's answers.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0

    @property
    def is_full_distribution(self) -> bool:
        """Whether tokens are drawn from the distribution that `VLM.token_logps` is of."""
        return self.temperature > 0 and self.top_p >= 1 and self.top_k == 0


def step_seed(seed: int, step: int) -> int:
    """Return the sampling seed of a training step, different for every step of a run.

    Seeds below 2^32 of different runs never meet: the step is the upper half of the 64 bits.
    """
    return seed + (step << 32)


@dataclass(frozen=True)
class SampleOutput:
    """`ids_NT` right-padded, `mask_NT` 1 on real tokens, `logps_NT` the log-prob of each and `entropy_NT` that of the distribution it was
    drawn from (before top-p and top-k), both 0 on padding; `ended_N` whether an answer came to its end by itself."""

    token_ids_NT: Tensor
    mask_NT: Tensor
    logps_NT: Tensor
    entropy_NT: Tensor
    finished_N: Tensor


@torch.no_grad()
def sample(
    vlm: VLM,
    prompts: Sequence[Prompt],
    prompt_indices: Sequence[int],
    sampling_params: SamplingParams,
    noise_NT: Tensor | None = None,
) -> SampleOutput:
    """Answers of the current role to prompts; `rows` names the prompt of each.

    `draws_NT` (uniform, [N, max_tokens], not needed when greedy) decides each token by its inverse cumulative distribution, so that
    an answer does not depend on the batch it is in. Answers that are done leave the batch.
    """
    state = DecodeState(vlm, len(prompt_indices), sampling_params, noise_NT)
    prefix = prefill(vlm, prompts)
    if isinstance(prefix, NaivePrefix):
        naive.generate(vlm, prompts, prompt_indices, sampling_params.max_tokens, state.step_from_raw_logits)
    else:
        prompt_index_N = torch.tensor(prompt_indices, device=vlm.device)
        if prefix.should_pack(max(Counter(prompt_indices).values()), sampling_params.max_tokens):
            decode_packed(prefix, prompt_index_N, prompt_index_N, state)
        elif vlm.engine.use_cuda_graphs:
            decode_packed(prefix, prompt_index_N, torch.arange(len(prompt_index_N), device=vlm.device), state)
        else:
            _decode_unpacked(prefix, prompt_index_N, state)
    return state.result()


def _decode_unpacked(prefix: Prefix, prompt_index_N: Tensor, state: DecodeState) -> None:
    vlm = prefix.vlm
    cache = kv_cache.preallocated_cache(prefix.kv, prefix.cache_template, prompt_index_N, state.sampling_params.max_tokens)
    active = torch.arange(len(prompt_index_N), device=vlm.device)  # answers that still stand in the batch
    hidden = prefix.last_hidden_PD[prompt_index_N]
    attention_mask = torch.nn.functional.pad(prefix.mask_PL[prompt_index_N], (0, state.sampling_params.max_tokens), value=1)
    prompt_length = prefix.mask_PL.shape[1]
    for t in range(state.sampling_params.max_tokens):
        next_tokens = state.step(vlm.logits(hidden, state.sampling_params.temperature or 1.0), active, t)
        is_unfinished = state.unfinished[active]
        if not is_unfinished.any() or t + 1 == state.sampling_params.max_tokens:
            break
        if is_unfinished.float().mean() < 0.6:
            kept_rows = is_unfinished.nonzero()[:, 0]
            for layer in cache.layers:
                if hasattr(layer, "select"):
                    layer.select(kept_rows)
            active, attention_mask, next_tokens = active[kept_rows], attention_mask[kept_rows], next_tokens[kept_rows]
        hidden = vlm.model.base_model(
            input_ids=next_tokens[:, None],
            attention_mask=attention_mask[:, : prompt_length + t + 1],
            position_ids=prefix.answer_position_ids(prompt_index_N[active], t, 1),
            **kv_cache.cache_kwargs(vlm.model, cache),
            **prefix.extra_inputs(prompt_index_N[active], 1),
        ).last_hidden_state[:, -1]


def _pack_rows(sequence_index_N: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """The sequences of the answers `live`, and for each its answers' numbers in a row [S, G], -1 where it has fewer than another."""
    sequences, counts = torch.unique_consecutive(sequence_index_N[active], return_counts=True)
    answer_indices = [part.tolist() for part in active.split(counts.tolist())]
    max_answers = max(map(len, answer_indices))
    return sequences, torch.tensor([row + [-1] * (max_answers - len(row)) for row in answer_indices], device=active.device)


class Suffixes(NamedTuple):
    """Tokens between a prompt and each of its answers [N, T], right-padded; every answer has one at least."""

    token_ids_NT: Tensor
    mask_NT: Tensor


def decode_packed(
    prefix: Prefix, prompt_index_N: Tensor, sequence_index_N: Tensor, state: DecodeState, suffixes: Suffixes | None = None
) -> None:
    """Answers grow side by side in sequences, those with one `sequence_N` in one on their prompt's keys: column after column, each owned by
    an answer that alone sees it.

    tails: what stands between the prompt and each answer, if anything does.
    """
    vlm, max_tokens = prefix.vlm, state.sampling_params.max_tokens
    active = torch.argsort(sequence_index_N, stable=True)
    sequences, answer_index_SG = _pack_rows(sequence_index_N, active)
    suffix_width = 0 if suffixes is None else suffixes.token_ids_NT.shape[1]
    decode_step = (CudaGraphDecodeStep if vlm.engine.use_cuda_graphs else DecodeStep)(
        prefix, prompt_index_N[answer_index_SG[:, 0]], (max_tokens + suffix_width) * answer_index_SG.shape[1]
    )
    next_token_N = torch.zeros_like(prompt_index_N)
    if suffixes is None:
        column_owner_SC, hidden, suffix_length_N = (
            answer_index_SG[:, :0],
            prefix.last_hidden_PD[prompt_index_N[active]],
            torch.zeros_like(prompt_index_N),
        )
    else:
        column_owner_SC, hidden, suffix_length_N = _prefill_suffixes(decode_step, answer_index_SG, suffixes)
    for t in range(max_tokens):
        next_token_N[active] = state.step(vlm.logits(hidden, state.sampling_params.temperature or 1.0), active, t)
        is_unfinished = state.unfinished[active]
        if not is_unfinished.any() or t + 1 == max_tokens:
            break
        if is_unfinished.float().mean() < 0.6:
            active = active[is_unfinished]
            remaining_sequences, answer_index_SG = _pack_rows(sequence_index_N, active)
            kept_indices = torch.isin(sequences, remaining_sequences).nonzero()[:, 0]
            decode_step.select(kept_indices)
            sequences, column_owner_SC = sequences[kept_indices], column_owner_SC[kept_indices]
        column_owner_SC = torch.cat([column_owner_SC, answer_index_SG], 1)
        is_filled_SG, gather_index_SG = answer_index_SG >= 0, answer_index_SG.clamp(min=0)
        token_ids_SG = torch.where(
            is_filled_SG, next_token_N[gather_index_SG], state.token_ids_NT.new_tensor(vlm.tokenizer.pad_token_id)
        )
        hidden = decode_step(
            suffix_length_N[gather_index_SG] + t, token_ids_SG, column_owner_SC[:, None] == answer_index_SG[:, :, None]
        )[is_filled_SG]


def _prefill_suffixes(decode_step: DecodeStep, answer_index_SG: Tensor, suffixes: Suffixes) -> tuple[Tensor, Tensor, Tensor]:
    """Run the tails of each sequence's answers side by side. Gives whose each column of keys is, hidden states [n, D] after each tail, and
    how many tokens each answer's tail has."""
    token_ids_NT, mask_NT = suffixes
    (num_sequences, max_answers), width = answer_index_SG.shape, token_ids_NT.shape[1]
    is_filled_SG, gather_index_SG = answer_index_SG >= 0, answer_index_SG.clamp(min=0)
    is_token = (mask_NT.bool()[gather_index_SG] & is_filled_SG[..., None]).flatten(1)
    column_owner = answer_index_SG[..., None].expand(-1, -1, width).flatten(1)
    causal = torch.ones(max_answers * width, max_answers * width, dtype=torch.bool, device=token_ids_NT.device).tril()
    offsets = torch.arange(width, device=token_ids_NT.device).repeat(max_answers).expand(num_sequences, -1)
    hidden = decode_step(
        offsets, token_ids_NT[gather_index_SG].flatten(1), (column_owner[:, None] == column_owner[:, :, None]) & causal
    )
    suffix_length_N = mask_NT.sum(1)
    suffix_hidden = hidden.unflatten(1, (max_answers, width))[is_filled_SG]
    last_index = suffix_length_N[answer_index_SG[is_filled_SG]] - 1
    return (
        torch.where(is_token, column_owner, -2),
        suffix_hidden[torch.arange(len(suffix_hidden), device=suffix_hidden.device), last_index],
        suffix_length_N,
    )


class DecodeState:
    """What has been said so far, and what is said next."""

    def __init__(self, vlm: VLM, num_answers: int, sampling_params: SamplingParams, noise_NT: Tensor | None):
        self.vlm, self.sampling_params, self.noise_NT = vlm, sampling_params, noise_NT
        self.token_ids_NT = torch.full(
            (num_answers, sampling_params.max_tokens), int(vlm.tokenizer.pad_token_id), device=vlm.device
        )
        self.mask_NT = torch.zeros_like(self.token_ids_NT)
        self.logps_NT = torch.zeros(self.token_ids_NT.shape, device=vlm.device)
        self.entropy_NT = torch.zeros_like(self.logps_NT)
        self.unfinished = torch.ones(num_answers, dtype=torch.bool, device=vlm.device)
        self.eos = torch.tensor(vlm.eos, device=vlm.device)

    def step(self, logits: Tensor, active: Tensor, t: int) -> Tensor:
        """Choose token `t` of the answers `live` from their logits [n, V] (temperature applied) and write it down."""
        if t < self.sampling_params.min_tokens:
            logits = logits.index_fill(-1, self.eos, float("-inf"))
        logps = logits.log_softmax(-1)
        probabilities = logps.exp()
        next_tokens = self._choose_tokens(logps, probabilities, active, t)
        unfinished_indices = active[self.unfinished[active]]
        is_unfinished = self.unfinished[active]
        self.token_ids_NT[unfinished_indices, t], self.mask_NT[unfinished_indices, t] = next_tokens[is_unfinished], 1
        self.logps_NT[unfinished_indices, t] = logps.gather(-1, next_tokens[:, None])[is_unfinished, 0]
        self.entropy_NT[unfinished_indices, t] = torch.special.entr(probabilities).sum(-1)[is_unfinished]
        self.unfinished[unfinished_indices] = ~torch.isin(next_tokens[is_unfinished], self.eos)
        if self.sampling_params.stop:
            self._finish_at_stop_strings(unfinished_indices, t)
        return next_tokens

    def step_from_raw_logits(self, logits: Tensor, active: Tensor, t: int) -> Tensor:
        """The same of raw logits, as `plain.generate` asks; answers that have ended are given another end."""
        is_unfinished = self.unfinished[active].clone()
        next_tokens = self.step(self.vlm.process_logits(logits, self.sampling_params.temperature or 1.0), active, t)
        return torch.where(is_unfinished, next_tokens, self.eos[0])

    def _choose_tokens(self, logps: Tensor, probabilities: Tensor, active: Tensor, t: int) -> Tensor:
        if self.sampling_params.temperature == 0:
            return logps.argmax(-1)
        assert self.noise_NT is not None
        if self.sampling_params.top_k or self.sampling_params.top_p < 1:
            probabilities = _filter_top_k_top_p(probabilities, self.sampling_params.top_k, self.sampling_params.top_p)
        cumulative = probabilities.cumsum(-1)
        # 1 - u lies in (0, 1] (in float64, before it is rounded): the first id whose cumulative mass reaches it has probability above 0.
        threshold = (1 - self.noise_NT[active, t]).to(cumulative) * cumulative[:, -1]
        return torch.searchsorted(cumulative, threshold[:, None])[:, 0].clamp(max=cumulative.shape[-1] - 1)

    def _finish_at_stop_strings(self, indices: Tensor, t: int) -> None:
        max_stop_tokens = max(len(s.encode()) for s in self.sampling_params.stop)  # a token is a byte at least
        for i in indices.tolist():
            recent_text = self.vlm.tokenizer.decode(
                self.token_ids_NT[i, max(0, t - max_stop_tokens) : t + 1].tolist(), skip_special_tokens=True
            )
            if any(s in recent_text for s in self.sampling_params.stop):
                self.unfinished[i] = False

    def result(self) -> SampleOutput:
        width = max(int(self.mask_NT.sum(1).max()), 1)
        token_ids, mask, logps, entropy = (
            t[:, :width] for t in (self.token_ids_NT, self.mask_NT, self.logps_NT, self.entropy_NT)
        )
        return SampleOutput(token_ids, mask, logps, entropy, ~self.unfinished)


def _filter_top_k_top_p(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Without the tokens beyond the `top_k` likeliest, then beyond the fewest that together reach `top_p`; not renormalised."""
    sorted_probabilities, token_ids = probabilities.sort(-1, descending=True)
    if top_k:
        sorted_probabilities[:, top_k:] = 0
    preceding_mass = sorted_probabilities.cumsum(-1) - sorted_probabilities
    sorted_probabilities[preceding_mass >= top_p * sorted_probabilities.sum(-1, keepdim=True)] = 0
    return torch.zeros_like(probabilities).scatter(-1, token_ids, sorted_probabilities)


def make_sampling_params(config: GenerateConfig | EvalConfig) -> SamplingParams:
    """Return the sampling parameters that a configuration asks for."""
    return SamplingParams(
        max_tokens=config.response_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_tokens=config.min_new_tokens,
        stop=(config.stop,) if config.stop else (),
        seed=config.seed,
    )
