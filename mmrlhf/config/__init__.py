"""Typed, frozen configurations: every setting of a command, with its type, range, default and help.

A configuration is a flat dataclass whose fields are spelled as in TRL. `loader.load_config`
fills it from a YAML file and then from the command line. The docstring of a field is its help text.
"""

from mmrlhf.config.algorithm import AlgorithmConfig
from mmrlhf.config.arena import ArenaConfig, ArenaJudgeConfig, PairsConfig
from mmrlhf.config.base import (
    STRICT,
    DatasetConfig,
    Dtype,
    EngineConfig,
    FactsConfig,
    FactsPosition,
    PixelConfig,
    RewardModelConfig,
    RolloutConfig,
    SamplingConfig,
)
from mmrlhf.config.commands import (
    CalibrateClipConfig,
    CalibrateConfig,
    CalibrateVLMConfig,
    EncodeConfig,
    EvalConfig,
    ExportConfig,
    GenerateConfig,
    RewardEvalConfig,
    ScoreConfig,
    ServeConfig,
)
from mmrlhf.config.dpo import DPOConfig
from mmrlhf.config.feedback import FeedbackConfig
from mmrlhf.config.labeling import LabelConfig
from mmrlhf.config.policy_eval import PolicyEvalConfig, SelectionConfig
from mmrlhf.config.ppo import PPOConfig
from mmrlhf.config.rewards import RewardTermsConfig, VerifierConfig
from mmrlhf.config.rft import RFTConfig
from mmrlhf.config.rollout_engine import RolloutEngineConfig
from mmrlhf.config.scenes import ScenesConfig
from mmrlhf.config.sft import SFTConfig
from mmrlhf.config.training import RewardConfig, TrainConfig

RewardedConfig = PPOConfig | RFTConfig
"""The configuration of a stage that samples answers and rewards them."""
VerifyingConfig = RewardedConfig | FeedbackConfig
"""The configuration of a stage that verifies the claims of answers with a model of its own."""

__all__ = [
    "STRICT",
    "AlgorithmConfig",
    "ArenaConfig",
    "ArenaJudgeConfig",
    "CalibrateClipConfig",
    "CalibrateConfig",
    "CalibrateVLMConfig",
    "DPOConfig",
    "DatasetConfig",
    "Dtype",
    "EncodeConfig",
    "EngineConfig",
    "EvalConfig",
    "ExportConfig",
    "FactsConfig",
    "FactsPosition",
    "FeedbackConfig",
    "GenerateConfig",
    "LabelConfig",
    "PPOConfig",
    "PairsConfig",
    "PixelConfig",
    "PolicyEvalConfig",
    "RFTConfig",
    "RewardConfig",
    "RewardEvalConfig",
    "RewardModelConfig",
    "RewardTermsConfig",
    "RewardedConfig",
    "RolloutConfig",
    "RolloutEngineConfig",
    "SFTConfig",
    "SamplingConfig",
    "ScenesConfig",
    "ScoreConfig",
    "SelectionConfig",
    "ServeConfig",
    "TrainConfig",
    "VerifierConfig",
    "VerifyingConfig",
]
