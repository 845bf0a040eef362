"""From characters of an answer to its tokens, for every kind of tokenizer: what is paid for a span
lies on the token that completes it."""

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
from tests.helpers.tiny_models import FAMILIES, TOKENIZER_CORPUS, build_tokenizer

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
    """As Llama's: words begin with a mark, what is unknown is spelled in bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TOKENIZER_CORPUS, trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>", "<pad>", "</s>"]))
    model = json.loads(trained.to_str())["model"]
    vocabulary = model["vocab"] | {f"<0x{b:02X}>": len(model["vocab"]) + b for b in range(256)}
    merges = [tuple(pair) for pair in model["merges"]]
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=found, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def shipped_tokenizer():
    return hf.AutoTokenizer.from_pretrained(folder("data") / "tiny_vlm")


TOKENIZERS = {"bytes": build_tokenizer, "bytes in pieces": byte_fallback_tokenizer, "shipped": shipped_tokenizer}


def tokens_by_offsets(tokens, text):
    """The same, by what the tokenizer says of where its tokens stand: the last token that holds a
    character completes it."""
    found = tokens(text, add_special_tokens=False, return_offsets_mapping=True)
    at = [0] * len(text)
    for t, (start, end) in enumerate(found["offset_mapping"]):
        at[start:end] = [t] * (end - start)
    return found["input_ids"], at


def matches_offsets(tokens, text):
    ids, expected = tokens_by_offsets(tokens, text)
    decoded = tokens.decode(ids, skip_special_tokens=True)
    if decoded.strip() != text:  # what a tokenizer cannot write, no policy says
        return False
    assert char_to_token(SimpleNamespace(tokenizer=tokens), torch.tensor(ids), text) == expected, text
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_char_to_token_matches_offsets_for_every_family(family):
    """Whatever tokenizer a family's processor has."""
    tokens = FAMILIES[family]()[0].tokenizer
    assert sum(matches_offsets(tokens, text) for text in ANSWERS) >= 6


@pytest.mark.parametrize("kind", ["bytes", "bytes in pieces"])
def test_char_to_token_matches_offsets_for_byte_tokenizers(kind):
    assert sum(matches_offsets(TOKENIZERS[kind](), text) for text in ANSWERS) >= 4


BYTE_TOKENIZER = build_tokenizer()


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("a e\u00e9\u0301🙂\u200d👩一\n€."), min_size=1, max_size=12))
def test_char_to_token_matches_offsets_for_any_text(text):
    if text.strip() == text:
        assert matches_offsets(BYTE_TOKENIZER, text)


def test_char_to_token_matches_offsets_for_shipped_base():
    assert matches_offsets(shipped_tokenizer(), "The picture shows a red star and a moon.")


def test_char_to_token_ignores_outer_white_space_and_eos():
    """Decoding strips it: characters are counted from the first that is none; end-of-sequence
    tokens say nothing."""
    ids = BYTE_TOKENIZER("  a red circle \n</s>", add_special_tokens=False)["input_ids"]
    assert BYTE_TOKENIZER.decode(ids, skip_special_tokens=True).strip() == "a red circle"
    at = char_to_token(SimpleNamespace(tokenizer=BYTE_TOKENIZER), torch.tensor(ids), "a red circle")
    whole = [BYTE_TOKENIZER.decode(ids[: t + 1], skip_special_tokens=True).strip() for t in range(len(ids))]
    for i in range(len("a red circle")):
        assert len(whole[at[i]]) > i and (at[i] == 0 or len(whole[at[i] - 1]) <= i)
