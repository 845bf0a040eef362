"""Sample answers token by token, on prompts that were prefilled once.

Shape suffixes: N answers, T answer tokens (right-padded), V vocabulary, S sequences, G answers
packed into a sequence (fewer in some: see EMPTY_SLOT), C columns added to a sequence so far.
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
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.vlm import VLM, Prompt

COMPACT_BELOW = 0.6
"""Finished answers are dropped from the batch once less than this share of it is unfinished. This
copies the whole cache, which is too slow for every answer that ends."""

COMPACT_CAPTURED_BELOW = 0.3
"""The same for steps captured as a CUDA graph, where every new shape needs another capture."""

GPU_CHECK_INTERVAL = 8
"""Tokens between two checks for finished answers on a GPU, because a check makes the host wait for
the device. In between, finished answers stay in the batch, and their tokens are not recorded."""

EMPTY_SLOT = -1
"""Replaces an answer's index where a sequence has fewer answers than the widest one."""

PADDING_COLUMN = -2
"""Owner of a column of keys that holds padding. It equals no answer's index and not EMPTY_SLOT, so
no token attends to the column."""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample answers.

    `temperature` 0 is greedy decoding; `top_p` 1 and `top_k` 0 keep every token. An answer has at
    least `min_tokens` and at most `max_tokens` tokens, and ends where any string of `stop` occurs.
    An answer's noise depends on `seed`, its prompt's id and its number among that prompt's answers.
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
        """Whether tokens come from the distribution that `VLM.token_logps` describes."""
        return self.temperature > 0 and self.top_p >= 1 and self.top_k == 0


def step_seed(seed: int, step: int) -> int:
    """Return the sampling seed of a training step, different for every step of a run.

    The step is the upper half of 64 bits, so runs with different seeds below 2^32 never share one.
    """
    return seed + (step << 32)


def make_sampling_params(config: GenerateConfig | EvalConfig) -> SamplingParams:
    """Return the sampling parameters of a configuration."""
    return SamplingParams(
        max_tokens=config.response_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_tokens=config.min_new_tokens,
        stop=(config.stop,) if config.stop else (),
        seed=config.seed,
    )


@dataclass(frozen=True)
class SampleOutput:
    """Sampled answers as tensors, right-padded; log-probs and entropies are 0 on padding."""

    token_ids_NT: Tensor
    mask_NT: Tensor
    """1 on real tokens."""
    logps_NT: Tensor
    """Log-prob of each token under the full distribution, before top-p and top-k."""
    entropy_NT: Tensor
    """Entropy of that distribution, in nats."""
    finished_N: Tensor
    """Whether an answer ended by itself, not at `max_tokens`."""


def check_interval(device: torch.device) -> int:
    """Return the number of tokens between two checks for finished answers."""
    return GPU_CHECK_INTERVAL if device.type == "cuda" else 1


# ---- decoding ----------------------------------------------------------------------------------


@torch.no_grad()
def sample(
    vlm: VLM,
    prompts: Sequence[Prompt],
    prompt_indices: Sequence[int],
    params: SamplingParams,
    noise_NT: Tensor | None = None,
) -> SampleOutput:
    """Sample an answer to `prompts[p]` for every p of `prompt_indices`, under the active adapter.

    `noise_NT` (uniform, [N, max_tokens]; None for greedy decoding) decides each token by its
    inverse cumulative distribution, so in float32 an answer does not depend on its batch. In
    bfloat16, kernels of another batch size may round a log-prob across a token's boundary.
    Finished answers leave the batch.
    """
    state = DecodeState(vlm, len(prompt_indices), params, noise_NT)
    prefix = prefill(vlm, prompts)
    if isinstance(prefix, NaivePrefix):
        naive.generate(vlm, prompts, prompt_indices, params.max_tokens, state.step_from_raw_logits)
        return state.result()
    prompt_index_N = torch.tensor(prompt_indices, device=vlm.device)
    if prefix.should_pack(max(Counter(prompt_indices).values()), params.max_tokens):
        decode_packed(prefix, prompt_index_N, prompt_index_N, state)  # one sequence per prompt
    elif vlm.engine.use_cuda_graphs:
        decode_packed(prefix, prompt_index_N, torch.arange(len(prompt_index_N), device=vlm.device), state)  # one per answer
    else:
        _decode_unpacked(prefix, prompt_index_N, state)
    return state.result()


