"""Tiny random checkpoints of fourteen model families, each with its real processor: what the engine is tested on.

Under a million parameters each, four language layers, and whatever makes the family troublesome: windows shorter than the prompts, linear
attention, shared keys, tiles, deepstack features, three-dimensional positions, cross-attention. Weights are drawn so large that an
untrained model's answer depends on its picture and its text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WIDTH, LAYERS = 64, 4
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
"""Of every vision tower."""
TILES = [[56, 112], [112, 56], [112, 112]]
SIZE = {"height": 56, "width": 56}
TEXTS = [
    "describe the image in detail there is a red circle in the top left and a blue square what colour is it user assistant Yes No"
] * 50


def tokenizer(*special: str, **named: str) -> Any:
    """A byte-level BPE with these special tokens; `named` are those that a processor looks up by name."""
    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    first = ["<unk>", "<pad>", "<s>", "</s>", *special]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=420 + len(special), special_tokens=first, initial_alphabet=alphabet)
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=found, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        extra_special_tokens=named,
    )  # fmt: skip


def template(image: str) -> str:
    """Turns as `role: text`, an assistant's ended by </s>; `image` is what the family writes for a picture."""
    content = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + image + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    )
    end = "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    turn = "{% for m in messages %}{{ m['role'] }}: " + content + end + "{% endfor %}"
    return "<s>" + turn + "{% if add_generation_prompt %}assistant: {% endif %}"


def text(config: Any, tokens: Any, **more: Any) -> Any:
    """A language model's configuration, with rows of its embedding beyond the tokenizer."""
    return config(**{
        "vocab_size": len(tokens) + 8, "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": LAYERS, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 1, "bos_token_id": 2,
        "eos_token_id": 3, "initializer_range": 0.1, "tie_word_embeddings": False, **more,
    })  # fmt: skip


Parts = tuple[Any, Any]
"""A processor and a model."""


def llava() -> Parts:
    tokens = tokenizer("<image>", image_token="<image>")
    images = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SIZE)
    processor = hf.LlavaProcessor(
        image_processor=images, tokenizer=tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(image_size=56, patch_size=14, **TOWER), text_config=text(hf.LlamaConfig, tokens),
        image_token_index=tokens.image_token_id, image_seq_length=16,
    )  # fmt: skip
    return processor, hf.LlavaForConditionalGeneration(config)


def llava_next() -> Parts:
    tokens = tokenizer("<image>", image_token="<image>")
    images = hf.LlavaNextImageProcessor(size={"shortest_edge": 56}, crop_size=SIZE, image_grid_pinpoints=TILES)
    processor = hf.LlavaNextProcessor(
        image_processor=images, tokenizer=tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )  # fmt: skip
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(image_size=56, patch_size=14, **TOWER), text_config=text(hf.LlamaConfig, tokens),
        image_token_index=tokens.image_token_id, image_seq_length=16, image_grid_pinpoints=TILES,
    )  # fmt: skip
    return processor, hf.LlavaNextForConditionalGeneration(config)


def llava_onevision() -> Parts:
    tokens = tokenizer("<image>", "<video>", image_token="<image>", video_token="<video>")
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=SIZE, image_grid_pinpoints=TILES), tokenizer=tokens,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=SIZE), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )  # fmt: skip
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(image_size=56, patch_size=14, vision_use_head=False, **TOWER),
        text_config=text(hf.Qwen2Config, tokens), image_token_index=tokens.image_token_id, video_token_index=tokens.video_token_id,
        image_grid_pinpoints=TILES,
    )  # fmt: skip
    return processor, hf.LlavaOnevisionForConditionalGeneration(config)


def qwen_tokens() -> tuple[Any, dict[str, int], str]:
    names = {
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
    }
    tokens = tokenizer(*names.values(), **{f"{k}_token": v for k, v in names.items()})
    ids = {f"{k}_token_id": tokens.convert_tokens_to_ids(v) for k, v in names.items()}
    return tokens, ids, template("<|vision_start|><|image_pad|><|vision_end|>")


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary positions on three axes."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}


def qwen2_5_vl() -> Parts:
    tokens, ids, chat = qwen_tokens()
    images = hf.Qwen2VLImageProcessor(
        patch_size=14, merge_size=2, size={"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 24}
    )
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=images, tokenizer=tokens, video_processor=hf.Qwen2VLVideoProcessor(), chat_template=chat
    )
    kind = type(hf.Qwen2_5_VLConfig().text_config)
    config = hf.Qwen2_5_VLConfig(
        text_config=text(kind, tokens, rope_parameters=rope(2, 3, 3)).to_dict(), **ids,
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH,
                       "fullatt_block_indexes": [1], "window_size": 56},
    )  # fmt: skip
    return processor, hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_processor(tokens: Any, chat: str) -> Any:
    images = hf.Qwen2VLImageProcessor(
        patch_size=16, merge_size=2, size={"shortest_edge": 32 * 32 * 2, "longest_edge": 32 * 32 * 24}, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    return hf.Qwen3VLProcessor(
        image_processor=images, tokenizer=tokens, video_processor=hf.Qwen3VLVideoProcessor(), chat_template=chat
    )


QWEN3_TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "num_position_embeddings": 64,
}


