"""How sure a verifier is of a number, by hand; and the file that says so."""

import math

import numpy as np
import pytest

from mmrlhf.metrics.calibration import fit_logistic
from mmrlhf.records import Claim, InputError
from mmrlhf.verifiers.base import PlattScaling, fit_platt_scaling, load_calibration, save_calibration, strip_negation

DOG = Claim("object", "dog")


def test_strip_negation_matches_hand_examples():
    assert strip_negation(DOG) == (DOG, False)
    assert strip_negation(Claim("object", "dog", negated=True)) == (DOG, True)
    assert strip_negation(Claim("count", "dog", "0")) == (DOG, True)  # "zero dogs"
    assert strip_negation(Claim("count", "dog", "0", negated=True)) == (DOG, False)
    assert strip_negation(Claim("count", "dog", "2")) == (Claim("count", "dog", "2"), False)


def test_platt_scaling_verdicts_match_hand_computation():
    certainty = PlattScaling({"object": (2.0, 0.0)}, low=0.2, high=0.8)
    sure = certainty.verdict(DOG, math.log(3), "seen")  # odds 3^2 to 1
    assert (sure.value, sure.evidence) == ("supported", "seen") and sure.probability == pytest.approx(0.9)
    assert certainty.verdict(DOG, -math.log(3), "").value == "contradicted"
    assert certainty.verdict(DOG, 0.1, "").value == "unknown"
    no_dog = certainty.verdict(Claim("object", "dog", negated=True), math.log(3), "")
    assert no_dog.value == "contradicted" and no_dog.probability == pytest.approx(0.1)
    count = certainty.verdict(Claim("count", "dog", "2"), 9.0, "seen")
    assert (count.value, count.probability) == ("unknown", None) and "not calibrated for claims of kind count" in count.evidence
    assert certainty.probability("object", -1e6) == 0 and certainty.probability("object", 1e6) == 1


def test_platt_scaling_fit_is_the_maximum_likelihood():
    """Of 100 claims at x = 0 half are true, of 100 at x = 1 three quarters: sigmoid(b) = 1/2, sigmoid(a + b) = 3/4."""
    x = np.repeat([0.0, 1.0], 100)
    true = np.concatenate([np.arange(100) < 50, np.arange(100) < 75])
    a, b = fit_logistic(x, true)
    assert (a, b) == pytest.approx((math.log(3), 0), abs=0.03)  # the penalty takes a little off
    a, b = fit_logistic(np.array([-1.0, 1.0]), np.array([False, True]))  # parted without fault
    assert 0 < a < 20 and b == pytest.approx(0, abs=1e-3)
    found = fit_platt_scaling([("object", v, t) for v, t in zip(x, true, strict=True)] + [("count", 1.0, True)])
    assert set(found.coefficients) == {"object"}  # of counts no false one is there


def test_calibration_file_round_trip_and_refusals(tmp_path):
    certainty = PlattScaling({"object": (1.5, -0.5)}, 0.1, 0.9)
    save_calibration(certainty, tmp_path / "c.json", nouns=["dog"])
    assert load_calibration(tmp_path / "c.json") == (certainty, {"nouns": ["dog"]})
    for text, problem in {
        "{": "cannot be read", "[]": "cannot be read", '{"certainty": {}}': "unknown_between",
        '{"certainty": {"thing": [1, 0]}, "unknown_between": [0.3, 0.7]}': "no kind thing",
        '{"certainty": {"object": [1, NaN]}, "unknown_between": [0.3, 0.7]}': "out of range",
        '{"certainty": {"object": [1]}, "unknown_between": [0.3, 0.7]}': "cannot be read",
        '{"certainty": {}, "unknown_between": [0.7, 0.3]}': "out of range",
    }.items():  # fmt: skip
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(InputError, match=problem) as caught:
            load_calibration(tmp_path / "c.json")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        load_calibration(tmp_path / "gone.json")
