"""The world's small vision-language model, made from scratch: `mmrlhf data base --output_dir DIR`.

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
    text = [m.content for i in range(4000) for m, _ in conversation(_scene(i, seed), _rng(seed, i))]
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
    """Random weights: a tower of 3 layers x 128, a language model of 6 layers x 128."""
    torch.manual_seed(seed)
    tokenizer = processor.tokenizer
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
            image_size=scenes.PIXELS, patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=6,
            initializer_range=0.05, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True, **ids,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=IMAGE_TOKENS, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=config.text_config.hidden_size**-0.5)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model


# ---- what it learns from ----------------------------------------------------------------------------------------


HARDER = scenes.Difficulty(hard=0.35)
PLACED = 0.25
"""What a model was pre-trained on is broader than what it is used for: more is hard to see, and places are told more often."""


def _scene(index: int, seed: int) -> scenes.Scene:
    return scenes.scene("base", index, seed, HARDER)


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
        return f"there are not {scenes.plural(number, claim.subject)}" if number else f"there is {scenes.article(claim.subject)}"
    return f"the {claim.subject} is not {claim.value}"


Turns = list[tuple[Message, bool]]
"""Messages, and which of them are learnt."""


def grounding(scene: scenes.Scene, rng: np.random.Generator) -> Turns:
    """A true description and what stands in four cells: words that only the picture can tell. Learnt first, so that the
    language model looks before it learns to read facts and to guess."""
    described = scenes.describe(scene, rng, placed=PLACED)
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
        asked = scenes.describe(scene, rng, habit=0.3 if faults else 0.0, faults=faults, placed=PLACED)
        answer = asked.answer
    else:
        asked = scenes.question(scene, rng)
        answer = scenes.misanswer(asked, rng) if faults else asked.answer
    false = [c for c in dict.fromkeys(scenes.claims(answer)) if scenes.verify(scene, c).value == "contradicted"]
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
                scene = _scene(index, self.seed)
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
        scene = _scene(index, self.seed)
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
    """Muon (Jordan et al. 2024) for matrices, which the small word embedding is as well; AdamW for heads, norms and biases."""
    matrices = [p for p in parameters if p.ndim == 2 and min(p.shape) > 16 and max(p.shape) <= 512]
    others = [p for p in parameters if all(p is not m for m in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=peak, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    began = time.time()
    for step, batch in enumerate(data):
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = _rate(step, steps, peak)
        loss, said = loss_of(*batch)
        for p in parameters:
            p.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
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


def _words(processor: LlavaProcessor, names: Iterable[str]) -> Tensor:
    """Which tokens [N, V] (0 or 1) make up each name as it stands inside a sentence."""
    tokenizer = processor.tokenizer
    ids = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
    return torch.stack([nn.functional.one_hot(torch.tensor(i), len(tokenizer)).sum(0).float() for i in ids])


def train_tower(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pixels: Tensor, targets: Tensor, seed: int, steps: int,
    dtype: torch.dtype, batch: int = 128,
) -> None:  # fmt: skip
    """Teach tower and projector to see: what they make of a patch should lie near the embeddings of the words for what stands
    there (shape, colour, size, place), and far from those of other words; as CLIP's towers are drawn to captions.

    Where: a language model with rotary positions cannot address a patch by its place unless the features hold it. Words, and
    not classes: the language model then finds in the picture what it also finds in text, and learns to look ten times sooner.
    """
    names = [[*scenes.SHAPES, "nothing"], [*scenes.COLOURS], [*scenes.SIZES], [*scenes.CELLS]]
    sizes = [len(n) for n in names]
    words = _words(processor, [name for group in names for name in group]) @ model.get_input_embeddings().weight.detach()
    cells = torch.arange(IMAGE_TOKENS)[None, :, None]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.cat([torch.randperm(len(pixels)) for _ in range(steps * batch // len(pixels) + 1)])
        for part in order[: steps * batch].split(batch):
            yield _normal(processor, pixels[part]), torch.cat([targets[part], cells.expand(batch, -1, -1)], -1)

    def loss_of(images: Tensor, wanted: Tensor) -> tuple[Tensor, str]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            patches = _patches(model, images)
        logits = (SHARPNESS * patches.float() @ words.T).split(sizes, -1)
        parts = [
            nn.functional.cross_entropy(part.flatten(0, 1), wanted[..., k].flatten(), ignore_index=-100)
            for k, part in enumerate(logits)
        ]
        there = wanted[..., 1] >= 0
        right = [(part.argmax(-1) == wanted[..., k])[there].float().mean().item() for k, part in enumerate(logits)]
        return torch.stack(parts).sum(), "shape {:.3f} colour {:.3f} size {:.3f} place {:.3f}".format(*right)

    torch.manual_seed(seed)
    eyes = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    _train("tower", batches(), steps, eyes, 1e-3, loss_of)


SHARPNESS = 4.0
"""By how much a patch's nearness to a word is multiplied to give a logit: then features are about as long as embeddings."""


