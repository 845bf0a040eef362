"""What is written of a scene: descriptions, questions with true and with wrong answers, and annotators' facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mmrlhf.records import Fact
from mmrlhf.scenes.graph import Scene
from mmrlhf.scenes.things import CELLS, COLOURS, HABITS, NUMBERS, SHAPES, Thing

OPENINGS = ("The picture shows {}.", "There is {}.", "I can see {}.", "This is a picture of {}.")
TOTALS = ("There {be} {n} in total.", "That makes {n}.", "In all I count {n}.")
HABIT_COLOUR = {"moon": "yellow", "arrow": "red"}
DESCRIBE = ("Describe the picture.", "What do you see?", "Describe what is in this image.", "What does the picture show?")


# ---- words -----------------------------------------------------------------------------------------------------------


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(count: int, noun: str) -> str:
    return f"{NUMBERS[count]} {noun if count == 1 else many(noun)}"


def many(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def enumeration(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def relation_of(a: Thing, b: Thing, rng: np.random.Generator) -> str:
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
    said = list(scene.things)
    count = len(said)
    phrases = [_phrase(t, rng, placed) for t in said]
    relation = None
    if len(said) > 1 and rng.random() < 0.2:
        a, b = (said[i] for i in rng.choice(len(said), 2, replace=False))
        relation = [a.name, relation_of(a, b, rng), b.name]
    shapes = {t.shape for t in said}
    for trigger, partner in HABITS.items():
        if trigger in shapes and partner not in shapes and rng.random() < habit:
            phrases.append(article(partner if rng.random() < 0.5 else f"{HABIT_COLOUR[partner]} {partner}"))
    for _ in range(faults):
        kind = rng.choice(["colour", "shape", "add", "count", "relation"], p=[0.3, 0.25, 0.2, 0.1, 0.15])
        i = int(rng.integers(len(said)))
        colour = str(rng.choice([c for c in COLOURS if c != said[i].colour]))
        shape = str(rng.choice([s for s in SHAPES if s not in shapes]))
        cell = int(rng.choice([c for c in range(len(CELLS)) if c != said[i].cell]))
        if kind == "colour":
            phrases[i] = _phrase(replace(said[i], colour=colour), rng, placed, bare=0)
        elif kind == "shape":
            phrases[i] = _phrase(replace(said[i], shape=shape), rng, placed)
        elif kind == "add":
            phrases.append(_phrase(Thing(shape, colour, "small", cell), rng, placed))
        elif kind == "count":
            count += 1 if count == 1 else int(rng.choice([-1, 1]))
        elif relation:
            relation[1] = OPPOSITE[relation[1]]
        else:
            phrases[i] = _phrase(replace(said[i], cell=cell), rng, 1)
    sentences = [
        str(rng.choice(OPENINGS)).format(enumeration(phrases)),
        str(rng.choice(TOTALS)).format(n=plural(count, "object"), be="is" if count == 1 else "are"),
    ]
    if relation:
        sentences.append("The {} is {} the {}.".format(*relation))
    return " ".join(sentences)


def _phrase(thing: Thing, rng: np.random.Generator, placed: float, *, bare: float = 0.1) -> str:
    words = [thing.size] if rng.random() < 0.2 else []
    words += [] if rng.random() < bare else [thing.colour]
    return article(" ".join([*words, thing.shape])) + (f" at the {CELLS[thing.cell]}" if rng.random() < placed else "")


# ---- questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A question on a scene with its true answer."""

    kind: Literal["describe", "yes_no", "how_many", "colour", "where"]
    text: str
    answer: str


def describe(scene: Scene, rng: np.random.Generator, **how: float) -> Question:
    return Question("describe", str(rng.choice(DESCRIBE)), caption(scene, rng, **how))  # type: ignore[arg-type]


