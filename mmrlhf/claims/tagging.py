"""From text to tokens with one tag each: what a word is, given the words around it.

Tags are letters, so that a sentence's tags are a string and phrases are found in it by regular expressions:

    N noun one can see   X other noun   U unknown word   J adjective   K comparative   R adverb   # number
    V verb   G its -ing form   E its -ed form   B be   H have   M modal or do   I to
    D determiner   Z no   S 's   Q pronoun   T there   W which, who, that   P where (on, next to)   A other preposition   F of
    C and, or   Y but, while, because   O not   L neither, nor   ? maybe   , : . punctuation
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import compress

from mmrlhf.claims.lexicon import Lexicon

NUMBERS = {
    name: number
    for number, name in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
        "nineteen twenty".split()
    )
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100, "dozen": 12}

CLOSED: dict[str, str] = {}
for _tag, _words in {
    "D": "a an the this these those his her its their my your our whose each every another any some both all several many few much "
    "various numerous multiple more most fewer less",
    "Z": "no",
    "J": "other same such",
    "X": "others none nothing something anything everything",
    "Q": "it he she they him them i you we me us himself herself itself themselves each-other one-another his/her theirs mine hers",
    "T": "there",
    "W": "which who whom that where what",
    "F": "of",
    "A": "with for from to-wards than like as during per via without including despite except featuring since regarding concerning about "
    "until till before after besides",
    "C": "and or & nor/or plus",
    "L": "neither nor",
    "Y": "but while although though because when whereas if unless so yet however whether once",
    "O": "not never cannot",
    "B": "is are was were be been being am",
    "H": "has have had having",
    "M": "can could may might must will would shall should do does did ca wo sha ai",
    "I": "to",
    "P": "off on in inside within under underneath beneath below above over beside behind between among amongst near by at against "
    "around along across through throughout onto into atop past opposite outside down up toward towards alongside beyond amid upon",
    "?": "possibly probably perhaps maybe likely presumably apparently potentially seemingly supposedly conceivably",
    "R": "also just only very quite rather too still together here then now often always usually even almost nearly completely fully "
    "partially partly slightly mostly mainly clearly closely directly not-only additionally furthermore moreover apart away ahead "
    "overall meanwhile elsewhere nearby well again else forth out aside",
}.items():
    CLOSED |= dict.fromkeys(_words.split(), _tag)

PHRASES: dict[str, tuple[str, str]] = {}
for _tag, _phrases in {
    "P": "in front of;on top of;next to;close to;adjacent to;left of;right of;out of;across from;surrounded by;hanging from;hangs from:hanging from;"
    "hung from:hanging from;hang from:hanging from;in between;inside of;outside of;off of;on to;up to;opposite to;on both sides of;near to;in back of",
    "A": "along with;together with;as well as;such as;in addition to;because of;due to;according to;away from;far from;in case of;as part of;"
    "instead of;rather than;free of;free from;devoid of;lack of;lacks;lacking;absence of;void of;empty of;apart from;aside from;"
    "except for;based on;compared to;similar to;belonging to;focused on;focus on;focuses on;engaged in;participating in;dressed in;clad in;covered in;"
    "interested in;involved in;participate in;known as;working on;relying on;for example;for instance;at least;at most;more than;less than;"
    "up to;ready to;prior to;thanks to;related to;on the phone",
    "R": "no longer;at night;in general;of course;at all;no doubt;for now;in use;on display;in motion;in mid-air;in action;by hand;in order;"
    "on the other hand;in place;at work;a bit;a little bit;side by side;hand in hand;up close;as if;as though;face to face;on foot;at a time;"
    "in total;in particular;one by one;to and fro;back and forth;up and down;face down;face up;upside down;not only",
    "C": "and/or;as well as",
    "?": "looks like;look like;looking like;looked like;it is possible that;it's possible that;it is likely that;it seems that;"
    "it appears that;as if;as though;i think;i believe;i guess;can be inferred;what looks like;what appears to be",
    "N": "no one:nobody;none of the above:nothing",
    "Q": "each other;one another;none of them:none;all of them:they;some of them:they;most of them:they;one of them:one;each of them:they;both of them:they",
}.items():
    for _phrase in _phrases.split(";"):
        _words_of, _, _name = _phrase.partition(":")
        PHRASES[_words_of] = (_tag, _name or _words_of)
SIDES = {
    f"{start}{side}{middle} of": f"{side} of"
    for start in ("to the ", "on the ", "to the immediate ", "to the far ", "just to the ", "slightly to the ", "directly to the ", "")
    for side in ("left", "right")
    for middle in (("", " side") if start.startswith("to") else ("",))
}
PHRASES |= {phrase: ("P", name) for phrase, name in SIDES.items()}
_STARTS: dict[str, list[list[str]]] = {}
for _phrase in sorted(PHRASES, key=lambda p: -p.count(" ")):
    _STARTS.setdefault(_phrase.split(" ")[0], []).append(_phrase.split(" "))

SHORT = {"s": "S", "re": "B", "m": "B", "ve": "H", "ll": "M", "d": "M"}
PEOPLE = dict.fromkeys("someone somebody anyone anybody everyone everybody nobody".split(), "person")
NEGATIVE = frozenset(("nobody", "no one", "none", "nothing"))
MAYBE = frozenset("could may might would".split())
SEEMING = frozenset("appear seem".split())

TOKEN = re.compile(
    r"[A-Za-z]+(?=n['’]t\b)|n['’]t\b|['’](?:s|re|m|ve|ll|d)\b|['’](?=\s)|\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|%|s)?\b"
    r"|[A-Za-zÀ-ɏ]+(?:['’](?!(?:s|re|m|ve|ll|d)\b)[A-Za-z]+)?(?:-[A-Za-zÀ-ɏ0-9]+)*|[.!?]+|[,;:()|—–&]|\n|[^\sA-Za-z0-9]"
)
MASKED = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,300}`|\"[^\"\n]{1,200}\"|“[^”\n]{1,200}”|(?<![A-Za-z])['‘](?=\S)[^'’\n]{1,120}(?<=\S)['’](?![A-Za-z])"
    r"|https?://\S+|<[^<>\n]{1,200}>|!?\[[^\[\]\n]{0,200}\]\([^()\n]{1,300}\)",
    re.DOTALL,
)
BULLET = re.compile(r"(?m)^[ \t]*(?:[-*+•◦▪·‣–—>#]+[ \t]*|\(?\d{1,3}[.)][ \t]+|\(?[a-zA-Z][.)][ \t]+|\|)+")
MARKS = str.maketrans({"*": " ", "_": " ", "~": " "})


@dataclass
class Tokens:
    """A text's tokens, side by side: where they are, in lower case, their tags, and the noun each would be."""

    text: str
    starts: list[int]
    ends: list[int]
    words: list[str]
    tags: list[str]
    nouns: list[str]
    many: list[bool]
    looks: list[int]


