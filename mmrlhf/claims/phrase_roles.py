"""Roles of noun phrases and pronouns: subject, object, target of a relation, predicate."""

from __future__ import annotations

from mmrlhf.claims.actions import complete_action
from mmrlhf.claims.builder import ClaimBuilder
from mmrlhf.claims.grammar import (
    CLAUSE_CONJUNCTIONS,
    COPULAS,
    DENYING_QUANTIFIERS,
    DEPICTIONS,
    DIRECTED_ACTIONS,
    EXISTENCE_VERBS,
    MAX_CONJUNCTS,
    PICTURE_NOUNS,
    POSSESSIVES,
    SHADED_COLOURS,
)
from mmrlhf.claims.image_places import locate_joined, resolve_fronted_place
from mmrlhf.claims.list_items import read_gapped
from mmrlhf.claims.noun_phrases import Phrase
from mmrlhf.claims.relations import attach_target, resolve_fronted
from mmrlhf.claims.sentence_state import SentenceState
from mmrlhf.claims.tags import (
    AFTER_FRONTED_TARGET,
    ASIDE_START_TAGS,
    COORDINATION_TAGS,
    DESCRIPTIVE_TAGS,
    FINITE_VERB_TAGS,
    MEMBER_END_TAGS,
    PARTICIPLE_TAGS,
    PLACE_TAGS,
    PREPOSITION_TAGS,
    SENTENCE_BREAK_TAGS,
)


def process_of_phrase(builder: ClaimBuilder, phrase: Phrase, head_phrase: Phrase) -> None:
    """Add a phrase after `of`: a cup of coffee holds coffee, a statue of a lion is not a lion."""
    if head_phrase.noun in DEPICTIONS or head_phrase.noun in PICTURE_NOUNS:
        return
    if head_phrase.is_negated or builder.is_negated(head_phrase):
        phrase.is_negated = phrase.is_negated or (not phrase.is_definite and head_phrase.is_negated)
    builder.add_phrase(phrase)
    builder.state.of_phrase = phrase if builder.is_animate(phrase) else None
    if builder.state.conjunct_role == "target" and not head_phrase.name:
        attach_target(builder, phrase)


