"""Supervised fine-tuning on the tiny model."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.config import SFTConfig
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.sft import sft


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_sft_learns_and_writes_an_ordinary_checkpoint(tiny_vlm_path, examples, tmp_path, tuning):
    config = SFTConfig(model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path), tuning=tuning, max_steps=5,
                       learning_rate=2e-3, per_device_train_batch_size=6, lora_r=8)  # fmt: skip
    rows = [dataclasses.replace(e, answer="A purple elephant sings.") for e in examples]
    model = sft(config, rows)
    losses = [r["loss"] for r in read_jsonl(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    before, after = load_file(f"{tiny_vlm_path}/model.safetensors"), load_file(model / "model.safetensors")
    assert set(before) == set(after)
    changed = {k for k in before if not torch.allclose(before[k].float(), after[k].float(), atol=1e-6)}
    assert changed and not [k for k in changed if "vision" in k or "projector" in k]
    assert sft(config, rows) == model  # finished: returns at once
