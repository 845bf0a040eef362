"""The demo's tiny VLM, trained from scratch: `mmrlhf data tiny-vlm --output_dir DIR`.

An ordinary LLaVA checkpoint (CLIP tower, projector, Llama) of 2M parameters with a real tokenizer,
image processor and chat template. The stages use it like any other pre-trained VLM: it sees
(imperfectly), describes, answers questions, reads facts in a prompt and can say what is wrong in an
answer. It has no co-occurrence bias: that comes with fine-tuning on biased captions.

It is trained in three steps. The tower and projector learn word-like features of each grid cell.
From these the language model learns to look (true descriptions, what is where), and then to
converse (answers that may be false, reviews of them, questions, facts).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from rich import print as rich_print
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader
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
    Sample,
    SampleBatches,
    picture_sample,
    pretraining_scene,
    render_images,
    sample_rng,
    text_sample,
)

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


# ---- training ------------------------------------------------------------------------------------

BatchLoss = Callable[..., tuple[Tensor, str]]
"""Maps a batch's tensors to the loss, and to metrics as text."""


def _learning_rate(step: int, num_steps: int, peak_lr: float) -> float:
    """Return the learning rate: 50 steps of warmup, then cosine decay to 2% of the peak."""
    warmup = min(1.0, (step + 1) / 50)
    cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return peak_lr * warmup * (0.02 + 0.98 * cosine)


