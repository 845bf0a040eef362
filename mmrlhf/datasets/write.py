"""Build rows of each format from preferences, and name the features that a format lacks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrlhf.datasets.conversations import PLACEHOLDER
from mmrlhf.records import Fact, Message, Preference, answer_turn, place_images

RowDict = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """How to write a preference in a format, and which features the format can represent."""

    build_row: Callable[[Preference, Sequence[Any]], RowDict]
    """Build a row from a preference and its images as the file stores them."""
    column_types: RowDict
    """For parquet: names of Arrow types, "image", and lists and objects of them."""
    supports_rankings: bool = False
    supports_ties: bool = False
    supports_multi_turn: bool = False
    supports_answer_images: bool = False

    def unsupported_feature(self, preference: Preference) -> str:
        """Return the feature of a preference that the format cannot represent, or ""."""
        if not self.supports_multi_turn and len(preference.prompt) > 1:
            return "multi-turn prompts"
        if preference.answer_images and not (self.supports_answer_images and all(preference.answer_images)):
            return "images inside answers"
        has_ties = len(set(preference.ranks)) < len(preference.ranks)
        return "ties" if has_ties and not self.supports_ties else ""

    def to_row(self, preference: Preference, images: Sequence[Any]) -> RowDict:
        """Build a row without the fields that are None."""
        return {name: value for name, value in self.build_row(preference, images).items() if value is not None}


def to_pairs(preference: Preference) -> list[Preference]:
    """Split a ranking into its comparisons, each a preference; a pair stays as it is.

    `hallucinated` describes the worst answer, so comparisons without that answer lose it.
    """
    if len(preference.answers) == 2:
        return [preference]
    pairs = []
    for comparison in preference.comparisons:
        better, worse = comparison.better, comparison.worse
        pair = replace(
            preference,
            id=f"{preference.id}-{better + 1}-{worse + 1}",
            answers=(preference.answers[better], preference.answers[worse]),
            ranks=(1, 1) if comparison.is_tie else (1, 2),
            ratings=(preference.ratings[better], preference.ratings[worse]) if preference.ratings else (),
            answer_images=(preference.images_of(better), preference.images_of(worse)) if preference.answer_images else (),
            hallucinated=preference.hallucinated if worse == len(preference.answers) - 1 else None,
        )
        pairs.append(pair)
    return pairs


# ---- shared by several formats -------------------------------------------------------------------


def facts_field(facts: Sequence[Fact]) -> list[RowDict] | None:
    """Return facts as a row's `facts`, None if there are none."""
    rows = [
        {
            "kind": fact.kind,
            "text": fact.text,
            "source": fact.source,
            "confidence": fact.confidence,
            "box": fact.box and list(fact.box),
        }
        for fact in facts
    ]
    return rows or None


def _common_fields(preference: Preference, source_field: str = "source") -> RowDict:
    facts = facts_field(preference.facts)
    return {source_field: preference.source or None, "hallucination": preference.hallucinated, "facts": facts}


def _image_fields(images: Sequence[Any]) -> RowDict:
    """Return `image` for one image, else `images` as a list, for formats with one image per row."""
    return {"image": images[0]} if len(images) == 1 else {"images": list(images)}


def _margin(preference: Preference) -> float | None:
    return preference.comparisons[0].margin


def text_with_placeholders(turn: Message) -> str:
    """Return a turn's text with a placeholder for each image, on lines of their own in front."""
    num_leading = turn.image_positions.count(0)
    texts = [part.get("text", PLACEHOLDER) for part in replace(turn, image_positions=turn.image_positions[num_leading:]).parts()]
    return "\n".join([PLACEHOLDER] * num_leading + ["".join(texts)] * bool(turn.content))


def _question(preference: Preference, num_images: int) -> str:
    turn = preference.prompt[0]
    if any(turn.image_positions) or not turn.content:
        return text_with_placeholders(place_images([turn], num_images)[0])
    return turn.content


def _content_parts(turn: Message) -> list[RowDict]:
    return [*turn.parts()] if turn.content or turn.image_positions else []


