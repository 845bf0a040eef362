"""The world's small vision-language model, made from scratch: `mmrlhf data tiny-vlm --output_dir DIR`.

An ordinary LLaVA checkpoint (CLIP tower, projector, Llama) of 2M parameters with a real tokenizer, image processor and chat
template. It is what a pre-trained VLM is to a user: it sees (imperfectly), speaks, answers questions, reads facts in a prompt,
and can say what in an answer is wrong. It has no habit: that comes with fine-tuning on annotators' captions.

Made in three stages: tower and projector learn to make word-like features of each cell of the grid; then, on these, the language
model learns to look (true descriptions, what is where), and to converse (answers that may be false and their review, questions, facts).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from rich import print as say
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from mmrlhf import facts as facts_
from mmrlhf import scenes
from mmrlhf.records import Claim, Message
from mmrlhf.rewards.reward_model import reward_messages

PATCH_SIZE = 32
"""Pixels: a patch is a cell of the grid, so that a picture is nine tokens."""
NUM_IMAGE_TOKENS = (scenes.IMAGE_SIZE // PATCH_SIZE) ** 2
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


# ---- the checkpoint ---------------------------------------------------------------------------------------------


def build_processor(seed: int) -> LlavaProcessor:
    """Byte-level BPE learnt on the world's language (any other text still encodes), CLIP's image processor."""
    texts = [m.content for i in range(4000) for m, _ in chat_sample(_pretraining_scene(i, seed), _rng(seed, i))]
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
    """Random weights: a tower of 3 layers x 128, a language model of 6 layers x 128."""
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
            initializer_range=0.05, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True, **special_token_ids,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=NUM_IMAGE_TOKENS, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=config.text_config.hidden_size**-0.5)
    for name, value in special_token_ids.items():
        setattr(model.generation_config, name, value)
    return model


# ---- what it learns from ----------------------------------------------------------------------------------------


PRETRAINING_DIFFICULTY = scenes.Difficulty(occluded_share=0.35)
LOCATION_RATE = 0.25
"""What a model was pre-trained on is broader than what it is used for: more is hard to see, and places are told more often."""


def _pretraining_scene(index: int, seed: int) -> scenes.Scene:
    return scenes.generate_scene("base", index, seed, PRETRAINING_DIFFICULTY)


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, 7, index])


def refutation(claim: Claim) -> str:
    """How the small model says that a claim is false."""
    if claim.kind == "object":
        return f"there is no {claim.subject}"
    if claim.kind == "attribute":
        return f"there is no {claim.value} {claim.subject}"
    if claim.kind == "count":
        count = int(claim.value)
        return (
            f"there are not {scenes.count_phrase(count, claim.subject)}"
            if count
            else f"there is {scenes.with_article(claim.subject)}"
        )
    return f"the {claim.subject} is not {claim.value}"


Turns = list[tuple[Message, bool]]
"""Messages, and which of them are learnt."""


def grounding_sample(scene: scenes.Scene, rng: np.random.Generator) -> Turns:
    """A true description and what stands in four cells: words that only the picture can tell. Learnt first, so that the
    language model looks before it learns to read facts and to guess."""
    question = scenes.description_question(scene, rng, placed=LOCATION_RATE)
    turns = [(Message("user", question.text), False), (Message("assistant", question.answer), True)]
    for cell in rng.choice(9, size=4, replace=False):
        location = f"at the {scenes.CELL_NAMES[cell]}"
        objects_in_cell = [t for t in scene.objects if t.cell == cell]
        answer = f"There is {scenes.with_article(objects_in_cell[0].name) if objects_in_cell else 'nothing'} {location}."
        turns += [(Message("user", f"What is {location}?"), False), (Message("assistant", answer), True)]
    return turns


def chat_sample(scene: scenes.Scene, rng: np.random.Generator) -> Turns:
    """An answer, its review, and some questions about one picture.

    Half of the answers are wrong: those are read and reviewed, never imitated. In more than half of the conversations facts
    stand in front of the question or of the review.
    """
    num_faults = int(rng.choice([0, 1, 2, 3], p=[0.5, 0.3, 0.15, 0.05]))
    if rng.random() < 0.85:
        question = scenes.description_question(
            scene, rng, habit=0.3 if num_faults else 0.0, faults=num_faults, placed=LOCATION_RATE
        )
        answer = question.answer
    else:
        question = scenes.short_question(scene, rng)
        answer = scenes.wrong_answer(question, rng) if num_faults else question.answer
    false_claims = [
        c for c in dict.fromkeys(scenes.parse_claims(answer)) if scenes.verify_claim(scene, c).value == "contradicted"
    ]
    facts_position = str(rng.choice(["none", "before", "after"], p=[0.4, 0.4, 0.2]))
    facts_text = (
        facts_.render_facts(scenes.annotator_facts(scene, rng), int(rng.integers(1 << 30))) if facts_position != "none" else ""
    )
    messages = reward_messages(
        (Message("user", question.text),), answer, facts_text, "after" if facts_position == "after" else "before"
    )
    turns = list(zip(messages, (False, not false_claims, False), strict=True))
    review = "Yes." if not false_claims else "No, " + " and ".join(refutation(c) for c in false_claims[:3]) + "."
    turns.append((Message("assistant", review), True))
    for _ in range(3):
        question = scenes.short_question(scene, rng)
        turns += [(Message("user", question.text), False), (Message("assistant", question.answer), True)]
    return turns


CLAIM_KINDS = ("object", "attribute", "count", "relation")


@dataclass(frozen=True)
class TokenizedSample:
    """A conversation in tokens: `ids` [L]; `labels` [L], -100 where nothing is learnt; `truth` [L, 4], at the last token of
    each claim that the assistant makes whether it is true (1 or 0) by kind, NaN elsewhere."""

    image_index: int
    input_ids: list[int]
    labels: list[int]
    claim_labels: Tensor


def tokenize_sample(tokenizer: PreTrainedTokenizerFast, image_index: int, scene: scenes.Scene, turns: Turns) -> TokenizedSample:
    input_ids: list[int] = []
    labels: list[int] = []
    claim_marks: list[tuple[int, int, bool]] = []
    for i, (message, has_loss) in enumerate(turns):
        if message.role == "user":
            text, has_loss = f"User: {'<image>' * NUM_IMAGE_TOKENS if i == 0 else ''}{message.content} Assistant:", False
        else:
            text = f" {message.content}</s>"
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if message.role == "assistant":
            for claim in scenes.parse_claims(message.content):
                last_token = next(k for k, (_, end) in enumerate(encoding["offset_mapping"]) if end > claim.span[1])
                is_true = scenes.verify_claim(scene, claim).value == "supported"
                claim_marks.append((len(input_ids) + last_token, CLAIM_KINDS.index(claim.kind), is_true))
        input_ids += encoding["input_ids"]
        labels += encoding["input_ids"] if has_loss else [-100] * len(encoding["input_ids"])
    claim_labels = torch.full((len(input_ids), len(CLAIM_KINDS)), float("nan"))
    for position, kind, is_true in claim_marks:
        claim_labels[position, kind] = (
            float(is_true) if claim_labels[position, kind].isnan() else min(float(is_true), claim_labels[position, kind].item())
        )
    return TokenizedSample(image_index, input_ids, labels, claim_labels)


class _SampleBatches(IterableDataset):
    """Batches of (indices [B], ids [B, L], labels [B, L], truth [B, L, 4]) for `steps` steps; rows of like length together."""

    def __init__(
        self, processor: LlavaProcessor, make_sample: Callable, num_images: int, num_steps: int, batch_size: int, seed: int
    ):
        self.tokenizer, self.make_sample, self.num_images = processor.tokenizer, make_sample, num_images
        self.num_steps, self.batch_size, self.seed = num_steps, batch_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        torch.set_num_threads(1)
        for first_step in range(0, self.num_steps, SORT_WINDOW_BATCHES):
            num_batches = min(SORT_WINDOW_BATCHES, self.num_steps - first_step)
            rows = []
            for sample_index in range(first_step * self.batch_size, (first_step + num_batches) * self.batch_size):
                image_index = sample_index % self.num_images
                scene = _pretraining_scene(image_index, self.seed)
                rows.append(
                    tokenize_sample(self.tokenizer, image_index, scene, self.make_sample(scene, _rng(self.seed, sample_index)))
                )
            rows.sort(key=lambda r: len(r.input_ids))
            for k in _rng(self.seed, first_step).permutation(num_batches):
                yield self._collate(rows[k * self.batch_size : (k + 1) * self.batch_size])

    def _collate(self, rows: list[TokenizedSample]) -> tuple[Tensor, ...]:
        pad = nn.utils.rnn.pad_sequence
        return (
            torch.tensor([r.image_index for r in rows]),
            pad([torch.tensor(r.input_ids) for r in rows], True, self.tokenizer.pad_token_id),
            pad([torch.tensor(r.labels) for r in rows], True, -100),
            pad([r.claim_labels for r in rows], True, float("nan")),
        )


SORT_WINDOW_BATCHES = 8
"""Batches whose rows are sorted by length together."""


class _SceneImages(Dataset):
    """(pixels [S, S, 3] of uint8, targets [9, 3]): a scene of the base split, and the shape, colour and size in each cell of the
    grid; the last shape is "nothing", and -100 stands for the colour and size of nothing."""

    def __init__(self, num_images: int, seed: int):
        self.num_images, self.seed = num_images, seed

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = _pretraining_scene(index, self.seed)
        targets = torch.full((9, 3), -100)
        targets[:, 0] = len(scenes.SHAPES)
        for t in scene.objects:
            targets[t.cell] = torch.tensor(
                [scenes.SHAPES.index(t.shape), list(scenes.COLOURS).index(t.colour), list(scenes.SIZES).index(t.size)]
            )
        return torch.from_numpy(np.array(scene.image())), targets


def render_images(num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """All pictures [N, S, S, 3] (uint8) and their targets [N, 9, 3]."""
    batches = list(DataLoader(_SceneImages(num_images, seed), batch_size=250, num_workers=2))
    return torch.cat([p for p, _ in batches]), torch.cat([t for _, t in batches])


# ---- training ---------------------------------------------------------------------------------------------------


def _learning_rate(step: int, num_steps: int, peak_lr: float) -> float:
    return peak_lr * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def _train_stage(
    stage_name: str, batches: Iterable, num_steps: int, parameters: list[nn.Parameter], peak_lr: float, compute_loss: Callable
) -> None:
    """Muon (Jordan et al. 2024) for matrices, which the small word embedding is as well; AdamW for heads, norms and biases."""
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
            say(
                f"{stage_name} {step:5d}/{num_steps}  loss {loss.item():.4f}  {metrics_text}  {elapsed:5.0f} s  {remaining:5.0f} s to go",
                flush=True,
            )


def _preprocess(processor: LlavaProcessor, pixels: Tensor) -> Tensor:
    """What the image processor makes of pictures that have its size already: [N, S, S, 3] -> [N, 3, S, S]."""
    image_processor = processor.image_processor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (image_processor.image_mean, image_processor.image_std))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def _word_token_mask(processor: LlavaProcessor, words: Iterable[str]) -> Tensor:
    """Which tokens [N, V] (0 or 1) make up each name as it stands inside a sentence."""
    tokenizer = processor.tokenizer
    token_ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    return torch.stack([nn.functional.one_hot(torch.tensor(i), len(tokenizer)).sum(0).float() for i in token_ids])


def train_vision_tower(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pixels: Tensor, targets: Tensor, seed: int, num_steps: int,
    dtype: torch.dtype, batch_size: int = 128,
) -> None:  # fmt: skip
    """Teach tower and projector to see: what they make of a patch should lie near the embeddings of the words for what stands
    there (shape, colour, size, place), and far from those of other words; as CLIP's towers are drawn to captions.

    Where: a language model with rotary positions cannot address a patch by its place unless the features hold it. Words, and
    not classes: the language model then finds in the picture what it also finds in text, and learns to look ten times sooner.
    """
    word_groups = [[*scenes.SHAPES, "nothing"], [*scenes.COLOURS], [*scenes.SIZES], [*scenes.CELL_NAMES]]
    group_sizes = [len(n) for n in word_groups]
    word_embeddings = (
        _word_token_mask(processor, [name for group in word_groups for name in group])
        @ model.get_input_embeddings().weight.detach()
    )
    cell_indices = torch.arange(NUM_IMAGE_TOKENS)[None, :, None]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.cat([torch.randperm(len(pixels)) for _ in range(num_steps * batch_size // len(pixels) + 1)])
        for indices in order[: num_steps * batch_size].split(batch_size):
            yield (
                _preprocess(processor, pixels[indices]),
                torch.cat([targets[indices], cell_indices.expand(batch_size, -1, -1)], -1),
            )

    def compute_loss(images: Tensor, labels: Tensor) -> tuple[Tensor, str]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            patch_features = _patch_features(model, images)
        logits = (LOGIT_SCALE * patch_features.float() @ word_embeddings.T).split(group_sizes, -1)
        losses = [
            nn.functional.cross_entropy(group_logits.flatten(0, 1), labels[..., k].flatten(), ignore_index=-100)
            for k, group_logits in enumerate(logits)
        ]
        is_object = labels[..., 1] >= 0
        accuracies = [
            (group_logits.argmax(-1) == labels[..., k])[is_object].float().mean().item() for k, group_logits in enumerate(logits)
        ]
        return torch.stack(losses).sum(), "shape {:.3f} colour {:.3f} size {:.3f} place {:.3f}".format(*accuracies)

    torch.manual_seed(seed)
    vision_parameters = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    _train_stage("tower", batches(), num_steps, vision_parameters, 1e-3, compute_loss)


LOGIT_SCALE = 4.0
"""By how much a patch's nearness to a word is multiplied to give a logit: then features are about as long as embeddings."""


