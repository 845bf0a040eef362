"""What a free-form answer says: yes or no, a letter, a number. What cannot be told is `unparsed` (None), and never counts as either.

`yes_no`, `choice` and `number` are the project's own readers, measured in `tests/test_answers.py` on answers labelled by hand. `pope_says` is the
rule of POPE's script (AoiDragon/POPE evaluate.py), odd as it is, for figures that stand beside published ones. No torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Literal

from mmrlhf.coco_words import node_of

YesNo = Literal["yes", "no"]
READ = 2000
"""Characters that are read from either end of a longer answer: a verdict stands at its beginning or at its end."""


def pope_says(answer: str) -> YesNo:
    """POPE's own rule: `no` if a word of the first sentence is exactly No, no or not; else `yes`, whatever it says (an empty answer too)."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


# ---- plain text ------------------------------------------------------------------------------------------------------

_MARKUP = re.compile(r"[*`_#>|~]+|\\boxed|\\text|<image>|</?answer>", re.IGNORECASE)


def plain(answer: str) -> str:
    """An answer without its thoughts (`<think>`), markup, invisible characters and typographic quotes; long ones without their middle."""
    text = answer
    if (end := text.rfind("</think>")) >= 0:
        text = text[end + len("</think>") :]
    elif (begin := text.find("<think>")) >= 0:  # cut off before it said anything
        text = text[:begin]
    text = text.strip()
    if len(text) > 2 * READ:
        text = f"{text[:READ]}\n{text[-READ:]}"
    text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) not in ("Cf", "Mn") or c.isalpha())
    text = text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return re.sub(r"[^\S\n]+", " ", _MARKUP.sub(" ", text)).strip()


# ---- yes or no -------------------------------------------------------------------------------------------------------

_YES = r"yes|yeah|yep|yup|oui|sí|si|sì|ja|да|sim|tak|evet|نعم"
_NO = r"no|nope|nah|non|nein|nee|nej|нет|não|nao|nie|hayır|لا"
_YES_PREFIX = ("是", "有", "对", "はい", "예", "네", "हाँ", "✅", "✔", "👍")
_NO_PREFIX = ("否", "不", "没", "沒", "无", "いいえ", "아니", "नहीं", "❌", "✖", "👎", "🚫")
_LEADING = re.compile(rf"[^\w✅✔👍❌✖👎🚫]*(?:(?P<yes>{_YES})|(?P<no>{_NO}))\b")
_FINAL = re.compile(
    rf"\b(?:(?:answer|verdict|conclusion|response|a)\b\W*(?:is|would be|must be|should be)?\W*|(?:but|so|therefore|thus|hence)\W+)"
    rf"(?:(?P<yes>{_YES})|(?P<no>{_NO}))\b(?!\s+(?:other|longer|more)\b)(?=\W*(?:$|[.,:;!\n\"'}}\])-]))"
)
"""Where an answer states its conclusion. What follows must end there: "but no dog" is no verdict on what was asked."""
_SET_OFF = re.compile(
    rf"(?:[,:;—–%]|\s-|\b(?:say|well|oh|probably|likely|think|actually))\s*[\"']?(?:(?P<yes>{_YES})|(?P<no>{_NO}))\b(?=[\"']?\s*(?:$|[.,:;!—–]))"
)
"""A yes or no that stands alone in a sentence, after something: "Based on the picture, yes." """
_BOTH = re.compile(r"\b(?:both )?(?:yes(?:\s+and\s+|\s+or\s+|\s*/\s*|\s+)no|no(?:\s+and\s+|\s+or\s+|\s*/\s*|\s+)yes)\b")
_IDIOM = re.compile(
    r"\bno (?:doubt|problem|question|wonder|matter|idea|clue)\b|\bwithout (?:a |any )?(?:doubt|question)\b|\bnot only\b|\bwhy not\b"
)
_CERTAIN = re.compile(r"^\W*(?:no doubt|without (?:a |any )?(?:doubt|question))\W*$")

