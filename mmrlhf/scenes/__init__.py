"""Synthetic scenes with exact ground truth: every object, colour, count and position is known.

A scene is a graph of one to five coloured shapes in a 3 x 3 grid (six or seven in split ood_2).
Pillow renders it with noise, blur, and faded and occluded objects, so that some are hard to see.
Prompts and answers, in several phrasings, are written in a small language. A parser turns an answer
back into atomic claims, which are verified by the graph. Everything follows from a seed.

Two sources of hallucination are built in and reported separately. Co-occurrence errors come from
biased captions: annotators who see a trigger (a star) also mention its absent partner (a moon),
as language priors do. Perception errors come from objects that are hard to see. The bias depends
on a trigger because an unconditional one would vanish under greedy decoding. Some objects are
hard to see because facts would not help a model that sees everything.

Each module imports only those before it: `vocabulary`, `render`, `scene_graph`, `captions`,
`questions`, `claim_parser`, `ground_truth`, `export`.
"""

from mmrlhf.scenes.captions import (
    annotator_facts,
    caption,
    caption_with_and_without_fault,
    caption_with_swaps,
    count_phrase,
    off_by_one,
    with_article,
)
from mmrlhf.scenes.claim_parser import parse_claims
from mmrlhf.scenes.export import export_dataset
from mmrlhf.scenes.ground_truth import (
    CLAIM_KINDS,
    SceneVerdicts,
    canonical_claims,
    is_cooccurrence_error,
    utility,
    verify_answer,
    verify_claim,
    verify_description,
)
from mmrlhf.scenes.questions import (
    Question,
    binding_question,
    description_question,
    location_question,
    relation_question,
    short_question,
    wrong_answer,
)
from mmrlhf.scenes.render import IMAGE_SIZE, Difficulty
from mmrlhf.scenes.scene_graph import SPLIT_BUCKETS, Scene, Split, generate_scene
from mmrlhf.scenes.vocabulary import (
    CELL_NAMES,
    COLOURS,
    COOCCURRENCES,
    NUMBER_WORDS,
    PATTERNS,
    SHAPES,
    SIZES,
    UNSEEN_PAIRINGS,
    SceneObject,
    absent_partners,
)

__all__ = [
    "CELL_NAMES",
    "CLAIM_KINDS",
    "COLOURS",
    "COOCCURRENCES",
    "IMAGE_SIZE",
    "NUMBER_WORDS",
    "PATTERNS",
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
    "absent_partners",
    "annotator_facts",
    "binding_question",
    "canonical_claims",
    "caption",
    "caption_with_and_without_fault",
    "caption_with_swaps",
    "count_phrase",
    "description_question",
    "export_dataset",
    "generate_scene",
    "is_cooccurrence_error",
    "location_question",
    "off_by_one",
    "parse_claims",
    "relation_question",
    "short_question",
    "utility",
    "verify_answer",
    "verify_claim",
    "verify_description",
    "with_article",
    "wrong_answer",
]  # fmt: skip
