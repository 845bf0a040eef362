"""The demo's tiny VLM, trained from scratch: `mmrlhf data tiny-vlm --output_dir DIR`.

An ordinary LLaVA checkpoint (CLIP tower, projector, Llama) of 2M parameters with a real tokenizer,
image processor and chat template. The stages use it like any other pre-trained VLM: it sees
(imperfectly), describes, answers questions, reads facts in a prompt and can name the faults of an
answer. It has no co-occurrence bias, which comes from fine-tuning on biased captions.

It is trained in the order of real VLMs, and so learns to check claims in text, not in pictures:
tower and projector learn word-like features of each grid cell; the language model learns from text
alone to read facts, answer and review; the projector is aligned with it; then the language model
learns to look, on descriptions and questions. Answers about a picture are reviewed with facts, and
in few conversations without (`unaided_review_rate`).
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from rich import print as rich_print
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmrlhf import scenes
from mmrlhf.demo.tiny_vlm_data import (
    NUM_IMAGE_TOKENS,
    PATCH_SIZE,
    picture_sample,
    pretraining_scene,
    render_images,
    sample_rng,
    text_sample,
)
from mmrlhf.demo.tiny_vlm_training import AuxiliaryHeads, train_language_model, train_vision
from mmrlhf.files.atomic import refuse_unwritable

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


# ---- the checkpoint ------------------------------------------------------------------------------


def build_processor(seed: int) -> LlavaProcessor:
    """Return CLIP's image processor with a byte-level BPE trained on the scenes' language.

    Other text is encoded as bytes.
    """
    texts = [m.content for i in range(4000) for m, _ in text_sample(pretraining_scene(i, seed), sample_rng(seed, i)).turns]
    bpe_tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe_tokenizer.decoder = decoders.ByteLevel()
    bpe_tokenizer.train_from_iterator(
        [line for t in texts for line in (f" {t} Assistant:", t, "User:", "System:")],
        trainers.BpeTrainer(
            vocab_size=640,
            special_tokens=["<unk>", "<pad>", "<s>", "</s>", "<image>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe_tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    image_size = {"height": scenes.IMAGE_SIZE, "width": scenes.IMAGE_SIZE}
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": scenes.IMAGE_SIZE}, crop_size=image_size, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=PATCH_SIZE, vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip


def build_model(processor: LlavaProcessor, seed: int) -> LlavaForConditionalGeneration:
    """Return a random model: a tower of 3 layers and a language model of 6 layers, 128 wide."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    special_token_ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
            image_size=scenes.IMAGE_SIZE, patch_size=PATCH_SIZE,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=6,
            initializer_range=0.05, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048,
            tie_word_embeddings=True, **special_token_ids,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=NUM_IMAGE_TOKENS, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=config.text_config.hidden_size**-0.5)
    for name, value in special_token_ids.items():
        setattr(model.generation_config, name, value)
    return model


# ---- the recipe ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TinyVLMRecipe:
    """The size of the tiny VLM's training.

    num_processes: processes of one thread each that share a batch; two threads of one process are
    hardly faster than one on models this small.
    """

    num_images: int = 29000
    tower_steps: int = 2200
    text_steps: int = 800
    text_batch_size: int = 32
    projector_steps: int = 150
    picture_steps: int = 800
    picture_batch_size: int = 64
    num_processes: int = 2


DEFAULT_RECIPE = TinyVLMRecipe()
UNAIDED_REVIEW_RATE = 0.02
"""Share of the conversations about images with a review without facts."""


def train_tiny_vlm(
    output_dir: str,
    seed: int = 0,
    dtype: str = "float32",
    unaided_review_rate: float = UNAIDED_REVIEW_RATE,
    recipe: TinyVLMRecipe = DEFAULT_RECIPE,
) -> None:
    """Train the tiny VLM from scratch and write its checkpoint directory (half precision, 4 MB).

    In bfloat16 it takes 30 minutes on two cores shared with other work: vision 3, text 13, pictures
    13. The shipped model has seed 0.

    seed: seed of weights and data.
    dtype: precision of matrix products. bfloat16 is faster on CPUs that support it and much slower
    on others.
    unaided_review_rate: share of conversations about images with a review without facts.
    Raises InputError if the directory cannot be written.
    """
    refuse_unwritable(Path(output_dir), "output_dir")
    pixels, targets = render_images(recipe.num_images, seed)
    with tempfile.TemporaryDirectory() as rendezvous:
        arguments = (
            output_dir,
            seed,
            getattr(torch, dtype),
            unaided_review_rate,
            recipe,
            pixels,
            targets,
            f"file://{rendezvous}/processes",
        )
        torch.multiprocessing.spawn(_train_in_process, arguments, recipe.num_processes)


def _train_in_process(
    index: int,
    output_dir: str,
    seed: int,
    dtype: torch.dtype,
    unaided_review_rate: float,
    recipe: TinyVLMRecipe,
    pixels: Tensor,
    targets: Tensor,
    rendezvous: str,
) -> None:
    """Train in one of the processes; number 0 writes the checkpoint."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=index, world_size=recipe.num_processes)
    processor = build_processor(seed)
    model = build_model(processor, seed)
    if index == 0:
        rich_print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(processor.tokenizer)} tokens")
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    heads = AuxiliaryHeads(model.config.text_config.hidden_size)

    # 1. Vision: tower and projector learn word-like features of each grid cell
    parameters = [*tower.parameters(), *projector.parameters()]
    train_vision(model, processor, pixels, targets, seed, recipe.tower_steps, dtype, parameters)
    # 2. Text: the language model learns to read facts, to answer from them and to review answers
    train_language_model(
        model, processor, pixels, seed, text_sample, heads, recipe.text_steps, recipe.text_batch_size, 6e-3, dtype
    )
    # 3. Projector: align the features with the embeddings, which stage 2 changed, as LLaVA does
    # first
    parameters = list(projector.parameters())
    train_vision(model, processor, pixels, targets, seed, recipe.projector_steps, dtype, parameters)
    # 4. Pictures: the language model learns to look
    make_sample = partial(picture_sample, unaided_review_rate=unaided_review_rate)
    train_language_model(
        model, processor, pixels, seed, make_sample, heads, recipe.picture_steps, recipe.picture_batch_size, 2e-3, dtype, stream=1
    )
    if index == 0:
        save_checkpoint(model, processor, output_dir)
    dist.destroy_process_group()


def save_checkpoint(model: LlavaForConditionalGeneration, processor: LlavaProcessor, output_dir: str) -> None:
    """Write the checkpoint in float16. Loading converts it to the requested precision."""
    copy.deepcopy(model).half().save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
