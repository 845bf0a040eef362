"""What processes exchange; tests/models/test_sharding.py and tests/test_stages.py run several."""

import accelerate
import pytest
import torch

from mmrlhf.models.processes import Accelerator


@pytest.mark.parametrize("has_apple_gpu", [True, False])
def test_accelerator_takes_the_cpu_beside_apples_gpu(monkeypatch, has_apple_gpu):
    """It has no float64. Elsewhere the choice is accelerate's own."""
    settings = {}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_apple_gpu)
    monkeypatch.setattr(accelerate.Accelerator, "__init__", lambda self, **kwargs: settings.update(kwargs))
    Accelerator()
    assert settings.get("cpu", False) == has_apple_gpu