MOST_KEPT = 200_000
"""Words that a lexicon remembers: text that never repeats must not fill the memory."""
SPECIAL = frozenset(("\n", "'", "S", "u"))
"""Tags that hang on what stands before."""


def _row(surface: str, lexicon: Lexicon) -> tuple[str, str, str, bool, int]:
    """A token by itself: in lower case, its possible tags, its noun, whether that is a plural, and whether it says how something looks."""
    lower, first = surface.lower().replace("’", "'"), surface[0]
    if (tag := CLOSED.get(lower)) is not None:
        return lower, tag, lower, False, 0
    if lower in NUMBERS:
        return lower, "#", lower, lower != "one", 0
    if first.isdigit():
        return lower, "#" if lower.isdigit() else "X", lower, True, 0
    if lower == "'":
        return lower, "'", lower, False, 0
    if lower == "n't":
        return "not", "O", lower, False, 0
    if lower[0] == "'" and lower[1:] in SHORT:
        return lower, SHORT[lower[1:]], lower, False, 0
    if first.isalpha():
        if lower in PEOPLE:
            return lower, "N", "person", False, 0
        word = lexicon.word(lower)
        name = first.isupper() and word.uses == "U" and surface[1:].islower()
        return lower, "u" if name else word.uses, word.noun, word.many, word.looks
    tag = "\n" if first == "\n" else "." if first in ".!?" else ":" if first in ":;" else ","
    return lower, tag, lower, False, 0


