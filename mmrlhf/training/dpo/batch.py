"""The answers of some preferences, ready to be scored under the policy and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrlhf.config.dpo import DPOConfig
from mmrlhf.engine.completions import Completions, pad_right
from mmrlhf.engine.scoring import in_micro_batches, token_logps
from mmrlhf.models.adapters import Role
from mmrlhf.models.vlm import VLM, Conversation
from mmrlhf.records import ImageSource, Preference
from mmrlhf.training.dpo.losses import LogRatios, changed_tokens


@dataclass(frozen=True)
class PreferenceBatch:
    """The answers [N, T] of rows, and their comparisons [C].

    A row has one prompt with all of its answers or, with image pairs, a second prompt about other
    pictures with its best answer. Each row's comparisons of answers have a total weight of 1.
    """

    completions: Completions
    prompts_per_row: list[int]
    answers_per_row: list[int]
    token_weights_NT: Tensor
    """1 on the tokens of answers, changed_token_weight on those that differ, 0 on padding."""
    row_N: Tensor
    is_best_N: Tensor
    """Whether an answer is its row's best, about its own pictures."""
    row_C: Tensor
    better_C: Tensor
    worse_C: Tensor
    weight_C: Tensor
    is_image_pair_C: Tensor

    def comparisons_of(self, rows: Sequence[int]) -> Tensor:
        """Return the indices of the comparisons of some rows' answers, without image pairs."""
        return (self._is_of(rows, self.row_C) & ~self.is_image_pair_C).nonzero()[:, 0]

    def image_pairs_of(self, rows: Sequence[int]) -> Tensor:
        """Return the indices of the image pairs of some rows."""
        return (self._is_of(rows, self.row_C) & self.is_image_pair_C).nonzero()[:, 0]

    def best_answers_of(self, rows: Sequence[int]) -> Tensor:
        """Return the indices of the best answers of some rows."""
        return (self._is_of(rows, self.row_N) & self.is_best_N).nonzero()[:, 0]

    @staticmethod
    def _is_of(rows: Sequence[int], row_X: Tensor) -> Tensor:
        return torch.isin(row_X, torch.tensor(rows, device=row_X.device))

    def log_ratios(self, ratios_N: Tensor, comparisons: Tensor) -> LogRatios:
        """Return the log-ratios of some comparisons, from those of all answers."""
        better, worse, lengths_N = self.better_C[comparisons], self.worse_C[comparisons], self.token_weights_NT.sum(1)
        return LogRatios(ratios_N[better], ratios_N[worse], lengths_N[better], lengths_N[worse])

    def weighted_logps(self, role: Role) -> Tensor:
        """Return the weighted sum [N] of each answer's log-probs, without gradients."""
        return (in_micro_batches(token_logps, role, self.completions) * self.token_weights_NT).sum(1)


def untied_comparisons(row: Preference) -> list[tuple[int, int]]:
    """Return the indices of the better and the worse answer of each comparison with a winner."""
    return [(c.better, c.worse) for c in row.comparisons if not c.is_tie]


def build_batch(
    config: DPOConfig, vlm: VLM, rows: Sequence[Preference], other_images: Sequence[tuple[ImageSource, ...] | None]
) -> PreferenceBatch:
    """Build the prompts, answers and comparisons of rows. `other_images` are for image pairs.

    Raises InputError that names the row if it does not fit the model.
    """
    conversations: list[Conversation] = []
    prompt_ids, max_prompt_lengths, prompts_per_row, answers_per_row = [], [], [], []
    answer_ids: list[Tensor] = []
    weights: list[Tensor] = []
    prompt_indices, is_best, comparisons = [], [], []
    for row_index, (row, images) in enumerate(zip(rows, other_images, strict=True)):
        ids = [vlm.answer_token_ids(row.prompt, answer, len(row.images), row_id=row.id) for answer in row.answers]
        first, pairs = len(answer_ids), untied_comparisons(row)
        pairs_weight = 1 / len(pairs)
        comparisons += [(row_index, first + better, first + worse, pairs_weight, False) for better, worse in pairs]
        row_weights = _token_weights(ids, config.changed_token_weight)
        prompt_indices += [len(conversations)] * len(ids)
        is_best += [True] + [False] * (len(ids) - 1)
        conversations.append((row.prompt, row.images))
        max_prompt_lengths.append(config.max_length - max(map(len, ids)))
        if images is not None:
            comparisons.append((row_index, first, first + len(ids), 1.0, True))
            ids, row_weights = [*ids, ids[0]], [*row_weights, row_weights[0]]
            prompt_indices.append(len(conversations))
            is_best.append(False)
            conversations.append((row.prompt, images))
            max_prompt_lengths.append(config.max_length - len(ids[0]))
        prompts_per_row.append(1 + (images is not None))
        prompt_ids += [row.id] * prompts_per_row[-1]
        answers_per_row.append(len(ids))
        answer_ids += ids
        weights += row_weights
    prompts = vlm.build_prompts(conversations, max_prompt_lengths, prompt_ids)
    token_ids_NT, mask_NT = pad_right(answer_ids, int(vlm.tokenizer.pad_token_id), vlm.device)
    weights_NT = torch.nn.utils.rnn.pad_sequence(weights, batch_first=True).to(vlm.device)
    columns = [torch.tensor(column, device=vlm.device) for column in zip(*comparisons, strict=True)]
    return PreferenceBatch(
        Completions(prompts, torch.tensor(prompt_indices, device=vlm.device), token_ids_NT, mask_NT),
        prompts_per_row,
        answers_per_row,
        weights_NT,
        torch.arange(len(rows), device=vlm.device).repeat_interleave(torch.tensor(answers_per_row, device=vlm.device)),
        torch.tensor(is_best, device=vlm.device),
        *columns,
    )


def _token_weights(answer_ids: Sequence[Tensor], changed_token_weight: float) -> list[Tensor]:
    """Return the weight of each token [T] of a row's answers, two unless all weigh 1."""
    weights = [torch.ones(len(ids)) for ids in answer_ids]
    if changed_token_weight != 1:
        chosen, rejected = answer_ids
        for row_weights, is_changed in zip(weights, changed_tokens(chosen.tolist(), rejected.tolist()), strict=True):
            row_weights[is_changed] = changed_token_weight
    return weights
