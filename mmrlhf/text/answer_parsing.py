"""Parse free-form answers: yes or no, a letter, a number, a judge's verdict or rating.

An answer that cannot be parsed gives None, which never counts as yes or no. `parse_yes_no`,
`parse_choice` and `parse_number` are the project's own; `tests/text/test_answer_parsing.py`
measures them on answers labelled by hand. `pope_official` is the (odd) rule of POPE's script
(AoiDragon/POPE evaluate.py), for figures that are comparable with published ones. No torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Literal

from mmrlhf.text.answer_words import (
    LEADING_YES_NO,
    NO,
    NO_PREFIXES,
    WORD,
    YES,
    YES_PREFIXES,
    canonicalise_objects,
    content_words,
    remove_invisible,
    singularize,
    states_alternative,
)
from mmrlhf.text.chinese_answers import chinese_yes_no, is_chinese
from mmrlhf.text.count_answers import count_verdict
from mmrlhf.text.existence_answers import asked_object, counts_none, state_existence
from mmrlhf.text.words import NUMBER_VALUES, NUMBER_WORDS, TENS

YesNo = Literal["yes", "no"]
MAX_READ_CHARS = 2000
"""Characters read from either end of a longer answer; the verdict is at its beginning or end."""


def pope_official(answer: str) -> YesNo:
    """Parse yes or no as POPE's script does.

    An answer is `no` if a word of its first sentence is exactly No, no or not, and otherwise `yes`,
    even if it is empty.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


# ---- normalisation -----------------------------------------------------------------------------

_MARKUP = re.compile(r"[*`_#>|~]+|\\boxed|\\text|<image>|</?answer>", re.IGNORECASE)


def normalise(answer: str) -> str:
    """Return an answer without reasoning (`<think>`), markup and invisible characters.

    Curly quotes become straight, and a long answer loses its middle (see `MAX_READ_CHARS`).
    """
    text = answer
    if (end := text.rfind("</think>")) >= 0:
        text = text[end + len("</think>") :]
    elif (begin := text.find("<think>")) >= 0:  # cut off before the answer
        text = text[:begin]
    text = text.strip()
    if len(text) > 2 * MAX_READ_CHARS:
        text = f"{text[:MAX_READ_CHARS]}\n{text[-MAX_READ_CHARS:]}"
    text = remove_invisible(unicodedata.normalize("NFKC", text))  # NFKC unifies full-width and other compatibility forms
    text = text.replace("’", "'").replace("‘", "'").replace("“", '"').replace("”", '"')
    return re.sub(r"[^\S\n]+", " ", _MARKUP.sub(" ", text)).strip()


# ---- yes or no ---------------------------------------------------------------------------------

_CONCLUSION = re.compile(
    rf"\b(?:(?:answer|verdict|conclusion|response|a)\b\W*(?:is|would be|must be|should be)?\W*|(?:but|so|therefore"
    rf"|thus|hence)\W+)"
    rf"(?:(?P<yes>{YES})|(?P<no>{NO}))\b(?!\s+(?:other|longer|more)\b)(?=\W*(?:$|[.,:;!\n\"'}}\])-]))"
)
"""A stated conclusion. Nothing may follow it: "but no dog" is not a verdict on the question."""
_STANDALONE = re.compile(
    rf"(?:[,:;—–%]|\s-|\b(?:say|well|oh|probably|likely|think|actually|lean(?:ing)? towards?))\s*[\"']?(?:(?P<yes>{YES})"
    rf"|(?P<no>{NO}))\b(?=[\"']?\s*(?:$|[.,:;!—–]))"
)
"""A yes or no set off at the end of a sentence: "Based on the picture, yes." """
_YES_AND_NO = re.compile(r"\b(?:both )?(?:yes(?:\s+and\s+|\s+or\s+|\s*/\s*|\s+)no|no(?:\s+and\s+|\s+or\s+|\s*/\s*|\s+)yes)\b")
"""Both answers at once, which count as neither."""
_IDIOM = re.compile(
    r"\bno (?:doubt|problem|question|wonder|matter|idea|clue)\b|\bwithout (?:a |any )?(?:doubt|question)\b"
    r"|\bnot only\b|\bwhy not\b|\bno (?:other|fewer|less)\b"
)
"""Phrases with no or not that negate nothing."""
_LABEL = re.compile(
    r"\s*:\s*(?=(?:absent|missing|present|visible|not)\b)|\s+[-–—]\s+(?=(?:(?:not )?(?:present|visible|there|shown|seen)|absent|missing)\b)"
)
"""A colon or a dash in place of a verb: "Dog: absent"."""
_CONDITION = re.compile(r"\bif (?:there|it|they|the|a|an|any) [^,]*(?:,|$)")
"""A condition, which states nothing."""
_CERTAIN = re.compile(r"^\W*(?:no doubt|without (?:a |any )?(?:doubt|question))\W*$")
"""An idiom as a whole sentence, which affirms."""

