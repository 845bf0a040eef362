"""The loss, metrics and gradients of TRL's DPO on the same pairs, as `trl_dpo.py` wrote them."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open

from mmrlhf.config import DPOConfig
from mmrlhf.datasets import read_preferences
from mmrlhf.files.bundled import folder
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.training.dpo.batch import build_batch
from mmrlhf.training.dpo.step import compute_gradients, count, mean_metrics
from tests.training.dpo.trl_dpo import LOSSES, OUTPUT, adapter_weight, short_name


@pytest.fixture(scope="module")
def policy():
    """The adapter with the weights of the formula, on the tiny model."""
    vlm = load(str(folder("data") / "tiny_vlm"))
    # TRL normalises over all tokens; here special tokens inside an answer have probability 0.
    vlm.suppressed_tokens = vlm.suppressed_tokens[:0]
    adapters = Adapters(vlm)
    adapters.add("policy", 1, 2, seed=0, target_modules="q_proj,v_proj")
    with torch.no_grad():
        for name, parameter in adapters.parameters("policy").items():
            parameter.copy_(adapter_weight(short_name(name), parameter.shape))
    return Role(adapters, "policy")


@pytest.fixture(scope="module")
def pairs():
    return list(read_preferences(str(folder("data") / "samples" / "trl_preference.jsonl")))


@pytest.mark.parametrize("name", LOSSES)
def test_dpo_has_the_loss_and_gradients_of_trl(policy, pairs, name):
    with safe_open(OUTPUT, "pt") as file:
        expected = json.loads(file.metadata()["results"])[name]
        beta = float(file.metadata()["beta"])
        gradients = {
            key.removeprefix(f"{name}/"): file.get_tensor(key) for key in list(file.keys()) if key.startswith(f"{name}/")
        }
    settings = {key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in LOSSES[name].items()}
    config = DPOConfig(model_name_or_path="x", dataset_name="x", output_dir="x", beta=beta, **settings)
    batch = build_batch(config, policy.vlm, pairs, [None] * len(pairs))
    accelerator = Accelerator()
    counts = count(accelerator, batch)
    reference = Role(policy.adapters, None)
    sums = compute_gradients(config, accelerator, policy, batch, batch.weighted_logps(reference), counts)
    metrics = mean_metrics(sums, counts)
    for metric, value in expected.items():
        assert metrics[metric] == pytest.approx(value, rel=1e-5, abs=1e-5), metric
    own = {short_name(key): parameter.grad for key, parameter in policy.adapters.parameters("policy").items()}
    assert set(own) == set(gradients)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert max(float((own[key] - gradients[key]).abs().max()) for key in own) < 1e-5 * largest


def test_the_file_of_trl_names_its_version():
    with safe_open(OUTPUT, "pt") as file:
        assert json.loads(file.metadata()["losses"]) == LOSSES and file.metadata()["trl"][0].isdigit()
    assert Path(OUTPUT).stat().st_size < 200_000
