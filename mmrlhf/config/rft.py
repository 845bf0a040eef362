"""Configuration of the stage rft."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrlhf.config.base import Count, NonNegative, NonNegativeInt, Positive, RolloutConfig, settings
from mmrlhf.config.policy_eval import PolicyEvalConfig
from mmrlhf.config.rewards import RewardTermsConfig


@settings
class RFTConfig(RewardTermsConfig, RolloutConfig, PolicyEvalConfig):
    """Fine-tune a model on the best of its own answers, in rounds of sampling, scoring and sft."""

    num_rounds: Count = 1
    """Rounds of sampling and fine-tuning; each samples from the last round's policy."""
    start_from: Literal["last", "base"] = "last"
    """Weights that each round's fine-tuning starts from: those of the `last` round (expert
    iteration, ReST), or the `base` again (STaR)."""
    num_generations: Count = 8
    """Answers sampled per prompt in each round."""
    max_kept_per_prompt: Count | None = 1
    """Maximum answers to a prompt that are learnt, the best first: 1 is best-of-n; none: all that
    qualify. Repeated, empty and cut-off answers are never learnt."""
    min_score: float | None = None
    """Lowest sum of rewards of an answer that is learnt."""
    top_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learn only answers whose score is among this share of a round's highest; ties at the edge
    count."""
    min_margin: NonNegative | None = None
    """Minimum score of a learnt answer above the mean of its prompt's answers."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together reach this probability."""
    top_k: NonNegativeInt = 0
    """Sample from this many of the most likely tokens; 0: from all."""
    tuning: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter and merges it after each round; `full` trains the language model.
    Both write a complete model."""
    num_train_epochs: Positive = 1.0
    """Passes over a round's kept answers; ignored if max_steps is set."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Steps of fine-tuning in a round; -1: until num_train_epochs are complete, 0: none."""
    load_best_model_at_end: bool = False
    """End each round with its best policy, from which the next one samples, and the run with the
    best of all rounds."""
    num_sample_generations: NonNegativeInt = 4
    """Answers printed and saved in each round."""