_UNSURE = re.compile(
    r"\b(?:not (?:\d+% )?(?:sure|certain|clear|possible to|able to(?! (?:see|find|spot|detect)))|unsure|uncertain|unclear|no idea|no clue|unknown"
    r"|unable(?! to (?:see|find|spot|detect))|impossible to|maybe|perhaps|possibly"
    r"|(?:hard|difficult|not easy) to (?:say|tell|determine|see)|(?:too \w+ to)|either .+ or"
    r"|(?:can't|cannot|can not|couldn't|could not|don't|do not|doesn't|does not) "
    r"(?:\w+ )?(?:tell|determine|know|say|answer|view|help|assist|confirm|be determined)"
    r"|(?:could|might|may) (?:also )?(?:be|look))\b|不确定|不知道"
)
_ASSENT = re.compile(
    r"^\W*(?:(?:that(?:'s| is) )?(?:correct|right|true)|indeed|sure(?!,? but)|of course|absolutely|definitely|certainly|exactly|affirmative"
    r"|you(?:'re| are) right|(?:it|there|they|he|she|this|that)(?: (?:is|are|does|do|has|have|was|can)|'s)(?= *(?:$|[.!]))"
    r"|i (?:think|believe|guess|suppose) so|(?:it )?(?:appears|seems|looks) (?:so|like it|that way))\b"
)
_DISSENT = re.compile(
    r"^\W*(?:(?:that(?:'s| is) )?(?:incorrect|wrong|false)|negative|none|nothing|never|neither|not\b(?! (?:\d+% )?(?:sure|certain|clear))"
    r"|(?:i(?:'m| am) afraid|probably|likely|apparently|of course|absolutely|definitely|certainly|surely|it (?:seems|appears)) (?:not|no)\b|i doubt\b|i (?:don't|do not) (?:think|believe) so|it (?:doesn't|does not) (?:appear|seem|look) (?:so|like it)"
    r"|(?:it|there|they|he|she|this|that) ?(?:is|are|does|do|has|have|was|can)(?:n't| not)(?= *(?:$|[.!])))"
)
_DENIED = re.compile(
    r"\bi (?:see|find|spot|detect|notice) (?:no|none)\b|\b(?:don't|do not|can't|cannot|can not|didn't|did not|couldn't|could not) "
    r"(?:actually )?(?:see|find|spot|detect|notice) (?:any|one|it|them|that|such)\b|\bthere(?:'s| is| are) none\b"
)
_DOUBTED = re.compile(
    r"\b(?:it|i|we) (?:doesn't|does not|don't|do not) (?:appear|seem|look|think|believe)(?: that| like| as if| as though)? there (?:is|are)\b(?! no\b| not\b|n't)"
    r"|\bthere(?:'s| is) nothing (?:that )?(?:like|looks? like|resembling|resembles)\b"
)
"""Other words for "there is not", whose denial would stand in another clause than what was asked."""
_NONE_THERE = re.compile(
    r"^\W*(?:(?:i|we) (?:think|believe|guess|suppose)(?: that)?,? )?there (?:isn't|is not|aren't|are not) (?:one|any)(?= *(?:$|[.!]))"
)
_JUDGED = re.compile(r"\b(?:statement|claim|assertion|description|that|this|it)(?: is|'s)(?P<not> not|n't)? (?:(?P<yes>true|correct|right|accurate)|(?P<no>false|incorrect|wrong|inaccurate))\b")  # fmt: skip
_NEGATOR = re.compile(r"\b(?:not|cannot|unable|never|neither|nor|nowhere|absent|missing)\b|n't\b")
_NEGATOR_BEFORE = re.compile(r"\b(?:no|none|zero|without|lacks?|lacking|hardly|scarcely|barely)\b")
"""These deny what follows them: "a dog without a collar" is a dog."""
_CLAUSES = re.compile(r"[,;:—–]| - |\bbut\b|\balthough\b|\bthough\b|\bwhile\b|\bwhereas\b|\bhowever\b|\bexcept\b|\bthat\b|\bwhich\b|\bwho\b|\band (?=no\b|not\b)")  # fmt: skip
_APOSTROPHE = re.compile(r"\b(is|are|was|were|do|does|did|ca|could|wo|would|has|have)nt\b")
_DULL = """a an the is are was were be there any some in on of at to with and or do does did can could you i we see this that these those it its image
picture photo photograph scene visible shown appear appears present have has please answer yes no only just using single word phrase question following
statement right correct true based find as your place number total between"""
_DULL_WORDS = frozenset(_DULL.split())
_THERE = re.compile(r"\bthere(?:'s| is| are| appears?| seems?)\b|\b(?:i|you|we|one) (?:can |could )?(?:clearly )?see\b|\b(?:is|are) (?:visible|present|shown|seen|there|included|depicted)\b|\b(?:shows?|contains?|depicts?|includes?|features?)\b")  # fmt: skip
_DENIES_THERE = re.compile(r"\bthere(?:'s| is| are)(?: not|n't)? (?:no\b|not\b|any\b)|\bthere (?:isn't|aren't)|(?:\bnot|n't) (?:\w+ )?(?:visible|present|shown|seen|see|contain|show|depict|include|in)\b|\bcannot see\b|\bno \w+(?: \w+)? (?:is|are|can|in)\b|\bsee no\b")  # fmt: skip