_UNSURE = re.compile(
    r"\b(?:not (?:\d+% )?(?:sure|certain|clear|possible to|able to(?! (?:see|find|spot|detect)))|unsure|uncertain"
    r"|unclear|no idea|no clue|unknown"
    r"|unable(?! to (?:see|find|spot|detect))|impossible to|maybe|perhaps|possibly"
    r"|(?:hard|difficult|not easy) to (?:say|tell|determine|see)|(?:too \w+ to)|either .+ or"
    r"|(?:can't|cannot|can not|couldn't|could not|don't|do not|doesn't|does not) "
    r"(?:\w+ )?(?:rule out|exclude|tell|determine|know|say|answer|view|help|assist|confirm|be determined)"
    r"|(?:could|might|may) (?:also )?(?:be|look))\b"
)
"""The answer is unsure."""
_ASSENT = re.compile(
    r"^\W*(?:(?:that(?:'s| is) )?(?:correct|right|true)|indeed|sure(?!,? but)|of course|absolutely|definitely"
    r"|certainly|exactly|affirmative|i (?:\w+ly )?agree|agreed"
    r"|you(?:'re| are) right|(?:it|there|they|he|she|this|that)(?: (?:is|are|does|do|has|have|was|can)|'s)(?= *(?:$|[.!]))"
    r"|i (?:think|believe|guess|suppose) so|(?:it )?(?:appears|seems|looks) (?:so|like it|that way))\b"
)
"""Agrees with the question without a yes."""
_DISSENT = re.compile(
    r"^\W*(?:(?:that(?:'s| is) )?(?:incorrect|wrong|false)|negative|none|nothing|never|neither"
    r"|not\b(?! (?:\d+% )?(?:sure|certain|clear))"
    r"|(?:i(?:'m| am) afraid|probably|(?:most |very )?likely|apparently|of course|absolutely|definitely|certainly|surely|it (?:seems"
    r"|appears)) (?:not|no)\b|i doubt\b|i (?:(?:would|must|have to|would have to) )?disagree\b|i (?:don't|do not) (?:think|believe) so|it (?:doesn't|does not) (?:appear"
    r"|seem|look) (?:so|like it)"
    r"|(?:it|there|they|he|she|this|that) ?(?:is|are|does|do|has|have|was|can)(?:n't| not)(?= *(?:$|[.!])))"
)
"""Disagrees with the question without a no."""
_NOT_SEEN = re.compile(
    r"\bi (?:see|find|spot|detect|notice) (?:no|none)\b|\b(?:don't|do not|can't|cannot|can not|didn't|did not"
    r"|couldn't|could not) "
    r"(?:actually )?(?:see|find|spot|detect|notice) (?:any|one|it|them|that|such)\b|\bthere(?:'s| is| are) none\b"
    r"|\bnone (?:is|are|can be) (?:visible|present|shown|seen|there)\b"
)
"""Does not see the object in question."""
_DOUBTED_EXISTENCE = re.compile(
    r"\b(?:it|i|we) (?:doesn't|does not|don't|do not) (?:appear|seem|look|think|believe)(?: that| like| as if"
    r"| as though)? there (?:is|are)\b(?! no\b| not\b|n't)"
    r"|\bthere(?:'s| is) nothing (?:that )?(?:like|looks? like|resembling|resembles)\b"
)
"""Forms of "there is not" with the negation in another clause than the object."""
_NONE_EXIST = re.compile(
    r"^\W*(?:(?:i|we) (?:think|believe|guess|suppose)(?: that)?,? )?there (?:isn't|is not|aren't|are not) (?:one"
    r"|any)(?= *(?:$|[.!]))"
)
"""Says that there is none, without naming it."""
_ABSENT = re.compile(
    r"^\W*(?:(?:it|they|that|this|he|she|one)(?:'s|'re| is| are| was| were) )?(?:completely |entirely |clearly )?"
    r"(?:absent|missing|lacking|nowhere(?: to be (?:seen|found))?|non-?existent|unseen|invisible|zero|none"
    r"|not (?:present|there|visible|shown|seen|found|included|in the (?:image|picture|photo|scene)))\b(?= *(?:$|[.!,]| in | from ))"
)
"""A whole sentence that denies the thing in question: it is absent."""
_PRESENT = re.compile(
    r"^\W*(?:(?:it|they|that|this|he|she|one)(?:'s|'re| is| are) )?(?:clearly |definitely )?(?:present|visible|seen|shown|there"
    r"|included)\b(?= *(?:$|[.!,]| in ))|^\W*(?:it|one) exists?\b|^\W*there(?:'s| is) one(?= *(?:$|[.!]))"
)
"""A whole sentence that affirms the thing in question: it is visible."""
_TRUTH_STATEMENT = re.compile(
    r"\b(?:statement|claim|assertion|description|that|this|it)(?: is|'s)(?P<not> not|n't)? (?:(?P<yes>true|correct"
    r"|right|accurate)|(?P<no>false|incorrect|wrong|inaccurate))\b"
)
"""Judges a statement in the question."""
_NEGATOR = re.compile(
    r"\b(?:not|cannot|unable|never|neither|nor|nowhere|absent|missing|fail(?:s|ed)? to|no longer|(?<!is )(?<!are )used to be"
    r"|(?:was|were) once|once (?:was|were)|(?:removed|cropped|cut) (?:from|out of)|(?:has|have) left the)\b|n't\b"
    r"|(?<!partly )(?<!partially )(?<!half )(?<!mostly )(?<!slightly )"
    r"\b(?:out of (?:the )?|outside (?:of )?(?:the )?)(?:frame|view|sight|shot|image|picture)\b"
)
"""Negators of a whole clause: "the dog is out of frame", "there used to be a dog"."""
_PRECEDING_NEGATOR = re.compile(
    r"\b(?:no|none|zero|without|lacks?|lacking|hardly|scarcely|barely|rather than|instead of|as opposed to|in place of|devoid of"
    r"|empty of|free of|unlike|more like [^,.]{1,60}? than)\b"
)
"""Negators of what follows them: "a dog without a collar" is a dog, "a truck rather than a bus" no
bus."""
_SUBJECT_PRONOUNS = ("it", "they", "he", "she")
_ENDS_IN_PRONOUN = re.compile(r"\b(?:it|them|him|her)\W*$")
_CLAUSE_BOUNDARY = re.compile(
    r"[,;:—–]| - |\bbut\b|\balthough\b|\bthough\b|\bwhile\b|\bwhereas\b|\bhowever\b|\bexcept\b|\bthat\b|\bwhich\b"
    r"|\bwho\b|\band (?=no\b|not\b)|\bbesides\b|\b(?:apart|aside) from\b|\bother than\b"
)
"""Boundaries that a negation does not cross."""
_MISSING_APOSTROPHE = re.compile(r"\b(is|are|was|were|do|does|did|ca|could|wo|would|has|have)nt\b")
"""Spellings such as isnt."""
_STATES_EXISTENCE = re.compile(
    r"\bthere(?:'s| is| are| appears?| seems?)\b|\b(?:i|you|we|one) (?:can |could )?(?:clearly )?see\b|\b(?:is"
    r"|are) (?:visible|present|shown|seen|there|included|depicted)\b|\b(?:shows?|contains?|depicts?|includes?"
    r"|features?)\b"
)
"""States that something is there; used only without a question."""
_DENIES_EXISTENCE = re.compile(
    r"\bthere(?:'s| is| are)(?: not|n't)? (?:no\b|not\b|any\b)|\bthere (?:isn't|aren't)|(?:\bnot"
    r"|n't) (?:\w+ )?(?:visible|present|shown|seen|see|contain|show|depict|include|in)\b|\bcannot see\b"
    r"|\bno \w+(?: \w+)? (?:is|are|can|in)\b|\bsee no\b"
)
"""States that something is not there; used only without a question."""