def process_phrase(
    builder: ClaimBuilder, phrase: Phrase, previous_tag: str, is_coordinated: bool, next_tag: str, possessor: Phrase | None
) -> None:
    """Add a phrase's claims and give it its role.

    `is_coordinated` tells whether a comma or `and` comes before it; `possessor` is the phrase
    before `'s`.
    """
    state, tokens = builder.state, builder.tokens
    if possessor is not None:
        phrase.is_definite = True
        # The dog's *colour* is the dog's attribute.
        if phrase.noun in ("color", "colour"):
            phrase.antecedent = possessor
    if phrase.is_definite and _is_camera(builder, phrase, previous_tag):
        return
    if not phrase.name and phrase.noun in MEMBER_NOUNS and _process_member(builder, phrase, is_coordinated, next_tag):
        return
    if tokens.words[phrase.start] == "whose" and state.conjuncts and previous_tag in ("N", ","):
        begin_relative_clause(builder, phrase)
        return
    if is_coordinated and _names_member(state, phrase, previous_tag):
        builder.add_phrase(phrase)
        state.subjects = state.actors = state.conjuncts = [phrase]
        return
    starts_clause = (
        (state.has_finite_verb or (previous_tag == "," and _opens_with_circumstance(state, tokens.tags)))
        and (is_coordinated or tokens.words[phrase.start - 1] in CLAUSE_CONJUNCTIONS)
        and (_is_subject(tokens.tags, phrase.end) or _has_relative_clause_in_list(builder, phrase, next_tag))
    )
    # The kettle is not hot, and a *child* is near it.
    if starts_clause:
        is_denied_subject = not DENYING_QUANTIFIERS.isdisjoint(tokens.words[max(0, phrase.start - 2) : phrase.start])
        if not is_denied_subject:
            state.negated_until, state.pending_negation = -1, ""
        if state.conjunct_role == "denied":
            state.conjuncts, state.conjunct_role = [], ""

    # ---- negation ------------------------------------------------------------------------------
    if state.conjunct_role == "denied" and state.open_relation is not None:
        state.conjunct_role, state.pending_negation = "", ""  # a man without a hat on a *beach*
    if is_coordinated or state.pending_negation or state.negated_until >= 0:
        _negate_phrase(builder, phrase, previous_tag, is_coordinated, next_tag)

    # The tank is green, the *seat* brown leather.
    is_gapped = (
        is_coordinated and phrase.is_definite and next_tag in ("J", "R") and state.verb in COPULAS and state.open_relation is None
    )
    if is_gapped and state.conjunct_role == "verb" and phrase.name and tokens.words[phrase.start] == "the":
        builder.add_phrase(phrase)
        if read_gapped(builder, phrase, "".join(tokens.tags[: phrase.end + 12])):
            return

    # ---- predicates ----------------------------------------------------------------------------
    if state.verb in COPULAS and _add_predicate_attributes(builder, phrase, is_coordinated):
        return
    builder.add_phrase(phrase)
    if state.conjunct_role == "denied" and state.open_relation is None:
        state.conjuncts = [phrase]
        return
    # A truck, its *bumper* bent, stops near a gate.
    if (
        is_coordinated
        and next_tag in DESCRIPTIVE_TAGS
        and tokens.words[phrase.start] in POSSESSIVES
        and tokens.words[phrase.start - 1] == ","
        and tokens.attribute_rank[phrase.end]
    ):
        builder.add_attribute(phrase, tokens.words[phrase.end], phrase.end, phrase.end + 1)
        state.conjuncts, state.conjunct_role = state.subjects, "subject"
        return

    # ---- targets and coordination --------------------------------------------------------------
    # A couch, or perhaps *loveseat*: another name for the previous phrase.
    if is_coordinated and previous_tag == "?" and state.conjunct_role in ("target", "object") and not phrase.is_definite:
        return
    # A dog on a *couch*.
    if state.open_relation is not None:
        attach_target(builder, phrase)
        return
    # A man in a hat and a *woman* are ...: the second subject, not another hat.
    if (
        is_coordinated
        and next_tag in FINITE_VERB_TAGS
        and not state.has_finite_verb
        and state.subjects
        and state.conjuncts
        and state.conjunct_role != "subject"
    ):
        animacy = [builder.is_animate(other) for other in (state.subjects[-1], state.conjuncts[-1], phrase)]
        if animacy == [True, False, True]:
            state.subjects = state.actors = state.conjuncts = [*state.subjects, phrase]
            state.conjunct_role = "subject"
            return
    if is_coordinated and state.conjuncts and not starts_clause and _join_conjuncts(builder, phrase, next_tag):
        return

    # ---- subjects and objects ------------------------------------------------------------------
    # A dog sits on a couch and a *cat* is ...
    if starts_clause:
        state.verb, state.verb_index, state.has_finite_verb = "", -1, False
        state.last_relation = state.last_target = state.resolved_relation = None
    elif state.verb_index >= 0:
        _set_object(builder, phrase)
        return
    phrases = [phrase]
    state.subjects, state.actors, state.conjuncts, state.conjunct_role = phrases, phrases, phrases, "subject"
    state.action = None
    resolve_fronted(builder)
    resolve_fronted_place(builder, phrase)


def begin_relative_clause(builder: ClaimBuilder, phrase: Phrase) -> None:
    """Begin a clause with its own subject: a girl, *whose hat* is red; the bus *a man* drives."""
    state = builder.state
    builder.add_phrase(phrase)
    state.outer_subjects = None if state.has_finite_verb else state.subjects
    state.subjects = state.actors = state.conjuncts = [phrase]
    state.conjunct_role, state.verb, state.verb_index, state.action = "subject", "", -1, None


MEMBER_NOUNS = ("one", "other")


def _names_member(state: SentenceState, phrase: Phrase, previous_tag: str) -> bool:
    """Return whether a phrase says who `one` is: one of them, a *woman*, is talking."""
    return (
        previous_tag == ","
        and state.conjunct_role == "subject"
        and len(state.conjuncts) == 1
        and state.conjuncts[0].noun in ("one", "other", "they")
        and phrase.name != ""
        and not phrase.is_definite
    )


def _process_member(builder: ClaimBuilder, phrase: Phrase, is_coordinated: bool, next_tag: str) -> bool:
    """Make `one` and `the other` of several things the subject: *one* holds a cup."""
    state, group = builder.state, builder.last_plural
    begins_clause = (
        state.verb_index < 0 or (is_coordinated and state.has_finite_verb) or (is_coordinated and next_tag in PARTICIPLE_TAGS)
    )
    if not begins_clause or group is None or state.open_relation is not None or next_tag not in MEMBER_END_TAGS:
        return False
    phrase.antecedent = group
    state.subjects = state.actors = state.conjuncts = [phrase]
    state.conjunct_role, state.verb, state.verb_index, state.has_finite_verb = "subject", "", -1, False
    state.negated_until, state.pending_negation, state.action, state.last_relation = -1, "", None, None
    return True


