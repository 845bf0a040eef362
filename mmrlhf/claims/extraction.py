"""From a text to its claims: who is where, what there is not, what may be.

One pass over the phrases of each sentence, left to right, that remembers the subject, what the verb did, and what is being denied.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmrlhf.claims.lexicon import Lexicon, lexicon
from mmrlhf.claims.phrases import DEPICTIONS, ITEM, MEASURES, PAIRED, Phrase, phrase
from mmrlhf.claims.tagging import NEGATIVE, NUMBERS, SEEMING, Tokens, _stem, tokens
from mmrlhf.records import Claim

BESIDE = frozenset(
    ("next to", "beside", "near", "behind", "in front of", "left of", "right of", "above", "below", "under", "close to", "between", "over",
     "underneath", "beneath", "alongside", "across from", "adjacent to", "opposite", "by", "around", "in between", "among", "amongst"))  # fmt: skip
"""Relations of things of one rank: a cat on a bed next to a laptop is next to the laptop, and not the bed."""
HAVING = frozenset(
    "has have had having with shows show features feature includes include contains contain sees see depicts depict captures displays "
    "showing featuring displaying containing including is are was were be 's 're been".split()
)
PLACED = frozenset("in on inside along down through across up".split())
GAZE = frozenset(
    "looking looks look looked staring stares stare stared smiling smiles smile gazing gazes pointing points aiming aims glancing glances "
    "laughing waving waves focused focusing peering peers barking barks growling yelling shouting".split()
)
AGENTLESS = frozenset(
    "parked seated positioned located placed situated standing sitting lying perched docked moored gathered mounted hung displayed "
    "arranged stacked piled set tied leaned stopped anchored stationed scattered".split()
)
CLOTHES = frozenset(
    "shirt t-shirt jacket coat suit dress uniform hat cap helmet shorts pants jeans skirt sweater hoodie vest outfit costume glasses "
    "sunglasses glove boot shoe robe apron gown tie scarf wetsuit raincoat poncho blouse clothing clothes attire gear jersey swimsuit bikini "
    "tank top tuxedo overalls pajamas tutu kimono sweatshirt hood trunks swim trunks polo shirt baseball cap lab coat hard hat safety vest "
    "cardigan sari leggings tights turban bandana mask wig cape veil business suit dress shirt cowboy hat sock heel armor goggles".split()
) | frozenset(("tank top", "baseball cap", "lab coat", "hard hat", "safety vest", "swim trunks", "dress shirt", "bathing suit", "business suit"))
NOWHERE = frozenset("dressed covered wrapped clad engaged interested involved participating focused focus focuses based working engages competing".split())
BODY = frozenset("hand arm mouth head neck back shoulder lap face wrist finger leg foot ear nose beak paw waist hair chest body eye".split())
ROOMS = frozenset("room bathroom bedroom kitchen office classroom restaurant store shop hall forest library gym garage".split())
LINKS = frozenset("is are was were be been 's 're".split())
SPORTS = frozenset("baseball basketball football volleyball softball rugby handball dodgeball racquetball badminton paintball".split())
OWNING = frozenset("has have had having contains contain features feature includes include including".split())
OTHER = frozenset("other another second more additional".split())
AIMING = frozenset("hit throw swing aim kick toss shoot point direct".split())
MOST = 15
"""Phrases that `and` joins and a relation may be of."""
RANK = {"object": 0, "count": 1, "attribute": 2, "relation": 3}
SEEN = frozenset("visible present seen shown depicted pictured there".split())
POSTURES = frozenset(
    "sitting standing walking riding lying running eating looking holding wearing playing skiing surfing jumping posing waiting laying "
    "sleeping swimming skateboarding snowboarding talking crossing drinking resting kneeling leaning smiling watching".split()
)
ALIVE = frozenset("person bird cat dog horse sheep cow elephant bear zebra giraffe".split())
MOVING = frozenset(
    "walking walks walk running runs run heading heads driving drives moving moves riding rides flying flies swimming jumping going goes coming "
    "sailing crawling climbing rolling skiing skating jogging marching".split()
)
LITTERED = frozenset("cluttered crowded packed littered overgrown".split())
PAINTED = frozenset("painted colored coloured dyed tinted".split())


@dataclass
class _State:
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
    doubt: bool = False
    doubt_at: int = -9
    relative: bool = False
    outer: list[Phrase] | None = None


def claims(text: str, words: Lexicon | None = None) -> list[Claim]:
    """The visual claims of an English text, each distinct one once, in the order in which they are made.

    A text in another language, code or a question claims nothing.
    """
    reader = _Reader(text, words or lexicon())
    reader.read()
    return reader.claims()


class _Reader:
    """Goes over one text."""

    def __init__(self, text: str, words: Lexicon) -> None:
        self.lexicon = words
        self.t: Tokens = tokens(text, words)
        self.found: list[tuple[int, int, Claim]] = []
        self.seen: set[Claim] = set()
        self.s = _State()
        self.it: Phrase | None = None
        self.who: Phrase | None = None
        self.they: Phrase | None = None
        self.of: Phrase | None = None
        self.others: set[str] = set()
        """Nouns of which there is another."""
        self.named: set[str] = set()

    def claims(self) -> list[Claim]:
        found = []
        seen = set()
        counted = {(c.subject, c.value) for _, _, c in self.found if c.kind == "count"}
        parts = {noun for noun, value in counted if value != "1"} | self.others
        for _, _, claim in sorted(self.found, key=lambda f: f[:2]):
            if claim.kind == "count" and claim.value == "1" and claim.subject in parts:
                continue  # one of them, and no number of all
            if claim not in seen:
                seen.add(claim)
                found.append(claim)
        return found

    def read(self) -> None:
        t = self.t
        tags = "".join(t.tags)
        for begin, end in _sentences(t, tags):
            self.s = _State()
            self._sentence(tags, begin, end)

    # ---- the pass ------------------------------------------------------------------------------------------------------

    def _sentence(self, tags: str, begin: int, end: int) -> None:
        t, words = self.t, self.t.words
        waiting: Phrase | None = None  # a phrase before `of` that is none itself
        owner = False
        previous = "."
        joined = False  # after a comma or `and`
        i = begin
        while i < end:
            m = ITEM.match(tags, i, end)
            assert m is not None
            tag = tags[i]
            s = self.s
            if m.lastgroup == "np":
                stop = m.end()
                p = phrase(t, i, stop, self.lexicon)
                stop = max(p.end, stop)
                after = tags[stop] if stop < end else "."
                if waiting is not None:
                    if waiting.count and not p.count and (waiting.noun in ("couple", "dozen", "pair") or waiting.noun == ""):
                        p.count, p.counted_at, p.start, p.about = waiting.count, waiting.counted_at, waiting.start, waiting.about
                    p.no, p.bare = p.no or waiting.no, p.bare and waiting.bare
                    if waiting.no:
                        p.definite = False
                    waiting = None
                if after == "F" and self._is_measure(p):
                    if p.noun in ("couple", "pair"):
                        p.count, p.counted_at = 2, i
                    elif p.noun != "dozen":
                        p.count = None
                    waiting = p
                    i, previous = stop + 1, "F"
                    continue
                if after == "S":
                    self._name(p)
                    owner = True
                    i, previous = stop + 1, "S"
                    continue
                if previous == "F" and self.of is not None:
                    self._of(p)
                else:
                    self._phrase(p, previous, joined, after, owner)
                owner = False
                self.of = p if after == "F" else None
                i, previous, joined = stop, "N", False
                continue
            word = words[i]
            after = tags[i + 1] if i + 1 < end else "."
            if tag == "#" and after == "F":
                waiting = Phrase(i, i, i + 1, "", "", True, False, False)
                number = NUMBERS.get(word) or (int(word) if word.isdigit() and len(word) < 7 else None)
                if words[i + 2 : i + 3] not in (["the"], ["these"], ["those"], ["them"]):
                    waiting.count, waiting.counted_at = number, i
                i, previous = i + 2, "F"
                continue
            if tag == "Q":
                self._pronoun(i, word, previous, after)
            elif tag in "PC,YWLOBHVGEM?ATFIK.:JR":
                self._mark(i, tag, word, previous, after, tags, end)
            if tag in "C," or word == "nor":
                joined = True
            elif tag not in "RD?":
                joined = False
            if tag != "R" or previous == ".":
                previous = tag
            if tag not in "F":
                self.of = None
            i += 1

    def _is_measure(self, p: Phrase) -> bool:
        noun = p.noun
        if not p.name:
            return True
        return noun in MEASURES or noun == "couple"

    def _of(self, p: Phrase) -> None:
        """`of` what: the cup of coffee has coffee, the statue of a lion no lion."""
        whole = self.of
        assert whole is not None
        if whole.noun in DEPICTIONS:
            return
        if whole.no or self._denied(whole):
            p.no = p.no or (not p.definite and whole.no)
        self._name(p)
        if self.s.role == "target" and not whole.name:
            self._place(p)

    # ---- phrases -------------------------------------------------------------------------------------------------------

    def _phrase(self, p: Phrase, previous: str, joined: bool, after: str, owned: bool) -> None:
        s, t = self.s, self.t
        if owned:
            p.definite = True
        if t.words[p.head] in ("camera", "viewer", "photographer") and p.definite and previous in "PIA" and (
            s.verb in GAZE or s.verb in ("posing", "poses", "pose", "facing", "faces")
        ):
            s.place = None
            return
        if p.name in ("camera",) and p.definite and s.verb in ("facing", "faces"):
            return
        clause = after in "BHMV" and s.finite
        if s.deny:
            # `not a dog`, `without a hat`, `neither a car`: the phrases that follow, as long as `or` goes on with them
            if joined and previous != "L" and not (previous in "C," and (p.bare or p.no or t.words[p.start] in ("any", "a", "an"))):
                s.deny = ""
            elif not p.definite:
                p.no = True
        elif joined and s.group and s.group[-1].no and not p.definite and (p.bare or p.no or t.words[p.start] == "any") and not clause_starts(after, joined, p):
            p.no = True
        if s.verb in LINKS and s.actor and p.bare and not joined and p.end - p.head <= 2 and t.words[p.end - 1] in self.lexicon.sets["materials"] and s.place is None:
            for q in s.actor:
                self._look(q, " ".join([*(v.split(" ")[0] for v, _ in p.looks), t.words[p.end - 1]]), p.start, p.end)
            return
        if s.verb in LINKS and s.actor and not joined and s.place is None and not p.no and p.name and p.name == s.actor[0].thing.name and p.start > s.verb_at:
            for value, at in p.looks:  # the dog is a young dog
                self._look(s.actor[0], value, at, p.end)
            return
        self._name(p)
        thing = [p]
        if joined and previous == "?" and s.role in ("target", "object") and not p.definite:
            return  # another name for the phrase before
        if s.place is not None:
            self._place(p)
            return
        if joined and s.group and not clause:
            if s.role == "target" and s.last is not None:
                alike = p.manner == s.group[-1].manner or s.group[-1].it is not None
                if after not in "GE" and alike:
                    how, figures, at = s.last
                    self._relate(figures, how, p, at)
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
            self._front()
            return
        if s.verb_at >= 0:
            if s.verb in ("is", "are", "was", "were", "be", "'s") and s.subject and s.role == "subject" and s.subject[0].it is None and not s.subject[0].name and not p.definite:
                s.subject = s.actor = thing
            s.group, s.role = thing, "with" if s.role == "with" else "object"
            if s.fronted is not None:
                s.subject = s.actor = thing
                self._front()
            elif not s.subject:
                s.subject = s.actor = thing
            return
        s.subject, s.actor, s.group, s.role = thing, thing, thing, "subject"
        self._front()

    def _front(self) -> None:
        """A relation that stood before its subject finds it."""
        s = self.s
        if s.fronted is None:
            return
        how, targets, at = s.fronted
        s.fronted = None
        for target in targets:
            self._relate(s.group, how, target, at)

    def _pronoun(self, i: int, word: str, previous: str, after: str) -> None:
        s = self.s
        if word in ("he", "she", "him", "her", "himself", "herself"):
            thing = self.who
        elif word in ("it", "itself", "this", "that"):
            thing = self.it
        elif word in ("they", "them", "themselves", "these", "those"):
            thing = self.they or self.it
        elif word == "none":
            thing = self.they or self.it
        else:
            thing = None
        p = Phrase(i, i, i + 1, "", word, word in ("they", "them"), True, False)
        if thing is not None:
            p.it, p.name, p.many = thing, "", thing.many
            p.no = thing.no
        if word == "none":
            s.denied = 10**9
        if s.place is not None:
            figures = [] if s.place[3] else s.place[2]
            if word in ("it", "itself", "them") and s.last is not None:
                near = [*s.last[1], *([s.it_at] if s.it_at else [])]
                thing = next((q.thing for q in near if q.thing.name and all(q.thing is not f.thing for f in figures)), thing)
                p.it = thing
            if thing is not None:
                self._place(p)
            else:
                s.place = None
            return
        if s.verb_at >= 0 and after not in "BHMV":
            s.group, s.role = [p], "object"
            return
        s.subject = s.actor = s.group = [p]
        s.role, s.verb, s.verb_at, s.finite = "subject", "", -1, False

    # ---- small words ---------------------------------------------------------------------------------------------------

    def _mark(self, i: int, tag: str, word: str, previous: str, after: str, tags: str, end: int) -> None:
        s, t = self.s, self.t
        if tag == "P":
            self._where(i, word, previous, after)
        elif tag in "BHV":
            self._verb(i, tag, word, previous, after, tags, end)
        elif tag in "GE":
            self._participle(i, tag, word, previous, after, tags, end)
        elif tag == "J" or tag == "K":
            if tag == "J":
                self._adjective(i, word, previous, after, tags, end)
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
            if after in "JR":
                s.denied = 10**9
            else:
                s.deny = "neither" if previous in ".," else "word"
        elif tag == "?":
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
            if word in ("without", "free of", "devoid of", "void of", "lack of", "lacks", "lacking", "absence of", "instead of", "rather than", "empty of"):
                s.deny = "word"
                s.role = "denied"
                s.group = []
                s.verb_at = max(s.verb_at, i)
            else:
                s.group, s.role = [], "with"
                if s.verb_at < 0:
                    s.verb_at, s.verb = i, "with"
        elif tag == ",":
            s.place = None
            if s.doubt and not self._goes_on(i, tags, end):
                s.doubt = False
            if s.role == "denied":
                s.role = ""
        elif tag == "C":
            s.place = None
        elif tag == "I":
            s.place = None
        elif tag == ":":
            self.s = _State()

    def _goes_on(self, i: int, tags: str, end: int) -> bool:
        """Whether a comma is one of a list's."""
        m = ITEM.match(tags, i + 1, end)
        if m is None or m.lastgroup != "np":
            return tags[i + 1 : i + 2] == "C" and tags[i + 2 : i + 3] not in ("B", "V") and "B" not in tags[i + 2 : i + 7] and "V" not in tags[i + 2 : i + 7]
        rest = tags[m.end() : m.end() + 1]
        return rest in (",", "C")

    def _where(self, i: int, word: str, previous: str, after: str) -> None:
        """A place begins: who is there, as far as one can say yet."""
        s = self.s
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
        s.place = (word, i, figures, previous in "C," and after == "Q")

    def _place(self, p: Phrase) -> None:
        """A relation gets its target."""
        s = self.s
        assert s.place is not None or s.last is not None
        if s.place is None:
            return
        how, at, figures, front = s.place
        s.place = None
        if not p.name and p.it is None:
            if p.end < len(self.t.tags) and self.t.tags[p.end] == "F":
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
        if how == "at" and s.role == "object" and _stem(s.verb) in AIMING:
            return  # swings a racket at a ball
        if how == "on" and thing.noun in ROOMS:
            how = "in"  # on the left side of the room
        if how == "in" and (thing.name in CLOTHES or thing.noun in CLOTHES):
            s.group, s.role = [p], "with"
            return
        if s.role == "object" and s.verb not in HAVING and s.actor and s.actor is not figures and s.subject:
            # A man eats an apple in the park: he is there. He holds it in his hand: it is.
            if thing.noun not in BODY and (how in ("at", "past", "along", "across", "through", "down") or how in PLACED and (thing.name in self.lexicon.sets["places"] or thing.noun in self.lexicon.sets["places"])):
                figures = s.actor
        if s.role == "with" and p.it is not None and s.actor and s.group:
            figures = s.group
        self._relate(figures, how, p, at)
        s.group, s.role, s.last, s.it_at = [p], "target", (how, figures, at), p

    def _verb(self, i: int, tag: str, word: str, previous: str, after: str, tags: str, end: int) -> None:
        s, t = self.s, self.t
        s.place = None
        if tag == "V" and _base_of(word) in SEEMING and not self._is_denied(i) and (after in "IJ" or after == "R" and tags[i + 2 : i + 3] in ("I", "J", "E")):
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
        elif previous in "C,":
            s.actor = s.subject
        elif s.role == "with" and s.subject:
            s.actor = s.subject
        if s.actor and all(p.no for p in s.actor) and s.actor[0].it is None:
            s.denied = 10**9
        if s.deny == "neither":
            s.denied = 10**9
        s.deny = ""
        s.verb, s.verb_at, s.finite = word, i, True
        s.group, s.role = [], "verb"

    def _participle(self, i: int, tag: str, word: str, previous: str, after: str, tags: str, end: int) -> None:
        s, t = self.s, self.t
        s.place = None
        if s.relative:
            s.relative = False
        if previous == "N" and s.role == "with" and s.subject and s.group and word in POSTURES and self._lives(s.subject[0]) and not self._lives(s.group[-1]):
            s.actor = s.subject
        elif previous == "N" and s.group:
            s.actor = s.group if s.role == "subject" or len(s.group) == 2 and s.role != "with" else s.group[-1:]
        elif previous == "," and s.subject and s.role != "subject":
            s.actor = s.subject
        elif previous == "," and s.group and not s.subject:
            s.actor = s.group
        if word in ("suggesting", "indicating", "implying", "resembling"):
            s.doubt, s.doubt_at = True, i
        if word in SEEN and self._is_denied(i):
            for p in s.actor:
                self._deny(p)
        elif word in SEEN and s.doubt and s.doubt_at < i and i - s.doubt_at <= 3:
            for p in s.actor:
                self._doubt(p)
        if tag == "E":
            k = i + 1
            if word in PAINTED or previous == "B" and word == "made":
                if word == "made":
                    k += tags[k : k + 1] in ("F", "A")
                while k < end and (tags[k] == "R" or word == "made" and tags[k] == "J" and t.words[k] not in self.lexicon.sets["materials"]):
                    k += 1
                solid = tags[k + 1 : k + 2] not in ("N", "X", "U") or t.words[k] in ("stainless", "wrought", "cast")
                if word == "made" and not solid:
                    k = end
                if k < end and (t.looks[k] or t.words[k] in self.lexicon.sets["materials"]) and (tags[k] == "J" or tags[k] == "N" and word == "made"):
                    value = t.words[k]
                    if tags[k + 1 : k + 2] == "J" and t.words[k] in ("light", "dark", "bright", "pale"):
                        value = f"{value} {t.words[k + 1]}"
                    elif value in ("stainless", "wrought", "cast"):
                        value = f"{value} {t.words[k + 1]}"
                    for p in s.actor:
                        self._look(p, value, i if word in PAINTED else k, k + value.count(" ") + 1)
                    if word == "made":
                        for j in range(k, k + value.count(" ") + 1):
                            t.tags[j] = "X"
                            t.nouns[j] = "material"
            elif previous in "BRC" and t.looks[i] and after != "I" and (after not in "PAR" or after == "A" and word in LITTERED or after == "P" and word in ("closed", "broken")):
                if s.verb_at >= 0 and t.words[s.verb_at] in ("is", "are", "was", "were", "be", "'s"):
                    for p in s.actor:
                        self._look(p, word, i, i + 1)
        s.verb, s.verb_at = word, i
        s.group, s.role = [], "verb"

    def _lives(self, p: Phrase) -> bool:
        return self.lexicon.of_coco(p.thing.name) in ALIVE

    def _adjective(self, i: int, word: str, previous: str, after: str, tags: str, end: int) -> None:
        """One that stands by itself: `is brown and large`."""
        s, t = self.s, self.t
        if word in SEEN or word in ("absent", "missing"):
            if self._is_denied(i) or word in ("absent", "missing"):
                for p in s.actor:
                    self._deny(p)
            elif s.doubt and i - s.doubt_at <= 3:
                for p in s.actor:
                    self._doubt(p)
            return
        if s.verb_at < 0 or not t.looks[i] or not s.actor:
            return
        base = s.verb
        link = base in ("is", "are", "was", "were", "be", "been", "'s", "'re") or _base_of(base) in ("look", "appear", "seem", "remain", "stay", "become")
        if not link or s.role == "with" or previous in "NHVDZ" and previous != "V":
            return
        if previous in "P" or s.group is not s.actor and s.role in ("object", "target"):
            return
        if i > 0 and tags[i - 1] == "J" and t.words[i - 1] in ("light", "dark", "bright", "pale", "deep"):
            return
        value, stop = word, i + 1
        if word in ("light", "dark", "bright", "pale", "deep") and tags[i + 1 : i + 2] == "J" and i + 1 < end:
            value, stop = f"{word} {t.words[i + 1]}", i + 2
        for p in s.actor:
            self._look(p, value, i, stop)

    # ---- claims --------------------------------------------------------------------------------------------------------

    def _is_denied(self, at: int) -> bool:
        return at < self.s.denied

    def _denied(self, p: Phrase) -> bool:
        return p.no or (self._is_denied(p.start) and not p.definite and self.s.verb_at >= 0 and p.it is None)

    def _maybe(self, p: Phrase, at: int) -> bool:
        s = self.s
        if not s.doubt:
            return False
        if p.definite and not (p.start == s.doubt_at + 1 and s.doubt_at > 0 and self.t.tags[s.doubt_at - 1] in ",B"):
            return False
        return p.start > s.doubt_at

    def _name(self, p: Phrase) -> None:
        """The claims that a phrase makes by itself: that it is there, how many, how it looks."""
        t = self.t
        s = self.s
        if t.words[p.end - 1] in NEGATIVE:
            p.no = True
        if p.name in SPORTS and p.bare and not p.many or p.name == "light" and p.bare and not p.many:
            p.name = ""
        if not p.name:
            return
        if s.place is None and self._denied(p):
            p.no = True
        if any(t.words[k] in OTHER for k in range(p.start, p.head)):
            if p.name in self.named:
                p.count = None  # two more, and not two of them all
            self.others.add(p.name)
        self.named.add(p.name)
        hedged = self._maybe(p, p.start)
        if t.tags[p.start - 1 : p.start] == ["C"] and t.words[p.start - 1] in ("or",) and not p.no and s.group and s.role != "":
            hedged = True
        elif t.words[p.end : p.end + 1] == ["or"] and not p.no and t.tags[p.end + 1 : p.end + 2] and t.tags[p.end + 1][0] in "DNJ#":
            hedged = True
        self._claim("object", p, p.head, p.end, negated=p.no, hedged=hedged)
        if p.count is not None and not (p.count == 2 and p.noun in PAIRED and t.words[p.counted_at] == "pair") and p.name not in self.lexicon.sets["plural only"]:
            self._claim("count", p, p.counted_at, p.end, value=str(p.count), negated=p.no, hedged=hedged or p.about)
        for value, at in p.looks:
            self._claim("attribute", p, at, p.end, value=value, negated=p.no, hedged=hedged)
        self._remember(p)

    def _remember(self, p: Phrase) -> None:
        if not p.name:
            return
        category = self.lexicon.of_coco(p.name)
        subject = self.s.verb_at < 0 or not self.s.subject
        if category == "person":
            if subject or self.who is None or self.who.start < self._begin:
                self.who = p
        elif p.no:
            return
        elif not p.many and (subject or self.it is None or not self._subject_it):
            self.it = p
            self._subject_it = subject
        if p.many and (subject or self.they is None):
            self.they = p

    _begin = 0
    _subject_it = False

    def _claim(self, kind: str, p: Phrase, start: int, stop: int, **more: object) -> None:
        t = self.t
        thing = p.thing
        claim = Claim(
            kind, thing.name, span=(t.starts[start], t.ends[stop - 1]), category=self.lexicon.of_coco(thing.name), **more  # type: ignore[arg-type]
        )
        self.found.append((t.starts[p.head], RANK[kind], claim))

    def _look(self, p: Phrase, value: str, at: int, stop: int) -> None:
        if not p.thing.name:
            return
        start, end = min(p.start if p.it else p.head, at), max(p.end, stop)
        self._claim("attribute", p, start, end, value=value, negated=p.no or self._is_denied(at) or self.s.deny == "word", hedged=self.s.doubt and at > self.s.doubt_at)

    def _relate(self, figures: list[Phrase], how: str, target: Phrase, at: int) -> None:
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
            negated = p.no or self._is_denied(at)
            hedged = s.doubt and (at > s.doubt_at or p.start > s.doubt_at)
            self._claim("relation", p, start, stop, relation=how, target=to.name, negated=negated, hedged=hedged)

    def _deny(self, p: Phrase) -> None:
        """What was named is then said not to be there."""
        self._turn(p, "negated")

    def _doubt(self, p: Phrase) -> None:
        self._turn(p, "hedged")

    def _turn(self, p: Phrase, how: str) -> None:
        from dataclasses import replace

        where = self.t.starts[p.head]
        self.found = [
            (a, b, replace(c, **{how: True}) if c.subject == p.thing.name and a <= where <= c.span[1] and p.it is None else c)
            for a, b, c in self.found
        ]


def clause_starts(after: str, joined: bool, p: Phrase) -> bool:
    return joined and after in "BHMV"


def _base_of(word: str) -> str:
    return word[:-1] if word.endswith("s") else word


def _sentences(t: Tokens, tags: str) -> list[tuple[int, int]]:
    """Where sentences begin and end, those left out that ask, and those that are not English."""
    found = []
    begin = 0
    for i, tag in enumerate(tags):
        if tag == "." or i == len(tags) - 1:
            end = i + 1
            if end - begin > 0 and not (tag == "." and "?" in t.words[i]) and _is_english(t, tags, begin, end):
                found.append((begin, end))
            begin = end
    return found


def _is_english(t: Tokens, tags: str, begin: int, end: int) -> bool:
    unknown = sum(tags[k] in "Uu" for k in range(begin, end))
    return unknown * 3 <= end - begin
