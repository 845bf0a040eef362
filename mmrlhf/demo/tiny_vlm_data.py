"""Training data of the tiny VLM: tokenized conversations, and images with their cells' contents.

Each sample follows from a seed and an index, so data loader workers can make them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PreTrainedTokenizerFast

from mmrlhf import scenes
from mmrlhf.config import FactsPosition
from mmrlhf.facts import render_facts
from mmrlhf.records import Claim, Message
from mmrlhf.rewards.reward_model import reward_messages

PATCH_SIZE = 32
"""In pixels. A patch is a cell of the scenes' grid, so an image is nine tokens."""
NUM_IMAGE_TOKENS = (scenes.IMAGE_SIZE // PATCH_SIZE) ** 2
PRETRAINING_DIFFICULTY = scenes.Difficulty(occluded_share=0.35)
"""Harder than in the demo: pre-training data covers more than a model's later use."""
LOCATION_RATE = 0.25
"""Share of described objects whose location is stated, more than in the demo's captions."""
RELATION_RATE = 0.4
"""Share of descriptions with a relation, more than in the demo's captions."""
SORT_WINDOW_BATCHES = 8
"""Number of batches with rows sorted by length together, to batch rows of similar length."""
MICRO_BATCH_SIZE = 8
"""Rows that pass through the model together. On a CPU, their activations then fit into its cache:
32 rows, eight at a time, take 0.7 of the time of 32 at once."""

Turns = list[tuple[Message, bool]]
"""Messages of a conversation, each with whether the model learns to produce it."""


def pretraining_scene(index: int, seed: int) -> scenes.Scene:
    return scenes.generate_scene("base", index, seed, PRETRAINING_DIFFICULTY)


def sample_rng(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, 7 + stream, index])


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
    """Return a true description, then the content of four cells, which only the image shows.

    From these the model learns to look.
    """
    question = scenes.description_question(scene, rng, location_rate=LOCATION_RATE, relation_rate=RELATION_RATE)
    questions = [question] + [scenes.location_question(scene, int(c)) for c in rng.choice(9, size=4, replace=False)]
    questions.append(scenes.relation_question(scene, rng))
    return [turn for question in questions for turn in _question_turns(question)]


@dataclass(frozen=True)
class Sample:
    """A conversation about a scene, with or without its image, and with or without claim labels."""

    scene: scenes.Scene
    turns: Turns
    has_image: bool = True
    has_claim_labels: bool = False


TEXT_SHARE = 0.2
"""Share of rows without an image in the stages with images."""
GROUNDING_SHARE = 0.5
"""Share of rows with an image that are `grounding_sample`."""


FEW_OBJECTS_SHARE = 0.6
"""Share of conversations without an image whose facts cover only some of a scene's objects."""


def text_sample(scene: scenes.Scene, rng: np.random.Generator) -> Sample:
    """Return a conversation about facts alone: reviews of answers, questions, or both.

    Three in four are dense, after a complete list: the model learns to look up facts only if this
    is much of its loss. Short lists are mixed with long ones: with them, look-up is learnt in half
    the steps.
    """
    if rng.random() < FEW_OBJECTS_SHARE:
        is_kept = rng.permutation(len(scene.objects)) < rng.integers(1, len(scene.objects) + 1)
        scene = replace(scene, objects=tuple(o for o, kept in zip(scene.objects, is_kept, strict=True) if kept))
    kind = rng.random()
    if kind >= 0.75:
        return _mixed_text_sample(scene, rng)
    facts_text = _facts_text(scene, rng, recall=1.0, error_rate=0.0)
    turns: Turns = []
    if kind < 0.5:
        for i in range(REVIEWS_PER_ROW):
            turns += _reviewed_answer(scene, rng, "" if i else facts_text, "before", learns_answer=True)
    else:
        for i in range(QUESTIONS_PER_ROW):
            question = _fact_question(scene, rng)
            turns += _question_turns(question, "" if i else facts_text)
    return Sample(scene, turns, has_image=False, has_claim_labels=True)


REVIEWS_PER_ROW, QUESTIONS_PER_ROW = 6, 12


def _fact_question(scene: scenes.Scene, rng: np.random.Generator) -> scenes.Question:
    ask = rng.choice(3, p=[0.4, 0.3, 0.3])
    return (scenes.short_question, scenes.binding_question, scenes.relation_question)[ask](scene, rng)


