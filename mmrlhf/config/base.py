"""Types of settings, and the settings that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, str_min_length=1)

Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16", "nf4"]
Overlong = Literal["drop", "error"]
FactsPosition = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EngineConfig:
    """How a model runs; none of these settings changes results."""

    share_prefix: Literal["auto", "off"] = "auto"
    """`auto` runs each prompt once for all its answers, if a check finds that the results agree
    with the naive forward pass; `off` never does."""
    micro_batch_tokens: Count = 16384
    """Maximum tokens per forward pass; a prompt counts once for all its answers. Halved when a GPU
    runs out of memory."""
    activation_checkpointing: bool = False
    """Recompute the language model's layers in the backward pass: less memory, about a third more
    time."""
    feature_memory_gib: Positive = 2.0
    """Memory for image features, on the GPU (if there is one) and again on the host."""
    feature_cache_dir: str | None = None
    """Folder that keeps image features between runs (`mmrlhf encode` fills it)."""
    feature_disk_gib: Positive = 100.0
    """Maximum size of feature_cache_dir; the least recently used features are removed."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PixelConfig:
    """How many pixels of an image the model is shown; give every stage the same."""

    min_pixels: Count | None = None
    """Least pixels of an image, which smaller ones are enlarged to (Qwen-VL); by default as the
    model's processor has it."""
    max_pixels: Count | None = None
    """Most pixels of an image, which larger ones are shrunk to (models with image sizes or tiles
    that vary); by default as the model's processor has it."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetConfig:
    """Where the images of a dataset are, and which split to read."""

    dataset_train_split: str = "train"
    """Split to read if the dataset has several."""
    image_folder: str | None = None
    """Folder that relative image paths start from; by default the folder of the dataset file."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FactsConfig(DatasetConfig):
    """A dataset with an optional facts file."""

    facts_file: str | None = None
    """Facts by image name: LLaVA-RLHF's image_to_caption.json, or JSONL with `image`, `captions`,
    `objects`, ..."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingConfig:
    """How answers are sampled; the defaults are greedy."""

    temperature: NonNegative = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together reach this probability."""
    top_k: NonNegativeInt = 0
    """Sample from this many of the most likely tokens; 0: from all."""
    min_new_tokens: NonNegativeInt = 0
    """Minimum tokens of an answer."""
    stop: str | None = None
    """Text that ends an answer; it is not part of the answer."""
    num_generations: Count = 1
    """Answers per prompt; measuring diversity within a prompt needs several."""
    response_length: Count = 128
    """Maximum tokens of an answer."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RewardModelConfig(FactsConfig, EngineConfig, PixelConfig):
    """A trained reward model and the dataset that it scores."""

    reward_model_path: str
    """Directory that the reward stage wrote."""
    base_model_name_or_path: str | None = None
    """Where the reward model's base is now, if it has moved since training."""
    batch_size: Count = 32
    """Rows per batch."""
    max_length: Count = 2048
    """Maximum tokens of a reward prompt plus answer."""
