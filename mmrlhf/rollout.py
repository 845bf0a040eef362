"""Answers to prompts: sampled once, by the same code for ppo, generate and evaluation; and the one way in which stages go over them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmrlhf import stems
from mmrlhf.prefix import prefill, prompt_lengths, two_stage_backward
from mmrlhf.records import Example
from mmrlhf.roles import Role
from mmrlhf.sampling import SampleOutput, SamplingParams, sample
from mmrlhf.vlm import VLM, Prompt


@dataclass(frozen=True)
class Completions:
    """Answers to P prompts, N rows in prompt order: `rows_N` the prompt of each, `ids_NT` right-padded, `mask_NT` 1 on real tokens."""

    prompts: list[Prompt]
    prompt_index_N: Tensor
    token_ids_NT: Tensor
    mask_NT: Tensor


@dataclass(frozen=True)
class SampledCompletions(Completions):
    """G sampled answers to each prompt. `logps_NT` and `entropy_NT` as they were drawn; `ended_N` whether an answer came to its end;
    `texts` decoded; `how` they were drawn."""

    logps_NT: Tensor
    entropy_NT: Tensor
    finished_N: Tensor
    texts: list[str]
    sampling_params: SamplingParams


def sampling_noise(example_ids: Sequence[str], num_generations: int, max_tokens: int, seed: int, step: int = 0) -> Tensor:
    """Uniform draws [N, tokens] that follow from seed, step, the row's id and the answer's number alone: neither the batch
    nor what was sampled before matters, so that a run that resumes needs no generator's state. A row that stands there twice has
    other draws the second time."""
    occurrences: Counter[str] = Counter()
    keys = []
    for key in example_ids:
        keys.append(f"{key}#{occurrences[key]}" if occurrences[key] else key)
        occurrences[key] += 1
    noise = [
        np.random.Generator(np.random.Philox(key=[zlib.crc32(key.encode()) + (g << 32), seed + (step << 32)])).random(max_tokens)
        for key in keys
        for g in range(num_generations)
    ]
    return torch.from_numpy(np.stack(noise))


def sample_completions(
    vlm: VLM,
    examples: Sequence[Example],
    sampling_params: SamplingParams,
    *,
    num_generations: int = 1,
    seed: int = 0,
    step: int = 0,
    max_length: int | None = None,
    prompts: list[Prompt] | None = None,
) -> SampledCompletions:
    """Answers of the current role to `examples`, of which one that stands there twice is answered twice; `prompts` are theirs where they
    have been made already."""
    if prompts is None:
        prompts = vlm.build_prompts([(e.prompt, e.images) for e in examples], max_length, [e.id for e in examples])
    noise = None
    if sampling_params.temperature > 0:
        noise = sampling_noise([e.id for e in examples], num_generations, sampling_params.max_tokens, seed, step).to(vlm.device)
    prompt_index_N = torch.arange(len(prompts), device=vlm.device).repeat_interleave(num_generations)

    def sample_micro_batches() -> tuple[list[int], list[SampleOutput]]:
        answer_lengths = [[sampling_params.max_tokens] * num_generations for _ in prompts]
        answer_indices, outputs = [], []
        for micro_batch in vlm.budget.micro_batches(prompt_lengths(prompts), answer_lengths):
            for indices in micro_batch.answer_batches:
                local_prompt_indices = [micro_batch.prompt_indices.index(i // num_generations) for i in indices]
                outputs.append(
                    sample(
                        vlm,
                        [prompts[p] for p in micro_batch.prompt_indices],
                        local_prompt_indices,
                        sampling_params,
                        None if noise is None else noise[indices],
                    )
                )
                answer_indices += indices
        return answer_indices, outputs

    answer_indices, outputs = vlm.budget.retry_on_oom(sample_micro_batches)
    width = max(s.token_ids_NT.shape[1] for s in outputs)
    order = torch.tensor(answer_indices, device=vlm.device).argsort()

    def pad_and_concat(tensors: list[Tensor], pad_value: float = 0) -> Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=pad_value) for t in tensors])[order]

    token_ids_NT = pad_and_concat([s.token_ids_NT for s in outputs], int(vlm.tokenizer.pad_token_id))
    mask_NT = pad_and_concat([s.mask_NT for s in outputs])
    logps_NT, entropy_NT = pad_and_concat([s.logps_NT for s in outputs]), pad_and_concat([s.entropy_NT for s in outputs])
    texts = [_truncate_at_stop(vlm.decode(i[m.bool()]), sampling_params.stop) for i, m in zip(token_ids_NT, mask_NT, strict=True)]
    return SampledCompletions(
        prompts,
        prompt_index_N,
        token_ids_NT,
        mask_NT,
        logps_NT,
        entropy_NT,
        torch.cat([s.finished_N for s in outputs])[order],
        texts,
        sampling_params,
    )


def char_to_token(vlm: VLM, token_ids: Tensor, text: str) -> list[int]:
    """For each character of `text`, which the answer `ids` [T] was decoded to, the token that completes it. A character of several
    tokens belongs to the last of them."""
    token_indices: list[int] = []
    full_text = vlm.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)
    num_leading_spaces = len(full_text) - len(full_text.lstrip())
    for t in range(len(token_ids)):
        decoded = vlm.tokenizer.decode(token_ids[: t + 1].tolist(), skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
        token_indices += [t] * (min(len(decoded) - num_leading_spaces, len(text)) - len(token_indices))
    return token_indices + [max(0, len(token_ids) - 1)] * (len(text) - len(token_indices))


def _truncate_at_stop(text: str, stop: tuple[str, ...]) -> str:
    return text[: min([text.find(s) for s in stop if s in text], default=len(text))].strip()


def generate_batches(
    vlm: VLM, examples: Sequence[Example], sampling_params: SamplingParams, *, batch_size: int, num_generations: int = 1, seed: int = 0,
    max_length: int | None = None,
) -> Iterator[tuple[Example, list[str]]]:  # fmt: skip
    """Each example with its answers, a batch of prompts at a time; questions about one picture share it."""
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        prompts = vlm.build_prompts([(e.prompt, e.images) for e in batch], max_length, [e.id for e in batch])
        texts = _sample_with_shared_prefix(vlm, batch, prompts, sampling_params, seed) if num_generations == 1 else None
        if texts is None:
            texts = sample_completions(
                vlm, batch, sampling_params, num_generations=num_generations, seed=seed, prompts=prompts
            ).texts
        for i, example in enumerate(batch):
            yield example, texts[i * num_generations : (i + 1) * num_generations]


def _sample_with_shared_prefix(
    vlm: VLM, examples: Sequence[Example], prompts: list[Prompt], sampling_params: SamplingParams, seed: int
) -> list[str] | None:
    """An answer to each example, what prompts have in common run once; None where nothing is shared or this model does not allow it."""
    groups = stems.group_by_prefix(vlm, prompts, sampling_params)
    first_shared_group = next((g for g in groups if len(g) > 1), None)
    if first_shared_group is None or not stems.is_supported(vlm, [prompts[i] for i in first_shared_group]):
        return None
    noise = (
        sampling_noise([e.id for e in examples], 1, sampling_params.max_tokens, seed).to(vlm.device)
        if sampling_params.temperature > 0
        else None
    )
    texts = [""] * len(prompts)

    def sample_micro_batches() -> None:
        group_lengths = [max(len(prompts[i].token_ids) for i in g) for g in groups]
        for micro_batch in vlm.budget.micro_batches(group_lengths, [[sampling_params.max_tokens] * len(g) for g in groups]):
            batch_groups = [groups[g] for g in micro_batch.prompt_indices]
            indices = [i for g in batch_groups for i in g]
            output = stems.sample(
                vlm, [[prompts[i] for i in g] for g in batch_groups], sampling_params, None if noise is None else noise[indices]
            )
            for i, token_ids, mask in zip(indices, output.token_ids_NT, output.mask_NT, strict=True):
                texts[i] = _truncate_at_stop(vlm.decode(token_ids[mask.bool()]), sampling_params.stop)

    vlm.budget.retry_on_oom(sample_micro_batches)
    return texts


def select_prompts(completions: SampledCompletions, prompt_indices: Sequence[int]) -> tuple[SampledCompletions, Tensor]:
    """The answers of some prompts, in the order of `out`, and where they stand in it."""
    selected = sorted(prompt_indices)
    is_selected = torch.isin(completions.prompt_index_N, torch.tensor(selected, device=completions.prompt_index_N.device))
    prompt_index_N = torch.searchsorted(
        torch.tensor(selected, device=completions.prompt_index_N.device), completions.prompt_index_N[is_selected]
    )
    texts = [t for t, k in zip(completions.texts, is_selected.tolist(), strict=True) if k]
    selected_tensors = {
        k: getattr(completions, k)[is_selected] for k in ("token_ids_NT", "mask_NT", "logps_NT", "entropy_NT", "finished_N")
    }
    return replace(
        completions,
        prompts=[completions.prompts[p] for p in selected],
        prompt_index_N=prompt_index_N,
        texts=texts,
        **selected_tensors,
    ), is_selected.nonzero()[:, 0]


def hidden_states(role: Role, completions: Completions) -> Iterator[tuple[Tensor, Tensor]]:
    """Go over answers under a role, as many at a time as the budget allows: numbers `at_n` and hidden states [n, T, D] in front of each
    of their tokens (T as long as the longest of them). What the caller does with them may call `backward`: prompts learn too.
    """
    lengths, num_answers = (
        completions.mask_NT.sum(1).tolist(),
        torch.bincount(completions.prompt_index_N, minlength=len(completions.prompts)).tolist(),
    )
    ends = np.cumsum(num_answers)
    grouped_lengths = [lengths[end - n : end] for n, end in zip(num_answers, ends, strict=True)]
    vlm = role.vlm
    with role.active():
        for micro_batch in vlm.budget.micro_batches(prompt_lengths(completions.prompts), grouped_lengths):
            prompt_indices = torch.tensor(micro_batch.prompt_indices, device=vlm.device)
            with two_stage_backward(prefill(vlm, [completions.prompts[p] for p in micro_batch.prompt_indices])) as prefix:
                for answer_indices in micro_batch.answer_batches:
                    indices = torch.tensor(answer_indices, device=vlm.device)
                    width = max(lengths[i] for i in answer_indices) - 1
                    local_prompt_index = torch.searchsorted(prompt_indices, completions.prompt_index_N[indices])
                    yield (
                        indices,
                        prefix.extend(
                            local_prompt_index, completions.token_ids_NT[indices, :width], completions.mask_NT[indices, :width]
                        ),
                    )


def logps(role: Role, completions: SampledCompletions, hidden: Tensor, indices: Tensor) -> Tensor:
    """Log-probs [n, T] of the tokens of answers `at`, as they were drawn. Raises ValueError where top-p or top-k have drawn them: they are
    then of another distribution, and no ratio of the two means anything."""
    if not completions.sampling_params.is_full_distribution:
        raise ValueError(
            f"answers drawn by {completions.sampling_params} have no log-probs to learn from: draw from the whole distribution"
        )
    width, sampling_params = hidden.shape[1], completions.sampling_params
    return role.vlm.token_logps(
        hidden,
        completions.token_ids_NT[indices, :width],
        completions.mask_NT[indices, :width],
        sampling_params.temperature,
        sampling_params.min_tokens,
    )


def values(role: Role, completions: SampledCompletions, hidden: Tensor, indices: Tensor) -> Tensor:
    """A scalar head's values [n, T] in front of each token, 0 on padding."""
    assert role.head is not None
    return role.head(hidden.float())[..., 0] * completions.mask_NT[indices, : hidden.shape[1]]


@torch.no_grad()
def in_micro_batches(
    compute: Callable[[Role, SampledCompletions, Tensor, Tensor], Tensor], role: Role, completions: SampledCompletions
) -> Tensor:
    """What `logps` or `values` reads of all answers [N, T]."""

    def compute_all() -> Tensor:
        result_NT = torch.zeros(completions.token_ids_NT.shape, device=role.vlm.device)
        for indices, hidden in hidden_states(role, completions):
            result_NT[indices, : hidden.shape[1]] = compute(role, completions, hidden, indices)
        return result_NT

    return role.vlm.budget.retry_on_oom(compute_all)