def _patch_features(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """Projected features [N, patches, D] of pictures [N, 3, S, S]."""
    return model.model.multi_modal_projector(model.model.vision_tower(pixel_values=images).last_hidden_state[:, 1:])


def train_language_model(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pixels: Tensor, seed: int, grounding_steps: int, chat_steps: int,
    dtype: torch.dtype, batch_size: int = 64,
) -> None:  # fmt: skip
    """Teach the language model to speak about what the frozen tower sees: first to look, then to converse.

    Beside the words, a head on the fourth layer says of each claim in an answer whether it is true, so that what a review
    needs is there for the layers above to gather. The head is thrown away.
    """
    torch.manual_seed(seed)
    backbone = model.model
    backbone.vision_tower.requires_grad_(False)
    backbone.multi_modal_projector.requires_grad_(False)
    with torch.no_grad():
        image_features = torch.cat([_patch_features(model, _preprocess(processor, p)) for p in pixels.split(500)])
    # On a CPU the fused kernel's backward pass takes half of a step for rows this short.
    model.set_attn_implementation("eager")
    hidden_size = model.config.text_config.hidden_size
    claim_head = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, len(CLAIM_KINDS)))

    def compute_loss(image_indices: Tensor, input_ids: Tensor, labels: Tensor, claim_labels: Tensor) -> tuple[Tensor, str]:
        inputs_embeds = backbone.get_input_embeddings()(input_ids)
        inputs_embeds = inputs_embeds.masked_scatter(
            (input_ids == model.config.image_token_id)[..., None], image_features[image_indices]
        )
        attention_mask = (input_ids != processor.tokenizer.pad_token_id).long()
        loss_mask = labels[:, 1:] >= 0
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = backbone.language_model(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, output_hidden_states=True
            )
            logits = model.lm_head(outputs.last_hidden_state[:, :-1][loss_mask])
            claim_mask = ~claim_labels.isnan()
            claim_logits = claim_head(outputs.hidden_states[4][claim_mask.any(-1)])
        lm_loss = nn.functional.cross_entropy(logits.float(), labels[:, 1:][loss_mask])
        claim_logits, claim_targets = claim_logits.float()[claim_mask[claim_mask.any(-1)]], claim_labels[claim_mask]
        claim_loss = nn.functional.binary_cross_entropy_with_logits(claim_logits, claim_targets)
        is_correct, is_false = ((claim_logits > 0) == (claim_targets > 0.5)).float(), claim_targets < 0.5
        return lm_loss + claim_loss, (
            f"words {lm_loss.item():.3f} claims {claim_loss.item():.3f} "
            f"true told {is_correct[~is_false].mean().item():.3f} false told {is_correct[is_false].mean().item():.3f}"
        )

    parameters = [p for p in [*model.parameters(), *claim_head.parameters()] if p.requires_grad]
    for stage_name, make_sample, num_steps in (
        ("looking", grounding_sample, grounding_steps),
        ("talking", chat_sample, chat_steps),
    ):
        dataset = _SampleBatches(processor, make_sample, len(pixels), num_steps, batch_size, seed)
        _train_stage(
            stage_name,
            DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=8),
            num_steps,
            parameters,
            2e-3,
            compute_loss,
        )


