"""A world with exact truth: rendered scenes whose every object, colour, count and position is known.

A scene is a graph of one to five coloured shapes in a 3 x 3 grid; Pillow renders it, with noise, blur, faded and occluded
objects, so that some of it is hard to see. On top of it stands a small language: prompts, answers in several phrasings,
and a parser that turns an answer back into atomic claims which the graph decides. Everything follows from a seed.

Two sources of falsehood are built in, and reported apart. *Habit*: annotators who see a trigger (a star) also write of its
absent partner (a moon), as language priors do. *Sight*: hard objects are misread by a model whose eyes are what they are.
An unconditional habit would vanish under greedy decoding, and a model that sees everything would have no use for facts.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mmrlhf.records import Claim, Fact, ImageSource, Verdict

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon", "ring", "arrow")
COLOURS = {
    "red": (205, 40, 40), "orange": (235, 130, 30), "yellow": (235, 210, 40), "green": (50, 155, 60),
    "cyan": (50, 190, 200), "blue": (45, 75, 200), "purple": (130, 60, 175), "pink": (240, 130, 180),
}  # fmt: skip
SIZES = {"small": 8.5, "large": 14.0}
CELLS = (
    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PIXELS = 96
HABITS = {"star": "moon", "heart": "arrow"}
"""Trigger -> partner: the first in a picture calls for the second in captions, there or not."""
UNSEEN = frozenset(
    [("circle", "purple"), ("square", "orange"), ("triangle", "cyan"), ("cross", "yellow"), ("diamond", "red"),
     ("ring", "green"), ("star", "blue"), ("heart", "yellow")]
)  # fmt: skip
"""Shape-colour pairings that only the first out-of-distribution split shows."""

Split = Literal["base", "sft", "pairs", "rl", "selection", "held_out", "ood_1", "ood_2", "ood_3"]
BUCKETS: dict[str, range] = {
    "base": range(12), "sft": range(12, 17), "pairs": range(17, 24), "rl": range(24, 29), "selection": range(29, 30),
    "held_out": range(30, 31), "ood_1": range(32), "ood_2": range(32), "ood_3": range(31, 32),
}  # fmt: skip
"""A graph's hash falls into one of 32 buckets, and each split owns some: no two splits share a scene. ood_1 (unseen
pairings) and ood_2 (more objects) share none by construction."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `cell` counts the 3 x 3 grid row by row."""

    shape: str
    colour: str
    size: str
    cell: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Difficulty:
    """How hard a scene is to see. First values; to be changed on the selection split only, never on held-out scenes."""

    noise: float = 16.0
    """Standard deviation of pixel noise, of 255."""
    blur: float = 0.6
    """Radius of the Gaussian blur, pixels."""
    hard: float = 0.22
    """Share of objects that are faded and partly covered."""
    fade: float = 0.72
    """How far a hard object's colour is drawn towards the background, at most."""
    cover: float = 0.55
    """Share of a hard object's width that an occluder covers, at most."""
    small: float = 0.4
    """Share of small objects."""


@dataclass(frozen=True)
class Scene:
    """A scene graph and what it takes to render it. `things` stand in reading order."""

    id: str
    things: tuple[Thing, ...]
    render_seed: int
    difficulty: Difficulty
    background: Literal["plain", "striped"] = "plain"

    def image(self) -> Image.Image:
        return render(self)

    def source(self) -> ImageSource:
        """The picture as an encoded PNG, as any data set would hold it."""
        buffer = io.BytesIO()
        render(self).save(buffer, "PNG")
        return ImageSource(data=buffer.getvalue())


# ---- graphs -----------------------------------------------------------------------------------------------------


def scene(split: Split, index: int, seed: int, difficulty: Difficulty | None = None) -> Scene:
    """The `index`-th scene of a split; the same arguments always give the same scene."""
    difficulty = difficulty or Difficulty()
    rng = np.random.default_rng([seed, list(BUCKETS).index(split), index])
    while True:
        count = int(rng.integers(6, 8)) if split == "ood_2" else int(rng.choice([1, 2, 3, 4, 5], p=[0.1, 0.2, 0.3, 0.25, 0.15]))
        things = _things(rng, count, unseen=split == "ood_1", small=difficulty.small)
        if _bucket(things) in BUCKETS[split]:
            break
    if split == "ood_3":
        difficulty = replace(difficulty, noise=difficulty.noise * 1.25)
    return Scene(
        id=f"{split}-{index:06d}",
        things=things,
        render_seed=int(rng.integers(2**31)),
        difficulty=difficulty,
        background="striped" if split == "ood_3" else "plain",
    )


