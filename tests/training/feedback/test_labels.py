"""Utilities count supported and contradicted claims, each once, by a pencil."""

import pytest

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line
from mmrlhf.records import Fact
from mmrlhf.training.feedback.labels import SampledAnswer, count_claims, label_group, read_verdicts, utility, verdicts_row
from mmrlhf.verifiers import verify_against_facts
from tests.helpers.labelled_answers import CONTRADICTED, SUPPORTED, UNKNOWN, verdict


def sampled(number=0, unusable=""):
    return SampledAnswer(0, number, "A ring.", 3, unusable)


def test_utility_is_supported_claims_minus_penalised_contradicted_ones():
    verdicts = [verdict(SUPPORTED, "ring"), verdict(SUPPORTED, "star"), verdict(CONTRADICTED, "moon"), verdict(UNKNOWN, "heart")]
    assert count_claims(verdicts) == (2, 1)
    assert utility(verdicts, false_claim_penalty=4) == -2  # 2 - 4
    assert utility(verdicts, false_claim_penalty=0) == 2  # coverage alone
    assert utility(verdicts, 4, {"object": 0.25}) == -3  # the unknown one costs a quarter of 4


def test_equal_claims_in_another_order_are_worth_the_same():
    """As sums of floats, 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ."""
    costs = {"object": 0.1, "count": 0.2, "attribute": 0.3}
    unknown = [verdict(UNKNOWN, kind, kind=kind) for kind in costs]
    assert utility(unknown, 1, costs) == utility(unknown[::-1], 1, costs) == pytest.approx(-0.6)


def test_a_repeated_claim_counts_once():
    assert count_claims([verdict(SUPPORTED)] * 3) == (1, 0)
    assert count_claims([verdict(CONTRADICTED)] * 3) == (0, 1)


def test_what_follows_from_an_absent_object_is_one_error():
    colour = verdict(CONTRADICTED, "moon", kind="attribute", value="red")
    assert count_claims([verdict(CONTRADICTED, "moon"), colour]) == (0, 1)
    assert count_claims([verdict(SUPPORTED, "moon"), colour]) == (1, 1)


def test_denials_and_hedges_earn_nothing():
    verdicts = [verdict(SUPPORTED, "moon", negated=True), verdict(SUPPORTED, "star", hedged=True)]
    assert count_claims(verdicts) == (0, 0)


def test_coverage_is_the_share_of_what_the_answers_to_a_prompt_support_together():
    ring, star, false = verdict(SUPPORTED, "ring"), verdict(SUPPORTED, "star"), verdict(CONTRADICTED, "moon")
    rows = [(sampled(0), (ring, star)), (sampled(1), (ring, false)), (sampled(2), (false,))]
    both, one, none = label_group(rows, 4, true_utilities=[2.0, -3.0, None])
    assert (both.coverage, one.coverage, none.coverage) == (1.0, 0.5, 0.0)
    assert (both.precision, one.precision, none.precision) == (1.0, 0.5, 0.0)
    assert (both.utility, one.utility, none.utility) == (2, -3, -4)
    assert [answer.true_utility for answer in (both, one, none)] == [2.0, -3.0, None]
    (silent,) = label_group([(sampled(), ())], 4)
    assert (silent.coverage, silent.precision, silent.utility, silent.is_decided) == (None, None, 0, False)


def test_verdicts_are_read_back_as_they_were(tmp_path):
    lexicon, text = load_lexicon(), "A black dog is on a couch, and there are two cats. No man is there. Maybe a cup."
    facts = (Fact("object", "black dog"), Fact("count", "three cats"), Fact("relation", "dog on couch"))
    verdicts = verify_against_facts(extract_claims(text, lexicon), facts, lexicon)
    write_atomic(tmp_path / "verdicts.jsonl", json_line(verdicts_row(sampled(), verdicts)))
    ((*read,),) = read_verdicts(tmp_path / "verdicts.jsonl")
    assert read == verdicts and [v.claim.span for v in read] == [v.claim.span for v in verdicts]
    assert {v.value for v in read} >= {SUPPORTED, CONTRADICTED}


@pytest.mark.parametrize(("value", "is_decided"), [(SUPPORTED, True), (CONTRADICTED, True), (UNKNOWN, False)])
def test_an_answer_is_decided_if_one_of_its_claims_is(value, is_decided):
    (answer,) = label_group([(sampled(), (verdict(UNKNOWN, "star"), verdict(value)))], 4)
    assert answer.is_decided is is_decided