def parse_yes_no(answer: str, question: str = "") -> YesNo | None:
    """Return an answer's yes or no, or None.

    If the question is given, statements about other objects do not count. Looks for, in this order:
    a stated conclusion ("the answer is no"); the first sentence that begins with yes or no or has
    one set off in it; the first sentence that agrees, disagrees, or states or negates what was
    asked. An unsure answer gives None, unless a yes or no follows.
    """
    text = normalise(answer).lower()
    question_text = normalise(question).lower()
    if question_text:
        text = text.replace(question_text, " ")
    sentences = [
        part
        for part in re.split(r"(?<=[.!?])(?=[\s\"')\u4e00-\u9fff]|$)|(?<=[。！？])|\n+", text)
        if part.strip() and not part.strip().endswith("?")
    ]
    text = _MISSING_APOSTROPHE.sub(r"\1n't", _YES_AND_NO.sub(" ", "\n".join(part.strip() for part in sentences)))
    if re.fullmatch(r"\W*[yn]\W*", text):
        return "yes" if "y" in text else "no"
    if conclusions := list(_CONCLUSION.finditer(text)):
        return "yes" if conclusions[-1]["yes"] else "no"
    is_unsure, implied, question_words = False, None, content_words(question_text)
    name = asked_object(question_text)
    for sentence in text.split("\n"):
        is_plain = _STANDALONE.search(sentence) or (leading_yes_no(sentence) and not counts_none(sentence))
        sentence = state_existence(sentence, name) if name and not is_plain else sentence
        if is_chinese(sentence):
            verdict, certainty = chinese_yes_no(sentence, question_text)
            if certainty == "stated":
                return verdict
            is_unsure = is_unsure or certainty == "unsure"
            if implied is None and not is_unsure:
                implied = verdict
            continue
        if (leading := leading_yes_no(sentence)) is not None:
            return leading
        if standalone := _STANDALONE.search(sentence):
            return "yes" if standalone["yes"] else "no"
        if doubt := _UNSURE.search(sentence):
            _, but, rest = sentence[doubt.end() :].rpartition(" but ")
            stated = _polarity(rest, question_words, question_text) if but and not _UNSURE.search(rest) else None
            is_unsure = stated is None
            sentence_verdict = stated
        else:
            sentence_verdict = None if is_unsure else _polarity(sentence, question_words, question_text)
        implied = implied or sentence_verdict
    return implied


