"""Who is where: a word of place finds its figures before it (or after, where it stands in front) and then its target."""

from __future__ import annotations

from mmrlhf.claims.choosing import stem
from mmrlhf.claims.grammar import (
    AGENTLESS,
    AIMING,
    BESIDE,
    BODY,
    CLOTHES,
    FILLED,
    GAZE,
    HAVING,
    LINKS,
    MARKS,
    MOST,
    MOVING,
    NOWHERE,
    OWNING,
    PLACED,
    ROOMS,
)
from mmrlhf.claims.made import Made
from mmrlhf.claims.phrases import Phrase


def where(made: Made, i: int, word: str, previous: str, after: str) -> None:
    """A place begins: who is there, as far as one can say yet."""
    s = made.s
    if s.verb in ("talking", "talks", "talk", "speaking", "chatting") and word in ("on", "over", "into") and previous in "VGER":
        s.place = None
        return
    if s.verb == "looking" and word in ("at", "towards", "toward", "out"):
        return
    if word in ("toward", "towards") and s.verb not in MOVING:
        s.place = None
        return
    if word in ("at", "toward", "towards", "on", "through", "over", "into", "around") and s.verb in GAZE and previous in "VGER":
        s.place = None
        return
    if s.verb in NOWHERE and previous in "VGE" and word in ("in", "on", "against", "with"):
        return
    if word == "by" and previous == "E" and s.verb not in AGENTLESS:
        return
    if word == "during" or not (s.group or s.actor):
        s.place = (word, i, [], True)
        return
    if previous in "VGEBRJOH?" and s.actor:
        figures = s.actor
    elif previous == "N" and s.role == "subject":
        figures = s.group
    elif previous == "N" and s.role == "object" and s.verb in OWNING:
        figures = s.group[-1:]
    elif previous == "N" and s.role == "with" and word in BESIDE and s.actor and s.group and s.group[-1].noun in CLOTHES:
        figures = s.actor  # a girl in a red dress beside a horse
    elif previous == "N" and s.role == "denied" and after != "Q":
        figures = s.actor or s.group  # a man without a hat on a beach
    elif previous == "N" and s.role == "target" and s.last is not None:
        upright = word in ("above", "below", "over", "under", "beneath", "underneath")
        figures = s.last[1] if word in BESIDE and not (upright and s.verb in LINKS) else s.group
    elif previous == ",":
        figures = s.actor or s.group
        if s.role == "target" and s.last is not None and word in BESIDE:
            figures = s.last[1]
    elif previous == "C":
        figures = s.last[1] if s.last is not None else s.actor
    elif previous in "NQ":
        figures = s.group or s.actor
    else:
        figures = s.actor or s.group
    s.place = (word, i, figures, previous in "C," and (after == "Q" or _leads(made.t.tags, i)))


def _leads(tags: list[str], i: int) -> bool:
    """Whether what is named after this word of place is followed by who is there: `and behind the car is a bus`."""
    k = i + 1
    while k < min(len(tags), i + 9) and tags[k] in "DJ#RKNXU":
        k += 1
    return tags[k : k + 1] in (["T"], ["B"])


def place(made: Made, p: Phrase) -> None:
    """A relation gets its target."""
    s = made.s
    assert s.place is not None or s.last is not None
    if s.place is None:
        return
    how, at, figures, front = s.place
    s.place = None
    if not p.name and p.it is None:
        if p.end < len(made.t.tags) and made.t.tags[p.end] == "F":
            s.place = (how, at, figures, front)
        elif figures:
            s.group, s.role, s.last = figures, "held", None
        else:
            s.group, s.role, s.last = [], "", None
        return
    if not figures or front:
        s.fronted = (how, [*(s.fronted[1][-MOST:] if s.fronted else []), p], at)
        s.group, s.role, s.last = [p], "target", None
        if front:
            s.verb_at, s.verb = -1, ""
        return
    thing = p.thing
    if how == "at" and s.role == "object" and stem(s.verb) in AIMING:
        return  # swings a racket at a ball
    if how == "in" and thing.noun in MARKS:
        return  # written in red letters
    spots = made.lexicon.sets["places"]
    if how.endswith(" side of"):  # of a table it is on it, of a man beside him
        how = "on" if thing.name in spots or thing.noun in spots or thing.noun in ROOMS else how.replace(" side", "")
    if how == "on" and thing.noun in ROOMS:
        how = "in"  # on the left side of the room
    if how == "in" and (thing.name in CLOTHES or thing.noun in CLOTHES):
        s.group, s.role = [p], "with"
        return
    spot = how in ("at", "past", "along", "across", "through", "down") or (
        how in PLACED and (thing.name in spots or thing.noun in spots)
    )
    acts = s.role == "object" and s.verb not in HAVING and s.actor and s.subject
    passed = (
        p.it is None and how in ("in front of", "behind", "near", "next to") and all(f.thing.name in spots for f in figures)
    )  # crosses the road in front of a bus
    if acts and (spot or passed) and thing.noun not in BODY:
        figures = s.actor  # a man eats an apple in the park: he is there; he holds it in his hand: it is
    if s.role == "with" and p.it is not None and s.actor and s.group:
        figures = s.group
    elif (
        s.role == "with"
        and s.verb in FILLED
        and len(s.subject) == 1
        and (how in PLACED or how == "at")
        and thing.noun not in BODY
    ):
        whole = s.subject[0].name  # a pizza with mushrooms on a plate
        figures = s.subject if whole not in spots and s.group and s.group[0].name != whole else figures
    made.relate(figures, how, p, at)
    s.group, s.role, s.last, s.it_at = [p], "target", (how, figures, at), p


def front(made: Made) -> None:
    """A relation that stood before its subject finds it."""
    s = made.s
    if s.fronted is None:
        return
    how, targets, at = s.fronted
    s.fronted = None
    for target in targets:
        made.relate(s.group, how, target, at)
