"""Compute the right ids, masks and logits without the code under test.

One pass of the processor over the whole conversation, written with the published template; the
only knowledge of a family is what its template writes before and after an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmrlhf.models.images import open_image
from mmrlhf.records import ImageSource

Turn = tuple[str, str | list[str | None]]
"""A role, and a text or texts with None for an image in its place."""

AROUND_ANSWER = {
    "llava_1_5": (" ", "</s>"),
    "llava_1_6_vicuna": (" ", "</s>"),
    "llava_1_6_mistral": (" ", "</s>"),
    "llava_onevision": ("", "<|im_end|>"),
    "qwen2_5_vl": ("", "<|im_end|>"),
    "qwen3_vl": ("", "<|im_end|>"),
    "gemma3": ("", "<end_of_turn>"),
    "mllama": ("", "<|eot_id|>"),
    "idefics3": (" ", "<end_of_utterance>"),
    "smolvlm": (" ", "<end_of_utterance>"),
    "internvl3": ("", "<|im_end|>"),
    "paligemma": ("", "<eos>"),
}
"""The text between a prompt and its answer, and after the answer."""
TRIMS_TEXTS = {"gemma3"}
"""Families with a template that drops white space around texts."""


def render(processor: Any, turns: Sequence[Turn], *, generation_prompt: bool = False) -> str:
    """Write turns with the checkpoint's template."""
    messages = []
    for role, content in turns:
        parts = [content] if isinstance(content, str) else content
        typed = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        messages.append({"role": role, "content": typed})
    # Our date (`models.chat_template.DATE`) is the one that templates fall back to.
    template = processor.chat_template.replace("strftime_now is defined", "false")
    options = {"tokenize": False, "add_generation_prompt": generation_prompt, "chat_template": template}
    return processor.apply_chat_template(messages, **options)


def one_pass(vlm: Any, text: str, images: Sequence[ImageSource] = ()) -> dict[str, Tensor]:
    """Run the processor over a whole rendered text."""
    pixels = [open_image(image) for image in images]
    tokenizer = vlm.processor.tokenizer
    has_start = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    kwargs = {"images": [pixels]} if pixels else {}
    batch = vlm.processor(text=[text], return_tensors="pt", add_special_tokens=not has_start, **kwargs)
    return {key: value for key, value in batch.items() if key != "labels"}


def answer_text(family: str, prompt: str, answer: str) -> str:
    """Return a prompt with an answer and its end after it."""
    lead, end = AROUND_ANSWER[family]
    return prompt + lead + (answer.strip() if family in TRIMS_TEXTS else answer) + end


def last_hidden(vlm: Any, batch: dict[str, Tensor], count: int) -> Tensor:
    """Return the last `count` hidden states [count, D] of a plain forward pass over one row."""
    with torch.no_grad():
        states = vlm.model.base_model(**batch, use_cache=False).last_hidden_state[0, -count:]
    return states.float()