def _decode_unpacked(prefix: Prefix, prompt_index_N: Tensor, state: DecodeState) -> None:
    """Decode one row per answer, on its own copy of the prompt's keys; works for every family."""
    vlm, max_tokens = prefix.vlm, state.params.max_tokens
    cache = kv_cache.preallocated_cache(prefix.kv, prefix.cache_template, prompt_index_N, max_tokens)
    active = torch.arange(len(prompt_index_N), device=vlm.device)  # the answer of each row of the batch
    hidden = prefix.last_hidden_PD[prompt_index_N]
    attention_mask = torch.nn.functional.pad(prefix.mask_PL[prompt_index_N], (0, max_tokens), value=1)
    prompt_length = prefix.mask_PL.shape[1]
    for t in range(max_tokens):
        next_tokens = state.step(vlm.logits(hidden, state.params.temperature or 1.0), active, t)
        share_unfinished = state.share_unfinished(active, t)
        if share_unfinished == 0 or t + 1 == max_tokens:
            return
        if share_unfinished < COMPACT_BELOW:
            kept_rows = state.unfinished[active].nonzero()[:, 0]
            for layer in cache.layers:
                if hasattr(layer, "select"):  # layers that share another's keys keep nothing
                    layer.select(kept_rows)
            active, attention_mask, next_tokens = active[kept_rows], attention_mask[kept_rows], next_tokens[kept_rows]
        hidden = vlm.model.base_model(
            input_ids=next_tokens[:, None],
            attention_mask=attention_mask[:, : prompt_length + t + 1],
            position_ids=prefix.answer_position_ids(prompt_index_N[active], t, 1),
            **kv_cache.cache_kwargs(vlm.model, cache),
            **prefix.extra_inputs(prompt_index_N[active], 1),
        ).last_hidden_state[:, -1]


class Suffixes(NamedTuple):
    """What follows a shared prefix in each answer's prompt [N, T]: right-padded, never empty."""

    token_ids_NT: Tensor
    mask_NT: Tensor


