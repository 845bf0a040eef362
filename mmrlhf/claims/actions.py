"""Extract actions: who does what to what, such as riding, holding, wearing, looking at.

A verb opens an action of its actors, and the next phrase is its target. A verb that needs a
preposition has it in its name: look at, play with. Being at a place is a relation, not an action.
"""

from __future__ import annotations

from dataclasses import replace

from mmrlhf.claims.builder import ClaimBuilder
from mmrlhf.claims.grammar import STATIVE_PARTICIPLES
from mmrlhf.claims.noun_phrases import Phrase
from mmrlhf.claims.sentence_state import Action
from mmrlhf.claims.tags import CLAUSE_START_TAGS, PREPOSITION_TAGS
from mmrlhf.text.words import word_set

NOT_ACTIONS = word_set(
    "be have show feature include contain depict display capture appear seem become remain stay create suggest indicate resemble "
    "need want like love enjoy know think feel consist provide represent convey evoke emphasize highlight complement enhance "
    "dominate complete frame occupy span require allow let involve focus consider note notice see find locate exhibit exude "
    "contribute lend bring imply mean say state understand believe guess assume spot observe showcase present portray illustrate "
    "describe reveal reflect express match boast comprise go come do get sit stand lie lay dress position situate surround line "
    "form mark keep"
)
"""Verbs that show, have, seem or describe, or give a place."""
OBJECT_ACTIONS = word_set(
    "pull push carry tow hold hit cross drive follow chase touch support block spray cast shine cut lift throw catch ride eat drink "
    "chew bite lick sniff feed wear look watch fly pass approach lead drag load transport haul land dig cover hide"
)
"""Actions of things that are not alive: a truck *tows* a car."""
ANIMATE_ONLY_ACTIONS = word_set("wear hold eat ride carry drink look watch read feed pet hug throw kick swing use play talk")
"""Actions that only living beings do: in a man with a bag *holding* a cup, the man does."""
CONTAINERS = word_set(
    "tray plate bowl box basket shelf rack vase table cart case crate cabinet holder stand bag jar cup glass container counter drawer "
    "bottle pot pan room cake bucket dish"
)
"""Things that hold others only as containers."""
LIGHT_OBJECTS = word_set("picture photo photograph selfie care advantage control part place notice look step break")
"""Objects of verbs that say what is done: takes a *picture* of something."""
PREPOSITIONAL_ACTIONS = {
    verb: word_set(prepositions)
    for verb, prepositions in {
        "look": "at through into toward towards over", "stare": "at into", "gaze": "at into", "glance": "at", "peer": "at into through",
        "point": "at to toward towards", "aim": "at", "smile": "at", "laugh": "at", "wave": "at to", "bark": "at", "growl": "at",
        "shout": "at", "yell": "at", "play": "with", "interact": "with", "talk": "to with on", "speak": "to with into on",
        "chat": "with", "listen": "to", "wait": "for", "reach": "for", "work": "on", "type": "on", "feed": "on", "attend": "to",
        "tend": "to", "swing": "at", "fight": "with", "dance": "with", "cling": "to", "hold": "onto", "grab": "onto", "sniff": "at",
        "nibble": "on at", "peck": "at", "chew": "on", "munch": "on", "snack": "on", "pose": "with for", "lunge": "at", "care": "for", "bite": "into",
        "drink": "from", "eat": "from", "engage": "with", "paint": "on", "write": "on", "draw": "on", "lean": "",
    }.items()
}  # fmt: skip
"""The prepositions that are part of an action, by its verb: look *at*."""
PLACE_ACTIONS = frozenset(("write on", "paint on", "draw on", "hold onto", "grab onto"))
"""Actions whose preposition gives a place as well."""
NEED_PREPOSITION = word_set("look stare gaze glance peer smile laugh listen wait interact chat talk speak point reach")
"""Verbs that without their preposition have no target: looks tidy."""
SAME_AS_PLAIN = word_set("ride")
"""Verbs that mean the same with `on` and without: rides *on* a horse."""
PARTICLE_ACTIONS = frozenset((("put", "on"), ("take", "off"), ("pick", "up"), ("turn", "on"), ("turn", "off")))
"""Particles that are part of an action: *puts on* a hat."""
PARTICLES = word_set("out up off down over away back")
"""Adverbs that are part of an action if its object follows: blows *out* a candle."""
INTENTIONS = word_set(
    "try tries trying prepare prepares preparing attempt attempts attempting want wants wanting ready about aim aims aiming wait "
    "waits waiting going plan plans planning intend intends poised hope hopes hoping ready-to used"
)
"""Words before `to` and a verb of something yet to happen: *about* to throw."""
DITRANSITIVES = word_set("give offer hand show pass read teach buy bring throw serve toss lend feed")
"""Actions that can name a recipient before their object: gives *a boy* an apple."""
PLAYED = word_set(
    "baseball basketball football volleyball soccer tennis golf rugby cricket hockey badminton frisbee softball chess cards music"
)
"""Games and the like, which are not objects but can be played."""


