"""The world's small vision-language model, made from scratch: `mmrlhf data base --output_dir DIR`.

An ordinary LLaVA checkpoint (CLIP tower, projector, Llama) of 2.6M parameters with a real tokenizer, image processor and
chat template. It is what a pre-trained VLM is to a user: it sees (imperfectly), speaks, answers questions, reads facts in a
prompt, and can say what in an answer is wrong. It has no habit: that comes with fine-tuning on annotators' captions.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from rich import print as say
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
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
from mmrlhf.rewards import review_messages

PATCH = 16
IMAGE_TOKENS = (scenes.PIXELS // PATCH) ** 2
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


# ---- the checkpoint ---------------------------------------------------------------------------------------------


def new_processor(seed: int) -> LlavaProcessor:
    """Byte-level BPE learnt on the world's language (any other text still encodes), CLIP's image processor."""
    text = [m.content for i in range(4000) for m in conversation(scenes.scene("base", i, seed), _rng(seed, i))[0]]
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [line for t in text for line in (f" {t} Assistant:", t, "User:", "System:")],
        trainers.BpeTrainer(
            vocab_size=640,
            special_tokens=["<unk>", "<pad>", "<s>", "</s>", "<image>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    side = {"height": scenes.PIXELS, "width": scenes.PIXELS}
    images = CLIPImageProcessor(size={"shortest_edge": scenes.PIXELS}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip


def new_model(processor: LlavaProcessor, seed: int) -> LlavaForConditionalGeneration:
    """Random weights: a tower of 4 layers x 128, a language model of 5 layers x 160."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
            image_size=scenes.PIXELS, patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=160, intermediate_size=448, num_hidden_layers=5,
            num_attention_heads=5, num_key_value_heads=5, max_position_embeddings=2048, tie_word_embeddings=True, **ids,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=IMAGE_TOKENS, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model


# ---- what it learns from ----------------------------------------------------------------------------------------


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, 7, index])


def correction(claim: Claim) -> str:
    """How the small model says that a claim is false."""
    if claim.kind == "object":
        return f"there is no {claim.subject}"
    if claim.kind == "attribute":
        return f"there is no {claim.value} {claim.subject}"
    if claim.kind == "count":
        return f"there are not {scenes.NUMBERS[int(claim.value)]} {claim.subject}s"
    return f"the {claim.subject} is not {claim.value}"


def grounding(scene: scenes.Scene, rng: np.random.Generator) -> tuple[list[Message], list[bool]]:
    """A true description and what stands in four cells: words that only the picture can tell. Learnt first, so that the
    language model looks before it learns to read facts and to guess."""
    described = scenes.describe(scene, rng)
    messages = [Message("user", described.text), Message("assistant", described.answer)]
    for cell in rng.choice(9, size=4, replace=False):
        place = f"at the {scenes.CELLS[cell]}"
        here = [t for t in scene.things if t.cell == cell]
        answer = f"There is {scenes.article(here[0].name) if here else 'nothing'} {place}."
        messages += [Message("user", f"What is {place}?"), Message("assistant", answer)]
    return messages, [False, True] * 5


def conversation(scene: scenes.Scene, rng: np.random.Generator) -> tuple[list[Message], list[bool]]:
    """A description, a review of it and some questions about one picture; and which messages are learnt.

    Half of the conversations hold facts, in front of the description or of its review. Wrong descriptions are read
    and reviewed, never imitated.
    """
    faults = int(rng.choice([0, 1, 2, 3], p=[0.5, 0.25, 0.15, 0.1]))
    described = scenes.describe(scene, rng, habit=0.3 if faults else 0.0, faults=faults)
    false = sorted(scenes.judge(scene, described.answer).false, key=lambda c: (c.kind, c.subject, c.value))
    place = str(rng.choice(["none", "before", "after"], p=[0.6, 0.25, 0.15]))
    text = facts_.render(scenes.facts(scene, rng), int(rng.integers(1 << 30))) if place != "none" else ""
    messages = list(
        review_messages((Message("user", described.text),), described.answer, text, "after" if place == "after" else "before")
    )
    learnt = [False, not false, False]
    verdict = "Yes." if not false else "No, " + " and ".join(correction(c) for c in false[:3]) + "."
    messages.append(Message("assistant", verdict))
    learnt.append(True)
    for _ in range(4):
        asked = scenes.question(scene, rng)
        messages += [Message("user", asked.text), Message("assistant", asked.answer)]
        learnt += [False, True]
    return messages, learnt


