"""The world's small vision-language model, made from scratch: `mmrlhf data base --output_dir DIR`.

An ordinary LLaVA checkpoint (CLIP tower, projector, Llama) of 2M parameters with a real tokenizer, image processor and chat
template. It is what a pre-trained VLM is to a user: it sees (imperfectly), speaks, answers questions, reads facts in a prompt,
and can say what in an answer is wrong. It has no habit: that comes with fine-tuning on annotators' captions.

Made in three stages: the tower learns to read each cell of the grid; then, on its frozen features, the language model learns
to look (true descriptions, what is where), and to converse (descriptions that may be false and their review, questions, facts).
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
from mmrlhf.rewards import review_messages

PATCH = 32
"""Pixels: a patch is a cell of the grid, so that a picture is nine tokens."""
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
    text = [m.content for i in range(4000) for m, _ in conversation(scenes.scene("base", i, seed), _rng(seed, i))]
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
    """Random weights: a tower of 3 layers x 128, a language model of 5 layers x 128."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
            image_size=scenes.PIXELS, patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=5,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True, **ids,
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
        number = int(claim.value)
        return (
            f"there are not {scenes.NUMBERS[number]} {claim.subject}s" if number else f"there is {scenes.article(claim.subject)}"
        )
    return f"the {claim.subject} is not {claim.value}"


Turns = list[tuple[Message, bool]]
"""Messages, and which of them are learnt."""


def grounding(scene: scenes.Scene, rng: np.random.Generator) -> Turns:
    """A true description and what stands in four cells: words that only the picture can tell. Learnt first, so that the
    language model looks before it learns to read facts and to guess."""
    described = scenes.describe(scene, rng)
    turns = [(Message("user", described.text), False), (Message("assistant", described.answer), True)]
    for cell in rng.choice(9, size=4, replace=False):
        place = f"at the {scenes.CELLS[cell]}"
        here = [t for t in scene.things if t.cell == cell]
        answer = f"There is {scenes.article(here[0].name) if here else 'nothing'} {place}."
        turns += [(Message("user", f"What is {place}?"), False), (Message("assistant", answer), True)]
    return turns


def conversation(scene: scenes.Scene, rng: np.random.Generator) -> Turns:
    """An answer, its review, and some questions about one picture.

    Half of the answers are wrong: those are read and reviewed, never imitated. In more than half of the conversations facts
    stand in front of the question or of the review.
    """
    faults = int(rng.choice([0, 1, 2, 3], p=[0.5, 0.3, 0.15, 0.05]))
    if rng.random() < 0.85:
        asked = scenes.describe(scene, rng, habit=0.3 if faults else 0.0, faults=faults)
        answer = asked.answer
    else:
        asked = scenes.question(scene, rng)
        answer = scenes.misanswer(asked, rng) if faults else asked.answer
    false = sorted(scenes.judge(scene, answer).false, key=lambda c: c.span)
    place = str(rng.choice(["none", "before", "after"], p=[0.4, 0.4, 0.2]))
    text = facts_.render(scenes.facts(scene, rng), int(rng.integers(1 << 30))) if place != "none" else ""
    reviewed = review_messages((Message("user", asked.text),), answer, text, "after" if place == "after" else "before")
    turns = list(zip(reviewed, (False, not false, False), strict=True))
    verdict = "Yes." if not false else "No, " + " and ".join(correction(c) for c in false[:3]) + "."
    turns.append((Message("assistant", verdict), True))
    for _ in range(3):
        asked = scenes.question(scene, rng)
        turns += [(Message("user", asked.text), False), (Message("assistant", asked.answer), True)]
    return turns


KINDS = ("object", "attribute", "count", "relation")


@dataclass(frozen=True)
class Row:
    """A conversation in tokens: `ids` [L]; `labels` [L], -100 where nothing is learnt; `truth` [L, 4], at the last token of
    each claim that the assistant makes whether it is true (1 or 0) by kind, NaN elsewhere."""

    index: int
    ids: list[int]
    labels: list[int]
    truth: Tensor


