"""One tag of several: what a word is, given the words around it."""

from __future__ import annotations

from mmrlhf.claims.grammar import (
    CANNED,
    COLOUR_HEADS,
    COLOUR_NOUNS,
    COLOURED,
    HUES,
    NUMBERED,
    PARTICLES,
    PLACES,
    SHADES,
    SMALL,
    STRONG,
    UNSURE,
    VAGUE,
    WATCHING,
)
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.tagging import Tokens, tokens


def tagged(text: str, lexicon: Lexicon) -> Tokens:
    """A text's tokens, each with its one tag, chosen from left to right."""
    t = tokens(text, lexicon)
    compounds, classes = lexicon.sets["compounds"], lexicon.category
    tags = t.tags
    first = -1  # where the noun phrase began that the last token is in
    before = "."
    for i, (uses, after, word) in enumerate(zip(tags, [*tags[1:], "."], t.words, strict=False)):
        if len(uses) == 1 and uses not in "EGV":
            tag = _small(t, i, uses, before, after) if word in SMALL else uses
        elif (
            ("G" in uses or (uses[0] == "V" and before in "DJ#CPF,"))
            and i + 1 < len(tags)
            and ((name := f"{word} {t.nouns[i + 1]}") in compounds or name in classes)
        ):
            tag = "J"  # a swimming pool and a cruise ship, and nobody who swims
        else:
            tag = uses if uses == "V" else _one(t, i, uses, before, after, first)
        if tag in "DZ#JNXU":
            if tag in "DZ" or first < 0 or (tag == "#" and before not in ("D", "J")):
                first = i
        elif tag not in "CR":
            first = -1
        tags[i] = before = tag
    return t


def _small(t: Tokens, i: int, tag: str, before: str, after: str) -> str:
    """What a small word's tag becomes where it stands."""
    word, words, tags = t.words[i], t.words, t.tags
    follows = after[0]
    if word == "yes":
        return ","
    if word in HUES:
        return "J" if words[i + 1 : i + 2] and words[i + 1] in COLOURED else tag
    if word == "that":
        if tag == "W" and follows in "NXJ#" and before not in ("N", "X"):
            return "D"
        if tag == "W" and follows in "BV" and before in (".", ","):
            return "Q"
    elif word == "her":
        return "D" if follows in "NXJEGU#" else "Q"
    elif word == "one":
        if before in ("D", "Z", "J") or after in ("F", "B", "A", "P", "W", ",", "."):
            return "X"
        adjective = set(after) & set("XJ") and i + 2 < len(tags) and "N" in tags[i + 2]
        return "#" if "N" in after or follows in "JU" or adjective else "X"
    elif tag == "Z":
        if after in (",", ".", ":") or (after == "T" and before == "."):
            return ","  # "No, ..." answers and denies nothing by itself
    elif tag == "P" and word in PLACES:
        if after in (".", ",", ":", "C", "A", "P", "I", "W", "Y", "F", "R"):
            return "R"
        if after == "#" and word in NUMBERED and before not in ("V", "G", "E"):
            return "?"
        if (word == "up" and after != "D") or (
            before in ("V", "G", "E") and word in PARTICLES and stem(words[i - 1]) in PARTICLES[word]
        ):
            return "R"
    elif word in VAGUE or (word in NUMBERED and (after == "#" or (after == "D" and "#" in tags[i + 2 : i + 3]))):
        return "?"
    elif word == "'s":
        if tag == "S" and (follows in "DOZ" or after == "G"):
            return "B"
    elif word == "can":
        if i and (words[i - 1] in CANNED or (before in ("D", "J", "#") and after != "B")):
            return "N"
    elif tag == "M" and word in UNSURE:
        return "?"
    return tag