def _patches(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """Projected features [N, patches, D] of pictures [N, 3, S, S]."""
    return model.model.multi_modal_projector(model.model.vision_tower(pixel_values=images).last_hidden_state[:, 1:])


def train_language(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pixels: Tensor, seed: int, looks: int, talks: int,
    dtype: torch.dtype, batch: int = 64,
) -> None:  # fmt: skip
    """Teach the language model to speak about what the frozen tower sees: first to look, then to converse.

    Beside the words, a head on the fourth layer says of each claim in an answer whether it is true, so that what a review
    needs is there for the layers above to gather. The head is thrown away.
    """
    torch.manual_seed(seed)
    body = model.model
    body.vision_tower.requires_grad_(False)
    body.multi_modal_projector.requires_grad_(False)
    with torch.no_grad():
        features = torch.cat([_patches(model, _normal(processor, p)) for p in pixels.split(500)])
    # On a CPU the fused kernel's backward pass takes half of a step for rows this short.
    model.set_attn_implementation("eager")
    width = model.config.text_config.hidden_size
    check = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(KINDS)))

    def loss_of(indices: Tensor, ids: Tensor, labels: Tensor, truth: Tensor) -> tuple[Tensor, str]:
        embedded = body.get_input_embeddings()(ids)
        embedded = embedded.masked_scatter((ids == model.config.image_token_id)[..., None], features[indices])
        mask = (ids != processor.tokenizer.pad_token_id).long()
        learnt = labels[:, 1:] >= 0
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = body.language_model(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True)
            logits = model.lm_head(out.last_hidden_state[:, :-1][learnt])
            marked = ~truth.isnan()
            doubts = check(out.hidden_states[4][marked.any(-1)])
        words = nn.functional.cross_entropy(logits.float(), labels[:, 1:][learnt])
        doubts, told = doubts.float()[marked[marked.any(-1)]], truth[marked]
        claims = nn.functional.binary_cross_entropy_with_logits(doubts, told)
        right, false = ((doubts > 0) == (told > 0.5)).float(), told < 0.5
        return words + claims, (
            f"words {words.item():.3f} claims {claims.item():.3f} "
            f"true told {right[~false].mean().item():.3f} false told {right[false].mean().item():.3f}"
        )

    parameters = [p for p in [*model.parameters(), *check.parameters()] if p.requires_grad]
    for name, talk, count in (("looking", grounding, looks), ("talking", conversation, talks)):
        data = _Conversations(processor, talk, len(pixels), count, batch, seed)
        _train(name, DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=8), count, parameters, 2e-3, loss_of)


def build(
    output_dir: str, seed: int = 0, dtype: str = "float32", pictures: int = 29000, tower_steps: int = 900, looks: int = 350,
    talks: int = 1200,
) -> None:  # fmt: skip
    """Train the base from scratch and write its checkpoint directory (half precision, 4 MB).

    dtype: of matrix products while training; bfloat16 is quicker where the processor has it, and much slower where it has not.
    With it, on two cores that have it: pictures 20 s, tower 1 minute, looking 3, conversing 9. What ships was
    made so, with seed 0; since then only texts were corrected (plurals, the order of corrections, facts meant to be wrong).
    """
    processor = new_processor(seed)
    model = new_model(processor, seed)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(processor.tokenizer)} tokens")
    pixels, targets = render(pictures, seed)
    train_tower(model, processor, pixels, targets, seed, tower_steps, getattr(torch, dtype))
    train_language(model, processor, pixels, seed, looks, talks, getattr(torch, dtype))
    save(model, processor, output_dir)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, output_dir: str) -> None:
    """The checkpoint in float16; loading gives float32 where asked for."""
    copy.deepcopy(model).half().save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
