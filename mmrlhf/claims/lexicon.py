"""Look up the possible uses of words in a dictionary made from WordNet (`words.txt`), and the words
for objects and attributes in `lexicon.txt`, to which a user's file can add.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmrlhf.claims.grammar import PARTICIPLES, POSITION_WORDS, UNIT_WORDS
from mmrlhf.records import InputError
from mmrlhf.text.words import IMAGE_PLACES

MAX_CACHED_WORDS = 200_000
"""Size limit of each of a lexicon's caches, for text that never repeats."""

_SHORT_STEM = re.compile(r"[^aeiou]*[aeiou][^aeiouwxy]")
"""A stem of one syllable that would double its last letter, so that -e is missing: rid-ing."""
DATA_DIR = Path(__file__).parent
MISSING_USES = {"tow": "vN"}
"""Uses of words that `words.txt` does not have."""
PERSON_ENDINGS = (
    "woman", "girl", "boy", "keeper", "monger", "smith", "child", "driver", "rider", "worker", "player", "seller", "fighter",
    "teacher", "sman", "eman", "erman", "hman", "kman", "dman",
)  # fmt: skip
"""Endings of nouns for persons: zookeeper, fishmonger, schoolgirl, craftsman."""
SECTIONS = (
    "coco", "same thing", "no category", "plural only", "not objects", "objects", "compounds", "not attributes", "attributes",
    "materials", "colours", "places", "image places",
)  # fmt: skip


@dataclass(frozen=True)
class Word:
    """The possible uses of a word.

    `tags` has a letter for each use (see the module `tags`), the most likely first; `noun` is the
    singular of the word as a noun. `attribute_rank` is 2 for an attribute of the lexicon, 1 for an
    adjective of the dictionary, 0 for a word that does not describe how something looks.
    """

    tags: str
    noun: str
    is_plural: bool = False
    attribute_rank: int = 0


