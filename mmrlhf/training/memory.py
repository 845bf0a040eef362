"""What a training stage holds in memory: counted before it runs, and measured while it does.

Weights, adapters and optimiser state are exact. Activations are an estimate, and so is everything that depends on the length of rows: prompts are
taken to be one picture and `PROMPT` tokens of text. What the CUDA context, fragmentation and the tower's own pass take (a few hundred MiB) is not
in it.
"""

from __future__ import annotations

import json
import resource
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from mmrlhf.config import PPOConfig, RewardConfig, SFTConfig, TrainConfig
from mmrlhf.models.families import family_of
from mmrlhf.models.image_features import GIB
from mmrlhf.models.vision_encoder import language_parameter_prefixes
from mmrlhf.models.vlm import MAX_LOGITS
from mmrlhf.records import InputError

PROMPT_TOKENS = 128
"""Tokens of text in a prompt that is planned for, facts included."""
DEFAULT_IMAGE_TOKENS = 1024
"""Image tokens of a picture where the architecture does not say."""
ANSWER_TOKENS = 256
"""Tokens of an answer in sft and reward."""
NF4_BYTES_PER_WEIGHT = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits: half a byte, and a float for the scale of its block of 64 (Dettmers et al. 2023, without their second quantisation)."""


@dataclass(frozen=True)
class MemoryItem:
    """What takes memory, how many bytes, and how they are counted."""

    name: str
    num_bytes: int
    calculation: str


def build_meta_model(name: str) -> PreTrainedModel:
    """A model without weights, from its config.json: a checkpoint directory or Hub id. Raises InputError."""
    try:
        config = AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise InputError(
            f"model {name}: its architecture cannot be read ({reason}): give a checkpoint directory or a Hub id"
        ) from None


def num_image_tokens(model: PreTrainedModel) -> int:
    """Placeholders of one picture, where all pictures have as many."""
    config = model.config
    if num_tokens := getattr(config, "mm_tokens_per_image", None) or getattr(config, "image_seq_length", None):
        return int(num_tokens)
    vision_config = getattr(config, "vision_config", None)
    if family_of(config).has_one_token_per_patch and vision_config is not None:
        return int((vision_config.image_size // vision_config.patch_size) ** 2)
    return DEFAULT_IMAGE_TOKENS


def estimate_memory(config: TrainConfig, model: PreTrainedModel) -> list[MemoryItem]:
    """What each part of a stage's memory takes, in bytes."""
    text_config = model.config.get_text_config()
    hidden_size, num_layers, bytes_per_value = (
        int(text_config.hidden_size),
        int(text_config.num_hidden_layers),
        4 if config.dtype == "float32" else 2,
    )
    prefixes = language_parameter_prefixes(model)
    linear_layers = _linear_layers(model)
    linear_numel = {id(m.weight): m.in_features * m.out_features for m in linear_layers.values()}  # 4-bit weights hide their size
    parameter_numel = {n: linear_numel.get(id(p), p.numel()) for n, p in model.named_parameters()}  # tied weights count once
    num_language_weights = sum(count for n, count in parameter_numel.items() if n.startswith(prefixes))
    num_weights = sum(parameter_numel.values())
    num_nf4_weights = sum(linear_numel.values()) if config.dtype == "nf4" else 0
    items = [
        MemoryItem(
            "base weights",
            int((num_weights - num_nf4_weights) * bytes_per_value + num_nf4_weights * NF4_BYTES_PER_WEIGHT),
            f"{num_weights:,} x {config.dtype}",
        )
    ]

    roles = (
        ["policy", "value", "reward"] if isinstance(config, PPOConfig) else [type(config).__name__.removesuffix("Config").lower()]
    )
    if isinstance(config, PPOConfig):
        if config.advantage_estimator == "grpo":
            roles.remove("value")
        reward_model_paths = [path.strip() for path in (config.reward_model_path or "").split(",") if path.strip()] or ["-"]
        separate_bases = {
            path: separate_base for path in reward_model_paths if (separate_base := _separate_base(path, config)) is not None
        }
        roles[-1:] = [f"reward_{i}" if i else "reward" for i in range(len(reward_model_paths) - len(separate_bases))]
        for path, (base, dtype) in separate_bases.items():
            count = sum(p.numel() for p in build_meta_model(base).parameters())
            bytes_per_weight = NF4_BYTES_PER_WEIGHT if dtype == "nf4" else 4 if dtype == "float32" else 2
            items.append(
                MemoryItem(f"base of {path}", int(count * bytes_per_weight), f"{count:,} x {dtype}: another than the policy's")
            )
    trained_roles = [role for role in roles if not role.startswith("reward")] or roles
    num_lora_weights = sum(
        (m.in_features + m.out_features) * config.lora_r
        for n, m in linear_layers.items()
        if _is_lora_target(n, config.lora_target_modules)
    )
    if isinstance(config, SFTConfig) and config.tuning == "full":
        num_trained_weights, trained_part = num_language_weights, "the language model"
    else:
        items.append(
            MemoryItem("adapters", num_lora_weights * 4 * len(roles), f"{', '.join(roles)}: {num_lora_weights:,} x float32 each")
        )
        num_trained_weights, trained_part = num_lora_weights * len(trained_roles), ", ".join(trained_roles)
    items.append(MemoryItem("gradients and AdamW", num_trained_weights * 12, f"{trained_part}: 12 bytes a weight"))

    # Lengths, and how many answers run at a time
    image_length = num_image_tokens(model)
    prompt_length, group_size = image_length + PROMPT_TOKENS, 1
    answer_length, batch_size = ANSWER_TOKENS, config.per_device_train_batch_size
    if isinstance(config, RewardConfig):
        group_size = 2
    if isinstance(config, PPOConfig):
        group_size, answer_length = config.num_generations, config.response_length
    group_length = prompt_length + group_size * answer_length
    num_prompts = max(1, min(batch_size, config.micro_batch_tokens // group_length))
    num_answers = (
        num_prompts * group_size
        if group_length <= config.micro_batch_tokens
        else max(1, (config.micro_batch_tokens - prompt_length) // answer_length)
    )
    num_tokens = num_prompts * prompt_length + num_answers * answer_length

    feature_bytes = min(batch_size * image_length * hidden_size * bytes_per_value, int(config.feature_memory_gib * GIB))
    items.append(
        MemoryItem(
            "picture features of a step",
            feature_bytes,
            f"{batch_size} x {image_length} tokens x {hidden_size}; the cache may grow to feature_memory_gib",
        )
    )
    num_kv_heads = int(getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads)
    head_dim = int(getattr(text_config, "head_dim", None) or hidden_size // text_config.num_attention_heads)
    kv_bytes_per_token = 2 * num_layers * num_kv_heads * head_dim * bytes_per_value
    kv_cache_bytes = (num_prompts * prompt_length + num_answers * (prompt_length + answer_length)) * kv_bytes_per_token
    items.append(
        MemoryItem(
            "keys and values",
            kv_cache_bytes,
            f"{num_prompts} prompts, {num_answers} answers with a copy of theirs each; {kv_bytes_per_token:,} bytes a token",
        )
    )
    values_per_token = 8 * hidden_size + 2 * num_kv_heads * head_dim + 4 * int(text_config.intermediate_size)
    layer_bytes = num_tokens * values_per_token * bytes_per_value
    if config.activation_checkpointing:
        items.append(
            MemoryItem(
                "activations",
                layer_bytes + num_tokens * num_layers * hidden_size * bytes_per_value,
                f"{num_tokens:,} tokens: one layer whole, of {num_layers} the input",
            )
        )
    else:
        items.append(
            MemoryItem(
                "activations",
                layer_bytes * num_layers,
                f"{num_tokens:,} tokens x {num_layers} layers x {values_per_token:,} values",
            )
        )
    items.append(MemoryItem("logits", 3 * MAX_LOGITS * 4, "one chunk, its log-probs and its gradient"))
    return items


def _separate_base(path: str, config: PPOConfig) -> tuple[str, str] | None:
    """The base and precision of a reward model that does not run on the policy's; None where it does, or is not there yet."""
    metadata_file = Path(path) / "reward.json"
    if not metadata_file.is_file():
        return None
    metadata = json.loads(metadata_file.read_text())
    base = str(Path(path) / "model") if metadata["base"] == "model" else str(metadata["base"])
    name = config.model_name_or_path
    shares_base = base == (str(Path(name).resolve()) if Path(name).is_dir() else name) and metadata["dtype"] == config.dtype
    return None if shares_base else (base, str(metadata["dtype"]))


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The language model's linear layers by name, without the head."""
    decoder = model.base_model.get_decoder()
    return {n: m for n, m in decoder.named_modules() if isinstance(m, nn.Linear)}


def _is_lora_target(name: str, target_modules: str) -> bool:
    return target_modules == "all-linear" or name.rsplit(".", 1)[-1] in {word.strip() for word in target_modules.split(",")}


def peak_memory() -> int:
    """Most bytes that were in use so far: on the GPU, or, without one, by the whole process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
