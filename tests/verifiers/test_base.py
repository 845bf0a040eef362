"""Platt scaling by hand, and the calibration file that stores it."""

import math

import numpy as np
import pytest

from mmrlhf.metrics.calibration import fit_logistic
from mmrlhf.records import Claim, InputError
from mmrlhf.verifiers.base import PlattScaling, load_calibration, save_calibration, strip_negation

DOG = Claim("object", "dog")


def test_strip_negation_matches_hand_examples():
    assert strip_negation(DOG) == (DOG, False)
    assert strip_negation(Claim("object", "dog", negated=True)) == (DOG, True)
    assert strip_negation(Claim("count", "dog", "0")) == (DOG, True)  # "zero dogs"
    assert strip_negation(Claim("count", "dog", "0", negated=True)) == (DOG, False)
    assert strip_negation(Claim("count", "dog", "2")) == (Claim("count", "dog", "2"), False)


def test_platt_scaling_verdicts_match_hand_computation():
    calibration = PlattScaling({"object": (2.0, 0.0)}, low=0.2, high=0.8)
    dog = calibration.verdict(DOG, math.log(3), "evidence")  # the odds are 3^2 to 1
    assert (dog.value, dog.evidence) == ("supported", "evidence") and dog.probability == pytest.approx(0.9)
    assert calibration.verdict(DOG, -math.log(3), "").value == "contradicted"
    assert calibration.verdict(DOG, 0.1, "").value == "unknown"
    no_dog = calibration.verdict(Claim("object", "dog", negated=True), math.log(3), "")
    assert no_dog.value == "contradicted" and no_dog.probability == pytest.approx(0.1)
    count = calibration.verdict(Claim("count", "dog", "2"), 9.0, "evidence")
    assert (count.value, count.probability) == ("unknown", None)
    assert count.evidence == "evidence; not calibrated for claims of kind count"
    assert calibration.probability("object", -1e6) == 0 and calibration.probability("object", 1e6) == 1


def test_platt_scaling_fit_is_the_maximum_likelihood():
    """Half of the claims at x = 0 are true, and three quarters at x = 1.

    So sigmoid(b) = 1/2 and sigmoid(a + b) = 3/4.
    """
    scores = np.repeat([0.0, 1.0], 100)
    labels = np.concatenate([np.arange(100) < 50, np.arange(100) < 75])
    a, b = fit_logistic(scores, labels)
    assert (a, b) == pytest.approx((math.log(3), 0), abs=0.03)  # the penalty takes a little off
    a, b = fit_logistic(np.array([-1.0, 1.0]), np.array([False, True]))  # separable: the penalty keeps it finite
    assert 0 < a < 20 and b == pytest.approx(0, abs=1e-3)


def test_platt_scaling_fit_leaves_out_kinds_with_one_label():
    objects = [("object", score, is_true) for score in (0.0, 1.0) for is_true in (True, False)]
    calibration = PlattScaling.fit([*objects, ("count", 1.0, True)], low=0.1, high=0.9)
    assert set(calibration.coefficients) == {"object"} and (calibration.low, calibration.high) == (0.1, 0.9)
    scores, labels = np.array([0.0, 0.0, 1.0, 1.0]), np.array([True, False, True, False])
    assert calibration.coefficients["object"] == fit_logistic(scores, labels)


def test_calibration_file_round_trip_and_refusals(tmp_path):
    calibration = PlattScaling({"object": (1.5, -0.5)}, 0.1, 0.9)
    save_calibration(calibration, tmp_path / "c.json", nouns=["dog"])
    assert load_calibration(tmp_path / "c.json") == (calibration, {"nouns": ["dog"]})
    for text, problem in {
        "{": "cannot be read",
        "[]": "cannot be read",
        '{"certainty": {}}': "unknown_between",
        '{"certainty": {"thing": [1, 0]}, "unknown_between": [0.3, 0.7]}': "unknown kind of claim thing",
        '{"certainty": {"object": [1, NaN]}, "unknown_between": [0.3, 0.7]}': "out of range",
        '{"certainty": {"object": [1]}, "unknown_between": [0.3, 0.7]}': "cannot be read",
        '{"certainty": {}, "unknown_between": [0.7, 0.3]}': "out of range",
    }.items():
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(InputError, match=problem) as caught:
            load_calibration(tmp_path / "c.json")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        load_calibration(tmp_path / "gone.json")
