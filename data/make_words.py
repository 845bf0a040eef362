"""Write mmrlhf/claims/words.txt, the dictionary of the claim extractor, from WordNet 3.0.

    python data/make_words.py WORDNET_FOLDER

The folder holds WordNet's files in NLTK's layout.

Each line of the output is a class, followed by its words. A class has one letter for each part of
speech of its words, the most frequent first: N noun that names something visible, n other noun, v
verb, a adjective, r adverb. The last two lines are irregular forms, as `base=form`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

VISIBLE_CATEGORIES = {"animal", "artifact", "body", "food", "object", "person", "plant", "substance"}
"""Names of WordNet's lexicographer files with nouns that name something visible."""
PARTS_OF_SPEECH = {"noun": ("n", 1), "verb": ("v", 2), "adj": ("a", 3), "adv": ("r", 4)}
MIN_USE_RATIO = 1 / 40
"""A part of speech is left out if it has fewer uses than this fraction of the most frequent one."""


def words_by_class(folder: Path) -> dict[str, list[str]]:
    """Return WordNet's words by class."""
    category_names = [line.split()[1] for line in (folder / "lexnames").read_text().splitlines()]
    use_counts = {}
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, number, count = line.split()
        lemma, _, rest = key.partition("%")
        pos_number = int(rest[0]) if rest[0] != "5" else 3  # 5 is a satellite adjective
        use_counts[lemma, pos_number, int(number)] = int(count)
    category_by_offset, lowercase_nouns = {}, set()
    for line in (folder / "data.noun").open():
        if not line.startswith(" "):
            offset, number, _, size, *rest = line.split(" ")
            category_by_offset[offset] = category_names[int(number)].removeprefix("noun.")
            lowercase_nouns.update(rest[: 2 * int(size, 16) : 2])  # proper names are capitalised here
    counts_by_lemma: dict[str, dict[str, int]] = defaultdict(dict)
    for name, (letter, pos_number) in PARTS_OF_SPEECH.items():
        for line in (folder / f"index.{name}").open():
            if line.startswith(" "):
                continue
            fields = line.split()
            lemma, senses = fields[0], int(fields[2])
            if not re.fullmatch(r"[a-z]{2,20}", lemma):
                continue
            if letter == "n" and lemma not in lowercase_nouns:
                continue
            sense_counts = [use_counts.get((lemma, pos_number, i + 1), 0) for i in range(senses)]
            if letter == "n":
                is_visible = [category_by_offset[offset] in VISIBLE_CATEGORIES for offset in fields[-senses:]]
                visible_uses = sum(count for count, visible in zip(sense_counts, is_visible, strict=True) if visible)
                # The first sense of carton is the quantity that it holds.
                is_container = any(is_visible) and category_by_offset[fields[-senses]] == "quantity"
                class_letter = "N" if is_visible[0] or is_container or 2 * visible_uses >= sum(sense_counts) > 0 else "n"
            else:
                class_letter = letter
            counts_by_lemma[lemma][class_letter] = sum(sense_counts)
    lemmas_by_class = defaultdict(list)
    for lemma, part_counts in counts_by_lemma.items():
        max_count = max(part_counts.values())
        kept_letters = [
            letter
            for letter in sorted(part_counts, key=lambda letter: (-part_counts[letter], "aNnvr".index(letter)))
            if part_counts[letter] >= max_count * MIN_USE_RATIO
        ]
        lemmas_by_class["".join(kept_letters)].append(lemma)
    return lemmas_by_class


def irregular_forms(folder: Path, name: str) -> list[str]:
    """Return the irregular forms of a part of speech as `base=form`."""
    pairs = (line.split()[:2] for line in (folder / f"{name}.exc").read_text().splitlines())
    return sorted({f"{base}={form}" for form, base in pairs if re.fullmatch("[a-z]+ [a-z]+", f"{base} {form}")})


if __name__ == "__main__":
    source = Path(sys.argv[1])
    licence = [f"# {line.rstrip()}".rstrip() for line in (source / "LICENSE").read_text().splitlines()]
    lines = ["# Made from WordNet 3.0 by data/make_words.py. Its licence:", "#", *licence]
    lines += [f"{letters} {' '.join(sorted(words))}" for letters, words in sorted(words_by_class(source).items())]
    lines += [f"{name}s {' '.join(irregular_forms(source, name))}" for name in ("noun", "verb")]
    (Path(__file__).parents[1] / "mmrlhf/claims/words.txt").write_text("\n".join(lines) + "\n")
