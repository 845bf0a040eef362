"""Tags of words, one letter each, and the groups of tags that rules test for.

A sentence's tags form a string, in which regular expressions find phrases. The letters:

    N noun that names something visible   X other noun       U word in no dictionary
    u name (unknown word with a capital)  J adjective        K comparative
    R adverb                              # number           V verb
    G its -ing form                       E its -ed form     B be
    H have                                M modal or do      I to
    D determiner                          Z no               S 's (possessive)
    Q pronoun                             T there            W which, who, that
    P preposition of place (on, next to)  A other preposition
    F of                                  C and, or          Y but, while, because
    O not                                 L neither, nor     ? maybe
    , comma or another sign               : colon or semicolon
    . end of a sentence                   % number after its noun: dog (2)

Groups are sets, not strings, as an empty slice of a tag string would be in any string.
"""

from __future__ import annotations


def tag_set(letters: str) -> frozenset[str]:
    """Return the set of tags in a string of tag letters."""
    return frozenset(letters)


# ---- word classes ------------------------------------------------------------------------------

NOUN_TAGS = tag_set("NX")
COMMON_NOUN_TAGS = tag_set("NXU")
"""Nouns and unknown words, without names."""
NOMINAL_TAGS = tag_set("NXUu")
"""All that can be the head of a noun phrase."""
UNKNOWN_TAGS = tag_set("Uu")
DETERMINER_TAGS = tag_set("DZ")
QUANTIFIER_TAGS = tag_set("DZ#")
FINITE_VERB_TAGS = tag_set("BHMV")
MAIN_VERB_TAGS = tag_set("BHV")
VERB_FORM_TAGS = tag_set("VGE")
PARTICIPLE_TAGS = tag_set("GE")
DESCRIPTIVE_TAGS = tag_set("JE")
PREPOSITION_TAGS = tag_set("PAI")
COORDINATION_TAGS = tag_set("C,")
PUNCTUATION_TAGS = tag_set(",.:")

# ---- boundaries --------------------------------------------------------------------------------

SENTENCE_BREAK_TAGS = tag_set(".:")
CLAUSE_END_TAGS = tag_set(".,")
CLAUSE_BREAK_TAGS = tag_set(".:Y,")
"""Boundaries of a clause if commas count."""
CLAUSE_LINK_TAGS = tag_set(".:,YCN?RJXT")
"""Tags before a `there` that begins a clause."""
CLAUSE_START_TAGS = tag_set(".:YW")
"""Boundaries of a clause if commas do not count."""

# ---- parts of a noun phrase --------------------------------------------------------------------

NOUN_PHRASE_TAGS = tag_set("DZ#JNXU")
"""Tags that begin or continue a noun phrase."""
PHRASE_FILLER_TAGS = tag_set("CR")
"""Tags that do not end a noun phrase: a red *and* very large bus."""
INNER_PHRASE_TAGS = tag_set("DZ#SJK")
"""Tags of a noun phrase's words before its head."""
FRONTED_TARGET_TAGS = tag_set("DJ#RKNXU")
"""Tags of a relation's target that precedes its subject: behind *the red car* is a bus."""
OBJECT_START_TAGS = tag_set("DZQ")
"""Tags that only begin a verb's object."""
HEAD_START_TAGS = tag_set("NXUJ")
"""Tags that continue a noun phrase after an adjective."""
DESCRIPTION_TAGS = tag_set("JRC,E")
"""Tags of the adjectives that follow an item of a list: Table - *wooden*, *round*."""
ASIDE_START_TAGS = tag_set("DEW")
"""Tags with which an aside after a comma begins: a guest, *an* old man, waits."""
AFTER_FRONTED_TARGET = tag_set(",BVTHM")
"""Tags after the last target of a relation that precedes its subject."""
PLACE_TAGS = tag_set("DJ#KNXUuRQ")
"""Tags of a place between a subject and its verb."""
DESCRIPTION_START_TAGS = tag_set("JEGPR")
"""Tags with which the description of a list's item begins: Chairs: *black*."""
CLAUSE_TAGS = tag_set("BVHTM")
"""Tags that show a clause: Chairs: there *are* four."""
AFTER_DESCRIPTION_TAGS = tag_set(".:,EGPA")
"""Tags after adjectives that describe an item, not a noun after them."""
MEMBER_END_TAGS = tag_set("BHVGEW,P")
"""Tags after `one` or `the other` as a subject."""
LABEL_START_TAGS = tag_set("DNJ#")
LIST_ITEM_START_TAGS = tag_set("JCLORE?KG")
"""Tags after a comma that does not end what a negation denies: not red, *or* blue."""
NEGATED_PHRASE_START_TAGS = tag_set("DNJ#UX")
"""Tags that begin what `not` denies: not a dog, not two."""

# ---- neighbours that decide a word's tag -------------------------------------------------------

