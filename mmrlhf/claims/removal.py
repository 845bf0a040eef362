"""Remove one claim from an answer so that the rest remains well-formed.

The removed words depend on the kind of claim:

- attribute: the adjective (a red star -> a star), or the clause that says nothing else
- count: the number (two dogs -> dogs), or the sentence if it says nothing else (in total)
- object: its phrase, with its part of a list, its places and its relative clause. A clause about it
  is removed completely, as are later references to it ("the red star is left of the ring")
- relation or action: the words of the place, or the verb with its object; if nothing else is left,
  the clause

Conventions: a claim is removed at every mention, also in later sentences. Objects of the same name
with other adjectives are other objects and stay. Claims made only by removed words are removed with
them. A stated total ("three objects in total") stays when an object is removed: it is about the
image, not about the list. Pronouns are not followed.
"""

from __future__ import annotations

from mmrlhf.claims.extraction import extract_claims
from mmrlhf.claims.image_places import read_image_place
from mmrlhf.claims.lexicon import Lexicon, load_lexicon
from mmrlhf.claims.tagged_text import TaggedText
from mmrlhf.claims.tags import NOMINAL_TAGS
from mmrlhf.records import Claim
from mmrlhf.text.words import IMAGE_RELATIONS

MAX_MENTIONS = 20
"""Maximum number of mentions of one object that are removed from an answer."""


def remove_claim(answer: str, claim: Claim, lexicon: Lexicon | None = None) -> str:
    """Return the answer without a claim, whose span is a range of its characters.

    The claim may be from `extract_claims` or from `scenes.parse_claims`. The result is
    "" if the answer says nothing else, and the answer itself if the claim's words are not found.
    """
    lexicon = lexicon or load_lexicon()
    nouns = _nouns_of(claim, lexicon)
    text = TaggedText(answer, lexicon, nouns)
    if not text.tags:
        return answer
    if claim.negated or (claim.kind == "count" and claim.value == "0") or claim.subject == "nothing":
        return _remove_denial(text, claim)
    if claim.kind == "object":
        return _remove_object(text, claim)
    if claim.kind == "attribute":
        return _remove_attribute(text, claim)
    if claim.kind == "count":
        return _remove_count(text, claim)
    if claim.relation in IMAGE_RELATIONS:
        return _remove_image_place(text, claim)
    return _remove_relation(text, claim)


# ---- kinds of claims ---------------------------------------------------------------------------


def _remove_denial(text: TaggedText, claim: Claim) -> str:
    """Return the text without a denied object: the last item of a list, or the clause."""
    phrase = text.find_phrase(*claim.span)
    if phrase and text.tags[phrase[0]] == "Z" and text.joins_phrase(phrase[0], text.sentence(phrase[0])[0]):
        return text.without_phrase(phrase)
    return text.without_clause(claim.span[0])


def _remove_object(text: TaggedText, claim: Claim) -> str:
    phrase = text.find_phrase(*claim.span)
    if phrase is None:
        return text.without_clause(claim.span[0])
    adjectives = text.adjectives(phrase)
    # From the last mention to the first, so that earlier positions stay valid.
    mentions = [other for other in text.mentions() if text.refers(other, phrase, adjectives)]
    for start in sorted({text.tokens.starts[mention[0]] for mention in mentions[:MAX_MENTIONS]}, reverse=True):
        found = text.phrase_at(start)
        if found is not None and text.noun(found) in text.nouns:
            text = TaggedText(text.without_phrase(found), text.lexicon, text.nouns)
    return text.text


def _remove_attribute(text: TaggedText, claim: Claim) -> str:
    found = text.find_words(claim.value, *claim.span)
    if found is None:
        return text.without_clause(claim.span[0])
    phrase = text.phrase_around(found[0])
    if phrase is None or found[1] >= phrase[1]:
        return text.without_predicate(*found)
    adjectives = text.adjectives(phrase)
    mentions = [other for other in text.mentions() if text.refers(other, phrase, adjectives)]
    starts = {text.tokens.starts[other[0]] for other in [phrase, *mentions[:MAX_MENTIONS]]}
    for start in sorted(starts, reverse=True):
        mention = text.phrase_at(start)
        words = mention and text.find_words(claim.value, text.tokens.starts[mention[0]], text.tokens.ends[mention[1] - 1])
        if words:
            text = TaggedText(text.without_adjective(*words), text.lexicon, text.nouns)
    return text.text


def _remove_count(text: TaggedText, claim: Claim) -> str:
    index = text.token_at(claim.span[0])
    begin, end = text.sentence(index)
    sentence = text.text[text.tokens.starts[begin] : text.tokens.ends[end - 1]]
    numbers = [k for k in range(index, end) if text.tags[k] == "#" and text.tokens.starts[k] < claim.span[1]]
    if not extract_claims(sentence, text.lexicon):
        return text.cut_tokens(begin, end)
    if not numbers:
        return text.text
    if text.tokens.words[numbers[0]] in ("one", "1"):
        return text.replace_tokens(numbers[0], numbers[-1] + 1, "a")
    return text.cut_tokens(numbers[0], numbers[-1] + 1)


def _remove_relation(text: TaggedText, claim: Claim) -> str:
    """Return the text without a place, or an action."""
    first, last = text.token_at(claim.span[0]), text.token_at(claim.span[1] - 1)
    is_action = claim.kind == "action"
    marks = [k for k in range(first, last + 1) if text.tags[k] in ("GVE" if is_action else "P")]
    if not marks:
        return text.cut_clause(first)
    mark = marks[0] if is_action else marks[-1]
    # The span ends with the target, or with the noun of a longer phrase.
    target = next((phrase for phrase in text.phrases if mark < phrase[0] <= last), None)
    stop = max(target[1], last + 1) if target else last + 1
    if text.clause(mark)[0] == mark:  # on the table, there is a cup
        return text.cut_tokens(mark, stop + (text.tags[stop : stop + 1] == ","))
    return text.without_predicate(mark, stop)


def _remove_image_place(text: TaggedText, claim: Claim) -> str:
    """Return the text without the words that say where in the image something is."""
    mention: Claim | None = claim
    for _ in range(MAX_MENTIONS):
        if mention is None:
            break
        text = TaggedText(_without_image_place(text, mention), text.lexicon, text.nouns)
        mention = next((other for other in extract_claims(text.text, text.lexicon) if other == claim), None)
    return text.text


def _without_image_place(text: TaggedText, claim: Claim) -> str:
    """Return the text without the place in a claim's span."""
    for mark in range(text.token_at(claim.span[0]), text.token_at(claim.span[1] - 1) + 1):
        place = read_image_place(text.tokens, mark, text.lexicon)
        if place is None or place.relation != claim.relation:
            continue
        following = text.tags[place.end : place.end + 1]
        if text.clause(mark)[0] == mark and following == "B":  # on the left is a cat
            return text.replace_tokens(mark, place.end, "there")
        if text.clause(mark)[0] == mark:  # on the left, there is a cat
            return text.cut_tokens(mark, place.end + (following == ","))
        if text.tags[mark - 1] in NOMINAL_TAGS:
            return text.cut_tokens(mark, place.end)
        return text.without_predicate(mark, place.end)
    return text.text


def _nouns_of(claim: Claim, lexicon: Lexicon) -> set[str]:
    """Return the words that may end a phrase about a claim's subject."""
    subject = claim.subject.lower()
    return {subject, subject.split(" ")[-1], lexicon.canonical_name(subject.split(" ")[-1])}
