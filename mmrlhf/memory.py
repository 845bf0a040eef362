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
from mmrlhf.encoder import language_prefixes
from mmrlhf.features import GIB
from mmrlhf.records import InputError
from mmrlhf.vlm import LOGITS

PROMPT = 128
"""Tokens of text in a prompt that is planned for, facts included."""
IMAGE = 1024
"""Image tokens of a picture where the architecture does not say."""
ANSWER = 256
"""Tokens of an answer in sft and reward."""
NF4 = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits: half a byte, and a float for the scale of its block of 64 (Dettmers et al. 2023, without their second quantisation)."""


@dataclass(frozen=True)
class Item:
    """What takes memory, how many bytes, and how they are counted."""

    name: str
    bytes: int
    how: str


def architecture(name: str) -> PreTrainedModel:
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


def image_tokens(model: PreTrainedModel) -> int:
    """Placeholders of one picture, where all pictures have as many."""
    config = model.config
    if found := getattr(config, "mm_tokens_per_image", None) or getattr(config, "image_seq_length", None):
        return int(found)
    vision = getattr(config, "vision_config", None)
    if config.model_type == "llava" and vision is not None:
        return int((vision.image_size // vision.patch_size) ** 2)
    return IMAGE


def plan(config: TrainConfig, model: PreTrainedModel) -> list[Item]:
    """What each part of a stage's memory takes, in bytes."""
    text = model.config.get_text_config()
    width, layers, size = int(text.hidden_size), int(text.num_hidden_layers), 4 if config.dtype == "float32" else 2
    prefixes = language_prefixes(model)
    linears = _linears(model)
    inside = {id(m.weight): m.in_features * m.out_features for m in linears.values()}  # 4-bit weights hide their size
    counted = {n: inside.get(id(p), p.numel()) for n, p in model.named_parameters()}  # tied weights count once
    language = sum(count for n, count in counted.items() if n.startswith(prefixes))
    everything = sum(counted.values())
    packed = sum(inside.values()) if config.dtype == "nf4" else 0
    items = [Item("base weights", int((everything - packed) * size + packed * NF4), f"{everything:,} x {config.dtype}")]

    roles = (
        ["policy", "value", "reward"] if isinstance(config, PPOConfig) else [type(config).__name__.removesuffix("Config").lower()]
    )
    if isinstance(config, PPOConfig):
        if config.advantage_estimator == "grpo":
            roles.remove("value")
        names = [path.strip() for path in (config.reward_model_path or "").split(",") if path.strip()] or ["-"]
        elsewhere = {path: card for path in names if (card := _on_a_base_of_its_own(path, config)) is not None}
        roles[-1:] = [f"reward_{i}" if i else "reward" for i in range(len(names) - len(elsewhere))]
        for path, (base, dtype) in elsewhere.items():
            count = sum(p.numel() for p in architecture(base).parameters())
            each_ = NF4 if dtype == "nf4" else 4 if dtype == "float32" else 2
            items.append(Item(f"base of {path}", int(count * each_), f"{count:,} x {dtype}: another than the policy's"))
    trained = [r for r in roles if not r.startswith("reward")] or roles
    lora = sum(
        (m.in_features + m.out_features) * config.lora_r for n, m in linears.items() if _targeted(n, config.lora_target_modules)
    )
    if isinstance(config, SFTConfig) and config.train == "full":
        learning, how = language, "the language model"
    else:
        items.append(Item("adapters", lora * 4 * len(roles), f"{', '.join(roles)}: {lora:,} x float32 each"))
        learning, how = lora * len(trained), ", ".join(trained)
    items.append(Item("gradients and AdamW", learning * 12, f"{how}: 12 bytes a weight"))

    # Lengths, and how many answers run at a time
    picture = image_tokens(model)
    prompt, each = picture + PROMPT, 1
    answer, at_once = ANSWER, config.per_device_train_batch_size
    if isinstance(config, RewardConfig):
        each = 2
    if isinstance(config, PPOConfig):
        each, answer = config.num_generations, config.response_length
    group = prompt + each * answer
    prompts = max(1, min(at_once, config.micro_batch_tokens // group))
    answers = prompts * each if group <= config.micro_batch_tokens else max(1, (config.micro_batch_tokens - prompt) // answer)
    tokens = prompts * prompt + answers * answer

    features = min(at_once * picture * width * size, int(config.feature_memory_gib * GIB))
    items.append(
        Item(
            "picture features of a step",
            features,
            f"{at_once} x {picture} tokens x {width}; the cache may grow to feature_memory_gib",
        )
    )
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    depth = int(getattr(text, "head_dim", None) or width // text.num_attention_heads)
    token = 2 * layers * heads * depth * size
    keys = (prompts * prompt + answers * (prompt + answer)) * token
    items.append(
        Item("keys and values", keys, f"{prompts} prompts, {answers} answers with a copy of theirs each; {token:,} bytes a token")
    )
    wide = 8 * width + 2 * heads * depth + 4 * int(text.intermediate_size)
    whole = tokens * wide * size
    if config.activation_checkpointing:
        items.append(
            Item(
                "activations",
                whole + tokens * layers * width * size,
                f"{tokens:,} tokens: one layer whole, of {layers} the input",
            )
        )
    else:
        items.append(Item("activations", whole * layers, f"{tokens:,} tokens x {layers} layers x {wide:,} values"))
    items.append(Item("logits", 3 * LOGITS * 4, "one chunk, its log-probs and its gradient"))
    return items


def _on_a_base_of_its_own(path: str, config: PPOConfig) -> tuple[str, str] | None:
    """The base and precision of a reward model that does not run on the policy's; None where it does, or is not there yet."""
    card = Path(path) / "reward.json"
    if not card.is_file():
        return None
    told = json.loads(card.read_text())
    base = str(Path(path) / "model") if told["base"] == "model" else str(told["base"])
    name = config.model_name_or_path
    same = base == (str(Path(name).resolve()) if Path(name).is_dir() else name) and told["dtype"] == config.dtype
    return None if same else (base, str(told["dtype"]))


def _linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The language model's linear layers by name, without the head."""
    decoder = model.base_model.get_decoder()
    return {n: m for n, m in decoder.named_modules() if isinstance(m, nn.Linear)}


def _targeted(name: str, modules: str) -> bool:
    return modules == "all-linear" or name.rsplit(".", 1)[-1] in {word.strip() for word in modules.split(",")}


def peak() -> int:
    """Most bytes that were in use so far: on the GPU, or, without one, by the whole process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
