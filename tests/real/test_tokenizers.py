"""Llama 2's vocabulary as people have it: three ways to mark the beginning of a text."""

import pytest

from mmrlhf.models.heads import yes_no_head
from mmrlhf.models.loading import load
from mmrlhf.records import Message
from tests.real import tokenizers
from tests.real.families import write_checkpoint

pytestmark = pytest.mark.real

KINDS = {
    "legacy": lambda: tokenizers.llava_vicuna(legacy=True),
    "not_legacy": tokenizers.llava_vicuna,
    "as_it_is": tokenizers.llava_vicuna_raw,
}


@pytest.mark.parametrize("kind", KINDS)
def test_llava_1_5_learns_the_same_answers_with_every_conversion_of_its_tokenizer(kind, tmp_path):
    write_checkpoint("llava_1_5", tmp_path, KINDS[kind]())
    vlm = load(str(tmp_path))
    question = (Message("user", "What is this?"),)
    pieces = {
        "A cat.": ["▁A", "▁cat", ".", "</s>"],
        "Yes": ["▁Yes", "</s>"],
        "2 cats": ["▁", "2", "▁cats", "</s>"],
        "🫠 一": ["▁", "<0xF0>", "<0x9F>", "<0xAB>", "<0xA0>", "▁", "一", "</s>"],
        "a  b\n\nc": ["▁a", "▁", "▁b", "<0x0A>", "<0x0A>", "c", "</s>"],
    }
    for answer, expected in pieces.items():
        ids = vlm.answer_token_ids(question, answer, 0)
        assert vlm.tokenizer.convert_ids_to_tokens(ids) == expected
        assert vlm.decode(ids) == answer
    yes, no = vlm.tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])
    weight = vlm.model.get_output_embeddings().weight
    assert (yes_no_head(vlm).weight[0] == weight[yes] - weight[no]).all()
    (prompt,) = vlm.build_prompts([(question, ())])
    first = vlm.tokenizer.convert_ids_to_tokens(prompt.token_ids)
    assert first[:2] == ["<s>", "▁US"] and first[-4:] == ["▁ASS", "IST", "ANT", ":"]
