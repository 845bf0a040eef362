"""Parse rows that compare answers into Preferences."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from mmrlhf.datasets.conversations import (
    Turn,
    answer_text,
    build_prompt,
    check_answer,
    make_turn,
    parse_answer,
    parse_llava_conversation,
    parse_prompt,
    parse_turn,
    parse_turns,
    visible_form,
)
from mmrlhf.datasets.image_fields import PATH_FIELDS, RowContext, collect_facts, parse_id, parse_images, parse_pair_images
from mmrlhf.datasets.llamafactory_swift import (
    SWIFT_FIELDS,
    is_factory_pair,
    is_openai_pair,
    is_swift_pair,
    parse_factory_pair,
    parse_swift_pair,
    unpack_instruction,
    with_context,
)
from mmrlhf.files.rows import Row, is_finite_number, parse_json, preview, type_name
from mmrlhf.records import PlacedImage, Preference

SHARED_FIELDS = frozenset(("id", "image", "images", "facts", "prompt", "question", "conversations"))
PAIR_FIELDS = SHARED_FIELDS | SWIFT_FIELDS | {"chosen", "rejected", "output_1", "output_2", "preference"}
RANKING_FIELDS = frozenset(("is_tie", "margin", "ls_factor", "hallucination", "answers", "ranks", "ratings", "completions"))
PROMPT_NAMES = ("prompt", "question", "query")
"""Fields with the prompt of answers that are compared; the first of them that a row has."""
MAX_RANK = 1_000_000
MAX_RATING = 1_000_000_000
"""Largest rating or margin, so that means and differences of several stay finite."""
MAX_ANSWERS = 64
"""Answers to one prompt; K of them make K (K - 1) / 2 comparisons."""
NON_RLHF_V_FIELDS = (
    "prompt", "question", "messages", "chosen", "rejected", "conversations", "completions", "answers",
)  # fmt: skip
"""A row with `text` and any of these fields has another format."""
TEXT_COLUMN_FIELDS = ("instruction", "problem", "query", "response", "output")
"""Fields next to which `text` is an ordinary column, unless it contains a pair."""


def parse_preference(row: Row, context: RowContext) -> Preference:
    """Parse a row. Raises InputError if it cannot be used."""
    row = unpack_instruction(unpack_rlhf_v(row))
    images, facts, ranked = parse_images(row, context), collect_facts(row, context), _parse_ranked_answers(row)
    answer_images: tuple[tuple[PlacedImage, ...], ...] = ()
    if any(ranked.image_positions) or "rejected_images" in row.fields:
        images, *sources = parse_pair_images(row, images, [len(positions) for positions in ranked.image_positions], context)
        answer_images = tuple(
            tuple(map(PlacedImage, positions, answer_sources))
            for positions, answer_sources in zip(ranked.image_positions, sources, strict=True)
        )
    if len(ranked.answers) == 2 and len(set(map(visible_form, ranked.answers))) < 2 and len(set(answer_images)) < 2:
        is_hidden = len(set(ranked.answers)) == 2
        difference = "differ only in invisible characters" if is_hidden else "are the same"
        row.fail(f"the chosen and the rejected answer {difference}: correct one of them or drop the row")
    hallucinated = row.fields.get("hallucination")
    if not isinstance(hallucinated, bool | None):
        row.fail(f"`hallucination` must be true or false, not {preview(hallucinated)}")
    for reason_field in ("chosen_reason", "rejected_reason"):
        row.require_text(row.fields.get(reason_field, ""), reason_field)
    source_field = next((name for name in ("source", "origin_dataset", "ds_name") if isinstance(row.fields.get(name), str)), "")
    source = row.require_text(row.fields[source_field], source_field) if source_field else ""
    unread_fields = set() if is_swift_pair(row) else {"response"}
    meta = unused_fields(row, (PAIR_FIELDS | RANKING_FIELDS | {source_field}) - unread_fields)
    prompt = build_prompt(row, with_context(row, ranked.turns), len(images))
    return Preference(
        parse_id(row), images, prompt, ranked.answers, ranked.ranks, ranked.ratings, facts, source, hallucinated, meta,
        answer_images,
    )  # fmt: skip


def is_preference(row: Row) -> bool:
    """Return whether the row compares answers. `answers` counts only with `ranks` or `ratings`."""
    fields = row.fields
    if is_rlhf_v(row) or any(name in fields for name in ("chosen", "rejected", "output_1", "output_2", "preference")):
        return True
    if is_swift_pair(row) or is_openai_pair(row):
        return True
    if "answers" in fields:
        return "ranks" in fields or "ratings" in fields
    return is_vlfeedback(row)


def is_vlfeedback(row: Row) -> bool:
    """Return whether `completions` has objects, or the Hub's table of them, rather than texts."""
    completions = row.fields.get("completions")
    if isinstance(completions, list):
        return any(isinstance(item, dict) for item in completions)
    return isinstance(completions, dict)


