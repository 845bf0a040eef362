"""False claims that are planted: false, told from a true one of the same make, and scored with it."""

import numpy as np

from mmrlhf.records import Fact, Message, Preference
from mmrlhf.rewards.probes import PROBE_KINDS, make_probes, probe_rates
from mmrlhf.rewards.reward_model import AnswerGroup

FACTS = (Fact("object", "small red cup"), Fact("count", "two spoons"), Fact("relation", "cup left of spoon"))


def preference(id_, facts=FACTS, answer="A cup."):
    return Preference.from_pair(id_, (), (Message("user", "?"),), answer, "No.", facts)


def test_what_is_planted_is_false_and_its_control_true():
    rows = [preference("a"), preference("b", (Fact("object", "green hat"), Fact("object", "blue cups")))]
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
    assert ("c", "object") not in {(p.group.id, p.kind) for p in make_probes([preference("c")])}  # no other picture


def test_more_may_be_true_than_the_reward_model_is_told():
    truths = {"a": (*FACTS, Fact("object", "green hat"))}
    rows = [preference("a"), preference("b", (Fact("object", "green hat"),))]
    assert "object" not in {p.kind for p in make_probes(rows, truths) if p.group.id == "a"}
    assert all(p.group.facts == FACTS for p in make_probes(rows, truths) if p.group.id == "a")


class Judge:
    """A reward model that counts the letters r of an answer, downwards."""

    def score(self, groups: list[AnswerGroup]):
        return [[-float(a.count("r")) for a in g.answers] for g in groups]


def test_rates_by_hand():
    found = probe_rates(Judge(), make_probes([preference("a"), preference("b", (Fact("object", "green hat"),))]))
    assert set(found) <= set(PROBE_KINDS) and found["relation"] == 1.0  # "right of" has one more than nothing
    assert np.isin(list(found.values()), [0.0, 0.5, 1.0]).all()