def _one(t: Tokens, i: int, uses: str, before: str, after: str, first: int) -> str:
    """Which of a word's uses this one is."""
    word, words, tags = t.words[i], t.words, t.tags
    if word in ("left", "right"):
        return (
            "J"
            if after[0] in "NX" or (before == "D" and ("N" in after or "X" in after))
            else "E"
            if word == "left" and ((before == "N" and after == "D") or (before in ("B", "R") and after in ("P", "R", "I", "G")))
            else "X"
        )
    noun = "N" if "N" in uses else "X" if "X" in uses else ""
    follows = after[0]
    in_phrase = before in ("D", "Z", "#", "S", "J", "K") and (before != "J" or first >= 0)
    headed = follows in "NXUJ" or (follows == "E" and len(after) > 1) or "N" in after or "X" in after
    if noun and "G" in after and tags[i + 2 : i + 3] in (["D"], ["Z"]):
        headed = False  # a locomotive crossing a bridge
    if follows == "," and in_phrase and "J" in uses and i + 2 < len(tags) and "J" in tags[i + 2]:
        headed = True
    plural = t.many[i]
    if (
        "V" in uses
        and before == "N"
        and follows in "NXDP"
        and words[max(0, i - 4) : i]
        and WATCHING & set(words[max(0, i - 4) : i])
        and word in STRONG
    ):
        return "V"  # watching the boy play baseball
    if word == "half" and before == "B" and "E" in after:
        return "R"
    if word in ("cut", "set", "spread", "split", "shut") and before in ("N", "X", "B") and follows in "PRIA.,":
        return "E"
    if (
        before == "J"
        and i > 1
        and words[i - 2] in ("painted", "colored", "dyed", "dressed in", "clad in", "in")
        and base_of(word) in STRONG
    ):
        return "V"
    if (
        word in ("open", "shut")
        and before in ("N", "R", "J")
        and (tags[max(0, i - 3) : i - 1] == ["H", "D"] or words[max(0, i - 4) : i - 1].count("with"))
    ):
        return "J"
    if word in ("look", "looks", "seem", "appear") and follows == "J":
        return "V"
    # -ing
    if "G" in uses:
        if before in ("B", "N", "X", "Q", "Y", "W", "R") and follows in "DZPQ#IRAF" and noun != "N":
            return "G"
        if before == "B" and (follows in "DZQ" or (follows in "PIA" and not plural and tags[i - 2 : i - 1] != ["T"])):
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
    if word in SHADES and words[i + 1 : i + 2] and words[i + 1] in (COLOURED if word in HUES else COLOUR_HEADS):
        return "J"
    verb = "V" in uses
    if verb and (noun or "J" in uses):
        modal = before == "M" or (before == "?" and not plural and words[i - 1] in ("could", "may", "might", "would"))
        denied = before == "O" and (words[i - 1] == "cannot" or (i > 1 and tags[i - 2] in ("M", "?")))
        subject = before == "Q" and words[i - 1] != "each other"
        if (before == "I" and not plural) or denied or subject or (modal and not (noun and follows in "BV")):
            return "V"
        if before == "W" and not (words[i - 1] == "that" and noun and follows in "BV"):
            return "V"
        if (
            before == "J"
            and tags[i - 2 : i - 1] == ["B"]
            and word.endswith("s")
            and base_of(word) in STRONG
            and {"which", "who", "that", "whose"} & set(words[max(0, i - 6) : i])
        ):
            return "V"  # the man who is tall stands
        if before == "T":
            return "V"
        if in_phrase and noun:
            return (
                "J"
                if headed and "J" in uses and (uses.index("J") < uses.index(noun) or (t.looks[i] == 2 and word != "light"))
                else noun
            )
        if in_phrase and "J" in uses:
            return "J"
        if before in ("P", "F", "A", "B", "H", "V", "G", "E") and ("J" in uses or noun):
            if before == "B" and "J" in uses and not headed:
                return "J"
            if "J" in uses and headed and uses.index("J") < (uses.find(noun) if noun else 9):
                return "J"
            return noun or "J"
        if before in ("N", "X", "u", "U") and not in_phrase:
            base = base_of(word)
            singular_before = not t.many[i - 1] and not (
                first > 0 and tags[first - 1] == "C" and (follows in "DZ" or (follows in "PQRIAJ" and base_of(word) in STRONG))
            )
            opener = tags[first] if first >= 0 else ""
            only_one = (opener == "D" and words[first] in ("a", "an", "this", "each", "every", "another", "one")) or (
                opener == "#" and words[first] == "one"
            )
            is_s = word.endswith("s") and not word.endswith("ss")
            if is_s:
                if not singular_before:
                    likely = follows in "DZQ" or (base in STRONG and follows not in "FBV") or (noun == "X" and follows in "PRI")
                    return "V" if likely or not noun else noun
                if follows == "F" and base not in ("consist",):
                    return noun or "V"
                if only_one:
                    return "V"
                if base in STRONG and follows in "DZPQRIAGE,#J.CLOXN" and not _has_verb(t, i):
                    return "V"
                if (uses[0] == "V" or noun == "X") and follows in "DZPQRIA#JLO" and not _has_verb(t, i):
                    return "V"
                return noun or "V"
            if not singular_before:
                if follows in "DZPQRIAGE#,.YJLO" or follows == "." or (follows in "NX" and uses[0] == "V"):
                    return (
                        "V"
                        if (uses[0] == "V" or base in STRONG or follows in "DZQ" or (noun == "X" and follows in "PRI"))
                        else (noun or "V")
                    )
                return noun or "V"
            if "J" in uses and uses[0] == "J" and not headed:
                return "J"
            if base in STRONG and follows in "DPQRIAJ" and not _has_verb(t, i) and _many_subject(t, i):
                return "V"
            return noun or ("J" if "J" in uses else "V")
        if before in ("R", "C", ",") and uses[0] == "V" and not (noun == "N" and (before != "R" or follows in "C,")):
            return "V"
        if before == "R" and base_of(word) in STRONG and word.endswith("s"):
            return "V"
        if before == "." and follows in "DZ" and not plural and uses[0] == "V":
            return "V"
        if before == "C" and word.endswith("s") and base_of(word) in STRONG and follows in "DZPQRI":
            return "V"
        if "J" in uses and (headed or not noun):
            return (
                "J"
                if not noun
                or uses.index("J") < uses.index(noun)
                or (t.looks[i] == 2 and follows in "NX" and word not in ("light",))
                else noun
            )
        return noun or uses[0]
    if noun and "J" in uses:
        j_first = uses.index("J") < uses.index(noun)
        if word == "light" and words[i + 1 : i + 2] and words[i + 1] in COLOUR_HEADS:
            return "J"
        if before == "J" and words[i - 1] in SHADES and word in COLOUR_HEADS and tags[i - 2 : i - 1] == ["B"]:
            return "J"  # which is bright orange
        if not headed and (in_phrase or (before == "F" and t.looks[i] < 2)) and (follows not in "C," or _ends(tags, i + 1)):
            return noun
        if before == "N" and first >= 0 and not (headed and t.looks[i] == 2 and uses[0] == "J" and word not in COLOUR_NOUNS):
            return noun
        if (headed or (follows in "C," and j_first)) and (follows in "NXU" or follows in "JEC,"):
            return "J" if j_first or (t.looks[i] == 2 and word not in ("light",)) else noun
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


def _ends(tags: list[str], comma: int) -> bool:
    """Whether a list goes on with another thing after this comma or `and`, and not another adjective: a round ottoman, and a lamp."""
    k = comma + 2 if tags[comma] == "," and tags[comma + 1 : comma + 2] == ["C"] else comma + 1
    return k >= len(tags) or tags[k] in ("D", ".", "#")


def stem(word: str) -> str:
    """A verb's base, as far as endings tell."""
    found = word.removesuffix("ing").removesuffix("s") if word.endswith(("ing", "s")) else word
    return (
        found[:-1]
        if found[-2:-1] == found[-1:] and found[-1:] in "tnpg"
        else {"tak": "take", "rais": "raise", "giv": "give"}.get(found, found)
    )


def base_of(word: str) -> str:
    if not word.endswith("s"):
        return word
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


def _has_verb(t: Tokens, i: int) -> bool:
    """Whether the clause had its finite verb before this word."""
    for k in range(i - 1, max(-1, i - 14), -1):
        if t.tags[k] in ".:YW" or t.words[k] == "as":
            return False
        if t.tags[k] in "BVHM":
            return True
    return False