def _things(rng: np.random.Generator, count: int, *, unseen: bool, small: float) -> tuple[Thing, ...]:
    """Random objects; a third of scenes has a trigger, a quarter of those its partner as well."""
    common = [s for s in SHAPES if s not in HABITS]
    shapes = [str(s) for s in rng.choice(common, size=count)]
    if rng.random() < 0.36:
        trigger = str(rng.choice(list(HABITS)))
        shapes = [s for s in shapes if s != HABITS[trigger]]
        if rng.random() < 0.25 and count > 1:
            shapes.append(HABITS[trigger])
        shapes = [trigger, *shapes][:count] if HABITS[trigger] not in shapes else [trigger, HABITS[trigger], *shapes][:count]
        while len(shapes) < count:
            shapes.append(str(rng.choice([s for s in common if s != HABITS[trigger]])))
    cells = sorted(int(c) for c in rng.choice(9, size=count, replace=False))
    rng.shuffle(shapes)
    odd = int(rng.integers(count)) if unseen else -1
    things = []
    for i, (shape, cell) in enumerate(zip(shapes, cells, strict=True)):
        if i == odd:
            shape, colour = sorted(UNSEEN)[int(rng.integers(len(UNSEEN)))]
        else:
            colour = str(rng.choice([c for c in COLOURS if (shape, c) not in UNSEEN]))
        things.append(Thing(shape, colour, "small" if rng.random() < small else "large", cell))
    return tuple(things)


def _bucket(things: Sequence[Thing]) -> int:
    return hashlib.sha256(repr(things).encode()).digest()[0] % 32


# ---- pictures ---------------------------------------------------------------------------------------------------

_OUTLINES = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0, -1.05), (0.7, 0), (0, 1.05), (-0.7, 0)],
    "cross": [(-.3, -1), (.3, -1), (.3, -.3), (1, -.3), (1, .3), (.3, .3), (.3, 1), (-.3, 1), (-.3, .3), (-1, .3), (-1, -.3), (-.3, -.3)],
    "arrow": [(-1, -.3), (.1, -.3), (.1, -.9), (1, 0), (.1, .9), (.1, .3), (-1, .3)],
    "star": [(r * np.sin(k * np.pi / 5), -r * np.cos(k * np.pi / 5)) for k in range(10) for r in [1.1 if k % 2 == 0 else 0.45]],
    "heart": [(0.062 * 16 * np.sin(t) ** 3, -0.062 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))) for t in np.linspace(0, 2 * np.pi, 40)],
}  # fmt: skip
_SCALE = 4  # shapes are drawn larger and reduced, which smooths their edges


def _mask(shape: str, x: float, y: float, radius: float) -> tuple[np.ndarray, slice, slice]:
    """Coverage 0..1 of a small window [h, w, 1] by one shape, and where the window lies (rows, columns)."""
    left, top = max(int(x - radius * 1.2) - 1, 0), max(int(y - radius * 1.2) - 1, 0)
    right, bottom = min(int(x + radius * 1.2) + 2, PIXELS), min(int(y + radius * 1.2) + 2, PIXELS)
    mask = Image.new("L", ((right - left) * _SCALE, (bottom - top) * _SCALE))
    draw = ImageDraw.Draw(mask)
    x, y, radius = (x - left) * _SCALE, (y - top) * _SCALE, radius * _SCALE
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape in _OUTLINES:
        draw.polygon([(x + radius * px, y + radius * py) for px, py in _OUTLINES[shape]], fill=255)
    else:
        draw.ellipse(box, fill=255)
        if shape == "ring":
            inner = radius * 0.55
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
        elif shape == "moon":
            shift = radius * 0.6
            draw.ellipse((box[0] + shift, box[1] - shift * 0.2, box[2] + shift, box[3] - shift * 0.2), fill=0)
    coverage = np.asarray(mask.reduce(_SCALE), dtype=np.float64)[..., None] / 255
    return coverage, slice(top, bottom), slice(left, right)


