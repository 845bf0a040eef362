"""What words are: a dictionary made from WordNet (`words.txt`), and what claims are made of (`lexicon.txt`, which a user's file adds to)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmrlhf.claims.grammar import ASIDE, VERBAL
from mmrlhf.records import InputError

HERE = Path(__file__).parent
SECTIONS = (
    "coco", "same thing", "no category", "plural only", "not objects", "objects", "compounds", "not attributes", "attributes",
    "materials", "colours", "places",
)  # fmt: skip


@dataclass(frozen=True)
class Word:
    """What a word may be. `uses` has a letter for each, the likeliest first: N a noun that names something one can see, X another
    noun, J adjective, V verb, G its -ing form, E its -ed form, R adverb, U not in any dictionary.

    `noun` is its singular, `many` whether it is a plural; `looks` whether it says how something looks: 1 by the dictionary, 2 by the lexicon.
    """

    uses: str
    noun: str
    many: bool = False
    looks: int = 0


@dataclass(eq=False)
class Lexicon:
    """Nouns are in the singular and in lower case; compounds are words with spaces between them."""

    category: dict[str, str] = field(default_factory=dict)
    """A noun's class among COCO's 80."""
    same: dict[str, str] = field(default_factory=dict)
    """Other names of a thing, and the one it is given."""
    sets: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SECTIONS})
    words: Mapping[str, str] = field(default_factory=dict)
    one_of: Mapping[str, str] = field(default_factory=dict)
    verb_of: Mapping[str, str] = field(default_factory=dict)
    longest: int = 4
    """Words of the longest compound."""
    ending: dict[str, set[str]] = field(default_factory=dict)
    """All names of several words, by the last of them."""
    classes: dict[str, str] = field(default_factory=dict)
    """What `of_coco` has found."""
    surfaces: dict[str, tuple[str, str, str, bool, int]] = field(default_factory=dict)
    """What `tagging` has found of words as they are written."""

    def named(self, noun: str) -> str:
        """The name that a thing is given."""
        return self.same.get(noun, noun)

    def of_coco(self, noun: str) -> str:
        """A noun's class among COCO's 80, of a compound its last word's; "" where it has none."""
        found = self.classes.get(noun)
        if found is None:
            found = self._of_coco(noun)
            if len(self.classes) < 200_000:  # text that never repeats must not fill the memory
                self.classes[noun] = found
        return found

    def _of_coco(self, noun: str) -> str:
        while noun:
            if noun in self.category:
                return self.category[noun]
            if noun in self.sets["no category"]:
                return ""
            noun = noun.partition(" ")[2]
            noun = self.same.get(noun, noun)
        return ""

    def is_object(self, noun: str) -> bool:
        if noun in self.sets["objects"] or noun in self.category or noun in self.sets["plural only"]:
            return True
        return noun not in self.sets["not objects"] and "N" in self.words.get(noun, "")

    # ---- forms of words ----------------------------------------------------------------------------------------------

    def singular(self, word: str) -> tuple[str, bool] | None:
        """A noun's singular and whether it is a plural; None for what no dictionary has as a noun."""
        if word in self.sets["plural only"]:
            return word, True
        if word in self.sets["objects"] and not word.endswith("s") and word != "people":
            return word, False
        if word in self.one_of and word != "people":
            return self.one_of[word], True
        if word == "people":
            return "person", True
        if word.endswith("men") and self._is_noun(one := f"{word[:-3]}man"):
            return one, True
        if word.endswith("s") and len(word) > 2 and word[-2] not in "sui":
            hiss = word.endswith(("ches", "shes", "sses", "xes", "zes"))
            for tail, end in (("es", ""), ("s", "")) if hiss else (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f")):
                if (
                    word.endswith(tail)
                    and len(stem := word[: -len(tail)] + end) > 1
                    and self._is_noun(stem)
                    and (len(stem) > 2 or word not in self.words)
                ):
                    return stem, True
        elif word.endswith(("ies", "uis", "kis", "xis")) and self._is_noun(word[:-1]):
            return word[:-1], True
        elif word.endswith(("uses", "ies")) and self._is_noun(word[:-2]):
            return word[:-2], True
        return (word, False) if self._is_noun(word) else None

    def _is_noun(self, word: str) -> bool:
        code = self.words.get(word, "")
        return "N" in code or "n" in code or word in self.sets["objects"] or word in self.category or word in self.same

    def _verb(self, word: str) -> tuple[str, str] | None:
        """A verb's form and its base."""
        if word in self.verb_of and self.words.get(word, "v")[0] not in "Nn":
            return ("G" if word.endswith("ing") else "E"), self.verb_of[word]
        tails = (("V", ""), ("V", "s"), ("V", "es"), ("V", "ies"), ("E", "d"), ("E", "ed"), ("E", "ied"), ("G", "ing"))
        for form, tail in tails:
            if word.endswith(tail):
                stem = word[: len(word) - len(tail)]
                if tail == "d" and (not stem.endswith("e") or stem.endswith("ee")):
                    continue
                if form in "EG" and len(stem) < 3 and word not in ("tied", "dyed", "lying", "tying", "dying", "used", "iced"):
                    continue
                for base in (
                    (stem + "y",)
                    if tail[:2] == "ie"
                    else (stem, stem + "e", stem[:-1])
                    if form == "G" or tail == "ed"
                    else (stem,)
                ):
                    if len(base) > 1 and "v" in self.words.get(base, "") and (base != stem[:-1] or stem[-1:] == stem[-2:-1]):
                        return form, base
        return None

    def word(self, word: str) -> Word:
        """What a word in lower case may be."""
        code = self.words.get(word, "")
        noun = self.singular(word)
        base, many = noun or (word, False)
        base_code = self.words.get(base, "")
        verb = self._verb(word)
        order = code or base_code or (self.words.get(verb[1], "v") if verb else "")
        sets = self.sets
        looks = self._looks(word, code)
        if word in sets["colours"] and base not in sets["objects"] and base not in self.category:
            return Word("J", base, looks=2)
        if word in VERBAL:
            return Word("GJ", base, looks=2 * (word in sets["attributes"]))
        uses = ""
        for letter in (order if not many else base_code) or "n":
            if letter in "Nn" and noun:
                uses += "N" if self.is_object(self.named(base)) else "X"
            elif letter == "v" and verb and verb[0] == "V":
                uses += "V"
            elif letter == "a" and "a" in code:
                uses += "J"
            elif letter == "r" and "r" in code:
                uses += "R"
        if noun and not set("NX") & set(uses):
            uses += "N" if self.is_object(self.named(base)) else "X"
        if verb and verb[0] in "GE" and verb[0] not in uses:
            # A noun in -ing (building, painting) is one until its surroundings say otherwise.
            uses = uses + verb[0] if verb[0] == "G" and "N" in uses and "J" not in uses else verb[0] + uses
        if verb and verb[0] == "V" and "V" not in uses and "v" in self.words.get(verb[1], ""):
            uses += "V"
        if looks and "J" not in uses and not set("GE") & set(uses):
            uses = "J" + uses if word in sets["colours"] or not noun or ("-" in word and not self.is_object(base)) else uses + "J"
        if not uses:
            uses = self._guessed(word)
            if word.endswith("s") and not word.endswith("ss") and uses == "U":
                base, many = word[:-1], True
        return Word(uses, base, many, looks)

    def _looks(self, word: str, code: str) -> int:
        sets = self.sets
        if word in sets["colours"] or word in sets["materials"] or word in sets["attributes"]:
            return 2
        if word in sets["not attributes"]:
            return 0
        if "-" in word:
            return int(not ASIDE.issuperset(word.split("-")))
        for tail in ("er", "est"):  # a comparative says nothing by itself
            if word.endswith(tail):
                stem = word.removesuffix(tail)
                if any(
                    "a" in self.words.get(base, "") for base in (stem, stem + "e", stem[:-1], stem[:-1] + "y") if len(base) > 2
                ):
                    return 0
        return int("a" in code)

    def _guessed(self, word: str) -> str:
        """What a word that no dictionary has is by its looks."""
        if "-" in word:
            last = word.rpartition("-")[2]
            inner = self.word(last).uses if last else "U"
            if word.endswith("ed") or inner[:1] in "JEG":
                return "J"
            return "JN" if "N" in inner else "J"
        for tails, letter in (
            (("ly",), "R"), (("ness", "ity", "tion", "sion", "ism", "ance", "ence", "ship", "hood", "ment"), "X"),
            (("ing",), "G"), (("ed",), "E"), (("ful", "ous", "ish", "less", "able", "ible"), "J"),
        ):  # fmt: skip
            if word.endswith(tails) and len(word) > 5:
                return letter
        if word.endswith(("er", "est")):
            for stem in (word.removesuffix("er"), word.removesuffix("est")):
                for base in (stem, stem[:-1], stem + "e", stem[:-1] + "y"):
                    if base != word and "a" in self.words.get(base, ""):
                        return "K"  # a comparative says nothing by itself
        return "U"


def _entries(path: Path) -> Iterator[tuple[str, str, int]]:
    """Section, line and its number."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"lexicon {path} does not exist: correct the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"lexicon {path} cannot be read ({error}): give a text file in UTF-8") from None
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            section = line.strip("[]").strip()
            if section not in SECTIONS:
                raise InputError(f"lexicon {path}, line {number}: there is no section [{section}], but {', '.join(SECTIONS)}")
        elif line:
            if not section:
                raise InputError(
                    f"lexicon {path}, line {number}: an entry stands before any section: begin with [coco] or another"
                )
            yield section, line.lower(), number


def _split(text: str) -> list[str]:
    return [" ".join(name.split()) for name in text.split(",") if name.strip()]


def _add(lexicon: Lexicon, path: Path) -> None:
    for section, line, number in _entries(path):
        if section in ("coco", "same thing"):
            name, colon, rest = line.partition(":")
            name = name.strip()
            if not colon:
                raise InputError(f"lexicon {path}, line {number}: [{section}] has lines of the form `name: other names`")
            others, _, kinds = rest.partition("|")
            lexicon.same.update(dict.fromkeys(_split(others), name))
            if section == "coco":
                lexicon.category.update(dict.fromkeys([name, *_split(others), *_split(kinds)], name))
            lexicon.sets["objects"].update([name, *_split(others), *_split(kinds)])
        else:
            lexicon.sets[section].update(_split(line))
            if section in ("objects", "not objects"):
                lexicon.sets["not objects" if section == "objects" else "objects"].difference_update(_split(line))
    lexicon.ending = {}
    for name in {*lexicon.category, *lexicon.same, *lexicon.sets["compounds"], *lexicon.sets["objects"]}:
        lexicon.longest = max(lexicon.longest, name.count(" ") + 1)
        if " " in name:
            lexicon.ending.setdefault(name.rpartition(" ")[2], set()).add(name)


@functools.cache
def _dictionary() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    words: dict[str, str] = {}
    irregular: dict[str, dict[str, str]] = {"nouns": {}, "verbs": {}}
    for line in (HERE / "words.txt").read_text(encoding="ascii").splitlines():
        code, _, members = line.partition(" ")
        if code in irregular:
            pairs = (pair.partition("=") for pair in members.split(" "))
            irregular[code] = {many: one for one, _, many in pairs}
        elif code != "#":
            words.update(dict.fromkeys(members.split(" "), code))
    return words, irregular["nouns"], irregular["verbs"]


@functools.cache
def lexicon(path: str | None = None) -> Lexicon:
    """The lexicon that comes with the package, with a file's entries added. Raises InputError with the line that is wrong."""
    words, nouns, verbs = _dictionary()
    found = Lexicon(words=words, one_of=nouns, verb_of=verbs)
    files: Iterable[Path] = [HERE / "lexicon.txt", *([Path(path)] if path else [])]
    for file in files:
        _add(found, file)
    return found
