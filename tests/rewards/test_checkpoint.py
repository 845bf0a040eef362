"""The saved reward model: once loaded it scores as before, and a damaged one is refused."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch

from mmrlhf.models import loading
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.loading import load
from mmrlhf.models.processes import Accelerator
from mmrlhf.records import InputError
from mmrlhf.rewards.checkpoint import load_reward_model, save_reward_model
from mmrlhf.rewards.fact_rm import load_reward_models
from tests.helpers.stages import ppo_config

CHANGED = "has a file that changed since it was saved: copy it again, or train it again"


def test_load_reward_model_scores_the_same(untrained_reward_model, groups, tmp_path):
    untrained_reward_model.mean, untrained_reward_model.std = 0.5, 2.0
    save_reward_model(untrained_reward_model, tmp_path, groups)
    loaded = load_reward_model(str(tmp_path))
    expected = torch.tensor(untrained_reward_model.score(groups))
    assert torch.tensor(loaded.score(groups)) == pytest.approx(expected, abs=1e-5)


def test_load_reward_model_detects_damage(untrained_reward_model, groups, tmp_path):
    def refused(message):
        with pytest.raises(InputError, match=message):
            load_reward_model(str(tmp_path))

    untrained_reward_model.mean, untrained_reward_model.std = 0.5, 2.0
    save_reward_model(untrained_reward_model, tmp_path, groups)
    head = (tmp_path / "head.safetensors").read_bytes()
    (tmp_path / "head.safetensors").write_bytes(head[:20])
    refused(CHANGED)
    (tmp_path / "head.safetensors").unlink()
    refused(CHANGED)
    (tmp_path / "head.safetensors").write_bytes(head)

    metadata = json.loads((tmp_path / "reward.json").read_text())
    for name, value in (("temperature", 9.0), ("probes", {"count": 1.0}), ("dtype", "bfloat16"), ("mean", 0.0)):
        (tmp_path / "reward.json").write_text(json.dumps(metadata | {name: value}))
        refused(CHANGED)
    (tmp_path / "reward.json").write_text(json.dumps(metadata))

    reference_rows = (tmp_path / "reference.jsonl").read_bytes()
    (tmp_path / "reference.jsonl").write_bytes(b"")
    refused(CHANGED)
    (tmp_path / "reference.jsonl").write_bytes(reference_rows)

    (tmp_path / "reward.json").write_text(json.dumps(metadata | {"base": str(tmp_path / "gone")}))
    refused(r"needs the base it was trained on: model .*gone")
    (tmp_path / "reward.json").write_text(json.dumps(metadata | {"facts_budget": None}))
    refused("was saved by mmrlhf 0.1, whose format has changed: train it again")
    (tmp_path / "reward.json").write_text("{")
    refused("cannot be loaded")


def test_processes_load_a_judge_on_its_own_base_in_turns(untrained_reward_model, groups, tiny_vlm_path, tmp_path, monkeypatch):
    save_reward_model(untrained_reward_model, tmp_path, groups)
    policy, turns = Adapters(load(tiny_vlm_path, "bfloat16")), []
    monkeypatch.setattr(loading, "loading_turn", lambda *base: turns.append(base) or contextlib.nullcontext())
    monkeypatch.setattr(loading, "PartialState", lambda: SimpleNamespace(num_processes=2))
    config = ppo_config(tiny_vlm_path, tmp_path, tmp_path / "out")
    load_reward_models(config, policy, Accelerator())
    assert turns == [(tiny_vlm_path, torch.float32)]
    load_reward_model(str(tmp_path), policy)  # one process, for itself
    assert len(turns) == 1


def test_load_reward_model_keeps_its_calibrated_precision(untrained_reward_model, groups, tiny_vlm_path, tmp_path, capsys):
    save_reward_model(untrained_reward_model, tmp_path, groups)
    same_precision, other_precision = Adapters(load(tiny_vlm_path)), Adapters(load(tiny_vlm_path, "bfloat16"))
    assert load_reward_model(str(tmp_path), same_precision).role.adapters is same_precision
    assert "calibrated" not in capsys.readouterr().out
    loaded = load_reward_model(str(tmp_path), other_precision)
    assert loaded.role.vlm.dtype == "float32"
    assert "was calibrated in float32: it runs in that precision" in capsys.readouterr().out
