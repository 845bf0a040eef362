"""Configuration of the demo's data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmrlhf.config.base import Count, Fraction, NonNegative, Positive, settings


@settings
class ScenesConfig:
    """The demo's data: the size of each split, the errors of its annotators, and the utility of an
    answer."""

    seed: int = 0
    """Seed of scenes, captions, facts and preferences. It was not tuned."""
    occluded_share: Fraction = 0.28
    """Fraction of objects in training scenes that are faded and partly covered."""
    sft_rows: Count = 8000
    """Rows to fine-tune on: three quarters descriptions, the rest short questions."""
    cooccurrence_bias: Fraction = 0.9
    """Fraction of captions with a trigger object that also name its absent partner."""
    pair_scenes: Count = 800
    """Scenes whose sampled answers are compared."""
    answers_per_scene: Annotated[int, Field(ge=2)] = 4
    """Answers per compared scene, sampled from the SFT model: half at temperature 1, half at
    hot_temperature."""
    hot_temperature: Positive = 1.5
    """Sampling temperature of the second half of the answers."""
    injected_share: Fraction = 0.3
    """Fraction of scenes where a description with injected errors replaces one answer."""
    false_claim_penalty: NonNegative = 4.0
    """Weight of a false claim relative to a true one in the utility that ranks answers; making no
    claim scores between the two."""
    min_utility_gap: NonNegative = 1.0
    """Minimum difference in utility; closer pairs are dropped."""
    annotator_error: Fraction = 0.1
    """Fraction of pairs with a flipped label."""
    held_out_pairs: Count = 400
    """Pairs for measuring reward accuracy, flipped labels included."""
    fact_recall: Fraction = 0.8
    """Probability that the facts include a truth."""
    fact_error_rate: Fraction = 0.05
    """Fraction of the facts that are wrong."""
    rl_scenes: Count = 1600
    """Scenes for the prompts of ppo."""
    selection_scenes: Count = 200
    """Scenes for evaluations during ppo."""
    held_out_scenes: Count = 1000
    """Scenes of the held-out split, which the final table reports."""
    ood_scenes: Count = 300
    """Scenes in each out-of-distribution split."""
    best_of_n: Count = 16
    """Samples from which best-of-n chooses."""
    best_of_n_scenes: Count = 500
    """The first held-out scenes, which best-of-n describes."""