def _blank(match: re.Match[str]) -> str:
    """Dots, so that no phrase reaches across, or spaces for what is quoted: it is read, not seen."""
    found = match.group()
    return (" " if len(found) > 1 and found[0] in "\"“'‘<" else ".") * len(found)


def tokens(text: str, lexicon: Lexicon) -> Tokens:
    """A text's tokens, with Markdown, code and quotations passed over. Time grows with the text's length and no faster."""
    clean = text
    if any(mark in text for mark in "`\"“'‘<[~h"):
        clean = MASKED.sub(_blank, clean)
    if "\n" in text or text[:1] in "-*+•|#>(0123456789":
        clean = BULLET.sub(lambda m: "\n" + " " * (len(m.group()) - 1) if m.start() else " " * len(m.group()), clean)
    clean = clean.translate(MARKS)
    found = Tokens(text, [], [], [], [], [], [], [])
    starts, rows = found.starts, []
    seen = lexicon.surfaces
    for m in TOKEN.finditer(clean):
        surface, start = m[0], m.start()
        row = seen.get(surface)
        if row is None:
            row = _row(surface, lexicon)
            if len(seen) < MOST_KEPT:
                seen[surface] = row
        tag = row[1]
        if tag in SPECIAL:
            before = rows[-1][1] if rows else "."
            if tag == "\n":
                if not (tag := _break(clean, start)):
                    continue
                row = (row[0], tag, *row[2:])
            elif tag == "'":
                if before[0] not in "NX":
                    continue
                row = ("'s", "S", *row[2:])
            elif tag == "S" and before in ("Q", "T", "W"):
                row = ("'s", "B", *row[2:])
            elif tag == "u" and before in ".:":
                row = (row[0], "U", *row[2:])  # a sentence's first word has a capital anyhow
        starts.append(start)
        found.ends.append(start + len(surface))
        rows.append(row)
    if rows:
        found.words, found.tags, found.nouns, found.many, found.looks = map(list, zip(*rows, strict=True))
    _join(found)
    _choose(found, lexicon)
    return found


def _break(text: str, at: int) -> str:
    """A line's end is a sentence's, unless the next line goes on with it."""
    before, after = text[max(0, at - 3) : at].rstrip(" "), text[at + 1 : at + 40].lstrip(" ")
    if before and (before[-1].isalnum() or before[-1] == ",") and after[:1].islower():
        return ""
    return "."


def _join(t: Tokens) -> None:
    """Phrases of several words that are one thing to grammar become one token."""
    words = t.words
    gone: list[int] = []
    last = -1
    for i in [i for i, word in enumerate(words) if word in _STARTS]:
        if i <= last:
            continue
        for phrase in _STARTS[words[i]]:
            if words[i : i + len(phrase)] == phrase:
                tag, name = PHRASES[" ".join(phrase)]
                if name.endswith("t of") and i and words[i - 1] in ("closer", "nearer", "close", "near", "the"):
                    continue
                last = i + len(phrase) - 1
                t.tags[i], t.ends[i], words[i], t.looks[i] = tag, t.ends[last], name, 0
                t.nouns[i] = "person" if name == "nobody" else name
                gone += range(i + 1, last + 1)
                break
    if not gone:
        return
    kept = [True] * len(words)
    for i in gone:
        kept[i] = False
    for column in (t.starts, t.ends, words, t.tags, t.nouns, t.many, t.looks):
        column[:] = compress(column, kept)  # type: ignore[index]


# ---- one tag of several -------------------------------------------------------------------------------------------------

STRONG = frozenset(
    "stand sit lie walk ride hold hang look watch play fly run lead rest lean wait carry wear show feature hit swing catch throw jump swim "
    "face cross cover surround fill contain read pull push serve stare drive eat drink cook cut talk smile pose rise climb dance sleep sell "
    "capture bend graze float perch stop reach line drip grow shine sway glow stretch rise lay rust gather guard spell bend hide board fish "
    "paddle soar face arch slice spray surround walk".split()
)


