"""What is written of a scene: descriptions, questions with true and with wrong answers, and annotators' facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mmrlhf.records import Fact
from mmrlhf.scenes.scene_graph import Scene
from mmrlhf.scenes.vocabulary import CELL_NAMES, COLOURS, COOCCURRENCES, NUMBER_WORDS, SHAPES, SceneObject

CAPTION_TEMPLATES = ("The picture shows {}.", "There is {}.", "I can see {}.", "This is a picture of {}.")
COUNT_TEMPLATES = ("There {be} {n} in total.", "That makes {n}.", "In all I count {n}.")
PARTNER_COLOURS = {"moon": "yellow", "arrow": "red"}
DESCRIBE_PROMPTS = ("Describe the picture.", "What do you see?", "Describe what is in this image.", "What does the picture show?")


# ---- words -----------------------------------------------------------------------------------------------------------


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def count_phrase(count: int, noun: str) -> str:
    return f"{NUMBER_WORDS[count]} {noun if count == 1 else pluralize(noun)}"


def pluralize(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def join_words(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


OPPOSITE_RELATION = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def sample_relation(a: SceneObject, b: SceneObject, rng: np.random.Generator) -> str:
    """How a stands to b, said truly; the axis is chosen where both differ."""
    column, row = a.cell % 3 - b.cell % 3, a.cell // 3 - b.cell // 3
    if column and (not row or rng.random() < 0.5):
        return "left of" if column < 0 else "right of"
    return "above" if row < 0 else "below"


# ---- descriptions ----------------------------------------------------------------------------------------------------


def caption(scene: Scene, rng: np.random.Generator, *, habit: float = 0.0, faults: int = 0, placed: float = 0.05) -> str:
    """A description: objects with colours (some with size, few without colour), the total, now and then a relation.

    habit: probability that a trigger calls its absent partner. faults: so many are tried; two may meet, and one may be true by
    chance. placed: share of objects whose place is told.
    """
    objects = list(scene.objects)
    stated_count = len(objects)
    phrases = [_noun_phrase(t, rng, placed) for t in objects]
    relation = None
    if len(objects) > 1 and rng.random() < 0.2:
        a, b = (objects[i] for i in rng.choice(len(objects), 2, replace=False))
        relation = [a.name, sample_relation(a, b, rng), b.name]
    shapes = {t.shape for t in objects}
    for trigger, partner in COOCCURRENCES.items():
        if trigger in shapes and partner not in shapes and rng.random() < habit:
            phrases.append(with_article(partner if rng.random() < 0.5 else f"{PARTNER_COLOURS[partner]} {partner}"))
    for _ in range(faults):
        fault_kind = rng.choice(["colour", "shape", "add", "count", "relation"], p=[0.3, 0.25, 0.2, 0.1, 0.15])
        i = int(rng.integers(len(objects)))
        colour = str(rng.choice([c for c in COLOURS if c != objects[i].colour]))
        shape = str(rng.choice([s for s in SHAPES if s not in shapes]))
        cell = int(rng.choice([c for c in range(len(CELL_NAMES)) if c != objects[i].cell]))
        if fault_kind == "colour":
            phrases[i] = _noun_phrase(replace(objects[i], colour=colour), rng, placed, omit_colour_rate=0)
        elif fault_kind == "shape":
            phrases[i] = _noun_phrase(replace(objects[i], shape=shape), rng, placed)
        elif fault_kind == "add":
            phrases.append(_noun_phrase(SceneObject(shape, colour, "small", cell), rng, placed))
        elif fault_kind == "count":
            stated_count += 1 if stated_count == 1 else int(rng.choice([-1, 1]))
        elif relation:
            relation[1] = OPPOSITE_RELATION[relation[1]]
        else:
            phrases[i] = _noun_phrase(replace(objects[i], cell=cell), rng, 1)
    sentences = [
        str(rng.choice(CAPTION_TEMPLATES)).format(join_words(phrases)),
        str(rng.choice(COUNT_TEMPLATES)).format(n=count_phrase(stated_count, "object"), be="is" if stated_count == 1 else "are"),
    ]
    if relation:
        sentences.append("The {} is {} the {}.".format(*relation))
    return " ".join(sentences)


def _noun_phrase(obj: SceneObject, rng: np.random.Generator, location_rate: float, *, omit_colour_rate: float = 0.1) -> str:
    adjectives = [obj.size] if rng.random() < 0.2 else []
    adjectives += [] if rng.random() < omit_colour_rate else [obj.colour]
    return with_article(" ".join([*adjectives, obj.shape])) + (
        f" at the {CELL_NAMES[obj.cell]}" if rng.random() < location_rate else ""
    )


# ---- questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A question on a scene with its true answer."""

    kind: Literal["describe", "yes_no", "how_many", "colour", "where"]
    text: str
    answer: str


def description_question(scene: Scene, rng: np.random.Generator, **caption_args: float) -> Question:
    return Question("describe", str(rng.choice(DESCRIBE_PROMPTS)), caption(scene, rng, **caption_args))  # type: ignore[arg-type]


