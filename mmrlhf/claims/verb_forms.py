"""Base forms of verbs, from their endings alone.

The two rules differ on purpose. `base_form` undoes only the -s of the third person, as finite verbs
have it, and `verb_stem` also undoes -ing, for participles.
"""

from __future__ import annotations


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
