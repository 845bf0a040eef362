"""Base forms of verbs, from their endings alone.

The two rules differ on purpose. `base_form` undoes only the -s of the third person, as finite verbs
have it, and `verb_stem` also undoes -ing, for participles.
"""

from __future__ import annotations

import re

_DOUBLING = re.compile(r"[^aeiou]*[aeiou][^aeiouwxy]")
"""A verb of one syllable that doubles its last letter: hit."""


def base_form(word: str) -> str:
    """Return a verb without the -s of its third person: watches -> watch, carries -> carry."""
    if not word.endswith("s"):
        return word
    for suffix, replacement in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("s", "")):
        if word.endswith(suffix):
            return word[: -len(suffix)] + replacement
    return word


def verb_stem(word: str) -> str:
    """Return a verb without -ing or -s: hitting -> hit, taking -> take, throws -> throw."""
    base = word.removesuffix("ing").removesuffix("s") if word.endswith(("ing", "s")) else word
    has_doubled_consonant = base[-2:-1] == base[-1:] and base[-1:] in "tnpg"
    if has_doubled_consonant:
        return base[:-1]
    return {"tak": "take", "rais": "raise", "giv": "give"}.get(base, base)


def present_participle(verb: str) -> str:
    """Return a verb's -ing form; words after the verb stay: look at -> looking at."""
    base, space, rest = verb.partition(" ")
    if base.endswith("ie"):
        base = f"{base[:-2]}y"
    elif base.endswith("e") and not base.endswith(("ee", "oe", "ye")):
        base = base[:-1]
    elif _DOUBLING.fullmatch(base.removeprefix("qu")):
        base += base[-1]
    return f"{base}ing{space}{rest}"


def third_person(verb: str) -> str:
    """Return a verb's third person; words after the verb stay: look at -> looks at."""
    base, space, rest = verb.partition(" ")
    if base.endswith(("ch", "sh", "ss", "x", "z", "o")):
        base += "es"
    elif base.endswith("y") and base[-2:-1] not in tuple("aeiou"):
        base = f"{base[:-1]}ies"
    else:
        base += "s"
    return f"{base}{space}{rest}"