def yes_no(answer: str, question: str = "") -> YesNo | None:
    """What an answer says to a yes/no question, or None. The question, if given, tells statements on what was asked from others.

    In this order: a stated conclusion ("the answer is no"); the first sentence with a yes or no that begins it or is set off in it; the first
    that agrees, denies, or states or denies what was asked. An answer that says it cannot tell is None, unless a yes or no follows.
    """
    text = plain(answer).lower()
    asked = plain(question).lower()
    if asked:
        text = text.replace(asked, " ")
    sentences = [
        s for s in re.split(r"(?<=[.!?])(?=[\s\"')]|$)|(?<=[。！？])|\n+", text) if s.strip() and not s.strip().endswith("?")
    ]
    text = _APOSTROPHE.sub(r"\1n't", _BOTH.sub(" ", "\n".join(s.strip() for s in sentences)))
    if re.fullmatch(r"\W*[yn]\W*", text):
        return "yes" if "y" in text else "no"
    if concluded := list(_FINAL.finditer(text)):
        return "yes" if concluded[-1]["yes"] else "no"
    unsure, weak, about = False, None, _content(asked)
    for sentence in text.split("\n"):
        if (said := leading_yes_no(sentence)) is not None:
            return said
        if alone := _SET_OFF.search(sentence):
            return "yes" if alone["yes"] else "no"
        if _UNSURE.search(sentence):
            unsure = True
        elif not unsure and weak is None:
            weak = _stated(sentence, about)
    return None if unsure and weak is None else weak


def leading_yes_no(text: str) -> YesNo | None:
    """The yes or no that a text begins with, in whichever of the better-known languages."""
    text = text.lower()
    bare = text.lstrip(" \"'([{-:,.\n\t*")
    if bare.startswith(_YES_PREFIX):
        return "yes"
    if bare.startswith(_NO_PREFIX):
        return "no"
    found = None if _IDIOM.match(bare) else _LEADING.match(text)
    return None if found is None else "yes" if found["yes"] else "no"


