"""The weight of the KL, against arithmetic that fits on paper, and on a toy run."""

import json
import math
import random
from statistics import fmean

import pytest

from mmrlhf.training.ppo.kl_controller import KLController
from tests.helpers.stages import ppo_config


def test_a_fixed_weight_never_changes():
    controller = KLController(0.05)
    controller.update(1000.0)
    assert controller.coef == 0.05 and controller.state_dict() == {"error": 0.0, "integral": 0.0}


def test_the_weight_follows_the_last_error_and_the_sum_of_errors():
    """With gain 0.5: error 0, then log 2, then log 1/2 clipped to -1/2, then 0."""
    controller = KLController(0.3, target=10.0, gain=0.5)
    assert controller.coef == 0.3
    controller.update(10.0)  # on the target
    assert controller.coef == 0.3
    controller.update(20.0)  # 2^2 at once, and 2^(1/2) that stays
    assert controller.coef == pytest.approx(0.3 * 4 * math.sqrt(2))
    controller.update(5.0)  # e^(-1) at once, and e^(-1/4)
    assert controller.coef == pytest.approx(0.3 * math.exp(-1) * math.sqrt(2) * math.exp(-0.25))
    controller.update(10.0)  # what stays
    assert controller.coef == pytest.approx(0.3 * math.sqrt(2) * math.exp(-0.25))


@pytest.mark.parametrize(("kl", "error"), [(1e300, 1.0), (10 * math.e, 1.0), (5e-324, -0.5), (0.0, -0.5), (-1.0, -0.5)])
def test_the_error_is_limited_and_an_estimate_below_zero_is_the_least(kl, error):
    controller = KLController(1.0, target=10.0)
    controller.update(kl)
    assert controller.coef == pytest.approx(math.exp(2.1 * error))


def test_a_kl_above_the_target_raises_the_weight_and_one_below_lowers_it():
    for kl, grows in ((10.1, True), (9.9, False)):
        controller = KLController(1.0, target=10.0)
        weights = [controller.coef]
        for _ in range(5):
            controller.update(kl)
            weights.append(controller.coef)
        assert weights == sorted(weights, reverse=not grows) and len(set(weights)) == 6


def test_the_integral_stays_within_a_hundred_times_the_first_weight_and_comes_back_at_once():
    controller = KLController(0.05, target=10.0)
    for _ in range(500):
        controller.update(1e6)
    assert controller.coef == pytest.approx(5 * math.e**2)
    controller.update(10.0)
    assert controller.coef == pytest.approx(5)
    controller.update(0.0)  # no backlog of 500 errors to work off
    assert controller.coef == pytest.approx(5 * math.exp(-1.05))
    for _ in range(500):
        controller.update(0.0)
    controller.update(10.0)
    assert controller.coef == pytest.approx(0.0005)


def ten_step_means(controller: KLController, target: float, seed: int) -> list[float]:
    """Return means / target of a toy run after a third of its 96 steps.

    The policy is a distance x from the reference with KL x²/2. A step pushes x by the reward's
    gradient, 1, against the KL's, 4 coef x, each scaled so that a step is at most 0.15 as in Adam,
    with momentum of five steps; the KL is measured with noise.
    """
    rng, x, momentum, kls = random.Random(seed), 0.0, 0.0, []
    for _ in range(96):
        kl = x * x / 2
        pull = 4 * controller.coef * x
        momentum += (((1 - pull) / (1 + abs(pull))) - momentum) / 5
        controller.update(kl * rng.lognormvariate(0, 0.2))
        x += 0.15 * momentum
        kls.append(kl)
    return [fmean(kls[end - 10 : end]) / target for end in range(32, 97)]


@pytest.mark.parametrize("target", [0.3, 1.0, 3.0])
def test_the_kl_of_a_toy_run_is_held_within_a_factor_of_one_and_a_half(target):
    for seed in range(5):
        means = ten_step_means(KLController(0.3, target), target, seed)
        assert min(means) > 1 / 1.5 and max(means) < 1.5, (seed, min(means), max(means))


def test_the_integral_alone_does_not_hold_it(monkeypatch):
    monkeypatch.setattr("mmrlhf.training.ppo.kl_controller.PROPORTIONAL_GAIN", 0.0)
    means = ten_step_means(KLController(0.3, 1.0), 1.0, 0)
    assert max(means) > 1.5 or min(means) < 1 / 1.5


def test_a_restored_controller_goes_on_as_if_nothing_had_happened():
    kls = [0.3 * i % 7 + 0.1 for i in range(25)]
    whole, first = (KLController(0.05, target=2.0) for _ in range(2))
    for kl in kls:
        whole.update(kl)
    for kl in kls[:13]:
        first.update(kl)
    second = KLController(0.05, target=2.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.coef == first.coef
    for kl in kls[13:]:
        second.update(kl)
    assert second.state_dict() == whole.state_dict() and second.coef == whole.coef


@pytest.mark.parametrize(
    ("settings", "gain"), [({}, 0.1), ({"kl_horizon": 24}, 0.25), ({"kl_horizon": 24, "num_generations": 4}, 0.5)]
)
def test_horizon_counts_answers(tmp_path, settings, gain):
    config = ppo_config("m", None, tmp_path, kl_controller="adaptive", target_kl=2.0, **settings)
    controller = KLController.from_config(config, 3 * config.num_generations)
    assert (controller.coef, controller.target, controller.gain) == (0.05, 2.0, gain)
    assert KLController.from_config(ppo_config("m", None, tmp_path), 6).target is None
