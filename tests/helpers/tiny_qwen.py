"""Build tiny random Qwen models: positions on three axes, deepstack features, linear attention."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.helpers.tiny_parts import HIDDEN_SIZE, ProcessorAndModel, build_chat_template, build_text_config, build_tokenizer


def build_qwen_tokenizer() -> tuple[Any, dict[str, int], str]:
    names = {
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
    }
    hf_tokenizer = build_tokenizer(*names.values(), **{f"{k}_token": v for k, v in names.items()})
    token_ids = {f"{k}_token_id": hf_tokenizer.convert_tokens_to_ids(v) for k, v in names.items()}
    return hf_tokenizer, token_ids, build_chat_template("<|vision_start|><|image_pad|><|vision_end|>")


def build_rope_parameters(*sections: int, **overrides: Any) -> dict[str, Any]:
    """Build the configuration of rotary positions on three axes."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **overrides}


def qwen2_5_vl() -> ProcessorAndModel:
    hf_tokenizer, token_ids, chat_template = build_qwen_tokenizer()
    image_processor = hf.Qwen2VLImageProcessor(
        patch_size=14, merge_size=2, size={"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 24}
    )
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=image_processor,
        tokenizer=hf_tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(),
        chat_template=chat_template,
    )
    text_config_class = type(hf.Qwen2_5_VLConfig().text_config)
    config = hf.Qwen2_5_VLConfig(
        text_config=build_text_config(text_config_class, hf_tokenizer, rope_parameters=build_rope_parameters(2, 3, 3)).to_dict(),
        **token_ids,
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": HIDDEN_SIZE,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
    )
    return processor, hf.Qwen2_5_VLForConditionalGeneration(config)


def build_qwen3_processor(hf_tokenizer: Any, chat_template: str) -> Any:
    image_processor = hf.Qwen2VLImageProcessor(
        patch_size=16,
        merge_size=2,
        size={"shortest_edge": 32 * 32 * 2, "longest_edge": 32 * 32 * 24},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return hf.Qwen3VLProcessor(
        image_processor=image_processor,
        tokenizer=hf_tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(),
        chat_template=chat_template,
    )


QWEN3_VISION_CONFIG = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": HIDDEN_SIZE,
    "num_position_embeddings": 64,
}


def qwen3_vl() -> ProcessorAndModel:
    hf_tokenizer, token_ids, chat_template = build_qwen_tokenizer()
    config = hf.Qwen3VLConfig(
        text_config=build_text_config(
            hf.Qwen3VLTextConfig, hf_tokenizer, rope_parameters=build_rope_parameters(4, 2, 2, mrope_interleaved=True)
        ).to_dict(),
        **token_ids,
        vision_config={**QWEN3_VISION_CONFIG, "deepstack_visual_indexes": [0, 1]},
    )
    return build_qwen3_processor(hf_tokenizer, chat_template), hf.Qwen3VLForConditionalGeneration(config)


def qwen3_5() -> ProcessorAndModel:
    from transformers.models.qwen3_5 import Qwen3_5Config, Qwen3_5TextConfig

    hf_tokenizer, token_ids, chat_template = build_qwen_tokenizer()
    text_config = build_text_config(
        Qwen3_5TextConfig,
        hf_tokenizer,
        rope_parameters=build_rope_parameters(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5),
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention"] * 3 + ["full_attention"],
    )
    config = Qwen3_5Config(text_config=text_config.to_dict(), vision_config=QWEN3_VISION_CONFIG, **token_ids)
    return build_qwen3_processor(hf_tokenizer, chat_template), hf.Qwen3_5ForConditionalGeneration(config)
