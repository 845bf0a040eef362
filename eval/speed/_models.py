"""Build models of published shapes with random weights, and prompts about images of noise."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mmrlhf.config import EngineConfig
from mmrlhf.models.loading import load, wrap
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, ImageSource, Message

MICRO_BATCH_TOKENS = 8192
"""Enough to keep a GPU busy, and at 7 billion parameters about 13 GiB of activations."""


def build_tokenizer(*extra_tokens: str, **named_tokens: str) -> Any:
    """Build a byte-level tokenizer; only its special tokens matter."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special_tokens = ["<unk>", "<pad>", "<s>", "</s>", *extra_tokens]
    tokenizer.train_from_iterator(
        ["Yes No"],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        extra_special_tokens=named_tokens,
    )  # fmt: skip


def chat_template(image: str) -> str:
    return (
        "<s>{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + "{% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


LLAVA_SHAPES = {
    "llava-1.5-7b": (336, (1024, 4096, 24, 16), (4096, 11008, 32, 32, 32064)),
    "llava-10m": (336, (192, 768, 6, 6), (256, 704, 6, 8, 4096)),
    "toy": (56, (32, 64, 2, 2), (64, 128, 2, 4, 512)),
}
"""Pixels per side; hidden size, MLP size, layers and heads of the vision tower; the same for the
language model, and its vocabulary size.
"""


def build_llava(shape: str) -> tuple[Any, Any]:
    """Build LLaVA-1.5-7B (CLIP-L/14, 336 pixels, Vicuna-7B, 576 image tokens) or a smaller one."""
    tokenizer = build_tokenizer("<image>", image_token="<image>")
    image_size, tower_sizes, language_sizes = LLAVA_SHAPES[shape]
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}),
        tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat_template("<image>\n"),
    )  # fmt: skip
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    tower, language = (dict(zip(names, sizes, strict=False)) for sizes in (tower_sizes, language_sizes))
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=image_size, patch_size=14, **tower),
        text_config=transformers.LlamaConfig(max_position_embeddings=4096, pad_token_id=1, bos_token_id=2, eos_token_id=3, **language),
        image_token_index=tokenizer.image_token_id, image_seq_length=(image_size // 14) ** 2,
    )  # fmt: skip
    return processor, transformers.LlavaForConditionalGeneration(config)


def save_llava(shape: str, folder: Path) -> None:
    """Write a checkpoint of a shape of `LLAVA_SHAPES`."""
    processor, model = build_llava(shape)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 1, 3
    processor.save_pretrained(folder)
    model.save_pretrained(folder)


def build_qwen() -> tuple[Any, Any]:
    """Build Qwen2.5-VL-3B: about 400 image tokens for an image of 560 x 560."""
    names = {
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
    }
    tokenizer = build_tokenizer(*names.values(), **{f"{k}_token": v for k, v in names.items()})
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=14, merge_size=2), tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(), chat_template=chat_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    text = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}  # fmt: skip
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
             "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112}  # fmt: skip
    ids = {f"{k}_token_id": tokenizer.convert_tokens_to_ids(v) for k, v in names.items()}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=True, **ids)
    return processor, transformers.Qwen2_5_VLForConditionalGeneration(config)


def build_vlm(shape: str, device: str, dtype: torch.dtype) -> VLM:
    """Load a checkpoint folder, or build a named shape with random weights."""
    if Path(shape).is_dir():
        return load(shape, str(dtype).removeprefix("torch."), device)
    previous_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            processor, model = build_qwen() if shape.startswith("qwen") else build_llava(shape)
    finally:
        torch.set_default_dtype(previous_dtype)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 1, 3
    return wrap(model.to(device), processor, shape, EngineConfig(micro_batch_tokens=MICRO_BATCH_TOKENS))


def noise_examples(count: int, image_size: int, first_seed: int = 0) -> list[Example]:
    """Create prompts about images of noise, seeded with `first_seed` and the numbers after it."""
    examples = []
    for seed in range(first_seed, first_seed + count):
        pixels = np.random.default_rng(seed).integers(0, 255, (image_size, image_size, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        prompt = (Message("user", "Describe the image."),)
        examples.append(Example(f"row-{seed}", (ImageSource(data=file.getvalue()),), prompt))
    return examples
