"""The answers of some preferences, ready to be scored under the policy and the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrlhf.config.dpo import DPOConfig
from mmrlhf.datasets.conversations import is_blank
from mmrlhf.engine.completions import Completions, pad_right
from mmrlhf.engine.scoring import in_micro_batches, token_logps
from mmrlhf.models.adapters import Role
from mmrlhf.models.answer_images import AnswerText, answer_texts
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.models.prompt_list import PromptList
from mmrlhf.models.vlm import VLM
from mmrlhf.records import ImageSource, InputError, Preference, answer_turn
from mmrlhf.training.dpo.losses import LogRatios, changed_tokens


@dataclass(frozen=True)
class PreferenceBatch:
    """The answers [N, T] of rows, and their comparisons [C].

    A row has one prompt with all of its answers or, with image pairs, a second prompt about other
    pictures with its best answer. Each row's comparisons of answers have a total weight of 1. An
    answer that shows images has an entry for each text between them, each with its own prompt
    (`models.answer_images`); comparisons use the sums over these entries.
    """

    completions: Completions
    prompts_per_row: list[int]
    answers_per_row: list[int]
    """Entries of each row."""
    answer_N: Tensor
    """The answer that an entry belongs to."""
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
        """Return the log-ratios of some comparisons, from those of all entries."""
        better, worse = self.better_C[comparisons], self.worse_C[comparisons]
        ratios, lengths = self.by_answer(ratios_N), self.by_answer(self.token_weights_NT.sum(1))
        return LogRatios(ratios[better], ratios[worse], lengths[better], lengths[worse])

    def by_answer(self, values_N: Tensor) -> Tensor:
        """Return the sums of each answer's entries."""
        if torch.equal(self.answer_N, torch.arange(len(values_N), device=values_N.device)):
            return values_N  # every answer is one entry
        return values_N.new_zeros(int(self.answer_N.max()) + 1).index_add(0, self.answer_N, values_N)

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
    prompts, entries, comparisons = PromptList(vlm, config.max_length), list[_Entry](), []
    prompts_per_row, answers_per_row = [], []
    num_answers = 0
    for row_index, (row, images) in enumerate(zip(rows, other_images, strict=True)):
        first, pairs = num_answers, untied_comparisons(row)
        pairs_weight = 1 / len(pairs)
        comparisons += [(row_index, first + better, first + worse, pairs_weight, False) for better, worse in pairs]
        row_entries = _row_entries(config, prompts, row, row.images, range(len(row.answers)), first)
        num_answers += len(row.answers)
        if images is not None:
            comparisons.append((row_index, first, num_answers, 1.0, True))
            pair = _row_entries(config, prompts, row, images, [0], num_answers)
            if not row.images_of(0):
                pair = [replace(pair[0], weights=row_entries[0].weights)]
            row_entries += [replace(entry, is_best=False) for entry in pair]
            num_answers += 1
        prompts_per_row.append(len({entry.prompt for entry in row_entries}))
        answers_per_row.append(len(row_entries))
        entries += row_entries
    token_ids_NT, mask_NT = pad_right([entry.token_ids for entry in entries], int(vlm.tokenizer.pad_token_id), vlm.device)
    weights_NT = torch.nn.utils.rnn.pad_sequence([entry.weights for entry in entries], batch_first=True).to(vlm.device)
    columns = [torch.tensor(column, device=vlm.device) for column in zip(*comparisons, strict=True)]
    prompt_index_N = torch.tensor([entry.prompt for entry in entries], device=vlm.device)
    return PreferenceBatch(
        Completions(prompts.build(), prompt_index_N, token_ids_NT, mask_NT),
        prompts_per_row,
        answers_per_row,
        torch.tensor([entry.answer for entry in entries], device=vlm.device),
        weights_NT,
        torch.arange(len(rows), device=vlm.device).repeat_interleave(torch.tensor(answers_per_row, device=vlm.device)),
        torch.tensor([entry.is_best for entry in entries], device=vlm.device),
        *columns,
    )


@dataclass(frozen=True)
class _Entry:
    """An answer, or a text of one that shows images: `prompt` and `answer` are numbers."""

    prompt: int
    answer: int
    token_ids: Tensor
    weights: Tensor
    is_best: bool


def _row_entries(
    config: DPOConfig,
    prompts: PromptList,
    row: Preference,
    images: tuple[ImageSource, ...],
    answers: Sequence[int],
    first: int,
) -> list[_Entry]:
    """Return the entries of a row's answers about these images, the first of them number `first`.

    Answers of text alone share a prompt.
    """
    vlm = prompts.vlm
    entries: list[_Entry] = []
    ids = {
        i: vlm.answer_token_ids(row.prompt, row.answers[i], len(images), row_id=row.id) for i in answers if not row.images_of(i)
    }
    if ids:
        weights = _token_weights([ids[i] for i in ids], config.changed_token_weight)
        longest = max(map(len, ids.values()))
        prompt = prompts.add_conversation((row.prompt, images), config.max_length - longest, row.id)
        entries += [_Entry(prompt, first + i, ids[i], w, i == 0) for i, w in zip(ids, weights, strict=True)]
    for i in answers:
        for text in texts_between_images(config, vlm, row, i, len(images)) if row.images_of(i) else ():
            shown = (*images, *(image.source for image in row.images_of(i)))
            prompt = prompts.add_text(text, shown, row.id)
            entries.append(_Entry(prompt, first + i, text.token_ids, torch.ones(len(text.token_ids)), i == 0))
    return entries


def texts_between_images(config: DPOConfig, vlm: VLM, row: Preference, answer: int, num_images: int) -> list[AnswerText]:
    """Return the texts of an answer that shows images. Raises InputError if dpo cannot learn it."""
    if config.changed_token_weight != 1:
        raise InputError(f"row {row.id}: changed_token_weight compares texts, and an answer shows images: leave one of them out")
    if is_blank(row.answers[answer]):
        raise InputError(
            f"row {row.id}: an answer is images alone, and dpo learns texts: images are read, not predicted; drop the row, or "
            "compare such answers with `mmrlhf reward`"
        )
    turn = answer_turn(row.answers[answer], row.images_of(answer))
    return answer_texts(vlm.chat, row.prompt, turn, num_images, row_id=row.id)


def answer_lengths(
    config: DPOConfig,
    vlm: VLM,
    lengths: PromptLengths,
    row: Preference,
    images: tuple[ImageSource, ...],
    answers: Sequence[int],
) -> list[int]:
    """Return the tokens of the prompt with its longest answer of text, and of each with images."""
    text_lengths, measured = [], []
    for i in answers:
        if not row.images_of(i):
            text_lengths.append(len(vlm.answer_token_ids(row.prompt, row.answers[i], len(images), row_id=row.id)))
            continue
        last = texts_between_images(config, vlm, row, i, len(images))[-1]
        shown = [*images, *(image.source for image in row.images_of(i))]
        measured.append(lengths.count_rendered(last.before, shown) + len(last.token_ids))
    return [lengths.count(row.prompt, images) + max(text_lengths), *measured] if text_lengths else measured


def _token_weights(answer_ids: Sequence[Tensor], changed_token_weight: float) -> list[Tensor]:
    """Return the weight of each token [T] of a row's answers, two unless all weigh 1."""
    weights = [torch.ones(len(ids)) for ids in answer_ids]
    if changed_token_weight != 1 and len(answer_ids) == 2:
        chosen, rejected = answer_ids
        for row_weights, is_changed in zip(weights, changed_tokens(chosen.tolist(), rejected.tolist()), strict=True):
            row_weights[is_changed] = changed_token_weight
    return weights
