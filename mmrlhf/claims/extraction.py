"""From a text to its claims: who is where, what there is not, what may be.

One pass over the phrases of each sentence, left to right, that remembers the subject, what the verb did, and what is being denied.
"""

from __future__ import annotations

from mmrlhf.claims.builder import ClaimBuilder, SentenceState
from mmrlhf.claims.disambiguation import tag_text
from mmrlhf.claims.grammar import (
    APPROXIMATE_NUMBER_WORDS,
    COPULAS,
    DEPICTIONS,
    DIRECTED_ACTIONS,
    EXCEPTIVE_PREPOSITIONS,
    MAX_CONJUNCTS,
    MEASURE_NOUNS,
    NEGATIVE_PREPOSITIONS,
    PICTURE_NOUNS,
    POSSESSIVES,
    TRACE_NOUNS,
)
from mmrlhf.claims.lexicon import Lexicon, load_lexicon
from mmrlhf.claims.noun_phrases import PHRASE_PATTERN, Phrase, continues_list, is_wall_art, parse_phrase, word_to_number
from mmrlhf.claims.predicates import is_animate, process_adjective, process_participle, process_verb
from mmrlhf.claims.relations import attach_target, begin_relation, resolve_fronted
from mmrlhf.claims.tagging import split_sentences
from mmrlhf.claims.tags import (
    AFTER_PREDICATE_NEITHER,
    AFTER_REDUCED_CONJUNCTION,
    CLAUSE_END_TAGS,
    COORDINATION_KEEPING_TAGS,
    COORDINATION_TAGS,
    DESCRIPTIVE_TAGS,
    FINITE_VERB_TAGS,
    MAIN_VERB_TAGS,
    NEGATED_PHRASE_START_TAGS,
    PARTICIPLE_TAGS,
    PREPOSITION_TAGS,
    STANDALONE_TAGS,
)
from mmrlhf.records import Claim


def extract_claims(text: str, lexicon: Lexicon | None = None) -> list[Claim]:
    """The visual claims of an English text, each distinct one once, in the order in which they are made.

    A text in another language, code or a question claims nothing.
    """
    extractor = _ClaimExtractor(text, lexicon or load_lexicon())
    extractor.run()
    return extractor.builder.claims()