def _stated(sentence: str, asked: list[str]) -> YesNo | None:
    """What a sentence that does not begin with yes or no says of what was asked."""
    if _CERTAIN.match(sentence):
        return "yes"
    sentence = _IDIOM.sub(" ", sentence)
    if judged := _JUDGED.search(sentence):
        return "yes" if bool(judged["yes"]) != bool(judged["not"]) else "no"
    sentence = _DOUBTED.sub("there is not", sentence)
    if _DISSENT.match(sentence) or _DENIED.search(sentence) or _NONE_THERE.match(sentence):
        return "no"
    if _ASSENT.match(sentence):
        return "yes"
    if not asked:
        return "no" if _DENIES_THERE.search(sentence) else "yes" if _THERE.search(sentence) else None
    clauses = _CLAUSES.split(sentence)
    alike = [" ".join(_names(clause, asked)) for clause in clauses]
    return next((said for clause in (*clauses, *alike) if (said := _of_clause(clause, asked)) is not None), None)


def _of_clause(clause: str, asked: list[str]) -> YesNo | None:
    words = [_stem(w) for w in _WORD.findall(clause)]
    named = [w for w in asked if w in words]
    # "It is red" answers "Is the car red?": a pronoun stands for the first thing that was asked about.
    whole = named == asked or (len(asked) > 1 and named == asked[1:] and words[0] in ("it", "they", "he", "she"))
    if _NEGATOR.search(clause) and (whole or named[-1:] == asked[-1:]):
        return "no"
    if whole:
        denied = _NEGATOR_BEFORE.search(clause)
        place = min(clause.find(w) for w in named)
        return "no" if denied and denied.start() < place else "yes"
    return None


_WORD = re.compile(r"[^\W_]+(?:'t)?")
_PEOPLE = {"people", "someone", "somebody", "anyone", "anybody", "everyone"}
_ODD = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose", "feet": "foot", "teeth": "tooth",
        "knives": "knife", "leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "sheep": "sheep"}  # fmt: skip


def _content(question: str) -> list[str]:
    """The words that say what is asked: of "Is there a dog in the image?", dog."""
    first = re.split(r"[?\n]", question)[0]
    return [_stem(w) for w in dict.fromkeys(_WORD.findall(first)) if w not in _DULL_WORDS]


def _names(clause: str, asked: list[str]) -> list[str]:
    """A clause's words, other names of one of COCO's objects that was asked for by its own name turned into that: "a man" is a person."""
    found, words = [], _WORD.findall(re.sub(r"\b(?:nobody|no one)\b", "no person", clause))
    objects = node_of()
    i = 0
    while i < len(words):
        for length in (2, 1):
            said = " ".join([*words[i : i + length - 1], _stem(words[min(i + length, len(words)) - 1])])
            node = "person" if said in _PEOPLE else objects.get(said)
            if node is not None and set(node.split()) <= set(asked):
                found.append(node)
                i += length
                break
        else:
            found.append(words[i])
            i += 1
    return found


