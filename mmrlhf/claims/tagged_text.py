"""A text with its tagged tokens and noun phrases, from which words can be removed.

Each removal leaves correct English: spaces, capitals, articles, the commas and `and` of lists, and
the verb after a shortened list are adjusted.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from mmrlhf.claims.disambiguation import tag_text
from mmrlhf.claims.grammar import DEFINITE_DETERMINERS
from mmrlhf.claims.lexicon import Lexicon
from mmrlhf.claims.noun_phrases import PHRASE_PATTERN
from mmrlhf.claims.tags import FINITE_VERB_TAGS, tag_set

ATTACHMENT_TAGS = tag_set("PAFGERJI")
"""Tags that continue a phrase to its right: a place, a participle, `of`."""
Range = tuple[int, int]
"""First token and end of some words."""


class TaggedText:
    """An answer with its tagged tokens and noun phrases. Its methods return new texts."""

    def __init__(self, text: str, lexicon: Lexicon, nouns: Collection[str]) -> None:
        self.text, self.lexicon, self.nouns = text, lexicon, nouns
        self.tokens = tag_text(text, lexicon)
        self.tags = "".join(self.tokens.tags)
        for k, word in enumerate(self.tokens.words):
            # an orange *cross*: what a claim is about is no verb
            if word in nouns and self.tags[k] == "V" and self.tags[k - 1 : k] in ("D", "J", "N", "#"):
                self.tags = f"{self.tags[:k]}N{self.tags[k + 1 :]}"
        self.phrases: list[Range] = [m.span() for m in PHRASE_PATTERN.finditer(self.tags) if m.lastgroup == "np"]

    # ---- finding -------------------------------------------------------------------------------

    def token_at(self, position: int) -> int:
        """Return the first token that ends after a position."""
        return next((k for k, end in enumerate(self.tokens.ends) if end > position), max(len(self.tags) - 1, 0))

    def sentence(self, index: int) -> Range:
        """Return the tokens of the sentence that a token is in, its full stop included."""
        begin = max((k + 1 for k in range(index) if self.tags[k] == "."), default=0)
        period = self.tags.find(".", index)
        return begin, len(self.tags) if period < 0 else period + 1

    def noun(self, phrase: Range) -> str:
        return self.lexicon.canonical_name(self.tokens.nouns[phrase[1] - 1])

    def find_phrase(self, start: int, end: int) -> Range | None:
        """Return the noun phrase between two positions that names one of `nouns`, else the
        first."""
        for phrase in self.phrases:
            head_end = self.tokens.ends[phrase[1] - 1]
            if start < head_end <= end and self.noun(phrase) in self.nouns:
                return phrase
        return next((p for p in self.phrases if start < self.tokens.ends[p[1] - 1] <= end), None)

    def phrase_around(self, index: int) -> Range | None:
        return next((phrase for phrase in self.phrases if phrase[0] <= index < phrase[1]), None)

    def phrase_at(self, position: int) -> Range | None:
        return next((phrase for phrase in self.phrases if self.tokens.starts[phrase[0]] == position), None)

    def mentions(self) -> list[Range]:
        """Return all noun phrases that name the claim's subject."""
        return [phrase for phrase in self.phrases if self.noun(phrase) in self.nouns]

    def adjectives(self, phrase: Range) -> frozenset[str]:
        words = self.tokens.words
        return frozenset(words[k] for k in range(*phrase) if self.tags[k] in "JKE")

    def refers(self, mention: Range, phrase: Range, adjectives: frozenset[str]) -> bool:
        """Return whether a mention is the phrase itself or refers to its object.

        An object's adjectives may be left out or added later, not exchanged. Two mentions in one
        sentence are two objects, unless the second is definite.
        """
        if mention == phrase:
            return True
        others = self.adjectives(mention)
        if not (others <= adjectives or adjectives <= others):
            return False
        is_definite = self.tokens.words[mention[0]] in DEFINITE_DETERMINERS
        return is_definite or self.sentence(mention[0]) != self.sentence(phrase[0])

    def find_words(self, words: str, start: int, end: int) -> Range | None:
        """Return the tokens between two positions that are these words."""
        parts = re.split(r"[\s-]+", words.lower())
        first, last = self.token_at(start), self.token_at(end - 1)
        for k in range(first, last + 1):
            found: list[str] = []
            stop = k
            while stop <= last and len(found) < len(parts):
                found += re.split(r"[\s-]+", self.tokens.words[stop])
                stop += 1
            if found[: len(parts)] == parts:
                return k, stop
        return None

    # ---- cutting -------------------------------------------------------------------------------

    def cut_tokens(self, start: int, end: int) -> str:
        return self.replace_tokens(start, end, "")

    def replace_tokens(self, start: int, end: int, words: str) -> str:
        """Return the text with tokens replaced, and spaces, capital and article adjusted."""
        if start >= end:
            return self.text
        before, after = self.text[: self.tokens.starts[start]], self.text[self.tokens.ends[end - 1] :]
        begins_sentence = start == self.sentence(start)[0]
        if words and begins_sentence:
            words = words[0].upper() + words[1:]
        if words:
            return _fix_article(before + words, after)
        if not after.strip() or not before.strip():
            before, after = (before.rstrip(), after.rstrip()) if before.strip() else (before, after.lstrip())
        elif after[0] in ",.;:!?" or before[-1] in " \n":
            before, after = (before.rstrip(), after) if after[0] in ",.;:!?" else (before, after.lstrip(" "))
        if begins_sentence and after:
            after = after.lstrip(" ,")
            after = after[:1].upper() + after[1:]
        return _fix_article(before, after)

    def clause(self, index: int) -> Range:
        """Return the tokens of the clause that a token is in, with the conjunction before it."""
        begin, end = self.sentence(index)
        starts = [begin]
        for k in range(begin + 1, end):
            # A man *and a dog* are ...: without a verb before it, `and` joins subjects.
            has_verb = not FINITE_VERB_TAGS.isdisjoint(self.tags[starts[-1] : k])
            if self.tags[k] in ":Y" or (self.tags[k] == "C" and has_verb and self._begins_clause(k + 1, end)):
                starts.append(k - 1 if self.tags[k - 1] == "," else k)
        start = max(k for k in starts if k <= max(index, begin))
        stop = min((k for k in starts if k > index), default=end)
        return start, stop

    def _begins_clause(self, index: int, end: int) -> bool:
        """Return whether a subject with its verb begins at a token."""
        if index < end and self.tags[index] == "T":
            return True
        stop = index + 1 if index < end and self.tags[index] == "Q" else index
        for phrase in self.phrases:
            if phrase[0] == index:
                stop = self._attachments_end(phrase[1], end)
        return index < stop < end and self.tags[stop] in FINITE_VERB_TAGS

    def without_clause(self, position: int) -> str:
        """Return the text without the clause at a position."""
        if not self.tags:
            return self.text
        return self.cut_clause(self.token_at(position))

    def cut_clause(self, index: int) -> str:
        (begin, end), (start, stop) = self.sentence(index), self.clause(index)
        has_stop = self.tags[end - 1] == "."
        if start == begin and stop >= end - has_stop:
            return self.cut_tokens(begin, end)
        if start == begin:  # the conjunction of the next clause goes too
            while stop < end and self.tags[stop] in ",C:Y":
                stop += 1
            return self.cut_tokens(start, stop)
        return self.cut_tokens(start, stop - (has_stop and stop == end))

    def _attachments_end(self, index: int, end: int) -> int:
        """Return where the words that describe the phrase before a token end."""
        k, in_relative_clause = index, False
        while k < end:
            tag = self.tags[k]
            phrase = next((p for p in self.phrases if p[0] == k), None)
            if tag == "W":
                in_relative_clause = True
            elif tag in FINITE_VERB_TAGS and in_relative_clause:
                while k + 1 < end and self.tags[k + 1] in FINITE_VERB_TAGS:
                    k += 1
                in_relative_clause = False
            elif phrase and k > index:
                k = phrase[1]
                continue
            elif tag not in ATTACHMENT_TAGS and not (tag in "DQ" and k > index and self.tags[k - 1] in ATTACHMENT_TAGS):
                break
            k += 1
        return k

    # ---- phrases -------------------------------------------------------------------------------

    def without_phrase(self, phrase: Range) -> str:
        """Return the text without an object's noun phrase."""
        tags, (begin, end) = self.tags, self.sentence(phrase[0])
        start, stop = phrase[0], self._attachments_end(phrase[1], end)
        # a couple of *dogs*, a cup of *coffee*
        while start - 1 > begin and tags[start - 1] == "F" and (head := self.phrase_around(start - 2)):
            start = head[0]
        previous, following = tags[start - 1 : start] if start > begin else "", tags[stop : stop + 1]
        is_subject = stop < end and tags[stop] in FINITE_VERB_TAGS and previous not in tuple("PAGEI")
        if is_subject and not self.joins_phrase(start, begin):
            return self.cut_clause(start)
        if self.joins_phrase(start, begin) or self._is_joined(stop, end):
            return self._without_item(start, stop, begin, end)
        if previous and previous in "PAGEI":
            first = start - 1
            while first - 1 >= begin and tags[first - 1] in "PAGERI":
                first -= 1
            if first == begin:
                return self.cut_tokens(first, stop + (following == ","))
            return self.without_predicate(first, stop)
        return self.without_predicate(start, stop)

    def joins_phrase(self, start: int, begin: int) -> bool:
        """Return whether a phrase follows another one in a list."""
        k = start - 1
        while k > begin and self.tags[k] in ",CR":
            k -= 1
        follows_phrase = k < start - 1 and k >= begin and self.tags[k] in "NXUuQ"
        # In the image, *a girl* sits: a comma after a place in front ends no item of a list.
        ends_place = self.tags[begin] in "PAI" and self.tags[k + 1 : start] == "," and "," not in self.tags[begin : k + 1]
        return follows_phrase and not ends_place and not self._starts_subject(start)

    def _starts_subject(self, start: int) -> bool:
        """Return whether a phrase after `and` is the subject of a clause of its own."""
        begin, end = self.sentence(start)
        return self._begins_clause(start, end) and not FINITE_VERB_TAGS.isdisjoint(self.tags[begin:start])

    def _is_joined(self, stop: int, end: int) -> bool:
        """Return whether another phrase of a list follows."""
        k = stop
        while k < end and self.tags[k] in ",CR":
            k += 1
        return k > stop and any(phrase[0] == k for phrase in self.phrases) and not self._starts_subject(k)

    def _without_item(self, start: int, stop: int, begin: int, end: int) -> str:
        """Return the text without an item of a list of phrases."""
        tags, tokens = self.tags, self.tokens
        left = start
        while left > begin and tags[left - 1] in ",CR" and self.joins_phrase(start, begin):
            left -= 1
        right = stop
        while right < end and tags[right] in ",CR" and self._is_joined(stop, end):
            right += 1
        if left == start:  # the first item, with the separator after it
            # `and` stays between those that follow; of two items one is left
            return _agree(self.cut_tokens(start, right), tokens.starts[begin])
        if right == stop:  # the last item: the separator before the one before it becomes `and`
            text = self.cut_tokens(left, stop)
            commas = [k for k in range(begin, left) if tags[k] == "," and self._separates(k, begin, left)]
            if "C" in tags[left:start] and commas:
                comma, word = commas[-1], self.tokens.words[next(k for k in range(left, start) if tags[k] == "C")]
                text = f"{text[: tokens.starts[comma]]} {word}{text[tokens.ends[comma] :]}"
            return _agree(text, tokens.starts[begin])
        return _agree(self.cut_tokens(left, stop), tokens.starts[begin])

    def _separates(self, comma: int, begin: int, left: int) -> bool:
        return self._is_joined(comma, left) and self.joins_phrase(comma + 1, begin)

    # ---- predicates ----------------------------------------------------------------------------

    def without_adjective(self, start: int, stop: int) -> str:
        """Return the text without an adjective before its noun."""
        tags = self.tags
        while start > 0 and tags[start - 1] == "R":
            start -= 1
        if tags[stop] in ",C" and stop + 1 < len(tags):  # red *and* white
            while tags[stop] in ",C":
                stop += 1
        elif start > 1 and tags[start - 1] in ",C" and tags[start - 2] in "JE":
            while tags[start - 1] in ",C":
                start -= 1
        return self.cut_tokens(start, stop)

    def without_predicate(self, start: int, stop: int) -> str:
        """Return the text without a verb's object or predicate; an empty clause is removed, too."""
        tags, (begin, end) = self.tags, self.clause(start)
        while start > begin and tags[start - 1] == "R":
            start -= 1
        while begin < end and tags[begin] in ",CY:":
            begin += 1
        # is round *and shiny*, is *brown and* lies
        if start > begin and tags[start - 1] in ",C" and tags[start - 2] in "JENX":
            while tags[start - 1] in ",C":
                start -= 1
            return self.cut_tokens(start, stop)
        if stop + 1 < end and tags[stop] in ",C" and tags[stop + 1] in "JERC":
            while tags[stop] in ",C":
                stop += 1
            return self.cut_tokens(start, stop)
        verb = start
        while verb > begin and tags[verb - 1] in "BHVMIGR":
            verb -= 1
        if verb == start:  # a place or a participle after a noun
            return self.cut_tokens(start, stop)
        if verb > begin and tags[verb - 1] == "W":  # , which is round,
            verb -= 1
            if tags[verb - 1 : verb] == ",":
                verb -= 1
                stop += tags[stop : stop + 1] == ","
            return self.cut_tokens(verb, stop)
        is_empty = all(tag in "BHVM" for tag in tags[verb:start]) or tags[start] not in "PA"
        if not is_empty:
            return self.cut_tokens(start, stop)
        if stop < end and tags[stop] == "C" and tags[stop + 1 : stop + 2] in ("V", "H", "B"):
            return self.cut_tokens(verb, stop + 1)
        subject = next((phrase for phrase in self.phrases if phrase[0] == begin), None)
        if stop < end and tags[stop] == "P" and tags[verb - 1] != "T":
            return self.replace_tokens(verb, stop, "are" if subject and self._is_plural(subject) else "is")
        if subject is None or self.tokens.words[begin] in DEFINITE_DETERMINERS or tags[subject[1] - 1] == "X":
            return self.cut_clause(start)
        words = self.text[self.tokens.starts[begin] : self.tokens.ends[verb - 1]]
        there = f"There {'are' if self._is_plural(subject) else 'is'} {words[0].lower()}{words[1:]}"
        return self.replace_tokens(begin, stop, there if begin == self.sentence(begin)[0] else there[0].lower() + there[1:])

    def _is_plural(self, phrase: Range) -> bool:
        return self.tokens.is_plural[phrase[1] - 1]


