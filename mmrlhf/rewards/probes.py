"""The contradiction probe: one false claim is added to a good answer, and its reward must fall.

The false claim is made from facts: an object of another picture, or a fact of this one contradicted. Beside it stands a control, the
same sentence made from a true fact, which tells a reward model that knows false from true from one that dislikes the sentence.
In other words, planted claims can be trained on, too (`learnt`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from mmrlhf.facts.corrupt import negate_facts, split_relation
from mmrlhf.records import Fact, Preference
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel

ProbeKind = Literal["object", "attribute", "count", "relation"]
PROBE_KINDS: tuple[ProbeKind, ...] = get_args(ProbeKind)
Templates = dict[ProbeKind, str]
PROBE_TEMPLATES: Templates = {
    "object": "It also has {}.",
    "attribute": "Its {} looks {}.",
    "count": "Altogether one counts {}.",
    "relation": "The {} stands {} the {}.",
}
"""How a probe says it. Nothing is ever trained on these words."""
TRAIN_TEMPLATES: Templates = {
    "object": "There is {} as well.",
    "attribute": "The {} is {}.",
    "count": "I count {}.",
    "relation": "The {} is {} the {}.",
}


@dataclass(frozen=True)
class Probe:
    """A good answer (`group` has it, and the row's facts) with a false claim added, and with a true one made the same way."""

    kind: ProbeKind
    group: AnswerGroup
    false_answer: str
    true_answer: str


def make_probes(
    preferences: Sequence[Preference], true_facts: Mapping[str, Sequence[Fact]] | None = None, seed: int = 0
) -> list[Probe]:
    """One probe of each kind for each row whose facts allow it. `truths` by row id are what is true of a picture, where more is known
    than the reward model is given."""
    facts_by_id = {p.id: tuple((true_facts or {}).get(p.id, p.facts)) for p in preferences}
    other_facts = [fact for facts in facts_by_id.values() for fact in facts]
    probes = []
    for p in preferences:
        rng = np.random.default_rng([seed, zlib.crc32(p.id.encode())])
        group = AnswerGroup(p.images, p.prompt, (p.chosen,), p.facts, p.id)
        for kind in PROBE_KINDS:
            if sentences := _false_and_true_sentence(kind, PROBE_TEMPLATES, facts_by_id[p.id], other_facts, p.chosen, rng):
                probes.append(Probe(kind, group, *(f"{p.chosen.rstrip()} {sentence}" for sentence in sentences)))
    return probes


def make_training_pair(row: Preference, other_facts: Sequence[Fact], rng: np.random.Generator) -> Preference | None:
    """A pair to train on in place of the row: its best answer with a false claim of a drawn kind is worse than with a true one, or
    (drawn) than without. None where the row's facts allow no claim. As right as the facts are."""
    for kind in rng.permutation(PROBE_KINDS):
        if sentences := _false_and_true_sentence(kind, TRAIN_TEMPLATES, row.facts, other_facts, row.chosen, rng):
            false_answer, true_answer = (f"{row.chosen.rstrip()} {sentence}" for sentence in sentences)
            better_answer = true_answer if rng.random() < 0.5 else row.chosen
            return replace(row, answers=(better_answer, false_answer), ranks=(1, 2), ratings=())
    return None


def _false_and_true_sentence(
    kind: ProbeKind,
    templates: Templates,
    facts: Sequence[Fact],
    other_facts: Sequence[Fact],
    answer: str,
    rng: np.random.Generator,
) -> tuple[str, str] | None:
    """A false sentence and a true one of the same make; None where the facts give neither."""
    if kind == "object":
        known_words = " ".join([answer, *(f.text for f in facts)]).lower().split()
        known_stems = {word.strip(".,;").rstrip("s") for word in known_words}
        absent_objects = [
            f for f in other_facts if f.kind == "object" and f.text.lower().split()[-1].rstrip("s") not in known_stems
        ]
        present_objects = [f for f in facts if f.kind == "object"]
        if not absent_objects or not present_objects:
            return None
        return tuple(
            templates[kind].format(_with_article(f.text))
            for f in (_draw_fact(absent_objects, rng), _draw_fact(present_objects, rng))
        )  # type: ignore[return-value]
    source_kinds: tuple[str, ...] = ("object", "attribute") if kind == "attribute" else (kind,)
    for fact in (f for i in rng.permutation(len(facts)) if (f := facts[i]).kind in source_kinds):
        (negated_fact,), num_negated = negate_facts((fact,), 1.0, rng)
        # Another thing of that name may well look like that.
        claimed_words = {negated_fact.text.split()[-1], *(set(negated_fact.text.split()) - set(fact.text.split()))}
        if num_negated and not (kind == "attribute" and any(claimed_words <= set(f.text.split()) for f in facts)):
            false_sentence, true_sentence = (
                _fill_template(kind, templates[kind], *pair) for pair in ((negated_fact, fact), (fact, negated_fact))
            )
            if false_sentence and true_sentence:
                return false_sentence, true_sentence
    return None


def _fill_template(kind: ProbeKind, template: str, fact: Fact, contrast: Fact) -> str:
    """A fact in a sentence's words; `beside` is the same with one word changed."""
    if kind == "count":
        return template.format(fact.text)
    if kind == "relation":
        parts = split_relation(fact.text)
        return template.format(*parts) if parts else ""
    words, contrast_words = fact.text.split(), contrast.text.split()
    value = next((a for a, b in zip(words, contrast_words, strict=False) if a != b), "")
    return template.format(words[-1], value) if value and value != words[-1] else ""


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def _draw_fact(facts: Sequence[Fact], rng: np.random.Generator) -> Fact:
    return facts[int(rng.integers(len(facts)))]


def score_probes(model: RewardModel, probes: Sequence[Probe]) -> dict[ProbeKind, np.ndarray]:
    """Scores [n, 3] of each kind's probes: of the good answer, with the false claim, and with the true one."""
    groups = [replace(p.group, answers=(p.group.answers[0], p.false_answer, p.true_answer)) for p in probes]
    scores = model.score(groups)
    return {
        kind: np.array([s for s, p in zip(scores, probes, strict=True) if p.kind == kind]).reshape(-1, 3) for kind in PROBE_KINDS
    }


def probe_rates(model: RewardModel, probes: Sequence[Probe]) -> dict[str, float]:
    """The share of false claims that lower the score, by kind; kinds without a probe are left out."""
    scores_by_kind = score_probes(model, probes)
    return {kind: float((s[:, 1] < s[:, 0]).mean()) for kind, s in scores_by_kind.items() if len(s)}