def _mixed_text_sample(scene: scenes.Scene, rng: np.random.Generator) -> Sample:
    """Return reviews and questions after a list of facts, or with the facts after the answer.

    Two thirds of the lists are complete. The model learns to answer only from these.
    """
    is_complete = rng.random() < 0.67
    facts_text = _facts_text(scene, rng, recall=1.0 if is_complete else 0.8, error_rate=0.0)
    is_before = rng.random() < 0.6
    position: FactsPosition = "before" if is_before else "after"
    turns = _reviewed_answer(scene, rng, facts_text, position, learns_answer=is_complete and is_before)
    if is_complete:
        turns += _reviewed_answer(scene, rng, "", position, learns_answer=True)
        for ask in (scenes.short_question, *[scenes.binding_question] * 2, *[scenes.relation_question] * 2):
            turns += _question_turns(ask(scene, rng))
    return Sample(scene, turns, has_image=False, has_claim_labels=is_before and bool(facts_text))


def picture_sample(scene: scenes.Scene, rng: np.random.Generator, unaided_review_rate: float) -> Sample:
    """Return a conversation for the last stage: mostly about an image, with facts or without.

    Answers are reviewed with facts, and without facts in a share `unaided_review_rate` of the
    conversations about images.
    """
    if rng.random() < TEXT_SHARE:
        return text_sample(scene, rng)
    if rng.random() < unaided_review_rate:
        return Sample(scene, _reviewed_answer(scene, rng, "", "before", learns_answer=True))
    if rng.random() < GROUNDING_SHARE:
        return Sample(scene, grounding_sample(scene, rng))
    position, facts_text = str(rng.choice(["none", "before", "after"], p=[0.4, 0.36, 0.24])), ""
    if position == "none":
        turns = _question_turns(_answered_question(scene, rng, num_faults=0))
    else:
        is_complete = rng.random() < 0.5
        facts_text = _facts_text(scene, rng, recall=1.0 if is_complete else 0.8, error_rate=0.0 if is_complete else 0.05)
        turns = _reviewed_answer(scene, rng, facts_text, "before" if position == "before" else "after", learns_answer=True)
    for _ in range(2):
        turns += _question_turns(scenes.short_question(scene, rng))
    turns += _question_turns(scenes.relation_question(scene, rng))
    return Sample(scene, turns, has_claim_labels=position == "before" and bool(facts_text))


def _facts_text(scene: scenes.Scene, rng: np.random.Generator, *, recall: float, error_rate: float) -> str:
    facts = scenes.annotator_facts(scene, rng, recall=recall, error_rate=error_rate)
    return render_facts(facts, int(rng.integers(1 << 30)))


def _answered_question(scene: scenes.Scene, rng: np.random.Generator, num_faults: int) -> scenes.Question:
    """Return a question, mostly for a description, with an answer that has `num_faults` faults.

    Half of the faulty descriptions have swaps instead: to find them, a model has to bind properties
    to objects.
    """
    if rng.random() < 0.85:
        question = scenes.description_question(
            scene, rng, cooccurrence_bias=0.3 if num_faults else 0.0, num_faults=num_faults,
            location_rate=LOCATION_RATE, relation_rate=RELATION_RATE,
        )  # fmt: skip
        if num_faults and rng.random() < 0.5:
            question = replace(question, answer=scenes.caption_with_swaps(scene, rng, num_faults, LOCATION_RATE, RELATION_RATE))
        return question
    question = scenes.short_question(scene, rng)
    return replace(question, answer=scenes.wrong_answer(question, rng)) if num_faults else question


def _reviewed_answer(
    scene: scenes.Scene, rng: np.random.Generator, facts_text: str, position: FactsPosition, *, learns_answer: bool
) -> Turns:
    """Return a question, its answer and a review of it. Half of the answers are wrong.

    The model learns to review wrong answers, but not to produce them.
    """
    question = _answered_question(scene, rng, num_faults=int(rng.choice([0, 1, 2, 3], p=[0.45, 0.25, 0.15, 0.15])))
    distinct_claims = dict.fromkeys(scenes.parse_claims(question.answer))
    false_claims = [c for c in distinct_claims if scenes.verify_claim(scene, c).value == "contradicted"]
    review = "No, " + " and ".join(refutation(c) for c in false_claims[:3]) + "." if false_claims else "Yes."
    messages = reward_messages((Message("user", question.text),), question.answer, facts_text, position)
    turns = list(zip(messages, (False, learns_answer and not false_claims, False), strict=True))
    return [*turns, (Message("assistant", review), True)]


