"""Estimate a training stage's memory before it runs, and measure its peak.

Weights, adapters and optimiser state are exact. Activations are estimates, as is everything that
depends on the length of rows: a prompt is assumed to be one image, in the largest number of tiles
of its family or with `max_pixels`, and `PROMPT_TOKENS` of text. Not included: the CUDA context,
fragmentation, the forward pass of a frozen vision tower (a few hundred MiB), and the buffers for
sorting in top-k and top-p.
"""

from __future__ import annotations

import contextlib
import math
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from mmrlhf.config import TrainConfig
from mmrlhf.models.families import family_of
from mmrlhf.models.fingerprints import language_parameter_prefixes
from mmrlhf.models.image_features import GIB
from mmrlhf.models.loading_turns import UNREADABLE
from mmrlhf.models.lora_layers import LANGUAGE_MODEL, VISION_TOWER, layers_by_part, target_layers
from mmrlhf.models.vlm import MAX_LOGITS_GPU
from mmrlhf.records import InputError
from mmrlhf.text.printable import first_line
from mmrlhf.training.stage_shape import StageShape, stage_shape

PROMPT_TOKENS = 128
"""Assumed text tokens of a prompt, facts included."""
DEFAULT_IMAGE_TOKENS = 1024
"""Assumed tokens of an image if the architecture does not give their number."""
NF4_BYTES_PER_WEIGHT = 0.5 + 4 / 64
"""Bytes of a 4-bit weight: half a byte, and a float32 scale per block of 64 weights (Dettmers et
al. 2023, without double quantisation)."""


@dataclass(frozen=True)
class MemoryItem:
    """One part of the memory: its name, its bytes, and how they are computed."""

    name: str
    num_bytes: int
    calculation: str


def build_meta_model(name: str) -> PreTrainedModel:
    """Build a model without weights from the config.json of a checkpoint directory or Hub id.

    Raises InputError if the architecture cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except UNREADABLE as error:
        reason = first_line(error)
        raise InputError(
            f"model {name}: its architecture cannot be read ({reason}): give a checkpoint directory or a Hub id"
        ) from None


def num_image_tokens(model: PreTrainedModel, max_pixels: int | None = None) -> int:
    """Return the number of tokens of the largest image.

    If the number depends on the image's size, it is that of `max_pixels`. Without this setting it
    is a default: images at the processors' own limits would leave no room for an answer.
    """
    config = model.config
    num_tokens = getattr(config, "mm_tokens_per_image", None) or getattr(config, "image_seq_length", None)
    vision_config = getattr(config, "vision_config", None)
    if not num_tokens and max_pixels and vision_config is not None and hasattr(vision_config, "spatial_merge_size"):
        return int(max_pixels // (vision_config.patch_size * vision_config.spatial_merge_size) ** 2)
    if not num_tokens and family_of(config).has_one_token_per_patch and vision_config is not None:
        num_tokens = (vision_config.image_size // vision_config.patch_size) ** 2
    return _in_most_tiles(config, int(num_tokens)) if num_tokens else DEFAULT_IMAGE_TOKENS


def _in_most_tiles(config: PretrainedConfig, tile_tokens: int) -> int:
    """Return the tokens of an image in its family's largest number of tiles, overview included."""
    if not (sizes := getattr(config, "image_grid_pinpoints", None)):
        return tile_tokens * family_of(config).max_tiles
    tile_tokens = int(tile_tokens * Fraction(getattr(config, "downsample_rate", None) or 1) ** 2)
    max_tiles = int(getattr(config, "vision_aspect_ratio", "").partition("anyres_max_")[2] or 99)
    grids = [[math.ceil(side / config.vision_config.image_size) for side in size] for size in sizes]
    # A new line ends each row of features.
    return max(tile_tokens * (1 + min(rows * columns, max_tiles)) + rows * math.isqrt(tile_tokens) for rows, columns in grids)


def estimate_memory(
    config: TrainConfig, model: PreTrainedModel, base_fingerprint: str = "", num_shards: int = 1
) -> list[MemoryItem]:
    """Return the parts of a stage's memory, in each of its processes.

    `base_fingerprint`, if the weights are known, identifies reward models that share the base: a
    path may have moved. `num_shards` processes share the base's decoder layers (`models.sharding`).
    """
    weights = _count_weights(model)
    targets = target_layers(model, config.lora_target_modules, config.model_name_or_path)
    shape = stage_shape(config, base_fingerprint)
    lengths = _micro_batch_lengths(config, model, shape)
    return [
        *_base_weights(config, model, weights, num_shards),
        *_separate_bases(shape),
        *_trained_weights(config, model, weights, shape, targets),
        _image_features(config, model, lengths, shape),
        _keys_and_values(config, model, lengths),
        _activations(config, model, lengths),
        *_vision_activations(config, model, lengths, targets),
        _logits(model, lengths, shape),
    ]


@dataclass(frozen=True)
class WeightCounts:
    """Weights of the whole model, of its language model, and of its linear layers (as in nf4)."""

    total: int
    language_model: int
    linear: int