class _Conversations(IterableDataset):
    """Batches of (pixels [B, 3, S, S], ids [B, L], labels [B, L], mask [B, L]), drawn and rendered as they are needed."""

    def __init__(self, processor: LlavaProcessor, talk: Callable, first: int, last: int, batch: int, seed: int):
        self.processor, self.talk = processor, talk
        self.first, self.last, self.batch, self.seed = first, last, batch, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        tokenizer = self.processor.tokenizer
        for start in range(self.first, self.last, self.batch):
            rows, pixels = [], []
            for index in range(start, start + self.batch):
                scene = scenes.scene("base", index, self.seed)
                rows.append(_tokens(tokenizer, *self.talk(scene, _rng(self.seed, index))))
                pixels.append(scene.image())
            longest = max(len(ids) for ids, _ in rows)
            ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
            labels = torch.full((len(rows), longest), -100)
            for i, (row_ids, row_labels) in enumerate(rows):
                ids[i, : len(row_ids)] = torch.tensor(row_ids)
                labels[i, : len(row_labels)] = torch.tensor(row_labels)
            images = self.processor.image_processor(pixels, return_tensors="pt")["pixel_values"]
            yield images, ids, labels, (ids != tokenizer.pad_token_id).long()


def _tokens(tokenizer: PreTrainedTokenizerFast, messages: list[Message], learnt: list[bool]) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and labels that are -100 wherever nothing is learnt."""
    pieces = []
    for i, (message, learn) in enumerate(zip(messages, learnt, strict=True)):
        image = "<image>" * IMAGE_TOKENS if i == 0 else ""
        end = "</s>" if message.role == "assistant" else " Assistant:"
        if message.role == "user":
            pieces.append((f"User: {image}{message.content}{end}", False))
        else:
            pieces.append((f" {message.content}{end}", learn))
    ids: list[int] = []
    labels: list[int] = []
    for text, learn in pieces:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if learn else [-100] * len(piece)
    return ids, labels


# ---- training ---------------------------------------------------------------------------------------------------


class _Cells(IterableDataset):
    """Batches of (pixels [B, 3, S, S], targets [B, 9, 3]): shape, colour and size in each cell of the grid; the last shape is
    "nothing", and -100 stands for the colour and size of nothing."""

    def __init__(self, processor: LlavaProcessor, steps: int, batch: int, seed: int):
        self.processor, self.steps, self.batch, self.seed = processor, steps, batch, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.steps):
            drawn = [scenes.scene("base", i, self.seed) for i in range(step * self.batch, (step + 1) * self.batch)]
            targets = torch.full((self.batch, 9, 3), -100)
            targets[..., 0] = len(scenes.SHAPES)
            for i, scene in enumerate(drawn):
                for t in scene.things:
                    targets[i, t.cell] = torch.tensor(
                        [scenes.SHAPES.index(t.shape), list(scenes.COLOURS).index(t.colour), list(scenes.SIZES).index(t.size)]
                    )
            yield self.processor.image_processor([s.image() for s in drawn], return_tensors="pt")["pixel_values"], targets


def _rate(step: int, steps: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _train(
    name: str, data: IterableDataset, steps: int, parameters: list[torch.nn.Parameter], peak: float, loss_of: Callable
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.02, betas=(0.9, 0.98))
    began = time.time()
    for step, batch in enumerate(DataLoader(data, batch_size=None, num_workers=1)):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps, peak)
        with torch.autocast("cpu", torch.bfloat16):
            loss, said = loss_of(*batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 25 == 0 or step + 1 == steps:
            spent = time.time() - began
            left = spent / (step + 1) * (steps - step - 1)
            say(f"{name} {step:5d}/{steps}  loss {loss.item():.4f}  {said}  {spent:5.0f} s  {left:5.0f} s to go")


def train_tower(model: LlavaForConditionalGeneration, processor: LlavaProcessor, seed: int, steps: int, batch: int = 96) -> None:
    """Teach the tower to see: every patch says what stands in its cell, and where it is. The heads are thrown away.

    Where: a language model with rotary positions cannot address a patch by its place unless the features hold it.
    """
    tower, sizes = model.model.vision_tower, (len(scenes.SHAPES) + 1, len(scenes.COLOURS), len(scenes.SIZES))
    head, place = torch.nn.Linear(128, sum(sizes)), torch.nn.Linear(128, IMAGE_TOKENS)
    columns = torch.arange(IMAGE_TOKENS) % 6
    cell_of = torch.arange(IMAGE_TOKENS) // 12 * 3 + columns // 2

    def loss_of(pixels: Tensor, targets: Tensor) -> tuple[Tensor, str]:
        patches = tower(pixel_values=pixels).last_hidden_state[:, 1:]
        wanted = targets[:, cell_of]
        logits = head(patches).float().split(sizes, -1)
        loss = torch.nn.functional.cross_entropy(
            place(patches).float().flatten(0, 1), torch.arange(IMAGE_TOKENS).repeat(len(pixels))
        )
        for k, part in enumerate(logits):
            loss = loss + torch.nn.functional.cross_entropy(part.flatten(0, 1), wanted[..., k].flatten(), ignore_index=-100)
        there = wanted[..., 1] >= 0
        right = [(part.argmax(-1) == wanted[..., k])[there].float().mean().item() for k, part in enumerate(logits)]
        return loss, "shape {:.3f} colour {:.3f} size {:.3f}".format(*right)

    _train(
        "tower",
        _Cells(processor, steps, batch, seed),
        steps,
        [*tower.parameters(), *head.parameters(), *place.parameters()],
        1e-3,
        loss_of,
    )


def train_language(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, seed: int, looks: int, steps: int, batch: int = 48
) -> None:
    """Teach projector and language model to speak about what the frozen tower sees: first to look, then to converse."""
    model.model.vision_tower.requires_grad_(False)

    def loss_of(pixels: Tensor, ids: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, str]:
        return model(input_ids=ids, pixel_values=pixels, attention_mask=mask, labels=labels).loss, ""

    parameters = [p for p in model.parameters() if p.requires_grad]
    _train("grounding", _Conversations(processor, grounding, 0, looks * batch, batch, seed), looks, parameters, 2e-3, loss_of)
    _train("language", _Conversations(processor, conversation, 0, steps * batch, batch, seed), steps, parameters, 1.5e-3, loss_of)


def build(output_dir: str, seed: int = 0, tower_steps: int = 550, looks: int = 600, language_steps: int = 600) -> None:
    """Train the base from scratch and write its checkpoint directory (half precision, 5 MB). Its parts took 0.4 (tower), 1.2
    (grounding) and 1.4 (language) seconds a step on 2 cores; the whole has not been timed."""
    processor = new_processor(seed)
    model = new_model(processor, seed)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(processor.tokenizer)} tokens")
    train_tower(model, processor, seed, tower_steps)
    train_language(model, processor, seed, looks, language_steps)
    save(model, processor, output_dir)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, output_dir: str) -> None:
    """The checkpoint in float16; loading gives float32 where asked for."""
    copy.deepcopy(model).half().save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