def qwen3_vl() -> Parts:
    tokens, ids, chat = qwen_tokens()
    config = hf.Qwen3VLConfig(
        text_config=text(hf.Qwen3VLTextConfig, tokens, rope_parameters=rope(4, 2, 2, mrope_interleaved=True)).to_dict(), **ids,
        vision_config={**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]},
    )  # fmt: skip
    return qwen3_processor(tokens, chat), hf.Qwen3VLForConditionalGeneration(config)


def qwen3_5() -> Parts:
    from transformers.models.qwen3_5 import Qwen3_5Config, Qwen3_5TextConfig

    tokens, ids, chat = qwen_tokens()
    language = text(
        Qwen3_5TextConfig, tokens, rope_parameters=rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5),
        linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
        layer_types=["linear_attention"] * 3 + ["full_attention"],
    )  # fmt: skip
    config = Qwen3_5Config(text_config=language.to_dict(), vision_config=QWEN3_TOWER, **ids)
    return qwen3_processor(tokens, chat), hf.Qwen3_5ForConditionalGeneration(config)


def gemma3() -> Parts:
    tokens = tokenizer("<start_of_image>", "<end_of_image>", "<image_soft_token>", image_token="<image_soft_token>",
                       boi_token="<start_of_image>", eoi_token="<end_of_image>")  # fmt: skip
    images = hf.Gemma3ImageProcessor(size=SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = hf.Gemma3Processor(
        image_processor=images, tokenizer=tokens, image_seq_length=4, chat_template=template("<start_of_image>")
    )
    language = text(
        hf.Gemma3TextConfig,
        tokens,
        sliding_window=12,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    )
    config = hf.Gemma3Config(
        text_config=language, vision_config=hf.SiglipVisionConfig(image_size=56, patch_size=14, vision_use_head=False, **TOWER),
        mm_tokens_per_image=4, boi_token_index=tokens.boi_token_id, eoi_token_index=tokens.eoi_token_id,
        image_token_index=tokens.image_token_id,
    )  # fmt: skip
    return processor, hf.Gemma3ForConditionalGeneration(config)


def gemma4() -> Parts:
    from transformers.models.gemma4 import Gemma4Config, Gemma4TextConfig, Gemma4VisionConfig

    names = {
        "boi": "<|image>",
        "eoi": "<image|>",
        "image": "<|image|>",
        "boa": "<|audio>",
        "eoa": "<audio|>",
        "audio": "<|audio|>",
    }
    tokens = tokenizer(*names.values(), "<|video|>", **{f"{k}_token": v for k, v in names.items()})
    number = tokens.convert_tokens_to_ids
    processor = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(), video_processor=hf.Gemma4VideoProcessor(), tokenizer=tokens,
        image_processor=hf.Gemma4ImageProcessor(patch_size=16, pooling_kernel_size=3, max_soft_tokens=70), image_seq_length=70,
        chat_template=template("<|image|>"),
    )  # fmt: skip
    language = text(
        Gemma4TextConfig, tokens, global_head_dim=16, num_global_key_value_heads=2, sliding_window=12, num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2, vocab_size_per_layer_input=len(tokens) + 8,
        hidden_size_per_layer_input=8, use_bidirectional_attention="vision", final_logit_softcapping=30.0,
    )  # fmt: skip
    config = Gemma4Config(
        text_config=language, vision_config=Gemma4VisionConfig(head_dim=16, num_key_value_heads=2, **TOWER), audio_config=None,
        boi_token_id=number(names["boi"]), eoi_token_id=number(names["eoi"]), image_token_id=number(names["image"]),
        boa_token_id=number(names["boa"]), eoa_token_index=number(names["eoa"]), audio_token_id=number(names["audio"]),
        video_token_id=number("<|video|>"),
    )  # fmt: skip
    return processor, hf.Gemma4ForConditionalGeneration(config)


