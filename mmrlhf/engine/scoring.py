"""Score given answers: hidden states, log-probs and values, one micro-batch at a time.

`hidden_states` and `last_hidden_states` are generators. A caller that trains calls `backward` on
each item inside the loop, before it asks for the next:

    for indices, hidden_NTD in hidden_states(policy, completions):
        loss = loss_of(logps(policy, completions, hidden_NTD, indices), indices)
        loss.backward()

Only one micro-batch's activations exist at a time. The micro-batches' gradients of a prompt are
summed, and go through the prompt's own forward pass once, when the generator moves on to the next
prompts (`prefill.two_stage_backward`). Two rules follow: run the loop to its end, or the last
prompts get no gradients; and do not keep an item's graph for a later `backward`, which would not
reach the prompt. The role's adapter is active inside the loop.

A loss that couples answers (DPO's pairs) needs all of their log-probs before `backward`:
`grouped_hidden_states` keeps them in one micro-batch. Across micro-batches, take the log-probs
without gradients from `sequence_logps`, derive each answer's coefficient, and run the loop on
`coefficient * logp`, which has the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mmrlhf.engine.completions import Completions, SampledCompletions, pad_right
from mmrlhf.engine.prefill import prefill, prompt_lengths, two_stage_backward
from mmrlhf.models.adapters import Role
from mmrlhf.models.vlm import Prompt

GROUPS_PER_BATCH = 64
"""Number of prompts to prepare (images and tokens) at a time when a long list is scored."""

C = TypeVar("C", bound=Completions)
"""Input of a token-level function: given answers, or sampled ones."""


# ---- hidden states -----------------------------------------------------------------------------


def hidden_states(role: Role, completions: Completions) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield answer indices [n] and the hidden states [n, T, D] before each of their tokens.

    Micro-batches follow the token budget; T is the longest of their answers. Call `backward` inside
    the loop only (see the module's docstring).
    """
    vlm = role.vlm
    lengths = completions.mask_NT.sum(1).tolist()
    num_answers = torch.bincount(completions.prompt_index_N, minlength=len(completions.prompts)).tolist()
    ends = np.cumsum(num_answers)
    grouped_lengths = [lengths[end - n : end] for n, end in zip(num_answers, ends, strict=True)]
    with role.active():
        for micro_batch in vlm.budget.micro_batches(prompt_lengths(completions.prompts), grouped_lengths):
            prompt_indices = torch.tensor(micro_batch.prompt_indices, device=vlm.device)
            with two_stage_backward(prefill(vlm, [completions.prompts[p] for p in micro_batch.prompt_indices])) as prefix:
                for answer_indices in micro_batch.answer_batches:
                    indices = torch.tensor(answer_indices, device=vlm.device)
                    # `extend` adds the column after the prompt; the last token predicts nothing.
                    width = max(1, *(lengths[i] for i in answer_indices)) - 1  # an answer may have no token
                    # The prompts of a micro-batch are sorted, so a search finds their place in it.
                    local_prompt_index = torch.searchsorted(prompt_indices, completions.prompt_index_N[indices])
                    token_ids, mask = completions.token_ids_NT[indices, :width], completions.mask_NT[indices, :width]
                    yield indices, prefix.extend(local_prompt_index, token_ids, mask)


