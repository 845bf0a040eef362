"""Rows that compare answers, read into Preferences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from mmrlhf.formats.pictures import PATHS, Beside, facts_of, images_of
from mmrlhf.formats.turns import Turn, answer_of, answered, asked, conversation, prompt_of, said, turn_of, turns_of
from mmrlhf.records import Preference
from mmrlhf.rows import Row, kind, parse, shown

SHARED = frozenset(("id", "image", "images", "facts", "prompt", "question", "conversations"))
PAIR_FIELDS = SHARED | {"chosen", "rejected", "output_1", "output_2", "preference"}
RANKED_FIELDS = frozenset(("is_tie", "margin", "ls_factor", "hallucination", "answers", "ranks", "ratings", "completions"))
LAST_RANK = 1_000_000
NEVER_RLHF_V = ("prompt", "question", "messages", "chosen", "rejected", "conversations", "completions", "answers")


def preference_of(row: Row, beside: Beside) -> Preference:
    """Raises InputError when the row cannot be used."""
    row = unpacked(row)
    images, facts, found = images_of(row, beside), facts_of(row, beside), _ranked(row)
    hallucinated = row.fields.get("hallucination")
    if not isinstance(hallucinated, bool | None):
        row.fail(f"`hallucination` must be true or false, not {shown(hallucinated)}")
    for reason in ("chosen_reason", "rejected_reason"):
        row.text(row.fields.get(reason, ""), reason)
    named = next((name for name in ("source", "origin_dataset", "ds_name") if isinstance(row.fields.get(name), str)), "")
    source = row.text(row.fields[named], named) if named else ""
    meta = meta_of(row, PAIR_FIELDS | RANKED_FIELDS | {named})
    prompt = prompt_of(row, found.turns, len(images))
    return Preference(
        id_of(row), images, prompt, found.answers, found.ranks, found.ratings, facts, source, hallucinated, meta
    )  # fmt: skip


def is_preference(row: Row) -> bool:
    """Whether the row compares answers; fields that something else may be called as well count in company only."""
    fields = row.fields
    if is_rlhf_v(row) or any(name in fields for name in ("chosen", "rejected", "output_1", "output_2", "preference")):
        return True
    if "answers" in fields:
        return "ranks" in fields or "ratings" in fields
    return is_vlfeedback(row)


def is_vlfeedback(row: Row) -> bool:
    """`completions` of objects, or the table of them that the Hub has; a list of texts is something else."""
    value = row.fields.get("completions")
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value))


def is_rlhf_v(row: Row) -> bool:
    return "text" in row.fields and not any(name in row.fields for name in NEVER_RLHF_V)


def unpacked(row: Row) -> Row:
    """RLHF-V's `text` as fields of their own; any other row as it is. Raises InputError."""
    if not is_rlhf_v(row):
        return row
    value = row.fields["text"]
    if isinstance(value, str):
        value = parse(row.text(value, "text").encode(), f"{row.where}, `text`")
    if not isinstance(value, dict):
        row.fail(f"`text` must be an object with question, chosen and rejected, or its JSON, not {kind(value)}")
    inner = {name: row.text(value.get(name), f"text.{name}") for name in ("question", "chosen", "rejected")}
    return replace(row, fields={**{name: value for name, value in row.fields.items() if name != "text"}, **inner})


def id_of(row: Row) -> str:
    """`id`, else `idx`, else the row's number."""
    field = next((name for name in ("id", "idx") if name in row.fields), "id")
    name = row.fields.get(field, row.number)
    if isinstance(name, bool) or not isinstance(name, int | str):
        row.fail(f"`{field}` must be text or a whole number, not {kind(name)}")
    return row.text(str(name), field)


def meta_of(row: Row, used: frozenset[str]) -> dict[str, Any]:
    """The fields that nothing was made of."""
    also = {
        "" if "id" in row.fields else "idx",
        "" if "image" in row.fields or "images" in row.fields else next((name for name in PATHS if name in row.fields), ""),
    }
    return {name: value for name, value in row.fields.items() if name not in used | also}


