"""Words of questions and short answers, in forms that can be compared. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mmrlhf.text.coco_objects import object_by_synonym
from mmrlhf.text.words import word_set

YES = "yes|yeah|yep|yup|ya|oui|sí|si|sì|ja|да|так|sim|tak|ano|igen|kyllä|evet|ναι|iya|có|כן|نعم|بله|हाँ|हां|হ্যাঁ"
NO = "no|nope|nah|non|nein|nee|nej|nei|нет|ні|ne|não|nao|nie|nem|ei|hayır|όχι|tidak|không|לא|لا|نه|خیر|नहीं|না"
"""Words for yes and no in common languages, as alternatives of a regular expression."""
LEADING_YES_NO = re.compile(rf"[^\w✅✔👍❌✖👎🚫]*(?:(?P<yes>{YES})|(?P<no>{NO}))(?![\w\u0900-\u0963\u0966-\u0dff])")
"""No letter may follow: `\\w` lacks the vowel signs of India's scripts (U+0900 to U+0DFF)."""
YES_PREFIXES = ("はい", "예", "네", "ใช่", "✅", "✔", "👍")
NO_PREFIXES = ("いいえ", "아니", "ไม่", "❌", "✖", "👎", "🚫")
"""Beginnings of answers in languages without spaces between words."""
WORD = re.compile(r"[^\W_]+(?:'t)?")
_STOP_WORDS = word_set(
    "a an the is are was were be there any some in on of at to with and or do does did can could you i we see "
    "this that these those it its image picture photo photograph scene visible shown appear appears present "
    "have has please answer yes no only just using single word phrase question following statement right "
    "correct true based find as your place number total between show contain depict include feature see"
)
"""Words of a question that do not name its subject."""
_PERSON_WORDS = {"people", "someone", "somebody", "anyone", "anybody", "everyone"}
_IRREGULAR_PLURALS = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose", "feet": "foot",
    "teeth": "tooth", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "sheep": "sheep",
    "buses": "bus", "busses": "bus",
}  # fmt: skip

_ALTERNATIVES = (
    word_set("red orange yellow green blue purple pink brown black white grey gray"),
    word_set("left right"),
    word_set("above below"),
    word_set("day night"),
    word_set("indoor outdoor"),
)
"""Sets of singular words that exclude each other for the same thing."""
_BEFORE_PREDICATE = {"is", "are", "was", "were", "the"}
"""Words before a predicate: "the car is blue", "is on the left"."""
_SIDE = re.compile(r"\bthe (?:far )?right\b|\bright (?:of|side|hand|corner)\b")
"""Right as a side; else it means correct, which names nothing."""


def remove_invisible(text: str) -> str:
    """Return a text without format characters, and without the combining marks that its script can
    do without: accents, overlays, vowel points (Arabic, Hebrew) and variation selectors."""
    return "".join(char for char in text if not _is_invisible(char))


def _is_invisible(char: str) -> bool:
    category = unicodedata.category(char)
    if category != "Mn":
        return category == "Cf"
    combining_class = unicodedata.combining(char)
    is_spelling = combining_class in (0, 7, 8, 9) or 40 <= combining_class < 200  # as in Hindi and Thai
    return not is_spelling or "\ufe00" <= char <= "\ufe0f"


def content_words(question: str) -> list[str]:
    """Return the words for the subject of a question: dog in "Is there a dog in the image?"."""
    first_line = re.split(r"[?\n]", question)[0]
    stop_words = _STOP_WORDS - {"right"} if _SIDE.search(first_line) else _STOP_WORDS
    return [singularize(word) for word in dict.fromkeys(WORD.findall(first_line)) if word not in stop_words]


def states_alternative(words: Sequence[str], question_words: Sequence[str], has_pronoun_subject: bool) -> bool:
    """Return whether a clause states another property of the thing in question, such as its colour.

    "The car is blue", "a blue car", "it is blue" and "blue" answer "Is the car red?"; "it is next
    to a blue house" does not.
    """
    for alternatives in _ALTERNATIVES:
        asked, stated = alternatives.intersection(question_words), alternatives.intersection(words)
        if len(asked) != 1 or not stated or asked & stated or {*stated, *asked} == {"grey", "gray"}:
            continue
        others = [word for word in question_words if word not in asked]
        if words[-1] in stated and (has_pronoun_subject or len(words) == 1):
            return True
        is_same_thing = others and all(word in words for word in others)
        places = [i for i, word in enumerate(words) if word in stated]
        if is_same_thing and any(
            words[i - 1] in _BEFORE_PREDICATE or i == len(words) - 1 or words[i + 1] in others for i in places
        ):
            return True
    return False


def canonicalise_objects(clause: str, question_words: list[str]) -> list[str]:
    """Return a clause's words with synonyms of the COCO object in question replaced by its name.

    To "Is there a person?", "a man" names a person.
    """
    canonical_words, words = [], WORD.findall(re.sub(r"\b(?:nobody|no one)\b", "no person", clause))
    names_by_synonym = object_by_synonym()
    i = 0
    while i < len(words):
        for length in (2, 1):
            candidate = " ".join([*words[i : i + length - 1], singularize(words[min(i + length, len(words)) - 1])])
            object_name = "person" if candidate in _PERSON_WORDS else names_by_synonym.get(candidate)
            if object_name is not None and set(object_name.split()) <= set(question_words):
                canonical_words.append(object_name)
                i += length
                break
        else:
            canonical_words.append(words[i])
            i += 1
    return canonical_words


def singularize(word: str) -> str:
    """Return a word without its plural ending.

    Question and answer pass through the same rule, so a wrong singular still matches itself.
    """
    if word in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