def _fix_article(before: str, after: str) -> str:
    """Join two texts, with a or an as the next word needs it."""
    match = re.search(r"\b([Aa])n?( )$", before)
    word = re.match(r"[A-Za-z]", after)
    if match and word:
        before = f"{before[: match.start()]}{match[1]}{'n' if word[0] in 'aeiouAEIOU' else ''} "
    return before + after


def _agree(text: str, sentence_start: int) -> str:
    """Return a text with the verb of a shortened list in the right number.

    There *are* a cat. There *is* two cats. A dog *are* running.
    """
    before, after = text[:sentence_start], text[sentence_start:]
    for pattern, verb in _AGREEMENT:
        after = pattern.sub(rf"\1 {verb} ", after, count=1)
    return before + after


_AGREEMENT = (
    (re.compile(r"^([^.]*\b[Tt]here) are (?=an? [^.,]*(?:\.|\Z))(?![^.]*\band\b)"), "is"),
    (re.compile(r"^([^.]*\b[Tt]here) is (?=(?:a few|a couple|two|three|four|five|six|several|many|some) )"), "are"),
    (re.compile(r"^((?:An?|One) (?:(?!of |and )[\w-]+ ){0,4}(?!of |and )[\w-]+) are "), "is"),
)
"""The start of a sentence up to its verb, and the verb that it needs."""
