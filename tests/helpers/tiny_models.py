"""Build tiny random checkpoints of fourteen model families, each with its real processor.

Each has under a million parameters, four language layers, and what makes its family difficult:
windows shorter than the prompts, linear attention, shared keys, tiles, deepstack features,
three-dimensional positions, or cross-attention. Weights are large enough for an untrained model's
answers to depend on its image and its text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.helpers.tiny_parts import (
    HIDDEN_SIZE,
    IMAGE_SIZE,
    TILE_SIZES,
    VISION_CONFIG,
    ProcessorAndModel,
    build_chat_template,
    build_text_config,
    build_tokenizer,
)
from tests.helpers.tiny_qwen import qwen2_5_vl, qwen3_5, qwen3_vl


def _llava_processor_settings(hf_tokenizer: Any) -> dict[str, Any]:
    """Return what the processors of LLaVA and LLaVA-NeXT share."""
    return {
        "tokenizer": hf_tokenizer,
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": build_chat_template("<image>\n"),
    }


def llava() -> ProcessorAndModel:
    hf_tokenizer = build_tokenizer("<image>", image_token="<image>")
    image_processor = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=IMAGE_SIZE)
    processor = hf.LlavaProcessor(image_processor=image_processor, **_llava_processor_settings(hf_tokenizer))
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(image_size=56, patch_size=14, **VISION_CONFIG),
        text_config=build_text_config(hf.LlamaConfig, hf_tokenizer),
        image_token_index=hf_tokenizer.image_token_id,
        image_seq_length=16,
    )
    return processor, hf.LlavaForConditionalGeneration(config)


def llava_next() -> ProcessorAndModel:
    hf_tokenizer = build_tokenizer("<image>", image_token="<image>")
    image_processor = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size=IMAGE_SIZE, image_grid_pinpoints=TILE_SIZES
    )
    processor = hf.LlavaNextProcessor(image_processor=image_processor, **_llava_processor_settings(hf_tokenizer))
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(image_size=56, patch_size=14, **VISION_CONFIG),
        text_config=build_text_config(hf.LlamaConfig, hf_tokenizer),
        image_token_index=hf_tokenizer.image_token_id,
        image_seq_length=16,
        image_grid_pinpoints=TILE_SIZES,
    )
    return processor, hf.LlavaNextForConditionalGeneration(config)


def llava_onevision() -> ProcessorAndModel:
    hf_tokenizer = build_tokenizer("<image>", "<video>", image_token="<image>", video_token="<video>")
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=IMAGE_SIZE, image_grid_pinpoints=TILE_SIZES),
        tokenizer=hf_tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=IMAGE_SIZE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=build_chat_template("<image>\n"),
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(image_size=56, patch_size=14, vision_use_head=False, **VISION_CONFIG),
        text_config=build_text_config(hf.Qwen2Config, hf_tokenizer),
        image_token_index=hf_tokenizer.image_token_id,
        video_token_index=hf_tokenizer.video_token_id,
        image_grid_pinpoints=TILE_SIZES,
    )
    return processor, hf.LlavaOnevisionForConditionalGeneration(config)


def gemma3() -> ProcessorAndModel:
    hf_tokenizer = build_tokenizer(
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    image_processor = hf.Gemma3ImageProcessor(size=IMAGE_SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = hf.Gemma3Processor(
        image_processor=image_processor,
        tokenizer=hf_tokenizer,
        image_seq_length=4,
        chat_template=build_chat_template("<start_of_image>"),
    )
    text_config = build_text_config(
        hf.Gemma3TextConfig,
        hf_tokenizer,
        sliding_window=12,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    )
    config = hf.Gemma3Config(
        text_config=text_config,
        vision_config=hf.SiglipVisionConfig(image_size=56, patch_size=14, vision_use_head=False, **VISION_CONFIG),
        mm_tokens_per_image=4,
        boi_token_index=hf_tokenizer.boi_token_id,
        eoi_token_index=hf_tokenizer.eoi_token_id,
        image_token_index=hf_tokenizer.image_token_id,
    )
    return processor, hf.Gemma3ForConditionalGeneration(config)


def gemma4() -> ProcessorAndModel:
    from transformers.models.gemma4 import Gemma4Config, Gemma4TextConfig, Gemma4VisionConfig

    names = {
        "boi": "<|image>",
        "eoi": "<image|>",
        "image": "<|image|>",
        "boa": "<|audio>",
        "eoa": "<audio|>",
        "audio": "<|audio|>",
    }
    hf_tokenizer = build_tokenizer(*names.values(), "<|video|>", **{f"{k}_token": v for k, v in names.items()})
    token_to_id = hf_tokenizer.convert_tokens_to_ids
    processor = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        video_processor=hf.Gemma4VideoProcessor(),
        tokenizer=hf_tokenizer,
        image_processor=hf.Gemma4ImageProcessor(patch_size=16, pooling_kernel_size=3, max_soft_tokens=70),
        image_seq_length=70,
        chat_template=build_chat_template("<|image|>"),
    )
    text_config = build_text_config(
        Gemma4TextConfig,
        hf_tokenizer,
        global_head_dim=16,
        num_global_key_value_heads=2,
        sliding_window=12,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        vocab_size_per_layer_input=len(hf_tokenizer) + 8,
        hidden_size_per_layer_input=8,
        use_bidirectional_attention="vision",
        final_logit_softcapping=30.0,
    )
    config = Gemma4Config(
        text_config=text_config,
        vision_config=Gemma4VisionConfig(head_dim=16, num_key_value_heads=2, **VISION_CONFIG),
        audio_config=None,
        boi_token_id=token_to_id(names["boi"]),
        eoi_token_id=token_to_id(names["eoi"]),
        image_token_id=token_to_id(names["image"]),
        boa_token_id=token_to_id(names["boa"]),
        eoa_token_index=token_to_id(names["eoa"]),
        audio_token_id=token_to_id(names["audio"]),
        video_token_id=token_to_id("<|video|>"),
    )
    return processor, hf.Gemma4ForConditionalGeneration(config)


def paligemma() -> ProcessorAndModel:
    hf_tokenizer = build_tokenizer("<image>", image_token="<image>")
    image_processor = hf.SiglipImageProcessor(size=IMAGE_SIZE)
    image_processor.image_seq_length = 16
    # Its processor adds <s> after the images.
    processor = hf.PaliGemmaProcessor(
        image_processor=image_processor, tokenizer=hf_tokenizer, chat_template=build_chat_template("<image>").removeprefix("<s>")
    )
    vision_config = hf.SiglipVisionConfig(
        image_size=56, patch_size=14, vision_use_head=False, projection_dim=HIDDEN_SIZE, **VISION_CONFIG
    )
    config = hf.PaliGemmaConfig(
        text_config=build_text_config(hf.GemmaConfig, hf_tokenizer).to_dict(),
        vision_config=vision_config.to_dict(),
        projection_dim=HIDDEN_SIZE,
        hidden_size=HIDDEN_SIZE,
        image_token_index=hf_tokenizer.image_token_id,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
    )
    return processor, hf.PaliGemmaForConditionalGeneration(config)


def build_idefics(
    processor_class: Any, image_processor_class: Any, config_class: Any, model_class: Any, **processor_kwargs: Any
) -> ProcessorAndModel:
    tile_tokens = [f"<row_{r + 1}_col_{c + 1}>" for r in range(6) for c in range(6)]
    names = {
        "fake_image": "<fake_token_around_image>",
        "image": "<image>",
        "end_of_utterance": "<end_of_utterance>",
        "global_image": "<global-img>",
    }
    hf_tokenizer = build_tokenizer(*names.values(), *tile_tokens, **{f"{k}_token": v for k, v in names.items()})
    hf_processor = processor_class(
        image_processor=image_processor_class(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}),
        tokenizer=hf_tokenizer,
        image_seq_len=4,
        chat_template=build_chat_template("<image>"),
        **processor_kwargs,
    )
    model_config = config_class(
        vision_config={"image_size": 56, "patch_size": 14, **VISION_CONFIG},
        text_config=build_text_config(hf.LlamaConfig, hf_tokenizer),
        scale_factor=2,
        image_token_id=hf_tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=1,
    )
    return hf_processor, model_class(model_config)


def idefics3() -> ProcessorAndModel:
    return build_idefics(hf.Idefics3Processor, hf.Idefics3ImageProcessor, hf.Idefics3Config, hf.Idefics3ForConditionalGeneration)


def smolvlm() -> ProcessorAndModel:
    video_processor = hf.SmolVLMVideoProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    return build_idefics(
        hf.SmolVLMProcessor,
        hf.SmolVLMImageProcessor,
        hf.SmolVLMConfig,
        hf.SmolVLMForConditionalGeneration,
        video_processor=video_processor,
    )


def internvl() -> ProcessorAndModel:
    names = {"start_image": "<img>", "end_image": "</img>", "context_image": "<IMG_CONTEXT>", "video": "<video>"}
    hf_tokenizer = build_tokenizer(*names.values(), **{f"{k}_token": v for k, v in names.items()})
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=IMAGE_SIZE, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=hf_tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=IMAGE_SIZE),
        image_seq_length=4,
        chat_template=build_chat_template("<IMG_CONTEXT>\n"),
    )
    config = hf.InternVLConfig(
        vision_config={"image_size": (56, 56), "patch_size": (14, 14), **VISION_CONFIG},
        text_config=build_text_config(hf.Qwen2Config, hf_tokenizer),
        image_token_id=hf_tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return processor, hf.InternVLForConditionalGeneration(config)


def mistral3() -> ProcessorAndModel:
    hf_tokenizer = build_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(size={"longest_edge": 84}, patch_size={"height": 28, "width": 28}),
        tokenizer=hf_tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=build_chat_template("[IMG]"),
    )
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(image_size=84, patch_size=14, head_dim=16, **VISION_CONFIG),
        text_config=build_text_config(hf.MistralConfig, hf_tokenizer, sliding_window=None),
        image_token_index=hf_tokenizer.image_token_id,
        spatial_merge_size=2,
    )
    return processor, hf.Mistral3ForConditionalGeneration(config)


def mllama() -> ProcessorAndModel:
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    hf_tokenizer = build_tokenizer("<|image|>", "<|python_tag|>", image_token="<|image|>")
    processor = hf.MllamaProcessor(
        image_processor=hf.MllamaImageProcessor(size=IMAGE_SIZE, max_image_tiles=4),
        tokenizer=hf_tokenizer,
        chat_template=build_chat_template("<|image|>"),
    )
    text_config = build_text_config(
        MllamaTextConfig,
        hf_tokenizer,
        cross_attention_layers=[1, 3],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    vision_config = MllamaVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=56,
        patch_size=14,
        max_num_tiles=4,
        vision_output_dim=HIDDEN_SIZE,
        intermediate_layers_indices=[0],
    )
    config = hf.MllamaConfig(vision_config=vision_config, text_config=text_config, image_token_index=hf_tokenizer.image_token_id)
    return processor, hf.MllamaForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], ProcessorAndModel]] = {
    f.__name__: f
    for f in (
        llava,
        qwen2_5_vl,
        gemma3,
        qwen3_5,
        mllama,
        llava_next,
        llava_onevision,
        qwen3_vl,
        gemma4,
        paligemma,
        idefics3,
        smolvlm,
        internvl,
        mistral3,
    )
}
"""Builders by name; the first five cover the main difficulties."""


def build_checkpoint(family: str, directory: Path) -> None:
    """Write a family's checkpoint, with the same weights and processor every time."""
    torch.manual_seed(0)
    processor, model = FAMILIES[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(0.7)  # Mllama's cross-attention gates are closed (0) in a new model
            elif "image_newline" in name:
                parameter.normal_()
            elif parameter.dim() >= 2 and not any(part in name for part in ("language_model", "text_model", "lm_head")):
                parameter.normal_(std=0.15)
    model.generation_config.pad_token_id, model.generation_config.bos_token_id, model.generation_config.eos_token_id = 1, 2, 3
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
