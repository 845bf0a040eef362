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

from mmrlhf.damage import contradicted, parted
from mmrlhf.records import Fact, Preference
from mmrlhf.rewards import Group, RewardModel

Kind = Literal["object", "attribute", "count", "relation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Words = dict[Kind, str]
PROBED: Words = {
    "object": "It also has {}.",
    "attribute": "Its {} looks {}.",
    "count": "Altogether one counts {}.",
    "relation": "The {} stands {} the {}.",
}
"""How a probe says it. Nothing is ever trained on these words."""
LEARNT: Words = {
    "object": "There is {} as well.",
    "attribute": "The {} is {}.",
    "count": "I count {}.",
    "relation": "The {} is {} the {}.",
}


@dataclass(frozen=True)
class Planted:
    """A good answer (`group` has it, and the row's facts) with a false claim added, and with a true one made the same way."""

    kind: Kind
    group: Group
    false: str
    true: str


def plant(preferences: Sequence[Preference], truths: Mapping[str, Sequence[Fact]] | None = None, seed: int = 0) -> list[Planted]:
    """One probe of each kind for each row whose facts allow it. `truths` by row id are what is true of a picture, where more is known
    than the reward model is given."""
    said = {p.id: tuple((truths or {}).get(p.id, p.facts)) for p in preferences}
    others = [fact for facts in said.values() for fact in facts]
    found = []
    for p in preferences:
        rng = np.random.default_rng([seed, zlib.crc32(p.id.encode())])
        group = Group(p.images, p.prompt, (p.chosen,), p.facts, p.id)
        for kind in KINDS:
            if pair := _sentences(kind, PROBED, said[p.id], others, p.chosen, rng):
                found.append(Planted(kind, group, *(f"{p.chosen.rstrip()} {sentence}" for sentence in pair)))
    return found


def learnt(row: Preference, others: Sequence[Fact], rng: np.random.Generator) -> Preference | None:
    """A pair to train on in place of the row: its best answer with a false claim of a drawn kind is worse than with a true one, or
    (drawn) than without. None where the row's facts allow no claim. As right as the facts are."""
    for kind in rng.permutation(KINDS):
        if pair := _sentences(kind, LEARNT, row.facts, others, row.chosen, rng):
            false, true = (f"{row.chosen.rstrip()} {sentence}" for sentence in pair)
            better = true if rng.random() < 0.5 else row.chosen
            return replace(row, answers=(better, false), ranks=(1, 2), ratings=())
    return None


def _sentences(
    kind: Kind, words: Words, facts: Sequence[Fact], others: Sequence[Fact], answer: str, rng: np.random.Generator
) -> tuple[str, str] | None:
    """A false sentence and a true one of the same make; None where the facts give neither."""
    if kind == "object":
        known = " ".join([answer, *(f.text for f in facts)]).lower().split()
        known_stems = {word.strip(".,;").rstrip("s") for word in known}
        strange = [f for f in others if f.kind == "object" and f.text.lower().split()[-1].rstrip("s") not in known_stems]
        mine = [f for f in facts if f.kind == "object"]
        if not strange or not mine:
            return None
        return tuple(words[kind].format(_article(f.text)) for f in (_one(strange, rng), _one(mine, rng)))  # type: ignore[return-value]
    of: tuple[str, ...] = ("object", "attribute") if kind == "attribute" else (kind,)
    for fact in (f for i in rng.permutation(len(facts)) if (f := facts[i]).kind in of):
        (turned,), changed = contradicted((fact,), 1.0, rng)
        # Another thing of that name may well look like that.
        claimed = {turned.text.split()[-1], *(set(turned.text.split()) - set(fact.text.split()))}
        if changed and not (kind == "attribute" and any(claimed <= set(f.text.split()) for f in facts)):
            false, true = (_say(kind, words[kind], *pair) for pair in ((turned, fact), (fact, turned)))
            if false and true:
                return false, true
    return None


def _say(kind: Kind, sentence: str, fact: Fact, beside: Fact) -> str:
    """A fact in a sentence's words; `beside` is the same with one word changed."""
    if kind == "count":
        return sentence.format(fact.text)
    if kind == "relation":
        parts = parted(fact.text)
        return sentence.format(*parts) if parts else ""
    said, other = fact.text.split(), beside.text.split()
    value = next((a for a, b in zip(said, other, strict=False) if a != b), "")
    return sentence.format(said[-1], value) if value and value != said[-1] else ""


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def _one(facts: Sequence[Fact], rng: np.random.Generator) -> Fact:
    return facts[int(rng.integers(len(facts)))]


def probed(model: RewardModel, planted: Sequence[Planted]) -> dict[Kind, np.ndarray]:
    """Scores [n, 3] of each kind's probes: of the good answer, with the false claim, and with the true one."""
    groups = [replace(p.group, answers=(p.group.answers[0], p.false, p.true)) for p in planted]
    scores = model.score(groups)
    return {kind: np.array([s for s, p in zip(scores, planted, strict=True) if p.kind == kind]).reshape(-1, 3) for kind in KINDS}


def probe_rates(model: RewardModel, planted: Sequence[Planted]) -> dict[str, float]:
    """The share of false claims that lower the score, by kind; kinds without a probe are left out."""
    found = probed(model, planted)
    return {kind: float((s[:, 1] < s[:, 0]).mean()) for kind, s in found.items() if len(s)}
