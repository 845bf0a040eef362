"""Which weights count as the best of a run."""

import math
from types import SimpleNamespace

import pytest
import torch

from mmrlhf.training import best_model
from mmrlhf.training.best_model import BestModel


def weights(value):
    return SimpleNamespace(state_dict=lambda: {"w": torch.tensor([float(value)])})


@pytest.mark.parametrize(("greater_is_better", "best_step"), [(True, 2), (False, 3)])
def test_best_is_the_first_of_the_best_values(greater_is_better, best_step):
    best = BestModel("f1", greater_is_better)
    for step, value in enumerate([0.5, 0.6, 0.9, 0.1, 0.9, 0.1]):
        best.update(step, value, weights(step))
    assert best.step == best_step and best.tensors["w"].item() == best_step


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_the_best(value):
    best = BestModel("f1", greater_is_better=True)
    assert not best.update(0, value, weights(0)) and best.checkpoint() == ({}, {})
    assert best.update(1, 0.1, weights(1)) and not best.update(2, value, weights(2)) and best.step == 1


@pytest.mark.parametrize(("metric", "greater_is_better", "step"), [("loss", False, 4), ("f1", True, None), ("loss", True, None)])
def test_only_weights_chosen_by_the_same_metric_are_restored(metric, greater_is_better, step):
    """Otherwise no F1 would ever beat a loss of 2.3."""
    saved = BestModel("loss", greater_is_better=False)
    saved.update(4, 2.3, weights(4))
    restored = BestModel(metric, greater_is_better)
    restored.restore(*saved.checkpoint())
    assert restored.step == step and (step is None or restored.value == 2.3)


def test_a_full_disk_leaves_the_last_best_policy_and_nothing_else(tmp_path, monkeypatch):
    loaded = []
    policy = SimpleNamespace(adapters=None, adapter="policy", load_state_dict=loaded.append, **vars(weights(7)))

    def save_policy(adapters, name, directory, final_directory):
        (directory / "adapter").write_text(str(loaded[-1]["w"].item()))
        if best.step == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(best_model, "save_policy", save_policy)
    best = BestModel("f1", greater_is_better=True)
    best.update(1, 0.1, weights(1))
    best.save(policy, tmp_path / "best")
    best.update(2, 0.2, weights(2))
    with pytest.raises(OSError, match="No space"):
        best.save(policy, tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best/adapter").read_text() == "1.0" and loaded[-1]["w"].item() == 7