def paligemma() -> Parts:
    tokens = tokenizer("<image>", image_token="<image>")
    images = hf.SiglipImageProcessor(size=SIZE)
    images.image_seq_length = 16
    # Its processor puts <s> after the pictures by itself.
    processor = hf.PaliGemmaProcessor(
        image_processor=images, tokenizer=tokens, chat_template=template("<image>").removeprefix("<s>")
    )
    tower = hf.SiglipVisionConfig(image_size=56, patch_size=14, vision_use_head=False, projection_dim=WIDTH, **TOWER)
    config = hf.PaliGemmaConfig(
        text_config=text(hf.GemmaConfig, tokens).to_dict(), vision_config=tower.to_dict(), projection_dim=WIDTH, hidden_size=WIDTH,
        image_token_index=tokens.image_token_id, pad_token_id=1, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return processor, hf.PaliGemmaForConditionalGeneration(config)


def idefics(processor: Any, images: Any, config: Any, model: Any, **more: Any) -> Parts:
    rows = [f"<row_{r + 1}_col_{c + 1}>" for r in range(6) for c in range(6)]
    names = {"fake_image": "<fake_token_around_image>", "image": "<image>", "end_of_utterance": "<end_of_utterance>",
             "global_image": "<global-img>"}  # fmt: skip
    tokens = tokenizer(*names.values(), *rows, **{f"{k}_token": v for k, v in names.items()})
    made = processor(
        image_processor=images(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}), tokenizer=tokens, image_seq_len=4,
        chat_template=template("<image>"), **more,
    )  # fmt: skip
    settings = config(
        vision_config={"image_size": 56, "patch_size": 14, **TOWER}, text_config=text(hf.LlamaConfig, tokens), scale_factor=2,
        image_token_id=tokens.convert_tokens_to_ids("<image>"), pad_token_id=1,
    )  # fmt: skip
    return made, model(settings)


def idefics3() -> Parts:
    return idefics(hf.Idefics3Processor, hf.Idefics3ImageProcessor, hf.Idefics3Config, hf.Idefics3ForConditionalGeneration)


def smolvlm() -> Parts:
    videos = hf.SmolVLMVideoProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    return idefics(
        hf.SmolVLMProcessor,
        hf.SmolVLMImageProcessor,
        hf.SmolVLMConfig,
        hf.SmolVLMForConditionalGeneration,
        video_processor=videos,
    )


def internvl() -> Parts:
    names = {"start_image": "<img>", "end_image": "</img>", "context_image": "<IMG_CONTEXT>", "video": "<video>"}
    tokens = tokenizer(*names.values(), **{f"{k}_token": v for k, v in names.items()})
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=SIZE, crop_to_patches=True, min_patches=1, max_patches=4), tokenizer=tokens,
        video_processor=hf.InternVLVideoProcessor(size=SIZE), image_seq_length=4, chat_template=template("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    config = hf.InternVLConfig(
        vision_config={"image_size": (56, 56), "patch_size": (14, 14), **TOWER}, text_config=text(hf.Qwen2Config, tokens),
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4,
    )  # fmt: skip
    return processor, hf.InternVLForConditionalGeneration(config)


def mistral3() -> Parts:
    tokens = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(size={"longest_edge": 84}, patch_size={"height": 28, "width": 28}), tokenizer=tokens,
        patch_size=14, spatial_merge_size=2, chat_template=template("[IMG]"),
    )  # fmt: skip
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(image_size=84, patch_size=14, head_dim=16, **TOWER),
        text_config=text(hf.MistralConfig, tokens, sliding_window=None), image_token_index=tokens.image_token_id, spatial_merge_size=2,
    )  # fmt: skip
    return processor, hf.Mistral3ForConditionalGeneration(config)


def mllama() -> Parts:
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    tokens = tokenizer("<|image|>", "<|python_tag|>", image_token="<|image|>")
    processor = hf.MllamaProcessor(
        image_processor=hf.MllamaImageProcessor(size=SIZE, max_image_tiles=4),
        tokenizer=tokens,
        chat_template=template("<|image|>"),
    )
    language = text(
        MllamaTextConfig, tokens, cross_attention_layers=[1, 3], rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    )
    tower = MllamaVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_global_layers=1, attention_heads=2, image_size=56, patch_size=14,
        max_num_tiles=4, vision_output_dim=WIDTH, intermediate_layers_indices=[0],
    )  # fmt: skip
    config = hf.MllamaConfig(vision_config=tower, text_config=language, image_token_index=tokens.image_token_id)
    return processor, hf.MllamaForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], Parts]] = {
    f.__name__: f
    for f in (llava, qwen2_5_vl, gemma3, qwen3_5, mllama, llava_next, llava_onevision, qwen3_vl, gemma4, paligemma, idefics3, smolvlm,
              internvl, mistral3)
}  # fmt: skip
"""The five kinds of trouble first."""


def build(family: str, directory: Path) -> None:
    """Write the family's checkpoint, weights and processor; the same each time."""
    torch.manual_seed(0)
    processor, model = FAMILIES[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(0.7)  # Mllama's are closed at first
            elif "image_newline" in name:
                parameter.normal_()
            elif parameter.dim() >= 2 and not any(part in name for part in ("language_model", "text_model", "lm_head")):
                parameter.normal_(std=0.15)
    model.generation_config.pad_token_id, model.generation_config.bos_token_id, model.generation_config.eos_token_id = 1, 2, 3
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
