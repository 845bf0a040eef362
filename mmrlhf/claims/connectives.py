"""Update the state of a sentence at prepositions, conjunctions, negations and punctuation."""

from __future__ import annotations

from mmrlhf.claims.actions import add_preposition, begin_wearing
from mmrlhf.claims.builder import TO_SENTENCE_END, ClaimBuilder
from mmrlhf.claims.grammar import (
    APPROXIMATE_NUMBER_WORDS,
    COPULAS,
    DENYING_VERBS,
    DOUBT_ADJECTIVES,
    DOUBTFUL_ADJECTIVES,
    EXCEPTIVE_PREPOSITIONS,
    FALSE_ADJECTIVES,
    FASTENED,
    NEGATIVE_PREPOSITIONS,
    NO_LONGER,
    STATEMENT_NOUNS,
    TRUE_WORDS,
    UNDENYING_WORDS,
)
from mmrlhf.claims.list_items import denies_list, process_item, read_bracketed, read_postposed
from mmrlhf.claims.noun_phrases import continues_list
from mmrlhf.claims.relations import begin_relation
from mmrlhf.claims.sentence_state import SentenceState
from mmrlhf.claims.tags import (
    AFTER_PREDICATE_NEITHER,
    AFTER_REDUCED_CONJUNCTION,
    CLAUSE_LINK_TAGS,
    FINITE_VERB_TAGS,
    LIST_ITEM_START_TAGS,
    NEGATED_PHRASE_START_TAGS,
)


def process_connective(
    builder: ClaimBuilder, index: int, tag: str, word: str, previous_tag: str, next_tag: str, tags: str, end: int
) -> None:
    """Update the state for a word that is not a noun phrase, verb or adjective."""
    state = builder.state
    if tag == ",":
        state.open_relation = None
        if word in ("-", "–", "—") and process_item(builder, index, tags, end):
            return
        if word == "(" or (word in ("-", "–", "—") and next_tag in ("J", "E")):
            read_bracketed(builder, index, tags, end)
        elif next_tag in ("J", "E", "R"):
            read_postposed(builder, index, tags, end)
        # may be held back, *such as* in a lake
        if state.is_hedged and not continues_list(tags, index, end) and next_tag not in ("A", "P"):
            state.is_hedged = False
        # chairs, none of which is taken, *and* a lamp
        if state.denies_aside and next_tag == "C":
            state.negated_until, state.denies_aside = -1, False
            state.verb, state.conjuncts, state.conjunct_role, state.action = "are", [], "verb", None
        # No cars are visible, *with* a bicycle nearby; but: it is not red, *or* blue
        if state.negated_until > index and next_tag not in LIST_ITEM_START_TAGS and not continues_list(tags, index, end):
            state.negated_until = -1
        if state.conjunct_role == "denied":
            # On the wall are a clock without hands, *a* map
            is_presented = state.resolved_relation is not None
            state.conjunct_role, state.conjuncts = ("object", state.subjects) if is_presented else ("", [])
    elif tag == "A":
        _process_preposition(builder, index, word, previous_tag)
    elif tag in ("C", "I"):
        state.open_relation = None
        if tag == "I":
            if previous_tag == "E" and state.verb in FASTENED and not builder.is_negated_at(index):
                begin_relation(builder, index, word, previous_tag, next_tag)
            add_preposition(builder, index, word)
            _process_judgement(builder, index, previous_tag)
            # The boy fails *to* catch the ball.
            if builder.lexicon.verb_base(builder.tokens.words[index - 1]) in DENYING_VERBS:
                state.negated_until = -1 if builder.is_negated_at(index) else TO_SENTENCE_END
    elif tag == "O":
        _process_not(builder, index, previous_tag, next_tag)
    elif tag == "T":
        _process_there(state, previous_tag, next_tag)
    elif tag == "L":
        # neither is it red; neither a dog nor a cat
        if next_tag in AFTER_PREDICATE_NEITHER:
            state.negated_until = TO_SENTENCE_END
        else:
            negates_subject = previous_tag in CLAUSE_LINK_TAGS or state.pending_negation == "neither"
            state.pending_negation = "neither" if negates_subject else "word"
    elif tag == "?":
        # `about twenty` hedges its number only.
        if word not in APPROXIMATE_NUMBER_WORDS and not builder.is_negated_at(index):
            state.is_hedged, state.hedge_index = True, index
    # there were *once* two horses
    elif tag == "Y" and word == "once" and state.verb in ("was", "were") and builder.tokens.words[max(0, index - 2)] == "there":
        state.negated_until = TO_SENTENCE_END
    elif tag == "Y":
        _process_conjunction(state, word, next_tag)
    elif tag == "W":
        _process_judgement(builder, index, previous_tag)
        # The *claim that* there is a dog is false.
        if word == "that" and builder.tokens.words[index - 1] in STATEMENT_NOUNS and _is_called_false(builder, end):
            state.verb_index = index
            _deny_statement(builder, index)
        # A room in *which* a boy lies: the place of the clause that follows.
        if previous_tag == "P" and state.open_relation is not None and state.conjuncts:
            _begin_clause_of_place(state)
        # A man, *who* wears a hat, ...: until its verb, the clause is about the latest phrases.
        elif state.conjuncts and previous_tag in ("N", ","):
            # the beard of a *man*, who sits
            owner = state.of_phrase
            if (
                owner is not None
                and word in ("who", "whom")
                and index - owner.end <= 1
                and not builder.is_animate(state.conjuncts[-1])
            ):
                state.conjuncts = [owner]
            state.outer_subjects, state.actors, state.in_relative_clause = state.subjects, list(state.conjuncts), True
    # On the wall: a clock, a map
    elif tag == ":" and state.fronted_relation is not None and state.verb_index < 0 and next_tag != ".":
        state.conjuncts, state.conjunct_role, state.verb, state.verb_index = [], "verb", "are", index
    # What I do not see: a dog. Not in the image: a dog
    elif tag == ":" and word == ":" and denies_list(builder.tokens, tags.rfind(".", 0, index) + 1, index + 1):
        builder.state = SentenceState(negated_until=TO_SENTENCE_END, verb="see", verb_index=index)
    elif tag == ":" and not process_item(builder, index, tags, end):
        builder.state = SentenceState()


