"""Configuration of the stage sft."""

from __future__ import annotations

from typing import Literal

from mmrlhf.config.base import settings
from mmrlhf.config.policy_eval import PolicyEvalConfig


@settings
class SFTConfig(PolicyEvalConfig):
    """Fine-tune a model on `messages`, `prompt` + `completion`, or LLaVA conversations."""

    tuning: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter and merges it at the end; `full` trains the language model. Both
    write a complete model."""
    train_on: Literal["all", "last"] = "all"
    """Assistant turns of a conversation to learn: `all`, or the `last`, with the earlier ones as
    context."""