def is_rlhf_v(row: Row) -> bool:
    """Return whether `text` contains the question and the answers, as in RLHF-V."""
    if isinstance(row.fields.get("text"), str) and "file_name" in row.fields:
        return False  # a caption in imagefolder's metadata.jsonl
    if "text" not in row.fields or any(name in row.fields for name in NON_RLHF_V_FIELDS):
        return False
    return not any(name in row.fields for name in TEXT_COLUMN_FIELDS) or _holds_pair(row.fields["text"])


def _holds_pair(text: Any) -> bool:
    """Return whether `text` is an object with question, chosen and rejected, or its JSON."""
    if isinstance(text, str) and text.lstrip().startswith("{"):
        try:
            text = json.loads(text)
        except (ValueError, RecursionError):
            return False
    return isinstance(text, dict) and {"question", "chosen", "rejected"} <= text.keys()


def unpack_rlhf_v(row: Row) -> Row:
    """Move the fields of RLHF-V's `text` into the row; keep other rows. Raises InputError."""
    if not is_rlhf_v(row):
        return row
    value = row.fields["text"]
    if isinstance(value, str):
        value = parse_json(row.require_text(value, "text").encode(), f"{row.location}, `text`")
    if not isinstance(value, dict):
        row.fail(f"`text` must be an object with question, chosen and rejected, or its JSON, not {type_name(value)}")
    text_fields = {name: row.require_text(value.get(name), f"text.{name}") for name in ("question", "chosen", "rejected")}
    other_fields = {name: value for name, value in row.fields.items() if name != "text"}
    return replace(row, fields=other_fields | text_fields)


def unused_fields(row: Row, used_fields: frozenset[str]) -> dict[str, Any]:
    """Return the row's fields that the record does not use."""
    used_fields = used_fields - {*_prompt_fields(row)[1:]}
    fallback_fields = set()
    if "id" not in row.fields:
        fallback_fields.add("idx")
    if "image" not in row.fields and "images" not in row.fields:
        fallback_fields.update([name for name in PATH_FIELDS if name in row.fields][:1])
    return {name: value for name, value in row.fields.items() if name not in used_fields | fallback_fields}


def _prompt_fields(row: Row) -> list[str]:
    """Return the row's fields that may hold the prompt, the one that is read first."""
    names = ["conversations", "messages", "prompt", "query", "question", "problem"]
    if is_swift_pair(row):
        names = ["messages", "query", "conversations", "prompt", "question", "problem"]
    elif is_preference(row) and not is_factory_pair(row):  # turns of TRL's answers may hold the prompt, too
        names = ["conversations", "prompt", "question", "messages", "query", "problem"]
    return [name for name in names if name in row.fields]


# ---- ranked answers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RankedAnswers:
    """A row's prompt and answers, best first, before the prompt is checked against the images."""

    turns: list[Turn]
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    ratings: tuple[float, ...] = ()
    image_positions: tuple[tuple[int, ...], ...] = ()
    """Offsets of the images inside each answer of a pair."""


def _parse_ranked_answers(row: Row) -> _RankedAnswers:
    is_pair = "chosen" in row.fields or "rejected" in row.fields
    if "conversations" not in row.fields and not is_pair and not is_swift_pair(row):
        if "completions" in row.fields:
            return _parse_vlfeedback(row)
        if any(name in row.fields for name in ("answers", "ranks", "ratings")):
            return _parse_ranking(row)
    if is_swift_pair(row):
        turns, chosen, rejected = parse_swift_pair(row)
    elif is_factory_pair(row):
        turns, chosen, rejected = parse_factory_pair(row)
    else:
        turns, chosen, rejected = _parse_llava_pair(row) if "conversations" in row.fields else parse_trl_pair(row)
    is_tie = row.fields.get("is_tie", False)
    if not isinstance(is_tie, bool):
        row.fail(f"`is_tie` must be true or false, not {preview(is_tie)}")
    margins = [_parse_number(row, row.fields[name], name) for name in ("margin", "ls_factor") if name in row.fields]
    ranks, ratings = (1, 1) if is_tie else (1, 2), (margins[0], 0.0) if margins else ()
    positions = (chosen.image_positions, rejected.image_positions)
    return _RankedAnswers(turns, (chosen.text, rejected.text), ranks, ratings, positions)


