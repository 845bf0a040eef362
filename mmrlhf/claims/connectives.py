"""Update the state of a sentence at prepositions, conjunctions, negations and punctuation."""

from __future__ import annotations

from mmrlhf.claims.builder import TO_SENTENCE_END, ClaimBuilder, SentenceState
from mmrlhf.claims.grammar import APPROXIMATE_NUMBER_WORDS, EXCEPTIVE_PREPOSITIONS, NEGATIVE_PREPOSITIONS
from mmrlhf.claims.noun_phrases import continues_list, word_to_number
from mmrlhf.claims.tags import (
    AFTER_PREDICATE_NEITHER,
    AFTER_REDUCED_CONJUNCTION,
    CLAUSE_END_TAGS,
    NEGATED_PHRASE_START_TAGS,
)


def process_connective(
    builder: ClaimBuilder, index: int, tag: str, word: str, previous_tag: str, next_tag: str, tags: str, end: int
) -> None:
    """Update the state for a word that is not a noun phrase, verb or adjective."""
    state = builder.state
    if tag == "O":
        _process_not(state, word, previous_tag, next_tag)
    elif tag == "L":
        # neither is it red; neither a dog nor a cat
        if next_tag in AFTER_PREDICATE_NEITHER:
            state.negated_until = TO_SENTENCE_END
        else:
            negates_subject = previous_tag in CLAUSE_END_TAGS or state.pending_negation == "neither"
            state.pending_negation = "neither" if negates_subject else "word"
    elif tag == "?":
        # `about twenty` hedges its number only.
        if word not in APPROXIMATE_NUMBER_WORDS and not builder.is_negated_at(index):
            state.is_hedged, state.hedge_index = True, index
    elif tag == "Y":
        _process_conjunction(state, word, next_tag)
    elif tag == "W":
        # A man, *who* wears a hat, ...: until its verb, the clause is about the latest phrases.
        if state.conjuncts and previous_tag in ("N", ","):
            state.outer_subjects, state.actors, state.in_relative_clause = state.subjects, list(state.conjuncts), True
    elif tag == "A":
        _process_preposition(state, index, word)
    elif tag == ",":
        state.open_relation = None
        if state.is_hedged and not continues_list(tags, index, end):
            state.is_hedged = False
        if state.conjunct_role == "denied":
            state.conjunct_role, state.conjuncts = "", []
    elif tag in ("C", "I"):
        state.open_relation = None
    elif tag == ":":
        _process_label(builder, index, tags, end)
        builder.state = SentenceState()


def _process_not(state: SentenceState, word: str, previous_tag: str, next_tag: str) -> None:
    if word == "not only":
        return
    # The bus is red, *not* a car. A dog and *not* a cat.
    if next_tag in NEGATED_PHRASE_START_TAGS and previous_tag not in ("B", "M"):
        state.pending_negation = "word"
        if previous_tag == ",":
            state.conjunct_role = "denied"
    # The dog is *not* brown.
    else:
        state.negated_until = TO_SENTENCE_END


def _process_conjunction(state: SentenceState, word: str, next_tag: str) -> None:
    """Begin a clause at but, while, because or if."""
    state.negated_until, state.pending_negation = -1, ""
    state.is_hedged = word in ("if", "whether", "unless")
    state.open_relation = None
    state.conjuncts, state.conjunct_role, state.has_finite_verb = [], "", False
    if next_tag not in AFTER_REDUCED_CONJUNCTION:
        state.verb_index, state.verb = -1, ""


def _process_preposition(state: SentenceState, index: int, word: str) -> None:
    """Process a preposition that does not give a place: with, without, except."""
    state.open_relation = None
    # a man *without* a hat
    if word in NEGATIVE_PREPOSITIONS:
        state.pending_negation, state.conjunct_role, state.conjuncts = "word", "denied", []
        return
    # nothing in the drawer *except* a spoon
    if word in EXCEPTIVE_PREPOSITIONS:
        state.negated_until, state.pending_negation = -1, ""
    state.possessor = state.conjuncts[-1] if state.conjuncts and word == "with" else None
    state.conjuncts, state.conjunct_role = [], "with"
    if state.verb_index < 0:
        state.verb_index, state.verb = index, "with"


def _process_label(builder: ClaimBuilder, index: int, tags: str, end: int) -> None:
    """Read a colon between an object and its number: `People: none`, `dogs: 2`."""
    word = builder.tokens.words[index + 1] if index + 1 < end else ""
    is_single_word = tags[index + 2 : min(index + 3, end)] in ("", ".", ",")
    if not builder.state.conjuncts or not is_single_word:
        return
    phrase = builder.state.conjuncts[-1]
    if word in ("none", "no", "0", "zero", "nothing"):
        builder.negate(phrase)
    elif phrase.name and tags[index + 1 : index + 2] == "#" and (number := word_to_number(word)):
        phrase.count, phrase.count_index = number, phrase.start
        builder.add_count(phrase, index + 2)
