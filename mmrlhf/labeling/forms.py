"""Read the label of each mode from the fields of a submitted form, and check it.

pairwise   ranks of the two answers (equal for a tie), `strength` 1 to 3, `both_bad`
ranking    ranks of the answers, 1 for the best; equal ones are a tie
claims     `spans` that are wrong, with a reason and a correction; `claims` with a verdict each;
           `corrected`, the corrected answer
facts      typed facts, and whether the list is complete

Ranks are in the order of the task's answers, not in display order.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mmrlhf.claims import Lexicon, extract_claims
from mmrlhf.facts.parse import read_line
from mmrlhf.files.rows import Row, parse_json
from mmrlhf.labeling.assignments import Shown
from mmrlhf.records import Claim, FactKind, InputError
from mmrlhf.text.visible_text import visible

Form = Mapping[str, str]
REASONS = {
    "absent": "not in the picture",
    "attribute": "looks different",
    "count": "another number",
    "relation": "another place or relation",
    "action": "another action",
    "other": "wrong for another reason",
}
VERDICTS = {"true": "supported", "false": "contradicted", "unknown": "unknown"}
FACT_KINDS: dict[FactKind, str] = {
    "object": "object",
    "count": "number",
    "attribute": "attribute",
    "relation": "relation or action",
    "ocr": "text in the picture",
    "absent": "not in the picture",
    "caption": "sentence",
}
"""The kinds of facts that annotators type, with their names on the page."""
MAX_CLAIMS = 60
"""Maximum number of claims of an answer that annotators may confirm or reject."""
MAX_WORDS = 3000
"""Maximum number of words of an answer that can be marked separately."""
MAX_FACTS, MAX_FACT, MAX_NOTE = 200, 400, 4000
FORM = Row("the form", 0, {})
"""Name of the place of JSON in a form, for messages."""


def parse_label(shown: Shown, form: Form, lexicon: Lexicon | None = None) -> dict[str, Any]:
    """Return the label in a form, by the mode of its task. Raises InputError for a forged form.

    `lexicon` is the one with which the page extracted the claims of an answer.
    """
    mode = shown.task.mode
    label = _parse_claims(shown, form, lexicon) if mode == "claims" else _PARSERS[mode](shown, form)
    return label | parse_note(form)


def parse_note(form: Form) -> dict[str, str]:
    """Return an annotator's note. Raises InputError if it is too long."""
    note = form.get("note", "").strip()
    if len(note) > MAX_NOTE:
        raise InputError(f"the note has {len(note):,} characters: shorten it to {MAX_NOTE:,}")
    return {"note": note} if note else {}


def _parse_pairwise(shown: Shown, form: Form) -> dict[str, Any]:
    choice = _one_of(form, "choice", ("left", "right", "tie", "both_bad"), "choose one answer, a tie, or both bad")
    if choice in ("tie", "both_bad"):
        return {"ranks": [1, 1]} | ({"both_bad": True} if choice == "both_bad" else {})
    better = shown.order[0 if choice == "left" else 1]
    strength = int(_one_of(form, "strength", ("1", "2", "3"), "say how much better the answer is"))
    return {"ranks": [1 if index == better else 2 for index in range(2)], "strength": strength}


def _parse_ranking(shown: Shown, form: Form) -> dict[str, Any]:
    number = len(shown.order)
    allowed = [str(rank) for rank in range(1, number + 1)]
    ranks = [0] * number
    for position, index in enumerate(shown.order):
        ranks[index] = int(_one_of(form, f"rank-{position}", allowed, f"give answer {chr(65 + position)} a rank"))
    distinct = sorted(set(ranks))
    return {"ranks": [distinct.index(rank) + 1 for rank in ranks]}


def _parse_facts(shown: Shown, form: Form) -> dict[str, Any]:
    values = _json_list(form, "facts")
    if len(values) > MAX_FACTS:
        raise InputError(f"the form has {len(values)} facts: a task takes {MAX_FACTS}")
    facts = []
    for number, value in enumerate(values, 1):
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in FACT_KINDS:
            raise InputError(f"fact {number} has no known kind: add it again")
        text = read_line(FORM, value.get("text"), f"facts[{number}].text")
        if len(text) > MAX_FACT:
            raise InputError(f"fact {number} has {len(text):,} characters: shorten it to {MAX_FACT}")
        facts.append({"kind": kind, "text": text})
    if not facts:
        raise InputError("there is no fact yet: type one, or skip the task")
    return {"facts": facts, "complete": form.get("complete") == "yes"}


# ---- claims --------------------------------------------------------------------------------------

WORD = re.compile(r"\S+")


def words_of(text: str) -> list[tuple[int, int]]:
    """Return start and end of the words of an answer that can be marked."""
    spans: list[tuple[int, int]] = []
    for match in WORD.finditer(text):
        if len(spans) == MAX_WORDS:
            break
        spans.append(match.span())
    return spans


