"""Rewrite sentences that answer `Is there a dog in the image?` indirectly into direct ones.

"The dog is not brown" says that there is one, "0 dogs" that there is none, and "a hot dog" nothing.
No torch.
"""

from __future__ import annotations

import functools
import re

_ASKED = re.compile(
    r"\b(?:(?:is|are) there|(?:can|do) you see) (?:an? |any |some |the )?([a-z][a-z -]*?) "
    r"(?:visible |present |shown )?(?:in|on) (?:the|this) (?:im\w+|picture|photo\w*|scene|frame)\b(?=\W*(?:$|please\b|answer\b))"
)
"""A question about existence alone; POPE misspells `image` in places."""
_OTHER_THINGS = {"dog": "hot dog", "bear": "teddy bear"}
"""Things whose name ends in the name of something else."""
_COMPOUND_HEADS = "house|bowl|collar|leash|food|kennel|cage|statue|station|stop|feeder|carrier|shelter"
"""Nouns before which an object's name only gives their purpose: a *dog* bowl; also `bed`, except
after _WITH_BEDS."""
_WITH_BEDS = ("truck", "couch", "sofa")
"""Objects that can have a bed themselves: a *truck bed* shows that there is a truck."""
_DENIAL = re.compile(r"\b(?:no|not|none|nor|neither|never|cannot|without|absent|missing|nowhere|nothing|nobody)\b|n't\b")
_VERBS = (
    "look(?:ing)? (?:at|away|into|up|down|towards?|directly)|fac(?:e|ing)|runn?(?:ing)?|walk(?:ing)?|sit(?:ting)?|stand(?:ing)?(?! out)"
    "|lying|laying|sleep(?:ing)?|wear(?:ing)?|hold(?:ing)?|carry(?:ing)?|eat(?:ing)?|drink(?:ing)?|play(?:ing)?|jump(?:ing)?"
    "|bark(?:ing)?|mov(?:e|ing)|swim(?:ming)?|chas(?:e|ing)|bit(?:e|ing)|smil(?:e|ing)|watch(?:ing)?|rest(?:ing)?"
    "|rid(?:e|ing)|driv(?:e|ing)|fly(?:ing)?|touch(?:ing)?|pet(?:ting)?|feed(?:ing)?|pull(?:ing)?"
)
"""Actions that only a present thing can do, or not do."""
_ATTRIBUTES = (
    "black|white|brown|red|blue|green|yellow|orange|gr[ea]y|pink|purple|gold|golden|silver|tan|beige|dark|light"
    "|big|large|small|little|tall|short|long|huge|tiny|old|young|wet|dry|happy|sad|angry|alone|asleep|awake|open|closed|empty"
    "|wooden|metal|metallic|plastic|glass|leather|furry|fluffy|the only"
)
"""States that only a present thing can have, or not have."""
_PLACES = (
    r"(?:on|on top of|under|underneath|behind|beside|next to|near|close to|inside|in front of|between|above|below|with"
    r"|in(?= (?:\w+ ){1,2}(?:car|truck|boat|basket|bed|cage|crate|bag|box|bowl|lap|arms|water|pool|sink|grass|snow)\b))"
    r"(?: (?:the|an?|its|his|her)\b)(?! (?:\w+ ){0,3}(?:image|picture|photo\w*|scene|frame|shot|view|sight|list|screen\w*)\b)"
)
"""Places where only a present thing can be, or not be: none of these is the image itself."""


def asked_object(question: str) -> str | None:
    """Return the object of a question about existence alone, in lower case, or None."""
    match = _ASKED.search(question)
    return match[1] if match else None


def counts_none(sentence: str) -> bool:
    """Return whether a sentence begins with a `no` that belongs to the next word: "no cats"."""
    return re.match(r"\W*(?:no (?!(?:the|it|there|i|an?|this|that)\b)\w|nobody\b)", sentence) is not None


def state_existence(sentence: str, name: str) -> str:
    """Return a sentence in lower case, with its implication about the object's existence.

    A sentence with any denial other than of an object's state or action stays unchanged.
    """
    for pattern in _presuppositions(name):
        match = pattern.search(sentence)
        if match and not _DENIAL.search(sentence[: match.start()] + " " + sentence[match.end() :]):
            return f"the {name} is visible."
    for pattern, replacement in _rewrites(name):
        sentence = pattern.sub(replacement, sentence)
    return sentence


@functools.lru_cache(maxsize=1024)
def _presuppositions(name: str) -> list[re.Pattern[str]]:
    """Return patterns of denials about an object that is there, or about others related to it."""
    thing = rf"{re.escape(name)}(?:s|es)?\b"
    patterns = (
        # the dog is not brown, does not wear a hat, is missing a leg; no one is near the dog
        rf"\bthe (?:\w+ )?{thing} (?:is|are|was|were)(?:n't| not) (?:\w+ly )?(?:{_ATTRIBUTES}|{_VERBS}|{_PLACES})\b",
        rf"\bthe (?:\w+ )?{thing} (?:does|do|did)(?:n't| not) (?:\w+ly )?(?:{_VERBS})\b",
        rf"\bthe (?:\w+ )?{thing} (?:is|are) missing (?:an?|its|one|two|some)\b",
        rf"^\W*(?:no one|nobody) (?:is|was) (?:\w+ly )?(?:{_VERBS}|near)?(?: ?(?:near|close to|next to|beside|behind|with|on|by))? ?the {thing}",
    )
    return [re.compile(pattern) for pattern in patterns]


@functools.lru_cache(maxsize=1024)
def _rewrites(name: str) -> list[tuple[re.Pattern[str], str]]:
    thing = rf"{re.escape(name)}(?:s|es)?\b"
    heads = _COMPOUND_HEADS if name in _WITH_BEDS else f"{_COMPOUND_HEADS}|bed"
    rewrites = [
        (rf"\b{re.escape(name)} (?=(?:{heads})\b)", ""),
        # no people, but a dog; definitely not a cat
        (rf"^\W*no (?!{thing})\w+,? (?:but|only|just) (?=(?:(?:an?|one|two|the) )?(?:\w+ )?{thing})", ""),
        (rf"^\W*(?:definitely|certainly|clearly) not an? (?!{thing})\w+\W*$", ""),
        # nothing but a dog; anything but a dog; what looks like a dog is in fact a fox
        (rf"\bnothing (?:else )?(?:but|except|other than) (?=(?:(?:an?|one|the) )?(?:\w+ )?{thing})", ""),
        (rf"\b(?:anything|everything) but (?:an? |any )?(?=(?:\w+ )?{thing})", "no "),
        (
            rf"\bwhat (?:looks|looked|appears|seems|may look|might look) (?:like|to be) (?:an? )?(?=(?:\w+ )?{thing}"
            r" (?:is|are|was|turns out to be) (?:actually |really |in fact |just |only )?(?:an? |some ))",
            "no ",
        ),
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