def grouped_hidden_states(
    role: Role, completions: Completions, prompts_per_group: Sequence[int]
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield indices of groups, those of their answers [n], and the hidden states [n, T, D].

    A group is a number of successive prompts whose answers a loss compares: they share a
    micro-batch, even if it exceeds the token budget. The states are those of `hidden_states`. Call
    `backward` inside the loop only (see the module's docstring).
    """
    vlm, device = role.vlm, role.vlm.device
    lengths, prompt_index_N = completions.mask_NT.sum(1), completions.prompt_index_N
    group_of_prompt = torch.arange(len(prompts_per_group), device=device).repeat_interleave(
        torch.tensor(prompts_per_group, device=device)
    )
    group_of_answer_N = group_of_prompt[prompt_index_N]
    prompt_lengths_P = torch.tensor(prompt_lengths(completions.prompts), device=device)
    groups = range(len(prompts_per_group))
    group_lengths = [int(prompt_lengths_P[group_of_prompt == group].sum()) for group in groups]
    answer_lengths = [lengths[group_of_answer_N == group].tolist() for group in groups]
    with role.active():
        for micro_batch in vlm.budget.micro_batches(group_lengths, answer_lengths):
            selected_groups = torch.tensor(micro_batch.prompt_indices, device=device)
            prompt_indices = torch.isin(group_of_prompt, selected_groups).nonzero()[:, 0]
            with two_stage_backward(prefill(vlm, [completions.prompts[p] for p in prompt_indices.tolist()])) as prefix:
                hidden_parts, width = [], int(lengths[torch.isin(group_of_answer_N, selected_groups)].max())
                for answer_indices in micro_batch.answer_batches:
                    indices = torch.tensor(answer_indices, device=device)
                    part_width = int(lengths[indices].max()) - 1  # the last token predicts nothing
                    local_prompt_index = torch.searchsorted(prompt_indices, prompt_index_N[indices])
                    token_ids, mask = completions.token_ids_NT[indices, :part_width], completions.mask_NT[indices, :part_width]
                    hidden_NTD = prefix.extend(local_prompt_index, token_ids, mask)
                    hidden_parts.append(torch.nn.functional.pad(hidden_NTD, (0, 0, 0, width - hidden_NTD.shape[1])))
                all_indices = torch.tensor([i for batch in micro_batch.answer_batches for i in batch], device=device)
                yield micro_batch.prompt_indices, all_indices, torch.cat(hidden_parts)


def last_hidden_states(
    role: Role, prompts: Sequence[Prompt], answer_ids: Sequence[Sequence[Tensor]], prompts_per_group: Sequence[int] = ()
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield group indices, and the hidden states [n, D] at the last tokens of all their answers.

    `answer_ids` holds the token ids [T] of each prompt's answers. A group is a number of successive
    prompts, by default one, which share a micro-batch. Call `backward` inside the loop only (see
    the module's docstring).
    """
    vlm = role.vlm
    ends = np.cumsum(prompts_per_group or [1] * len(prompts)).tolist()
    groups = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    lengths = prompt_lengths(prompts)
    flat_answers = [(p, ids) for p, prompt_answers in enumerate(answer_ids) for ids in prompt_answers]
    group_lengths = [sum(lengths[p] for p in group) for group in groups]
    answer_lengths = [[len(ids) for p in group for ids in answer_ids[p]] for group in groups]
    pad_token_id = int(vlm.tokenizer.pad_token_id)
    with role.active():
        for micro_batch in vlm.budget.micro_batches(group_lengths, answer_lengths):
            prompt_indices = [p for group in micro_batch.prompt_indices for p in groups[group]]
            with two_stage_backward(prefill(vlm, [prompts[p] for p in prompt_indices])) as prefix:
                last_states = []
                for answer_indices in micro_batch.answer_batches:
                    local_prompt_indices = [prompt_indices.index(flat_answers[i][0]) for i in answer_indices]
                    ids_NT, mask_NT = pad_right([flat_answers[i][1] for i in answer_indices], pad_token_id, vlm.device)
                    hidden_NTD = prefix.extend(torch.tensor(local_prompt_indices, device=vlm.device), ids_NT, mask_NT)
                    # Column 0 is after the prompt, so column `length` is after the last token.
                    last_states.append(hidden_NTD[torch.arange(len(answer_indices), device=vlm.device), mask_NT.sum(1)])
                yield micro_batch.prompt_indices, torch.cat(last_states)


# ---- log-probs and values ----------------------------------------------------------------------


def token_logps(
    role: Role, completions: Completions, hidden: Tensor, indices: Tensor, temperature: float = 1.0, min_tokens: int = 0
) -> Tensor:
    """Return the log-probs [n, T] of the tokens of answers `indices`, 0 on padding.

    The distribution is that at `temperature` in which no answer can end before `min_tokens`.
    """
    width = hidden.shape[1]
    token_ids, mask = completions.token_ids_NT[indices, :width], completions.mask_NT[indices, :width]
    return role.vlm.token_logps(hidden, token_ids, mask, temperature, min_tokens)


def logps(role: Role, completions: SampledCompletions, hidden: Tensor, indices: Tensor) -> Tensor:
    """Return the log-probs [n, T] of sampled tokens under their own sampling parameters.

    Raises ValueError if top-p, top-k or greedy decoding chose them: they then come from another
    distribution, and a ratio of the two means nothing.
    """
    params = completions.sampling_params
    if not params.is_full_distribution:
        raise ValueError(f"answers sampled with {params} have no log-probs to learn from: sample from the full distribution")
    return token_logps(role, completions, hidden, indices, params.temperature, params.min_tokens)


def values(role: Role, completions: Completions, hidden: Tensor, indices: Tensor) -> Tensor:
    """Return the scalar head's values [n, T] before each token, 0 on padding."""
    assert role.head is not None
    return role.head(hidden.float())[..., 0] * completions.mask_NT[indices, : hidden.shape[1]]


@torch.no_grad()
def in_micro_batches(compute: Callable[[Role, C, Tensor, Tensor], Tensor], role: Role, completions: C) -> Tensor:
    """Apply `compute` (such as `logps` or `values`) to all answers, without gradients: [N, T]."""

    def compute_all() -> Tensor:
        result_NT = torch.zeros(completions.token_ids_NT.shape, device=role.vlm.device)
        for indices, hidden in hidden_states(role, completions):
            result_NT[indices, : hidden.shape[1]] = compute(role, completions, hidden, indices)
        return result_NT

    return role.vlm.budget.retry_on_oom(compute_all)


def sequence_logps(role: Role, completions: Completions, temperature: float = 1.0) -> Tensor:
    """Return the summed log-prob [N] of each answer's tokens, without gradients.

    The answers may come from anywhere. With gradients, sum `token_logps` inside the loop over
    `hidden_states`.
    """

    def compute(role: Role, completions: Completions, hidden: Tensor, indices: Tensor) -> Tensor:
        return token_logps(role, completions, hidden, indices, temperature)

    return in_micro_batches(compute, role, completions).sum(1)
