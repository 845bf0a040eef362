"""A base in shards: processes with different passes get a whole base's numbers, or a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import mmrlhf
from mmrlhf.config import SFTConfig
from mmrlhf.models import sharding
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.models.loading_turns import models_at_a_time
from mmrlhf.models.lost_process import naming_lost_process
from mmrlhf.records import InputError
from tests.helpers.fake_server import free_port

SCRIPT = """
import os, sys, time
from pathlib import Path
import torch
from mmrlhf.models import loading, loading_turns
from mmrlhf.models.loading import load
from mmrlhf.models.processes import Accelerator, gather_rows
from mmrlhf.records import InputError
from tests.models.test_sharding import gradients_after

accelerator = Accelerator()
rank = accelerator.process_index
loading_turns.models_at_a_time = lambda *_: 1 if rank else 2  # process 1 has less memory
read = loading._read_checkpoint
def read_in_turn(*args):
    assert (Path(sys.argv[2]) / "0.read").exists() == bool(rank)
    model = read(*args)
    time.sleep(0.2)  # long enough for the other process to start, if it does not wait
    (Path(sys.argv[2]) / f"{rank}.read").touch()
    return model
loading._read_checkpoint = read_in_turn
vlm = load(sys.argv[1], device=accelerator.device, sharded=True, in_turns=True)
gradients = gradients_after(vlm, rank + 1)
assert gather_rows([[0, 2], [1]][rank]) == [0, 1, 2]
torch.save(gradients, f"{sys.argv[2]}/{rank}.pt")
accelerator.wait_for_everyone()
if rank == 1:
    os._exit(9)
try:
    accelerator.reduce(torch.ones(1))
except InputError as error:
    print("stopped:", error)
"""


def gradients_after(vlm, num_passes: int) -> list[torch.Tensor]:
    """Return an adapter's gradients after this many forward and backward passes, one without."""
    adapters = Adapters(vlm)
    adapters.add("policy", 4, 8, seed=0)
    role = Role(adapters, "policy")
    token_ids = torch.arange(20, 32)[None]
    with role.active():
        with torch.no_grad():
            start = vlm.model.base_model(input_ids=token_ids[:, :num_passes]).last_hidden_state.sum()
        for _ in range(num_passes):
            (vlm.model.base_model(input_ids=token_ids).last_hidden_state ** 2).sum().backward()
    return [start, *(parameter.grad for parameter in role.parameters())]


@pytest.mark.slow
def test_processes_with_different_passes_get_the_gradients_of_a_whole_base(bundled_vlm_path, tmp_path):
    """Process 1 runs more passes than process 0, which helps; then it dies, and 0 says so."""
    (tmp_path / "script.py").write_text(SCRIPT)
    env = os.environ | {
        "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mmrlhf.__file__).parents[1]),
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), bundled_vlm_path, str(tmp_path)],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    whole = {rank: gradients_after(load(bundled_vlm_path), rank + 1) for rank in range(2)}
    (out, errors), _ = (process.communicate(timeout=300) for process in processes)
    assert "stopped: process 0 stops, because another one has stopped" in out, errors
    for rank in range(2):
        for own, expected in zip(torch.load(tmp_path / f"{rank}.pt"), whole[rank], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "chosen"), [((3, 3, 1), 3), ((5, 0), 0), ((sharding.DONE, 4), 4), ((sharding.DONE, sharding.DONE), sharding.DONE)]
)
def test_choose_serves_the_layer_that_most_want(wanted, chosen):
    assert sharding.choose(wanted) == chosen


@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        ({}, {"FSDP_VERSION": "1"}, "launch with --fsdp_version 2"),
        ({}, {"FSDP_OFFLOAD_PARAMS": "true"}, "launch with --fsdp_offload_params false"),
        ({"tuning": "full"}, {}, "tuning full trains the base"),
        ({"dtype": "nf4"}, {}, "a base of 4 bits"),
    ],
)
def test_what_shards_do_not_support_is_refused(settings, environment, message, monkeypatch):
    config = SFTConfig(model_name_or_path="m", dataset_name="d", output_dir="o", **settings)
    assert not sharding.is_wanted(config)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for name, value in ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        sharding.is_wanted(config)


@pytest.mark.parametrize(("model", "available", "copies"), [(100, 1000, 8), (100, 249, 1), (100, 250, 2), (100, 50, 1)])
def test_models_at_a_time_fill_four_fifths_of_main_memory(model, available, copies):
    assert models_at_a_time(model, available) == copies


def test_only_a_lost_connection_is_named():
    with pytest.raises(InputError, match="another one has stopped"), naming_lost_process():
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shape"), naming_lost_process():
        raise RuntimeError("shape mismatch")
