"""Rows of supervised fine-tuning mixed into ppo's updates, to reduce forgetting.

InstructGPT's PPO-ptx (Ouyang et al. 2022, equation 2) adds `ptx_coef` times the log-likelihood of
such rows to the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf.config import PPOConfig
from mmrlhf.datasets import read_examples, subset
from mmrlhf.files.tables import split_of
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example
from mmrlhf.training.row_checks import KeptChecks, Length, usable_indices
from mmrlhf.training.row_order import batch_indices
from mmrlhf.training.run import Run
from mmrlhf.training.sft_batch import SFTBatch, build_sft_batch, example_lengths

SEED_OFFSET = 29
"""Added to the seed, so that rows and prompts of the same file come in different orders."""


@dataclass(frozen=True)
class PTXBatch:
    """The rows that an update of this process mixes in; `num_tokens` is over all processes."""

    rows: Sequence[Example]
    batch: SFTBatch
    num_tokens: Tensor


class PTXRows:
    """The rows to mix in, in a seeded order that depends only on the number of the update."""

    def __init__(self, config: PPOConfig, vlm: VLM, rows: Sequence[Example], accelerator: Accelerator) -> None:
        self._config, self._vlm, self._rows, self._accelerator = config, vlm, rows, accelerator

    def batch(self, update: int) -> PTXBatch | None:
        """Return this process's rows of update number `update` of the run, or None if it has none.

        All processes together take one row for each prompt of the update.
        """
        config, accelerator = self._config, self._accelerator
        num_rows = config.per_device_train_batch_size * accelerator.num_processes // config.num_mini_batches
        indices = batch_indices(update, num_rows, len(self._rows), config.seed + SEED_OFFSET)
        rows = [self._rows[i] for i in indices[accelerator.process_index :: accelerator.num_processes]]
        batch = build_sft_batch(self._vlm, rows, config.max_length, "all") if rows else None
        own_tokens = batch.is_learnt_NT.sum().float() if batch else torch.zeros((), device=self._vlm.device)
        num_tokens = accelerator.reduce(own_tokens, "sum")
        return PTXBatch(rows, batch, num_tokens) if batch else None


def read_ptx_rows(config: PPOConfig, run: Run) -> Sequence[Example]:
    """Read the rows of ptx_dataset_name, and record them in the run. Raises InputError."""
    name = str(config.ptx_dataset_name)
    rows = read_examples(name, split_of(name, config.dataset_train_split), config.image_folder, require_answer=True)
    run.claim_rows(rows, "ptx")
    return rows


def usable_ptx_rows(config: PPOConfig, vlm: VLM, rows: Sequence[Example], run: Run) -> Sequence[Example]:
    """Return the rows that are usable for training. Raises InputError as `usable_indices` does."""
    lengths, kept = PromptLengths(vlm, config.max_pixels), KeptChecks(run.path / "ptx_rows.json", run.add_file)

    def lengths_of(example: Example) -> list[Length]:
        return example_lengths(vlm, lengths, example, config.max_length, "all")

    name = str(config.ptx_dataset_name)
    return subset(rows, usable_indices(rows, config, name, lengths_of, lengths, run.console, kept))