@functools.lru_cache(maxsize=256)  # an open task is viewed and saved, and often by several annotators
def claims_of(text: str, lexicon: Lexicon | None = None) -> tuple[Claim, ...]:
    """Return the claims of an answer that an annotator may judge."""
    return tuple(extract_claims(text, lexicon)[:MAX_CLAIMS])


def claim_field(claim: Claim) -> str:
    """Return the name of the form's field of a claim.

    It depends only on the claim: with another lexicon, the claim's number may belong to another
    claim, while old pages and drafts are still open.
    """
    return f"claim-{hashlib.sha256(repr(claim).encode()).hexdigest()[:12]}"


def _parse_claims(shown: Shown, form: Form, lexicon: Lexicon | None) -> dict[str, Any]:
    text = shown.task.answers[0]
    seen = visible(text)  # whose offsets are the same
    claim_by_field = {claim_field(claim): claim for claim in claims_of(seen, lexicon)}
    if any(name.startswith("claim-") and name not in claim_by_field for name in form):
        raise InputError("the claims of this answer have changed: load the page again, and save")
    claims = []
    for name, claim in claim_by_field.items():
        if name in form:
            verdict = VERDICTS[_one_of(form, name, tuple(VERDICTS), "judge the claim again")]
            claims.append({**asdict(claim), "span": list(claim.span), "verdict": verdict})
    words = words_of(seen)
    spans = [_parse_span(text, words, value, number) for number, value in enumerate(_json_list(form, "spans"), 1)]
    spans.sort(key=lambda span: span["start"])
    for before, after in itertools.pairwise(spans):
        if after["start"] < before["end"]:
            raise InputError("two marks overlap: remove one of them")
    corrected = form.get("corrected", "")  # only if it was edited
    if not corrected.strip():
        corrected = apply_corrections(text, spans)
    if len(corrected) > len(text) + 10_000:
        raise InputError("the corrected answer is much longer than the answer: shorten it")
    return {"spans": spans, "claims": claims, "corrected": corrected}


def _parse_span(text: str, words: Sequence[tuple[int, int]], value: Any, number: int) -> dict[str, Any]:
    fields = value if isinstance(value, dict) else {}
    first, last, reason, correction = (fields.get(name) for name in ("first", "last", "reason", "correction"))
    if type(first) is not int or type(last) is not int or not 0 <= first <= last < len(words):
        raise InputError(f"mark {number} is not in the answer: mark the words again")
    if not isinstance(reason, str) or reason not in REASONS:
        raise InputError(f"mark {number} needs a reason: choose one")
    correction = FORM.require_text(correction, f"spans[{number}].correction")
    if len(correction) > MAX_NOTE:
        raise InputError(f"the correction of mark {number} has {len(correction):,} characters: shorten it to {MAX_NOTE:,}")
    start, (last_start, end) = words[first][0], words[last]
    # A mark ends before the punctuation of its last word, unless that is all of the word.
    kept = text[last_start:end].rstrip(".,;:!?")
    end = last_start + len(kept) if kept else end
    return {"start": start, "end": end, "text": text[start:end], "reason": reason, "correction": " ".join(correction.split())}


def apply_corrections(text: str, spans: Sequence[Mapping[str, Any]]) -> str:
    """Return an answer with each mark replaced by its correction, or removed if it has none.

    Outside the marks, only one of the two spaces around a removed mark is removed. RLHF-V calls the
    result the corrected answer (Yu et al. 2024, arXiv:2312.00849).
    """
    for span in sorted(spans, key=lambda span: span["start"], reverse=True):
        before, after = text[: span["start"]], text[span["end"] :]
        if not span["correction"]:
            if after[:1] in ("", *".,;:!?\r\n"):
                before = before.rstrip(" \t")
            elif before[-1:] in ("", *" \t\n"):
                after = after.lstrip(" \t")
        text = before + span["correction"] + after
    return text


# ---- fields --------------------------------------------------------------------------------------


def _one_of(form: Form, name: str, allowed: Sequence[str], what_to_do: str) -> str:
    value = form.get(name, "")
    if value not in allowed:
        raise InputError(f"{what_to_do}, and save again")
    return value


def _json_list(form: Form, name: str) -> list[Any]:
    value = parse_json(form.get(name, "[]").encode(), f"the field {name} of the form")
    if not isinstance(value, list):
        raise InputError(f"the field {name} of the form must be a list: load the page again")
    return value


_PARSERS: dict[str, Callable[[Shown, Form], dict[str, Any]]] = {
    "pairwise": _parse_pairwise,
    "ranking": _parse_ranking,
    "facts": _parse_facts,
}
