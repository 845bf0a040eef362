"""Configuration of direct preference optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrlhf.config.base import NonNegative, Positive, settings
from mmrlhf.config.policy_eval import PolicyEvalConfig


@settings
class DPOConfig(PolicyEvalConfig):
    """Train a policy directly on preferences, without a reward model or sampling."""

    learning_rate: Positive = 1e-5
    """Peak learning rate of AdamW."""
    beta: Positive = 0.1
    """Strength of the pull to the reference: a log-ratio of policy and reference times beta is a
    reward. For ipo, its tau; for sigmoid_norm, use a larger one (2 to 10)."""
    loss_type: str = "sigmoid"
    """Losses of a comparison, separated by commas and added up: sigmoid (DPO), sigmoid_norm (log-
    ratios per token), ipo, hinge, robust, bco_pair, and sft (the best answer's negative
    log-likelihood per token)."""
    loss_weights: str | None = None
    """Weights of these losses, separated by commas, such as `0.8,0.2,1` for
    sigmoid,bco_pair,sft (MPO); by default 1 each."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed fraction of flipped labels: conservative DPO for sigmoid and sigmoid_norm, unbiased
    for robust."""
    changed_token_weight: Positive = 1.0
    """Weight of the tokens that differ between the two answers of a pair, in their log-probs
    (DDPO); RLHF-V uses 5 on pairs of an answer and its correction."""
    image_pairs: Literal["none", "crop", "other"] = "none"
    """Also compare the best answer with itself about another picture (mDPO): a small `crop` of the
    row's pictures at their size, or those of an `other` row."""
    image_pair_coefficient: NonNegative = 1.0
    """Weight of the comparisons of pictures."""
    anchor_coefficient: NonNegative = 0.0
    """Weight of -log sigmoid of the better answer's reward, which keeps it from falling; 1 in
    mDPO."""
    eval_dataset_name: str | None = None
    """Held-out preferences: their loss, accuracy and margins are measured before the first step,
    every eval_steps and after the last."""
    precompute_ref_log_probs: bool = True
    """Compute the reference's log-probs once before training and keep them in output_dir; false:
    in every step."""