def tokens(tokenizer: PreTrainedTokenizerFast, index: int, scene: scenes.Scene, turns: Turns) -> Row:
    ids: list[int] = []
    labels: list[int] = []
    marks: list[tuple[int, int, bool]] = []
    for i, (message, learn) in enumerate(turns):
        if message.role == "user":
            text, learn = f"User: {'<image>' * IMAGE_TOKENS if i == 0 else ''}{message.content} Assistant:", False
        else:
            text = f" {message.content}</s>"
        piece = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if message.role == "assistant":
            for claim in scenes.claims(message.content):
                last = next(k for k, (_, end) in enumerate(piece["offset_mapping"]) if end > claim.span[1])
                true = scenes.verify(scene, claim).value == "supported"
                marks.append((len(ids) + last, KINDS.index(claim.kind), true))
        ids += piece["input_ids"]
        labels += piece["input_ids"] if learn else [-100] * len(piece["input_ids"])
    truth = torch.full((len(ids), len(KINDS)), float("nan"))
    for at, kind, true in marks:
        truth[at, kind] = float(true) if truth[at, kind].isnan() else min(float(true), truth[at, kind].item())
    return Row(index, ids, labels, truth)


class _Conversations(IterableDataset):
    """Batches of (indices [B], ids [B, L], labels [B, L], truth [B, L, 4]) for `steps` steps; rows of like length together."""

    def __init__(self, processor: LlavaProcessor, talk: Callable, pictures: int, steps: int, batch: int, seed: int):
        self.tokenizer, self.talk, self.pictures = processor.tokenizer, talk, pictures
        self.steps, self.batch, self.seed = steps, batch, seed

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        torch.set_num_threads(1)
        for first in range(0, self.steps, WINDOW):
            count = min(WINDOW, self.steps - first)
            rows = []
            for number in range(first * self.batch, (first + count) * self.batch):
                index = number % self.pictures
                scene = scenes.scene("base", index, self.seed)
                rows.append(tokens(self.tokenizer, index, scene, self.talk(scene, _rng(self.seed, number))))
            rows.sort(key=lambda r: len(r.ids))
            for k in _rng(self.seed, first).permutation(count):
                yield self._stack(rows[k * self.batch : (k + 1) * self.batch])

    def _stack(self, rows: list[Row]) -> tuple[Tensor, ...]:
        pad = nn.utils.rnn.pad_sequence
        return (
            torch.tensor([r.index for r in rows]),
            pad([torch.tensor(r.ids) for r in rows], True, self.tokenizer.pad_token_id),
            pad([torch.tensor(r.labels) for r in rows], True, -100),
            pad([r.truth for r in rows], True, float("nan")),
        )


WINDOW = 8
"""Batches whose rows are sorted by length together."""