def _stem(word: str) -> str:
    """A word without its plural, well enough to find it again."""
    if word in _ODD:
        return _ODD[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


# ---- letters ---------------------------------------------------------------------------------------------------------


def choice(answer: str, letters: str = "ABCD", options: Mapping[str, str] | None = None) -> str | None:
    """The letter of `letters` that an answer chooses, or None. `options` are their texts: an answer may repeat one instead of its letter.

    A stated conclusion comes first, then a letter that the answer begins with or that stands alone in it. Two that differ are none. A lone
    "A" in front of a word in lower case is the article.
    """
    text = plain(answer)
    one = f"[{letters}{letters.lower()}]"
    end = r"(?![\w'’])"
    said = re.findall(
        rf"(?i:\b(?:answer|option|choice|choose|pick|select)(?:s|ed)?\b(?: (?:is|would be|must be))?\W*(?:(?:option|choice) )?)\W*({one}){end}({_PHRASE})?",
        text,
    )
    stated = [letter for letter, phrase in said if not (phrase and letter in "AaIi")]
    if stated and not re.search(rf"\b(?:or|and) \W*{one}{end}", text[text.rfind(stated[-1]) :]):
        return stated[-1].upper()
    if alone := re.fullmatch(rf"\W*({one})\W*", text.split("\n")[0]):
        return alone[1].upper()
    if options:
        named = {k for k, v in options.items() if v and re.search(rf"(?<!\w){re.escape(v.lower())}(?!\w)", text.lower())}
        if len(named) == 1 and not _letters(text, letters) - named:
            return named.pop()
    if leading := re.match(rf"\W*({one})\W*(?:[.):]|,(?!\s*\W?{one}{end}))", text):
        return leading[1].upper()
    found = _letters(text, letters)
    return found.pop() if len(found) == 1 else None


_PHRASE = r"\s+(?!or\b|and\b|is\b|because\b|since\b|as\b)[a-z]"
"""What follows an article."""


def _letters(text: str, letters: str) -> set[str]:
    """Capital letters that stand alone, but no article, no pronoun I, and none that is denied ("not A")."""
    found = re.finditer(rf"(?<!\bnot )(?<![\w'])([{letters}])(?![\w'])(?P<phrase>{_PHRASE})?", text)
    return {m[1] for m in found if not (m["phrase"] and m[1] in "AI")}


# ---- numbers ---------------------------------------------------------------------------------------------------------

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"""
_ONES, _TENS = _SMALL.split(), [f"{ten}ty" for ten in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine")]
_WORDS = {w: float(i) for i, w in enumerate(_ONES)} | {w: 10.0 * i for i, w in enumerate(_TENS, 2)} | {"none": 0.0, "no": 0.0}
_NUMBER = re.compile(
    rf"(?<![\w.])-?\d+(?:,\d{{3}})*(?:\.\d+)?(?![\w]*\w)|\b(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_ONES[1:10])}))?\b|\b(?:{'|'.join(_ONES)}|none)\b(?![ -](?:hundred|thousand|million|dozen))|\bno\b(?= \w)"
)
_CONCLUDES = re.compile(r"(?:\b(?:answer|total|result)\b(?: is| of|:)?|=|\b(?:so|therefore|thus|no)\b)\W*$")


def number(answer: str) -> float | None:
    """The number that an answer gives, in digits or in words, or None. "No chairs" is 0.

    If it has several, the last that stands after "answer", "total", "=", "so" or a correction ("3, no, 4"); None if none does.
    """
    text = plain(answer).lower()
    found = list(_NUMBER.finditer(text))
    concluded = [m for m in found if _CONCLUDES.search(text[: m.start()])]
    digits = [m for m in found if m[0] != "no"]
    values = {_value(m[0]) for m in concluded[-1:] or digits or found}
    return values.pop() if len(values) == 1 else None


def _value(written: str) -> float:
    if written[-1].isdigit():
        return float(written.replace(",", ""))
    return sum(_WORDS[w] for w in re.split(r"[ -]", written))


# ---- judgments -------------------------------------------------------------------------------------------------------


def verdict(reply: str, right: str = "correct", wrong: str = "incorrect") -> bool | None:
    """Whether a judge's reply says `right` (True) or `wrong` (False), as a word of its own and not denied; None for both, or neither."""
    text = plain(reply).lower()
    found = set()
    for m in re.finditer(rf"(?P<not>(?:\bnot|n't) (?:\w+ )?)?\b(?:(?P<right>{right})|(?P<wrong>{wrong}))\b", text):
        found.add(bool(m["right"]) != bool(m["not"]))
    return found.pop() if len(found) == 1 else None


def rating(reply: str, most: int) -> int | None:
    """The whole number up to `most` that a judge's reply gives as its rating (the last, if it says so several times); None if there is none."""
    text = plain(reply).lower()
    found = re.findall(r"\b(?:rating|score|rate)\b(?:[^\w\n]|is\b|of\b|:)*(\d+)(?![\d.]*\d)", text)
    if not found and re.fullmatch(r"\W*\d+\W*", text):
        found = re.findall(r"\d+", text)
    return int(found[-1]) if found and int(found[-1]) <= most else None
