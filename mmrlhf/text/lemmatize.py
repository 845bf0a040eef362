"""Lemmatize English captions exactly as the benchmarks' scripts do, quirks included.

Published figures depend on every quirk, so the word lists here are not shared with the rest of the
package. `pattern_singularize` is the rule of `pattern.en`, which CHAIR's first script used;
`lemmas`, `nouns` and `noun_lemmas` use NLTK's tokenizer, tagger and WordNet. No torch; NLTK is
imported when it is first needed.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from mmrlhf.records import InputError
from mmrlhf.text.words import word_set

# ---- pattern.en --------------------------------------------------------------------------------

_INVARIANT = word_set(
    "bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes djinn eland elk "
    "flounder gallows georgia graffiti headquarters herpes high-jinks homework innings jackanapes mackerel measles mews "
    "mumps news pincers pliers proceedings rabies salmon scissors series shears species swine swiss trout tuna whiting "
    "wildebeest advice bread butter cheese electricity equipment fruit furniture garbage gravel happiness information "
    "ketchup knowledge love luggage mathematics mayonnaise meat mustard progress research rice sand software understanding "
    "water"
)
"""Words without a plural. The rule also leaves unchanged any word that is the ending of one."""
_PLURALS_IN_IES = tuple(
    f"{word}s"
    for word in word_set(
        "alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie groupie hankie hippie hoagie "
        "hottie indie junkie laddie laramie lingerie meanie newbie nightie oldie pixie quickie reverie rookie softie sortie "
        "stoolie sweetie techie toughie valkyrie veggie weenie yuppie zombie"
    )
)
"""Plurals that the rule leaves unchanged, words that end in one included."""
_IRREGULAR_PLURALS = {
    "atlantes": "atlas", "atlases": "atlas", "axes": "axe", "beeves": "beef", "brethren": "brother",
    "children": "child", "corpora": "corpus", "corpuses": "corpus", "ephemerides": "ephemeris", "feet": "foot",
    "ganglia": "ganglion", "geese": "goose", "genera": "genus", "genii": "genie", "graffiti": "graffito",
    "helves": "helve", "kine": "cow", "leaves": "leaf", "loaves": "loaf", "men": "man", "mongooses": "mongoose",
    "monies": "money", "moves": "move", "mythoi": "mythos", "numena": "numen", "occipita": "occiput",
    "octopodes": "octopus", "opera": "opus", "opuses": "opus", "our": "my", "oxen": "ox", "penes": "penis",
    "penises": "penis", "people": "person", "sexes": "sex", "soliloquies": "soliloquy", "teeth": "tooth",
    "testes": "testis", "trilbys": "trilby", "turves": "turf", "zoa": "zoon",
}  # fmt: skip
"""Singulars by the ending of the plural; the first that matches is used."""
_SINGULAR_RULES = [
    (re.compile(pattern), one)
    for pattern, one in (
        ("(?i)(.)ae$", r"\1a"), ("(?i)(.)itis$", r"\1itis"), ("(?i)(.)eaux$", r"\1eau"), ("(?i)(quiz)zes$", r"\1"),
        ("(?i)(matr)ices$", r"\1ix"), ("(?i)(ap|vert|ind)ices$", r"\1ex"), ("(?i)^(ox)en", r"\1"),
        ("(?i)(alias|status)es$", r"\1"), ("(?i)([octop|vir])i$", r"\1us"), ("(?i)(cris|ax|test)es$", r"\1is"),
        ("(?i)(shoe)s$", r"\1"), ("(?i)(o)es$", r"\1"), ("(?i)(bus)es$", r"\1"), ("(?i)([m|l])ice$", r"\1ouse"),
        ("(?i)(x|ch|ss|sh)es$", r"\1"), ("(?i)(m)ovies$", r"\1ovie"), ("(?i)(.)ombies$", r"\1ombie"),
        ("(?i)(s)eries$", r"\1eries"), ("(?i)([^aeiouy]|qu)ies$", r"\1y"), ("([aeo]l)ves$", r"\1f"),
        ("([^d]ea)ves$", r"\1f"), ("arves$", "arf"), ("erves$", "erve"), ("([nlw]i)ves$", r"\1fe"),
        ("(?i)([lr])ves$", r"\1f"), ("([aeo])ves$", r"\1ve"), ("(?i)(sive)s$", r"\1"), ("(?i)(tive)s$", r"\1"),
        ("(?i)(hive)s$", r"\1"), ("(?i)([^f])ves$", r"\1fe"), ("(?i)(^analy)ses$", r"\1sis"),
        ("(?i)((a)naly|(b)a|(d)iagno|(p)arenthe|(p)rogno|(s)ynop|(t)he)ses$", r"\1\2sis"),
        ("(?i)(.)opses$", r"\1opsis"), ("(?i)(.)yses$", r"\1ysis"), ("(?i)(h|d|r|o|n|b|cl|p)oses$", r"\1ose"),
        ("(?i)(fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose$", r"\1ose"), ("(?i)(.)oses$", r"\1osis"),
        ("(?i)([ti])a$", r"\1um"), ("(?i)(n)ews$", r"\1ews"), ("(?i)s$", ""),
    )
]  # fmt: skip
"""Patterns and replacements; the first that matches is used. Some brackets were meant to be
parentheses, but published figures depend on them.
"""
_PREPOSITIONS = word_set(
    "about above across after among around at athwart before behind below beneath beside besides between betwixt beyond but "
    "by during except for from in into near of off on onto out over since till to under until unto upon with"
)


@functools.lru_cache(maxsize=1 << 16)
def pattern_singularize(word: str) -> str:
    """Return a noun's singular as `pattern.en.singularize` does: `buses` is bus, and `bus` is bu.

    Source: De Smedt and Daelemans 2012; endings after Ferrer's Inflector.
    """
    parts = word.split("-")
    if len(parts) > 1 and parts[1] in _PREPOSITIONS:
        return f"{pattern_singularize(parts[0])}-{'-'.join(parts[1:])}"
    if word.endswith("'"):
        return f"{pattern_singularize(word[:-1])}'s"
    lower = word.lower()
    if any(invariant.endswith(lower) for invariant in _INVARIANT):
        return word
    if lower.endswith(_PLURALS_IN_IES):
        return lower
    for plural, replacement in _IRREGULAR_PLURALS.items():
        if lower.endswith(plural):
            return re.sub(f"(?i){plural}$", replacement, word)
    for pattern, replacement in _SINGULAR_RULES:
        if match := pattern.search(word):
            # Groups that did not match are replaced by nothing.
            for group_index, group in enumerate(match.groups(), 1):
                if group is None:
                    replacement = replacement.replace(f"\\{group_index}", "")
            return pattern.sub(replacement, word)
    return word


# ---- NLTK --------------------------------------------------------------------------------------


@functools.cache
def _nltk() -> Any:
    """Import NLTK and check that its data is installed. Raises InputError if some is missing."""
    import nltk

    data = {
        "tokenizers/punkt_tab": "punkt_tab",
        "taggers/averaged_perceptron_tagger_eng": "averaged_perceptron_tagger_eng",
        "corpora/wordnet": "wordnet",
    }
    missing = []
    for path, name in data.items():
        try:
            nltk.data.find(path)
        except LookupError:
            try:
                nltk.data.find(f"{path}.zip")
            except LookupError:
                missing.append(name)
    if missing:
        raise InputError(
            f"NLTK's data lacks {', '.join(missing)}: run `python -m nltk.downloader {' '.join(missing)}`, "
            "or set NLTK_DATA to the folder that has them"
        )
    return nltk


@functools.cache
def _lemmatize(word: str, pos: str) -> str:
    return str(_lemmatizer().lemmatize(word, pos=pos))


@functools.cache
def _lemmatizer() -> Any:
    from nltk.stem import WordNetLemmatizer

    _nltk()
    return WordNetLemmatizer()


@functools.cache
def _tokenizer() -> Any:
    """Return NLTK's word tokenizer as it was up to 3.9.2, which published figures depend on.

    Later versions split words at dashes, and clitics in another way.
    """
    from nltk.tokenize.destructive import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    tokenizer.PUNCTUATION = [rule for rule in tokenizer.PUNCTUATION if r"\u2012" not in rule[0].pattern]
    clitic = (re.compile(r"(?i)(\')(?!re|ve|ll|m|t|s|d|n)(\w)\b"), r"\1 \2")
    tokenizer.STARTING_QUOTES = [*tokenizer.STARTING_QUOTES[:-1], clitic]
    return tokenizer


def tokens(text: str) -> list[str]:
    """Return NLTK's tokens: words and punctuation. Raises InputError if NLTK's data is missing."""
    return [token for sentence in _nltk().sent_tokenize(text) for token in _tokenizer().tokenize(sentence)]


def lemmas(text: str) -> list[str]:
    """Return each token's lemma by its tagged part of speech; other tags count as nouns."""
    pos_of_tag = {"J": "a", "V": "v", "N": "n", "R": "r"}
    return [_lemmatize(word, pos_of_tag.get(tag[:1], "n")) for word, tag in _nltk().pos_tag(tokens(text))]


def nouns(text: str) -> list[str]:
    """Return the lemmas of the tokens tagged as nouns, without changing their case."""
    return [_lemmatize(word, "n") for word, tag in _nltk().pos_tag(tokens(text)) if tag.startswith("NN")]


def noun_lemmas(text: str) -> list[str]:
    """Return each token's lemma as a noun, whatever its part of speech."""
    return [_lemmatize(word, "n") for word in tokens(text)]