class _Pictures(Dataset):
    """(pixels [S, S, 3] of uint8, targets [9, 3]): a scene of the base split, and the shape, colour and size in each cell of the
    grid; the last shape is "nothing", and -100 stands for the colour and size of nothing."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = scenes.scene("base", index, self.seed)
        targets = torch.full((9, 3), -100)
        targets[:, 0] = len(scenes.SHAPES)
        for t in scene.things:
            targets[t.cell] = torch.tensor(
                [scenes.SHAPES.index(t.shape), list(scenes.COLOURS).index(t.colour), list(scenes.SIZES).index(t.size)]
            )
        return torch.from_numpy(np.array(scene.image())), targets


def render(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """All pictures [N, S, S, 3] (uint8) and their targets [N, 9, 3]."""
    found = list(DataLoader(_Pictures(count, seed), batch_size=250, num_workers=2))
    return torch.cat([p for p, _ in found]), torch.cat([t for _, t in found])


# ---- training ---------------------------------------------------------------------------------------------------


def _rate(step: int, steps: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _train(name: str, data: Iterable, steps: int, parameters: list[nn.Parameter], peak: float, loss_of: Callable) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.02, betas=(0.9, 0.98))
    began = time.time()
    for step, batch in enumerate(data):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps, peak)
        loss, said = loss_of(*batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 25 == 0 or step + 1 == steps:
            spent = time.time() - began
            left = spent / (step + 1) * (steps - step - 1)
            say(f"{name} {step:5d}/{steps}  loss {loss.item():.4f}  {said}  {spent:5.0f} s  {left:5.0f} s to go", flush=True)


def _normal(processor: LlavaProcessor, pixels: Tensor) -> Tensor:
    """What the image processor makes of pictures that have its size already: [N, S, S, 3] -> [N, 3, S, S]."""
    how = processor.image_processor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.image_mean, how.image_std))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def train_tower(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pixels: Tensor, targets: Tensor, seed: int, steps: int,
    batch: int = 128,
) -> None:  # fmt: skip
    """Teach the tower to see: every patch says what stands in its cell, and where it is. The heads are thrown away.

    Where: a language model with rotary positions cannot address a patch by its place unless the features hold it.
    """
    tower, sizes = model.model.vision_tower, (len(scenes.SHAPES) + 1, len(scenes.COLOURS), len(scenes.SIZES))
    width = model.config.vision_config.hidden_size
    head, place = nn.Linear(width, sum(sizes)), nn.Linear(width, IMAGE_TOKENS)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.cat([torch.randperm(len(pixels)) for _ in range(steps * batch // len(pixels) + 1)])
        for part in order[: steps * batch].split(batch):
            yield _normal(processor, pixels[part]), targets[part]

    def loss_of(images: Tensor, wanted: Tensor) -> tuple[Tensor, str]:
        patches = tower(pixel_values=images).last_hidden_state[:, 1:]
        logits = head(patches).split(sizes, -1)
        loss = nn.functional.cross_entropy(place(patches).flatten(0, 1), torch.arange(IMAGE_TOKENS).repeat(len(images)))
        for k, part in enumerate(logits):
            loss = loss + nn.functional.cross_entropy(part.flatten(0, 1), wanted[..., k].flatten(), ignore_index=-100)
        there = wanted[..., 1] >= 0
        right = [(part.argmax(-1) == wanted[..., k])[there].float().mean().item() for k, part in enumerate(logits)]
        return loss, "shape {:.3f} colour {:.3f} size {:.3f}".format(*right)

    torch.manual_seed(seed)
    _train("tower", batches(), steps, [*tower.parameters(), *head.parameters(), *place.parameters()], 1e-3, loss_of)


def train_language(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pixels: Tensor, seed: int, looks: int, steps: int,
    batch: int = 32,
) -> None:  # fmt: skip
    """Teach projector and language model to speak about what the frozen tower sees: first to look, then to converse.

    Beside the words, a head on the third layer says of each claim in an answer whether it is true, so that what a review
    needs is there for the layers above to gather. The head is thrown away.
    """
    tower, body = model.model.vision_tower.requires_grad_(False), model.model
    with torch.no_grad():
        features = torch.cat([tower(pixel_values=_normal(processor, p)).last_hidden_state[:, 1:] for p in pixels.split(500)])
    width = model.config.text_config.hidden_size
    check = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(KINDS)))

    def loss_of(indices: Tensor, ids: Tensor, labels: Tensor, truth: Tensor) -> tuple[Tensor, str]:
        embedded = body.get_input_embeddings()(ids)
        where = ids == model.config.image_token_id
        embedded = embedded.masked_scatter(where[..., None], body.multi_modal_projector(features[indices]))
        mask = (ids != processor.tokenizer.pad_token_id).long()
        out = body.language_model(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True)
        learnt = labels[:, 1:] >= 0
        logits = model.lm_head(out.last_hidden_state[:, :-1][learnt])
        words = nn.functional.cross_entropy(logits, labels[:, 1:][learnt])
        marked = ~truth.isnan()
        doubts = check(out.hidden_states[3])[marked]
        claims = nn.functional.binary_cross_entropy_with_logits(doubts, truth[marked])
        right = ((doubts > 0) == (truth[marked] > 0.5)).float()
        false = truth[marked] < 0.5
        return words + claims, (
            f"words {words.item():.3f} claims {claims.item():.3f} "
            f"true told {right[~false].mean().item():.3f} false told {right[false].mean().item():.3f}"
        )

    parameters = [p for p in [*model.parameters(), *check.parameters()] if p.requires_grad]
    for name, talk, count, peak in (("looking", grounding, looks, 2e-3), ("talking", conversation, steps, 2e-3)):
        data = _Conversations(processor, talk, len(pixels), count, batch, seed)
        _train(name, DataLoader(data, batch_size=None, num_workers=1), count, parameters, peak, loss_of)


def build(
    output_dir: str, seed: int = 0, pictures: int = 20000, tower_steps: int = 600, looks: int = 1500, language_steps: int = 2000
) -> None:
    """Train the base from scratch and write its checkpoint directory (half precision, 4 MB).

    On two cores without bfloat16 the tower took 0.13 seconds a step, the language model 0.6 to 0.7. 340 looks and 640 steps were
    too few: colours and counts were read, shapes were not. The default numbers of steps have not been run.
    """
    processor = new_processor(seed)
    model = new_model(processor, seed)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(processor.tokenizer)} tokens")
    pixels, targets = render(pictures, seed)
    train_tower(model, processor, pixels, targets, seed, tower_steps)
    train_language(model, processor, pixels, seed, looks, language_steps)
    save(model, processor, output_dir)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, output_dir: str) -> None:
    """The checkpoint in float16; loading gives float32 where asked for."""
    copy.deepcopy(model).half().save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
