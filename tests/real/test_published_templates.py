"""Published chat templates render as in transformers, and answers are separable from prompts."""

import functools
from types import SimpleNamespace
from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from mmrlhf.models.chat_template import apply_chat_template
from mmrlhf.models.chat_text import ChatText
from mmrlhf.records import InputError, Message
from tests.real import packages, tokenizers
from tests.real.families import TRL_VERSION

pytestmark = pytest.mark.real

VISION = {
    "gemma3": "",
    "gemma4": "",
    "gemma4_v5": "",
    "idefics3": " ",
    "lfm2_2_5_vl": "",
    "llava_next": " ",
    "qwen2_5_vl": "",
    "qwen3_5_nothink": "",
    "qwen3_5_think": "",
    "qwen3_6": "",
    "qwen3_8": "",
    "qwen3_vl": "",
    "smolvlm": " ",
}
"""Templates that show images, with the text that they write before an answer."""
TEXT_ONLY = ("llama3", "llama3_1", "llama3_2", "gemma", "phi3", "qwen2_5", "qwen3", "lfm2", "cohere", "gptoss", "nemotron_3_nano")
CONVERSATION = (
    Message("user", "What is this?", (0,)),
    Message("assistant", " A cat.\n"),
    Message("user", "And that? ", (9,)),
    Message("assistant", "Yes"),
)


@functools.cache
def read_template(name: str) -> str:
    return (packages.wheel("trl", TRL_VERSION) / "trl" / "chat_templates" / f"{name}.jinja").read_text()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tokenizers.qwen3_vl()


def processor_with(tokenizer: Any, template: str) -> Any:
    return SimpleNamespace(tokenizer=tokenizer, chat_template=template, image_token="<|image_pad|>")


@pytest.mark.parametrize("name", [*VISION, "glm4moe"])
@pytest.mark.parametrize("num_messages", [1, 2, 3, 4])
def test_template_renders_as_in_transformers(name, num_messages, tokenizer):
    messages, compiled = CONVERSATION[:num_messages], _compile_jinja_template(read_template(name))
    turns = [{"role": message.role, "content": message.parts()} for message in messages]
    num_images = sum(len(message.image_positions) for message in messages)
    for generation_prompt in (False, True):
        variables = {**tokenizer.special_tokens_map, "tools": None, "documents": None}
        expected = compiled.render(messages=turns, add_generation_prompt=generation_prompt, **variables)
        processor = processor_with(tokenizer, read_template(name))
        actual = apply_chat_template(processor, messages, num_images, generation_prompt=generation_prompt, name="M")
        assert actual == expected


@pytest.mark.parametrize("name", VISION)
def test_answers_are_told_from_prompts_with_every_template_that_shows_images(name, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    chat = ChatText(processor_with(tokenizer, read_template(name)), "M", [end])
    question = Message("user", "What is this?")
    ids = chat.answer_token_ids([question], "A cat.", 0).tolist()
    assert tokenizer.decode(ids[:-1]) == VISION[name] + "A cat." and ids[-1] == end
    prompt = chat.render([question], 0, generation_prompt=True)
    assert chat.encode(prompt) + ids[:-1] == tokenizer(prompt + VISION[name] + "A cat.", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_templates_for_texts_alone_are_refused(name, tokenizer):
    with pytest.raises(
        InputError, match=r"^M: its chat template (writes a turn's parts|fails on a plain|leaves out a turn's text)"
    ):
        ChatText(processor_with(tokenizer, read_template(name)), "M", [tokenizer.eos_token_id])
