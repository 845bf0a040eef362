"""What a ppo checkpoint keeps, under names that do not change between versions."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from mmrlhf.rewards.aggregation import build_aggregation
from mmrlhf.training.ppo.kl_controller import KLController
from mmrlhf.training.ppo.state import PPOState
from mmrlhf.training.skipped_steps import SkippedSteps
from tests.helpers.stages import ppo_config

SAVED = {
    "kl": 1.5,
    "kl_controller": {"error": 0.5, "integral": -0.5},
    "rewards": {
        "moments": {"length": {"count": 2, "mean": 3.0, "squares": 2.0, "low": 2.0, "high": 4.0}},
        "length_bounds": [4, 8],
    },
    "position": 12,
    "is_ahead": False,
    "stopped": "the KL is too large",
    "skipped_steps": {"total": 3, "in_a_row": 1},
}
"""The entries of state.json, which earlier versions wrote, too, apart from those of evaluations."""


def new_state(tmp_path):
    settings = {"multi_objective_aggregation": "normalize_then_sum", "term_statistics": "running", "length_bounds": "auto"}
    config = ppo_config("model", tmp_path / "reward", tmp_path / "run", **settings)
    run, weight = SimpleNamespace(path=tmp_path), torch.nn.Parameter(torch.zeros(2))
    return PPOState(
        roles=SimpleNamespace(changing=[], aggregation=build_aggregation(config, list)),
        optimizer=torch.optim.AdamW([weight], lr=0.5),
        prompt_order=SimpleNamespace(position=0),
        kl_controller=KLController(0.05, target=2.0),
        skipped_steps=SkippedSteps(run, "ppo", config, SimpleNamespace(), [], 10),
    )


def test_a_checkpoint_restores_a_state_under_its_saved_names(tmp_path):
    state = new_state(tmp_path)
    tensors, _ = state.checkpoint()
    state.restore(tensors, SAVED, position=99)
    assert json.loads(json.dumps(state.checkpoint()[1])) == SAVED
    assert state.kl_controller.coef == pytest.approx(0.05 * math.exp(0.5))  # 2 x 0.5 - 0.5
    assert not state.was_ahead


def test_a_checkpoint_without_later_entries_restores_the_position_that_its_step_gives(tmp_path):
    state = new_state(tmp_path)
    state.restore(state.checkpoint()[0], {"kl": 1.0}, position=8)
    assert (state.prompt_order.position, state.skipped_steps.total, state.stopped) == (8, 0, "")