def _begin_clause_of_place(state: SentenceState) -> None:
    """Begin a relative clause that the phrase before it locates: a sofa *on which* dolls sit."""
    assert state.open_relation is not None
    relation, index, _, _ = state.open_relation
    state.fronted_relation, state.open_relation, state.last_relation = (relation, state.conjuncts[-1:], index), None, None
    state.outer_subjects = None if state.has_finite_verb else state.subjects
    state.subjects, state.actors, state.conjuncts, state.conjunct_role = [], [], [], ""
    state.verb, state.verb_index, state.has_finite_verb, state.action = "", -1, False, None


def _process_not(builder: ClaimBuilder, index: int, previous_tag: str, next_tag: str) -> None:
    state, words = builder.state, builder.tokens.words
    next_word = words[index + 1] if index + 1 < len(words) else ""
    # You do not *often* see a horse here; it does not *only* show a dog.
    if next_word in UNDENYING_WORDS:
        return
    # A clock that *no longer* works, or no longer in use, hangs here: an aside denies nothing else.
    if words[index] == NO_LONGER:
        is_aside = "W" in builder.tokens.tags[max(0, index - 2) : index]
        if is_aside or (previous_tag == "N" and next_tag not in FINITE_VERB_TAGS):
            return
    # The bus is red, *not* a car. A dog and *not* a cat.
    if next_tag in NEGATED_PHRASE_START_TAGS and previous_tag not in ("B", "M"):
        state.pending_negation = "word"
        if previous_tag == ",":
            state.conjunct_role = "denied"
    # The dog is *not* brown.
    else:
        state.negated_until = TO_SENTENCE_END


def _process_there(state: SentenceState, previous_tag: str, next_tag: str) -> None:
    """Begin a clause at `there`: no dog is visible, but *there* is a cat."""
    is_clause = next_tag in FINITE_VERB_TAGS or next_tag in ("?", "R")
    if not is_clause or previous_tag not in CLAUSE_LINK_TAGS:
        return
    if previous_tag == "C":
        state.is_hedged = False
    state.negated_until, state.pending_negation, state.open_relation, state.has_finite_verb = -1, "", None, False
    state.subjects, state.actors, state.conjuncts, state.conjunct_role = [], [], [], ""
    state.verb, state.verb_index, state.last_relation, state.last_target = "", -1, None, None
    state.action = None