def leading_yes_no(text: str) -> YesNo | None:
    """Return the yes or no that a text begins with, in English or another common language."""
    text = text.lower()
    stripped = text.lstrip(" \"'([{-:,.\n\t*")
    if is_chinese(first_words := re.split(r"[,.，。!！;；\n]", stripped)[0]):
        return chinese_yes_no(first_words)[0]
    if stripped.startswith(YES_PREFIXES):
        return "yes"
    if stripped.startswith(NO_PREFIXES):
        return "no"
    match = None if _IDIOM.match(stripped) else LEADING_YES_NO.match(text)
    if match is None:
        return None
    return "yes" if match["yes"] else "no"


def _polarity(sentence: str, question_words: list[str], question: str) -> YesNo | None:
    """Return the yes or no that a sentence implies without beginning with it, or None."""
    if _CERTAIN.match(sentence):
        return "yes"
    sentence = _CONDITION.sub(" ", _IDIOM.sub(" ", sentence))
    sentence = _LABEL.sub(" is ", sentence)
    if truth := _TRUTH_STATEMENT.search(sentence):
        return "yes" if bool(truth["yes"]) != bool(truth["not"]) else "no"
    sentence = _DOUBTED_EXISTENCE.sub("there is not", sentence)
    if _DISSENT.match(sentence) or _NOT_SEEN.search(sentence) or _NONE_EXIST.match(sentence):
        return "no"
    if _ASSENT.match(sentence):
        return "yes"
    if (absent := _ABSENT.match(sentence)) or _PRESENT.match(sentence):
        # "Missing" affirms a question about what is missing.
        return "no" if absent and not _NEGATOR.search(question) else "yes"
    if not question_words:
        if _DENIES_EXISTENCE.search(sentence):
            return "no"
        return "yes" if _STATES_EXISTENCE.search(sentence) else None
    clauses = _CLAUSE_BOUNDARY.split(sentence)
    for clause in clauses:
        if (verdict := count_verdict(clause, question)) is not None:
            return verdict
    # Synonyms of the object come second, so that its own name takes precedence.
    canonical_clauses = [" ".join(canonicalise_objects(clause, question_words)) for clause in clauses]
    for clause in (*clauses, *canonical_clauses):
        polarity = _clause_polarity(clause, question_words)
        if polarity is not None:
            return polarity
    return None


