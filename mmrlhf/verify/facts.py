"""Claims against facts: supported, contradicted, or unknown.

What no fact lists is unknown. A claim is contradicted only by a fact that cannot be true beside it: a thing listed as absent, another
number, another colour of the one thing of that name, the opposite relation. Where facts disagree the verdict is unknown.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace

from mmrlhf.claims import Lexicon, claims, lexicon
from mmrlhf.claims.grammar import listed
from mmrlhf.claims.phrases import number_of
from mmrlhf.records import Claim, Fact, Verdict

Found = list[tuple[str, float]]
"""What facts say, as they are shown, and how sure they are."""

SAME_VALUE = {
    "gray": "grey", "golden": "gold", "wood": "wooden", "blond": "blonde", "big": "large", "huge": "large", "giant": "large",
    "little": "small", "tiny": "small", "coloured": "colored", "multicoloured": "multicolored", "colourful": "colorful", "shut": "closed",
    "metallic": "metal", "woolen": "wool", "old": "old", "elderly": "old", "aged": "old", "vacant": "empty",
}  # fmt: skip
COLOURS = listed(
    "red orange yellow green blue cyan purple violet pink brown black white grey beige tan gold silver teal turquoise maroon navy"
)
MATERIALS = listed("wooden metal steel plastic glass leather stone brick concrete marble paper cardboard rubber ceramic")
ALIKE = [
    listed(names)
    for names in (
        "violet purple", "maroon red", "maroon brown", "navy blue", "navy black", "teal turquoise cyan", "teal blue", "teal green",
        "turquoise blue", "turquoise green", "silver grey", "gold yellow", "gold orange", "tan beige brown", "tan yellow", "beige white",
        "metal steel", "stone marble", "stone brick", "stone concrete", "paper cardboard", "plastic rubber",
    )
]  # fmt: skip
"""Values of which one may call the other's thing: neither contradicts the other."""
OPPOSED = [
    {"open", "closed"}, {"empty", "full", "crowded", "packed"}, {"wet", "dry"}, {"clean", "dirty"}, {"young", "old"}, {"tall", "short"},
    {"long", "short"}, {"large", "small"}, {"round", "square", "rectangular"}, {"dark", "bright"}, {"male", "female"},
    {"cloudy", "clear", "overcast", "sunny"}, {"raw", "cooked"}, {"new", "old"}, {"striped", "plain", "checkered"},
]  # fmt: skip
NEAR = {name: "near" for name in ("near", "next to", "beside", "by", "close to", "alongside", "adjacent to", "near to")}
SAME_RELATION = NEAR | {
    "on top of": "on", "atop": "on", "upon": "on", "onto": "on", "inside": "in", "within": "in", "into": "in", "inside of": "in",
    "over": "above", "underneath": "under", "beneath": "under", "below": "under", "to the left of": "left of",
    "to the right of": "right of", "in between": "between", "outside of": "outside", "in back of": "behind", "surrounding": "around",
}  # fmt: skip
INVERSE = {"left of": "right of", "above": "under", "in front of": "behind", "near": "near"}
INVERSE |= {b: a for a, b in INVERSE.items()}
EXCLUDES = {"left of": {"right of"}, "right of": {"left of"}, "above": {"under"}, "under": {"above", "on"}, "on": {"under"},
            "in front of": {"behind"}, "behind": {"in front of"}, "in": {"outside"}, "outside": {"in"}}  # fmt: skip
TAXONOMIES = listed("person bird cat dog horse sheep cow bear")
"""COCO's classes that hold all that they name: where there is no dog there is no puppy."""