def _count_weights(model: PreTrainedModel) -> WeightCounts:
    """Count weights; tied ones count once, packed 4-bit ones by the size of their layer."""
    prefixes = language_parameter_prefixes(model)
    linear_numel = {id(m.weight): m.in_features * m.out_features for m in layers_by_part(model)[LANGUAGE_MODEL].values()}
    numel = {name: linear_numel.get(id(p), p.numel()) for name, p in model.named_parameters()}
    return WeightCounts(
        total=sum(numel.values()),
        language_model=sum(count for name, count in numel.items() if name.startswith(prefixes)),
        linear=sum(linear_numel.values()),
    )


def _bytes_per_value(dtype: str) -> int:
    """Return the bytes of one value; nf4 computes in bfloat16."""
    return 4 if dtype == "float32" else 2


def _whole_base_bytes(weights: WeightCounts, dtype: str) -> int:
    num_nf4 = weights.linear if dtype == "nf4" else 0
    return int((weights.total - num_nf4) * _bytes_per_value(dtype) + num_nf4 * NF4_BYTES_PER_WEIGHT)


def _base_weights(config: TrainConfig, model: PreTrainedModel, weights: WeightCounts, num_shards: int) -> list[MemoryItem]:
    """Return the base, or this process's shard of it and one gathered layer."""
    if num_shards == 1:
        return [MemoryItem("base weights", _whole_base_bytes(weights, config.dtype), f"{weights.total:,} x {config.dtype}")]
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.base_model.get_decoder().layers]
    num_whole = weights.total - sum(layers)
    num_held = num_whole + sum(math.ceil(layer / num_shards) for layer in layers)
    calculation = f"1/{num_shards} of {sum(layers):,} in decoder layers, {num_whole:,} others, x {config.dtype}"
    return [
        MemoryItem("base weights", num_held * _bytes_per_value(config.dtype), calculation),
        MemoryItem("gathered layer", max(layers) * _bytes_per_value(config.dtype), f"{max(layers):,} x {config.dtype}"),
    ]


def _separate_bases(shape: StageShape) -> list[MemoryItem]:
    """Return the bases of reward models that do not share the policy's."""
    items = []
    for path, (base_name, dtype) in shape.separate_bases.items():
        try:
            weights = _count_weights(build_meta_model(base_name))
        except InputError as error:  # an estimate stops nothing: loading refuses a base that is missing
            items.append(MemoryItem(f"base of {path}", 0, f"unknown: {error}"))
            continue
        calculation = f"{weights.total:,} x {dtype}: not the policy's base"
        items.append(MemoryItem(f"base of {path}", _whole_base_bytes(weights, dtype), calculation))
    return items


def _count_adapter_weights(path: str | None, config: TrainConfig, targets: Mapping[str, nn.Linear]) -> int:
    """Count the weights of an adapter that is loaded from a folder, or of a new one."""
    with contextlib.suppress(OSError, SafetensorError):  # loading reports what cannot be read
        if path is not None:
            with safe_open(Path(path) / "adapter_model.safetensors", "pt") as file:
                return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return sum((layer.in_features + layer.out_features) * config.lora_r for layer in targets.values())


def _trained_weights(
    config: TrainConfig,
    model: PreTrainedModel,
    weights: WeightCounts,
    shape: StageShape,
    targets: Mapping[str, nn.Linear],
) -> list[MemoryItem]:
    """Return adapters, and gradients with AdamW's moments (12 bytes per trained float32 weight)."""
    num_lora = {role: _count_adapter_weights(path, config, targets) for role, path in shape.roles.items()}
    items = []
    if shape.tuning == "full":
        num_trained, trained_part = weights.language_model, "the language model"
    else:
        num_weights = sum(num_lora.values())
        items.append(MemoryItem("adapters", num_weights * 4, f"{', '.join(shape.roles)}: {num_weights:,} x float32"))
        num_trained, trained_part = sum(num_lora[role] for role in shape.trained_roles), ", ".join(shape.trained_roles)
    if shape.tuning == "head":
        num_trained, trained_part = int(model.config.get_text_config().hidden_size), "the head"
    return [*items, MemoryItem("gradients and AdamW", num_trained * 12, f"{trained_part}: 12 bytes per weight")]


@dataclass(frozen=True)
class MicroBatchLengths:
    """Lengths in tokens, and the numbers of prompts and answers that run at once."""

    image: int
    prompt: int
    answer: int
    num_prompts: int
    num_answers: int

    @property
    def num_tokens(self) -> int:
        return self.num_prompts * self.prompt + self.num_answers * self.answer