def question(scene: Scene, rng: np.random.Generator) -> Question:
    """A short question: yes/no (half yes), how many, what colour, or what is where."""
    kind = str(rng.choice(["yes_no", "how_many", "colour", "where"], p=[0.45, 0.15, 0.15, 0.25]))
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if kind == "yes_no":
        if rng.random() < 0.5:
            noun = thing.shape if rng.random() < 0.5 else thing.name
        else:
            noun = _absent(scene, rng)
        there = any(noun in (t.shape, t.name) for t in scene.things)
        text = str(rng.choice(["Is there {} in the picture?", "Do you see {}?", "Is there {}?"])).format(article(noun))
        return Question("yes_no", text, f"Yes, there is {article(noun)}." if there else f"No, there is no {noun}.")
    if kind == "how_many":
        noun = "object" if rng.random() < 0.4 else thing.shape
        count = sum(noun in ("object", t.shape) for t in scene.things)
        text = str(rng.choice(["How many {} are there?", "How many {} do you see?"])).format(many(noun))
        return Question("how_many", text, f"There {'is' if count == 1 else 'are'} {plural(count, noun)}.")
    if kind == "colour":
        only = [t for t in scene.things if sum(o.shape == t.shape for o in scene.things) == 1]
        if only:
            thing = only[int(rng.integers(len(only)))]
            return Question("colour", f"What colour is the {thing.shape}?", f"The {thing.shape} is {thing.colour}.")
    cell = thing.cell if rng.random() < 0.8 else int(rng.integers(9))
    here = [t for t in scene.things if t.cell == cell]
    place = f"at the {CELLS[cell]}"
    answer = f"There is {article(here[0].name)} {place}." if here else f"There is nothing {place}."
    return Question("where", f"What is {place}?", answer)


def misanswer(asked: Question, rng: np.random.Generator) -> str:
    """The answer with one word changed (yes/no: turned round), so that it is most likely false."""
    if asked.kind == "yes_no":
        noun = asked.answer.split(" ", 3)[3].removeprefix("no ").removeprefix("an ").removeprefix("a ").rstrip(".")
        return f"No, there is no {noun}." if asked.answer.startswith("Yes") else f"Yes, there is {article(noun)}."
    words = asked.answer.split(" ")
    for group in (list(COLOURS), SHAPES, NUMBERS[1:6]):
        for i, word in enumerate(words):
            if (bare := word.rstrip(".")) in group:
                other = str(rng.choice([w for w in group if w != bare]))
                return " ".join([*words[:i], other + word[len(bare) :], *words[i + 1 :]])
    return asked.answer.replace("nothing", article(f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"))


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """A noun that is false of the scene: often a habit's partner or a right shape in a wrong colour."""
    shapes = {t.shape for t in scene.things}
    called = [p for t, p in HABITS.items() if t in shapes and p not in shapes]
    if called and rng.random() < 0.4:
        return called[0]
    if rng.random() < 0.5:
        shape = str(rng.choice(sorted(shapes)))
        here = {t.colour for t in scene.things if t.shape == shape}
        return f"{rng.choice([c for c in COLOURS if c not in here])} {shape}"
    return str(rng.choice([s for s in SHAPES if s not in shapes]))


# ---- facts -----------------------------------------------------------------------------------------------------------


def facts(scene: Scene, rng: np.random.Generator, *, listed: float = 0.8, wrong: float = 0.05) -> tuple[Fact, ...]:
    """What an annotator would list: each truth with probability `listed`, of which a share is wrong. Never the graph."""
    found: list[Fact] = []
    for thing in scene.things:
        if rng.random() < listed:
            shape, colour = thing.shape, thing.colour
            if rng.random() < wrong:
                if rng.random() < 0.5:
                    colour = str(rng.choice([c for c in COLOURS if c != colour]))
                else:
                    shape = str(rng.choice([s for s in SHAPES if s != shape]))
            found.append(Fact("object", f"{thing.size} {colour} {shape}", "annotator"))
    if rng.random() < listed:
        count = len(scene.things)
        if rng.random() < wrong:
            count += 1 if count == 1 else int(rng.choice([-1, 1]))
        found.append(Fact("count", plural(count, "object"), "annotator"))
    if len(scene.things) > 1 and rng.random() < listed:
        a, b = (scene.things[i] for i in rng.choice(len(scene.things), 2, replace=False))
        said = relation_of(a, b, rng)
        if rng.random() < wrong:
            said = OPPOSITE[said]
        found.append(Fact("relation", f"{a.name} {said} {b.name}", "annotator"))
    return tuple(found)