def _choose(t: Tokens, lexicon: Lexicon) -> None:
    """Each token's one tag, left to right."""
    tags, words, n = t.tags, t.words, len(t.tags)
    first = -1  # where the noun phrase began that the last token is in
    for i, uses in enumerate(tags):
        before = tags[i - 1] if i else "."
        after = tags[i + 1] if i + 1 < n else "."
        if len(uses) > 1 or uses in ("E", "G"):
            tag = _one(t, i, uses, before, after, first)
        else:
            tag = uses
            word = words[i]
            if word == "yes":
                tag = ","
            elif tag == "W":
                if word == "that" and (after[0] in "NXJ#" and before not in ("N", "X") or after[0] in "BV" and before in (".", ",")):
                    tag = "D" if after[0] in "NXJ#" else "Q"
            elif word == "her":
                tag = "D" if after[0] in "NXJEGU#" else "Q"
            elif word == "one":
                tag = "#" if "N" in after or after[0] in "JU" or set(after) & set("XJ") and i + 2 < n and "N" in tags[i + 2] else "X"
                if before in ("D", "Z", "J") or after in ("F", "B", "A", "P", "W", ",", "."):
                    tag = "X"
            elif tag == "Z":
                if after in (",", ".", ":") or after == "T" and before == ".":
                    tag = ","  # "No, ..." answers and denies nothing by itself
                elif after[0] in "RKA" and words[i + 1] not in ("other",):
                    tag = "Z"
            elif word in ("up", "down", "over", "off", "around", "by", "past", "in", "out", "on", "through", "along") and tag == "P":
                if after in (".", ",", ":", "C", "A", "P", "I", "W", "Y", "F") or after == "R":
                    tag = "R"
                elif after == "#" and word in ("around", "over", "about") and before not in ("V", "G", "E"):
                    tag = "?"
                elif word == "up" and after not in ("D",):
                    tag = "R"
                elif before in ("V", "G", "E") and word in PARTICLES and _stem(words[i - 1]) in PARTICLES[word]:
                    tag = "R"
            elif word == "about" and after == "#" or word in ("at least", "at most", "more than", "less than", "up to") or word in ("approximately", "roughly"):
                tag = "?"
            elif tag == "S" and word == "'s" and (after[0] in "DOZ" or after == "G"):
                tag = "B"
            elif tag == "M" and word in MAYBE:
                tag = "?"
            elif word in ("looks like", "look like"):
                tag = "?"
        if tag in "DZ#JEGNXU" and tag not in "GE":
            if tag in "DZ" or first < 0 or tag == "#" and before not in ("D", "J"):
                first = i
        elif tag not in "CR," or tag == ",":
            first = -1
        tags[i] = tag
        if tag in "NXU" and words[i] in ("almost",):
            tags[i] = "R"