# ---- answers, best first ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranked:
    """What a row asks, and how its answers rank, before it meets its pictures."""

    turns: list[Turn]
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    ratings: tuple[float, ...] = ()


def _ranked(row: Row) -> _Ranked:
    pair = "chosen" in row.fields or "rejected" in row.fields
    if "conversations" not in row.fields and not pair:
        if "completions" in row.fields:
            return _vlfeedback(row)
        if any(name in row.fields for name in ("answers", "ranks", "ratings")):
            return _ranking(row)
    turns, chosen, rejected = _llava_pair(row) if "conversations" in row.fields else trl_pair(row)
    if chosen == rejected:
        row.fail("the chosen and the rejected answer are the same: correct one of them or drop the row")
    tie = row.fields.get("is_tie", False)
    if not isinstance(tie, bool):
        row.fail(f"`is_tie` must be true or false, not {shown(tie)}")
    margins = [_number(row, row.fields[name], name) for name in ("margin", "ls_factor") if name in row.fields]
    return _Ranked(turns, (chosen, rejected), (1, 1) if tie else (1, 2), (margins[0], 0.0) if margins else ())


def _number(row: Row, value: Any, name: str) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    row.fail(f"`{name}` must be a finite number, not {shown(value)}")


def trl_pair(row: Row) -> tuple[list[Turn], str, str]:
    """Prompt, chosen and rejected. Raises InputError."""
    chosen, rejected = row.need("chosen"), row.need("rejected")
    whole = isinstance(chosen, list) and isinstance(rejected, list) and min(len(chosen), len(rejected)) > 1
    if whole and not isinstance(row.fields.get("prompt"), list):  # a prompt in text is then one of the turns, too
        return _implicit_prompt(row)
    prompt = asked(row, row.either("prompt", "question"))
    return prompt, answered(row, "chosen"), answered(row, "rejected")


def _implicit_prompt(row: Row) -> tuple[list[Turn], str, str]:
    """Two conversations that share all turns but the last."""
    ours, theirs = (turns_of(row, row.fields[name], name) for name in ("chosen", "rejected"))
    if ours[:-1] != theirs[:-1]:
        row.fail("`chosen` and `rejected` may differ in their last turn only: give the shared ones as `prompt`")
    return ours[:-1], answer_of(row, ours[-1], "chosen"), answer_of(row, theirs[-1], "rejected")


def _llava_pair(row: Row) -> tuple[list[Turn], str, str]:
    turns = conversation(row)
    if turns[-1].role == "assistant":  # one of the two outputs, or another answer: not part of the prompt
        turns = turns[:-1]
    first, second = (
        answer_of(row, turn_of(row, row.need(name), name, "from", "value"), name) for name in ("output_1", "output_2")
    )
    preference = row.need("preference")
    if isinstance(preference, bool) or preference not in (1, 2):
        row.fail(f"`preference` must be 1 or 2, the number of the better output, not {shown(preference)}")
    return (turns, first, second) if preference == 1 else (turns, second, first)


def _ranking(row: Row) -> _Ranked:
    """Our own: any number of answers, with ranks (1 is the best), ratings (more is better), or both, and then ranks count."""
    turns, answers = asked(row, row.either("prompt", "question")), _column(row, "answers")
    texts = [answer_of(row, said(row, "assistant", v, f"answers[{n}]"), f"answers[{n}]") for n, v in enumerate(answers, 1)]
    if len(texts) < 2:
        row.fail(f"`answers` has {len(texts)}: a ranking is of at least 2, so add some or drop the row")
    for number, text in enumerate(texts, 1):
        if (first := texts.index(text) + 1) < number:
            row.fail(f"`answers[{first}]` and `answers[{number}]` are the same: drop one of them")
    row.either("ranks", "ratings", hint="add it, 1 for the best answer, or `ratings`")
    ranks, ratings = _column(row, "ranks"), _column(row, "ratings")
    for name, values in (("ranks", ranks), ("ratings", ratings)):
        if name in row.fields and len(values) != len(texts):
            row.fail(f"`{name}` has {len(values)} for {len(texts)} answers: give each answer one")
    for number, rank in enumerate(ranks, 1):
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= LAST_RANK:
            row.fail(f"`ranks[{number}]` must be a whole number from 1 to {LAST_RANK:,}, not {shown(rank)}")
    rated = [_number(row, rating, f"ratings[{number}]") for number, rating in enumerate(ratings, 1)]
    return _sorted(turns, texts, ranks or _places(rated), rated)