def _is_camera(builder: ClaimBuilder, phrase: Phrase, previous_tag: str) -> bool:
    """Return whether a phrase is the camera that took the image: a girl smiling at the *camera*."""
    state = builder.state
    if (
        builder.tokens.words[phrase.head] in ("camera", "viewer", "photographer")
        and previous_tag in PREPOSITION_TAGS
        and (state.verb in DIRECTED_ACTIONS or state.verb in ("posing", "poses", "pose", "facing", "faces"))
    ):
        state.open_relation = None
        return True
    return phrase.name == "camera" and state.verb in ("facing", "faces")


def _opens_with_circumstance(state: SentenceState, tags: list[str]) -> bool:
    """Return whether the sentence began with circumstances: *with* nobody around, the man ..."""
    return state.verb == "with" and (state.verb_index == 0 or tags[state.verb_index - 1] in SENTENCE_BREAK_TAGS)


def _is_subject(tags: list[str], end: int) -> bool:
    """Return whether a finite verb follows a phrase that ends here, perhaps after a few places.

    The *chair* in the back is empty.
    """
    for _ in range(3):
        if end + 1 < len(tags) and tags[end] == "," and tags[end + 1] in ASIDE_START_TAGS:
            end = _end_of_aside(tags, end)
        while end < len(tags) and tags[end] == "R":
            end += 1
        if end >= len(tags) or tags[end] not in ("P", "A", "F"):
            return end < len(tags) and tags[end] in FINITE_VERB_TAGS
        end += 1
        start = end
        while end < min(len(tags), start + 6) and tags[end] in PLACE_TAGS:
            end += 1
    return False


def _end_of_aside(tags: list[str], comma: int) -> int:
    """Return where an aside ends, if a verb follows it: a second man, *an old one*, stands here."""
    is_clause = tags[comma + 1] == "W"
    for index in range(comma + 1, min(len(tags) - 1, comma + 14)):
        if (tags[index] in FINITE_VERB_TAGS and not is_clause) or tags[index] in ".:YC":
            return comma
        if tags[index] == ",":
            return index + 1 if tags[index + 1] in FINITE_VERB_TAGS else comma
    return comma


def _has_relative_clause_in_list(builder: ClaimBuilder, phrase: Phrase, next_tag: str) -> bool:
    """Return whether a phrase begins a clause: ..., and the *silo*, which is tall, is ..."""
    tags = builder.tokens.tags
    return (
        next_tag == ","
        and phrase.is_definite
        and tags[phrase.start - 2 : phrase.start] == [",", "C"]
        and tags[phrase.end + 1 : phrase.end + 2] == ["W"]
    )


def _negate_phrase(builder: ClaimBuilder, phrase: Phrase, previous_tag: str, is_coordinated: bool, next_tag: str) -> None:
    """Negate a phrase in the scope of `not`, `without` or `neither`, or end that scope."""
    state, words = builder.state, builder.tokens.words
    # The crate holds no apples, just *pears*.
    is_correction = (
        is_coordinated and previous_tag != "L" and not {"only", "just"}.isdisjoint(words[phrase.start - 1 : phrase.start + 1])
    )
    if is_correction:
        state.pending_negation, state.negated_until, state.conjunct_role = "", -1, ""
    # There aren't many *boats*: some are there.
    if words[phrase.start] in ("many", "much") and builder.is_negated_at(phrase.start):
        state.negated_until = -1
    is_indefinite_start = phrase.is_bare or phrase.is_negated
    if state.pending_negation:
        # without a hat or *gloves*; but: without a hat, the *man*; a sink without a tap, a *fridge*
        is_joined = words[phrase.start - 1] in ("or", "nor") or (
            previous_tag == "C" and builder.tokens.tags[phrase.start - 2 : phrase.start - 1] != [","]
        )
        goes_on = previous_tag in COORDINATION_TAGS and (
            is_indefinite_start or words[phrase.start] == "any" or (words[phrase.start] in ("a", "an") and is_joined)
        )
        if is_coordinated and previous_tag != "L" and not goes_on:
            state.pending_negation = ""
        elif not phrase.is_definite or (words[phrase.start] in POSSESSIVES and state.pending_negation == "word"):
            phrase.is_negated = True
    elif (
        # no dogs or *cats*
        is_coordinated
        and not is_correction
        and state.conjuncts
        and state.conjuncts[-1].is_negated
        and not phrase.is_definite
        and (is_indefinite_start or words[phrase.start] == "any")
        and (next_tag not in FINITE_VERB_TAGS or words[phrase.start - 1] in ("or", "nor"))
    ):
        phrase.is_negated = True
        phrase.is_additive = phrase.is_additive or state.conjuncts[-1].is_additive