def decode_packed(
    prefix: Prefix, prompt_index_N: Tensor, sequence_index_N: Tensor, state: DecodeState, suffixes: Suffixes | None = None
) -> None:
    """Decode several answers per sequence, without copying the prompt's keys.

    Answers with the same `sequence_index_N` (and so the same prompt) share a sequence. At step t
    each of them appends one token to it, side by side: a sequence grows by G columns of keys, and
    every column belongs to one answer. A token attends to the prompt and to its own answer's
    columns. With `suffixes`, each answer first appends the rest of its own prompt.
    """
    vlm, max_tokens = prefix.vlm, state.params.max_tokens
    active = torch.argsort(sequence_index_N, stable=True)  # unfinished answers, grouped by sequence
    sequences, answer_index_SG = _pack_rows(sequence_index_N, active)
    is_filled_SG, filled_slots = _filled_slots(answer_index_SG)
    num_slots = answer_index_SG.shape[1]
    suffix_width = 0 if suffixes is None else suffixes.token_ids_NT.shape[1]
    step_class = CudaGraphDecodeStep if vlm.engine.use_cuda_graphs else DecodeStep
    decode_step = step_class(prefix, prompt_index_N[answer_index_SG[:, 0]], (max_tokens + suffix_width) * num_slots)
    next_token_N = torch.zeros_like(prompt_index_N)
    # `column_owner_SC` names the answer that each column of keys belongs to. `hidden` [n, D] holds
    # the state after the last token of each active answer, in the order of `active`.
    if suffixes is None:
        column_owner_SC = answer_index_SG[:, :0]
        hidden = prefix.last_hidden_PD[prompt_index_N[active]]
        suffix_length_N = torch.zeros_like(prompt_index_N)
    else:
        column_owner_SC, hidden, suffix_length_N = _prefill_suffixes(decode_step, answer_index_SG, suffixes)
    compact_below = COMPACT_CAPTURED_BELOW if decode_step.is_captured else COMPACT_BELOW
    for t in range(max_tokens):
        next_token_N[active] = state.step(vlm.logits(hidden, state.params.temperature or 1.0), active, t)
        share_unfinished = state.share_unfinished(active, t)
        if share_unfinished == 0 or t + 1 == max_tokens:
            return
        if share_unfinished < compact_below:
            # Drop finished answers' slots, and sequences without answers. In a sequence that goes
            # on, a dropped answer's columns stay, but no other answer attends to them.
            active = active[state.unfinished[active]]
            remaining_sequences, answer_index_SG = _pack_rows(sequence_index_N, active)
            is_filled_SG, filled_slots = _filled_slots(answer_index_SG)
            kept_indices = torch.isin(sequences, remaining_sequences).nonzero()[:, 0]
            decode_step.select(kept_indices)
            sequences, column_owner_SC = sequences[kept_indices], column_owner_SC[kept_indices]
        column_owner_SC = torch.cat([column_owner_SC, answer_index_SG], 1)
        # An empty slot runs as padding (gathered from answer 0 to keep the index valid);
        # `[filled_slots]` drops it and leaves the rest in the order of `active`.
        gather_index_SG = answer_index_SG.clamp(min=0)
        token_ids_SG = torch.where(is_filled_SG, next_token_N[gather_index_SG], state.pad_token_id)
        # An empty slot sees its prompt and empty slots; its output is dropped.
        visible_SGC = column_owner_SC[:, None] == answer_index_SG[:, :, None]
        hidden_SGD = decode_step(suffix_length_N[gather_index_SG] + t, token_ids_SG, visible_SGC)
        hidden = hidden_SGD.flatten(0, 1)[filled_slots]


def _filled_slots(answer_index_SG: Tensor) -> tuple[Tensor, Tensor]:
    """Return which slots hold an answer [S, G], and their indices among all S x G slots.

    Selecting by indices does not make the host wait for a GPU, as selecting by booleans does.
    """
    is_filled_SG = answer_index_SG != EMPTY_SLOT
    return is_filled_SG, is_filled_SG.flatten().nonzero()[:, 0]


