"""Preferences as rows of each format. What a format cannot hold is said before, never bent to fit."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrlhf.formats.turns import PLACEHOLDER
from mmrlhf.records import Preference

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """What a format holds, and how a preference and its pictures, as values for the file, become a row of it.

    `types` is for files whose columns have one: names of Arrow's types, "picture", and lists and objects of them.
    """

    write: Callable[[Preference, Sequence[Any]], Row]
    types: Row
    rankings: bool = False
    ties: bool = False
    turns: bool = False

    def lacks(self, preference: Preference) -> str:
        """What of a preference it has no place for; "" where it has one for everything."""
        if not self.turns and (len(preference.prompt) > 1):
            return "prompts of several turns"
        return "ties" if not self.ties and len(set(preference.ranks)) < len(preference.ranks) else ""

    def row(self, preference: Preference, pictures: Sequence[Any]) -> Row:
        """Fields without a value are left out."""
        return {name: value for name, value in self.write(preference, pictures).items() if value is not None}


def pairs_of(preference: Preference) -> list[Preference]:
    """Every comparison of a ranking, as a preference of its own; of a pair, the pair.

    `hallucinated` is said of the worst answer, so that comparisons without it do not know.
    """
    if len(preference.answers) == 2:
        return [preference]
    found = []
    for one in preference.comparisons:
        two = (one.better, one.worse)
        pair = replace(
            preference,
            id="-".join([preference.id, *(str(n + 1) for n in two)]),
            answers=tuple(preference.answers[n] for n in two),
            ranks=(1, 1) if one.tie else (1, 2),
            ratings=tuple(preference.ratings[n] for n in two) if preference.ratings else (),
            hallucinated=preference.hallucinated if one.worse == len(preference.answers) - 1 else None,
        )
        found.append(pair)
    return found


# ---- what rows of several formats share ------------------------------------------------------------------------------


def _beside(preference: Preference, source: str = "source") -> Row:
    facts = [
        {"kind": f.kind, "text": f.text, "source": f.source, "confidence": f.confidence, "box": f.box and list(f.box)}
        for f in preference.facts
    ]
    return {source: preference.source or None, "hallucination": preference.hallucinated, "facts": facts or None}


def _pictured(pictures: Sequence[Any]) -> Row:
    """In formats of one picture a row; another number of them is a list."""
    return {"image": pictures[0]} if len(pictures) == 1 else {"images": list(pictures)}


def _margin(preference: Preference) -> float | None:
    return preference.comparisons[0].margin


def _places(preference: Preference, images: int) -> list[int]:
    """How many pictures stand before each turn's text: all before the first user's, but for user turns that say nothing else."""
    places = [int(turn.role == "user" and not turn.content) for turn in preference.prompt]
    first = next(number for number, turn in enumerate(preference.prompt) if turn.role == "user")
    places[first] += images - sum(places)
    return places


def _question(preference: Preference, images: int) -> str:
    return preference.prompt[0].content if preference.prompt[0].content else PLACEHOLDER * images


def _parts(text: str, images: int = 0) -> list[Row]:
    said = [{"type": "text", "text": text}] if text else []
    return [*({"type": "image"} for _ in range(images)), *said]


def _turns(preference: Preference, images: int) -> list[Row]:
    places = zip(preference.prompt, _places(preference, images), strict=True)
    return [{"role": turn.role, "content": _parts(turn.content, images)} for turn, images in places]


TEXT = {"id": "string", "source": "string", "hallucination": "bool"}
FACTS = {"facts": [{"kind": "string", "text": "string", "source": "string", "confidence": "float64", "box": ["float64"]}]}
PICTURED = {"image": "picture", "images": ["picture"]}
TURNS = [{"role": "string", "content": [{"type": "string", "text": "string"}]}]
SAID = {"from": "string", "value": "string"}
ASPECT = {"Rating": "string", "Rationale": "string"}


# ---- formats ---------------------------------------------------------------------------------------------------------


def _trl(preference: Preference, pictures: Sequence[Any]) -> Row:
    chosen, rejected = ([{"role": "assistant", "content": _parts(text)}] for text in preference.answers)
    tie = True if preference.comparisons[0].tie else None
    prompt = _turns(preference, len(pictures))
    row = {"id": preference.id, "images": list(pictures), "prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {**row, "margin": _margin(preference), "is_tie": tie, **_beside(preference)}


def _llava_rlhf(preference: Preference, pictures: Sequence[Any]) -> Row:
    """Which output is the better one follows from the id, so that the place says nothing of it."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    places = zip(preference.prompt, _places(preference, len(pictures)), strict=True)
    said = [
        {"from": names[turn.role], "value": "\n".join([PLACEHOLDER] * images + [turn.content] * bool(turn.content))}
        for turn, images in places
    ]
    better = 1 + zlib.crc32(preference.id.encode()) % 2
    first, second = ({"from": "gpt", "value": text} for text in preference.answers[:: 1 if better == 1 else -1])
    row = {"id": preference.id, **_pictured(pictures), "conversations": [*said, second]}
    return {**row, "output_1": first, "output_2": second, "preference": better, **_beside(preference)}


