"""Types of settings, and the settings that several commands share."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import InitErrorDetails, PydanticCustomError

from mmrlhf.records import InputError

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, str_min_length=1)

Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16", "nf4"]
Overlong = Literal["drop", "error"]
FactsPosition = Literal["before", "after"]


class SettingsError(InputError):
    """Settings that a configuration refuses. `errors` returns them as pydantic's does."""

    def __init__(self, name: str, error: ValidationError) -> None:
        self.errors = error.errors
        problems = [f"{'.'.join(map(str, problem['loc']))}: {_message(problem)}" for problem in error.errors()]
        super().__init__(f"{name}: {'; '.join(problems)}")


def _message(problem: Any) -> str:
    text = problem["msg"][:1].lower() + problem["msg"][1:]
    return text if problem["type"].startswith(("missing", "unexpected")) else f"{text}, not {problem['input']!r}"


Class = TypeVar("Class", bound=type)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def settings(cls: Class) -> Class:
    """Make a class a frozen dataclass that checks its fields. It raises SettingsError."""
    checked: Any = dataclass(frozen=True, kw_only=True, config=STRICT)(cls)
    check = checked.__init__

    @functools.wraps(check)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            check(self, *args, **kwargs)
        except ValidationError as error:
            raise SettingsError(cls.__name__, error) from None
        # pydantic takes True for 1.
        details: list[InitErrorDetails] = [
            {"type": PydanticCustomError("number_type", "Input should be a number"), "loc": (name,), "input": value}
            for name, value in kwargs.items()
            if isinstance(value, bool) and not isinstance(getattr(self, name), bool)
        ]
        if details:
            raise SettingsError(cls.__name__, ValidationError.from_exception_data(cls.__name__, details))

    checked.__init__ = init
    return checked  # type: ignore[no-any-return]


@settings
class EngineConfig:
    """How a model runs; none of these settings changes results."""

    share_prefix: Literal["auto", "off"] = "auto"
    """`auto` runs each prompt once for all its answers, if a check shows that the results agree
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


@settings
class PixelConfig:
    """Limits on the pixels of an image; give every stage the same."""

    min_pixels: Count | None = None
    """Minimum pixels of an image; smaller images are enlarged (Qwen-VL). By default, the
    processor's own limit."""
    max_pixels: Count | None = None
    """Maximum pixels of an image; larger images are shrunk (models with image sizes or tiles that
    vary). By default, the processor's own limit."""


@settings
class DatasetConfig:
    """The folder of a dataset's images, and the split to read."""

    dataset_train_split: str = "train"
    """Split to read if the dataset has several."""
    image_folder: str | None = None
    """Folder to which image paths are relative; by default the folder of the dataset file."""


@settings
class FactsConfig(DatasetConfig):
    """A dataset with an optional facts file."""

    facts_file: str | None = None
    """Facts by image name: LLaVA-RLHF's image_to_caption.json, or JSONL with `image`, `captions`,
    `objects`, ..."""


@settings
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


@settings
class RolloutConfig:
    """How a policy samples answers in training."""

    num_generations: Count = 4
    """Answers sampled per prompt in each step."""
    response_length: Count = 64
    """Maximum tokens of an answer."""
    min_new_tokens: NonNegativeInt = 0
    """Minimum tokens of an answer."""
    temperature: Positive = 1.0
    """Sampling temperature; training log-probs are computed at the same temperature."""


@settings
class RewardModelConfig(FactsConfig, EngineConfig, PixelConfig):
    """How a trained reward model scores a dataset."""

    base_model_name_or_path: str | None = None
    """New place of the reward model's base, if it has moved since training."""
    batch_size: Count = 32
    """Rows per batch."""
    max_length: Count = 2048
    """Maximum tokens of a reward prompt plus answer."""