def _question_turns(question: scenes.Question, facts_text: str = "") -> Turns:
    """Return a question, after facts if there are any, and its answer, which the model learns."""
    user, assistant, _ = reward_messages((Message("user", question.text),), question.answer, facts_text, "before")
    return [(user, False), (assistant, True)]


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
    object_labels: Tensor
    """[L, 5]: `object_labels` of the claims at those tokens; -100 elsewhere."""


OBJECT_LABEL_SIZES = (len(scenes.COLOURS) + 1, len(scenes.SIZES) + 1, len(scenes.PATTERNS) + 1, 10, 10)
"""Number of classes of each of `object_labels`; the last stands for an object that is absent."""


def object_labels(scene: scenes.Scene, claim: Claim) -> list[int]:
    """Return the true appearance of the object of a claim.

    The labels are its colour, size, pattern and cell, and the cell of the object that a relation
    relates it to. -100: with several objects of a shape, it is not clear which one is meant.
    """
    labels = [-100] * len(OBJECT_LABEL_SIZES)
    if claim.kind == "count" or claim.subject == "nothing":
        return labels
    objects = _objects_meant(scene, claim.subject, claim.value)
    if not objects:
        labels[:4] = [size - 1 for size in OBJECT_LABEL_SIZES[:4]]
    elif len(objects) == 1:
        obj = objects[0]
        labels[:4] = [
            list(scenes.COLOURS).index(obj.colour), list(scenes.SIZES).index(obj.size),
            scenes.PATTERNS.index(obj.pattern), obj.cell,
        ]  # fmt: skip
    if claim.kind == "relation" and not claim.value.startswith("at "):
        targets = _objects_meant(scene, claim.value)
        if len(targets) <= 1:
            labels[4] = targets[0].cell if targets else OBJECT_LABEL_SIZES[4] - 1
    return labels


def _objects_meant(scene: scenes.Scene, name: str, value: str = "") -> list[scenes.SceneObject]:
    """Return the objects of the shape at the end of a name; of several, the one that fits."""
    words = name.partition(" at the ")[0].split(" ")
    objects = [o for o in scene.objects if o.shape == words[-1]]
    fitting = [o for o in objects if {o.colour, o.size, o.pattern} & {*words, value}]
    return fitting if len(fitting) == 1 else objects


def tokenize_sample(tokenizer: PreTrainedTokenizerFast, image_index: int, sample: Sample) -> TokenizedSample:
    """Tokenize a conversation in the chat template's format and label its claims, if it has any."""
    input_ids: list[int] = []
    labels: list[int] = []
    claims: list[tuple[int, Claim]] = []  # with the position of their last token
    for i, (message, has_loss) in enumerate(sample.turns):
        if message.role == "user":
            image_tokens = "<image>" * NUM_IMAGE_TOKENS if i == 0 and sample.has_image else ""
            text, has_loss = f"User: {image_tokens}{message.content} Assistant:", False
        else:
            text = f" {message.content}</s>"
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        token_ids = encoding["input_ids"]
        if message.role == "assistant" and sample.has_claim_labels:
            for claim in scenes.parse_claims(message.content):
                # The text has one leading space: a token ending past the span's end ends the claim.
                last_token = next(k for k, (_, end) in enumerate(encoding["offset_mapping"]) if end > claim.span[1])
                claims.append((len(input_ids) + last_token, claim))
        input_ids += token_ids
        labels += token_ids if has_loss else [-100] * len(token_ids)
    claim_labels = torch.full((len(input_ids), len(scenes.CLAIM_KINDS)), float("nan"))
    labels_of_objects = torch.full((len(input_ids), len(OBJECT_LABEL_SIZES)), -100)
    for position, claim in claims:
        kind = scenes.CLAIM_KINDS.index(claim.kind)
        is_true = float(scenes.verify_claim(sample.scene, claim).value == "supported")
        # Two claims of a kind may end at one token: label it true only if both are.
        previous = claim_labels[position, kind]
        claim_labels[position, kind] = is_true if previous.isnan() else min(is_true, previous.item())
        new_labels = torch.tensor(object_labels(sample.scene, claim))
        labels_of_objects[position] = torch.where(new_labels >= 0, new_labels, labels_of_objects[position])
    return TokenizedSample(image_index, input_ids, labels, claim_labels, labels_of_objects)


