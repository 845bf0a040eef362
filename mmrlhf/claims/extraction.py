"""Extract the claims of a text about objects, their counts, attributes and spatial relations.

A single pass goes over the phrases of each sentence from left to right. Its state (see
`sentence_state.SentenceState`) holds the subject, the latest verb, and what is negated or hedged.
"""

from __future__ import annotations

from mmrlhf.claims.actions import LIGHT_OBJECTS
from mmrlhf.claims.builder import TO_SENTENCE_END, ClaimBuilder
from mmrlhf.claims.connectives import process_connective
from mmrlhf.claims.disambiguation import tag_text
from mmrlhf.claims.grammar import (
    ADVICE_HEADINGS,
    ADVICE_MARKERS,
    ADVICE_VERBS,
    ADVISING_MODALS,
    BEFORE_IMAGINING,
    CONTRASTS,
    COPULAS,
    IMAGINING_VERBS,
    MEASURE_NOUNS,
    NEGATIVE_PRONOUNS,
    PICTURE_NOUNS,
    PLURAL_MODIFIERS,
    SIDES_OF_PRONOUNS,
    SPEAKING_VERBS,
    TEXT_NOUNS,
    TRACE_NOUNS,
)
from mmrlhf.claims.lexicon import Lexicon, load_lexicon
from mmrlhf.claims.list_items import DENIAL_WORDS, begins_item, denies_list
from mmrlhf.claims.noun_phrases import PHRASE_PATTERN, Phrase, has_capital, is_wall_art, parse_phrase, word_to_number
from mmrlhf.claims.phrase_roles import begin_relative_clause, process_of_phrase, process_phrase
from mmrlhf.claims.predicates import process_adjective, process_participle, process_verb
from mmrlhf.claims.pronouns import process_pronoun
from mmrlhf.claims.relations import begin_relation
from mmrlhf.claims.sentence_state import SentenceState
from mmrlhf.claims.tagging import Tokens, split_sentences
from mmrlhf.claims.tags import (
    CLAUSE_BREAK_TAGS,
    CLAUSE_TAGS,
    COORDINATION_KEEPING_TAGS,
    COORDINATION_TAGS,
    DETERMINER_TAGS,
    FINITE_VERB_TAGS,
    MAIN_VERB_TAGS,
    PARTICIPLE_TAGS,
    STANDALONE_TAGS,
)
from mmrlhf.records import Claim


def extract_claims(text: str, lexicon: Lexicon | None = None) -> list[Claim]:
    """Return the visual claims of an English text, each distinct one once, in order of appearance.

    Questions, code and text in other languages yield no claims.
    """
    lexicon = lexicon or load_lexicon()
    builder = ClaimBuilder(tag_text(text, lexicon), lexicon)
    tags = "".join(builder.tokens.tags)
    may_deny_list, is_denied = "\n" in text and not DENIAL_WORDS.isdisjoint(builder.tokens.words), False
    may_advise = not ADVICE_MARKERS.isdisjoint(builder.tokens.words)
    for begin, end in split_sentences(builder.tokens, tags):
        builder.state, builder.item = SentenceState(), None
        if may_deny_list:
            is_denied = is_denied and begins_item(builder.tokens, begin)
            if is_denied and CLAUSE_TAGS.isdisjoint(tags[begin:end]) and "Z" not in tags[begin:end]:
                builder.state = SentenceState(negated_until=TO_SENTENCE_END, verb="see", verb_index=max(begin - 1, 0))
            is_denied = is_denied or denies_list(builder.tokens, begin, end)
        if may_advise:
            end = _find_advice(builder.tokens, begin, end)
        _SentencePass(builder, tags, begin, end).run()
    return builder.claims()


