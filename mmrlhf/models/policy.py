"""Load a policy: a base model, with an adapter if one is given."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from mmrlhf.config import EngineConfig, PixelConfig, TrainConfig
from mmrlhf.models.adapter_files import require_adapter
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.models.lora_layers import PROJECTOR, VISION_TOWER
from mmrlhf.models.vlm import VLM
from mmrlhf.records import InputError


@contextlib.contextmanager
def load_policy(
    model_name_or_path: str,
    adapter_path: str | None,
    dtype: str = "float32",
    engine: EngineConfig | None = None,
    pixels: PixelConfig | None = None,
) -> Iterator[VLM]:
    """Load a model and yield it, with its adapter if one is given.

    Raises InputError if the adapter is missing, damaged, or belongs to another base.
    """
    if adapter_path is not None:
        check_is_adapter(Path(adapter_path))
    vlm = load(model_name_or_path, dtype, engine=engine, pixels=pixels)
    if adapter_path is None:
        yield vlm
        return
    check_same_base(Path(adapter_path), vlm)
    adapters = Adapters(vlm)
    adapters.load("policy", Path(adapter_path), trainable=False)
    with adapters.use("policy"):
        yield vlm


def check_adapter_setting(adapter_path: str | None, tuning: str) -> None:
    """Raise InputError, before a model is loaded, if a stage cannot start from an adapter."""
    if adapter_path is None:
        return
    if tuning == "full":
        raise InputError("adapter_path is for tuning lora: merge it first with `mmrlhf export --merge`, and tune that model")
    check_is_adapter(Path(adapter_path))


def check_tuning(tuning: str, dtype: str) -> None:
    """Raise InputError for weights that training cannot change in their precision."""
    if tuning == "full" and dtype != "float32":
        raise InputError("tuning full needs dtype float32: small steps vanish in bfloat16 weights; or use tuning lora")


def add_trained_adapter(adapters: Adapters, name: str, config: TrainConfig) -> None:
    """Add the adapter that a stage trains: a copy of the one at adapter_path, or a new one.

    Prints which parts outside the language model are trained, and their cost. Raises InputError if
    the adapter is damaged or belongs to another base.
    """
    if config.adapter_path is None:
        adapters.add(name, config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
    else:
        check_same_base(Path(config.adapter_path), adapters.vlm)
        adapters.load(name, Path(config.adapter_path), trainable=True)
    num_weights = adapters.count_weights(name)
    if num_weights[PROJECTOR] or num_weights[VISION_TOWER]:
        counts = ", ".join(f"{count:,} in the {part}" for part, count in num_weights.items() if count)
        print(
            f"note: the adapter trains {counts}; the feature cache holds the base's features, so every forward pass under the "
            "adapter encodes its images again"
        )


def add_reference(adapters: Adapters, config: TrainConfig, *, has_adapter: bool = False) -> Role:
    """Return the frozen reference of a policy that `add_trained_adapter` added.

    It is the base alone, or with a copy of the adapter at adapter_path. With `has_adapter` it
    always has an adapter, which starts as a copy of the policy's.
    """
    if config.adapter_path is None and not has_adapter:
        return Role(adapters, None)
    return add_frozen_copy(adapters, "reference", config)


def add_frozen_copy(adapters: Adapters, name: str, config: TrainConfig) -> Role:
    """Add a frozen copy of the adapter that `add_trained_adapter` added, before it is trained."""
    if config.adapter_path is not None:
        adapters.load(name, Path(config.adapter_path), trainable=False)
    else:
        adapters.add(name, config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
        for parameter in adapters.parameters(name).values():
            parameter.requires_grad_(False)
    return Role(adapters, name)


def check_is_adapter(path: Path) -> None:
    """Raise InputError for common mistakes: a ppo run's directory, or a reward model's."""
    if (path / "reward.json").is_file():
        raise InputError(
            f"adapter {path} is a reward model, which scores answers but cannot write them: give a ppo run's policy folder"
        )
    require_adapter(path)


def check_same_base(path: Path, vlm: VLM) -> None:
    """Raise InputError if the adapter was trained on other weights.

    Equal shapes are not enough: an adapter of another model with the same architecture would load
    and produce nonsense.
    """
    base_file = path / "base.json"
    if not base_file.is_file():
        print(f"note: adapter {path} does not say which weights it was trained on (no base.json): only shapes can be compared")
        return
    try:
        metadata = json.loads(base_file.read_text(encoding="utf-8"))
        trained_fingerprint, base_name = metadata["base_fingerprint"], metadata["base"]
        quantised = "nf4" in (metadata.get("dtype"), vlm.dtype) and metadata.get("dtype", vlm.dtype) != vlm.dtype
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{base_file} cannot be read as the ppo stage wrote it: copy the adapter again") from None
    if quantised:
        print(
            f"note: adapter {path} was trained on {base_name} in {metadata['dtype']} and runs in {vlm.dtype}: not the same weights"
        )
    elif trained_fingerprint != vlm.fingerprint:
        raise InputError(f"adapter {path} was trained on {base_name}, and {vlm.name} holds other weights: give that model")