def _pack_rows(sequence_index_N: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sequences [S] of the `active` answers, and the answers [S, G] of each sequence.

    `active` is grouped by sequence; rows with fewer than G answers end in EMPTY_SLOT.
    """
    sequences, counts = torch.unique_consecutive(sequence_index_N[active], return_counts=True)
    answer_indices = [part.tolist() for part in active.split(counts.tolist())]
    num_slots = max(map(len, answer_indices))
    padded = [row + [EMPTY_SLOT] * (num_slots - len(row)) for row in answer_indices]
    return sequences, torch.tensor(padded, device=active.device)


def _prefill_suffixes(decode_step: DecodeStep, answer_index_SG: Tensor, suffixes: Suffixes) -> tuple[Tensor, Tensor, Tensor]:
    """Run each answer's suffix in its sequence, all in one forward.

    Returns the owners of the new columns [S, G x T], the hidden states [n, D] after each suffix in
    the order of the filled slots, and the suffixes' lengths [N].
    """
    token_ids_NT, mask_NT = suffixes
    (num_sequences, num_slots), width = answer_index_SG.shape, token_ids_NT.shape[1]
    num_columns = num_slots * width
    is_filled_SG, gather_index_SG = answer_index_SG != EMPTY_SLOT, answer_index_SG.clamp(min=0)
    # Slot after slot, `width` columns each. In this forward pass a column's owner is its slot's
    # answer, even if it is padding: the causal mask hides right padding from the tokens before it.
    column_owner_SC = answer_index_SG[..., None].expand(-1, -1, width).flatten(1)
    is_causal = torch.ones(num_columns, num_columns, dtype=torch.bool, device=token_ids_NT.device).tril()
    visible_SCC = (column_owner_SC[:, None] == column_owner_SC[:, :, None]) & is_causal
    offsets = torch.arange(width, device=token_ids_NT.device).repeat(num_slots).expand(num_sequences, -1)
    hidden = decode_step(offsets, token_ids_NT[gather_index_SG].flatten(1), visible_SCC)
    suffix_length_N = mask_NT.sum(1)
    suffix_hidden = hidden.unflatten(1, (num_slots, width))[is_filled_SG]
    last_index = suffix_length_N[answer_index_SG[is_filled_SG]] - 1
    last_hidden = suffix_hidden[torch.arange(len(suffix_hidden), device=suffix_hidden.device), last_index]
    # Later tokens come after the padding, so causality no longer hides it from them: mark it.
    is_token = (mask_NT.bool()[gather_index_SG] & is_filled_SG[..., None]).flatten(1)
    return torch.where(is_token, column_owner_SC, PADDING_COLUMN), last_hidden, suffix_length_N


# ---- choosing tokens ---------------------------------------------------------------------------


class DecodeState:
    """The tokens and log-probs sampled so far, and which answers are unfinished."""

    def __init__(self, vlm: VLM, num_answers: int, params: SamplingParams, noise_NT: Tensor | None):
        self.vlm, self.params, self.noise_NT = vlm, params, noise_NT
        self.pad_token_id = int(vlm.tokenizer.pad_token_id)
        self.check_interval = check_interval(vlm.device)
        self.token_ids_NT = torch.full((num_answers, params.max_tokens), self.pad_token_id, device=vlm.device)
        self.mask_NT = torch.zeros_like(self.token_ids_NT)
        self.logps_NT = torch.zeros(self.token_ids_NT.shape, device=vlm.device)
        self.entropy_NT = torch.zeros_like(self.logps_NT)
        self.unfinished = torch.ones(num_answers, dtype=torch.bool, device=vlm.device)
        self.eos = torch.tensor(vlm.eos, device=vlm.device)

    def step(self, logits: Tensor, active: Tensor, t: int) -> Tensor:
        """Choose, record and return token `t` of answers `active` [n] from their logits [n, V].

        The temperature has already been applied to the logits. Finished answers that are still in
        the batch also get a token, which is not recorded.
        """
        if t < self.params.min_tokens:
            logits = logits.index_fill(-1, self.eos, float("-inf"))
        logps = logits.log_softmax(-1)
        probabilities = logps.exp()
        next_tokens = self._choose_tokens(logps, probabilities, active, t)
        # Rows of finished answers are overwritten with padding rather than left out: choosing rows
        # by a boolean mask would make the host wait for a GPU.
        is_unfinished = self.unfinished[active]
        self.token_ids_NT[active, t] = next_tokens.where(is_unfinished, self.pad_token_id)
        self.mask_NT[active, t] = is_unfinished.to(self.mask_NT.dtype)
        self.logps_NT[active, t] = logps.gather(-1, next_tokens[:, None])[:, 0].where(is_unfinished, 0.0)
        self.entropy_NT[active, t] = torch.special.entr(probabilities).sum(-1).where(is_unfinished, 0.0)
        self.unfinished[active] = is_unfinished & (next_tokens[:, None] != self.eos).all(-1)
        if self.params.stop:
            self._finish_at_stop_strings(active[is_unfinished], t)
        return next_tokens

    def share_unfinished(self, active: Tensor, t: int) -> float:
        """Return the share of answers `active` that is unfinished after token `t`.

        Returns 1 without a check until the interval has passed.
        """
        return float(self.unfinished[active].float().mean()) if (t + 1) % self.check_interval == 0 else 1.0

    def step_from_raw_logits(self, logits: Tensor, active: Tensor, t: int) -> Tensor:
        """Do the same as `step` with the model's unprocessed logits, for `naive.generate`.

        Answers that had already finished get an end-of-sequence token, so that `generate` ends.
        """
        is_unfinished = self.unfinished[active].clone()
        next_tokens = self.step(self.vlm.process_logits(logits, self.params.temperature or 1.0), active, t)
        return torch.where(is_unfinished, next_tokens, self.eos[0])

    def _choose_tokens(self, logps: Tensor, probabilities: Tensor, active: Tensor, t: int) -> Tensor:
        """Return a token [n] per answer: the most likely one, or the one that its noise selects."""
        if self.params.temperature == 0:
            return logps.argmax(-1)
        assert self.noise_NT is not None
        if self.params.top_k or self.params.top_p < 1:
            probabilities = _filter_top_k_top_p(probabilities, self.params.top_k, self.params.top_p)
        cumulative = probabilities.cumsum(-1)
        # 1 - u is in (0, 1] (in float64, before rounding), so the first id at which the cumulative
        # mass reaches it has a probability above 0. Scaling by the total renormalises what top-k
        # and top-p left.
        threshold = (1 - self.noise_NT[active, t]).to(cumulative) * cumulative[:, -1]
        return torch.searchsorted(cumulative, threshold[:, None])[:, 0].clamp(max=cumulative.shape[-1] - 1)

    def _finish_at_stop_strings(self, indices: Tensor, t: int) -> None:
        """Mark these answers as finished if their last tokens contain a stop string."""
        # A token holds at least one byte, so a stop string of n bytes lies within n tokens.
        max_stop_tokens = max(len(s.encode()) for s in self.params.stop)
        for i in indices.tolist():
            recent_ids = self.token_ids_NT[i, max(0, t - max_stop_tokens) : t + 1].tolist()
            recent_text = self.vlm.tokenizer.decode(recent_ids, skip_special_tokens=True)
            if any(s in recent_text for s in self.params.stop):
                self.unfinished[i] = False

    def result(self) -> SampleOutput:
        """Return the sampled answers, cut to the longest one but at least one token wide.

        Raises NotFiniteError if the model's logits were not finite.
        """
        if not bool(self.logps_NT.isfinite().all()):
            raise NotFiniteError(
                f"{self.vlm.name} gives logits that are not finite (NaN or infinity): load it in another dtype, or give another "
                "checkpoint or adapter"
            )
        width = max(int(self.mask_NT.sum(1).max()), 1)
        return SampleOutput(
            token_ids_NT=self.token_ids_NT[:, :width],
            mask_NT=self.mask_NT[:, :width],
            logps_NT=self.logps_NT[:, :width],
            entropy_NT=self.entropy_NT[:, :width],
            finished_N=~self.unfinished,
        )


def _filter_top_k_top_p(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` best tokens, then the fewest of them that reach `top_p`; zero the rest.

    `top_p` is a share of the mass that top-k left. The result is not renormalised.
    """
    sorted_probabilities, token_ids = probabilities.sort(-1, descending=True)
    if top_k:
        sorted_probabilities[:, top_k:] = 0
    # A token stays if those before it have not reached top_p yet: the one that crosses it stays.
    preceding_mass = sorted_probabilities.cumsum(-1) - sorted_probabilities
    sorted_probabilities[preceding_mass >= top_p * sorted_probabilities.sum(-1, keepdim=True)] = 0
    return torch.zeros_like(probabilities).scatter(-1, token_ids, sorted_probabilities)
