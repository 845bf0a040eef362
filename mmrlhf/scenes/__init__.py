"""A world with exact truth: rendered scenes whose every object, colour, count and position is known.

A scene is a graph of one to five coloured shapes in a 3 x 3 grid; Pillow renders it, with noise, blur, faded and occluded
objects, so that some of it is hard to see. On top of it stands a small language: prompts, answers in several phrasings,
and a parser that turns an answer back into atomic claims which the graph decides. Everything follows from a seed.

Two sources of falsehood are built in, and reported apart. *Habit*: annotators who see a trigger (a star) also write of its
absent partner (a moon), as language priors do. *Sight*: hard objects are misread by a model whose eyes are what they are.
An unconditional habit would vanish under greedy decoding, and a model that sees everything would have no use for facts.

Each module imports only those before it: `things`, `pictures`, `graph`, `language`, `truth`, `files`.
"""

from mmrlhf.scenes.captions import (
    Question,
    annotator_facts,
    caption,
    count_phrase,
    description_question,
    short_question,
    with_article,
    wrong_answer,
)
from mmrlhf.scenes.export import export_dataset
from mmrlhf.scenes.ground_truth import (
    SceneVerdicts,
    canonical_claims,
    is_cooccurrence_error,
    parse_claims,
    utility,
    verify_answer,
    verify_claim,
)
from mmrlhf.scenes.render import IMAGE_SIZE, Difficulty
from mmrlhf.scenes.scene_graph import SPLIT_BUCKETS, Scene, Split, generate_scene
from mmrlhf.scenes.vocabulary import CELL_NAMES, COLOURS, COOCCURRENCES, NUMBER_WORDS, SHAPES, SIZES, UNSEEN_PAIRINGS, SceneObject

__all__ = [
    "CELL_NAMES",
    "COLOURS",
    "COOCCURRENCES",
    "IMAGE_SIZE",
    "NUMBER_WORDS",
    "SHAPES",
    "SIZES",
    "SPLIT_BUCKETS",
    "UNSEEN_PAIRINGS",
    "Difficulty",
    "Question",
    "Scene",
    "SceneObject",
    "SceneVerdicts",
    "Split",
    "annotator_facts",
    "canonical_claims",
    "caption",
    "count_phrase",
    "description_question",
    "export_dataset",
    "generate_scene",
    "is_cooccurrence_error",
    "parse_claims",
    "short_question",
    "utility",
    "verify_answer",
    "verify_claim",
    "with_article",
    "wrong_answer",
]  # fmt: skip
