"""An untrained reward model, and answers for it to score."""

import pytest

from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import yes_no_head
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel


@pytest.fixture
def groups(examples):
    """Three groups of two answers: the scene's own description and a claim that is mostly false."""
    return [AnswerGroup(e.images, e.prompt, (e.answer, "There is a moon."), e.facts, e.id) for e in examples[:3]]


@pytest.fixture
def untrained_reward_model(vlm):
    adapters = Adapters(vlm)
    adapters.add("reward", 4, 8, seed=0)
    return RewardModel(Role(adapters, "reward", yes_no_head(vlm)), "given", "before")
