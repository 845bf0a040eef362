"""Words of questions and short answers, in forms that can be compared. No torch."""

from __future__ import annotations

import re

from mmrlhf.text.coco_objects import object_by_synonym
from mmrlhf.text.words import word_set

WORD = re.compile(r"[^\W_]+(?:'t)?")
_STOP_WORDS = word_set(
    "a an the is are was were be there any some in on of at to with and or do does did can could you i we see "
    "this that these those it its image picture photo photograph scene visible shown appear appears present "
    "have has please answer yes no only just using single word phrase question following statement right "
    "correct true based find as your place number total between show contain depict include feature see"
)
"""Words of a question that do not name what it is about."""
_PERSON_WORDS = {"people", "someone", "somebody", "anyone", "anybody", "everyone"}
_IRREGULAR_PLURALS = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose", "feet": "foot",
    "teeth": "tooth", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "sheep": "sheep",
    "buses": "bus", "busses": "bus",
}  # fmt: skip


def content_words(question: str) -> list[str]:
    """Return the words that a question is about: dog in "Is there a dog in the image?"."""
    first_line = re.split(r"[?\n]", question)[0]
    return [singularize(word) for word in dict.fromkeys(WORD.findall(first_line)) if word not in _STOP_WORDS]


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