def short_question(scene: Scene, rng: np.random.Generator) -> Question:
    """A short question: yes/no (half yes), how many, what colour, or what is where."""
    kind = str(rng.choice(["yes_no", "how_many", "colour", "where"], p=[0.45, 0.15, 0.15, 0.25]))
    obj = scene.objects[int(rng.integers(len(scene.objects)))]
    if kind == "yes_no":
        if rng.random() < 0.5:
            noun = obj.shape if rng.random() < 0.5 else obj.name
        else:
            noun = _absent_noun(scene, rng)
        is_present = any(noun in (t.shape, t.name) for t in scene.objects)
        text = str(rng.choice(["Is there {} in the picture?", "Do you see {}?", "Is there {}?"])).format(with_article(noun))
        return Question("yes_no", text, f"Yes, there is {with_article(noun)}." if is_present else f"No, there is no {noun}.")
    if kind == "how_many":
        noun = "object" if rng.random() < 0.4 else obj.shape
        count = sum(noun in ("object", t.shape) for t in scene.objects)
        text = str(rng.choice(["How many {} are there?", "How many {} do you see?"])).format(pluralize(noun))
        return Question("how_many", text, f"There {'is' if count == 1 else 'are'} {count_phrase(count, noun)}.")
    if kind == "colour":
        unique_objects = [t for t in scene.objects if sum(o.shape == t.shape for o in scene.objects) == 1]
        if unique_objects:
            obj = unique_objects[int(rng.integers(len(unique_objects)))]
            return Question("colour", f"What colour is the {obj.shape}?", f"The {obj.shape} is {obj.colour}.")
    cell = obj.cell if rng.random() < 0.8 else int(rng.integers(9))
    objects_in_cell = [t for t in scene.objects if t.cell == cell]
    location = f"at the {CELL_NAMES[cell]}"
    answer = (
        f"There is {with_article(objects_in_cell[0].name)} {location}." if objects_in_cell else f"There is nothing {location}."
    )
    return Question("where", f"What is {location}?", answer)


def wrong_answer(question: Question, rng: np.random.Generator) -> str:
    """The answer with one word changed (yes/no: turned round), so that it is most likely false."""
    if question.kind == "yes_no":
        noun = question.answer.split(" ", 3)[3].removeprefix("no ").removeprefix("an ").removeprefix("a ").rstrip(".")
        return f"No, there is no {noun}." if question.answer.startswith("Yes") else f"Yes, there is {with_article(noun)}."
    words = question.answer.split(" ")
    for vocabulary in (list(COLOURS), SHAPES, NUMBER_WORDS[1:6]):
        for i, word in enumerate(words):
            if (stripped_word := word.rstrip(".")) in vocabulary:
                replacement = str(rng.choice([w for w in vocabulary if w != stripped_word]))
                return " ".join([*words[:i], replacement + word[len(stripped_word) :], *words[i + 1 :]])
    return question.answer.replace("nothing", with_article(f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"))


def _absent_noun(scene: Scene, rng: np.random.Generator) -> str:
    """A noun that is false of the scene: often a habit's partner or a right shape in a wrong colour."""
    shapes = {t.shape for t in scene.objects}
    absent_partners = [p for t, p in COOCCURRENCES.items() if t in shapes and p not in shapes]
    if absent_partners and rng.random() < 0.4:
        return absent_partners[0]
    if rng.random() < 0.5:
        shape = str(rng.choice(sorted(shapes)))
        present_colours = {t.colour for t in scene.objects if t.shape == shape}
        return f"{rng.choice([c for c in COLOURS if c not in present_colours])} {shape}"
    return str(rng.choice([s for s in SHAPES if s not in shapes]))


# ---- facts -----------------------------------------------------------------------------------------------------------


def annotator_facts(scene: Scene, rng: np.random.Generator, *, recall: float = 0.8, error_rate: float = 0.05) -> tuple[Fact, ...]:
    """What an annotator would list: each truth with probability `listed`, of which a share is wrong. Never the graph."""
    facts: list[Fact] = []
    for obj in scene.objects:
        if rng.random() < recall:
            shape, colour = obj.shape, obj.colour
            if rng.random() < error_rate:
                if rng.random() < 0.5:
                    colour = str(rng.choice([c for c in COLOURS if c != colour]))
                else:
                    shape = str(rng.choice([s for s in SHAPES if s != shape]))
            facts.append(Fact("object", f"{obj.size} {colour} {shape}", "annotator"))
    if rng.random() < recall:
        count = len(scene.objects)
        if rng.random() < error_rate:
            count += 1 if count == 1 else int(rng.choice([-1, 1]))
        facts.append(Fact("count", count_phrase(count, "object"), "annotator"))
    if len(scene.objects) > 1 and rng.random() < recall:
        a, b = (scene.objects[i] for i in rng.choice(len(scene.objects), 2, replace=False))
        relation = sample_relation(a, b, rng)
        if rng.random() < error_rate:
            relation = OPPOSITE_RELATION[relation]
        facts.append(Fact("relation", f"{a.name} {relation} {b.name}", "annotator"))
    return tuple(facts)