def _column(row: Row, name: str) -> list[Any]:
    value = row.need(name) if name == "answers" else row.fields.get(name, [])
    if not isinstance(value, list):
        row.fail(f"`{name}` must be a list, not {kind(value)}")
    return value


def _places(ratings: list[float]) -> list[int]:
    """The highest is first; equal ones share a place."""
    order = sorted(set(ratings), reverse=True)
    return [order.index(rating) + 1 for rating in ratings]


def _sorted(turns: list[Turn], texts: list[str], ranks: list[int], ratings: list[float]) -> _Ranked:
    order = sorted(range(len(texts)), key=lambda n: ranks[n])  # a stable sort: equal ones stay as the row has them
    return _Ranked(
        turns, tuple(texts[n] for n in order), tuple(ranks[n] for n in order), tuple(ratings[n] for n in order) if ratings else ()
    )


# ---- VLFeedback ------------------------------------------------------------------------------------------------------


def _vlfeedback(row: Row) -> _Ranked:
    """An answer's rating is the mean over its aspects. An answer that is empty, unrated, or there already is left out."""
    turns = asked(row, row.either("prompt", "question"))
    found: dict[str, float] = {}
    for number, one in enumerate(_completions(row), 1):
        name = f"completions[{number}]"
        if not isinstance(one, dict):
            row.fail(f"`{name}` must be an object with response and annotations, not {kind(one)}")
        answer, rating = said(row, "assistant", one.get("response"), f"{name}.response"), _rating(row, one, name)
        if rating is not None and (answer.text or answer.places):
            found.setdefault(answer_of(row, answer, f"{name}.response"), rating)
    if len(found) < 2:
        row.fail(f"`completions` has {len(found)} rated answers that differ, and a ranking needs 2: drop the row")
    ratings = list(found.values())
    return _sorted(turns, list(found), _places(ratings), ratings)


def _completions(row: Row) -> list[Any]:
    """A list of objects; `datasets` makes one object of it, whose innermost values are lists."""
    value = row.fields["completions"]
    if isinstance(value, dict):
        responses = value.get("response")
        if not isinstance(responses, list):
            row.fail(f"`completions.response` must be a list, not {kind(responses)}")
        return [_of_table(row, value, place, "completions") for place in range(len(responses))]
    if not isinstance(value, list):
        row.fail(f"`completions` must be a list, not {kind(value)}")
    return value


def _of_table(row: Row, value: Any, place: int, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _of_table(row, inner, place, f"{name}.{shown(key)[1:-1]}") for key, inner in value.items()}
    if not isinstance(value, list) or place >= len(value):
        row.fail(f"`{name}` must be a list with a value for each response, not {shown(value)}")
    return value[place]


def _rating(row: Row, completion: dict[str, Any], name: str) -> float | None:
    """The mean over the aspects that have a number ("N/A" is none)."""
    annotations = completion.get("annotations", {})
    if not isinstance(annotations, dict):
        row.fail(f"`{name}.annotations` must be an object, not {kind(annotations)}")
    numbers = []
    for aspect, said_of_it in annotations.items():
        where = f"{name}.annotations.{shown(aspect)[1:-1]}"
        if not isinstance(said_of_it, dict | None):
            row.fail(f"`{where}` must be an object with Rating, not {kind(said_of_it)}")
        rating = (said_of_it or {}).get("Rating", "N/A")
        if isinstance(rating, bool) or not isinstance(rating, int | float | str):
            row.fail(f"`{where}.Rating` must be a number or text, not {kind(rating)}")
        numbers += _numeric(rating)
    return fmean(numbers) if numbers else None


def _numeric(rating: float | str) -> list[float]:
    try:
        number = float(rating)
    except (ValueError, OverflowError):
        return []
    return [number] if math.isfinite(number) else []