class _ClaimExtractor:
    """Goes over one text."""

    def __init__(self, text: str, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.tokens = tag_text(text, lexicon)
        self.builder = ClaimBuilder(self.tokens, lexicon)

    @property
    def state(self) -> SentenceState:
        return self.builder.state

    def run(self) -> None:
        tokens = self.tokens
        tags = "".join(tokens.tags)
        for begin, end in split_sentences(tokens, tags):
            self.builder.state = SentenceState()
            self._process_sentence(tags, begin, end)

    # ---- the pass ------------------------------------------------------------------------------------------------------

    def _process_sentence(self, tags: str, begin: int, end: int) -> None:
        tokens, words = self.tokens, self.tokens.words
        pending_quantifier: Phrase | None = None  # a phrase before `of` that is none itself
        of_head: Phrase | None = None  # the phrase that `of` goes on with
        possessor: Phrase | None = None  # whose
        previous_tag = "."
        is_coordinated = False  # after a comma or `and`
        num_consumed = begin  # tokens before this one
        for match in PHRASE_PATTERN.finditer(tags, begin, end):
            index, stop = match.span()
            if index < num_consumed:
                continue
            if match.lastgroup == "np":
                phrase = parse_phrase(tokens, index, stop, self.lexicon)
                next_tag = tags[stop] if stop < end else "."
                if (
                    phrase.noun in PICTURE_NOUNS
                    and not phrase.name
                    and not phrase.is_definite
                    and is_wall_art(words, begin, index, end)
                ):
                    phrase.name = phrase.noun  # a thing on the wall, and not what is looked at
                if pending_quantifier is not None:
                    if (
                        pending_quantifier.count
                        and not phrase.count
                        and (pending_quantifier.noun in ("couple", "dozen", "pair") or pending_quantifier.noun == "")
                    ):
                        phrase.count, phrase.count_index, phrase.start, phrase.is_approximate = (
                            pending_quantifier.count,
                            pending_quantifier.count_index,
                            pending_quantifier.start,
                            pending_quantifier.is_approximate,
                        )
                    phrase.is_negated, phrase.is_bare = (
                        phrase.is_negated or pending_quantifier.is_negated,
                        phrase.is_bare and pending_quantifier.is_bare,
                    )
                    if pending_quantifier.is_negated:
                        phrase.is_definite = False
                    if pending_quantifier.noun == "none":
                        self.state.negated_until = 10**9
                    pending_quantifier = None
                if next_tag == "F" and self._is_quantifier(phrase):
                    if phrase.noun in ("couple", "pair"):
                        phrase.count, phrase.count_index = 2, stop - 1
                    elif phrase.noun != "dozen":
                        phrase.count = None
                    pending_quantifier = phrase
                    num_consumed, previous_tag = stop + 1, "F"
                    continue
                if next_tag == "S":
                    self.builder.add_phrase(phrase)
                    possessor = phrase
                    num_consumed, previous_tag = stop + 1, "S"
                    continue
                if previous_tag == "F" and of_head is not None:
                    self._process_of_phrase(phrase, of_head)
                else:
                    self._process_phrase(phrase, previous_tag, is_coordinated, next_tag, possessor)
                possessor = None
                of_head = phrase if next_tag == "F" else None
                previous_tag, is_coordinated = "N", False
                continue
            tag, word = tags[index], words[index]
            next_tag = tags[stop] if stop < end else "."
            if tag == "W":
                pending_quantifier = None  # two of whom
            if tag == "#" and next_tag == "F":
                pending_quantifier = Phrase(index, index, index + 1, "", "", True, False, False)
                number = word_to_number(word)
                if words[index + 2 : index + 3] not in (["the"], ["these"], ["those"], ["them"]):
                    pending_quantifier.count, pending_quantifier.count_index = number, index
                num_consumed, previous_tag = index + 2, "F"
                continue
            if tag == "Q":
                self._process_pronoun(index, word, previous_tag, next_tag)
            elif tag in STANDALONE_TAGS:
                self._process_token(index, tag, word, previous_tag, next_tag, tags, end)
            if tag in COORDINATION_TAGS or word == "nor":
                is_coordinated = True
            elif tag not in COORDINATION_KEEPING_TAGS:
                is_coordinated = False
            if tag != "R" or previous_tag == ".":
                previous_tag = tag
            if tag != "F":
                of_head = None

    def _is_quantifier(self, phrase: Phrase) -> bool:
        noun = phrase.noun
        if not phrase.name or (phrase.is_negated and phrase.name in TRACE_NOUNS):
            return True
        return noun in MEASURE_NOUNS or noun == "couple"

    def _process_of_phrase(self, phrase: Phrase, head_phrase: Phrase) -> None:
        """`of` what: the cup of coffee has coffee, the statue of a lion no lion."""
        if head_phrase.noun in DEPICTIONS or head_phrase.noun in PICTURE_NOUNS:
            return
        if head_phrase.is_negated or self.builder.is_negated(head_phrase):
            phrase.is_negated = phrase.is_negated or (not phrase.is_definite and head_phrase.is_negated)
        self.builder.add_phrase(phrase)
        if self.state.conjunct_role == "target" and not head_phrase.name:
            attach_target(self.builder, phrase)

    # ---- phrases -------------------------------------------------------------------------------------------------------

    def _process_phrase(
        self, phrase: Phrase, previous_tag: str, is_coordinated: bool, next_tag: str, possessor: Phrase | None
    ) -> None:
        state, tokens = self.state, self.tokens
        if possessor is not None:
            phrase.is_definite = True
            if phrase.noun in ("color", "colour"):
                phrase.antecedent = possessor  # its colour is its own
        if (
            tokens.words[phrase.head] in ("camera", "viewer", "photographer")
            and phrase.is_definite
            and previous_tag in PREPOSITION_TAGS
            and (state.verb in DIRECTED_ACTIONS or state.verb in ("posing", "poses", "pose", "facing", "faces"))
        ):
            state.open_relation = None
            return
        if phrase.name in ("camera",) and phrase.is_definite and state.verb in ("facing", "faces"):
            return
        starts_clause = state.has_finite_verb and (
            next_tag in FINITE_VERB_TAGS
            or (
                next_tag == ","
                and phrase.is_definite
                and tokens.tags[phrase.start - 2 : phrase.start] == [",", "C"]
                and tokens.tags[phrase.end + 1 : phrase.end + 2] == ["W"]
            )
        )
        if state.conjunct_role == "denied" and state.open_relation is not None:
            state.conjunct_role, state.pending_negation = "", ""  # without a hat on a beach
        is_correction = is_coordinated and previous_tag != "L" and tokens.words[phrase.start - 1] in ("only", "just")
        if is_correction:
            state.pending_negation, state.negated_until, state.conjunct_role = "", -1, ""  # no books, only jars
        if tokens.words[phrase.start] in ("many", "much") and self.builder.is_negated_at(phrase.start):
            state.negated_until = -1  # not many are some
        if state.pending_negation:
            # `not a dog`, `without a hat`, `neither a car`: the phrases that follow, as long as `or` goes on with them
            if (
                is_coordinated
                and previous_tag != "L"
                and not (
                    previous_tag in COORDINATION_TAGS
                    and (phrase.is_bare or phrase.is_negated or tokens.words[phrase.start] in ("any", "a", "an"))
                )
            ):
                state.pending_negation = ""
            elif not phrase.is_definite:
                phrase.is_negated = True
        elif (
            is_coordinated
            and not is_correction
            and state.conjuncts
            and state.conjuncts[-1].is_negated
            and not phrase.is_definite
            and (phrase.is_bare or phrase.is_negated or tokens.words[phrase.start] == "any")
            and next_tag not in FINITE_VERB_TAGS
        ):
            phrase.is_negated = True
        if (
            state.verb in COPULAS
            and state.actors
            and phrase.is_bare
            and not is_coordinated
            and phrase.end - phrase.head <= 2
            and tokens.words[phrase.end - 1] in self.lexicon.word_sets["materials"]
            and state.open_relation is None
        ):
            for q in state.actors:
                self.builder.add_attribute(
                    q,
                    " ".join([*(v.split(" ")[0] for v, _ in phrase.attributes), tokens.words[phrase.end - 1]]),
                    phrase.start,
                    phrase.end,
                )
            return
        if (
            state.verb in COPULAS
            and state.actors
            and not is_coordinated
            and state.open_relation is None
            and not phrase.is_negated
            and phrase.name
            and phrase.name == state.actors[0].referent.name
            and phrase.start > state.verb_index
        ):
            for value, index in phrase.attributes:  # the dog is a young dog
                self.builder.add_attribute(state.actors[0], value, index, phrase.end)
            return
        self.builder.add_phrase(phrase)
        if state.conjunct_role == "denied" and state.open_relation is None:
            state.conjuncts = [phrase]
            return
        if (
            is_coordinated
            and next_tag in DESCRIPTIVE_TAGS
            and tokens.words[phrase.start] in POSSESSIVES
            and tokens.words[phrase.start - 1] == ","
            and tokens.attribute_rank[phrase.end]
        ):
            self.builder.add_attribute(
                phrase, tokens.words[phrase.end], phrase.end, phrase.end + 1
            )  # a laptop, its screen cracked, is
            state.conjuncts, state.conjunct_role = state.subjects, "subject"
            return
        phrases = [phrase]
        if is_coordinated and previous_tag == "?" and state.conjunct_role in ("target", "object") and not phrase.is_definite:
            return  # another name for the phrase before
        if state.open_relation is not None:
            attach_target(self.builder, phrase)
            return
        if (
            is_coordinated
            and next_tag in FINITE_VERB_TAGS
            and not state.has_finite_verb
            and state.subjects
            and state.conjuncts
            and state.conjunct_role != "subject"
        ):
            animacy = [is_animate(self.builder, q) for q in (state.subjects[-1], state.conjuncts[-1], phrase)]
            if animacy == [True, False, True]:  # a man in a hat and a woman are ...
                state.subjects = state.actors = state.conjuncts = [*state.subjects, phrase]
                state.conjunct_role = "subject"
                return
        if is_coordinated and state.conjuncts and not starts_clause:
            if state.conjunct_role == "target" and state.last_relation is not None:
                is_separate = len(state.conjuncts) == 1 and tokens.tags[max(0, phrase.start - 2) : phrase.start] == [",", "C"]
                is_parallel = (
                    phrase.determiner_kind == state.conjuncts[-1].determiner_kind or state.conjuncts[-1].antecedent is not None
                ) and not is_separate
                if next_tag not in PARTICIPLE_TAGS and is_parallel:
                    relation, located, index = state.last_relation
                    self.builder.add_relation(located, relation, phrase, index)
                    state.conjuncts = [*state.conjuncts[-MAX_CONJUNCTS:], phrase]
                    return
                state.conjuncts, state.conjunct_role = phrases, "object"
                return
            if state.conjunct_role in ("subject", "object", "with"):
                state.conjuncts = [*state.conjuncts[-MAX_CONJUNCTS:], phrase]
                if state.conjunct_role == "subject":
                    state.subjects = state.actors = state.conjuncts
                return
        if starts_clause and is_coordinated:
            state.subjects, state.actors, state.conjuncts, state.conjunct_role, state.verb, state.verb_index = (
                phrases,
                phrases,
                phrases,
                "subject",
                "",
                -1,
            )
            state.negated_until, state.has_finite_verb, state.last_relation, state.last_target = -1, False, None, None
            resolve_fronted(self.builder)
            return
        if state.verb_index >= 0:
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
            if state.fronted_relation is not None:
                state.subjects = state.actors = phrases
                resolve_fronted(self.builder)
            elif not state.subjects:
                state.subjects = state.actors = phrases
            return
        state.subjects, state.actors, state.conjuncts, state.conjunct_role = phrases, phrases, phrases, "subject"
        resolve_fronted(self.builder)

    def _process_pronoun(self, index: int, word: str, previous_tag: str, next_tag: str) -> None:
        state = self.state
        if word in ("he", "she", "him", "her", "himself", "herself"):
            antecedent = self.builder.last_person
        elif word in ("it", "itself", "this", "that"):
            antecedent = self.builder.last_singular
        elif word in ("they", "them", "themselves", "these", "those") or word == "none":
            antecedent = self.builder.last_plural or self.builder.last_singular
        else:
            antecedent = None
        phrase = Phrase(index, index, index + 1, "", word, word in ("they", "them"), True, False)
        if antecedent is not None:
            phrase.antecedent, phrase.name, phrase.is_plural = antecedent, "", antecedent.is_plural
            phrase.is_negated = antecedent.is_negated
        if state.open_relation is not None:
            located = [] if state.open_relation[3] else state.open_relation[2]
            if word in ("it", "itself", "them") and state.last_relation is not None:
                latest_target = [state.last_target] if state.last_target else []
                candidates = (
                    [*latest_target, *state.last_relation[1]]
                    if state.conjunct_role == "with"
                    else [*state.last_relation[1], *latest_target]
                )
                antecedent = next(
                    (q.referent for q in candidates if q.referent.name and all(q.referent is not f.referent for f in located)),
                    antecedent,
                )
                phrase.antecedent = antecedent
            elif (
                word in ("it", "itself")
                and state.conjunct_role == "with"
                and state.possessor is not None
                and state.possessor.name
                and not state.possessor.is_negated
            ):
                antecedent = phrase.antecedent = state.possessor  # the room has a table with a vase on it
            if antecedent is not None:
                attach_target(self.builder, phrase)
            else:
                state.open_relation = None
            return
        if state.verb_index >= 0 and next_tag not in FINITE_VERB_TAGS:
            state.conjuncts, state.conjunct_role = [phrase], "object"
            return
        if previous_tag in COORDINATION_TAGS:
            state.negated_until, state.pending_negation = -1, ""
        if word == "none":
            state.negated_until = 10**9
        state.subjects = state.actors = state.conjuncts = [phrase]
        state.conjunct_role, state.verb, state.verb_index, state.has_finite_verb = "subject", "", -1, False

    # ---- small words ---------------------------------------------------------------------------------------------------

    def _process_token(self, index: int, tag: str, word: str, previous_tag: str, next_tag: str, tags: str, end: int) -> None:
        state = self.state
        if tag == "P":
            begin_relation(self.builder, index, word, previous_tag, next_tag)
        elif tag in MAIN_VERB_TAGS:
            process_verb(self.builder, index, tag, word, previous_tag, next_tag, tags, end)
        elif tag in PARTICIPLE_TAGS:
            process_participle(self.builder, index, tag, word, previous_tag, next_tag, tags, end)
        elif tag == "J":
            process_adjective(self.builder, index, word, previous_tag, next_tag, tags, end)
        elif tag == "O":
            if word == "not only":
                return
            if next_tag in NEGATED_PHRASE_START_TAGS and previous_tag not in ("B", "M"):
                state.pending_negation = "word"
                if previous_tag == ",":
                    state.conjunct_role = "denied"
            else:
                state.negated_until = 10**9
        elif tag == "L":
            if next_tag in AFTER_PREDICATE_NEITHER:
                state.negated_until = 10**9
            else:
                state.pending_negation = (
                    "neither" if previous_tag in CLAUSE_END_TAGS or state.pending_negation == "neither" else "word"
                )
        elif tag == "?" and word not in APPROXIMATE_NUMBER_WORDS and not self.builder.is_negated_at(index):
            state.is_hedged, state.hedge_index = True, index
        elif tag == "Y":
            state.negated_until, state.pending_negation, state.is_hedged = -1, "", word in ("if", "whether", "unless")
            state.open_relation = None
            if word in ("but", "however", "yet"):
                state.conjuncts = []
            state.conjuncts, state.conjunct_role, state.has_finite_verb = [], "", False
            if next_tag not in AFTER_REDUCED_CONJUNCTION:
                state.verb_index, state.verb = -1, ""
        elif tag == "W":
            if state.conjuncts and previous_tag in ("N", ","):
                state.outer_subjects, state.actors, state.in_relative_clause = state.subjects, list(state.conjuncts), True
        elif tag == "A":
            state.open_relation = None
            if word in NEGATIVE_PREPOSITIONS:
                state.pending_negation, state.conjunct_role, state.conjuncts = "word", "denied", []
            else:
                if word in EXCEPTIVE_PREPOSITIONS:
                    state.negated_until, state.pending_negation = -1, ""
                state.possessor = state.conjuncts[-1] if state.conjuncts and word == "with" else None
                state.conjuncts, state.conjunct_role = [], "with"
                if state.verb_index < 0:
                    state.verb_index, state.verb = index, "with"
        elif tag == ",":
            state.open_relation = None
            if state.is_hedged and not continues_list(tags, index, end):
                state.is_hedged = False
            if state.conjunct_role == "denied":
                state.conjunct_role, state.conjuncts = "", []
        elif tag == "C" or tag == "I":
            state.open_relation = None
        elif tag == ":":
            self._process_label(index, tags, end)
            self.builder.state = SentenceState()

    def _process_label(self, index: int, tags: str, end: int) -> None:
        """`People: none`, `dogs: 2`."""
        word = self.tokens.words[index + 1] if index + 1 < end else ""
        if not self.state.conjuncts or tags[index + 2 : min(index + 3, end)] not in ("", ".", ","):
            return
        phrase = self.state.conjuncts[-1]
        if word in ("none", "no", "0", "zero", "nothing"):
            self.builder.negate(phrase)
        elif phrase.name and tags[index + 1 : index + 2] == "#" and (number := word_to_number(word)):
            phrase.count, phrase.count_index = number, phrase.start
            self.builder.add_count(phrase, index + 2)