class SampleBatches(IterableDataset):
    """Yield batches, each a list of micro-batches of B <= `MICRO_BATCH_SIZE` rows.

    A micro-batch is image indices [B], ids [B, L], labels [B, L], claim labels [B, L, 4] and object
    labels [B, L, 5]. Rows of similar length share one; the batches of a window come in random
    order. Every process yields its own batches. The seed determines the scenes in the images, so
    another stream, not another seed, gives other conversations about them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        make_sample: Callable[[scenes.Scene, np.random.Generator], Sample],
        num_images: int,
        num_steps: int,
        batch_size: int,
        seed: int,
        stream: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.tokenizer, self.make_sample, self.num_images = tokenizer, make_sample, num_images
        self.num_steps, self.batch_size, self.seed, self.stream = num_steps, batch_size, seed, stream
        self.process_index, self.num_processes = process_index, num_processes

    def __iter__(self) -> Iterator[list[tuple[Tensor, ...]]]:
        if torch.utils.data.get_worker_info() is not None:
            torch.set_num_threads(1)  # leave the other cores to training
        for first_step in range(0, self.num_steps, SORT_WINDOW_BATCHES):
            num_batches = min(SORT_WINDOW_BATCHES, self.num_steps - first_step)
            first_sample, num_samples = first_step * self.batch_size, num_batches * self.batch_size
            rows = [self._tokenized_sample(first_sample + i) for i in range(num_samples)]
            rows.sort(key=lambda row: len(row.input_ids))
            for k in sample_rng(self.seed, first_step, self.stream).permutation(num_batches):
                batch = rows[k * self.batch_size : (k + 1) * self.batch_size]
                yield [self._collate(batch[i : i + MICRO_BATCH_SIZE]) for i in range(0, self.batch_size, MICRO_BATCH_SIZE)]

    def _tokenized_sample(self, index: int) -> TokenizedSample:
        sample_index = index * self.num_processes + self.process_index
        image_index = sample_index % self.num_images
        scene = pretraining_scene(image_index, self.seed)
        sample = self.make_sample(scene, sample_rng(self.seed, sample_index, self.stream))
        return tokenize_sample(self.tokenizer, image_index, sample)

    def _collate(self, rows: list[TokenizedSample]) -> tuple[Tensor, ...]:
        pad = nn.utils.rnn.pad_sequence
        return (
            torch.tensor([r.image_index for r in rows]),
            pad([torch.tensor(r.input_ids) for r in rows], True, self.tokenizer.pad_token_id),
            pad([torch.tensor(r.labels) for r in rows], True, -100),
            pad([r.claim_labels for r in rows], True, float("nan")),
            pad([r.object_labels for r in rows], True, -100),
        )


# ---- images --------------------------------------------------------------------------------------


class _SceneImages(Dataset):
    """Images [S, S, 3] (uint8) with targets [9, 4]: shape, colour, size and pattern by cell.

    An empty cell has the additional shape "nothing", and -100 for the others.
    """

    def __init__(self, num_images: int, seed: int):
        self.num_images, self.seed = num_images, seed

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = pretraining_scene(index, self.seed)
        targets = torch.full((9, 4), -100)
        targets[:, 0] = len(scenes.SHAPES)
        for obj in scene.objects:
            targets[obj.cell] = torch.tensor(
                [
                    scenes.SHAPES.index(obj.shape),
                    list(scenes.COLOURS).index(obj.colour),
                    list(scenes.SIZES).index(obj.size),
                    scenes.PATTERNS.index(obj.pattern),
                ]
            )
        return torch.from_numpy(np.array(scene.image())), targets


def render_images(num_images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images [N, S, S, 3] (uint8) and their targets [N, 9, 4], rendered by two workers."""
    batches = list(DataLoader(_SceneImages(num_images, seed), batch_size=250, num_workers=2))
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([targets for _, targets in batches])
