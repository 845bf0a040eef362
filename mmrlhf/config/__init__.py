"""Typed, frozen configurations: every setting of a command, with its type, range, default and help.

A configuration is a flat dataclass whose fields are spelled as in TRL. `config_loader.load_config`
fills it from a YAML file and then from the command line. The docstring of a field is its help text.
"""

from mmrlhf.config.base import (
    STRICT,
    DatasetConfig,
    Dtype,
    EngineConfig,
    FactsConfig,
    FactsPosition,
    PixelConfig,
    RewardModelConfig,
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
)
from mmrlhf.config.scenes import ScenesConfig
from mmrlhf.config.training import PPOConfig, RewardConfig, SFTConfig, TrainConfig

__all__ = [
    "STRICT",
    "CalibrateClipConfig",
    "CalibrateConfig",
    "CalibrateVLMConfig",
    "DatasetConfig",
    "Dtype",
    "EncodeConfig",
    "EngineConfig",
    "EvalConfig",
    "ExportConfig",
    "FactsConfig",
    "FactsPosition",
    "GenerateConfig",
    "PPOConfig",
    "PixelConfig",
    "RewardConfig",
    "RewardEvalConfig",
    "RewardModelConfig",
    "SFTConfig",
    "SamplingConfig",
    "ScenesConfig",
    "ScoreConfig",
    "TrainConfig",
]