@dataclass
class Known:
    """What facts say of a picture, sorted for claims to be looked up in."""

    things: dict[str, Found] = field(default_factory=lambda: defaultdict(list))
    absent: dict[str, Found] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, dict[int, Found]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    looks: dict[str, dict[str, Found]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    not_looks: dict[str, dict[str, Found]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    places: dict[tuple[str, str], dict[str, Found]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    not_places: dict[tuple[str, str], dict[str, Found]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))


def by_facts(found: Sequence[Claim], facts: Sequence[Fact], words: Lexicon | None = None) -> list[Verdict]:
    """A verdict for each claim, in their order. The probability is how sure the facts are that decided; 0.5 where none does."""
    words = words or lexicon()
    known = _known(tuple(facts), words)
    return [_verdict(claim, known, words) for claim in found]


# ---- facts as claims -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _known(facts: tuple[Fact, ...], words: Lexicon) -> Known:
    known = Known()
    for fact in facts:
        shown = f"{fact.kind}: {' '.join(fact.text.split())}" + (f" ({fact.source})" if fact.source else "")
        for claim in stated(fact, words):
            _add(known, claim, (shown, fact.confidence))
    return known


def stated(fact: Fact, words: Lexicon) -> Iterator[Claim]:
    """The claims that a fact makes; none for what can only be read, and for what it only thinks possible."""
    if fact.kind == "ocr":
        return
    text = fact.text
    if fact.kind == "qa":
        text = _answered(text)
    made = [claim for claim in claims(text, words) if not claim.hedged]
    if fact.kind == "absent":
        if described := [c for c in made if c.kind == "attribute"]:  # no red car is there: of another colour there may be one
            yield from (replace(claim, negated=True) for claim in described)
            return
        nouns = [c.subject for c in made if c.kind == "object"] or [words.named(_singular(text, words))]
        yield from (Claim("object", noun, negated=True) for noun in nouns[-1:])
        return
    if fact.kind == "object" and not any(c.kind == "object" for c in made):
        made = [Claim("object", words.named(_singular(text, words)))]
    if fact.kind in ("attribute", "count") and not any(c.kind == fact.kind for c in made):
        made += _beside(fact, made)
    yield from made


def _beside(fact: Fact, made: Sequence[Claim]) -> list[Claim]:
    """The value of `dog: brown`, `dogs 2`: what a text of two parts has beside its noun."""
    if len(made) != 1 or made[0].kind != "object":
        return []
    start, end = made[0].span
    value = f"{fact.text[:start]} {fact.text[end:]}".lower().strip(" :=,.-")
    if fact.kind == "count":
        number = number_of(value)
        return [] if number is None else [replace(made[0], kind="count", value=str(number))]
    return [replace(made[0], kind="attribute", value=value)] if value.replace(" ", "").isalpha() else []


def _singular(text: str, words: Lexicon) -> str:
    head, space, last = " ".join(text.lower().split()).rpartition(" ")
    one = words.singular(last)
    return f"{head}{space}{one[0] if one else last}"


_IS_THERE = re.compile(r"(?:is|are) there (.+?)\?\s*(yes|no)\b.*", re.IGNORECASE | re.DOTALL)
_HOW_MANY = re.compile(r"how many (.+?) (?:are|can|do|is)\b.*?\?\s*(?:there (?:are|is) )?(\w+)\b.*", re.IGNORECASE | re.DOTALL)
_COLOUR = re.compile(r"what colou?r (?:is|are) (.+?)\?\s*(.+)", re.IGNORECASE | re.DOTALL)


def _answered(text: str) -> str:
    """A question and its answer as a statement; only the answer where the question is of no known form."""
    text = " ".join(text.split())
    if m := _IS_THERE.fullmatch(text):
        what = re.sub(r"^(?:an?|any|some) ", "", m[1], flags=re.IGNORECASE)
        return f"There is {'a' if m[2].lower() == 'yes' else 'no'} {what}."
    if m := _HOW_MANY.fullmatch(text):
        return f"There are {m[2]} {m[1]}."
    if m := _COLOUR.fullmatch(text):
        return m[2] if len(m[2].split()) > 3 else f"{m[1]} is {m[2].strip('. ').lower()}."
    return text.rpartition("?")[2]


def _add(known: Known, claim: Claim, said: tuple[str, float]) -> None:
    noun = claim.subject
    if claim.kind == "object":
        (known.absent if claim.negated else known.things)[noun].append(said)
    elif claim.kind == "count" and not claim.negated:
        known.counts[noun][int(claim.value)].append(said)
    elif claim.kind == "attribute":
        (known.not_looks if claim.negated else known.looks)[noun][_value(claim.value)].append(said)
    elif claim.kind == "relation":
        how = SAME_RELATION.get(claim.relation, claim.relation)
        places = known.not_places if claim.negated else known.places
        places[noun, claim.target][how].append(said)
        if how in INVERSE:
            places[claim.target, noun][INVERSE[how]].append(said)


# ---- verdicts ------------------------------------------------------------------------------------------------------------


def _verdict(claim: Claim, known: Known, words: Lexicon) -> Verdict:
    judge = {"object": _object, "attribute": _attribute, "count": _count, "relation": _relation}[claim.kind]
    for_, against = judge(claim, known, words)
    if claim.negated:
        for_, against = against, for_
    if for_ and against:
        return Verdict(claim, "unknown", f"facts disagree: {for_[0][0]}; {against[0][0]}", 0.5)
    if for_:
        return Verdict(claim, "supported", for_[0][0], max(sure for _, sure in for_))
    if against:
        return Verdict(claim, "contradicted", against[0][0], 1 - max(sure for _, sure in against))
    return Verdict(claim, "unknown", "", 0.5)


def _is_a(kind: str, noun: str, words: Lexicon) -> bool:
    """Whether what is called `kind` may be called `noun`: a puppy a dog, a coffee table a table, and no hot dog a dog."""
    if kind == noun:
        return True
    if noun in words.category and words.category[noun] == noun and words.of_coco(kind) == noun:
        return True
    if not kind.endswith(f" {noun}") or kind in words.sets["no category"]:
        return False
    return words.of_coco(kind) in ("", words.of_coco(noun))


def _of(table: dict[str, Found], noun: str, words: Lexicon) -> Found:
    return [said for kind, found in table.items() if _is_a(kind, noun, words) for said in found]


def _missing(noun: str, known: Known, words: Lexicon) -> Found:
    """Facts by which there is no such thing."""
    found = [said for gone, facts in known.absent.items() if _gone(noun, gone, words) for said in facts]
    return found + [said for counted, facts in known.counts.items() if counted == noun for said in facts.get(0, [])]


def _gone(noun: str, gone: str, words: Lexicon) -> bool:
    return noun == gone or (words.of_coco(noun) == gone in TAXONOMIES and _is_a(noun, gone, words))


def _object(claim: Claim, known: Known, words: Lexicon) -> tuple[Found, Found]:
    return _of(known.things, claim.subject, words), _missing(claim.subject, known, words)


def _count(claim: Claim, known: Known, words: Lexicon) -> tuple[Found, Found]:
    number = int(claim.value)
    counts = known.counts.get(claim.subject, {})
    against = [said for n, found in counts.items() if n != number for said in found]
    if number and not _of(known.things, claim.subject, words):
        against += _missing(claim.subject, known, words)
    return counts.get(number, []), against


def _one(noun: str, known: Known) -> bool:
    """Whether facts know of no second thing of that name."""
    return not any(number > 1 for number in known.counts.get(noun, {}))


def _value(value: str) -> str:
    for shade in ("light ", "dark ", "bright ", "pale ", "deep "):
        value = value.removeprefix(shade)
    return SAME_VALUE.get(value, value)


def rivals(value: str, groups: Sequence[Set[str]] = (COLOURS, MATERIALS, *OPPOSED)) -> set[str]:
    """Values of its groups that a thing that has this one has not."""
    same = {value}.union(*(names for names in ALIKE if value in names))
    return {other for group in groups if value in group for other in group} - same


def _attribute(claim: Claim, known: Known, words: Lexicon) -> tuple[Found, Found]:
    value = _value(claim.value)
    looks = [table for kind, table in known.looks.items() if _is_a(kind, claim.subject, words)]
    for_ = [said for table in looks for said in table.get(value, [])]
    against = list(known.not_looks.get(claim.subject, {}).get(value, []))
    if claim.subject in known.looks and _one(claim.subject, known) and not for_:
        own = known.looks[claim.subject]
        against += [said for rival in rivals(value) for said in own.get(rival, [])]
    elif for_ and 1 in known.counts.get(claim.subject, {}) and value in COLOURS | MATERIALS:
        # One thing that two facts give two colours: they disagree, unless one of them says both.
        texts = {text for text, _ in for_}
        against += [s for rival in rivals(value) for s in known.looks[claim.subject].get(rival, []) if s[0] not in texts]
    if not _of(known.things, claim.subject, words):
        against += _missing(claim.subject, known, words)
    return for_, against


def _relation(claim: Claim, known: Known, words: Lexicon) -> tuple[Found, Found]:
    how = SAME_RELATION.get(claim.relation, claim.relation)
    here: dict[str, Found] = defaultdict(list)
    for (a, b), places in known.places.items():
        if _is_a(a, claim.subject, words) and _is_a(b, claim.target, words):
            for relation, found in places.items():
                here[relation] += found
    against = list(known.not_places.get((claim.subject, claim.target), {}).get(how, []))
    if _one(claim.subject, known) and _one(claim.target, known):
        against += [
            said for other in EXCLUDES.get(how, ()) for said in known.places.get((claim.subject, claim.target), {}).get(other, [])
        ]
    for noun in (claim.subject, claim.target):
        if not _of(known.things, noun, words):
            against += _missing(noun, known, words)
    return here.get(how, []), against
