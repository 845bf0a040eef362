"""A world with exact truth: rendered scenes whose every object, colour, count and position is known.

A scene is a graph of one to five coloured shapes in a 3 x 3 grid; Pillow renders it, with noise, blur, faded and occluded
objects, so that some of it is hard to see. On top of it stands a small language: prompts, answers in several phrasings,
and a parser that turns an answer back into atomic claims which the graph decides. Everything follows from a seed.

Two sources of falsehood are built in, and reported apart. *Habit*: annotators who see a trigger (a star) also write of its
absent partner (a moon), as language priors do. *Sight*: hard objects are misread by a model whose eyes are what they are.
An unconditional habit would vanish under greedy decoding, and a model that sees everything would have no use for facts.

Each module imports only those before it: `things`, `pictures`, `graph`, `language`, `truth`, `files`.
"""

from mmrlhf.scenes.files import export
from mmrlhf.scenes.graph import BUCKETS, Scene, Split, scene
from mmrlhf.scenes.language import Question, article, caption, describe, facts, misanswer, plural, question
from mmrlhf.scenes.pictures import PIXELS, Difficulty
from mmrlhf.scenes.things import CELLS, COLOURS, HABITS, NUMBERS, SHAPES, SIZES, UNSEEN, Thing
from mmrlhf.scenes.truth import Judged, canonical, claims, is_habit, judge, utility, verify

__all__ = [
    "BUCKETS", "CELLS", "COLOURS", "HABITS", "NUMBERS", "PIXELS", "SHAPES", "SIZES", "UNSEEN", "Difficulty", "Judged",
    "Question", "Scene", "Split", "Thing", "article", "canonical", "caption", "claims", "describe", "export", "facts",
    "is_habit", "judge", "misanswer", "plural", "question", "scene", "utility", "verify",
]  # fmt: skip