def _rlhf_v(preference: Preference, pictures: Sequence[Any]) -> Row:
    text = {"question": _question(preference, len(pictures)), "chosen": preference.chosen, "rejected": preference.rejected}
    row = {"idx": preference.id, **_pictured(pictures), "text": json.dumps(text, ensure_ascii=False)}
    return {**row, **_beside(preference, "origin_dataset")}


def _rlaif_v(preference: Preference, pictures: Sequence[Any]) -> Row:
    row = {"idx": preference.id, **_pictured(pictures), "question": _question(preference, len(pictures))}
    return {**row, "chosen": preference.chosen, "rejected": preference.rejected, **_beside(preference, "origin_dataset")}


def _mm_rlhf(preference: Preference, pictures: Sequence[Any]) -> Row:
    row = {"id": preference.id, **_pictured(pictures), "prompt": _question(preference, len(pictures))}
    reasons = {name: preference.meta.get(name) for name in ("chosen_reason", "rejected_reason")}
    row |= {name: reason for name, reason in reasons.items() if isinstance(reason, str)}
    row |= {"chosen": preference.chosen, "rejected": preference.rejected, "is_tie": preference.comparisons[0].tie}
    return {**row, "ls_factor": _margin(preference), **_beside(preference)}


def _vlfeedback(preference: Preference, pictures: Sequence[Any]) -> Row:
    """One number an answer is all that is known: it stands in the first aspect, and the others are not rated."""
    completions = [
        {
            "response": text,
            "model": "",
            "annotations": {name: {"Rating": said, "Rationale": ""} for name, said in aspects.items()},
        }
        for text, rating in zip(preference.answers, _ratings(preference), strict=True)
        for aspects in [{"Helpfulness": f"{rating:.17g}", "Ethical Considerations": "N/A", "Visual Faithfulness": "N/A"}]
    ]
    row = {"id": preference.id, "prompt": _question(preference, len(pictures)), "completions": completions}
    path = len(pictures) == 1 and isinstance(pictures[0], str) and not pictures[0].startswith("data:")
    return {**row, **({"img_path": pictures[0]} if path else _pictured(pictures)), **_beside(preference)}


def _ratings(preference: Preference) -> Sequence[float]:
    """Those that were given, where they say what the ranks say; else how many ranks stand at or below each."""
    said = [(one.tie, one.margin) for one in preference.comparisons if one.margin is not None]
    if said and all(margin == 0 if tie else margin > 0 for tie, margin in said):
        return preference.ratings
    return [float(len({rank for rank in preference.ranks if rank >= own})) for own in preference.ranks]


def _rankings(preference: Preference, pictures: Sequence[Any]) -> Row:
    row = {"id": preference.id, "images": list(pictures), "prompt": _turns(preference, len(pictures))}
    row |= {"answers": list(preference.answers), "ranks": list(preference.ranks)}
    return {**row, "ratings": list(preference.ratings) or None, **_beside(preference)}


PAIR = {"chosen": "string", "rejected": "string"}
IDX = {"idx": "string", "origin_dataset": "string", "hallucination": "bool"}
FORMATS = {
    "trl": Format(
        _trl,
        {**TEXT, "images": ["picture"], "prompt": TURNS, "chosen": TURNS, "rejected": TURNS, "margin": "float64",
         "is_tie": "bool", **FACTS},
        ties=True, turns=True,
    ),
    "llava-rlhf": Format(
        _llava_rlhf,
        {**TEXT, **PICTURED, "conversations": [SAID], "output_1": SAID, "output_2": SAID, "preference": "int64", **FACTS},
        turns=True,
    ),
    "rlhf-v": Format(_rlhf_v, {**IDX, **PICTURED, "text": "string", **FACTS}),
    "rlaif-v": Format(_rlaif_v, {**IDX, **PICTURED, "question": "string", **PAIR, **FACTS}),
    "mm-rlhf": Format(
        _mm_rlhf,
        {**TEXT, **PICTURED, "prompt": "string", **PAIR, "chosen_reason": "string", "rejected_reason": "string",
         "is_tie": "bool", "ls_factor": "float64", **FACTS},
        ties=True,
    ),
    "vlfeedback": Format(
        _vlfeedback,
        {**TEXT, **PICTURED, "prompt": "string",
         "completions": [{"response": "string", "model": "string", "annotations": dict.fromkeys(
             ("Helpfulness", "Ethical Considerations", "Visual Faithfulness"), ASPECT)}], **FACTS},
        rankings=True, ties=True,
    ),
    "rankings": Format(
        _rankings,
        {**TEXT, "images": ["picture"], "prompt": TURNS, "answers": ["string"], "ranks": ["int64"], "ratings": ["float64"], **FACTS},
        rankings=True, ties=True, turns=True,
    ),
}  # fmt: skip