def _clause_polarity(clause: str, question_words: list[str]) -> YesNo | None:
    """Return yes or no if a clause states or negates what the question's words name."""
    words = [singularize(word) for word in WORD.findall(clause)]
    mentioned = [word for word in question_words if word in words]
    # "It is red" answers "Is the car red?": a pronoun can replace the first word. It can replace
    # the last one, too: "a cat is under it", or "not under it", to "Is a cat under the table?".
    has_pronoun_subject = bool(words) and words[0] in _SUBJECT_PRONOUNS
    is_place = len(question_words) > 2 and _ENDS_IN_PRONOUN.search(clause) and content_words(clause)[-1:] == question_words[-2:-1]
    is_full_match = (
        mentioned == question_words
        or (len(question_words) > 1 and mentioned == question_words[1:] and has_pronoun_subject)
        or (is_place and mentioned == question_words[:-1])
    )
    negators = {match[0] for match in _NEGATOR.finditer(clause)} - {*question_words}
    if negators and (is_full_match or is_place or mentioned[-1:] == question_words[-1:]):
        return "no"
    if not negators and states_alternative(words, question_words, has_pronoun_subject):
        return "no"
    if is_full_match:
        negator = _PRECEDING_NEGATOR.search(clause)
        first_mentions: dict[str, int] = {}
        for match in WORD.finditer(clause):
            first_mentions.setdefault(singularize(match[0]), match.start())
        return "no" if negator and any(first_mentions[word] >= negator.end() for word in mentioned) else "yes"
    return None


# ---- letters -----------------------------------------------------------------------------------


