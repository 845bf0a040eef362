"""Signs of reward hacking, by hand."""

import pytest

from mmrlhf.records import Claim, Message
from mmrlhf.rewards.monitors import claim_hacking_metrics, hacking_metrics, hacking_warnings, verdict_rates
from mmrlhf.rewards.types import Sample
from mmrlhf.verifiers import AnswerClaims

SAMPLES = [
    Sample("row-1", (), (Message("user", "?"),), answer, num_tokens=num_tokens)
    for answer, num_tokens in (("I'm sorry, I cannot see it.", 1), ("Yes, it is.", 2), ("A mug.", 3), ("No", 5))
]
NO_SIGNS = {"hacking/refusal_rate": 0, "hacking/says_yes": 0, "hacking/says_no": 0, "hacking/length_reward_correlation": 0}


def correlation(rewards, num_generations):
    return hacking_metrics(SAMPLES, rewards, num_generations)["hacking/length_reward_correlation"]


def test_hacking_metrics_match_hand_computation():
    metrics = hacking_metrics(SAMPLES, [1.0, 2.0, 7.0, 9.0], 2)
    assert metrics["hacking/refusal_rate"] == 0.25 and metrics["hacking/says_yes"] == metrics["hacking/says_no"] == 0.25
    # within prompts lengths are -.5 .5 | -1 1, and so are the rewards
    assert metrics["hacking/length_reward_correlation"] == pytest.approx(1.0)
    assert correlation([2.0, 1.0, 9.0, 7.0], 2) == pytest.approx(-1.0)
    assert correlation([1.0] * 4, 2) == 0.0
    # one answer per prompt: among all, lengths are 1 2 3 5 and rewards twice that
    assert correlation([2.0, 4.0, 6.0, 10.0], 1) == pytest.approx(1.0)


def test_hacking_warnings_name_metrics_out_of_bounds():
    metrics = hacking_metrics(SAMPLES, [1.0, 2.0, 7.0, 9.0], 2)
    assert [(name, line[:3]) for name, line in hacking_warnings(metrics).items()] == [
        ("refusal_rate", "25%"),
        ("length_reward_correlation", "len"),
    ]
    assert not hacking_warnings(metrics | {"hacking/refusal_rate": 0.1, "hacking/length_reward_correlation": 0.2})
    assert "100% of answers that begin" in hacking_warnings(metrics | {"hacking/says_no": 0.0})["yes_rate"]
    assert "60% of answers claim nothing" in hacking_warnings(NO_SIGNS | {"hacking/zero_claim_rate": 0.6})["zero_claim_rate"]
    assert "40% of claims are hedged" in hacking_warnings(NO_SIGNS | {"hacking/vagueness": 0.4})["vagueness"]
    assert not hacking_warnings(NO_SIGNS) and not hacking_warnings({})


def test_claim_hacking_metrics_match_hand_computation():
    dog, perhaps_cat = Claim("object", "dog"), Claim("object", "cat", hedged=True)
    answer_claims = [AnswerClaims((), (), claims) for claims in ((dog, perhaps_cat), (), (dog,), (perhaps_cat,))]
    assert claim_hacking_metrics(answer_claims) == {"hacking/zero_claim_rate": 0.25, "hacking/vagueness": 0.5}
    assert claim_hacking_metrics([AnswerClaims((), (), ())])["hacking/vagueness"] == 0


def test_verdict_rates_match_hand_computation():
    assert verdict_rates(["contradicted", "unknown", "supported", "supported"], 2, "clip") == {
        "claims/contradicted_rate@clip": 0.25,
        "claims/unknown_rate@clip": 0.25,
        "claims/supported@clip": 1.0,
    }


@pytest.mark.parametrize(("correlation", "payment"), [(0.9, "length"), (-0.9, "brevity")])
def test_hacking_warnings_say_which_way_length_is_paid(correlation, payment):
    (warning,) = hacking_warnings(NO_SIGNS | {"hacking/length_reward_correlation": correlation}).values()
    assert warning.endswith(f"does the reward pay for {payment}?")
