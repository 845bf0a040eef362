"""Probes: add a false claim to a good answer, and check that the reward falls.

The false claim is made from facts: an object of another image, or the opposite of a fact about this
one (for an action, another that excludes it). Each probe has a control, the same sentence made from
a true fact, which separates a reward model that detects falsehood from one that dislikes the
sentence. Injected claims also make training pairs (`make_training_pair`), with other templates.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from mmrlhf.claims.verb_forms import present_participle
from mmrlhf.facts.corrupt import negate_facts, split_action, split_relation
from mmrlhf.records import Fact, Preference
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel

ProbeKind = Literal["object", "attribute", "count", "relation", "action"]
PROBE_KINDS: tuple[ProbeKind, ...] = get_args(ProbeKind)
SOURCE_KINDS: dict[str, tuple[str, ...]] = {
    "attribute": ("object", "attribute"),
    "count": ("count",),
    "relation": ("relation",),
    "action": ("relation",),
}
"""Kinds of facts from which each kind of probe is made."""
NOTHING_TO_INJECT = (
    "no row has facts about objects, counts, attributes, relations or actions to make false claims from (captions are not "
    "enough; `mmrlhf data facts` reads COCO files and scene graphs)"
)
"""Why there are no probes."""
INJECTED_CLAIMS = "injected claims"
"""What a reward model's J was measured on, if not on the claims of answers."""
_PREPOSITION = re.compile(r"\s(?:at|in|on|of|with|near|by|behind|beside|under|above|below)\s", re.IGNORECASE)
Templates = dict[ProbeKind, str]
PROBE_TEMPLATES: Templates = {
    "object": "It also has {}.",
    "attribute": "Its {} looks {}.",
    "count": "Altogether one counts {}.",
    "relation": "The {} stands {} the {}.",
    "action": "One sees the {} {} the {}.",
}
"""The sentences of probes. No reward model is ever trained on these words."""
TRAIN_TEMPLATES: Templates = {
    "object": "There is {} as well.",
    "attribute": "The {} is {}.",
    "count": "I count {}.",
    "relation": "The {} is {} the {}.",
    "action": "The {} is {} the {}.",
}
"""The sentences of training pairs."""


@dataclass(frozen=True)
class Probe:
    """A good answer with a false claim added, and with a true claim in the same words.

    `group` has only the good answer, with the row's facts.
    """

    kind: ProbeKind
    group: AnswerGroup
    false_answer: str
    true_answer: str


def make_probes(
    preferences: Sequence[Preference], true_facts: Mapping[str, Sequence[Fact]] | None = None, seed: int = 0
) -> list[Probe]:
    """Return one probe of each kind for each row whose facts allow it.

    `true_facts` has, by row id, all true facts about an image, if more are known than the reward
    model reads.
    """
    facts_by_row = [tuple((true_facts or {}).get(row.id, row.facts)) for row in preferences]  # ids may be repeated
    other_facts = [fact for facts in facts_by_row for fact in facts]
    probes = []
    for row, facts in zip(preferences, facts_by_row, strict=True):
        rng = np.random.default_rng([seed, zlib.crc32(row.id.encode())])
        group = AnswerGroup(row.images, row.prompt, (row.chosen,), row.facts, row.id)
        for kind in PROBE_KINDS:
            sentences = _false_and_true_sentence(kind, PROBE_TEMPLATES, facts, other_facts, row.chosen, rng)
            if sentences:
                false_sentence, true_sentence = sentences
                answer = row.chosen.rstrip()
                probes.append(Probe(kind, group, f"{answer} {false_sentence}", f"{answer} {true_sentence}"))
    return probes


def make_training_pair(row: Preference, other_facts: Sequence[Fact], rng: np.random.Generator) -> Preference | None:
    """Return a training pair that replaces the row, or None if the row's facts allow no claim.

    The worse answer is the row's chosen answer with a false claim of a random kind added. The
    better one is, with equal odds, the chosen answer with a true claim added, or unchanged. The
    labels are only as reliable as the facts.
    """
    for kind in rng.permutation(PROBE_KINDS):
        sentences = _false_and_true_sentence(kind, TRAIN_TEMPLATES, row.facts, other_facts, row.chosen, rng)
        if sentences:
            false_sentence, true_sentence = sentences
            false_answer = f"{row.chosen.rstrip()} {false_sentence}"
            true_answer = f"{row.chosen.rstrip()} {true_sentence}"
            better_answer = true_answer if rng.random() < 0.5 else row.chosen
            return replace(row, answers=(better_answer, false_answer), ranks=(1, 2), ratings=())
    return None