def begin_action(builder: ClaimBuilder, index: int, tag: str, word: str, is_negated: bool) -> None:
    """Open the action of a verb or participle, if it is one, and end the previous one."""
    state = builder.state
    state.action = None
    verb = builder.lexicon.verb_base(word)
    if not state.actors or (verb in NOT_ACTIONS and verb not in PREPOSITIONAL_ACTIONS):
        return
    words, tags = builder.tokens.words, builder.tokens.tags
    next_word, next_tag = (words[index + 1], tags[index + 1]) if index + 1 < len(words) else ("", ".")
    if next_tag in CLAUSE_START_TAGS or (next_tag in PREPOSITION_TAGS and not _takes_preposition(verb, tag, next_word)):
        return
    # a cup and a dog that *chases* a cat: the dog does
    is_singular = tag == "V" and word[-1] == "s" and word[-2:] != "ss"
    actors = [phrase for phrase in (state.actors[-1:] if is_singular else state.actors) if phrase.referent.name]
    if tag != "E" or tags[index - 1] == "H":
        living = [phrase for phrase in actors if builder.is_animate(phrase)]
        if not living and verb in ANIMATE_ONLY_ACTIONS:
            # a man with a bag *holding* a cup: the man does
            living = [phrase for phrase in state.subjects if builder.is_animate(phrase)]
        if living and verb in ANIMATE_ONLY_ACTIONS:
            actors = living  # a stroller and a child *wearing* a hat
        elif not living and (
            verb not in OBJECT_ACTIONS or (verb == "hold" and any(phrase.noun in CONTAINERS for phrase in actors))
        ):
            return
    if actors:
        if (verb, next_word) in PARTICLE_ACTIONS or (
            next_word in PARTICLES and next_tag == "R" and index + 2 < len(tags) and tags[index + 2] in ("D", "#", "N", "J", "Z")
        ):
            verb = f"{verb} {next_word}"
        is_hedged = (state.is_hedged and index > state.hedge_index) or (
            tags[index - 1] in ("I", "M") and _is_intended(builder, index)
        )
        state.action = Action(verb, index, actors, is_negated, is_hedged, is_participle=tag == "E")


def _takes_preposition(verb: str, tag: str, preposition: str) -> bool:
    """Return whether an action continues after a preposition: looks *at*, is ridden *by*."""
    if tag == "E":
        return preposition == "by"
    return preposition in PREPOSITIONAL_ACTIONS.get(verb, ()) or (preposition == "on" and verb in SAME_AS_PLAIN)


def _is_intended(builder: ClaimBuilder, index: int) -> bool:
    """Return whether a verb may only happen: about to *throw*, people can *use* it."""
    words, tags = builder.tokens.words, builder.tokens.tags
    if not index:
        return False
    if tags[index - 1] == "I":
        return words[max(0, index - 2)] in INTENTIONS
    return tags[index - 1] == "M" and words[index - 1] in ("can", "will", "should", "must")


def add_preposition(builder: ClaimBuilder, index: int, word: str) -> None:
    """Make a preposition part of the open action: look *at*; or end the action at it."""
    state = builder.state
    action = state.action
    if action is None:
        return
    # a horse ridden *by* a man, but: parked *by* a house
    if action.is_participle:
        action.is_passive = word == "by" and action.is_open and state.verb not in STATIVE_PARTICIPLES
        state.action = action if action.is_passive else None
        return
    words = builder.tokens.words
    is_adjacent = action.is_open and (index == action.index + 1 or builder.tokens.tags[index - 1] == "R")
    verb = action.verb
    state.action = None
    if is_adjacent and word in PREPOSITIONAL_ACTIONS.get(verb, ()):
        state.action = replace(action, verb=f"{verb} {word}")
    elif is_adjacent and word == "on" and verb in SAME_AS_PLAIN and words[index + 1 : index + 2] != ["the"]:
        state.action = action


def begin_wearing(builder: ClaimBuilder, index: int, previous_tag: str) -> None:
    """Open the action in: a man *dressed in* a suit."""
    state = builder.state
    # five trumpeters, *all* dressed in red
    is_group = builder.tokens.words[index - 1] in ("all", "both", "each") and state.conjuncts
    actors = state.conjuncts if is_group else state.conjuncts[-1:] if previous_tag == "N" and state.conjuncts else state.actors
    state.action = Action("wear", index, actors, builder.is_negated_at(index), state.is_hedged)


def _is_passive_without_actor(tags: list[str], index: int) -> bool:
    """Return whether a participle follows a form of be: is neatly *stacked*."""
    index -= 1
    while index > 0 and tags[index] == "R":
        index -= 1
    return tags[index] == "B"


def complete_action(builder: ClaimBuilder, phrase: Phrase) -> None:
    """Add the open action with its target, or with one more target after `and`."""
    action = builder.state.action
    if action is None or (action.verb in NEED_PREPOSITION and not action.is_participle):
        return
    # gives a *boy* an apple
    if action.verb in DITRANSITIVES and builder.tokens.tags[phrase.end : phrase.end + 1] in (["D"], ["#"]):
        return
    if phrase.noun in LIGHT_OBJECTS:
        builder.state.action = None  # takes a *picture* of a church
        return
    # plays *tennis*
    if not phrase.referent.name and action.verb == "play" and phrase.noun in PLAYED:
        phrase = replace(phrase, name=phrase.noun)
    if action.is_passive:
        if builder.is_animate(phrase) or action.verb in OBJECT_ACTIONS:
            builder.add_action([phrase], action.verb, action.actors, action.index, action.is_negated, action.is_hedged)
    elif not (action.is_participle and _is_passive_without_actor(builder.tokens.tags, action.index)):
        builder.add_action(action.actors, action.verb, [phrase], action.index, action.is_negated, action.is_hedged)
    action.is_open = False
