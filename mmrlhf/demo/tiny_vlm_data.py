"""Training data of the tiny VLM: tokenized conversations, and images with their cells' contents.

Each sample follows from a seed and an index, so data loader workers can make them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PreTrainedTokenizerFast

from mmrlhf import scenes
from mmrlhf.facts import render_facts
from mmrlhf.records import Claim, Message
from mmrlhf.rewards.reward_model import reward_messages

PATCH_SIZE = 32
"""In pixels. A patch is a cell of the scenes' grid, so an image is nine tokens."""
NUM_IMAGE_TOKENS = (scenes.IMAGE_SIZE // PATCH_SIZE) ** 2
PRETRAINING_DIFFICULTY = scenes.Difficulty(occluded_share=0.35)
"""Harder than in the demo: pre-training data covers more than the model is used for."""
LOCATION_RATE = 0.25
"""Share of described objects whose location is stated, more than in the demo's captions."""
SORT_WINDOW_BATCHES = 8
"""Number of batches with rows sorted by length together, to batch rows of similar length."""

Turns = list[tuple[Message, bool]]
"""Messages of a conversation, each with whether the model learns to produce it."""


def pretraining_scene(index: int, seed: int) -> scenes.Scene:
    return scenes.generate_scene("base", index, seed, PRETRAINING_DIFFICULTY)


def sample_rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, 7, index])


# ---- conversations -------------------------------------------------------------------------------


def refutation(claim: Claim) -> str:
    """Return the clause with which the tiny VLM denies a claim."""
    if claim.kind == "object":
        return f"there is no {claim.subject}"
    if claim.kind == "attribute":
        return f"there is no {claim.value} {claim.subject}"
    if claim.kind == "count":
        count = int(claim.value)
        if count == 0:
            return f"there is {scenes.with_article(claim.subject)}"
        return f"there are not {scenes.count_phrase(count, claim.subject)}"
    return f"the {claim.subject} is not {claim.value}"


def grounding_sample(scene: scenes.Scene, rng: np.random.Generator) -> Turns:
    """Return a true description, then what is in four cells: text that only the image determines.

    The model trains on these first, and so learns to look before it reads facts or guesses.
    """
    question = scenes.description_question(scene, rng, location_rate=LOCATION_RATE)
    questions = [question] + [scenes.location_question(scene, int(c)) for c in rng.choice(9, size=4, replace=False)]
    return [turn for question in questions for turn in _question_turns(question)]


def chat_sample(scene: scenes.Scene, rng: np.random.Generator) -> Turns:
    """Return an answer, its review and three short questions about one image.

    Half of the answers are wrong: the model learns to review them, but not to produce them. In 60%
    of conversations facts are given, before the question or in the review turn.
    """
    num_faults = int(rng.choice([0, 1, 2, 3], p=[0.5, 0.3, 0.15, 0.05]))
    if rng.random() < 0.85:
        bias = 0.3 if num_faults else 0.0
        question = scenes.description_question(
            scene, rng, cooccurrence_bias=bias, num_faults=num_faults, location_rate=LOCATION_RATE
        )
        answer = question.answer
    else:
        question = scenes.short_question(scene, rng)
        answer = scenes.wrong_answer(question, rng) if num_faults else question.answer
    distinct_claims = dict.fromkeys(scenes.parse_claims(answer))
    false_claims = [c for c in distinct_claims if scenes.verify_claim(scene, c).value == "contradicted"]

    facts_position = str(rng.choice(["none", "before", "after"], p=[0.4, 0.4, 0.2]))
    facts_text = ""
    if facts_position != "none":
        facts_text = render_facts(scenes.annotator_facts(scene, rng), int(rng.integers(1 << 30)))
    messages = reward_messages(
        (Message("user", question.text),), answer, facts_text, "after" if facts_position == "after" else "before"
    )
    review = "No, " + " and ".join(refutation(c) for c in false_claims[:3]) + "." if false_claims else "Yes."
    turns = list(zip(messages, (False, not false_claims, False), strict=True))
    turns.append((Message("assistant", review), True))
    for _ in range(3):
        turns += _question_turns(scenes.short_question(scene, rng))
    return turns


def _question_turns(question: scenes.Question) -> Turns:
    return [(Message("user", question.text), False), (Message("assistant", question.answer), True)]


# ---- tokens --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizedSample:
    """A conversation of L tokens about one image."""

    image_index: int
    input_ids: list[int]
    """[L]"""
    labels: list[int]
    """[L], -100 at tokens that are not learnt."""
    claim_labels: Tensor
    """[L, 4]: by kind of claim, 1 (true) or 0 (false) at the last token of a claim in an assistant
    turn; NaN elsewhere."""


