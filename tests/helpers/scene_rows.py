"""Rows about synthetic scenes, for tests and for the processes that they start."""

from __future__ import annotations

import numpy as np

from mmrlhf import scenes
from mmrlhf.records import Example, Message


def scene_examples() -> list[Example]:
    """Return twelve synthetic scenes with a description and facts."""
    examples = []
    for index in range(12):
        scene, rng = scenes.generate_scene("selection", index, 0), np.random.default_rng(index)
        question = scenes.description_question(scene, rng)
        prompt = (Message("user", question.text),)
        facts = scenes.annotator_facts(scene, rng)
        examples.append(Example(scene.id, (scene.image_source(),), prompt, question.answer, facts))
    return examples
