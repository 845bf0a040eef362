"""The weight of the KL, against arithmetic that fits on paper, and on a toy run."""

import json

import pytest

from mmrlhf.training.kl_controller import KLController
from tests.helpers.stages import ppo_config


def test_a_fixed_weight_never_changes():
    controller = KLController(0.05)
    controller.update(1000.0)
    assert controller.coef == 0.05 and controller.state() == {"coef": 0.05, "recent_kl": []}


def test_the_weight_moves_by_the_relative_error_which_is_cut_off():
    controller = KLController(1.0, target=10.0, gain=0.1)
    controller.update(11.0)  # 10% above: x 1.01
    assert controller.coef == pytest.approx(1.01)
    controller.update(3.0)  # the mean of 11 and 3 is 7, 30% below, cut off at 20%: x 0.98
    assert controller.coef == pytest.approx(1.01 * 0.98)


def test_the_weight_follows_the_mean_of_ten_steps():
    controller = KLController(1.0, target=10.0, gain=0.1)
    for kl in [1000.0] + [0.0] * 9:
        controller.update(kl)
    assert controller.coef > 1  # the mean is still 100
    before = controller.coef
    controller.update(0.0)  # now it is 0
    assert controller.coef == pytest.approx(before * 0.98) and len(controller.recent_kl) == 10


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
    assert (controller.coef, controller.target, controller.gain) == (0.05, 2.0, gain)
    assert KLController.of(ppo_config("m", None, tmp_path), 6).target is None
