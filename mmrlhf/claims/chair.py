"""CHAIR's own matching of COCO's objects in a caption (Rohrbach et al. 2018): words and pairs of words, and no grammar.

What is denied or doubted counts as named, as it does there; `extraction.claims` is what knows better.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.claims.grammar import word_set
from mmrlhf.claims.lexicon import Lexicon, load_lexicon
from mmrlhf.records import InputError

COMPOUND_NAMES = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light", "fire hydrant", "stop sign",
    "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "cell phone",
    "mobile phone", "teddy bear", "hair drier", "potted plant", "laptop computer", "stove top oven", "home plate", "train track",
)  # fmt: skip
"""Names of two words that CHAIR knows; the last two hide a plate and a train."""
ANIMALS = word_set("bird cat dog horse sheep cow elephant bear zebra giraffe animal cub")
NAME_OF_COMPOUND = (
    {pair: pair for pair in COMPOUND_NAMES}
    | {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS}
    | {
        "passenger jet": "jet",
        "passenger train": "train",
        "bow tie": "tie",
        "toilet seat": "toilet",
        "wine glas": "wine glass",
        "wine glasses": "wine glass",
    }
)
"""Pairs, and the word that each is then."""
TOKEN_PATTERN = re.compile(r"[a-z]+(?:-[a-z]+)*|\d+|[^\sa-z\d]")


@dataclass(frozen=True)
class Mention:
    """A word of a caption that names an object: the word in the singular, its class, and where it stands."""

    word: str
    node: str
    span: tuple[int, int]


def load_synonyms(path: str | Path) -> dict[str, str]:
    """Classes by word, from a file like CHAIR's synonyms.txt: a class a line, its names after commas. Raises InputError.

    Read as CHAIR reads it: a name with a capital or a second blank before it (its file has both) is never found.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"synonyms {path} cannot be read ({error}): give a text file with a class a line") from None
    node_by_word: dict[str, str] = {}
    for line in lines:
        names = line.strip().split(", ")
        node_by_word.update(dict.fromkeys(names, names[0]) if line.strip() else {})
    return node_by_word


def match_objects(words: Sequence[str], node_by_word: Mapping[str, str]) -> Iterator[tuple[int, int, str, str]]:
    """Where among words in the singular the objects are: from, to, the word or pair, its class.

    A pair goes before its parts; where a toilet is named, a seat is none to sit on.
    """
    candidates, i = [], 0
    while i < len(words):
        pair = NAME_OF_COMPOUND.get(" ".join(words[i : i + 2])) if i + 1 < len(words) else None
        size = 1 if pair is None else 2
        candidates.append((i, i + size, words[i] if pair is None else pair))
        i += size
    candidate_words = {word for _, _, word in candidates}
    for begin, end, word in candidates:
        if word in node_by_word and not (word == "seat" and "toilet" in candidate_words):
            yield begin, end, word, node_by_word[word]


def find_mentions(text: str, node_by_word: Mapping[str, str] | None = None, lexicon: Lexicon | None = None) -> list[Mention]:
    """The objects that a caption names, in order, repetitions kept; of a table of `nodes`, or of the lexicon's own classes."""
    lexicon = lexicon or load_lexicon()
    tokens = list(TOKEN_PATTERN.finditer(text.lower()))
    singular_words = [_singularize(match[0], lexicon) for match in tokens]
    return [
        Mention(word, node, (tokens[begin].start(), tokens[end - 1].end()))
        for begin, end, word, node in match_objects(
            singular_words, lexicon.coco_category if node_by_word is None else node_by_word
        )
    ]


def _singularize(word: str, lexicon: Lexicon) -> str:
    singular = lexicon.singular(word)
    return singular[0] if singular else word[:-1] if word.endswith("s") and not word.endswith("ss") else word