def _micro_batch_lengths(config: TrainConfig, model: PreTrainedModel, shape: StageShape) -> MicroBatchLengths:
    """Return the lengths of the largest micro-batch that `micro_batch_tokens` allows."""
    image_length = num_image_tokens(model, config.max_pixels) * shape.prompts_per_row
    prompt_length = image_length + PROMPT_TOKENS * shape.prompts_per_row
    answer_length, group_size = shape.answer_length, shape.group_size
    group_length = prompt_length + group_size * answer_length
    num_prompts = max(1, min(config.per_device_train_batch_size, config.micro_batch_tokens // group_length))
    if group_length <= config.micro_batch_tokens:
        num_answers = num_prompts * group_size
    else:  # the answers to one prompt are split
        num_answers = max(1, (config.micro_batch_tokens - prompt_length) // answer_length)
    return MicroBatchLengths(image_length, prompt_length, answer_length, num_prompts, num_answers)


def _image_features(config: TrainConfig, model: PreTrainedModel, lengths: MicroBatchLengths, shape: StageShape) -> MemoryItem:
    hidden_size = int(model.config.get_text_config().hidden_size)
    batch_size = config.per_device_train_batch_size * shape.batches_of_images
    num_bytes = batch_size * lengths.image * hidden_size * _bytes_per_value(config.dtype)
    return MemoryItem(
        "image features of a step",
        min(num_bytes, int(config.feature_memory_gib * GIB)),
        f"{batch_size} x {lengths.image} tokens x {hidden_size}; the cache may grow to feature_memory_gib",
    )


def _kv_width(model: PreTrainedModel) -> int:
    """Return the number of scalars in a token's keys and values in one layer."""
    config = model.config.get_text_config()
    num_heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or int(config.hidden_size) // config.num_attention_heads)
    return 2 * num_heads * head_dim


def _keys_and_values(config: TrainConfig, model: PreTrainedModel, lengths: MicroBatchLengths) -> MemoryItem:
    num_layers = int(model.config.get_text_config().num_hidden_layers)
    bytes_per_token = num_layers * _kv_width(model) * _bytes_per_value(config.dtype)
    num_tokens = lengths.num_prompts * lengths.prompt + lengths.num_answers * (lengths.prompt + lengths.answer)
    return MemoryItem(
        "keys and values",
        num_tokens * bytes_per_token,
        f"{lengths.num_prompts} prompts and {lengths.num_answers} answers, each with a copy of its prompt's; "
        f"{bytes_per_token:,} bytes per token",
    )


def _logits(model: PreTrainedModel, lengths: MicroBatchLengths, shape: StageShape) -> MemoryItem:
    """Return the float32 logits of a chunk in training, or of a step of sampling if it has more."""
    num_values = 3 * MAX_LOGITS_GPU
    sampled_values = 4 * lengths.num_answers * int(model.config.get_text_config().vocab_size)
    if shape.is_sampling and sampled_values > num_values:
        calculation = f"of {lengths.num_answers} tokens, their log-probs, probabilities and cumulative sums"
        return MemoryItem("logits", sampled_values * 4, calculation)
    return MemoryItem("logits", num_values * 4, "one chunk, its log-probs and its gradient")


def _activations(config: TrainConfig, model: PreTrainedModel, lengths: MicroBatchLengths) -> MemoryItem:
    """Return what backward needs: per layer 8 hidden vectors, keys, values and 4 MLP vectors."""
    text_config = model.config.get_text_config()
    hidden_size, num_layers = int(text_config.hidden_size), int(text_config.num_hidden_layers)
    values_per_token = 8 * hidden_size + _kv_width(model) + 4 * int(text_config.intermediate_size)
    layer_bytes = lengths.num_tokens * values_per_token * _bytes_per_value(config.dtype)
    if not config.activation_checkpointing:
        calculation = f"{lengths.num_tokens:,} tokens x {num_layers} layers x {values_per_token:,} values"
        return MemoryItem("activations", layer_bytes * num_layers, calculation)
    inputs_bytes = lengths.num_tokens * num_layers * hidden_size * _bytes_per_value(config.dtype)
    calculation = f"{lengths.num_tokens:,} tokens: one layer in full, the inputs of {num_layers}"
    return MemoryItem("activations", layer_bytes + inputs_bytes, calculation)


def _vision_activations(
    config: TrainConfig, model: PreTrainedModel, lengths: MicroBatchLengths, targets: Mapping[str, nn.Linear]
) -> list[MemoryItem]:
    """Return the activations kept for backward through a tower with adapters, as in `_activations`.

    Inputs and outputs of the tower's linear layers, by patch; the patches are at least an image's
    tokens.
    """
    tower = layers_by_part(model)[VISION_TOWER]
    if not tower.keys() & targets.keys():
        return []
    vision_config = model.config.vision_config
    size, patch_size = getattr(vision_config, "image_size", None), getattr(vision_config, "patch_size", None)
    num_patches = lengths.image
    if isinstance(size, int) and isinstance(patch_size, int):
        num_patches = max(num_patches, (size // patch_size) ** 2)
    num_patches *= getattr(vision_config, "spatial_merge_size", 1) ** 2 if size is None else 1
    num_values = sum(layer.in_features + layer.out_features for layer in tower.values())
    num_bytes = lengths.num_prompts * num_patches * num_values * _bytes_per_value(config.dtype)
    calculation = f"{lengths.num_prompts} x {num_patches:,} patches x {num_values:,} values"
    return [MemoryItem("vision activations", num_bytes, calculation)]


def peak_memory() -> int:
    """Return the peak number of bytes in use: on the GPU or, without one, by this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
