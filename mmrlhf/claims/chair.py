"""CHAIR's own matching of COCO's objects in a caption (Rohrbach et al. 2018): words and pairs of words, and no grammar.

What is denied or doubted counts as named, as it does there; `extraction.claims` is what knows better.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.claims.grammar import listed
from mmrlhf.claims.lexicon import Lexicon, lexicon
from mmrlhf.records import InputError

PAIRS = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light", "fire hydrant", "stop sign",
    "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "cell phone",
    "mobile phone", "teddy bear", "hair drier", "potted plant", "laptop computer", "stove top oven", "home plate", "train track",
)  # fmt: skip
"""Names of two words that CHAIR knows; the last two hide a plate and a train."""
YOUNG = listed("bird cat dog horse sheep cow elephant bear zebra giraffe animal cub")
SINGLE = (
    {pair: pair for pair in PAIRS}
    | {f"{age} {animal}": animal for age in ("baby", "adult") for animal in YOUNG}
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
TOKEN = re.compile(r"[a-z]+(?:-[a-z]+)*|\d+|[^\sa-z\d]")


@dataclass(frozen=True)
class Mention:
    """A word of a caption that names an object: the word in the singular, its class, and where it stands."""

    word: str
    node: str
    span: tuple[int, int]


def nodes(path: str | Path) -> dict[str, str]:
    """Classes by word, from a file like CHAIR's synonyms.txt: a class a line, its names after commas. Raises InputError.

    Read as CHAIR reads it: a name with a capital or a second blank before it (its file has both) is never found.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"synonyms {path} cannot be read ({error}): give a text file with a class a line") from None
    found: dict[str, str] = {}
    for line in lines:
        names = line.strip().split(", ")
        found.update(dict.fromkeys(names, names[0]) if line.strip() else {})
    return found


def matched(words: Sequence[str], table: Mapping[str, str]) -> Iterator[tuple[int, int, str, str]]:
    """Where among words in the singular the objects are: from, to, the word or pair, its class.

    A pair goes before its parts; where a toilet is named, a seat is none to sit on.
    """
    found, i = [], 0
    while i < len(words):
        pair = SINGLE.get(" ".join(words[i : i + 2])) if i + 1 < len(words) else None
        size = 1 if pair is None else 2
        found.append((i, i + size, words[i] if pair is None else pair))
        i += size
    named = {word for _, _, word in found}
    for begin, end, word in found:
        if word in table and not (word == "seat" and "toilet" in named):
            yield begin, end, word, table[word]


def chair(text: str, table: Mapping[str, str] | None = None, words: Lexicon | None = None) -> list[Mention]:
    """The objects that a caption names, in order, repetitions kept; of a table of `nodes`, or of the lexicon's own classes."""
    words = words or lexicon()
    tokens = list(TOKEN.finditer(text.lower()))
    singular = [_singular(m[0], words) for m in tokens]
    return [
        Mention(word, node, (tokens[begin].start(), tokens[end - 1].end()))
        for begin, end, word, node in matched(singular, words.category if table is None else table)
    ]


def _singular(word: str, words: Lexicon) -> str:
    known = words.singular(word)
    return known[0] if known else word[:-1] if word.endswith("s") and not word.endswith("ss") else word
