"""Tokenizers that write a mark of white space in front of a text, and templates that need one.

`prepend` has Llama 2's normalizer, `metaspace` what newer conversions have; both fall back to
bytes. With a processor of LLaVA's, and no model.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.helpers.tiny_parts import IMAGE_SIZE

CORPUS = [
    "USER: ASSISTANT: A cat. Two dogs. Yes No describe the image What is this? red circle plate of food 1 2 3 [INST] [/INST]"
] * 50
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
PARTS = (
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
)
LLAVA_1_5 = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}" + PARTS + "{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Like LLaVA-1.5's: the generation prompt ends without a blank, and no turn ends in </s>."""


@functools.cache
def build_llama_tokenizer(kind: str) -> Any:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=[*SPECIAL_TOKENS[:3], *byte_tokens]))
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    bpe = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "prepend":
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )


def build_processor(hf_tokenizer: Any, chat_template: str = LLAVA_1_5) -> Any:
    return hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=IMAGE_SIZE),
        tokenizer=hf_tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