def _one(t: Tokens, i: int, uses: str, before: str, after: str, first: int) -> str:
    """Which of a word's uses this one is."""
    word, words, tags = t.words[i], t.words, t.tags
    if word in ("left", "right"):
        return "J" if after[0] in "NX" else "E" if word == "left" and before == "N" and after == "D" else "X"
    noun = "N" if "N" in uses else "X" if "X" in uses else ""
    follows = after[0]
    in_phrase = before in ("D", "Z", "#", "S", "J", "K") and (before != "J" or first >= 0)
    headed = follows in "NXUJ" or follows == "E" and len(after) > 1 or "N" in after or "X" in after
    if follows == "," and in_phrase and "J" in uses and i + 2 < len(tags) and "J" in tags[i + 2]:
        headed = True
    plural = t.many[i]
    if word in ("cut", "set", "spread", "split", "shut") and before in ("N", "X", "B") and follows in "PRIA.,":
        return "E"
    if before == "J" and i > 1 and words[i - 2] in ("painted", "colored", "dyed") and _base(word) in STRONG:
        return "V"
    if word in ("look", "looks", "seem", "appear") and follows == "J":
        return "V"
    # -ing
    if "G" in uses:
        if before in ("B", "N", "X", "Q", "Y", "W", "R") and follows in "DZPQ#IRAF" and noun != "N":
            return "G"
        if before in ("B",) and follows in "DZQ":
            return "G"
        if noun == "N" and before == "N" and follows in "DZQ" and word not in ("building", "ceiling"):
            return "G"
        if noun == "N" and follows in "DZQ" and not in_phrase:
            return "G"
        if in_phrase or before in ("P", "A", "F", "V", "G", "H", "."):
            if noun == "N" and (not headed or before != "."):
                return "N"
            if headed and (in_phrase or before in ("P", "F", "H")):
                return "J" if t.looks[i] or not noun else noun
            if in_phrase and noun:
                return noun
        if before == "C" and headed and t.looks[i]:
            return "J"
        if uses[0] == "N" and not (before in ("B", "N") and follows in "DZQ"):
            return "N"
        if uses[0] == "J" and headed:
            return "J"
        return "G"
    # -ed
    if "E" in uses:
        if in_phrase and (headed or follows in "C,") and before != "J":
            return "J" if follows not in ("C", ",") or t.looks[i] else "E"
        if in_phrase and headed:
            return "J"
        if noun and in_phrase and not headed:
            return noun
        if headed and (before in ("P", "F", "A", "C", ",", ".", "H", "V", "G") or words[i - 1 : i] == [":"]):
            if before in ("C", ",") and not t.looks[i]:
                return "E"
            return "J"
        if noun and uses[0] == noun and before not in ("B", "Q", "N"):
            return noun
        if word in ("painted", "colored", "dyed") and words[i + 1 : i + 2] and (after == "J" or "J" in after) and before != "D":
            return "E"
        if before in ("B", "R", "C", "V") and "J" in uses and follows not in ("P", "A", "I") and t.looks[i]:
            return "J"
        return "E"
    if word in ("light", "dark", "bright", "pale", "deep") and words[i + 1 : i + 2] and words[i + 1] in COLOUR_HEADS:
        return "J"
    verb = "V" in uses
    if verb and (noun or "J" in uses):
        if before in ("I", "M", "?") or before == "O" and (words[i - 1] == "cannot" or i > 1 and tags[i - 2] in ("M", "?")) or before == "Q" and words[i - 1] not in ("each other",):
            if before != "I" or not plural:
                if not (before in ("M", "?") and follows in "BV") or not noun:
                    if not (before == "?" and (plural or words[i - 1] not in ("could", "may", "might", "would"))):
                        return "V"
        if before == "W" and not (words[i - 1] == "that" and noun and follows in "BV"):
            return "V"
        if before == "T":
            return "V"
        if in_phrase and noun:
            return "J" if headed and "J" in uses and (uses.index("J") < uses.index(noun) or t.looks[i] == 2 and word != "light") else noun
        if in_phrase and "J" in uses:
            return "J"
        if before in ("P", "F", "A", "B", "H", "V", "G", "E") and ("J" in uses or noun):
            if before == "B" and "J" in uses and not headed:
                return "J"
            if "J" in uses and headed and uses.index("J") < (uses.find(noun) if noun else 9):
                return "J"
            return noun or "J"
        if before in ("N", "X", "u", "U") and not in_phrase:
            base = _base(word)
            singular_before = not t.many[i - 1] and not (first > 0 and tags[first - 1] == "C" and follows in "DPQRIA" and _base(word) in STRONG)
            opener = tags[first] if first >= 0 else ""
            only_one = opener == "D" and words[first] in ("a", "an", "this", "each", "every", "another", "one") or opener == "#" and words[first] == "one"
            is_s = word.endswith("s") and not word.endswith("ss")
            if is_s:
                if not singular_before:
                    likely = follows in "DZQ" or base in STRONG and follows not in "FBV" or noun == "X" and follows in "PRI"
                    return "V" if likely or not noun else noun
                if follows == "F" and base not in ("consist",):
                    return noun or "V"
                if only_one:
                    return "V"
                if base in STRONG and follows in "DZPQRIAGE,#J.CLO" and not _has_verb(tags, i):
                    return "V"
                if (uses[0] == "V" or noun == "X") and follows in "DZPQRIA#JLO" and not _has_verb(tags, i):
                    return "V"
                return noun or "V"
            if not singular_before:
                if follows in "DZPQRIAGE#,.YJLO" or follows == "." or (follows in "NX" and uses[0] == "V"):
                    return "V" if (uses[0] == "V" or base in STRONG or follows in "DZQ") else (noun or "V")
                return noun or "V"
            if "J" in uses and uses[0] == "J" and not headed:
                return "J"
            if base in STRONG and follows in "DPQRIAJ" and not _has_verb(tags, i) and _many_subject(t, i):
                return "V"
            return noun or ("J" if "J" in uses else "V")
        if before in ("R", "C", ",") and uses[0] == "V" and not (noun == "N" and (before != "R" or follows in "C,")):
            return "V"
        if before == "R" and _base(word) in STRONG and word.endswith("s"):
            return "V"
        if before == "." and follows in "DZ" and not plural and uses[0] == "V":
            return "V"
        if before == "C" and word.endswith("s") and _base(word) in STRONG and follows in "DZPQRI":
            return "V"
        if "J" in uses and (headed or not noun):
            return "J" if not noun or uses.index("J") < uses.index(noun) or t.looks[i] == 2 and follows in "NX" and word not in ("light",) else noun
        return noun or uses[0]
    if noun and "J" in uses:
        j_first = uses.index("J") < uses.index(noun)
        if word == "light" and words[i + 1 : i + 2] and words[i + 1] in COLOUR_HEADS:
            return "J"
        if in_phrase and not headed and follows not in "C,":
            return noun
        if before == "N" and first >= 0 and not (headed and t.looks[i] and uses[0] == "J" and word not in COLOUR_NOUNS):
            return noun
        if headed or (follows in "C," and j_first):
            if follows in "NXU" or follows in "JEC,":
                return "J" if j_first or t.looks[i] == 2 and word not in ("light",) else noun
        if before in ("B",) and (j_first or t.looks[i] == 2) and not in_phrase:
            return "J"
        if before in ("R", "K") and j_first:
            return "J"
        if j_first and before not in ("D", "#", "S", "P", "F", "A", "V", "G", "H", "Z"):
            return "J"
        if j_first and before in ("D", "Z") and follows in "BVPWF":
            return noun
        return "J" if j_first else noun
    if noun and "R" in uses:
        return noun if in_phrase or uses[0] == noun else "R"
    if "J" in uses and "R" in uses:
        return "J" if headed or before in ("B", "D") else "R" if uses[0] == "R" else "J"
    if "J" in uses and verb:
        return "J"
    return uses[0]


