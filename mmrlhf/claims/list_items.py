"""Read items of lists: a thing, then a colon, dash or bracket, and its description.

`Chairs (4): black, near the window` describes the chairs; in `Children: there are six children` the
first word is a heading, which claims nothing.
"""

from __future__ import annotations

from mmrlhf.claims.builder import ClaimBuilder
from mmrlhf.claims.markup import BULLET
from mmrlhf.claims.noun_phrases import Phrase, word_to_number
from mmrlhf.claims.sentence_state import SentenceState
from mmrlhf.claims.tagging import Tokens
from mmrlhf.claims.tags import AFTER_DESCRIPTION_TAGS, CLAUSE_TAGS, DESCRIPTION_START_TAGS, DESCRIPTION_TAGS, MAIN_VERB_TAGS
from mmrlhf.text.words import word_set

DENIAL_WORDS = word_set("not absent missing invisible")
"""Words of headings that deny the items below them: what I do *not* see."""
SEEING_WORDS = word_set("see visible present shown pictured seen spot find there in depicted")
"""Words after `not` in such a heading: *Not visible*."""


HEADING_SUBJECTS = word_set("what that which i we you")
"""Words of a heading that has a verb: *what* I do not see, things *that* are absent."""


def denies_list(tokens: Tokens, begin: int, end: int) -> bool:
    """Return whether a line is a heading that denies its items: What I don't see, Absent."""
    words = tokens.words[begin:end]
    if len(words) > 9 or not words or DENIAL_WORDS.isdisjoint(words) or words[-1] not in ("\n", ":"):
        return False
    # The dog is not in the picture: a sentence, no heading
    is_sentence = any(tag in MAIN_VERB_TAGS for tag in tokens.tags[begin:end])
    if is_sentence and HEADING_SUBJECTS.isdisjoint(words):
        return False
    return "not" not in words or not SEEING_WORDS.isdisjoint(words[words.index("not") :])


def begins_item(tokens: Tokens, begin: int) -> bool:
    """Return whether a sentence begins with a bullet or number, as an item of a list."""
    line_start = tokens.text.rfind("\n", 0, tokens.starts[begin]) + 1
    return BULLET.match(tokens.text, line_start) is not None and tokens.starts[begin] - line_start < 12


def process_item(builder: ClaimBuilder, index: int, tags: str, end: int) -> bool:
    """Read the sign after an item; return whether a description of the item begins there."""
    tokens, conjuncts = builder.tokens, builder.state.conjuncts
    phrase = conjuncts[-1] if conjuncts else None
    if phrase is not None and phrase.name and index - phrase.end <= 1:
        if _read_number(builder, phrase, index, tags, end):
            return False
        begins_line = phrase.start == 0 or tags[phrase.start - 1] == "."
        builder.item = phrase if begins_line else None
    elif phrase is not None or tokens.words[index] != ":":
        return False
    if builder.item is None or index + 1 >= end:
        return False
    is_clause = any(tags[k] in CLAUSE_TAGS and tokens.attribute_rank[k] < 2 for k in range(index + 1, end))
    is_description = tags[index + 1] in DESCRIPTION_START_TAGS or tokens.attribute_rank[index + 1] == 2
    if is_clause or not is_description:
        # Adults: no adults can be seen.
        if is_clause and phrase is builder.item and phrase.is_bare and tokens.words[index] == ":":
            builder.withdraw(phrase)
        builder.item = None
        return False
    builder.skip_until = _read_adjectives(builder, builder.item, index, tags, end)
    # As if `the chairs are` came before.
    subjects = [builder.item]
    builder.state = SentenceState(subjects=subjects, actors=subjects, conjunct_role="verb", verb="are", verb_index=index)
    return True


