"""Build processors and tiny models of the families with the sizes that the published ones have.

Image sizes, patches and numbers of tokens are real; towers and language models have two small
layers. `families.py` names the checkpoint that each imitates.
"""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.helpers.tiny_parts import VISION_CONFIG, ProcessorAndModel, build_text_config

HIDDEN_SIZE = 32
CLIP_336 = hf.CLIPVisionConfig(image_size=336, patch_size=14, **VISION_CONFIG)
NEXT_TILE_SIZES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def _text_config(config_class: Any, tokenizer: Any, vocab_size: int, **overrides: Any) -> Any:
    """Build a tiny language model's configuration with a published size of the vocabulary."""
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return build_text_config(config_class, tokenizer, **{**settings, **overrides})


def llava(tokenizer: Any, template: str) -> ProcessorAndModel:
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    config = hf.LlavaConfig(
        vision_config=CLIP_336,
        text_config=_text_config(hf.LlamaConfig, tokenizer, 32064),
        image_token_index=32000,
        image_seq_length=576,
    )
    return processor, hf.LlavaForConditionalGeneration(config)


def llava_next(tokenizer: Any, template: str) -> ProcessorAndModel:
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=NEXT_TILE_SIZES
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    config = hf.LlavaNextConfig(
        vision_config=CLIP_336,
        text_config=_text_config(hf.LlamaConfig, tokenizer, 32064),
        image_token_index=32000,
        image_seq_length=576,
        image_grid_pinpoints=NEXT_TILE_SIZES,
    )
    return processor, hf.LlavaNextForConditionalGeneration(config)


def llava_onevision(tokenizer: Any, template: str) -> ProcessorAndModel:
    size = {"height": 384, "width": 384}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(image_size=384, patch_size=14, vision_use_head=False, **VISION_CONFIG),
        text_config=_text_config(hf.Qwen2Config, tokenizer, 152000),
        image_token_index=151646,
        video_token_index=151647,
    )
    return processor, hf.LlavaOnevisionForConditionalGeneration(config)


QWEN_TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


def qwen2_5_vl(tokenizer: Any, template: str) -> ProcessorAndModel:
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(
            patch_size=14, merge_size=2, size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
        ),
        tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(),
        chat_template=template,
    )
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text_config = _text_config(type(hf.Qwen2_5_VLConfig().text_config), tokenizer, 151936, rope_parameters=rope)
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN_SIZE}
    config = hf.Qwen2_5_VLConfig(
        text_config=text_config.to_dict(), vision_config={**vision, "fullatt_block_indexes": [1]}, **QWEN_TOKENS
    )
    return processor, hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(tokenizer: Any, template: str) -> ProcessorAndModel:
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(
            patch_size=16,
            merge_size=2,
            size={"shortest_edge": 65536, "longest_edge": 16777216},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(),
        chat_template=template,
    )
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text_config = _text_config(hf.Qwen3VLTextConfig, tokenizer, 151936, rope_parameters=rope)
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN_SIZE}
    config = hf.Qwen3VLConfig(
        text_config=text_config.to_dict(), vision_config={**vision, "deepstack_visual_indexes": [0, 1]}, **QWEN_TOKENS
    )
    return processor, hf.Qwen3VLForConditionalGeneration(config)


def gemma3(tokenizer: Any, template: str) -> ProcessorAndModel:
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": 896, "width": 896}, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=tokenizer,
        image_seq_length=256,
        chat_template=template,
    )
    text_config = _text_config(
        hf.Gemma3TextConfig,
        tokenizer,
        262208,
        sliding_window=1024,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
        eos_token_id=1,
    )
    config = hf.Gemma3Config(
        text_config=text_config,
        vision_config=hf.SiglipVisionConfig(image_size=896, patch_size=14, vision_use_head=False, **VISION_CONFIG),
        mm_tokens_per_image=256,
        boi_token_index=255999,
        eoi_token_index=256000,
        image_token_index=262144,
    )
    return processor, hf.Gemma3ForConditionalGeneration(config)


def mllama(tokenizer: Any, template: str) -> ProcessorAndModel:
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    processor = hf.MllamaProcessor(
        image_processor=hf.MllamaImageProcessor(size={"height": 560, "width": 560}, max_image_tiles=4),
        tokenizer=tokenizer,
        chat_template=template,
    )
    text_config = _text_config(
        MllamaTextConfig,
        tokenizer,
        128256,
        cross_attention_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    vision_config = MllamaVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=560,
        patch_size=14,
        max_num_tiles=4,
        vision_output_dim=64,
        intermediate_layers_indices=[0],
    )
    config = hf.MllamaConfig(vision_config=vision_config, text_config=text_config, image_token_index=128256)
    return processor, hf.MllamaForConditionalGeneration(config)


def _idefics3(
    tokenizer: Any, template: str, vocab_size: int, edges: tuple[int, int], patch_size: int, scale: int
) -> ProcessorAndModel:
    longest_edge, tile = edges
    num_image_tokens = (tile // patch_size // scale) ** 2
    processor = hf.Idefics3Processor(
        image_processor=hf.Idefics3ImageProcessor(
            size={"longest_edge": longest_edge}, max_image_size={"longest_edge": tile}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        image_seq_len=num_image_tokens,
        chat_template=template,
    )
    config = hf.Idefics3Config(
        vision_config={"image_size": tile, "patch_size": patch_size, **VISION_CONFIG},
        text_config=_text_config(hf.LlamaConfig, tokenizer, vocab_size),
        scale_factor=scale,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return processor, hf.Idefics3ForConditionalGeneration(config)


def idefics3(tokenizer: Any, template: str) -> ProcessorAndModel:
    return _idefics3(tokenizer, template, len(tokenizer), (1456, 364), 14, 2)


def smolvlm(tokenizer: Any, template: str) -> ProcessorAndModel:
    return _idefics3(tokenizer, template, 49280, (2048, 512), 16, 4)


def internvl3(tokenizer: Any, template: str) -> ProcessorAndModel:
    size = {"height": 448, "width": 448}
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=12),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=size),
        image_seq_length=256,
        chat_template=template,
    )
    config = hf.InternVLConfig(
        vision_config={"image_size": (448, 448), "patch_size": (14, 14), **VISION_CONFIG},
        text_config=_text_config(hf.Qwen2Config, tokenizer, 151674),
        image_token_id=151667,
        image_seq_length=256,
    )
    return processor, hf.InternVLForConditionalGeneration(config)


def paligemma(tokenizer: Any, template: str) -> ProcessorAndModel:
    image_processor = hf.SiglipImageProcessor(size={"height": 224, "width": 224})
    image_processor.image_seq_length = 256
    processor = hf.PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer, chat_template=template)
    vision_config = hf.SiglipVisionConfig(
        image_size=224, patch_size=14, vision_use_head=False, projection_dim=HIDDEN_SIZE, **VISION_CONFIG
    )
    config = hf.PaliGemmaConfig(
        text_config=_text_config(hf.GemmaConfig, tokenizer, 257216).to_dict(),
        vision_config=vision_config.to_dict(),
        projection_dim=HIDDEN_SIZE,
        hidden_size=HIDDEN_SIZE,
        image_token_index=257152,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    return processor, hf.PaliGemmaForConditionalGeneration(config)