def _process_judgement(builder: ClaimBuilder, index: int, previous_tag: str) -> None:
    """Read a judgement on the following statement: an adjective or a noun after `it is`.

    It is false that, not true that: a denial. It is unlikely that, not clear that: a doubt. Not
    common to: the judgement alone is denied.
    """
    state, judgement = builder.state, builder.tokens.words[index - 1]
    if state.verb not in COPULAS:
        return
    is_denied = builder.is_negated_at(index)
    is_expletive = len(state.subjects) == 1 and state.subjects[0].noun in ("it", "this", "that")
    if is_expletive and judgement in (TRUE_WORDS if is_denied else FALSE_ADJECTIVES) and builder.tokens.tags[index] == "W":
        _deny_statement(builder, index)
    elif previous_tag in ("J", "R") and judgement in (DOUBT_ADJECTIVES if is_denied else DOUBTFUL_ADJECTIVES):
        state.negated_until, state.is_hedged, state.hedge_index = -1, True, index
    elif is_denied and is_expletive and previous_tag in ("J", "X", "N", "R"):
        state.negated_until = -1


def _deny_statement(builder: ClaimBuilder, index: int) -> None:
    """Deny the objects of `that there is`, and hedge any other statement.

    The objects of another one may exist.

    It is false that there is a dog; it is not true that a man holds it.
    """
    state, following = builder.state, builder.tokens.words[index + 1 : index + 2]
    if following == ["there"]:
        state.negated_until = TO_SENTENCE_END
    else:
        state.negated_until, state.is_hedged, state.hedge_index = -1, True, index


def _is_called_false(builder: ClaimBuilder, end: int) -> bool:
    """Return whether a sentence ends in a verdict: ... is false, ... is not true."""
    copula, before, verdict = ["", "", "", *builder.tokens.words[max(0, end - 4) : end - 1]][-3:]
    return (before in COPULAS and verdict in FALSE_ADJECTIVES) or (
        copula in COPULAS and before == "not" and verdict in TRUE_WORDS
    )


def _process_conjunction(state: SentenceState, word: str, next_tag: str) -> None:
    """Begin a clause at but, while, because or if."""
    state.negated_until, state.pending_negation = -1, ""
    # wears a shirt *but* no hat: the same verb
    if word == "but" and next_tag == "Z" and state.conjunct_role == "object":
        if state.action is not None:
            state.action.is_open = True
        return
    state.is_hedged = word in ("if", "whether", "unless")
    state.open_relation = state.action = state.resolved_relation = None
    state.conjuncts, state.conjunct_role, state.has_finite_verb = [], "", False
    if next_tag not in AFTER_REDUCED_CONJUNCTION:
        state.verb_index, state.verb = -1, ""


def _process_preposition(builder: ClaimBuilder, index: int, word: str, previous_tag: str) -> None:
    """Process a preposition that does not give a place: with, without, except."""
    state = builder.state
    state.open_relation = None
    if word in ("dressed in", "clad in"):
        begin_wearing(builder, index, previous_tag)
    elif state.action is not None:
        add_preposition(builder, index, word)
    # not complete *without* a hat: two negations
    if word in NEGATIVE_PREPOSITIONS and builder.is_negated_at(index):
        state.negated_until = -1
    # a man *without* a hat
    elif word in NEGATIVE_PREPOSITIONS:
        state.pending_negation, state.conjunct_role, state.conjuncts = "word", "denied", []
        return
    # nothing in the drawer *except* a spoon; no people *except* a man: there is somebody
    if word in EXCEPTIVE_PREPOSITIONS:
        for phrase in [*state.subjects, *state.conjuncts]:
            if phrase.is_negated:
                builder.withdraw(phrase)
        state.negated_until, state.pending_negation = -1, ""
    # It is not common *for* a cat to swim.
    if word == "for":
        _process_judgement(builder, index, previous_tag)
    state.possessor = state.conjuncts[-1] if state.conjuncts and word == "with" else None
    state.conjuncts, state.conjunct_role = [], "with"
    if state.verb_index < 0:
        state.verb_index, state.verb = index, "with"