def _train_stage(
    stage_name: str,
    batches: Iterable,
    num_steps: int,
    parameters: list[nn.Parameter],
    peak_lr: float,
    compute_loss: BatchLoss,
) -> None:
    """Train with Muon (Jordan et al. 2024) on matrices and AdamW on heads, norms and biases.

    The word embedding is small enough to count as a matrix.
    """
    matrices = [p for p in parameters if p.ndim == 2 and min(p.shape) > 16 and max(p.shape) <= 512]
    other_parameters = [p for p in parameters if all(p is not m for m in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=peak_lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other_parameters, lr=peak_lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    start_time = time.time()
    for step, batch in enumerate(batches):
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = _learning_rate(step, num_steps, peak_lr)
        loss, metrics_text = compute_loss(*batch)
        for p in parameters:
            p.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if step % 25 == 0 or step + 1 == num_steps:
            elapsed = time.time() - start_time
            remaining = elapsed / (step + 1) * (num_steps - step - 1)
            rich_print(
                f"{stage_name} {step:5d}/{num_steps}  loss {loss.item():.4f}  {metrics_text}  "
                f"{elapsed:5.0f} s  {remaining:5.0f} s to go",
                flush=True,
            )


def _preprocess(processor: LlavaProcessor, pixels: Tensor) -> Tensor:
    """Normalise images [N, S, S, 3] (uint8) to [N, 3, S, S] as the image processor does."""
    image_processor = processor.image_processor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (image_processor.image_mean, image_processor.image_std))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def _word_token_counts(processor: LlavaProcessor, words: Iterable[str]) -> Tensor:
    """Return token counts [N, V] of each word as it occurs within a sentence (after a space)."""
    tokenizer = processor.tokenizer
    token_ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    return torch.stack([nn.functional.one_hot(torch.tensor(i), len(tokenizer)).sum(0).float() for i in token_ids])


LOGIT_SCALE = 4.0
"""Factor from the dot product of a patch and a word to a logit. At 4, features become about as long
as embeddings."""


def train_vision(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pixels: Tensor,
    targets: Tensor,
    seed: int,
    num_steps: int,
    dtype: torch.dtype,
    parameters: list[nn.Parameter],
    batch_size: int = 128,
) -> None:
    """Train tower or projector, whichever `parameters` are, to put patches near words.

    As in CLIP, a patch's features are drawn to the embeddings of the words for its shape, colour,
    size, pattern and cell, and away from those of other words. The cell is needed because a
    language model with rotary positions cannot address a patch by its place unless the features
    contain it. With words rather than classes, the language model reads in the image what it also
    reads in text, and learns to look ten times sooner.

    pixels: [N, S, S, 3] (uint8). targets: [N, 9, 4], shape, colour, size and pattern of each cell.
    """
    word_groups = [
        [*scenes.SHAPES, "nothing"], [*scenes.COLOURS], [*scenes.SIZES], [*scenes.PATTERNS], [*scenes.CELL_NAMES],
    ]  # fmt: skip
    group_sizes = [len(group) for group in word_groups]
    token_counts = _word_token_counts(processor, [word for group in word_groups for word in group])
    word_embeddings = token_counts @ model.get_input_embeddings().weight.detach()

    def compute_loss(images: Tensor, labels: Tensor) -> tuple[Tensor, str]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            patch_features = _patch_features(model, images)
        logits = (LOGIT_SCALE * patch_features.float() @ word_embeddings.T).split(group_sizes, -1)
        losses = [
            nn.functional.cross_entropy(group_logits.flatten(0, 1), labels[..., k].flatten(), ignore_index=-100)
            for k, group_logits in enumerate(logits)
        ]
        is_object = labels[..., 1] >= 0
        is_correct = [group_logits.argmax(-1) == labels[..., k] for k, group_logits in enumerate(logits)]
        accuracies = [correct[is_object].float().mean().item() for correct in is_correct]
        return torch.stack(losses).sum(), "shape {:.3f} colour {:.3f} size {:.3f} pattern {:.3f} place {:.3f}".format(*accuracies)

    torch.manual_seed(seed)
    batches = _tower_batches(processor, pixels, targets, num_steps, batch_size)
    _train_stage("vision", batches, num_steps, parameters, 1e-3, compute_loss)


def _tower_batches(
    processor: LlavaProcessor, pixels: Tensor, targets: Tensor, num_steps: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images [B, 3, S, S] and labels [B, 9, 5]: the targets and the cell itself."""
    cell_indices = torch.arange(NUM_IMAGE_TOKENS)[None, :, None].expand(batch_size, -1, -1)
    num_epochs = num_steps * batch_size // len(pixels) + 1
    order = torch.cat([torch.randperm(len(pixels)) for _ in range(num_epochs)])
    for indices in order[: num_steps * batch_size].split(batch_size):
        yield _preprocess(processor, pixels[indices]), torch.cat([targets[indices], cell_indices], -1)


def _patch_features(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """Return projected features [N, patches, D] of images [N, 3, S, S]."""
    # Position 0 is CLIP's class token.
    return model.model.multi_modal_projector(model.model.vision_tower(pixel_values=images).last_hidden_state[:, 1:])


CLAIM_HEAD_LAYER = 4
"""Index into the hidden states that the claim head reads."""


def train_language_model(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pixels: Tensor,
    seed: int,
    make_sample: Callable[[scenes.Scene, np.random.Generator], Sample],
    claim_head: nn.Module,
    num_steps: int,
    dtype: torch.dtype,
    batch_size: int = 64,
) -> None:
    """Train the language model on conversations, some of them about images, with frozen vision.

    An auxiliary head on the fourth layer predicts whether each claim in an answer is true, which
    gives the layers above the information that a review needs. It learns only from rows with facts
    in front, and is discarded.
    """
    torch.manual_seed(seed)
    backbone = model.model
    parameters = [*backbone.language_model.parameters(), *claim_head.parameters()]
    with torch.no_grad():
        image_features = torch.cat([_patch_features(model, _preprocess(processor, p)) for p in pixels.split(500)])
    # On a CPU the fused kernel's backward pass takes half of a step for rows this short.
    model.set_attn_implementation("eager")

    def compute_loss(image_indices: Tensor, input_ids: Tensor, labels: Tensor, claim_labels: Tensor) -> tuple[Tensor, str]:
        inputs_embeds = backbone.get_input_embeddings()(input_ids)
        is_image_token = (input_ids == model.config.image_token_id)[..., None]
        has_image = is_image_token[..., 0].any(-1)
        inputs_embeds = inputs_embeds.masked_scatter(is_image_token, image_features[image_indices[has_image]])
        attention_mask = (input_ids != processor.tokenizer.pad_token_id).long()
        loss_mask = labels[:, 1:] >= 0
        claim_mask = ~claim_labels.isnan()  # [B, L, kinds]
        has_claim = claim_mask.any(-1)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = backbone.language_model(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, output_hidden_states=True
            )
            # Select positions before the heads: most of them have no loss.
            logits = model.lm_head(outputs.last_hidden_state[:, :-1][loss_mask])
            claim_logits = claim_head(outputs.hidden_states[CLAIM_HEAD_LAYER][has_claim])
        lm_loss = nn.functional.cross_entropy(logits.float(), labels[:, 1:][loss_mask])
        claim_logits, claim_targets = claim_logits.float()[claim_mask[has_claim]], claim_labels[claim_mask]
        claim_loss = nn.functional.binary_cross_entropy_with_logits(claim_logits, claim_targets)
        is_correct, is_false = ((claim_logits > 0) == (claim_targets > 0.5)).float(), claim_targets < 0.5
        return lm_loss + claim_loss, (
            f"lm {lm_loss.item():.3f} claims {claim_loss.item():.3f} "
            f"recall true {is_correct[~is_false].mean().item():.3f} false {is_correct[is_false].mean().item():.3f}"
        )

    dataset = SampleBatches(processor.tokenizer, make_sample, len(pixels), num_steps, batch_size, seed)
    batches = DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=8)
    _train_stage("language", batches, num_steps, parameters, 2e-3, compute_loss)


def train_tiny_vlm(
    output_dir: str,
    seed: int = 0,
    dtype: str = "float32",
    num_images: int = 29000,
    tower_steps: int = 900,
    text_steps: int = 900,
    projector_steps: int = 200,
    picture_steps: int = 1200,
    unaided_review_rate: float = 0.02,
) -> None:
    """Train the tiny VLM from scratch and write its checkpoint directory (half precision, 4 MB).

    unaided_review_rate: share of conversations about images with a review without facts.
    dtype: precision of matrix products in training. bfloat16 is faster on CPUs that support it and
    much slower on others.
    """
    processor = build_processor(seed)
    model = build_model(processor, seed)
    rich_print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(processor.tokenizer)} tokens")
    pixels, targets = render_images(num_images, seed)
    precision = getattr(torch, dtype)
    vision = (model.model.vision_tower, model.model.multi_modal_projector)
    hidden_size = model.config.text_config.hidden_size
    claim_head = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, len(scenes.CLAIM_KINDS)))

    # 1. Vision: tower and projector learn word-like features of each grid cell
    parameters = [p for module in vision for p in module.parameters()]
    train_vision(model, processor, pixels, targets, seed, tower_steps, precision, parameters)
    # 2. Text: the language model learns to read facts, to answer from them and to review answers
    train_language_model(model, processor, pixels, seed, text_sample, claim_head, text_steps, precision)
    # 3. Projector: align the features with the words that text has changed, as LLaVA does first
    parameters = list(model.model.multi_modal_projector.parameters())
    train_vision(model, processor, pixels, targets, seed, projector_steps, precision, parameters)
    # 4. Pictures: the language model learns to look
    make_sample = partial(picture_sample, unaided_review_rate=unaided_review_rate)
    train_language_model(model, processor, pixels, seed + 1, make_sample, claim_head, picture_steps, precision)
    save_checkpoint(model, processor, output_dir)


def save_checkpoint(model: LlavaForConditionalGeneration, processor: LlavaProcessor, output_dir: str) -> None:
    """Write the checkpoint in float16. Loading converts it to the requested precision."""
    copy.deepcopy(model).half().save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
