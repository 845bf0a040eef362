"""Corrections of sampled answers by the annotator whose labels are flipped in part.

RLHF-V's annotators correct what they find wrong in an answer and leave the rest (Yu et al. 2024).
This annotator does so by its own view of a scene, which is wrong at the rate of its labels
(`annotator_error`). It never asks the scene graph: an object that it overlooks is struck out, and
one that it imagines stays. It adds nothing that an answer leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from facts_map_judges import scene_index

from mmrlhf import scenes
from mmrlhf.config import ScenesConfig
from mmrlhf.demo import data
from mmrlhf.records import Preference
from mmrlhf.scenes.captions import join_words
from mmrlhf.scenes.claim_parser import Mention, parse_claims, parse_mentions


def annotator_view(scene: scenes.Scene, rng: np.random.Generator, error: float) -> scenes.Scene:
    """Return a scene as an annotator sees it.

    Each object is overlooked with probability `error` / 2, and has another colour with as much;
    with probability `error` one object is imagined: a trigger's absent partner, if there is one.
    """
    objects = []
    for scene_object in scene.objects:
        draw, colour = rng.random(), str(rng.choice([c for c in scenes.COLOURS if c != scene_object.colour]))
        if draw >= error / 2:
            objects.append(replace(scene_object, colour=colour) if draw < error else scene_object)
    shapes = {o.shape for o in scene.objects}
    absent = scenes.absent_partners(shapes) or [s for s in scenes.SHAPES if s not in shapes]
    cell = int(rng.choice([c for c in range(9) if c not in {o.cell for o in scene.objects}]))
    imagined = scenes.SceneObject(str(rng.choice(absent)), str(rng.choice(list(scenes.COLOURS))), "small", cell)
    if rng.random() < error:
        objects.append(imagined)
    return replace(scene, objects=tuple(objects) or scene.objects[:1])


def correct(view: scenes.Scene, answer: str) -> str:
    """Return a description without what a view contradicts: corrected, or struck out.

    A mention takes on the properties of an object of its shape that no other mention means; without
    one it goes. A wrong total is replaced, and any other sentence that is still false goes.
    """
    sentences = (sentence.strip() for sentence in re.findall(r"[^.!?]+[.!?]*", answer))
    return " ".join(filter(None, (_correct_sentence(view, sentence) for sentence in sentences)))


def _correct_sentence(view: scenes.Scene, sentence: str) -> str:
    sentence = _correct_total(view, _correct_mentions(view, sentence))
    is_false = any(verdict.value == "contradicted" for verdict in scenes.verify_description(view, sentence))
    return "" if is_false else sentence


def _correct_mentions(view: scenes.Scene, sentence: str) -> str:
    mentions = next(parse_mentions(sentence), []) if sentence else []
    unused, phrases = list(view.objects), [""] * len(mentions)
    most_stated_first = sorted(range(len(mentions)), key=lambda i: -len(mentions[i].properties))
    for is_exact in (True, False):  # first the objects that mentions fit, then those of their shape
        for i in most_stated_first:
            mention = mentions[i]
            wanted = mention.properties if is_exact else {p for p in mention.properties if p[0] == "shape"}
            meant = next((o for o in unused if _fits(o, wanted)), None)
            if not phrases[i] and meant is not None:
                unused.remove(meant)
                phrases[i] = sentence[slice(*mention.span)] if is_exact else _phrase(meant, mention, sentence)
    if not mentions or all(phrase == sentence[slice(*m.span)] for phrase, m in zip(phrases, mentions, strict=True)):
        return sentence
    kept = [phrase for phrase in phrases if phrase]
    return sentence[: mentions[0].span[0]] + join_words(kept) + sentence[mentions[-1].span[1] :] if kept else ""


def _fits(scene_object: scenes.SceneObject, properties: Iterable[tuple[str, str]]) -> bool:
    return all(_value(scene_object, name) == value for name, value in properties)


def _value(scene_object: scenes.SceneObject, name: str) -> str:
    return scenes.CELL_NAMES[scene_object.cell] if name == "place" else str(getattr(scene_object, name))


def _phrase(scene_object: scenes.SceneObject, mention: Mention, sentence: str) -> str:
    """Return an object with the properties that a mention states. Nobody states `plain`."""
    stated = {name for name, _ in mention.properties}
    words = [_value(scene_object, name) for name in ("size", "pattern", "colour", "shape") if name in stated]
    noun = " ".join([*(word for word in words if word != "plain"), *([] if "shape" in stated else ["object"])])
    place = f" at the {_value(scene_object, 'place')}" if "place" in stated else ""
    is_definite = sentence[slice(*mention.span)].lower().startswith("the ")
    return (f"the {noun}" if is_definite else scenes.with_article(noun)) + place


def _correct_total(view: scenes.Scene, sentence: str) -> str:
    """Return a sentence whose statement of the total, if it makes a wrong one, is the view's."""
    total = len(view.objects)
    for claim in parse_claims(sentence):
        if claim.kind == "count" and claim.subject == "object" and claim.value not in ("0", str(total)):
            start, end = claim.span
            before = re.sub(r"\b(is|are) $", "is " if total == 1 else "are ", sentence[:start])
            return before + scenes.count_phrase(total, "object") + sentence[end:]
    return sentence


def corrected_pairs(pairs: Sequence[Preference], data_config: ScenesConfig) -> list[Preference]:
    """Return the corrections of one answer, drawn by lot, of each pair: corrected over sampled.

    Short answers, and answers in which the annotator finds nothing wrong or nothing right, have no
    pair: it has looked at one answer for each of `pairs` all the same.
    """
    rows = []
    for row in pairs:
        index = scene_index(row.id)
        if not data.is_description(index):
            continue
        scene = data.training_scene("pairs", index, data_config)
        # The view is the scene's: all of its pairs are corrected by the same one.
        view = annotator_view(scene, np.random.default_rng([data_config.seed, 71, index]), data_config.annotator_error)
        number = int(row.id.rpartition("-")[2])
        answer = row.answers[int(np.random.default_rng([data_config.seed, 73, number]).integers(2))]
        corrected = correct(view, answer)
        if corrected and corrected != answer:
            rows.append(Preference.from_pair(row.id, row.images, row.prompt, corrected, answer))
    return rows