def message_dicts(turns: Sequence[Message], num_images: int) -> list[RowDict]:
    """Return turns as a row's field, with images at the places where they are shown."""
    return [{"role": turn.role, "content": _content_parts(turn)} for turn in place_images(turns, num_images)]


TEXT_COLUMNS = {"id": "string", "source": "string", "hallucination": "bool"}
FACTS_COLUMN = {"facts": [{"kind": "string", "text": "string", "source": "string", "confidence": "float64", "box": ["float64"]}]}
IMAGE_COLUMNS = {"image": "image", "images": ["image"]}
TURNS_TYPE = [{"role": "string", "content": [{"type": "string", "text": "string"}]}]
LLAVA_TURN_TYPE = {"from": "string", "value": "string"}
ASPECT_TYPE = {"Rating": "string", "Rationale": "string"}


# ---- formats -------------------------------------------------------------------------------------


def _to_trl(preference: Preference, images: Sequence[Any]) -> RowDict:
    answers = [answer_turn(text, preference.images_of(index)) for index, text in enumerate(preference.answers)]
    chosen, rejected = ([{"role": answer.role, "content": _content_parts(answer)}] for answer in answers)
    is_tie = True if preference.comparisons[0].is_tie else None
    prompt = message_dicts(preference.prompt, len(preference.images))
    row = {"id": preference.id, "images": list(images), "prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {**row, "margin": _margin(preference), "is_tie": is_tie, **_common_fields(preference)}


def _to_llava_rlhf(preference: Preference, images: Sequence[Any]) -> RowDict:
    """Build a row. A hash of the id decides which output is the better one."""
    role_names = {"system": "system", "user": "human", "assistant": "gpt"}
    llava_turns = [
        {"from": role_names[turn.role], "value": text_with_placeholders(turn)}
        for turn in place_images(preference.prompt, len(images))
    ]
    preference_label = 1 + zlib.crc32(preference.id.encode()) % 2
    chosen, rejected = ({"from": "gpt", "value": text} for text in preference.answers)
    output_1, output_2 = (chosen, rejected) if preference_label == 1 else (rejected, chosen)
    row = {"id": preference.id, **_image_fields(images), "conversations": [*llava_turns, output_2]}
    return {**row, "output_1": output_1, "output_2": output_2, "preference": preference_label, **_common_fields(preference)}


def _to_rlhf_v(preference: Preference, images: Sequence[Any]) -> RowDict:
    text = {"question": _question(preference, len(images)), "chosen": preference.chosen, "rejected": preference.rejected}
    row = {"idx": preference.id, **_image_fields(images), "text": json.dumps(text, ensure_ascii=False)}
    return {**row, **_common_fields(preference, "origin_dataset")}


def _to_rlaif_v(preference: Preference, images: Sequence[Any]) -> RowDict:
    row = {"idx": preference.id, **_image_fields(images), "question": _question(preference, len(images))}
    return {**row, "chosen": preference.chosen, "rejected": preference.rejected, **_common_fields(preference, "origin_dataset")}


def _to_mm_rlhf(preference: Preference, images: Sequence[Any]) -> RowDict:
    row = {"id": preference.id, **_image_fields(images), "prompt": _question(preference, len(images))}
    reasons = {name: preference.meta.get(name) for name in ("chosen_reason", "rejected_reason")}
    row |= {name: reason for name, reason in reasons.items() if isinstance(reason, str)}
    row |= {"chosen": preference.chosen, "rejected": preference.rejected, "is_tie": preference.comparisons[0].is_tie}
    return {**row, "ls_factor": _margin(preference), **_common_fields(preference)}


def _to_vlfeedback(preference: Preference, images: Sequence[Any]) -> RowDict:
    """Build a row with each answer's rating as its helpfulness; other aspects are unrated."""
    completions = []
    for text, rating in zip(preference.answers, _consistent_ratings(preference), strict=True):
        # 17 digits keep a float exact.
        aspects = {"Helpfulness": f"{rating:.17g}", "Ethical Considerations": "N/A", "Visual Faithfulness": "N/A"}
        annotations = {name: {"Rating": aspect_rating, "Rationale": ""} for name, aspect_rating in aspects.items()}
        completions.append({"response": text, "model": "", "annotations": annotations})
    row = {"id": preference.id, "prompt": _question(preference, len(images)), "completions": completions}
    is_file_path = len(images) == 1 and isinstance(images[0], str) and not images[0].startswith("data:")
    return {**row, **({"img_path": images[0]} if is_file_path else _image_fields(images)), **_common_fields(preference)}


def _consistent_ratings(preference: Preference) -> Sequence[float]:
    """Return the ratings if they agree with the ranks, else ratings derived from the ranks.

    The derived rating of an answer is the number of distinct ranks that are no better than its own.
    """
    margins = [(comparison.is_tie, comparison.margin) for comparison in preference.comparisons if comparison.margin is not None]
    if margins and all(margin == 0 if is_tie else margin > 0 for is_tie, margin in margins):
        return preference.ratings
    return [float(len({rank for rank in preference.ranks if rank >= own_rank})) for own_rank in preference.ranks]


def _to_rankings(preference: Preference, images: Sequence[Any]) -> RowDict:
    row = {"id": preference.id, "images": list(images), "prompt": message_dicts(preference.prompt, len(images))}
    row |= {"answers": list(preference.answers), "ranks": list(preference.ranks)}
    return {**row, "ratings": list(preference.ratings) or None, **_common_fields(preference)}


PAIR_COLUMNS = {"chosen": "string", "rejected": "string"}
IDX_COLUMNS = {"idx": "string", "origin_dataset": "string", "hallucination": "bool"}
ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
COMPLETION_TYPE = {"response": "string", "model": "string", "annotations": dict.fromkeys(ASPECTS, ASPECT_TYPE)}
FORMATS = {
    "trl": Format(
        _to_trl,
        {
            **TEXT_COLUMNS,
            "images": ["image"],
            "prompt": TURNS_TYPE,
            "chosen": TURNS_TYPE,
            "rejected": TURNS_TYPE,
            "margin": "float64",
            "is_tie": "bool",
            **FACTS_COLUMN,
        },
        supports_ties=True,
        supports_multi_turn=True,
        supports_answer_images=True,
    ),
    "llava-rlhf": Format(
        _to_llava_rlhf,
        {
            **TEXT_COLUMNS,
            **IMAGE_COLUMNS,
            "conversations": [LLAVA_TURN_TYPE],
            "output_1": LLAVA_TURN_TYPE,
            "output_2": LLAVA_TURN_TYPE,
            "preference": "int64",
            **FACTS_COLUMN,
        },
        supports_multi_turn=True,
    ),
    "rlhf-v": Format(_to_rlhf_v, {**IDX_COLUMNS, **IMAGE_COLUMNS, "text": "string", **FACTS_COLUMN}),
    "rlaif-v": Format(_to_rlaif_v, {**IDX_COLUMNS, **IMAGE_COLUMNS, "question": "string", **PAIR_COLUMNS, **FACTS_COLUMN}),
    "mm-rlhf": Format(
        _to_mm_rlhf,
        {
            **TEXT_COLUMNS,
            **IMAGE_COLUMNS,
            "prompt": "string",
            **PAIR_COLUMNS,
            "chosen_reason": "string",
            "rejected_reason": "string",
            "is_tie": "bool",
            "ls_factor": "float64",
            **FACTS_COLUMN,
        },
        supports_ties=True,
    ),
    "vlfeedback": Format(
        _to_vlfeedback,
        {**TEXT_COLUMNS, **IMAGE_COLUMNS, "prompt": "string", "completions": [COMPLETION_TYPE], **FACTS_COLUMN},
        supports_rankings=True,
        supports_ties=True,
    ),
    "rankings": Format(
        _to_rankings,
        {
            **TEXT_COLUMNS,
            "images": ["image"],
            "prompt": TURNS_TYPE,
            "answers": ["string"],
            "ranks": ["int64"],
            "ratings": ["float64"],
            **FACTS_COLUMN,
        },
        supports_rankings=True,
        supports_ties=True,
        supports_multi_turn=True,
    ),
}
