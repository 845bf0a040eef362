"""Score answers that exist: hidden states, log-probs and values, a micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mmrlhf.engine.completions import Completions, SampledCompletions, pad_right
from mmrlhf.engine.prefill import prefill, prompt_lengths, two_stage_backward
from mmrlhf.models.adapters import Role
from mmrlhf.models.vlm import Prompt


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


def last_hidden_states(
    role: Role, prompts: Sequence[Prompt], answer_ids: Sequence[Sequence[Tensor]]
) -> Iterator[tuple[list[int], Tensor]]:
    """Hidden states where answers end, each prompt run once for all of its answers: the numbers of as many prompts as the budget allows,
    and the states [n, D] of all of their answers in order. Inside, the caller may call `backward`.
    """
    vlm, flat_answers = role.vlm, [(p, ids) for p, prompt_answers in enumerate(answer_ids) for ids in prompt_answers]
    with role.active():
        for micro_batch in vlm.budget.micro_batches(
            prompt_lengths(prompts), [[len(ids) for ids in prompt_answers] for prompt_answers in answer_ids]
        ):
            with two_stage_backward(prefill(vlm, [prompts[p] for p in micro_batch.prompt_indices])) as prefix:
                last_states = []
                for answer_indices in micro_batch.answer_batches:
                    prompt_index_N = torch.tensor(
                        [micro_batch.prompt_indices.index(flat_answers[i][0]) for i in answer_indices], device=vlm.device
                    )
                    ids_NT, mask_NT = pad_right(
                        [flat_answers[i][1] for i in answer_indices], int(vlm.tokenizer.pad_token_id), vlm.device
                    )
                    hidden_NTD = prefix.extend(prompt_index_N, ids_NT, mask_NT)
                    last_states.append(hidden_NTD[torch.arange(len(answer_indices), device=vlm.device), mask_NT.sum(1)])
                yield micro_batch.prompt_indices, torch.cat(last_states)


GROUPS_PER_BATCH = 64
"""Prompts that are made ready at a time, pictures and all, when many are scored."""