def _read_adjectives(builder: ClaimBuilder, item: Phrase, index: int, tags: str, end: int) -> int:
    """Add the adjectives right after a sign to an item; return the index after them."""
    tokens = builder.tokens
    stop = index + 1
    while stop < end and (tags[stop] in "J,CR" or tokens.attribute_rank[stop] == 2):
        stop += 1
    # The last ones may begin a phrase: black, with *wooden legs*.
    while stop < end and stop > index + 1 and tags[stop] not in AFTER_DESCRIPTION_TAGS and tags[stop - 1] != ",":
        stop -= 1
    for k in range(index + 1, stop):
        if tokens.attribute_rank[k] and tags[k] not in (",", "C", "R"):
            builder.add_attribute(item, tokens.words[k], k, k + 1)
    return stop


def _read_number(builder: ClaimBuilder, phrase: Phrase, index: int, tags: str, end: int) -> bool:
    """Read a colon between an object and its number: `People: none`, `dogs: 2`."""
    word = builder.tokens.words[index + 1] if index + 1 < end else ""
    is_single_word = tags[index + 2 : min(index + 3, end)] in ("", ".", ",")
    # People: none that I can see
    if not (is_single_word or word == "none") or builder.tokens.words[index] != ":":
        return False
    if word in ("none", "no", "0", "zero", "nothing"):
        builder.negate(phrase)
        return True
    number = word_to_number(word) if tags[index + 1 : index + 2] == "#" else None
    if number:
        phrase.count, phrase.count_index = number, phrase.start
        builder.add_count(phrase, index + 2)
    return bool(number)


def read_bracketed(builder: ClaimBuilder, index: int, tags: str, end: int) -> None:
    """Read the adjectives in brackets after a phrase: a toolbox *(open)*."""
    tokens, conjuncts = builder.tokens, builder.state.conjuncts
    if not conjuncts or conjuncts[-1].end != index or not conjuncts[-1].name:
        return
    stop = index + 1
    while stop < end and tokens.words[stop] != ")" and (tags[stop] in DESCRIPTION_TAGS or tokens.attribute_rank[stop] == 2):
        stop += 1
    is_closed = stop < end and (tokens.words[stop] == ")" if tokens.words[index] == "(" else tags[stop] in "A,.")
    if is_closed:
        for k in range(index + 1, stop):
            if tokens.attribute_rank[k]:
                builder.add_attribute(conjuncts[-1], tokens.words[k], k, k + 1)


def read_postposed(builder: ClaimBuilder, index: int, tags: str, end: int) -> None:
    """Read adjectives between a comma and the end of an aside: a rug, *red* for the most part."""
    tokens, conjuncts = builder.tokens, builder.state.conjuncts
    if not conjuncts or conjuncts[-1].end != index or not conjuncts[-1].name or tokens.words[index] != ",":
        return
    stop = index + 1
    while stop < end and (tags[stop] in "RC" or (tags[stop] in "JE" and tokens.attribute_rank[stop] == 2)):
        stop += 1
    is_aside = stop < end and (tags[stop] in ",." or (tags[stop] in "AP" and tags[stop - 1] in "JE")) and tags[stop - 1] in "JE"
    if is_aside:
        for k in range(index + 1, stop):
            if tokens.attribute_rank[k] == 2:
                builder.add_attribute(conjuncts[-1], tokens.words[k], k, k + 1)


def read_gapped(builder: ClaimBuilder, phrase: Phrase, tags: str) -> bool:
    """Read a predicate without its verb: the tank is green, the *seat* brown leather.

    Return whether there is one.
    """
    tokens, k = builder.tokens, phrase.end
    first = k
    materials = builder.lexicon.word_sets["materials"]
    while k < len(tags) and (tags[k] in "RJC" or tokens.words[k] in materials):
        k += 1
    if k == first or tags[k : k + 1] not in (".", ",", ":") or not any(tokens.attribute_rank[j] for j in range(first, k)):
        return False
    for j in range(first, k):
        if tokens.attribute_rank[j]:
            builder.add_attribute(phrase, tokens.words[j], j, j + 1)
    builder.skip_until = k
    return True