def parse_choice(answer: str, letters: str = "ABCD", options: Mapping[str, str] | None = None) -> str | None:
    """Return the one of `letters` that an answer chooses, or None.

    `options` are the texts of the letters, which an answer can give instead. A stated conclusion
    takes precedence over a letter at the beginning or on its own. Two different letters give None.
    "A" before a word in lower case is the article.
    """
    text = normalise(answer)
    letter_pattern = f"[{letters}{letters.lower()}]"
    word_end = r"(?![\w'’])"
    matches = re.findall(
        rf"(?i:\b(?:answer|option|choice|choose|pick|select)(?:s|ed)?\b(?: (?:is|would be|must be))?\W*(?:(?:option"
        rf"|choice) )?)\W*({letter_pattern}){word_end}({_ARTICLE_CONTEXT})?",
        text,
    )
    conclusions = [letter for letter, phrase in matches if not (phrase and letter in "AaIi")]
    if conclusions and not re.search(rf"\b(?:or|and) \W*{letter_pattern}{word_end}", text[text.rfind(conclusions[-1]) :]):
        return conclusions[-1].upper()
    if standalone := re.fullmatch(rf"\W*({letter_pattern})\W*", text.split("\n")[0]):
        return standalone[1].upper()
    if options:
        named_options = {
            option_letter
            for option_letter, option_text in options.items()
            if option_text and re.search(rf"(?<!\w){re.escape(option_text.lower())}(?!\w)", text.lower())
        }
        if len(named_options) == 1 and not _standalone_letters(text, letters) - named_options:
            return named_options.pop()
    if leading_letter := re.match(rf"\W*({letter_pattern})\W*(?:[.):]|,(?!\s*\W?{letter_pattern}{word_end}))", text):
        return leading_letter[1].upper()
    letters_found = _standalone_letters(text, letters)
    return letters_found.pop() if len(letters_found) == 1 else None


_ARTICLE_CONTEXT = r"\s+(?!or\b|and\b|is\b|because\b|since\b|as\b)[a-z]"
"""Text after an A that is an article or an I that is a pronoun."""


def _standalone_letters(text: str, letters: str) -> set[str]:
    """Return the capital letters that stand alone, without articles, the pronoun I and "not A"."""
    matches = re.finditer(rf"(?<!\bnot )(?<![\w'])([{letters}])(?![\w'])(?P<phrase>{_ARTICLE_CONTEXT})?", text)
    return {match[1] for match in matches if not (match["phrase"] and match[1] in "AI")}


# ---- numbers -----------------------------------------------------------------------------------

_NUMBER_VALUES = NUMBER_VALUES | {"none": 0, "no": 0}
_NUMBER = re.compile(
    rf"(?<![\w.])-?\d+(?:,\d{{3}})*(?:\.\d+)?(?![\w]*\w)"
    rf"|\b(?:{'|'.join(TENS)})(?:[ -](?:{'|'.join(NUMBER_WORDS[1:10])}))?\b|\b(?:{'|'.join(NUMBER_WORDS)}"
    rf"|none)\b(?![ -](?:hundred|thousand|million|dozen))|\bno\b(?= \w)"
)
_CONCLUSION_PREFIX = re.compile(r"(?:\b(?:answer|total|result)\b(?: is| of|:)?|=|\b(?:so|therefore|thus|no)\b)\W*$")


def parse_number(answer: str) -> float | None:
    """Return the number in an answer, in digits or words, or None. "No chairs" is 0.

    If there are several different numbers, the last one after "answer", "total", "=", "so" or a
    correction ("3, no, 4") counts; without such a number the result is None.
    """
    text = normalise(answer).lower().replace("\N{MINUS SIGN}", "-")
    matches = list(_NUMBER.finditer(text))
    conclusions = [match for match in matches if _CONCLUSION_PREFIX.search(text[: match.start()])]
    numeric = [match for match in matches if match[0] != "no"]
    values = {_number_value(match[0]) for match in conclusions[-1:] or numeric or matches}
    return values.pop() if len(values) == 1 else None


def _number_value(text: str) -> float:
    if text[-1].isdigit():
        return float(text.replace(",", ""))
    return float(sum(_NUMBER_VALUES[word] for word in re.split(r"[ -]", text)))