@dataclass(eq=False)
class Lexicon:
    """Words and their classes. Nouns are singular and in lower case; compounds contain spaces."""

    coco_category: dict[str, str] = field(default_factory=dict)
    """The COCO class (of 80) of each noun that has one."""
    canonical: dict[str, str] = field(default_factory=dict)
    """The name that claims use for each synonym."""
    word_sets: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in SECTIONS})
    """Words of each section without its own structure."""
    image_places: dict[str, str] = field(default_factory=dict)
    """The place in the image (`IMAGE_PLACES`) of each phrase for one; empty reads none."""
    dictionary: Mapping[str, str] = field(default_factory=dict)
    """Uses of each word, the most frequent first: N visible noun, n other noun, v verb,
    a adjective, r adverb.
    """
    irregular_nouns: Mapping[str, str] = field(default_factory=dict)
    irregular_verbs: Mapping[str, str] = field(default_factory=dict)
    """Base of each irregular form."""
    max_compound_words: int = 4
    """Number of words of the longest compound."""
    compounds_by_last_word: dict[str, set[str]] = field(default_factory=dict)
    """All names of several words, by their last word."""
    coco_class_cache: dict[str, str] = field(default_factory=dict)
    """Results of `coco_class`."""
    verb_base_cache: dict[str, str] = field(default_factory=dict)
    """Results of `verb_base`."""
    token_cache: dict[str, tuple[str, str, str, bool, int]] = field(default_factory=dict)
    """Analyses of tokens in `tagging`, by their spelling."""

    def canonical_name(self, noun: str) -> str:
        """Return the name that claims use for a noun."""
        return self.canonical.get(noun, noun)

    def coco_class(self, noun: str) -> str:
        """Return a noun's COCO class, for a compound that of its last word; "" if it has none."""
        coco_class = self.coco_class_cache.get(noun)
        if coco_class is None:
            coco_class = self._find_coco_class(noun)
            if len(self.coco_class_cache) < MAX_CACHED_WORDS:
                self.coco_class_cache[noun] = coco_class
        return coco_class

    def _find_coco_class(self, noun: str) -> str:
        last_word = noun
        # Drops words from the left: kitchen dining table, dining table, table.
        while noun:
            if noun in self.coco_category:
                return self.coco_category[noun]
            if noun in self.word_sets["no category"]:
                return ""
            last_word, noun = noun, noun.partition(" ")[2]
            noun = self.canonical.get(noun, noun)
        return "person" if last_word.endswith(PERSON_ENDINGS) else ""

    def is_object(self, noun: str) -> bool:
        """Return whether a noun names something visible that claims can be about."""
        if noun in self.word_sets["objects"] or noun in self.coco_category or noun in self.word_sets["plural only"]:
            return True
        return noun not in self.word_sets["not objects"] and "N" in self.dictionary.get(noun, "")

    # ---- forms of words ------------------------------------------------------------------------

    def singular(self, word: str) -> tuple[str, bool] | None:
        """Return a noun's singular and whether the word is a plural, or None if it is not a noun.

        A singular must be in the dictionary or the lexicon: dogs becomes dog, but bus stays bus.
        """
        if word in self.word_sets["plural only"]:
            return word, True
        if word in self.word_sets["objects"] and not word.endswith("s") and word != "people":
            return word, False
        if word in self.irregular_nouns and word != "people":
            return self.irregular_nouns[word], True
        if word == "people":
            return "person", True
        if word.endswith("children") and len(word) > 8:
            return word[:-3], True
        if word.endswith("men") and self._is_noun(candidate := f"{word[:-3]}man"):
            return candidate, True
        # Words in -ss, -us and -is are mostly singulars; their plurals come in the branches below.
        if word.endswith("s") and len(word) > 2 and word[-2] not in "sui":
            is_sibilant = word.endswith(("ches", "shes", "sses", "xes", "zes"))
            for suffix, replacement in (
                (("es", ""), ("s", "")) if is_sibilant else (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"))
            ):
                if (
                    word.endswith(suffix)
                    and len(stem := word[: -len(suffix)] + replacement) > 1
                    and self._is_noun(stem)
                    and (len(stem) > 2 or word not in self.dictionary)
                ):
                    return stem, True
        elif word.endswith(("ies", "uis", "kis", "xis")) and self._is_noun(word[:-1]):
            return word[:-1], True
        elif word.endswith(("uses", "ies")) and self._is_noun(word[:-2]):
            return word[:-2], True
        return (word, False) if self._is_noun(word) else None

    def _is_noun(self, word: str) -> bool:
        code = self.dictionary.get(word, "")
        return (
            "N" in code
            or "n" in code
            or word in self.word_sets["objects"]
            or word in self.coco_category
            or word in self.canonical
        )

    def _verb_form(self, word: str) -> tuple[str, str] | None:
        """Return a verb's form (V, G or E) and its base, or None for a word that is not a verb."""
        if word in self.irregular_verbs and self.dictionary.get(word, "v")[0] not in "Nn":
            return ("G" if word.endswith("ing") else "E"), self.irregular_verbs[word]
        endings = (("V", ""), ("V", "s"), ("V", "es"), ("V", "ies"), ("E", "d"), ("E", "ed"), ("E", "ied"), ("G", "ing"))
        for form, suffix in endings:
            if word.endswith(suffix):
                stem = word[: len(word) - len(suffix)]
                # -d comes after a base in -e: baked; -ed after agreed is not one.
                if suffix == "d" and (not stem.endswith("e") or stem.endswith("ee")):
                    continue
                if (
                    form in "EG"
                    and len(stem) < 3
                    and word not in ("tied", "dyed", "lying", "tying", "dying", "used", "iced", "using")
                ):
                    continue
                bases: tuple[str, ...] = (stem,)
                if suffix[:2] == "ie":
                    bases = (stem + "y",)  # carries
                elif form == "G" or suffix == "ed":
                    # walking, riding, sitting: rid would double its d
                    is_short = _SHORT_STEM.fullmatch(stem) is not None
                    bases = (stem + "e", stem, stem[:-1]) if is_short else (stem, stem + "e", stem[:-1])
                for base in bases:
                    has_doubled_consonant = stem[-1:] == stem[-2:-1]
                    is_known_verb = len(base) > 1 and "v" in self.dictionary.get(base, "")
                    if is_known_verb and (base != stem[:-1] or has_doubled_consonant):
                        return form, base
        return None

    def is_verb(self, word: str) -> bool:
        """Return whether a word can be a form of a verb."""
        return self._verb_form(word) is not None

    def verb_base(self, word: str) -> str:
        """Return the base of a verb's form: riding -> ride, worn -> wear."""
        base = self.verb_base_cache.get(word)
        if base is None:
            form = self._verb_form(word)
            base = form[1] if form else word
            if len(self.verb_base_cache) < MAX_CACHED_WORDS:
                self.verb_base_cache[word] = base
        return base

    def analyze(self, word: str) -> Word:
        """Return the possible uses of a word in lower case."""
        code = self.dictionary.get(word, "")
        noun = self.singular(word)
        base, is_plural = noun or (word, False)
        base_code = self.dictionary.get(base, "")
        verb = self._verb_form(word)
        pos_order = code or base_code or (self.dictionary.get(verb[1], "v") if verb else "")
        word_sets = self.word_sets
        attribute_rank = self._attribute_rank(word, code)
        if word in word_sets["colours"] and base not in word_sets["objects"] and base not in self.coco_category:
            return Word("J", base, attribute_rank=2)
        if word in PARTICIPLES:
            return Word("GJ", base, attribute_rank=2 * (word in word_sets["attributes"]))
        # Translate the dictionary's classes, in its order of frequency, to tags.
        tags = ""
        for letter in (pos_order if not is_plural else base_code) or "n":
            if letter in "Nn" and noun:
                tags += "N" if self.is_object(self.canonical_name(base)) else "X"
            elif letter == "v" and verb and verb[0] == "V":
                tags += "V"
            elif letter == "a" and "a" in code:
                tags += "J"
            elif letter == "r" and "r" in code:
                tags += "R"
        if noun and not set("NX") & set(tags):
            tags += "N" if self.is_object(self.canonical_name(base)) else "X"
        if verb and verb[0] in "GE" and verb[0] not in tags:
            # A noun in -ing (building, painting) is a noun unless its surroundings say otherwise.
            tags = tags + verb[0] if verb[0] == "G" and "N" in tags and "J" not in tags else verb[0] + tags
        if verb and verb[0] == "V" and "V" not in tags and "v" in self.dictionary.get(verb[1], ""):
            tags += "V"
        # Nouns that describe, such as materials: adjective first only where the noun is unlikely.
        if attribute_rank and "J" not in tags and not set("GE") & set(tags):
            prefers_adjective = word in word_sets["colours"] or not noun or ("-" in word and not self.is_object(base))
            tags = "J" + tags if prefers_adjective else tags + "J"
        if not tags:
            tags = self._guess_tags(word)
            if word.endswith("s") and not word.endswith("ss") and tags == "U":
                base, is_plural = _singular_of_unknown(word), True
        return Word(tags, base, is_plural, attribute_rank)

    def _attribute_rank(self, word: str, code: str) -> int:
        """Return how likely a word describes how something looks (see `Word`)."""
        word_sets = self.word_sets
        if word in word_sets["colours"] or word in word_sets["materials"] or word in word_sets["attributes"]:
            return 2
        if word in word_sets["not attributes"]:
            return 0
        if "-" in word:
            parts = word.split("-")
            return int(not POSITION_WORDS.issuperset(parts) and UNIT_WORDS.isdisjoint(parts))
        # A comparative describes nothing by itself: larger.
        for suffix in ("er", "est"):
            if word.endswith(suffix):
                stem = word.removesuffix(suffix)
                if any(
                    "a" in self.dictionary.get(base, "")
                    for base in (stem, stem + "e", stem[:-1], stem[:-1] + "y")
                    if len(base) > 2
                ):
                    return 0
        return int("a" in code)

    def _guess_tags(self, word: str) -> str:
        """Return the tags that an unknown word's hyphens and endings suggest, or U."""
        if "-" in word:
            last = word.rpartition("-")[2]
            last_tags = self.analyze(last).tags if last else "U"
            if word.endswith("ed") or last_tags[:1] in "JEG":
                return "J"
            return "JN" if "N" in last_tags else "J"
        for suffixes, letter in (
            (("ly",), "R"), (("ness", "ity", "tion", "sion", "ism", "ance", "ence", "ship", "hood", "ment"), "X"),
            (("ing",), "G"), (("ed",), "E"), (("ful", "ous", "ish", "less", "able", "ible"), "J"),
        ):  # fmt: skip
            if word.endswith(suffixes) and len(word) > 5:
                return letter
        if word.endswith(("er", "est")):
            for stem in (word.removesuffix("er"), word.removesuffix("est")):
                for base in (stem, stem[:-1], stem + "e", stem[:-1] + "y"):
                    if base != word and "a" in self.dictionary.get(base, ""):
                        return "K"
        return "U"


def _singular_of_unknown(word: str) -> str:
    """Return the singular of a plural that no dictionary has: checkboxes -> checkbox."""
    if word.endswith(("xes", "ches", "shes", "sses", "zzes")):
        return word[:-2]
    return f"{word[:-3]}y" if word.endswith("ies") and len(word) > 4 else word[:-1]


def _read_entries(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield section, entry line and line number of a lexicon file. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"lexicon {path} does not exist: correct the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"lexicon {path} cannot be read ({error}): give a text file in UTF-8") from None
    section = ""
    for line_number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            section = line.strip("[]").strip()
            if section not in SECTIONS:
                raise InputError(
                    f"lexicon {path}, line {line_number}: there is no section [{section}]; use one of {', '.join(SECTIONS)}"
                )
        elif line:
            if not section:
                raise InputError(
                    f"lexicon {path}, line {line_number}: an entry comes before any section: begin with [coco] or another"
                )
            yield section, line.lower(), line_number


def _split_names(text: str) -> list[str]:
    return [" ".join(name.split()) for name in text.split(",") if name.strip()]


def _add_file(lexicon: Lexicon, path: Path) -> None:
    """Add the entries of a lexicon file. Raises InputError."""
    for section, line, line_number in _read_entries(path):
        if section in ("coco", "same thing", "image places"):
            name, separator, rest = line.partition(":")
            name = name.strip()
            if not separator and section != "image places":  # whose phrases may be the place itself
                raise InputError(f"lexicon {path}, line {line_number}: [{section}] needs lines of the form `name: other names`")
            if section == "image places":
                if name not in IMAGE_PLACES:
                    raise InputError(
                        f"lexicon {path}, line {line_number}: {name} is not a place in the image: use {', '.join(IMAGE_PLACES)}"
                    )
                lexicon.image_places.setdefault(name, name)
                lexicon.image_places.update(dict.fromkeys(_split_names(rest), name))
                continue
            synonyms, _, subtypes = rest.partition("|")
            lexicon.canonical.update(dict.fromkeys(_split_names(synonyms), name))
            if section == "coco":
                lexicon.coco_category.update(dict.fromkeys([name, *_split_names(synonyms), *_split_names(subtypes)], name))
            lexicon.word_sets["objects"].update([name, *_split_names(synonyms), *_split_names(subtypes)])
        else:
            lexicon.word_sets[section].update(_split_names(line))
            # A later file overrides an earlier one.
            if section in ("objects", "not objects"):
                lexicon.word_sets["not objects" if section == "objects" else "objects"].difference_update(_split_names(line))
    lexicon.compounds_by_last_word = {}
    for name in {*lexicon.coco_category, *lexicon.canonical, *lexicon.word_sets["compounds"], *lexicon.word_sets["objects"]}:
        lexicon.max_compound_words = max(lexicon.max_compound_words, name.count(" ") + 1)
        if " " in name:
            lexicon.compounds_by_last_word.setdefault(name.rpartition(" ")[2], set()).add(name)


@functools.cache
def _load_dictionary() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Read words.txt: the classes of each word, and the bases of irregular nouns and verbs."""
    words: dict[str, str] = {}
    irregular_forms: dict[str, dict[str, str]] = {"nouns": {}, "verbs": {}}
    for line in (DATA_DIR / "words.txt").read_text(encoding="ascii").splitlines():
        code, _, members = line.partition(" ")
        if code in irregular_forms:
            pairs = (pair.partition("=") for pair in members.split(" "))
            irregular_forms[code] = {form: base for base, _, form in pairs}
        elif code != "#":
            words.update(dict.fromkeys(members.split(" "), code))
    words |= MISSING_USES
    return words, irregular_forms["nouns"], irregular_forms["verbs"]


@functools.cache
def load_lexicon(path: str | None = None) -> Lexicon:
    """Return the package's lexicon and the entries of a user's file. Raises InputError."""
    words, irregular_nouns, irregular_verbs = _load_dictionary()
    lexicon = Lexicon(dictionary=words, irregular_nouns=irregular_nouns, irregular_verbs=irregular_verbs)
    files: Iterable[Path] = [DATA_DIR / "lexicon.txt", *([Path(path)] if path else [])]
    for file in files:
        _add_file(lexicon, file)
    return lexicon
