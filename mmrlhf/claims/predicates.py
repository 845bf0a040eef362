"""What verbs, participles and adjectives do to a sentence: who acts, how things look, what is denied or doubted after all."""

from __future__ import annotations

from mmrlhf.claims.choosing import base_of
from mmrlhf.claims.grammar import ABSENT, AJAR, ALIVE, LITTERED, OWNING, PAINTED, POSTURES, SEEMING, SEEN, SHADES
from mmrlhf.claims.made import Made
from mmrlhf.claims.phrases import Phrase


def verb(made: Made, i: int, tag: str, word: str, previous: str, after: str, tags: str, end: int) -> None:
    s = made.s
    s.place = None
    if (
        tag == "V"
        and base_of(word) in SEEMING
        and not made.is_denied(i)
        and (after in "IJ" or (after == "R" and tags[i + 2 : i + 3] in ("I", "J", "E")))
    ):
        s.doubt, s.doubt_at = True, i
    if tag == "B" and word in ("be", "been", "being") and s.verb_at >= 0 and previous not in "C,":
        s.verb, s.verb_at = word, i
        return
    if tag == "V" and word in ("suggests", "suggest", "resembles", "resemble"):
        s.doubt, s.doubt_at = True, i
    if s.relative:
        s.relative = False
    elif s.outer is not None and (previous == "," or s.verb_at >= 0):
        s.actor = s.outer
        s.subject, s.outer = s.outer, None
        s.group, s.role = s.subject, "subject"
    elif s.role == "subject" and s.group:
        s.actor = s.subject = s.group
    elif s.role == "target" and s.fronted is None:
        s.actor = s.subject or s.actor
    elif previous in "C," or (s.role == "with" and s.subject):
        s.actor = s.subject
    if s.actor and s.actor[0].no and s.actor[0].it is None and all(p.no for p in s.actor):
        s.denied = 10**9
    if s.deny == "neither":
        s.denied = 10**9
    s.deny = ""
    s.verb, s.verb_at, s.finite = word, i, True
    s.group, s.role = [], "verb"


def participle(made: Made, i: int, tag: str, word: str, previous: str, after: str, tags: str, end: int) -> None:
    s, t = made.s, made.t
    s.place = None
    if word in AJAR and previous in "NRJ" and _had(made):
        made.look(s.group[-1], word, i, i + 1)
        return
    if s.relative:
        s.relative = False
    if (
        previous == "N"
        and s.role in ("with", "target", "object")
        and s.subject
        and s.group
        and word in POSTURES
        and lives(made, s.subject[0])
        and not lives(made, s.group[-1])
    ):
        s.actor = s.subject
    elif previous == "N" and s.group:
        s.actor = s.group if s.role == "subject" or (len(s.group) == 2 and s.role != "with") else s.group[-1:]
    elif previous == "," and s.subject and s.role != "subject":
        s.actor = s.subject
    elif previous == "," and s.group and not s.subject:
        s.actor = s.group
    if word in ("suggesting", "indicating", "implying", "resembling"):
        s.doubt, s.doubt_at = True, i
    if word in ABSENT or (word in SEEN and made.is_denied(i)):
        for p in s.actor:
            made.deny(p)
    elif word in SEEN and s.doubt and s.doubt_at < i and i - s.doubt_at <= 3:
        for p in s.actor:
            made.doubt(p)
    if tag == "E":
        if word in PAINTED:
            _coloured(made, i, tags, end)
        elif word == "made" and previous in "BCN,RO":
            _made_of(made, i, tags, end)
        elif (
            (
                previous in "BRC"
                and t.looks[i]
                and after != "I"
                and (after not in "PAR" or (after == "A" and word in LITTERED) or (after == "P" and word in ("closed", "broken")))
            )
            and s.verb_at >= 0
            and t.words[s.verb_at] in ("is", "are", "was", "were", "be", "'s")
        ):
            for p in s.actor:
                made.look(p, word, i, i + 1)
    s.verb, s.verb_at = word, i
    s.group, s.role = [], "verb"


