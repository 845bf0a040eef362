"""Read a saved LoRA adapter with its whole configuration, or refuse it and name the setting.

PEFT's configuration gives an adapter's layers, each with its rank and scale. The rank of a layer is
that of its tensors. Every setting that changes outputs is applied, or the adapter is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmrlhf.files.rows import is_finite_number
from mmrlhf.models.finite import check_finite
from mmrlhf.records import InputError
from mmrlhf.text.printable import first_line

MAX_CONFIG_BYTES = 10_000_000
MAX_PATTERN_LENGTH = 1000
MAX_PATTERN_CHOICES = 4
"""Limit on repetitions and alternatives in a pattern: matching time is exponential in them."""
ALTERNATIVES = re.compile(r"\((?:\?:)?((?:[\w|-]|\\\.)*)\)")
"""A group in a pattern that only has names: `(q_proj|v_proj)`, `(?:0|1)`."""
TAKEN = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")
"""Settings that are applied."""
WITHOUT_EFFECT = (
    "peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",  # the tensors say which layers
    "lora_dropout", "fan_in_fan_out", "runtime_config", "megatron_core", "qalora_group_size", "init_lora_weights",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying", "lora_dtype", "lorap_lr_ratio",
)  # fmt: skip
"""Settings that do not affect the outputs of a saved adapter on linear layers."""
INITIALISATIONS_OF_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of `init_lora_weights` values that also change the base's weights."""
TENSOR_NAMES = ("A.weight", "B.weight", "A.bias", "B.bias", "magnitude_vector.weight")
"""Suffixes after `.lora_` in the names of a layer's tensors."""
LAYER_PREFIX = re.compile(r"(model\.)?(language_model\.)?(model\.)?(text_model\.)?(?=layers\.)")
"""Text before a layer's number in the names of language models, old ones included."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter's tensors by their names in PEFT without the adapter's name, and its settings."""

    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]
    """Rank of each layer, by the layer's name in the model."""
    alphas: Mapping[str, float]
    settings: Mapping[str, bool]
    """Arguments of `LoraConfig` for all layers: use_rslora, use_dora, lora_bias."""

    @property
    def lora_arguments(self) -> dict[str, Any]:
        """The arguments of `LoraConfig`, except target modules: patterns name layers in full."""
        r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (self.ranks, self.alphas))
        return {
            "r": r,
            "lora_alpha": alpha,
            "rank_pattern": {layer: rank for layer, rank in self.ranks.items() if rank != r},
            "alpha_pattern": {layer: value for layer, value in self.alphas.items() if value != alpha},
            **self.settings,
        }


def require_adapter(directory: Path) -> None:
    """Raise InputError if a directory contains no adapter, and name common mistakes."""
    if (directory / "adapter_model.safetensors").is_file():
        return
    if (directory / "adapter_model.bin").is_file():
        raise InputError(
            f"adapter {directory} is a pickle (adapter_model.bin), which could run code: save it as safetensors with PEFT"
        )
    if (directory / "policy" / "adapter_model.safetensors").is_file():
        raise InputError(f"adapter {directory} holds no adapter_model.safetensors: give {directory / 'policy'}")
    raise InputError(
        f"adapter {directory} does not exist or holds no adapter_model.safetensors: give the policy folder of a finished "
        "ppo run, or another adapter in PEFT's format"
    )


def read_adapter(directory: Path, decoder_name: str, layers: Set[str], model_name: str) -> SavedAdapter:
    """Read an adapter for a model with these linear layers, in its language model `decoder_name`
    and elsewhere.

    Raises InputError if it cannot be read, has settings or layers that cannot be used, or does not
    fit.
    """
    require_adapter(directory)
    config = _read_config(directory)
    _refuse_unusable_settings(directory, config)
    try:
        saved = load_file(directory / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        reason = first_line(error)
        raise InputError(f"adapter {directory} cannot be loaded ({reason}): copy it again, or train it again") from None
    if config.get("bias", "none") != "none" and any(key.endswith(".bias") and ".lora_" not in key for key in saved):
        raise InputError(
            f"adapter {directory} has bias {config['bias']!s:.50} and biases of the base, which all roles share: merge it into "
            "its base with PEFT"
        )
    check_finite(saved.items(), f"adapter {directory}")
    tensors, ranks, alphas = {}, {}, {}
    for key, tensor in saved.items():
        path = key.removeprefix("base_model.model.")
        saved_layer, separator, suffix = path.partition(".lora_")
        layer = f"{decoder_name}.{LAYER_PREFIX.sub('', saved_layer, count=1)}" if LAYER_PREFIX.match(saved_layer) else saved_layer
        if not separator or layer not in layers:
            _refuse_layer(directory, path, saved_layer, model_name)
        if suffix == "magnitude_vector":  # DoRA's, as PEFT stores it
            suffix = "magnitude_vector.weight"
        if suffix not in TENSOR_NAMES or not tensor.is_floating_point():
            raise InputError(
                f"adapter {directory} holds {key} ({tensor.dtype}), which is not how PEFT writes it: save it with PEFT's save_pretrained"
            )
        tensors[f"base_model.model.{layer}.lora_{suffix}"] = tensor
        if suffix == "A.weight" and tensor.dim() == 2:
            ranks[layer] = len(tensor)
            expected_rank = _of_layer(config["rank_pattern"], saved_layer, config["r"])
            if expected_rank != len(tensor):
                raise InputError(
                    f"adapter {directory} says that {saved_layer} has rank {expected_rank} and its tensors have {len(tensor)}: "
                    "copy it again"
                )
            alphas[layer] = float(_of_layer(config["alpha_pattern"], saved_layer, config["lora_alpha"]))
    if not ranks:
        raise InputError(f"adapter {directory} holds no LoRA tensors: train it again")
    settings = {name: config[name] for name in ("use_rslora", "use_dora", "lora_bias")}
    return SavedAdapter(tensors, ranks, alphas, settings)


def _of_layer(pattern: Mapping[str, Any], layer: str, default: Any) -> Any:
    """Return the value of the first pattern that PEFT finds to match a layer, or the default."""
    return pattern.get(get_pattern_key(list(pattern), layer), default)


def _refuse_layer(directory: Path, path: str, layer: str, model_name: str) -> None:
    """Raise InputError for a tensor that belongs to no linear layer."""
    if re.search(r"vision|visual|image|projector|connector|multi_modal", path):
        raise InputError(
            f"adapter {directory} adapts {layer}, and the vision tower and the projector of {model_name} have no such linear "
            "layer: merge it into its base with the version of transformers that it was trained with"
        )
    if re.search(r"lm_head|embed_tokens|lora_embedding", path):
        raise InputError(
            f"adapter {directory} adapts {layer}, and only linear layers inside the model can be adapted: merge it "
            "into its base with PEFT"
        )
    if "lora_" not in path:
        raise InputError(
            f"adapter {directory} holds {path}, which is no LoRA tensor (bias, modules_to_save): merge it into its base with PEFT"
        )
    raise InputError(f"adapter {directory} was trained on another base than {model_name}: it adapts {layer}, which is not there")


def _read_config(directory: Path) -> dict[str, Any]:
    """Return the settings, with PEFT's defaults. Raises InputError if they cannot be read."""
    path = directory / "adapter_config.json"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(content)
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path} cannot be read ({reason}): copy the adapter again") from None
    defaults = {"r": 8, "lora_alpha": 8, "use_rslora": False, "use_dora": False, "lora_bias": False}
    taken = {name: default if config.get(name) is None else config[name] for name, default in defaults.items()}
    return config | taken | {name: config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}


