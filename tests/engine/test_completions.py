"""Mapping an answer's characters to its tokens, for every kind of tokenizer.

A span's reward goes to the token that completes the span.
"""

import json
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mmrlhf.engine.completions import char_to_token
from mmrlhf.files.bundled import folder
from tests.helpers.tiny_models import FAMILIES
from tests.helpers.tiny_parts import TOKENIZER_CORPUS, build_tokenizer

ANSWERS = (
    "A red circle, and a blue square.",
    "A café with naïve façade — 3 €!",
    "Ein Hund 🐕 und zwei Kinder 👩‍👩‍👧‍👦 im Bild. 🙂🙂",
    "一只猫坐在桌子上。",
    "قطة على الطاولة",
    "tab\there\n\nnew   line",
    "e\u0301 is not \u00e9",
)


def byte_fallback_tokenizer():
    """Build a tokenizer like Llama's: words begin with a mark, unknown characters become bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TOKENIZER_CORPUS, trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>", "<pad>", "</s>"]))
    model = json.loads(trained.to_str())["model"]
    vocabulary = model["vocab"] | {f"<0x{b:02X}>": len(model["vocab"]) + b for b in range(256)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def shipped_tokenizer():
    return hf.AutoTokenizer.from_pretrained(folder("data") / "tiny_vlm")


BYTE_TOKENIZER = build_tokenizer()


def decoding(tokenizer):
    """Return a stand-in for a model, which decodes answers as `VLM.decode` does."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return SimpleNamespace(decode=lambda token_ids: tokenizer.decode(token_ids.tolist(), **options))


def char_to_token_by_offsets(tokenizer, text):
    """Return token ids and each character's token, from the tokenizer's own offsets.

    A character belongs to the last token with a span that includes it.
    """
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    token_indices = [0] * len(text)
    for t, (start, end) in enumerate(encoding["offset_mapping"]):
        token_indices[start:end] = [t] * (end - start)
    return encoding["input_ids"], token_indices


def matches_offsets(tokenizer, text):
    """Assert that both mappings agree; return False if the tokenizer cannot represent the text."""
    token_ids, expected = char_to_token_by_offsets(tokenizer, text)
    if tokenizer.decode(token_ids, skip_special_tokens=True).strip() != text:
        return False
    assert char_to_token(decoding(tokenizer), torch.tensor(token_ids), text) == expected, text
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_char_to_token_matches_offsets_for_every_family(family):
    processor, _ = FAMILIES[family]()
    assert sum(matches_offsets(processor.tokenizer, text) for text in ANSWERS) >= 6


@pytest.mark.parametrize("build", [build_tokenizer, byte_fallback_tokenizer])
def test_char_to_token_matches_offsets_for_byte_tokenizers(build):
    assert sum(matches_offsets(build(), text) for text in ANSWERS) >= 4


@settings(max_examples=60)
@given(st.text(st.sampled_from("a e\u00e9\u0301🙂\u200d👩一\n€."), min_size=1, max_size=12))
def test_char_to_token_matches_offsets_for_any_text(text):
    if text.strip() == text:
        assert matches_offsets(BYTE_TOKENIZER, text)


def test_char_to_token_matches_offsets_for_shipped_base():
    assert matches_offsets(shipped_tokenizer(), "The picture shows a red star and a moon.")


def test_char_to_token_counts_outer_white_space_and_no_eos():
    text = "  a red circle \n"
    token_ids = BYTE_TOKENIZER(f"{text}</s>", add_special_tokens=False)["input_ids"]
    token_indices = char_to_token(decoding(BYTE_TOKENIZER), torch.tensor(token_ids), text)
    partial_texts = [BYTE_TOKENIZER.decode(token_ids[: t + 1], skip_special_tokens=True) for t in range(len(token_ids))]
    assert len(token_indices) == len(text)
    for i, t in enumerate(token_indices):
        assert len(partial_texts[t]) > i and (t == 0 or len(partial_texts[t - 1]) <= i)


def test_char_to_token_of_text_without_outer_white_space():
    """Answers are kept stripped: their first character need not be the ids' first."""
    text = " \n a red circle "
    token_ids = torch.tensor(BYTE_TOKENIZER(f"{text}</s>", add_special_tokens=False)["input_ids"])
    whole = char_to_token(decoding(BYTE_TOKENIZER), token_ids, text)
    assert char_to_token(decoding(BYTE_TOKENIZER), token_ids, text.strip()) == whole[3:-1]
    assert char_to_token(decoding(BYTE_TOKENIZER), token_ids, "a red") == whole[3:8]  # cut at a stop string


def test_char_to_token_decodes_each_token_a_few_times_only():
    """Decoding every prefix would take 300 x 301 / 2 tokens."""
    tokenizer, num_decoded = decoding(BYTE_TOKENIZER), []
    text = "a dog and a cät " * 20

    def decode(token_ids):
        num_decoded.append(len(token_ids))
        return tokenizer.decode(token_ids)

    token_ids = torch.tensor(BYTE_TOKENIZER(text, add_special_tokens=False)["input_ids"])
    char_to_token(SimpleNamespace(decode=decode), token_ids, text)
    assert sum(num_decoded) < 8 * len(token_ids)


def test_char_to_token_decodes_prefixes_if_parts_do_not_add_up():
    """A tokenizer that drops a space before a full stop, which no token shows by itself."""
    words = ["a", "dog", ".", "a", "cat", "."]
    decode = lambda ids: " ".join(words[i] for i in ids.tolist()).replace(" .", ".")  # noqa: E731
    text = decode(torch.arange(6))
    assert text == "a dog. a cat."
    assert char_to_token(SimpleNamespace(decode=decode), torch.arange(6), text) == [0, 1, 1, 1, 1, 2, 3, 3, 4, 4, 4, 4, 5]