def tokenize_sample(tokenizer: PreTrainedTokenizerFast, image_index: int, scene: scenes.Scene, turns: Turns) -> TokenizedSample:
    """Tokenize a conversation in the chat template's format and label its claims."""
    input_ids: list[int] = []
    labels: list[int] = []
    claim_marks: list[tuple[int, int, bool]] = []  # position, kind, is true
    for i, (message, has_loss) in enumerate(turns):
        if message.role == "user":
            image_tokens = "<image>" * NUM_IMAGE_TOKENS if i == 0 else ""
            text, has_loss = f"User: {image_tokens}{message.content} Assistant:", False
        else:
            text = f" {message.content}</s>"
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        token_ids = encoding["input_ids"]
        if message.role == "assistant":
            for claim in scenes.parse_claims(message.content):
                # The text has one leading space: a token ending past the span's end ends the claim.
                last_token = next(k for k, (_, end) in enumerate(encoding["offset_mapping"]) if end > claim.span[1])
                is_true = scenes.verify_claim(scene, claim).value == "supported"
                claim_marks.append((len(input_ids) + last_token, scenes.CLAIM_KINDS.index(claim.kind), is_true))
        input_ids += token_ids
        labels += token_ids if has_loss else [-100] * len(token_ids)
    claim_labels = torch.full((len(input_ids), len(scenes.CLAIM_KINDS)), float("nan"))
    for position, kind, is_true in claim_marks:
        # Two claims of a kind may end at one token: label it true only if both are.
        previous = claim_labels[position, kind]
        claim_labels[position, kind] = float(is_true) if previous.isnan() else min(float(is_true), previous.item())
    return TokenizedSample(image_index, input_ids, labels, claim_labels)


class SampleBatches(IterableDataset):
    """Yield batches of image indices [B], ids [B, L], labels [B, L] and claim labels [B, L, 4].

    Rows of similar length share a batch; the batches of a window come in random order.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        make_sample: Callable[[scenes.Scene, np.random.Generator], Turns],
        num_images: int,
        num_steps: int,
        batch_size: int,
        seed: int,
    ):
        self.tokenizer, self.make_sample, self.num_images = tokenizer, make_sample, num_images
        self.num_steps, self.batch_size, self.seed = num_steps, batch_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if torch.utils.data.get_worker_info() is not None:
            torch.set_num_threads(1)  # leave the other cores to training
        for first_step in range(0, self.num_steps, SORT_WINDOW_BATCHES):
            num_batches = min(SORT_WINDOW_BATCHES, self.num_steps - first_step)
            first_sample, num_samples = first_step * self.batch_size, num_batches * self.batch_size
            rows = [self._tokenized_sample(first_sample + i) for i in range(num_samples)]
            rows.sort(key=lambda row: len(row.input_ids))
            for k in sample_rng(self.seed, first_step).permutation(num_batches):
                yield self._collate(rows[k * self.batch_size : (k + 1) * self.batch_size])

    def _tokenized_sample(self, sample_index: int) -> TokenizedSample:
        image_index = sample_index % self.num_images
        scene = pretraining_scene(image_index, self.seed)
        turns = self.make_sample(scene, sample_rng(self.seed, sample_index))
        return tokenize_sample(self.tokenizer, image_index, scene, turns)

    def _collate(self, rows: list[TokenizedSample]) -> tuple[Tensor, ...]:
        pad = nn.utils.rnn.pad_sequence
        return (
            torch.tensor([r.image_index for r in rows]),
            pad([torch.tensor(r.input_ids) for r in rows], True, self.tokenizer.pad_token_id),
            pad([torch.tensor(r.labels) for r in rows], True, -100),
            pad([r.claim_labels for r in rows], True, float("nan")),
        )


# ---- images --------------------------------------------------------------------------------------


class _SceneImages(Dataset):
    """Images [S, S, 3] (uint8) with targets [9, 3]: shape, colour and size in each grid cell.

    An empty cell has the additional shape "nothing", and -100 for colour and size.
    """

    def __init__(self, num_images: int, seed: int):
        self.num_images, self.seed = num_images, seed

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = pretraining_scene(index, self.seed)
        targets = torch.full((9, 3), -100)
        targets[:, 0] = len(scenes.SHAPES)
        for obj in scene.objects:
            targets[obj.cell] = torch.tensor(
                [scenes.SHAPES.index(obj.shape), list(scenes.COLOURS).index(obj.colour), list(scenes.SIZES).index(obj.size)]
            )
        return torch.from_numpy(np.array(scene.image())), targets


def render_images(num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images [N, S, S, 3] (uint8) and their targets [N, 9, 3], rendered by two workers."""
    batches = list(DataLoader(_SceneImages(num_images, seed), batch_size=250, num_workers=2))
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([targets for _, targets in batches])