class _SentencePass:
    """One pass over the phrases and single tags of a sentence, tokens `begin` to `end`."""

    def __init__(self, builder: ClaimBuilder, tags: str, begin: int, end: int) -> None:
        self.builder, self.tags, self.begin, self.end = builder, tags, begin, end
        self.quantifier: Phrase | None = None
        """A phrase before `of` that counts or measures the next one: a couple of, a slice of."""
        self.of_head: Phrase | None = None
        """A phrase before `of` that is an object itself: a cup of."""
        self.counted: Phrase | None = None
        """The phrase after `the number of`, which a number after a form of be counts."""
        self.possessor: Phrase | None = None
        """The phrase before 's."""
        self.opens_with_comparison = False
        """Whether the sentence so far only says what something differs from: unlike the dog, ..."""
        self.topic: Phrase | None = None
        """The latest phrase after `about`, which is not in the image: a book about."""
        self.previous_tag = "."
        self.is_coordinated = False
        """Whether a comma or `and` comes just before."""
        self.next_index = begin
        """The first token that has not been processed yet."""

    def run(self) -> None:
        builder, tags, end = self.builder, self.tags, self.end
        for match in PHRASE_PATTERN.finditer(tags, self.begin, end):
            start, stop = match.span()
            if start < self.next_index or start < builder.skip_until:
                continue
            next_tag = tags[stop] if stop < end else "."
            if match.lastgroup == "np":
                self._visit_phrase(start, stop, next_tag)
            else:
                self._visit_token(start, next_tag)

    # ---- noun phrases --------------------------------------------------------------------------

    def _visit_phrase(self, start: int, stop: int, next_tag: str) -> None:
        builder, words = self.builder, self.builder.tokens.words
        match_stop = stop
        if next_tag == "V" and stop - start > 1:
            stop = _end_before_clause(builder.tokens, stop)
        phrase = parse_phrase(builder.tokens, start, stop, builder.lexicon)
        self.next_index = match_stop
        is_unnamed_picture = phrase.noun in PICTURE_NOUNS and not phrase.name and not phrase.is_definite
        if is_unnamed_picture and (
            (phrase.is_plural and builder.state.verb in COPULAS) or is_wall_art(words, self.begin, start, self.end)
        ):
            phrase.name = phrase.noun  # an object on a wall, not the image itself
        if self.quantifier is not None:
            self._apply_quantifier(phrase, self.quantifier)
            self.quantifier = None
        # a *couple* of dogs, a *slice* of pizza
        if next_tag == "F" and _is_quantifier(builder, phrase):
            if phrase.noun in ("couple", "pair") and not phrase.is_plural and not phrase.count:
                phrase.count, phrase.count_index = 2, stop - 1
            elif phrase.noun != "dozen":
                phrase.count = None  # three *pairs* of shoes
            if phrase.noun in LIGHT_OBJECTS:
                builder.state.action = None
            self.quantifier = phrase
            self.next_index, self.previous_tag = stop + 1, "F"
            return
        # the *dog*'s collar
        if next_tag == "S":
            # nobody's face
            if words[stop - 1] in NEGATIVE_PRONOUNS:
                builder.state.negated_until = TO_SENTENCE_END
            else:
                builder.add_phrase(phrase)
            self.possessor = phrase
            self.next_index, self.previous_tag = stop + 1, "S"
            return
        self.topic = phrase if self._continues_topic(phrase) else None
        if self._is_compared(start):
            if phrase.is_definite:  # but: unlike most dogs
                builder.add_phrase(phrase)
                self._begin_comparison(phrase)
        elif self.topic is not None:
            pass  # not in the image
        elif self.previous_tag == "F" and self.of_head is not None:
            process_of_phrase(builder, phrase, self.of_head)
        elif self._begins_reduced_clause(phrase, next_tag):
            begin_relative_clause(builder, phrase)
        else:
            process_phrase(builder, phrase, self.previous_tag, self.is_coordinated, next_tag, self.possessor)
        self.possessor = None
        self.of_head = phrase if next_tag == "F" else None
        self.previous_tag, self.is_coordinated = "N", False

    def _continues_topic(self, phrase: Phrase) -> bool:
        """Return whether a text or a talk is about a phrase: a book about *cats* and *dogs*.

        A definite phrase names something in the image: curious about *the cat*.
        """
        words = self.builder.tokens.words
        if phrase.is_definite:
            return False
        if words[phrase.start - 1] == "about" and self.previous_tag == "A" and phrase.start > 1:
            before = phrase.start - 2
            base = self.builder.lexicon.verb_base(words[before])
            return self.builder.tokens.nouns[before] in TEXT_NOUNS or base in SPEAKING_VERBS
        if self.topic is None or any(tag not in "C,F" for tag in self.tags[self.topic.end : phrase.start]):
            return False
        return self.previous_tag == "F" or (self.is_coordinated and phrase.is_bare and self.topic.is_bare)

    def _is_compared(self, start: int) -> bool:
        """Return whether something differs from a phrase: unlike *the dog*, the cat is black."""
        words = self.builder.tokens.words
        return "unlike" in words[max(0, start - 1) : start + 1] or " ".join(words[max(0, start - 3) : start]) in CONTRASTS

    def _begin_comparison(self, phrase: Phrase) -> None:
        """Let the words up to a comma be about a compared phrase: unlike *the man* in a hat."""
        state = self.builder.state
        state.conjuncts, state.conjunct_role = [phrase], "object"
        if not state.subjects:
            state.subjects = state.actors = state.conjuncts
            state.conjunct_role, self.opens_with_comparison = "subject", True

    def _begins_reduced_clause(self, phrase: Phrase, next_tag: str) -> bool:
        """Return whether a phrase begins a clause about the last one: the shirt *the man* wears."""
        state = self.builder.state
        return (
            self.previous_tag == "N"
            and self.tags[phrase.start] == "D"
            and next_tag in FINITE_VERB_TAGS
            and bool(state.subjects)
            and bool(state.conjuncts)
            and state.conjuncts[-1].end == phrase.start
            and not has_capital(self.builder.tokens, phrase.start - 1)  # Thomas the Train
            and state.fronted_relation is None
        )

    def _apply_quantifier(self, phrase: Phrase, quantifier: Phrase) -> None:
        """Give a phrase after `of` the number and the negation of the phrase before it."""
        counts_objects = quantifier.noun in ("couple", "dozen", "pair", "")
        if quantifier.count and not phrase.count and counts_objects:
            phrase.count, phrase.count_index = quantifier.count, quantifier.count_index
            phrase.start, phrase.is_approximate = quantifier.start, quantifier.is_approximate
        elif quantifier.count and phrase.count in (12, 100) and counts_objects:
            phrase.count, phrase.is_approximate = quantifier.count * phrase.count, True  # a couple of dozen
        if quantifier.noun == "number" and quantifier.is_definite:
            self.counted = phrase
        phrase.is_negated = phrase.is_negated or quantifier.is_negated
        phrase.is_bare = phrase.is_bare and quantifier.is_bare
        if quantifier.is_negated:
            phrase.is_definite = False
        if quantifier.noun == "none":
            self.builder.state.negated_until = TO_SENTENCE_END

    # ---- single tags ---------------------------------------------------------------------------

    def _visit_token(self, index: int, next_tag: str) -> None:
        words = self.builder.tokens.words
        tag, word = self.tags[index], words[index]
        # *two* of them
        if tag == "#" and next_tag == "F":
            self.quantifier = Phrase(index, index, index + 1, "", "", True, False, False)
            # `two of the dogs` leaves open how many there are in all.
            if words[index + 2 : index + 3] not in (["the"], ["these"], ["those"], ["them"]):
                self.quantifier.count, self.quantifier.count_index = word_to_number(word), index
            self.next_index, self.previous_tag = index + 2, "F"
            return
        if tag in ",:" and self.opens_with_comparison:
            self.builder.state, self.opens_with_comparison = SentenceState(), False
        if tag in STANDALONE_TAGS:
            if tag == "W":
                self.quantifier = None  # six nuns, two of whom
            self._process_token(index, tag, word, next_tag)
        elif tag == "Q":
            process_pronoun(self.builder, index, word, self.previous_tag, next_tag)
        # dog *(2)*
        elif tag == "%":
            self._count_previous_phrase(index, word)
            return
        # the number of dogs is *two*
        elif tag == "#" and self.previous_tag == "B" and self.counted is not None:
            is_range = self.tags[index + 1 : index + 2] == "C"  # two or three
            if not (is_range or self.builder.state.is_hedged):
                self._count_phrase(self.counted, index, word)
            self.counted = None
        if tag in "YC,":
            self.counted = None
        if tag in COORDINATION_TAGS or word == "nor":
            self.is_coordinated = True
        elif tag not in COORDINATION_KEEPING_TAGS:
            self.is_coordinated = False
        if tag != "R" or self.previous_tag == ".":
            self.previous_tag = tag
        if tag != "F":
            self.of_head = None

    def _count_previous_phrase(self, index: int, word: str) -> None:
        """Give the phrase right before a number in brackets that number, unless it is a label."""
        conjuncts = self.builder.state.conjuncts
        if conjuncts and conjuncts[-1].end == index:
            self._count_phrase(conjuncts[-1], index, word.strip("() x×–—-"))

    def _count_phrase(self, phrase: Phrase, index: int, word: str) -> None:
        """Give a phrase the number that comes after it; zero negates it."""
        number = word_to_number(word)
        is_label = self.tags[phrase.start] in DETERMINER_TAGS  # the man (1) and the woman (2)
        if number is None or not phrase.name or phrase.count or is_label:
            return
        if number:
            phrase.count = number
            self.builder.add_count(phrase, index + 1)
        else:
            self.builder.negate(phrase)

    def _process_token(self, index: int, tag: str, word: str, next_tag: str) -> None:
        builder, previous_tag, tags, end = self.builder, self.previous_tag, self.tags, self.end
        if tag == "P":
            relation, pronoun = SIDES_OF_PRONOUNS.get(word, (word, ""))
            begin_relation(builder, index, relation, previous_tag, "Q" if pronoun else next_tag)
            if pronoun:
                process_pronoun(builder, index, pronoun, "P", next_tag)
        elif tag in MAIN_VERB_TAGS:
            process_verb(builder, index, tag, word, previous_tag, next_tag, tags, end)
        elif tag in PARTICIPLE_TAGS:
            process_participle(builder, index, tag, word, previous_tag, next_tag, tags, end)
        elif tag == "J":
            process_adjective(builder, index, word, previous_tag, next_tag, tags, end)
        else:
            process_connective(builder, index, tag, word, previous_tag, next_tag, tags, end)


