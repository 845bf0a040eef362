"""Parts of the tiny checkpoints of all families: tokenizer, chat template, language model."""

from __future__ import annotations

from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN_SIZE, NUM_LAYERS = 64, 4
VISION_CONFIG = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
"""Settings of all vision towers."""
TILE_SIZES = [[56, 112], [112, 56], [112, 112]]
IMAGE_SIZE = {"height": 56, "width": 56}
TOKENIZER_CORPUS = [
    "describe the image in detail there is a red circle in the top left and a blue square what colour is it user assistant Yes No"
] * 50


def build_tokenizer(*special_tokens: str, **named_tokens: str) -> Any:
    """Build a byte-level BPE tokenizer; a processor looks up `named_tokens` by name."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    all_special_tokens = ["<unk>", "<pad>", "<s>", "</s>", *special_tokens]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TOKENIZER_CORPUS,
        trainers.BpeTrainer(vocab_size=420 + len(special_tokens), special_tokens=all_special_tokens, initial_alphabet=alphabet),
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens=named_tokens,
    )


def build_chat_template(image_text: str) -> str:
    """Build a template of `role: text` turns.

    An assistant's turn ends in </s>, and an image is written as `image_text`.
    """
    content = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + image_text + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    )
    end = "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    turn = "{% for m in messages %}{{ m['role'] }}: " + content + end + "{% endfor %}"
    return "<s>" + turn + "{% if add_generation_prompt %}assistant: {% endif %}"


def build_text_config(config_class: Any, hf_tokenizer: Any, **overrides: Any) -> Any:
    """Build a language model's configuration, with embedding rows beyond the tokenizer."""
    return config_class(
        **{
            "vocab_size": len(hf_tokenizer) + 8,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 128,
            "num_hidden_layers": NUM_LAYERS,
            "head_dim": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "pad_token_id": 1,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "initializer_range": 0.1,
            "tie_word_embeddings": False,
            **overrides,
        }
    )


ProcessorAndModel = tuple[Any, Any]
"""What a family's builder returns."""
