"""What verbs, participles and adjectives do to a sentence: who acts, how things look, what is denied or doubted after all."""

from __future__ import annotations

from mmrlhf.claims.choosing import base_of
from mmrlhf.claims.grammar import ALIVE, LITTERED, PAINTED, POSTURES, SEEMING, SEEN
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
    if s.actor and all(p.no for p in s.actor) and s.actor[0].it is None:
        s.denied = 10**9
    if s.deny == "neither":
        s.denied = 10**9
    s.deny = ""
    s.verb, s.verb_at, s.finite = word, i, True
    s.group, s.role = [], "verb"


def participle(made: Made, i: int, tag: str, word: str, previous: str, after: str, tags: str, end: int) -> None:
    s, t = made.s, made.t
    s.place = None
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
    if word in SEEN and made.is_denied(i):
        for p in s.actor:
            made.deny(p)
    elif word in SEEN and s.doubt and s.doubt_at < i and i - s.doubt_at <= 3:
        for p in s.actor:
            made.doubt(p)
    if tag == "E":
        k = i + 1
        if word in PAINTED or (previous in "BCN,R" and word == "made"):
            if word == "made":
                k += tags[k : k + 1] in ("F", "A")
            while k < end and (
                tags[k] == "R" or (word == "made" and tags[k] == "J" and t.words[k] not in made.lexicon.sets["materials"])
            ):
                k += 1
            solid = tags[k + 1 : k + 2] not in ("N", "X", "U") or t.words[k] in ("stainless", "wrought", "cast")
            if word == "made" and not solid:
                k = end
            if (
                k < end
                and (t.looks[k] or t.words[k] in made.lexicon.sets["materials"])
                and (tags[k] == "J" or (tags[k] == "N" and word == "made"))
            ):
                value = t.words[k]
                if (tags[k + 1 : k + 2] == "J" and t.words[k] in ("light", "dark", "bright", "pale")) or value in (
                    "stainless",
                    "wrought",
                    "cast",
                ):
                    value = f"{value} {t.words[k + 1]}"
                for p in s.actor:
                    made.look(p, value, i if word in PAINTED else k, k + value.count(" ") + 1)
                if word == "made":
                    for j in range(k, k + value.count(" ") + 1):
                        t.tags[j] = "X"
                        t.nouns[j] = "material"
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


def lives(made: Made, p: Phrase) -> bool:
    return made.lexicon.of_coco(p.thing.name) in ALIVE


def adjective(made: Made, i: int, word: str, previous: str, after: str, tags: str, end: int) -> None:
    """One that stands by itself: `is brown and large`."""
    s, t = made.s, made.t
    if word in SEEN or word in ("absent", "missing"):
        if made.is_denied(i) or word in ("absent", "missing"):
            for p in s.actor:
                made.deny(p)
        elif s.doubt and i - s.doubt_at <= 3:
            for p in s.actor:
                made.doubt(p)
        return
    if s.verb_at < 0 or not t.looks[i] or not s.actor or (after == "W" and s.actor[0].it is not None):
        return  # also of `it is not clear what ...`
    base = s.verb
    link = base in ("is", "are", "was", "were", "be", "been", "'s", "'re") or base_of(base) in (
        "look",
        "appear",
        "seem",
        "remain",
        "stay",
        "become",
    )
    if not link or s.role == "with" or (previous in "NHVDZ" and previous != "V"):
        return
    if previous in "P" or (s.group is not s.actor and s.role in ("object", "target")):
        return
    if i > 0 and tags[i - 1] == "J" and t.words[i - 1] in ("light", "dark", "bright", "pale", "deep"):
        return
    value, stop = word, i + 1
    if word in ("light", "dark", "bright", "pale", "deep") and tags[i + 1 : i + 2] == "J" and i + 1 < end:
        value, stop = f"{word} {t.words[i + 1]}", i + 2
    for p in s.actor:
        made.look(p, value, i, stop)
