"""Questions about scenes, with true and wrong answers.

As in `captions`, the order of random draws is part of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmrlhf.scenes.captions import OPPOSITE_RELATION, caption, count_phrase, pluralize, sample_relation, with_article
from mmrlhf.scenes.scene_graph import Scene
from mmrlhf.scenes.vocabulary import CELL_NAMES, COLOURS, NUMBER_WORDS, PATTERNS, SHAPES, SceneObject, absent_partners

DESCRIBE_PROMPTS = ("Describe the picture.", "What do you see?", "Describe what is in this image.", "What does the picture show?")


@dataclass(frozen=True)
class Question:
    """A question about a scene with its true answer."""

    kind: Literal["describe", "yes_no", "how_many", "colour", "pattern", "where", "relation"]
    text: str
    answer: str


def description_question(
    scene: Scene,
    rng: np.random.Generator,
    *,
    cooccurrence_bias: float = 0.0,
    num_faults: int = 0,
    location_rate: float = 0.05,
    relation_rate: float = 0.2,
) -> Question:
    """Return a request for a description, answered by `caption` with the same parameters."""
    prompt = str(rng.choice(DESCRIBE_PROMPTS))
    answer = caption(
        scene,
        rng,
        cooccurrence_bias=cooccurrence_bias,
        num_faults=num_faults,
        location_rate=location_rate,
        relation_rate=relation_rate,
    )
    return Question("describe", prompt, answer)


def short_question(scene: Scene, rng: np.random.Generator) -> Question:
    """Return a short question: yes/no (about half yes), how many, what colour or pattern, where."""
    kind = str(rng.choice(["yes_no", "how_many", "colour", "pattern", "where"], p=[0.4, 0.15, 0.1, 0.1, 0.25]))
    obj = scene.objects[int(rng.integers(len(scene.objects)))]
    if kind == "yes_no":
        return _yes_no_question(scene, obj, rng)
    if kind == "how_many":
        noun = "object" if rng.random() < 0.4 else obj.shape
        count = sum(noun in ("object", o.shape) for o in scene.objects)
        text = str(rng.choice(["How many {} are there?", "How many {} do you see?"])).format(pluralize(noun))
        return Question("how_many", text, f"There {'is' if count == 1 else 'are'} {count_phrase(count, noun)}.")
    if kind in ("colour", "pattern"):
        # Only a shape that occurs once has "the" colour; without one, ask where instead.
        unique_objects = [o for o in scene.objects if sum(other.shape == o.shape for other in scene.objects) == 1]
        if unique_objects:
            obj = unique_objects[int(rng.integers(len(unique_objects)))]
            if kind == "pattern":
                return Question("pattern", f"What pattern does the {obj.shape} have?", f"The {obj.shape} is {obj.pattern}.")
            return Question("colour", f"What colour is the {obj.shape}?", f"The {obj.shape} is {obj.colour}.")
    return location_question(scene, obj.cell if rng.random() < 0.8 else int(rng.integers(9)))


def location_question(scene: Scene, cell: int) -> Question:
    """Ask what is in a cell of the grid."""
    location = f"at the {CELL_NAMES[cell]}"
    names = [o.name for o in scene.objects if o.cell == cell]
    return Question("where", f"What is {location}?", f"There is {with_article(names[0]) if names else 'nothing'} {location}.")


def relation_question(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask where an object is, or whether it is left of, right of, above or below another one."""
    names = [o.name for o in scene.objects]
    unique_objects = [o for o in scene.objects if names.count(o.name) == 1]
    if not unique_objects:
        return location_question(scene, int(rng.integers(9)))
    if len(unique_objects) == 1 or rng.random() < 0.3:
        obj = unique_objects[int(rng.integers(len(unique_objects)))]
        return Question("where", f"Where is the {obj.name}?", f"The {obj.name} is at the {CELL_NAMES[obj.cell]}.")
    a, b = (unique_objects[i] for i in rng.choice(len(unique_objects), 2, replace=False))
    relation = sample_relation(a, b, rng)
    asked = relation if rng.random() < 0.5 else OPPOSITE_RELATION[relation]
    reply = "Yes" if asked == relation else "No"
    return Question("relation", f"Is the {a.name} {asked} the {b.name}?", f"{reply}, the {a.name} is {relation} the {b.name}.")


def _yes_no_question(scene: Scene, obj: SceneObject, rng: np.random.Generator) -> Question:
    if rng.random() < 0.5:
        noun = obj.shape if rng.random() < 0.5 else obj.name
    else:
        noun = _absent_noun(scene, rng)
    return _presence_question(noun, any(noun in (o.shape, o.name) for o in scene.objects), rng)


def _presence_question(noun: str, is_present: bool, rng: np.random.Generator) -> Question:
    text = str(rng.choice(["Is there {} in the picture?", "Do you see {}?", "Is there {}?"])).format(with_article(noun))
    return Question("yes_no", text, f"Yes, there is {with_article(noun)}." if is_present else f"No, there is no {noun}.")


def binding_question(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for a shape with a colour, pattern or size that it has, or that another object has."""
    obj, other = (scene.objects[int(i)] for i in rng.integers(len(scene.objects), size=2))
    name = str(rng.choice(["colour", "pattern", "size"], p=[0.6, 0.25, 0.15]))
    if obj.pattern == "plain" == other.pattern and name == "pattern":
        name = "colour"  # nobody says "plain"
    value = getattr(obj if rng.random() < 0.5 else other, name)
    if value == "plain":
        value = obj.pattern if obj.pattern != "plain" else other.pattern
    noun = f"{value} {obj.shape}"
    is_present = any(o.shape == obj.shape and getattr(o, name) == value for o in scene.objects)
    return _presence_question(noun, is_present, rng)


def wrong_answer(question: Question, rng: np.random.Generator) -> str:
    """Return the answer with one word replaced, or yes and no flipped. It is most likely false."""
    answer = question.answer
    if question.kind == "yes_no":
        # "Yes, there is a NOUN." or "No, there is no NOUN."
        noun = answer.split(" ", 3)[3].removeprefix("no ").removeprefix("an ").removeprefix("a ").rstrip(".")
        return f"No, there is no {noun}." if answer.startswith("Yes") else f"Yes, there is {with_article(noun)}."
    words = answer.split(" ")
    for vocabulary in (list(COLOURS), PATTERNS, SHAPES, NUMBER_WORDS[1:6]):
        for i, word in enumerate(words):
            stripped_word = word.rstrip(".")
            if stripped_word in vocabulary:
                replacement = str(rng.choice([w for w in vocabulary if w != stripped_word]))
                return " ".join([*words[:i], replacement + word[len(stripped_word) :], *words[i + 1 :]])
    return answer.replace("nothing", with_article(f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"))


def _absent_noun(scene: Scene, rng: np.random.Generator) -> str:
    """Return a noun that fits no object of the scene.

    Often it is the absent partner of a trigger, or a shape of the scene in the wrong colour.
    """
    shapes = {o.shape for o in scene.objects}
    partners = absent_partners(shapes)
    if partners and rng.random() < 0.4:
        return partners[0]
    if rng.random() < 0.5:
        shape = str(rng.choice(sorted(shapes)))
        present_colours = {o.colour for o in scene.objects if o.shape == shape}
        return f"{rng.choice([c for c in COLOURS if c not in present_colours])} {shape}"
    return str(rng.choice([s for s in SHAPES if s not in shapes]))
