"""From a text to its claims: who is where, what there is not, what may be.

One pass over the phrases of each sentence, left to right, that remembers the subject, what the verb did, and what is being denied.
"""

from __future__ import annotations

from mmrlhf.claims.choosing import tagged
from mmrlhf.claims.grammar import (
    DENYING,
    DEPICTIONS,
    EXCEPTING,
    GAZE,
    LINKS,
    MEASURES,
    MOST,
    OWNERS,
    PICTURES,
    ROUGHLY,
    SIGNS,
)
from mmrlhf.claims.lexicon import Lexicon, lexicon
from mmrlhf.claims.made import Made, State
from mmrlhf.claims.phrases import ITEM, Phrase, goes_on, is_hung, number_of, phrase
from mmrlhf.claims.places import front, place, where
from mmrlhf.claims.predicates import adjective, lives, participle, verb
from mmrlhf.claims.tagging import sentences
from mmrlhf.records import Claim


def claims(text: str, words: Lexicon | None = None) -> list[Claim]:
    """The visual claims of an English text, each distinct one once, in the order in which they are made.

    A text in another language, code or a question claims nothing.
    """
    reader = _Reader(text, words or lexicon())
    reader.read()
    return reader.made.claims()


class _Reader:
    """Goes over one text."""

    def __init__(self, text: str, words: Lexicon) -> None:
        self.lexicon = words
        self.t = tagged(text, words)
        self.made = Made(self.t, words)

    @property
    def s(self) -> State:
        return self.made.s

    def read(self) -> None:
        t = self.t
        tags = "".join(t.tags)
        for begin, end in sentences(t, tags):
            self.made.s = State()
            self._sentence(tags, begin, end)

    # ---- the pass ------------------------------------------------------------------------------------------------------

    def _sentence(self, tags: str, begin: int, end: int) -> None:
        t, words = self.t, self.t.words
        waiting: Phrase | None = None  # a phrase before `of` that is none itself
        whole: Phrase | None = None  # the phrase that `of` goes on with
        owner: Phrase | None = None  # whose
        previous = "."
        joined = False  # after a comma or `and`
        done = begin  # tokens before this one
        for m in ITEM.finditer(tags, begin, end):
            i, stop = m.span()
            if i < done:
                continue
            if m.lastgroup == "np":
                p = phrase(t, i, stop, self.lexicon)
                after = tags[stop] if stop < end else "."
                if p.noun in PICTURES and not p.name and not p.definite and is_hung(words, begin, i, end):
                    p.name = p.noun  # a thing on the wall, and not what is looked at
                if waiting is not None:
                    if waiting.count and not p.count and (waiting.noun in ("couple", "dozen", "pair") or waiting.noun == ""):
                        p.count, p.counted_at, p.start, p.about = waiting.count, waiting.counted_at, waiting.start, waiting.about
                    p.no, p.bare = p.no or waiting.no, p.bare and waiting.bare
                    if waiting.no:
                        p.definite = False
                    if waiting.noun == "none":
                        self.s.denied = 10**9
                    waiting = None
                if after == "F" and self._is_measure(p):
                    if p.noun in ("couple", "pair"):
                        p.count, p.counted_at = 2, stop - 1
                    elif p.noun != "dozen":
                        p.count = None
                    waiting = p
                    done, previous = stop + 1, "F"
                    continue
                if after == "S":
                    self.made.name(p)
                    owner = p
                    done, previous = stop + 1, "S"
                    continue
                if previous == "F" and whole is not None:
                    self._of(p, whole)
                else:
                    self._phrase(p, previous, joined, after, owner)
                owner = None
                whole = p if after == "F" else None
                previous, joined = "N", False
                continue
            tag, word = tags[i], words[i]
            after = tags[stop] if stop < end else "."
            if tag == "W":
                waiting = None  # two of whom
            if tag == "#" and after == "F":
                waiting = Phrase(i, i, i + 1, "", "", True, False, False)
                number = number_of(word)
                if words[i + 2 : i + 3] not in (["the"], ["these"], ["those"], ["them"]):
                    waiting.count, waiting.counted_at = number, i
                done, previous = i + 2, "F"
                continue
            if tag == "Q":
                self._pronoun(i, word, previous, after)
            elif tag in "PC,YWLOBHVGE?AI:J":
                self._mark(i, tag, word, previous, after, tags, end)
            if tag in "C," or word == "nor":
                joined = True
            elif tag not in "RD?":
                joined = False
            if tag != "R" or previous == ".":
                previous = tag
            if tag != "F":
                whole = None

    def _is_measure(self, p: Phrase) -> bool:
        noun = p.noun
        if not p.name or (p.no and p.name in SIGNS):
            return True
        return noun in MEASURES or noun == "couple"

    def _of(self, p: Phrase, whole: Phrase) -> None:
        """`of` what: the cup of coffee has coffee, the statue of a lion no lion."""
        if whole.noun in DEPICTIONS or whole.noun in PICTURES:
            return
        if whole.no or self.made.denied(whole):
            p.no = p.no or (not p.definite and whole.no)
        self.made.name(p)
        if self.s.role == "target" and not whole.name:
            place(self.made, p)

    # ---- phrases -------------------------------------------------------------------------------------------------------

    def _phrase(self, p: Phrase, previous: str, joined: bool, after: str, owner: Phrase | None) -> None:
        s, t = self.s, self.t
        if owner is not None:
            p.definite = True
            if p.noun in ("color", "colour"):
                p.it = owner  # its colour is its own
        if (
            t.words[p.head] in ("camera", "viewer", "photographer")
            and p.definite
            and previous in "PIA"
            and (s.verb in GAZE or s.verb in ("posing", "poses", "pose", "facing", "faces"))
        ):
            s.place = None
            return
        if p.name in ("camera",) and p.definite and s.verb in ("facing", "faces"):
            return
        clause = s.finite and (
            after in "BHMV"
            or (
                after == ","
                and p.definite
                and t.tags[p.start - 2 : p.start] == [",", "C"]
                and t.tags[p.end + 1 : p.end + 2] == ["W"]
            )
        )
        if s.role == "denied" and s.place is not None:
            s.role, s.deny = "", ""  # without a hat on a beach
        instead = joined and previous != "L" and t.words[p.start - 1] in ("only", "just")
        if instead:
            s.deny, s.denied, s.role = "", -1, ""  # no books, only jars
        if t.words[p.start] in ("many", "much") and self.made.is_denied(p.start):
            s.denied = -1  # not many are some
        if s.deny:
            # `not a dog`, `without a hat`, `neither a car`: the phrases that follow, as long as `or` goes on with them
            if (
                joined
                and previous != "L"
                and not (previous in "C," and (p.bare or p.no or t.words[p.start] in ("any", "a", "an")))
            ):
                s.deny = ""
            elif not p.definite:
                p.no = True
        elif (
            joined
            and not instead
            and s.group
            and s.group[-1].no
            and not p.definite
            and (p.bare or p.no or t.words[p.start] == "any")
            and after not in "BHMV"
        ):
            p.no = True
        if (
            s.verb in LINKS
            and s.actor
            and p.bare
            and not joined
            and p.end - p.head <= 2
            and t.words[p.end - 1] in self.lexicon.sets["materials"]
            and s.place is None
        ):
            for q in s.actor:
                self.made.look(q, " ".join([*(v.split(" ")[0] for v, _ in p.looks), t.words[p.end - 1]]), p.start, p.end)
            return
        if (
            s.verb in LINKS
            and s.actor
            and not joined
            and s.place is None
            and not p.no
            and p.name
            and p.name == s.actor[0].thing.name
            and p.start > s.verb_at
        ):
            for value, at in p.looks:  # the dog is a young dog
                self.made.look(s.actor[0], value, at, p.end)
            return
        self.made.name(p)
        if s.role == "denied" and s.place is None:
            s.group = [p]
            return
        if joined and after in "EJ" and t.words[p.start] in OWNERS and t.words[p.start - 1] == "," and t.looks[p.end]:
            self.made.look(p, t.words[p.end], p.end, p.end + 1)  # a laptop, its screen cracked, is
            s.group, s.role = s.subject, "subject"
            return
        thing = [p]
        if joined and previous == "?" and s.role in ("target", "object") and not p.definite:
            return  # another name for the phrase before
        if s.place is not None:
            place(self.made, p)
            return
        if joined and after in "BHMV" and not s.finite and s.subject and s.group and s.role != "subject":
            others = [lives(self.made, q) for q in (s.subject[-1], s.group[-1], p)]
            if others == [True, False, True]:  # a man in a hat and a woman are ...
                s.subject = s.actor = s.group = [*s.subject, p]
                s.role = "subject"
                return
        if joined and s.group and not clause:
            if s.role == "target" and s.last is not None:
                apart = len(s.group) == 1 and t.tags[max(0, p.start - 2) : p.start] == [",", "C"]
                alike = (p.manner == s.group[-1].manner or s.group[-1].it is not None) and not apart
                if after not in "GE" and alike:
                    how, figures, at = s.last
                    self.made.relate(figures, how, p, at)
                    s.group = [*s.group[-MOST:], p]
                    return
                s.group, s.role = thing, "object"
                return
            if s.role in ("subject", "object", "with"):
                s.group = [*s.group[-MOST:], p]
                if s.role == "subject":
                    s.subject = s.actor = s.group
                return
        if clause and joined:
            s.subject, s.actor, s.group, s.role, s.verb, s.verb_at = thing, thing, thing, "subject", "", -1
            s.denied, s.finite, s.last, s.it_at = -1, False, None, None
            front(self.made)
            return
        if s.verb_at >= 0:
            if (
                s.verb in ("is", "are", "was", "were", "be", "'s")
                and s.subject
                and s.role == "subject"
                and s.subject[0].it is None
                and not s.subject[0].name
                and not p.definite
            ):
                s.subject = s.actor = thing
            s.group, s.role = thing, "with" if s.role == "with" else "object"
            if s.fronted is not None:
                s.subject = s.actor = thing
                front(self.made)
            elif not s.subject:
                s.subject = s.actor = thing
            return
        s.subject, s.actor, s.group, s.role = thing, thing, thing, "subject"
        front(self.made)

    def _pronoun(self, i: int, word: str, previous: str, after: str) -> None:
        s = self.s
        if word in ("he", "she", "him", "her", "himself", "herself"):
            thing = self.made.who
        elif word in ("it", "itself", "this", "that"):
            thing = self.made.it
        elif word in ("they", "them", "themselves", "these", "those") or word == "none":
            thing = self.made.they or self.made.it
        else:
            thing = None
        p = Phrase(i, i, i + 1, "", word, word in ("they", "them"), True, False)
        if thing is not None:
            p.it, p.name, p.many = thing, "", thing.many
            p.no = thing.no
        if s.place is not None:
            figures = [] if s.place[3] else s.place[2]
            if word in ("it", "itself", "them") and s.last is not None:
                latest = [s.it_at] if s.it_at else []
                near = [*latest, *s.last[1]] if s.role == "with" else [*s.last[1], *latest]
                thing = next((q.thing for q in near if q.thing.name and all(q.thing is not f.thing for f in figures)), thing)
                p.it = thing
            elif word in ("it", "itself") and s.role == "with" and s.owner is not None and s.owner.name and not s.owner.no:
                thing = p.it = s.owner  # the room has a table with a vase on it
            if thing is not None:
                place(self.made, p)
            else:
                s.place = None
            return
        if s.verb_at >= 0 and after not in "BHMV":
            s.group, s.role = [p], "object"
            return
        if previous in ",C":
            s.denied, s.deny = -1, ""
        if word == "none":
            s.denied = 10**9
        s.subject = s.actor = s.group = [p]
        s.role, s.verb, s.verb_at, s.finite = "subject", "", -1, False

    # ---- small words ---------------------------------------------------------------------------------------------------

    def _mark(self, i: int, tag: str, word: str, previous: str, after: str, tags: str, end: int) -> None:
        s = self.s
        if tag == "P":
            where(self.made, i, word, previous, after)
        elif tag in "BHV":
            verb(self.made, i, tag, word, previous, after, tags, end)
        elif tag in "GE":
            participle(self.made, i, tag, word, previous, after, tags, end)
        elif tag == "J":
            adjective(self.made, i, word, previous, after, tags, end)
        elif tag == "O":
            if word == "not only":
                return
            if after in "DNJ#UX" and previous not in "BM":
                s.deny = "word"
                if previous == ",":
                    s.role = "denied"
            else:
                s.denied = 10**9
        elif tag == "L":
            if after in "JRBHMV":
                s.denied = 10**9
            else:
                s.deny = "neither" if previous in ".," or s.deny == "neither" else "word"
        elif tag == "?" and word not in ROUGHLY and not self.made.is_denied(i):
            s.doubt, s.doubt_at = True, i
        elif tag == "Y":
            s.denied, s.deny, s.doubt = -1, "", word in ("if", "whether", "unless")
            s.place = None
            if word in ("but", "however", "yet"):
                s.group = []
            s.group, s.role, s.finite = [], "", False
            if after not in "GEOJ":
                s.verb_at, s.verb = -1, ""
        elif tag == "W":
            if s.group and previous in "N,":
                s.outer, s.actor, s.relative = s.subject, list(s.group), True
        elif tag == "A":
            s.place = None
            if word in DENYING:
                s.deny, s.role, s.group = "word", "denied", []
            else:
                if word in EXCEPTING:
                    s.denied, s.deny = -1, ""
                s.owner = s.group[-1] if s.group and word == "with" else None
                s.group, s.role = [], "with"
                if s.verb_at < 0:
                    s.verb_at, s.verb = i, "with"
        elif tag == ",":
            s.place = None
            if s.doubt and not goes_on(tags, i, end):
                s.doubt = False
            if s.role == "denied":
                s.role, s.group = "", []
        elif tag == "C" or tag == "I":
            s.place = None
        elif tag == ":":
            self._listed(i, tags, end)
            self.made.s = State()

    def _listed(self, i: int, tags: str, end: int) -> None:
        """`People: none`, `dogs: 2`."""
        word = self.t.words[i + 1] if i + 1 < end else ""
        if not self.s.group or tags[i + 2 : min(i + 3, end)] not in ("", ".", ","):
            return
        p = self.s.group[-1]
        if word in ("none", "no", "0", "zero", "nothing"):
            self.made.deny(p)
        elif p.name and tags[i + 1 : i + 2] == "#" and (number := number_of(word)):
            p.count, p.counted_at = number, p.start
            self.made.count(p, i + 2)
