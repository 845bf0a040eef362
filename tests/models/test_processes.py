"""What processes exchange; tests/models/test_sharding.py and tests/test_stages.py run several."""

import os
from contextlib import nullcontext

import accelerate
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from mmrlhf.models.processes import Accelerator, _refuse_single_process
from mmrlhf.records import InputError


@pytest.mark.parametrize("has_apple_gpu", [True, False])
def test_accelerator_takes_the_cpu_beside_apples_gpu(monkeypatch, has_apple_gpu):
    """It has no float64. Elsewhere the choice is accelerate's own."""
    settings = {}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_apple_gpu)
    monkeypatch.setattr(accelerate.Accelerator, "__init__", lambda self, **kwargs: settings.update(kwargs))
    Accelerator()
    assert settings.get("cpu", False) == has_apple_gpu


def test_a_launcher_that_starts_one_process_of_several_is_refused(monkeypatch):
    """As `accelerate launch --cpu --num_processes 2` does: it would train on half of the batch."""
    for num_processes in ("1", "2"):
        args, *_ = _validate_launch_command(
            launch_command_parser().parse_args(["--cpu", "--num_processes", num_processes, "train.py"])
        )
        _, environment = prepare_simple_launcher_cmd_env(args)
        for name in ("MASTER_ADDR", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_CPU"):
            monkeypatch.delenv(name, raising=False)
            if name in environment:
                monkeypatch.setenv(name, environment[name])
        with pytest.raises(InputError, match="started a single one") if num_processes == "2" else nullcontext():
            Accelerator()
    monkeypatch.setenv("WORLD_SIZE", "1")  # as torchrun says it
    _refuse_single_process(os.environ)