PARTICLES = {
    "up": frozenset("hold pick put set lift throw show pull give warm raise wash dress open blow hang".split()),
    "on": frozenset("put try turn switch carry".split()),
    "off": frozenset("take turn show cut switch set give pull".split()),
    "down": frozenset("put set lay cut take turn".split()),
    "over": frozenset("take turn hand".split()),
    "in": frozenset("take plug".split()),
}
"""Verbs with which a word of place is no place: she puts on a hat."""
COLOUR_NOUNS = frozenset("cream orange peach olive mint gold silver".split())
COLOUR_HEADS = frozenset("red orange yellow green blue purple violet pink brown gray grey beige tan".split())


def _stem(word: str) -> str:
    """A verb's base, as far as endings tell."""
    stem = word.removesuffix("ing").removesuffix("s") if word.endswith(("ing", "s")) else word
    return stem[:-1] if stem[-2:-1] == stem[-1:] and stem[-1:] in "tnpg" else {"tak": "take", "rais": "raise", "giv": "give"}.get(stem, stem)


def _base(word: str) -> str:
    for tail, end in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("s", "")):
        if word.endswith(tail):
            return word[: -len(tail)] + end
    return word


def _many_subject(t: Tokens, i: int) -> bool:
    """Whether the clause's first noun is a plural."""
    k = i - 1
    while k >= max(0, i - 30) and t.tags[k] not in ".:Y,":
        k -= 1
    return next((t.many[j] for j in range(k + 1, i) if t.tags[j] in "NX" and t.tags[j + 1] not in "NX"), False)


def _has_verb(tags: list[str], i: int) -> bool:
    """Whether the clause had its finite verb before this word."""
    for k in range(i - 1, max(-1, i - 14), -1):
        if tags[k] in ".:YW":
            return False
        if tags[k] in "BVHM?" and tags[k] != "?":
            return True
    return False