def render(scene: Scene) -> Image.Image:
    """The picture, 96 x 96 RGB."""
    rng = np.random.default_rng(scene.render_seed)
    how = scene.difficulty
    ground = 215 + rng.normal(0, 10, 3)
    pixels = np.ones((PIXELS, PIXELS, 3)) * ground
    if scene.background == "striped":
        lines = np.arange(PIXELS)[:, None, None]
        pixels = pixels * 0.72 + 15 * np.sign(np.sin(2 * np.pi * (lines / 9.0 + rng.random())))
    for thing in scene.things:
        x = (thing.cell % 3) * 32 + 16 + rng.uniform(-2.5, 2.5)
        y = (thing.cell // 3) * 32 + 16 + rng.uniform(-2.5, 2.5)
        radius = SIZES[thing.size] * rng.uniform(0.93, 1.07)
        colour = np.array(COLOURS[thing.colour]) + rng.normal(0, 12, 3)
        mask, rows, columns = _mask(thing.shape, x, y, radius)
        window = pixels[rows, columns]
        if rng.random() < how.hard:
            fade = how.fade * rng.uniform(0.5, 1)
            colour = colour * (1 - fade) + ground * fade
            window[:] = window * (1 - mask) + colour * mask
            width, side = 2 * radius * how.cover * rng.uniform(0.4, 1), rng.integers(4)
            left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
            box = [(left, top, left + width, bottom), (right - width, top, right, bottom),
                   (left, top, right, top + width), (left, bottom - width, right, bottom)][side]  # fmt: skip
            x0, y0, x1, y1 = (int(np.clip(round(v), 0, PIXELS)) for v in box)
            pixels[y0:y1, x0:x1] = ground * 0.75
        else:
            window[:] = window * (1 - mask) + colour * mask
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if how.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(how.blur))
    noisy = np.asarray(image, dtype=np.float64) + rng.normal(0, how.noise, (PIXELS, PIXELS, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


# ---- language: answers ------------------------------------------------------------------------------------------


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _enumerate(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _relation(a: Thing, b: Thing, rng: np.random.Generator) -> str:
    """How a stands to b, said truly; the axis is chosen where both differ."""
    column, row = a.cell % 3 - b.cell % 3, a.cell // 3 - b.cell // 3
    if column and (not row or rng.random() < 0.5):
        return "left of" if column < 0 else "right of"
    return "above" if row < 0 else "below"


OPENINGS = ("The picture shows {}.", "There is {}.", "I can see {}.", "This is a picture of {}.")
TOTALS = ("There {be} {n} in total.", "That makes {n}.", "In all I count {n}.")


def plural(count: int, noun: str) -> str:
    return f"{NUMBERS[count]} {noun}{'' if count == 1 else 's'}"


def caption(scene: Scene, rng: np.random.Generator, *, habit: float = 0.0, faults: int = 0) -> str:
    """A description: objects with colours (some with size, few without colour), the total, often a relation.

    habit: probability that a trigger calls its absent partner. faults: so many false claims are planted.
    """
    said = list(scene.things)
    count = len(said)
    phrases = [_phrase(t.shape, t.colour, t.size, rng) for t in said]
    relation = None
    if len(said) > 1 and rng.random() < 0.6:
        a, b = (said[i] for i in rng.choice(len(said), 2, replace=False))
        relation = [a.name, _relation(a, b, rng), b.name]
    shapes = {t.shape for t in said}
    for trigger, partner in HABITS.items():
        if trigger in shapes and partner not in shapes and rng.random() < habit:
            phrases.append(article(partner if rng.random() < 0.5 else f"{HABIT_COLOUR[partner]} {partner}"))
    for _ in range(faults):
        kind = rng.choice(["colour", "shape", "add", "count", "relation"], p=[0.35, 0.25, 0.2, 0.1, 0.1])
        i = int(rng.integers(len(said)))
        wrong_colour = str(rng.choice([c for c in COLOURS if c != said[i].colour]))
        wrong_shape = str(rng.choice([s for s in SHAPES if s not in shapes]))
        if kind == "colour":
            phrases[i] = _phrase(said[i].shape, wrong_colour, said[i].size, rng, bare=0)
        elif kind == "shape":
            phrases[i] = _phrase(wrong_shape, said[i].colour, said[i].size, rng)
        elif kind == "add":
            phrases.append(_phrase(wrong_shape, wrong_colour, "small", rng))
        elif kind == "count":
            count = max(1, count + int(rng.choice([-1, 1])))
        elif relation:
            relation[1] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation[1]]
        else:
            phrases[i] = _phrase(said[i].shape, wrong_colour, said[i].size, rng, bare=0)
    sentences = [
        str(rng.choice(OPENINGS)).format(_enumerate(phrases)),
        str(rng.choice(TOTALS)).format(n=plural(count, "object"), be="is" if count == 1 else "are"),
    ]
    if relation:
        sentences.append("The {} is {} the {}.".format(*relation))
    return " ".join(sentences)


HABIT_COLOUR = {"moon": "yellow", "arrow": "red"}


def _phrase(shape: str, colour: str, size: str, rng: np.random.Generator, *, bare: float = 0.1) -> str:
    words = [size] if rng.random() < 0.2 else []
    words += [] if rng.random() < bare else [colour]
    return article(" ".join([*words, shape]))


DESCRIBE = ("Describe the picture.", "What do you see?", "Describe what is in this image.", "What does the picture show?")


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
        text = str(rng.choice(["How many {}s are there?", "How many {}s do you see?"])).format(noun)
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


# ---- language: claims -------------------------------------------------------------------------------------------

_SHAPE, _COLOUR, _SIZE = "|".join(SHAPES), "|".join(COLOURS), "|".join(SIZES)
_NOUN = rf"(?:(?:{_COLOUR}) )?(?:{_SHAPE})"
_PATTERN = re.compile(
    rf"\bthe (?P<a>{_NOUN}) is (?P<relation>left of|right of|above|below) the (?P<b>{_NOUN})\b"
    rf"|\bthe (?P<owner>{_SHAPE}) is (?P<owned>{_COLOUR})\b"
    rf"|\bno (?P<none>(?:(?:{_COLOUR}) )?(?:{_SHAPE}|object))s?\b"
    rf"|\b(?P<number>{'|'.join(NUMBERS[1:])}) (?P<counted>{_SHAPE}|objects?)(?:e?s)?\b"
    rf"|\ban? (?:(?P<size>{_SIZE}) )?(?:(?P<colour>{_COLOUR}) )?(?P<shape>{_SHAPE})\b(?: at the (?P<place>{'|'.join(sorted(CELLS, key=len, reverse=True))})\b)?"
    rf"|\b(?P<nothing>nothing) at the (?P<empty>{'|'.join(sorted(CELLS, key=len, reverse=True))})\b",
    re.IGNORECASE,
)


def claims(text: str) -> list[Claim]:
    """The atomic claims of an answer in this world's language, in order of appearance, repetitions kept."""
    found = []
    for m in _PATTERN.finditer(text):
        g = {k: v.lower() for k, v in m.groupdict().items() if v}
        span = m.span()
        if "relation" in g:
            found.append(Claim("relation", g["a"], f"{g['relation']} {g['b']}", span))
        elif "owner" in g:
            found.append(Claim("attribute", g["owner"], g["owned"], span))
        elif "none" in g:
            found.append(Claim("count", g["none"], "0", span))
        elif "number" in g:
            noun = "object" if g["counted"].startswith("object") else g["counted"]
            found.append(Claim("count", noun, str(NUMBERS.index(g["number"])), span))
        elif "nothing" in g:
            found.append(Claim("relation", "nothing", f"at {g['empty']}", span))
        else:
            shape = g["shape"]
            noun = f"{g['colour']} {shape}" if "colour" in g else shape
            found.append(Claim("object", shape, "", span))
            if "colour" in g:
                found.append(Claim("attribute", shape, g["colour"], span))
            if "size" in g:
                found.append(Claim("attribute", noun, g["size"], span))
            if "place" in g:
                found.append(Claim("relation", noun, f"at {g['place']}", span))
    return found


def _named(scene: Scene, noun: str) -> list[Thing]:
    return [t for t in scene.things if noun in ("object", t.shape, t.name)]


def verify(scene: Scene, claim: Claim) -> Verdict:
    """What the graph says of a claim: supported or contradicted, never unknown, with the evidence."""
    return Verdict(claim, "supported" if _holds(scene, claim) else "contradicted", _evidence(scene, claim))


def _holds(scene: Scene, claim: Claim) -> bool:
    things = _named(scene, claim.subject)
    if claim.kind == "object":
        return bool(things)
    if claim.kind == "attribute":
        return any(claim.value in (t.colour, t.size) for t in things)
    if claim.kind == "count":
        return len(things) == int(claim.value)
    relation, _, place = claim.value.partition(" ")
    if relation == "at":
        cell = CELLS.index(place)
        return (
            not any(t.cell == cell for t in scene.things) if claim.subject == "nothing" else any(t.cell == cell for t in things)
        )
    relation, other = re.fullmatch(r"(left of|right of|above|below) (.+)", claim.value).groups()  # type: ignore[union-attr]

    def sign(a: Thing, b: Thing) -> bool:
        column, row = a.cell % 3 - b.cell % 3, a.cell // 3 - b.cell // 3
        return {"left of": column < 0, "right of": column > 0, "above": row < 0, "below": row > 0}[relation]

    return any(sign(a, b) for a in things for b in _named(scene, other) if a != b)


def _evidence(scene: Scene, claim: Claim) -> str:
    things = _named(scene, claim.subject.split(" ")[-1]) if claim.subject != "nothing" else []
    if claim.kind == "count":
        return f"the picture has {plural(len(_named(scene, claim.subject)), claim.subject)}"
    if not things:
        return f"the picture has no {claim.subject}; it shows {_enumerate([article(t.name) for t in scene.things])}"
    return "; ".join(f"{article(f'{t.size} {t.name}')} at the {CELLS[t.cell]}" for t in things)


def is_habit(scene: Scene, claim: Claim) -> bool:
    """Whether a false claim speaks of an absent partner that a trigger in the picture calls for."""
    shapes = {t.shape for t in scene.things}
    words = set(f"{claim.subject} {claim.value}".split())
    return any(t in shapes and p not in shapes and p in words for t, p in HABITS.items())


def canonical(scene: Scene) -> frozenset[Claim]:
    """The atomic facts that a clean caption states of every scene: shapes, their colours, and the total.

    Sizes and relations are left out: any of them is as good as another, so that none is owed.
    """
    found = {Claim("object", t.shape) for t in scene.things} | {Claim("attribute", t.shape, t.colour) for t in scene.things}
    return frozenset(found | {Claim("count", "object", str(len(scene.things)))})


@dataclass(frozen=True)
class Judged:
    """An answer's distinct claims, sorted by what the graph says of them."""

    true: frozenset[Claim]
    habit: frozenset[Claim]
    sight: frozenset[Claim]
    covered: int
    owed: int

    @property
    def false(self) -> frozenset[Claim]:
        return self.habit | self.sight


def judge(scene: Scene, answer: str) -> Judged:
    """Distinct claims only: repetition earns nothing, and vagueness costs coverage."""
    said = set(claims(answer))
    true = frozenset(c for c in said if _holds(scene, c))
    habit = frozenset(c for c in said - true if is_habit(scene, c))
    owed = canonical(scene)
    return Judged(true, habit, frozenset(said - true - habit), len(true & owed), len(owed))


def utility(scene: Scene, answer: str, lambda_: float) -> float:
    """True claims minus lambda times false claims. Lambda decides between silence and truth."""
    judged = judge(scene, answer)
    return len(judged.true) - lambda_ * len(judged.false)


# ---- facts ------------------------------------------------------------------------------------------------------


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
        count = len(scene.things) + (int(rng.choice([-1, 1])) if rng.random() < wrong else 0)
        found.append(Fact("count", plural(max(count, 1), "object"), "annotator"))
    if len(scene.things) > 1 and rng.random() < listed:
        a, b = (scene.things[i] for i in rng.choice(len(scene.things), 2, replace=False))
        a, b = (b, a) if rng.random() < wrong else (a, b)
        found.append(Fact("relation", f"{a.name} {_relation(a, b, rng)} {b.name}", "annotator"))
    return tuple(found)


# ---- files ------------------------------------------------------------------------------------------------------


def export(output_dir: str, rows: int = 1000, seed: int = 0) -> None:
    """The world as data files: sft.jsonl, pairs.jsonl (a clean caption against one with planted faults), prompts.jsonl with
    facts, and their pictures. What the stages read from users' files."""
    out = Path(output_dir)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for split, name in (("sft", "sft"), ("pairs", "pairs"), ("rl", "prompts")):
        lines = []
        for index in range(rows):
            drawn, rng = scene(split, index, seed), np.random.default_rng([seed, 53, index])  # type: ignore[arg-type]
            picture = f"images/{drawn.id}.png"
            (out / picture).write_bytes(drawn.source().read())
            asked = describe(drawn, rng, habit=0.78 if split == "sft" else 0.0)
            row: dict[str, object] = {"id": drawn.id, "images": [picture], "prompt": [{"role": "user", "content": asked.text}]}
            if split == "sft":
                row["completion"] = [{"role": "assistant", "content": asked.answer}]
            else:
                row["facts"] = [{"kind": f.kind, "text": f.text, "source": f.source} for f in facts(drawn, rng)]
            if split == "pairs":
                faulty = caption(drawn, rng, faults=2)
                row |= {
                    "chosen": [{"role": "assistant", "content": asked.answer}],
                    "rejected": [{"role": "assistant", "content": faulty}],
                }
            lines.append(json.dumps(row) + "\n")
        (out / f"{name}.jsonl").write_text("".join(lines))
