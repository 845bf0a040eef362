"""False claims that are planted: false, told from a true one of the same make, and scored with it."""

import numpy as np

from mmrlhf.records import Fact, Message, Preference
from mmrlhf.rewards.probes import PROBE_KINDS, make_probes, probe_rates
from mmrlhf.rewards.reward_model import AnswerGroup

FACTS = (Fact("object", "small red cup"), Fact("count", "two spoons"), Fact("relation", "cup left of spoon"))


def make_preference(id_, facts=FACTS, answer="A cup."):
    return Preference.from_pair(id_, (), (Message("user", "?"),), answer, "No.", facts)


def test_make_probes_gives_false_claims_with_true_controls():
    rows = [make_preference("a"), make_preference("b", (Fact("object", "green hat"), Fact("object", "blue cups")))]
    found = {(p.group.id, p.kind): (p.false_answer, p.true_answer) for p in make_probes(rows)}
    assert found["a", "object"] == ("A cup. It also has a green hat.", "A cup. It also has a small red cup.")
    false, true = found["a", "attribute"]
    assert true in ("A cup. Its cup looks red.", "A cup. Its cup looks small.")
    assert false.startswith("A cup. Its cup looks ") and false != true
    assert found["a", "count"][1] == "A cup. Altogether one counts two spoons."
    assert found["a", "count"][0] in ("A cup. Altogether one counts one spoon.", "A cup. Altogether one counts three spoons.")
    assert found["a", "relation"] == ("A cup. The cup stands right of the spoon.", "A cup. The cup stands left of the spoon.")
    assert ("b", "count") not in found and ("b", "relation") not in found
    assert make_probes(rows) == make_probes(rows)
    assert ("c", "object") not in {(p.group.id, p.kind) for p in make_probes([make_preference("c")])}  # no other picture


def test_make_probes_respects_additional_truths():
    truths = {"a": (*FACTS, Fact("object", "green hat"))}
    rows = [make_preference("a"), make_preference("b", (Fact("object", "green hat"),))]
    assert "object" not in {p.kind for p in make_probes(rows, truths) if p.group.id == "a"}
    assert all(p.group.facts == FACTS for p in make_probes(rows, truths) if p.group.id == "a")


class LetterCountReward:
    """A reward model that counts the letters r of an answer, downwards."""

    def score(self, groups: list[AnswerGroup]):
        return [[-float(a.count("r")) for a in g.answers] for g in groups]


def test_probe_rates_match_hand_computation():
    found = probe_rates(
        LetterCountReward(), make_probes([make_preference("a"), make_preference("b", (Fact("object", "green hat"),))])
    )
    assert set(found) <= set(PROBE_KINDS) and found["relation"] == 1.0  # "right of" has one more than nothing
    assert np.isin(list(found.values()), [0.0, 0.5, 1.0]).all()
