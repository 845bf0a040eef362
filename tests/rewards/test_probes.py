"""Probes: a false claim and a true one in the same words, and rates by hand."""

import numpy as np

from mmrlhf.records import Fact, Message, Preference
from mmrlhf.rewards.probes import PROBE_KINDS, make_probes, make_training_pair, probe_outcomes
from mmrlhf.rewards.reward_model import AnswerGroup

FACTS = (Fact("object", "small red cup"), Fact("count", "two spoons"), Fact("relation", "cup left of spoon"))
GREEN_HAT = Fact("object", "green hat")


def make_preference(row_id, facts=FACTS, answer="A cup."):
    return Preference.from_pair(row_id, (), (Message("user", "?"),), answer, "No.", facts)


def test_make_probes_gives_false_claims_with_true_controls():
    rows = [make_preference("a"), make_preference("b", (GREEN_HAT, Fact("object", "blue cups")))]
    answers = {(p.group.id, p.kind): (p.false_answer, p.true_answer) for p in make_probes(rows)}
    assert answers["a", "object"] == ("A cup. It also has a green hat.", "A cup. It also has a small red cup.")
    false_answer, true_answer = answers["a", "attribute"]
    assert true_answer in ("A cup. Its cup looks red.", "A cup. Its cup looks small.")
    assert false_answer.startswith("A cup. Its cup looks ") and false_answer != true_answer
    false_answer, true_answer = answers["a", "count"]
    assert true_answer == "A cup. Altogether one counts two spoons."
    assert false_answer in ("A cup. Altogether one counts one spoon.", "A cup. Altogether one counts three spoons.")
    assert answers["a", "relation"] == (
        "A cup. The cup stands right of the spoon.",
        "A cup. The cup stands left of the spoon.",
    )
    assert ("b", "count") not in answers and ("b", "relation") not in answers
    assert make_probes(rows) == make_probes(rows)
    assert "object" not in {p.kind for p in make_probes([make_preference("c")])}  # there is no other image


def test_make_probes_reads_objects_with_places_and_skips_the_scope():
    scope = Fact("scope", "complete")
    facts = (scope, Fact("object", "small striped red star at the top left"))
    others = (scope, Fact("object", "large plain red ring at the top left"), Fact("object", "small dotted star at the top"))
    probes = {p.kind: p for p in make_probes([make_preference("a", facts), make_preference("b", others)]) if p.group.id == "a"}
    assert set(probes) == {"object", "attribute"}  # a scope is never claimed
    assert probes["object"].false_answer == "A cup. It also has a large plain red ring at the top left."
    assert probes["object"].true_answer == "A cup. It also has a small striped red star at the top left."
    assert probes["attribute"].true_answer == "A cup. Its star looks red."
    assert probes["attribute"].false_answer.startswith("A cup. Its star looks ")


def test_make_probes_swaps_an_action():
    facts = (Fact("relation", "man riding red horse"), Fact("relation", "dog likes cat"))
    (probe,) = [p for p in make_probes([make_preference("a", facts)]) if p.kind == "action"]
    assert probe.true_answer == "A cup. One sees the man riding the red horse."
    assert probe.false_answer == "A cup. One sees the man pushing the red horse."
    # A swap that is true as well is no probe.
    probes = make_probes([make_preference("a", (facts[0], Fact("relation", "a man pushes red horse")))])
    assert all("pushing" not in p.false_answer for p in probes)


def test_make_probes_respects_additional_truths():
    true_facts = {"a": (*FACTS, GREEN_HAT)}
    probes_of_a = [
        p for p in make_probes([make_preference("a"), make_preference("b", (GREEN_HAT,))], true_facts) if p.group.id == "a"
    ]
    assert "object" not in {p.kind for p in probes_of_a}
    assert probes_of_a and all(p.group.facts == FACTS for p in probes_of_a)


def test_make_training_pair_prefers_an_answer_without_the_false_claim():
    row = make_preference("a", FACTS, "A cup.  ")
    pairs = [make_training_pair(row, (GREEN_HAT,), np.random.default_rng(seed)) for seed in range(20)]
    better, worse = {p.chosen for p in pairs}, {p.rejected for p in pairs}
    assert row.chosen in better and len(better) > 2  # with a true claim, and as it was
    assert all(answer.startswith("A cup. ") for answer in worse) and not better & worse
    assert "A cup. There is a green hat as well." in worse and "A cup. There is a small red cup as well." in better
    assert make_training_pair(make_preference("a", ()), (GREEN_HAT,), np.random.default_rng(0)) is None


class LetterCountReward:
    """A reward model that gives minus the number of letters r in an answer."""

    def score(self, groups: list[AnswerGroup], advance=None):
        return [[-float(answer.count("r")) for answer in group.answers] for group in groups]


def test_probe_outcomes_match_hand_computation():
    outcomes = probe_outcomes(LetterCountReward(), make_probes([make_preference("a"), make_preference("b", (GREEN_HAT,))]))
    assert set(outcomes) <= set(PROBE_KINDS)
    false_lowers, true_lowers = outcomes["relation"]
    # "right" has an r, the good answer and "left" have none: right or left are false, one by one.
    assert false_lowers.all() and false_lowers.shape == true_lowers.shape
    assert all(false.dtype == true.dtype == bool for false, true in outcomes.values())


def test_make_probes_takes_each_rows_own_facts_though_ids_are_repeated():
    rows = [make_preference("1", (Fact("count", "two spoons"),)), make_preference("1", (Fact("count", "three cats"),))]
    assert [p.true_answer for p in make_probes(rows) if p.kind == "count"] == [
        "A cup. Altogether one counts two spoons.", "A cup. Altogether one counts three cats."
    ]  # fmt: skip
