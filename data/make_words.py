"""Writes mmrlhf/claims/words.txt, the dictionary that claims are read with, from the files of WordNet 3.0 (as NLTK lays them out).

    python data/make_words.py WORDNET_FOLDER

A line is a class and the words in it. A class has a letter for each part of speech that a word is used as, the most frequent first:
N a noun that names something one can see, n another noun, v a verb, a an adjective, r an adverb. `one=many` lines are irregular forms.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

SEEN = {"animal", "artifact", "body", "food", "object", "person", "plant", "substance"}
"""Lexicographers' files of nouns that name what one can see."""
PARTS = {"noun": ("n", 1), "verb": ("v", 2), "adj": ("a", 3), "adv": ("r", 4)}
RARE = 1 / 40
"""A part of speech that a word is used as less often than this, by its uses as another, is left out."""


def words(folder: Path) -> dict[str, list[str]]:
    """Words by their class."""
    names = [line.split()[1] for line in (folder / "lexnames").read_text().splitlines()]
    uses = {}
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, number, count = line.split()
        lemma, _, rest = key.partition("%")
        part = int(rest[0]) if rest[0] != "5" else 3
        uses[lemma, part, int(number)] = int(count)
    topics, common = {}, set()
    for line in (folder / "data.noun").open():
        if not line.startswith(" "):
            offset, number, _, size, *rest = line.split(" ")
            topics[offset] = names[int(number)].removeprefix("noun.")
            common.update(rest[: 2 * int(size, 16) : 2])  # as they are spelt: names have capitals
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for name, (letter, part) in PARTS.items():
        for line in (folder / f"index.{name}").open():
            if line.startswith(" "):
                continue
            fields = line.split()
            lemma, senses = fields[0], int(fields[2])
            if not re.fullmatch(r"[a-z]{2,20}", lemma):
                continue
            if letter == "n" and lemma not in common:
                continue
            each = [uses.get((lemma, part, i + 1), 0) for i in range(senses)]
            if letter == "n":
                seen = [topics[offset] in SEEN for offset in fields[-senses:]]
                share = sum(n for n, is_seen in zip(each, seen, strict=True) if is_seen)
                holds = any(seen) and topics[fields[-senses]] == "quantity"  # a carton is first of all how much it holds
                letter_of = "N" if seen[0] or holds or 2 * share >= sum(each) > 0 else "n"
            else:
                letter_of = letter
            counts[lemma][letter_of] = sum(each)
    found = defaultdict(list)
    for lemma, parts in counts.items():
        most = max(parts.values())
        kept = [p for p in sorted(parts, key=lambda p: (-parts[p], "aNnvr".index(p))) if parts[p] >= most * RARE]
        found["".join(kept)].append(lemma)
    return found


def irregular(folder: Path, name: str) -> list[str]:
    pairs = (line.split()[:2] for line in (folder / f"{name}.exc").read_text().splitlines())
    return sorted({f"{one}={many}" for many, one in pairs if re.fullmatch("[a-z]+ [a-z]+", f"{one} {many}")})


if __name__ == "__main__":
    source = Path(sys.argv[1])
    licence = [f"# {line.rstrip()}".rstrip() for line in (source / "LICENSE").read_text().splitlines()]
    lines = ["# Made from WordNet 3.0 by data/make_words.py. Its licence:", "#", *licence]
    lines += [f"{code} {' '.join(sorted(members))}" for code, members in sorted(words(source).items())]
    lines += [f"{name}s {' '.join(irregular(source, name))}" for name in ("noun", "verb")]
    (Path(__file__).parents[1] / "mmrlhf/claims/words.txt").write_text("\n".join(lines) + "\n")