def _parse_number(row: Row, value: Any, name: str) -> float:
    if not is_finite_number(value) or abs(value) > MAX_RATING:
        row.fail(f"`{name}` must be a number from {-MAX_RATING:,} to {MAX_RATING:,}, not {preview(value)}")
    return float(value)


def parse_trl_pair(row: Row) -> tuple[list[Turn], Turn, Turn]:
    """Return the prompt, the chosen and the rejected answer. Raises InputError."""
    chosen, rejected = row.require("chosen"), row.require("rejected")
    are_conversations = isinstance(chosen, list) and isinstance(rejected, list) and min(len(chosen), len(rejected)) > 1
    if are_conversations and not isinstance(row.fields.get("prompt"), list):  # they contain any prompt that is text
        return _parse_implicit_prompt(row)
    prompt = parse_prompt(row, row.require_any(*PROMPT_NAMES))
    return prompt, parse_answer(row, "chosen"), parse_answer(row, "rejected")


def _parse_implicit_prompt(row: Row) -> tuple[list[Turn], Turn, Turn]:
    """Split two conversations that share all turns but the last."""
    chosen_turns, rejected_turns = (parse_turns(row, row.fields[name], name) for name in ("chosen", "rejected"))
    if chosen_turns[:-1] != rejected_turns[:-1]:
        row.fail("`chosen` and `rejected` may differ only in their last turn: give the shared turns as `prompt`")
    return chosen_turns[:-1], check_answer(row, chosen_turns[-1], "chosen"), check_answer(row, rejected_turns[-1], "rejected")


def _parse_llava_pair(row: Row) -> tuple[list[Turn], Turn, Turn]:
    turns = parse_llava_conversation(row)
    if turns[-1].role == "assistant":  # an answer, not part of the prompt
        turns = turns[:-1]
    output_1, output_2 = (parse_turn(row, row.require(name), name, "from", "value") for name in ("output_1", "output_2"))
    for name, output in (("output_1", output_1), ("output_2", output_2)):
        answer_text(row, output, name)
    preference = row.require("preference")
    if isinstance(preference, bool) or preference not in (1, 2):
        row.fail(f"`preference` must be 1 or 2, the number of the better output, not {preview(preference)}")
    return (turns, output_1, output_2) if preference == 1 else (turns, output_2, output_1)


def _parse_ranking(row: Row) -> _RankedAnswers:
    """Parse a ranking in mmrlhf's own format: two or more answers with ranks, ratings, or both.

    Rank 1 is the best and a higher rating is better. With both, the ranks decide.
    """
    turns, answers = parse_prompt(row, row.require_any(*PROMPT_NAMES)), _list_field(row, "answers")
    texts = []
    for number, answer in enumerate(answers, 1):
        name = f"answers[{number}]"
        texts.append(answer_text(row, make_turn(row, "assistant", answer, name), name))
    if len(texts) < 2:
        row.fail(
            f"`answers` has {len(texts)} {'entry' if texts else 'entries'}; a ranking needs at least 2, so add some or drop the row"
        )
    forms = list(map(visible_form, texts))
    for number, form in enumerate(forms, 1):
        duplicate_of = forms.index(form) + 1
        if duplicate_of < number:
            row.fail(f"`answers[{duplicate_of}]` and `answers[{number}]` are the same: drop one of them")
    row.require_any("ranks", "ratings", hint="add it, 1 for the best answer, or `ratings`")
    ranks, ratings = _list_field(row, "ranks"), _list_field(row, "ratings")
    for name, values in (("ranks", ranks), ("ratings", ratings)):
        if name in row.fields and len(values) != len(texts):
            row.fail(f"`{name}` has {len(values)} values for {len(texts)} answers: give one for each answer")
    for number, rank in enumerate(ranks, 1):
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
            row.fail(f"`ranks[{number}]` must be a whole number from 1 to {MAX_RANK:,}, not {preview(rank)}")
    parsed_ratings = [_parse_number(row, rating, f"ratings[{number}]") for number, rating in enumerate(ratings, 1)]
    return _sort_by_rank(turns, texts, ranks or _ranks_from_ratings(parsed_ratings), parsed_ratings)


def _list_field(row: Row, name: str) -> list[Any]:
    value = row.require(name) if name == "answers" else row.fields.get(name, [])
    if not isinstance(value, list):
        row.fail(f"`{name}` must be a list, not {type_name(value)}")
    return _check_num_answers(row, value, name)


