"""The rows of a reward model's training step: with claims injected, facts dropped or replaced."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmrlhf.config import RewardConfig
from mmrlhf.facts.corrupt import augment_facts
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import Fact, Preference
from mmrlhf.rewards.probes import make_training_pair
from mmrlhf.rewards.reward_model import RewardModel
from mmrlhf.training.reward_model.measured_rows import to_answer_group
from mmrlhf.training.row_checks import group_length


def training_rows(
    config: RewardConfig,
    model: RewardModel,
    lengths: PromptLengths,
    rows: Sequence[Preference],
    other_facts: Sequence[Fact],
    step: int,
) -> list[Preference]:
    """Return a step's rows as passed to the model; they depend only on seed, step and row.

    `other_facts` are about other images. A row that these changes make too long stays unchanged.
    """
    augmented = []
    for row in rows:
        changed = _maybe_inject_claim(config, row, other_facts, step)
        changed_facts = _augment_facts(config, changed, other_facts, step)
        is_longer = bool(config.fact_noise) or changed is not row  # dropped facts only make it shorter
        changed = replace(changed, facts=changed_facts)
        if is_longer and group_length(model, lengths, to_answer_group(changed)).is_over:
            changed = row
        augmented.append(changed)
    return augmented


def _maybe_inject_claim(config: RewardConfig, row: Preference, other_facts: Sequence[Fact], step: int) -> Preference:
    """Return the row or, with probability `injected_claim_rate`, a pair with an injected claim."""
    rng = np.random.default_rng([config.seed, 13, step, zlib.crc32(row.id.encode())])
    if rng.random() >= config.injected_claim_rate or row.answer_images:
        return row
    return make_training_pair(row, other_facts, rng) or row  # None if its facts allow no false claim


def _augment_facts(config: RewardConfig, row: Preference, other_facts: Sequence[Fact], step: int) -> tuple[Fact, ...]:
    """Return the row's facts for a training step: some dropped, some replaced by noise."""
    if config.facts == "none" or not (config.fact_dropout or config.fact_noise):
        return row.facts
    rng = np.random.default_rng([config.seed, 17, step, zlib.crc32(row.id.encode())])
    return augment_facts(row.facts, other_facts, config.fact_dropout, config.fact_noise, rng)