BEFORE_COMPOUND = tag_set("DJ#CPF,")
"""Tags before a compound whose first word is a verb elsewhere: *a* cruise ship."""
BEFORE_ING_VERB = tag_set("BNXQYWR")
"""Tags before an -ing form that is a verb: *is* painting a wall."""
AFTER_ING_VERB = tag_set("DZPQ#IRAF")
BEFORE_ING_NOUN = tag_set("PAFVGH.")
BEFORE_ING_MODIFIER = tag_set("PFH")
"""Tags outside a noun phrase after which an -ing form describes a noun: with *running* water."""
BEFORE_ED_ADJECTIVE = tag_set("PFAC,.HVG")
"""Tags after which an -ed form in front of a noun describes it: on *tiled* floors."""
BEFORE_PREDICATE_ADJECTIVE = tag_set("BRCV")
BEFORE_BARE_NOUN = tag_set("PFABHVGE")
"""Tags after which a word that is a verb or a noun is a noun: on *display*."""
PREFERS_NOUN_BEFORE = tag_set("D#SPFAVGHZ")
"""Tags after which a noun is more likely than an adjective in the same word."""
AFTER_PHRASE_HEAD = tag_set("BVPWF")
"""Tags after a noun phrase that ends: the *orange* is ..."""
AFTER_PARTICLE = tag_set(".,:CAPIWYFR")
"""Tags after a word of place that belongs to its verb or has no object: looks *up*."""
AFTER_PRONOUN_ONE = tag_set("FBAPW,.")
"""Tags after `one` that is a pronoun: one *of*, one *is*."""
AFTER_POSSESSIVE_HER = tag_set("NXJEGU#")
AFTER_DETERMINER_THAT = tag_set("NXJ#")
AFTER_IS_CLITIC = tag_set("DOZ")
"""Tags after 's that is short for is: the dog's *not* ..."""
AFTER_IRREGULAR_PARTICIPLE = tag_set("PRIA.,")
"""Tags after cut, set or spread that is a participle: a pizza cut *into* slices."""
AFTER_LEFT_PARTICIPLE = tag_set("PRIG")
"""Tags after `left` that is a participle: is left *on* the table."""
AFTER_BARE_INFINITIVE = tag_set("NXDPRIAJ.,QG")
"""Tags after the verb in: watching the boy play *baseball*."""
AFTER_NOUN_OF_VERB_FORM = tag_set("FBV")
"""Tags that show the word before them to be a noun: the stops *of* a bus."""
AFTER_VERB_ADVERBIAL = tag_set("PRI")
AFTER_SINGULAR_COMMON_VERB = tag_set("DZPQRIAGE,#J.CLOXNu")
AFTER_SINGULAR_VERB = tag_set("DZPQRIA#JLO")
AFTER_PLURAL_VERB = tag_set("DZPQRIAGE#,.YJLO")
AFTER_COORDINATED_SUBJECT_VERB = tag_set("PQRIAJ.,Y")
AFTER_PLURAL_COMMON_VERB = tag_set("DPQRIAJ")
AFTER_COORDINATED_VERB = tag_set("DZPQRI")
AFTER_LISTED_ADJECTIVE = tag_set("NXUJEC,")
"""Tags after an adjective in a list of adjectives: a red, *round* ball."""

# ---- neighbours that decide what a word does to its sentence -----------------------------------

STANDALONE_TAGS = tag_set("PC,YWLOBHVGE?AI:JT")
"""Tags of words that change the state of a sentence by themselves."""
COORDINATION_KEEPING_TAGS = tag_set("RD?")
"""Tags between `and` and the phrase that it joins: and *also* a dog."""
AFTER_VERB_OR_ADVERB = tag_set("VGER")
BEFORE_PLACE_OF_ACTOR = tag_set("VGEBRJOH?")
"""Tags before a preposition that locates the actor: stands *on*."""
BEFORE_OPENNESS = tag_set("NRJ")
"""Tags before `open` that describes what somebody has: with its mouth *wide* open."""
BEFORE_PREDICATE_PARTICIPLE = tag_set("BRCO")
BEFORE_MADE_OF = tag_set("BCN,RO")
"""Tags before `made` that introduces a material: *is* made of wood."""
AFTER_ACTION_PARTICIPLE = tag_set("PAR")
"""Tags after a participle of an action or a place, not of a look: is covered *with* snow."""
AFTER_SEEN = tag_set("GEPAIR")
"""Tags after `spotted` that means seen: is spotted *flying*."""
BEFORE_ATTRIBUTIVE = tag_set("NHDZ")
"""Tags after which an adjective belongs to a noun phrase."""
AFTER_PREDICATE_NEITHER = tag_set("JRBHMV")
"""Tags after `neither` or `nor` that denies a predicate: nor *is* it red."""
AFTER_REDUCED_CONJUNCTION = tag_set("GEOJ")
"""Tags after a conjunction that keeps its subject: while *standing*."""