def _coloured(made: Made, i: int, tags: str, end: int) -> None:
    """`painted light blue and white`."""
    t, k = made.t, i + 1
    while k < end and tags[k] == "R":
        k += 1
    while k < end and tags[k] == "J" and (t.looks[k] or t.words[k] in SHADES):
        shade = t.words[k] in SHADES and tags[k + 1 : min(k + 2, end)] == "J"
        for p in made.s.actor:
            made.look(p, " ".join(t.words[k : k + 1 + shade]), i, k + 1 + shade)
        k += 1 + shade
        last = k + 1 + (t.words[k + 1 : k + 2] != [] and t.words[k + 1] in SHADES)  # the next colour's last word
        if (
            tags[k : k + 1] not in ("C", ",")
            or tags[k + 1 : last + 1].strip("J")
            or tags[last + 1 : last + 2] in ("N", "X", "U", "J")
        ):
            return
        k += 1


def _made_of(made: Made, i: int, tags: str, end: int) -> None:
    """`made of dark wood and metal`: materials, which are no things then."""
    t, materials = made.t, made.lexicon.sets["materials"]
    k = i + 2 if tags[i + 1 : i + 2] in ("F", "A") else end
    while k < end:
        while k < end and tags[k] in "RJ" and t.words[k] not in materials:
            k += 1
        stop = k + 1 + (t.words[k : k + 1] in (["stainless"], ["wrought"], ["cast"]) and k + 1 < end)
        value = " ".join(t.words[k:stop])
        if k >= end or value not in materials or tags[stop : min(stop + 1, end)] in ("N", "X", "U"):
            return
        for p in made.s.actor:
            made.look(p, value, k, stop)
        for j in range(k, stop):
            t.tags[j], t.nouns[j] = "X", "material"
        k = stop + 1 if tags[stop : stop + 1] in ("C", ",") else end


def lives(made: Made, p: Phrase) -> bool:
    return made.lexicon.of_coco(p.thing.name) in ALIVE


def _had(made: Made) -> bool:
    """Whether the latest phrase is what somebody has, and no subject: with his mouth (open)."""
    s = made.s
    owned = s.role == "with" or (s.role == "object" and s.verb in OWNING)
    return owned and bool(s.group) and s.group[-1].definite


def adjective(made: Made, i: int, word: str, previous: str, after: str, tags: str, end: int) -> None:
    """One that stands by itself: `is brown and large`."""
    s, t = made.s, made.t
    if word in SEEN or word in ABSENT:
        if made.is_denied(i) or word in ABSENT:
            for p in s.actor:
                made.deny(p)
            if word == "nowhere":
                s.denied = 10**9
        elif s.doubt and i - s.doubt_at <= 3:
            for p in s.actor:
                made.doubt(p)
        return
    if word in AJAR and previous in "NRJ" and _had(made):
        made.look(s.group[-1], word, i, i + 1)
        return
    if (
        s.verb_at < 0
        or not (t.looks[i] or word in SHADES)
        or not s.actor
        or (after == "W" and s.actor[0].it is not None)
        or t.words[i + 1 : i + 2] == ["than"]
    ):
        return  # also of `it is not clear what ...`
    base = s.verb
    link = base in ("is", "are", "was", "were", "be", "been", "'s", "'re") or base_of(base) in (
        "look",
        "appear",
        "seem",
        "remain",
        "stay",
        "become",
        *(("sit", "stand", "lie", "hang") if word in AJAR or word in ("empty", "upright") else ()),
    )
    if not link or s.role == "with" or (previous in "NHVDZ" and previous != "V"):
        return
    if previous in "P" or (s.group is not s.actor and s.role in ("object", "target")):
        return
    if i > 0 and tags[i - 1] == "J" and t.words[i - 1] in SHADES:
        return
    value, stop = word, i + 1
    if word in SHADES and tags[i + 1 : i + 2] == "J" and i + 1 < end:
        value, stop = f"{word} {t.words[i + 1]}", i + 2
    elif not t.looks[i]:
        return
    for p in s.actor:
        made.look(p, value, i, stop)