def train_tiny_vlm(
    output_dir: str, seed: int = 0, dtype: str = "float32", num_images: int = 29000, tower_steps: int = 900, grounding_steps: int = 350,
    chat_steps: int = 1200,
) -> None:  # fmt: skip
    """Train the base from scratch and write its checkpoint directory (half precision, 4 MB).

    dtype: of matrix products while training; bfloat16 is quicker where the processor has it, and much slower where it has not.
    With it, on two cores that have it: pictures 20 s, tower 1 minute, looking 3, conversing 9. What ships was
    made so, with seed 0; since then only texts were corrected (plurals, the order of corrections, facts meant to be wrong).
    """
    processor = build_processor(seed)
    model = build_model(processor, seed)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(processor.tokenizer)} tokens")
    pixels, targets = render_images(num_images, seed)
    train_vision_tower(model, processor, pixels, targets, seed, tower_steps, getattr(torch, dtype))
    train_language_model(model, processor, pixels, seed, grounding_steps, chat_steps, getattr(torch, dtype))
    save_checkpoint(model, processor, output_dir)


def save_checkpoint(model: LlavaForConditionalGeneration, processor: LlavaProcessor, output_dir: str) -> None:
    """The checkpoint in float16; loading gives float32 where asked for."""
    copy.deepcopy(model).half().save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