def _end_before_clause(tokens: Tokens, stop: int) -> int:
    """Return where a phrase ends before a relative clause: the tools | professionals use."""
    is_clause = tokens.tags[stop - 2] == "N" and not FINITE_VERB_TAGS.isdisjoint(tokens.tags[stop + 1 : stop + 2])
    if tokens.words[stop - 1] == "people" and is_clause:
        return stop - 1  # the food | people eat is ...
    if tokens.tags[stop - 2] != "N" or not tokens.is_plural[stop - 2]:
        return stop
    return stop if tokens.words[stop - 2] in PLURAL_MODIFIERS or not tokens.is_plural[stop - 1] else stop - 1


def _find_advice(tokens: Tokens, begin: int, end: int) -> int:
    """Return where a sentence begins to advise, which claims nothing, or its end.

    Consider adding a lamp. You could *add* a lamp. To make it better, *place* a vase here.
    """
    words, tags = tokens.words, tokens.tags
    first = begin
    while first < end - 1 and (tags[first] in "RC,?" or words[first] in ("please", "next", "finally", "first")):
        first += 1
    if first < end and _is_imperative(tokens, first, end):
        return first
    if first < end and tags[first] == "I" and "," in tags[first:end]:
        comma = tags.index(",", first, end)
        if comma + 1 < end and _is_imperative(tokens, comma + 1, end):
            return begin
    # If you take the dog out, ...; Tip: a helmet ...
    if words[first : first + 2] == ["if", "you"] or (words[first] in ADVICE_HEADINGS and words[first + 1 : first + 2] == [":"]):
        return begin
    for index in range(begin, end - 2):
        # visitors *should* use sunscreen
        if words[index] in ("should", "must") and tags[index] == "M":
            return _clause_start(tags, begin, index)
        if words[index] == "you" and words[index + 1] in ADVISING_MODALS:
            if not ADVICE_VERBS.isdisjoint(words[index + 2 : index + 5]):
                return index
        # let's *imagine* a cat
        elif (words[index] in IMAGINING_VERBS and words[index - 1] in BEFORE_IMAGINING and tags[index + 1] != ",") or (
            words[index] in ("recommend", "suggest", "advise") and words[max(begin, index - 2)] in ("i", "i'd", "would")
        ):
            return index
    return end


def _clause_start(tags: list[str], begin: int, index: int) -> int:
    """Return where the clause of a token begins: after the last comma, conjunction or break."""
    while index > begin and tags[index - 1] not in CLAUSE_BREAK_TAGS:
        index -= 1
    return index


def _is_imperative(tokens: Tokens, index: int, end: int) -> bool:
    """Return whether a verb without a subject advises something: *add* a lamp."""
    if index + 1 >= end:
        return False
    # Make *sure* to hang a mirror here.
    if tokens.words[index] in ("make", "be") and tokens.words[index + 1] == "sure":
        return True
    if tokens.words[index] not in ADVICE_VERBS:
        return False
    return tokens.tags[index + 1] in ("D", "#", "G", "Q", "W") or tokens.words[index] in (
        "consider", "ensure", "avoid", "remember", "keep",
    )  # fmt: skip


def _is_quantifier(builder: ClaimBuilder, phrase: Phrase) -> bool:
    """Return whether a phrase before `of` is not an object itself: a herd of, no sign of."""
    if not phrase.name or (phrase.name in TRACE_NOUNS and builder.is_negated(phrase)):
        return True
    return phrase.noun in MEASURE_NOUNS or phrase.noun == "couple"
