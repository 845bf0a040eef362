"""Match COCO's objects in a caption as CHAIR does (Rohrbach et al. 2018), with claims' lexicon.

It looks up words and pairs of words, without grammar. As in the original, negated and hedged
objects count as mentioned; `extraction.extract_claims` marks them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.claims.lexicon import Lexicon, load_lexicon
from mmrlhf.records import InputError
from mmrlhf.text.coco_objects import compound_names, match_objects

TOKEN_PATTERN = re.compile(r"[a-z]+(?:-[a-z]+)*|\d+|[^\sa-z\d]")


@dataclass(frozen=True)
class Mention:
    """A word of a caption that names an object: its singular, the object's class, and its span."""

    word: str
    node: str
    span: tuple[int, int]


def load_synonyms(path: str | Path) -> dict[str, str]:
    """Read the class of each word from a file like CHAIR's synonyms.txt. Raises InputError.

    A line has a class and then its synonyms, separated by commas. As in CHAIR, names are not
    cleaned: one with a capital or an extra leading space never matches. CHAIR's file has both.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"synonyms {path} cannot be read ({error}): give a text file with one class per line") from None
    node_by_word: dict[str, str] = {}
    for line in lines:
        if line.strip():
            names = line.strip().split(", ")
            node_by_word.update(dict.fromkeys(names, names[0]))
    return node_by_word


def find_mentions(text: str, node_by_word: Mapping[str, str] | None = None, lexicon: Lexicon | None = None) -> list[Mention]:
    """Return the objects that a caption names, in order and with repetitions.

    `node_by_word` (see `load_synonyms`) replaces the classes of the lexicon.
    """
    lexicon = lexicon or load_lexicon()
    tokens = list(TOKEN_PATTERN.finditer(text.lower()))
    singular_words = [_singularize(match[0], lexicon) for match in tokens]
    # The lexicon leaves `glasses` as it is, because it also means spectacles.
    compounds = compound_names() | {"wine glasses": "wine glass"}
    table = lexicon.coco_category if node_by_word is None else node_by_word
    return [
        Mention(word, node, (tokens[start].start(), tokens[end - 1].end()))
        for start, end, word, node in match_objects(singular_words, table, compounds)
    ]


def _singularize(word: str, lexicon: Lexicon) -> str:
    """Return a word's singular; a word that the lexicon does not list as a noun loses a final s."""
    singular = lexicon.singular(word)
    if singular is not None:
        return singular[0]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