def _refuse_unusable_settings(directory: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError for the first setting that cannot be applied."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"adapter {directory} has the peft_type {config.get('peft_type')!s:.50}: only LORA adapters can be used")

    def refuse(name: str, problem: str) -> None:
        raise InputError(f"adapter {directory} has {name} {config[name]!s:.50}, {problem}")

    initialisation = str(config.get("init_lora_weights"))
    if initialisation.startswith(INITIALISATIONS_OF_THE_BASE):
        refuse("init_lora_weights", "which changes the base as well: convert it to plain LoRA with PEFT")
    for name, value in config.items():
        if name not in (*TAKEN, *WITHOUT_EFFECT, "bias") and value:
            refuse(name, "which is not supported: merge it into its base with PEFT")
    for name in ("use_rslora", "use_dora", "lora_bias"):
        if type(config[name]) is not bool:
            refuse(name, "which must be true or false: correct adapter_config.json")
    for name, is_valid, expected in (
        ("r", lambda value: type(value) is int and value >= 1, "a rank of at least 1"),
        ("lora_alpha", is_finite_number, "a finite number"),
    ):
        pattern_name = "rank_pattern" if name == "r" else "alpha_pattern"
        pattern = config[pattern_name]
        if not isinstance(pattern, dict):
            raise InputError(f"adapter {directory} has a {pattern_name} that is not an object: correct adapter_config.json")
        if bad_keys := [key for key in pattern if not _is_usable_pattern(key)]:
            raise InputError(
                f"adapter {directory} has {bad_keys[0]!s:.50} in {pattern_name}, which is not a usable expression: "
                "name the layers in full in adapter_config.json"
            )
        if bad := [value for value in (config[name], *pattern.values()) if not is_valid(value)]:
            raise InputError(
                f"adapter {directory} has {name} {bad[0]!s:.50}, which must be {expected}: correct adapter_config.json"
            )


def _is_usable_pattern(key: str) -> bool:
    """Return whether an expression is valid and quick to match: few choices, in groups of names."""
    try:
        re.compile(key)
    except (re.error, RecursionError, OverflowError):
        return False
    groups = [group.split("|") for group in ALTERNATIVES.findall(key)]
    rest = ALTERNATIVES.sub("()", key)
    num_choices = len(groups) + len(re.findall(r"[*+?{]", rest))
    has_other_groups = rest.count("(") > len(groups) or re.search(r"\)[*+{]", rest)
    has_repeated_names = any(len(set(names)) < len(names) for names in groups)
    return len(key) <= MAX_PATTERN_LENGTH and num_choices <= MAX_PATTERN_CHOICES and not (has_other_groups or has_repeated_names)


def saved_tensors(parameters: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return an adapter's parameters by the names under which PEFT stores them."""
    return {saved_name(key, name): p.detach().cpu().contiguous() for key, p in parameters.items()}


def saved_name(key: str, name: str) -> str:
    """Return a parameter's name as PEFT reads it, without the adapter's name.

    PEFT writes DoRA's magnitudes without `.weight`; transformers finds them only with it.
    """
    return "base_model.model." + key.replace(f".{name}.", ".")


def check_same_shapes(
    directory: Path, saved: Mapping[str, Tensor], own: Mapping[str, torch.nn.Parameter], model_name: str
) -> None:
    """Raise InputError if an adapter's tensors differ from the model's in names or shapes."""
    if missing := sorted(set(own) - set(saved)):
        raise InputError(f"adapter {directory} lacks {len(missing)} of its tensors, {missing[0]} first: copy it again")
    if set(saved) != set(own) or any(saved[key].shape != own[key].shape for key in saved):
        raise InputError(f"adapter {directory} was trained on another base than {model_name}: its layers do not fit")
