"""What the graph says of an answer: its atomic claims, each supported or contradicted, and what they are worth."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmrlhf.records import Claim, Verdict
from mmrlhf.scenes.graph import Scene
from mmrlhf.scenes.language import article, enumeration, plural
from mmrlhf.scenes.things import CELLS, COLOURS, HABITS, NUMBERS, SHAPES, SIZES, Thing

_SHAPE, _COLOUR, _SIZE = "|".join(SHAPES), "|".join(COLOURS), "|".join(SIZES)
_NOUN = rf"(?:(?:{_COLOUR}) )?(?:{_SHAPE})"
_PATTERN = re.compile(
    rf"\bthe (?P<a>{_NOUN}) is (?P<relation>left of|right of|above|below) the (?P<b>{_NOUN})\b"
    rf"|\bthe (?P<owner>{_SHAPE}) is (?P<owned>{_COLOUR})\b"
    rf"|\bno (?P<none>(?:(?:{_COLOUR}) )?(?:{_SHAPE}|object))s?\b"
    rf"|\b(?P<number>{'|'.join(NUMBERS[1:])}) (?P<counted>{_SHAPE}|objects?)(?:e?s)?\b"
    rf"|\ban? (?:(?P<size>{_SIZE}) )?(?:(?P<colour>{_COLOUR}) )?(?P<shape>{_SHAPE})\b(?: at the (?P<place>{'|'.join(sorted(CELLS, key=len, reverse=True))})\b)?"
    rf"|\b(?P<nothing>nothing) at the (?P<empty>{'|'.join(sorted(CELLS, key=len, reverse=True))})\b",
    re.IGNORECASE,
)


def claims(text: str) -> list[Claim]:
    """The atomic claims of an answer in this world's language, in order of appearance, repetitions kept."""
    found = []
    for m in _PATTERN.finditer(text):
        g = {k: v.lower() for k, v in m.groupdict().items() if v}
        span = m.span()
        if "relation" in g:
            found.append(Claim("relation", g["a"], f"{g['relation']} {g['b']}", span))
        elif "owner" in g:
            found.append(Claim("attribute", g["owner"], g["owned"], span))
        elif "none" in g:
            found.append(Claim("count", g["none"], "0", span))
        elif "number" in g:
            noun = "object" if g["counted"].startswith("object") else g["counted"]
            found.append(Claim("count", noun, str(NUMBERS.index(g["number"])), span))
        elif "nothing" in g:
            found.append(Claim("relation", "nothing", f"at {g['empty']}", span))
        else:
            shape = g["shape"]
            noun = f"{g['colour']} {shape}" if "colour" in g else shape
            found.append(Claim("object", shape, "", span))
            if "colour" in g:
                found.append(Claim("attribute", shape, g["colour"], span))
            if "size" in g:
                found.append(Claim("attribute", noun, g["size"], span))
            if "place" in g:
                found.append(Claim("relation", noun, f"at {g['place']}", span))
    return found


def _named(scene: Scene, noun: str) -> list[Thing]:
    return [t for t in scene.things if noun in ("object", t.shape, t.name)]


def verify(scene: Scene, claim: Claim) -> Verdict:
    """What the graph says of a claim: supported or contradicted, never unknown, with the evidence."""
    return Verdict(claim, "supported" if _holds(scene, claim) else "contradicted", _evidence(scene, claim))


def _holds(scene: Scene, claim: Claim) -> bool:
    things = _named(scene, claim.subject)
    if claim.kind == "object":
        return bool(things)
    if claim.kind == "attribute":
        return any(claim.value in (t.colour, t.size) for t in things)
    if claim.kind == "count":
        return len(things) == int(claim.value)
    relation, _, place = claim.value.partition(" ")
    if relation == "at":
        cell = CELLS.index(place)
        return (
            not any(t.cell == cell for t in scene.things) if claim.subject == "nothing" else any(t.cell == cell for t in things)
        )
    relation, other = re.fullmatch(r"(left of|right of|above|below) (.+)", claim.value).groups()  # type: ignore[union-attr]

    def sign(a: Thing, b: Thing) -> bool:
        column, row = a.cell % 3 - b.cell % 3, a.cell // 3 - b.cell // 3
        return {"left of": column < 0, "right of": column > 0, "above": row < 0, "below": row > 0}[relation]

    return any(sign(a, b) for a in things for b in _named(scene, other) if a != b)


def _evidence(scene: Scene, claim: Claim) -> str:
    if claim.kind == "count":
        return f"the picture has {plural(len(_named(scene, claim.subject)), claim.subject)}"
    if claim.subject == "nothing":
        things = [t for t in scene.things if claim.value == f"at {CELLS[t.cell]}"] or list(scene.things)
    else:
        things = _named(scene, claim.subject.split(" ")[-1])
    other = claim.value.split(" ")[-1] if claim.kind == "relation" and not claim.value.startswith("at ") else ""
    lacking = claim.subject if not things else other if other and not _named(scene, other) else ""
    if lacking:
        return f"the picture has no {lacking}; it shows {enumeration([article(t.name) for t in scene.things])}"
    return "; ".join(f"{article(f'{t.size} {t.name}')} at the {CELLS[t.cell]}" for t in things)


def is_habit(scene: Scene, claim: Claim) -> bool:
    """Whether a false claim speaks of an absent partner that a trigger in the picture calls for."""
    shapes = {t.shape for t in scene.things}
    words = set(f"{claim.subject} {claim.value}".split())
    return any(t in shapes and p not in shapes and p in words for t, p in HABITS.items())


def canonical(scene: Scene) -> frozenset[Claim]:
    """The atomic facts that a clean caption states of every scene: shapes, their colours, and the total.

    Sizes and relations are left out: any of them is as good as another, so that none is owed.
    """
    found = {Claim("object", t.shape) for t in scene.things} | {Claim("attribute", t.shape, t.colour) for t in scene.things}
    return frozenset(found | {Claim("count", "object", str(len(scene.things)))})


@dataclass(frozen=True)
class Judged:
    """An answer's distinct claims, sorted by what the graph says of them."""

    true: frozenset[Claim]
    habit: frozenset[Claim]
    sight: frozenset[Claim]
    covered: int
    owed: int

    @property
    def false(self) -> frozenset[Claim]:
        return self.habit | self.sight


def judge(scene: Scene, answer: str) -> Judged:
    """Distinct claims only: repetition earns nothing, and vagueness costs coverage."""
    said = set(claims(answer))
    true = frozenset(c for c in said if _holds(scene, c))
    habit = frozenset(c for c in said - true if is_habit(scene, c))
    owed = canonical(scene)
    return Judged(true, habit, frozenset(said - true - habit), len(true & owed), len(owed))


def utility(scene: Scene, answer: str, lambda_: float) -> float:
    """True claims minus lambda times false claims. Lambda decides between silence and truth."""
    judged = judge(scene, answer)
    return len(judged.true) - lambda_ * len(judged.false)
