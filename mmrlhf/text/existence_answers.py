"""Rewrite sentences that answer `Is there a dog in the image?` in passing, so that they say it.

"The dog is not brown" says that there is one, "0 dogs" that there is none, and "a hot dog" nothing.
No torch.
"""

from __future__ import annotations

import functools
import re

_ASKED = re.compile(
    r"\b(?:(?:is|are) there|(?:can|do) you see) (?:an? |any |some |the )?([a-z][a-z -]*?) "
    r"(?:visible |present |shown )?(?:in|on) (?:the|this) (?:im\w+|picture|photo\w*|scene|frame)\b"
)
"""A question about existence alone; POPE misspells `image` in places."""
_OTHER_THINGS = {"dog": "hot dog", "bear": "teddy bear"}
"""Things whose name ends in that of something else."""
_COMPOUND_HEADS = "house|bowl|bed|collar|leash|food|kennel|cage|statue|station|stop|feeder|carrier|shelter"
"""Nouns before which an object's name says only what they are for: a *dog* bowl."""
_PRESENCE = (
    r"(?:\w+ )?(?:present|there|here|visible|shown|seen|found|included|depicted|pictured|captured|detected|observed|mentioned"
    r"|anywhere|appear|exist|seem|able|be|been|to|an?|one|among|real|evident|part|(?:in|on|within) (?:(?:the|this|that) )?(?:image|picture|photo\w*|scene|frame|shot|view|sight))\b"
)
"""Predicates that deny the thing itself: the dog is not *visible*."""


def asked_object(question: str) -> str | None:
    """Return the object of a question about existence alone, in lower case, or None."""
    match = _ASKED.search(question)
    return match[1] if match else None


def state_existence(sentence: str, name: str) -> str:
    """Return a sentence in lower case with what it says about the asked object's existence."""
    for pattern, replacement in _rewrites(name):
        sentence = pattern.sub(replacement, sentence)
    return sentence


@functools.lru_cache(maxsize=1024)
def _rewrites(name: str) -> list[tuple[re.Pattern[str], str]]:
    thing = rf"{re.escape(name)}(?:s|es)?\b"
    there_is = f"the {name} is visible."
    rewrites = [
        (rf"\b{re.escape(name)} (?=(?:{_COMPOUND_HEADS})\b)", ""),
        # no people, but a dog; definitely not a cat
        (rf"^\W*no (?!{thing})\w+,? (?:but|only|just) (?=(?:(?:an?|one|two|the) )?(?:\w+ )?{thing})", ""),
        (rf"^\W*(?:(?:definitely|certainly|clearly) )?not an? (?!{thing})\w+\W*$", ""),
        # the dog is not brown; the dog is missing a leg; no one is near the dog
        (rf"^.*\bthe (?:\w+ )?{thing} (?:is|are|was|were|does|do|did|has|have)(?:n't| not)(?! {_PRESENCE}).*$", there_is),
        (rf"^.*\bthe (?:\w+ )?{thing} (?:is|are) missing (?:an?|its|one|two|some)\b.*$", there_is),
        (rf"^\W*(?:no one|nobody)\b(?!.*\b(?:see|find|spot)).*\bthe {thing}.*$", there_is),
        (r"\bnot far\b", "near"),
        (
            r"\bit(?:'s| is) (?:\w+ )?(?:unlikely|doubtful|improbable) (?:that )?(?:there (?:is|are) )?(?:an?|any) "
            rf"(?=(?:\w+ )?{thing})",
            "there is no ",
        ),
        (rf"(?<![\w.,])0 (?=(?:\w+ )?{thing})", "no "),
    ]
    if name in _OTHER_THINGS:
        rewrites.insert(0, (rf"\b{_OTHER_THINGS[name]}s?\b", "thing"))
    return [(re.compile(pattern), replacement) for pattern, replacement in rewrites]
