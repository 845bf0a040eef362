"""What a text is found to claim: phrases become claims, under what their sentence denies and doubts; and who pronouns stand for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from mmrlhf.claims.grammar import NEGATIVE, OTHER, PAIRED, RANK, SPORTS
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.phrases import Phrase
from mmrlhf.claims.tagging import Tokens
from mmrlhf.records import Claim

NEAR = 40
"""Claims that a phrase may still change."""


@dataclass(slots=True)
class State:
    """What a sentence has said so far."""

    subject: list[Phrase] = field(default_factory=list)
    actor: list[Phrase] = field(default_factory=list)
    """Who does what the latest verb says."""
    group: list[Phrase] = field(default_factory=list)
    """The latest phrases that `and` joins."""
    role: str = ""
    """What that group is: subject, object, target, with."""
    verb: str = ""
    verb_at: int = -1
    finite: bool = False
    place: tuple[str, int, list[Phrase], bool] | None = None
    """A relation that waits for its target: how, where, figures, whether it stands before its subject."""
    fronted: tuple[str, list[Phrase], int] | None = None
    last: tuple[str, list[Phrase], int] | None = None
    """The latest relation and its figures, for targets that `and` adds."""
    denied: int = -1
    """Before this token everything indefinite is denied."""
    deny: str = ""
    it_at: Phrase | None = None
    """The latest target."""
    owner: Phrase | None = None
    """What the latest `with` says something of."""
    doubt: bool = False
    doubt_at: int = -9
    relative: bool = False
    outer: list[Phrase] | None = None


class Made:
    """The claims of a text, as they are found."""

    def __init__(self, t: Tokens, words: Lexicon) -> None:
        self.t, self.lexicon, self.s = t, words, State()
        self.found: list[tuple[int, int, Claim]] = []
        self.it: Phrase | None = None
        self.who: Phrase | None = None
        self.they: Phrase | None = None
        self.others: set[str] = set()
        """Nouns of which there is another."""
        self.named: set[str] = set()
        self._subject_it = False

    def claims(self) -> list[Claim]:
        counted = {(c.subject, c.value) for _, _, c in self.found if c.kind == "count"}
        parts = {noun for noun, value in counted if value != "1"} | self.others
        words, tags = self.t.words, self.t.tags
        rest = "other" in words and any(
            word == "other" and tags[k + 1 : k + 2] not in (["N"], ["J"]) for k, word in enumerate(words)
        )  # one ..., the other ...
        found = [
            claim
            for _, _, claim in sorted(self.found, key=itemgetter(0, 1))
            if not (
                claim.kind == "count" and claim.value == "1" and (rest or claim.subject in parts)
            )  # one of them, and no number of all
        ]
        return list(dict.fromkeys(found))

    def is_denied(self, at: int) -> bool:
        return at < self.s.denied

    def denied(self, p: Phrase) -> bool:
        return p.no or (self.is_denied(p.start) and not p.definite and self.s.verb_at >= 0 and p.it is None)

    def _maybe(self, p: Phrase) -> bool:
        s = self.s
        if not s.doubt:
            return False
        if p.definite and not (p.start == s.doubt_at + 1 and s.doubt_at > 0 and self.t.tags[s.doubt_at - 1] in ",B"):
            return False
        return p.start > s.doubt_at

    def name(self, p: Phrase) -> None:
        """The claims that a phrase makes by itself: that it is there, how many, how it looks."""
        t, s = self.t, self.s
        words = t.words
        if words[p.end - 1] in NEGATIVE:
            p.no = True
        if p.bare and not p.many and (p.name in SPORTS or p.name == "light"):
            p.name = ""
        if not p.name:
            return
        if p.start < s.denied and s.place is None and self.denied(p):
            p.no = True
        if p.start < p.head and not OTHER.isdisjoint(words[p.start : p.head]):
            if p.name in self.named:
                p.count = None  # two more, and not two of them all
            self.others.add(p.name)
        self.named.add(p.name)
        hedged = self._maybe(p)
        if (words[p.start - 1] == "or" and t.tags[p.start - 1] == "C" and p.start and not p.no and s.group and s.role != "") or (
            words[p.end : p.end + 1] == ["or"] and not p.no and t.tags[p.end + 1 : p.end + 2] and t.tags[p.end + 1][0] in "DNJ#"
        ):
            hedged = True
        self._claim("object", p, p.head, p.end, negated=p.no, hedged=hedged)
        if p.count == 1 and p.no:
            p.count = None  # not a single one
        if (
            p.count is not None
            and not (p.count == 2 and p.noun in PAIRED and words[p.counted_at] == "pair")
            and p.name not in self.lexicon.sets["plural only"]
        ):
            self._claim("count", p, p.counted_at, p.end, value=str(p.count), negated=p.no, hedged=hedged or p.about)
        for value, at in p.looks:
            self._claim("attribute", p, at, p.end, value=value, negated=p.no, hedged=hedged)
        self._remember(p)

    def count(self, p: Phrase, stop: int) -> None:
        """How many there are, where the number stands behind."""
        self._claim("count", p, p.start, stop, value=str(p.count), negated=p.no, hedged=False)

    def _remember(self, p: Phrase) -> None:
        category = self.lexicon.of_coco(p.name)
        subject = self.s.verb_at < 0 or not self.s.subject
        if category == "person":
            if subject or self.who is None:
                self.who = p
        elif p.no:
            return
        elif not p.many and (subject or self.it is None or not self._subject_it):
            self.it = p
            self._subject_it = subject
        if p.many and (subject or self.they is None):
            self.they = p

    def _claim(
        self, kind: Any, p: Phrase, start: int, stop: int, value: str = "", relation: str = "", target: str = "",
        *, negated: bool, hedged: bool,
    ) -> None:  # fmt: skip
        t, name = self.t, p.thing.name
        span = (t.starts[start], t.ends[stop - 1])
        claim = Claim(kind, name, value, span, relation, target, negated, hedged, self.lexicon.of_coco(name))
        self.found.append((t.starts[p.head], RANK[kind], claim))

    def look(self, p: Phrase, value: str, at: int, stop: int) -> None:
        if not p.thing.name:
            return
        start, end = min(p.start if p.it else p.head, at), max(p.end, stop)
        self._claim(
            "attribute",
            p,
            start,
            end,
            value=value,
            negated=p.no or self.is_denied(at) or self.s.deny == "word",
            hedged=self.s.doubt and at > self.s.doubt_at,
        )

    def relate(self, figures: list[Phrase], how: str, target: Phrase, at: int) -> None:
        s = self.s
        to = target.thing
        if not to.name:
            return
        for p in figures:
            thing = p.thing
            if not thing.name or thing is to or (thing.name == to.name and (p.it or target.it)):
                continue
            start, stop = min(p.head, at, target.head), max(p.end, target.end)
            if stop - start > 40:
                start = min(at, target.head)
            negated = p.no or self.is_denied(at)
            hedged = s.doubt and (at > s.doubt_at or p.start > s.doubt_at)
            self._claim("relation", p, start, stop, relation=how, target=to.name, negated=negated, hedged=hedged)

    def deny(self, p: Phrase) -> None:
        """What was named is then said not to be there."""
        self._turn(p, {"negated": True})

    def doubt(self, p: Phrase) -> None:
        """What was named is then said to be there perhaps."""
        self._turn(p, {"hedged": True})

    def _turn(self, p: Phrase, mark: dict[str, Any]) -> None:
        where = self.t.starts[p.head]
        self.found[-NEAR:] = [
            (a, b, replace(c, **mark) if c.subject == p.thing.name and a <= where <= c.span[1] and p.it is None else c)
            for a, b, c in self.found[-NEAR:]
        ]
