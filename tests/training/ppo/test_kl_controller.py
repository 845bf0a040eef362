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
    assert controller.coef == 0.05 and controller.state() == {"base": 0.05, "recent_kl": []}


def test_the_weight_follows_the_mean_slowly_and_the_last_step_at_once():
    controller = KLController(1.0, target=10.0, gain=0.5)
    assert controller.coef == 1
    controller.update(10.0)  # on the target
    assert controller.coef == 1
    controller.update(12.1)  # a mean of 11.05, and a last step of 1.21 times the target
    assert controller.base == pytest.approx(1.105**0.5) and controller.coef == pytest.approx(1.105**0.5 * 1.21**6)


@pytest.mark.parametrize(
    ("kl", "base", "factor"), [(1000.0, math.exp(0.25), 1.5**6), (0.0, math.exp(-0.05), 1 / 64), (-1, math.exp(-0.05), 1 / 64)]
)
def test_both_factors_are_limited_and_the_slow_one_falls_slower_than_it_rises(kl, base, factor):
    controller = KLController(1.0, target=10.0, gain=0.5)
    controller.update(kl)
    assert controller.base == pytest.approx(base) and controller.coef == pytest.approx(base * factor)


def test_the_weight_stays_within_a_hundred_times_the_first():
    controller = KLController(0.05, target=10.0)
    for _ in range(500):
        controller.update(1e6)
    assert controller.base == pytest.approx(5) and controller.coef == pytest.approx(5 * 1.5**6)
    for _ in range(2000):
        controller.update(0.0)
    assert controller.base == pytest.approx(0.0005)


def test_the_mean_is_that_of_ten_steps():
    controller = KLController(1.0, target=10.0)
    for kl in [1000.0] + [0.0] * 9:
        controller.update(kl)
    before = controller.base
    assert before > 1  # the mean is still 100
    controller.update(0.0)  # now it is 0
    assert controller.base < before and len(controller.recent_kl) == 10


def test_the_kl_of_a_toy_run_is_held_within_a_factor_of_one_and_a_half():
    """The KL of a policy that climbs at 1 nat a step where nothing holds it back, with noise."""
    for start in (0.02, 0.2, 2.0):
        controller, kl, rng, kls = KLController(start, target=10.0), 0.0, random.Random(0), []
        for _ in range(120):
            controller.update(kl * rng.uniform(0.9, 1.1))
            kl = max(0.0, kl + (1 - 4 * controller.coef) / (1 + 4 * controller.coef))
            kls.append(kl)
        means = [fmean(kls[i : i + 10]) for i in range(60, 110)]
        assert all(10 / 1.5 < mean < 15 for mean in means), (start, min(means), max(means))


def test_a_restored_controller_goes_on_as_if_nothing_had_happened():
    kls = [0.3 * i % 7 + 0.1 for i in range(25)]
    whole, first = (KLController(0.05, target=2.0) for _ in range(2))
    for kl in kls:
        whole.update(kl)
    for kl in kls[:13]:
        first.update(kl)
    second = KLController(0.05, target=2.0)
    second.load_state(json.loads(json.dumps(first.state())))
    for kl in kls[13:]:
        second.update(kl)
    assert second.state() == whole.state()


@pytest.mark.parametrize(
    ("settings", "gain"), [({}, 0.1), ({"kl_horizon": 24}, 0.25), ({"kl_horizon": 24, "num_generations": 4}, 0.5)]
)
def test_horizon_counts_answers(tmp_path, settings, gain):
    config = ppo_config("m", None, tmp_path, kl_controller="adaptive", target_kl=2.0, **settings)
    controller = KLController.of(config, 3 * config.num_generations)
    assert (controller.base, controller.target, controller.gain) == (0.05, 2.0, gain)
    assert KLController.of(ppo_config("m", None, tmp_path), 6).target is None
