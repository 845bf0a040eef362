"""mmrlhf: reduce object hallucination in vision-language models with RLHF.

`import mmrlhf` is fast: every name below is imported on first access. A stage is a function in a
module, such as `mmrlhf.sft.sft(SFTConfig(...))`; `mmrlhf.sft` is always the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.3.0"

_CONFIGS = (
    "DPOConfig", "EvalConfig", "FeedbackConfig", "GenerateConfig", "PPOConfig", "RewardConfig", "RFTConfig", "SFTConfig",
    "ScoreConfig",
)  # fmt: skip
_RECORDS = ("Claim", "Comparison", "Example", "Fact", "ImageSource", "InputError", "Message", "Preference", "Verdict")
_STAGES = ("demo", "dpo", "evaluate", "feedback", "generate", "ppo", "reward_model", "rft", "sft")

__all__ = [*_CONFIGS, *_RECORDS, *_STAGES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return import_module(f"mmrlhf.{name}")
    if name in _CONFIGS:
        return getattr(import_module("mmrlhf.config"), name)
    if name in _RECORDS:
        return getattr(import_module("mmrlhf.records"), name)
    raise AttributeError(f"module 'mmrlhf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