def _add_predicate_attributes(builder: ClaimBuilder, phrase: Phrase, is_coordinated: bool) -> bool:
    """Add the attributes that a predicate gives its subject; return False if it gives none."""
    state, words = builder.state, builder.tokens.words
    if not state.actors or is_coordinated or state.open_relation is not None:
        return False
    # The table is dark *wood*.
    if phrase.is_bare and phrase.end - phrase.head <= 2 and words[phrase.end - 1] in builder.lexicon.word_sets["materials"]:
        # brown *leather* is brown and leather; dark *wood* is one material
        colours = [(value, index) for value, index in phrase.attributes if value in SHADED_COLOURS]
        modifiers = [value.split(" ")[0] for value, _ in phrase.attributes if value not in SHADED_COLOURS]
        for actor in state.actors:
            for value, index in colours:
                builder.add_attribute(actor, value, index, phrase.end)
            builder.add_attribute(actor, " ".join([*modifiers, words[phrase.end - 1]]), phrase.start, phrase.end)
        return True
    # The dog is a young *dog*.
    if not phrase.is_negated and phrase.name and phrase.name == state.actors[0].referent.name and phrase.start > state.verb_index:
        for value, index in phrase.attributes:
            builder.add_attribute(state.actors[0], value, index, phrase.end)
        return True
    return False


def _join_conjuncts(builder: ClaimBuilder, phrase: Phrase, next_tag: str) -> bool:
    """Join a phrase to the conjuncts before it; return False if their role allows no more."""
    state, tags = builder.state, builder.tokens.tags
    # Between the man and the *dog* is ...
    if state.conjunct_role == "target" and state.fronted_relation is not None:
        relation, targets, index = state.fronted_relation
        is_joined = tags[phrase.start - 1] == "C" and tags[phrase.start - 2] != ","
        if not is_joined or next_tag not in AFTER_FRONTED_TARGET:
            return False
        state.fronted_relation = (relation, [*targets[-MAX_CONJUNCTS:], phrase], index)
        state.conjuncts = [*state.conjuncts[-MAX_CONJUNCTS:], phrase]
        return True
    if state.conjunct_role == "target" and state.last_relation is not None:
        # A dog next to a couch and a *lamp* is next to both; after `, and` or before a participle
        # it is not.
        is_separate = len(state.conjuncts) == 1 and tags[max(0, phrase.start - 2) : phrase.start] == [",", "C"]
        last_conjunct = state.conjuncts[-1]
        has_same_form = phrase.determiner_kind == last_conjunct.determiner_kind or last_conjunct.antecedent is not None
        # A painter stands on it, *brush* in hand.
        is_aside = last_conjunct.antecedent is not None and tags[phrase.start - 1] == ","
        if next_tag not in PARTICIPLE_TAGS and has_same_form and not is_separate and not is_aside:
            relation, located, index = state.last_relation
            builder.add_relation(located, relation, phrase, index)
            state.conjuncts = [*state.conjuncts[-MAX_CONJUNCTS:], phrase]
        else:
            state.conjuncts, state.conjunct_role = [phrase], "object"
        return True
    if state.conjunct_role not in ("subject", "object", "with"):
        return False
    state.conjuncts = [*state.conjuncts[-MAX_CONJUNCTS:], phrase]
    if state.action is not None and not state.action.is_open and next_tag not in PARTICIPLE_TAGS:
        complete_action(builder, phrase)
    locate_joined(builder, phrase)
    # On the table are a cup and a *plate*.
    is_presented = state.conjunct_role == "object" and state.verb in EXISTENCE_VERBS and state.action is None
    if state.resolved_relation is not None and is_presented and not phrase.is_definite:
        relation, targets, index = state.resolved_relation
        for target in targets:
            builder.add_relation([phrase], relation, target, index)
    if state.conjunct_role == "subject":
        state.subjects = state.actors = state.conjuncts
        builder.remember_group(state.conjuncts)
    return True


def _set_object(builder: ClaimBuilder, phrase: Phrase) -> None:
    """Make a phrase after the verb the object, or the subject if there is none yet."""
    state, phrases = builder.state, [phrase]
    resolve_fronted_place(builder, phrase)
    if state.action is not None and state.action.is_open:
        complete_action(builder, phrase)
    # It is a *dog*: what follows is about the dog.
    if (
        state.verb in ("is", "are", "was", "were", "be", "'s")
        and state.subjects
        and state.conjunct_role == "subject"
        and state.subjects[0].antecedent is None
        and not state.subjects[0].name
        and not phrase.is_definite
    ):
        state.subjects = state.actors = phrases
    state.conjuncts, state.conjunct_role = phrases, "with" if state.conjunct_role == "with" else "object"
    # To the left of the lamp is a *chair*.
    if state.fronted_relation is not None:
        state.subjects = state.actors = phrases
        resolve_fronted(builder)
    elif not state.subjects:
        state.subjects = state.actors = phrases