def _check_num_answers(row: Row, values: list[Any], name: str) -> list[Any]:
    if len(values) > MAX_ANSWERS:
        row.fail(f"`{name}` has {len(values)} entries, and a row may compare {MAX_ANSWERS} answers: split it into several rows")
    return values


def _ranks_from_ratings(ratings: list[float]) -> list[int]:
    """Rank from the highest rating (1) to the lowest; equal ratings share a rank."""
    distinct_ratings = sorted(set(ratings), reverse=True)
    return [distinct_ratings.index(rating) + 1 for rating in ratings]


def _sort_by_rank(turns: list[Turn], texts: list[str], ranks: list[int], ratings: list[float]) -> _RankedAnswers:
    order = sorted(range(len(texts)), key=lambda index: ranks[index])  # stable: ties keep the row's order
    return _RankedAnswers(
        turns,
        answers=tuple(texts[index] for index in order),
        ranks=tuple(ranks[index] for index in order),
        ratings=tuple(ratings[index] for index in order) if ratings else (),
    )


# ---- VLFeedback ----------------------------------------------------------------------------------


def _parse_vlfeedback(row: Row) -> _RankedAnswers:
    """Rank answers by their mean rating over aspects. Skips empty, unrated and repeated answers."""
    turns = parse_prompt(row, row.require_any(*PROMPT_NAMES))
    rated: dict[str, tuple[str, float]] = {}  # answers and ratings, by what a reader sees of the answer
    for number, completion in enumerate(_list_completions(row), 1):
        name = f"completions[{number}]"
        if not isinstance(completion, dict):
            row.fail(f"`{name}` must be an object with response and annotations, not {type_name(completion)}")
        answer = make_turn(row, "assistant", completion.get("response"), f"{name}.response")
        rating = _mean_rating(row, completion, name)
        if rating is not None and (answer.text or answer.num_images):
            text = answer_text(row, answer, f"{name}.response")
            rated.setdefault(visible_form(text), (text, rating))
    if len(rated) < 2:
        row.fail(f"`completions` has {len(rated)} distinct rated answers, and a ranking needs 2: drop the row")
    texts, ratings = [text for text, _ in rated.values()], [rating for _, rating in rated.values()]
    return _sort_by_rank(turns, texts, _ranks_from_ratings(ratings), ratings)


def _list_completions(row: Row) -> list[Any]:
    """Return the completions as a list; `datasets` stores them as an object of nested columns."""
    value = row.fields["completions"]
    if isinstance(value, dict):
        responses = value.get("response")
        if not isinstance(responses, list):
            row.fail(f"`completions.response` must be a list, not {type_name(responses)}")
        _check_num_answers(row, responses, "completions.response")
        return [_select_from_columns(row, value, index, "completions") for index in range(len(responses))]
    if not isinstance(value, list):
        row.fail(f"`completions` must be a list, not {type_name(value)}")
    return _check_num_answers(row, value, "completions")


def _select_from_columns(row: Row, value: Any, index: int, name: str) -> Any:
    """Return one row of nested columns. Raises InputError that names the column without it."""
    if isinstance(value, dict):
        return {key: _select_from_columns(row, column, index, f"{name}.{preview(key)[1:-1]}") for key, column in value.items()}
    if not isinstance(value, list) or index >= len(value):
        row.fail(f"`{name}` must be a list with a value for each response, not {preview(value)}")
    return value[index]


def _mean_rating(row: Row, completion: dict[str, Any], name: str) -> float | None:
    """Return the mean over aspects that are rated with a number (not "N/A"); None without any."""
    annotations = completion.get("annotations", {})
    if not isinstance(annotations, dict):
        row.fail(f"`{name}.annotations` must be an object, not {type_name(annotations)}")
    aspect_ratings = []
    for aspect, annotation in annotations.items():
        field_path = f"{name}.annotations.{preview(aspect)[1:-1]}"
        if not isinstance(annotation, dict | None):
            row.fail(f"`{field_path}` must be an object with Rating, not {type_name(annotation)}")
        rating = (annotation or {}).get("Rating", "N/A")
        if isinstance(rating, bool) or not isinstance(rating, int | float | str):
            row.fail(f"`{field_path}.Rating` must be a number or text, not {type_name(rating)}")
        aspect_ratings += _parse_rating(rating)
    return fmean(aspect_ratings) if aspect_ratings else None


def _parse_rating(rating: float | str) -> list[float]:
    """Return the rating in a list, which is empty if it is not a number up to MAX_RATING."""
    try:
        number = float(rating)
    except (ValueError, OverflowError):
        return []
    return [number] if abs(number) <= MAX_RATING else []