# ---- sentences -----------------------------------------------------------------------------------


def _false_and_true_sentence(
    kind: ProbeKind,
    templates: Templates,
    facts: Sequence[Fact],
    other_facts: Sequence[Fact],
    answer: str,
    rng: np.random.Generator,
) -> tuple[str, str] | None:
    """Return a false and a true sentence from one template, or None unless the facts allow both."""
    if kind == "object":
        return _object_sentences(templates[kind], facts, other_facts, answer, rng)
    source_kinds = SOURCE_KINDS[kind]
    for index in rng.permutation(len(facts)):
        fact = facts[index]
        if fact.kind not in source_kinds:
            continue
        (negated_fact,), num_negated = negate_facts((fact,), 1.0, rng)
        if not num_negated:
            continue
        # "The cup is blue" may be true although a fact says "red cup": there may be two cups.
        claimed_words = {_head_noun(negated_fact.text), *(set(negated_fact.text.split()) - set(fact.text.split()))}
        if kind == "attribute" and any(claimed_words <= set(f.text.split()) for f in facts):
            continue
        if kind == "action" and any(split_action(f.text) == split_action(negated_fact.text) for f in facts):
            continue
        false_sentence = _fill_template(kind, templates[kind], negated_fact, fact)
        true_sentence = _fill_template(kind, templates[kind], fact, negated_fact)
        if false_sentence and true_sentence:
            return false_sentence, true_sentence
    return None


def _object_sentences(
    template: str, facts: Sequence[Fact], other_facts: Sequence[Fact], answer: str, rng: np.random.Generator
) -> tuple[str, str] | None:
    """Return a sentence about an object of another image, and one about an object of this image."""
    # Neither facts nor answer may name the absent object, in the singular or in the plural.
    known_words = " ".join([answer, *(f.text for f in facts)]).lower().split()
    known_stems = {word.strip(".,;").rstrip("s") for word in known_words}
    absent_objects = [f for f in other_facts if f.kind == "object" and _head_noun(f.text).lower().rstrip("s") not in known_stems]
    present_objects = [f for f in facts if f.kind == "object"]
    if not absent_objects or not present_objects:
        return None
    absent, present = _draw_fact(absent_objects, rng), _draw_fact(present_objects, rng)
    return template.format(_with_article(absent.text)), template.format(_with_article(present.text))


def _fill_template(kind: ProbeKind, template: str, fact: Fact, contrast: Fact) -> str:
    """Return a fact as a sentence, or "" if it does not fit the template.

    `contrast` is the same fact with one word changed. In an attribute, that word is the value.
    """
    if kind == "count":
        return template.format(fact.text)
    if kind == "relation":
        parts = split_relation(fact.text)
        return template.format(*parts) if parts else ""
    if kind == "action":
        parts = split_action(fact.text)
        return template.format(parts[0], present_participle(parts[1]), parts[2]) if parts else ""
    words, contrast_words = fact.text.split(), contrast.text.split()
    value = next((a for a, b in zip(words, contrast_words, strict=False) if a != b), "")
    noun = _head_noun(fact.text)
    return template.format(noun, value) if value and value != noun else ""


def _head_noun(text: str) -> str:
    """Return the noun that a phrase is about: `star` for `small red star at the top left`."""
    return _PREPOSITION.split(text, maxsplit=1)[0].split()[-1]


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def _draw_fact(facts: Sequence[Fact], rng: np.random.Generator) -> Fact:
    return facts[int(rng.integers(len(facts)))]


# ---- scores --------------------------------------------------------------------------------------


def score_probes(
    model: RewardModel, probes: Sequence[Probe], advance: Callable[[int], None] | None = None
) -> dict[ProbeKind, np.ndarray]:
    """Return scores [n, 3] by kind: of the good answer, with a false claim, with a true claim."""
    groups = [replace(p.group, answers=(p.group.answers[0], p.false_answer, p.true_answer)) for p in probes]
    scores = model.score(groups, advance)
    return {
        kind: np.array([s for s, p in zip(scores, probes, strict=True) if p.kind == kind]).reshape(-1, 3) for kind in PROBE_KINDS
    }


def probe_outcomes(
    model: RewardModel, probes: Sequence[Probe], advance: Callable[[int], None] | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return, by kind, whether each false claim lowers the score, and whether each true one does.

    Kinds without probes are left out. `advance` is called as in `RewardModel.score`.
    """
    scores_by_kind = score_probes(model, probes, advance)
    return {kind: (s[:, 1] < s[:, 0], s[:, 2] < s[:, 0]) for kind, s in scores_by_kind.items() if len(s)}
