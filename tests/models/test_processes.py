"""What processes exchange; tests/models/test_sharding.py and tests/test_stages.py run several."""

import accelerate
import pytest
import torch

from mmrlhf.models.processes import Accelerator


@pytest.mark.parametrize("has_cuda", [True, False])
def test_accelerator_takes_the_cpu_unless_there_is_cuda(monkeypatch, has_cuda):
    settings = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(accelerate.Accelerator, "__init__", lambda self, **kwargs: settings.update(kwargs))
    Accelerator()
    assert settings["cpu"] is not has_cuda
