"""What reward and dpo watch: held-out metrics, fixed rows, warnings, and their page."""

import json

import pytest

from mmrlhf.config import DPOConfig
from mmrlhf.dpo import dpo
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import InputError
from mmrlhf.reward_model import train_reward_model
from tests.helpers.stages import reward_config


def test_reward_logs_fixed_pairs_and_can_stop_at_a_divergence(tiny_vlm_path, pairs, tmp_path, live_pages):
    settings = {"eval_steps": 1, "max_steps": 2, "logging_steps": 1, "stop_on_warning": "any", "eval_dataset_name": "y"}
    train_reward_model(reward_config(tiny_vlm_path, tmp_path / "run", **settings), pairs, pairs[:5])
    rows = read_jsonl(tmp_path / "run/samples.jsonl")
    assert [row["step"] for row in rows] == [step for step in (0, 1, 2) for _ in range(8)]  # four pairs
    first = [row for row in rows if row["id"] == rows[0]["id"]]
    assert rows[0]["id"].endswith("chosen") and len({row["answer"] for row in first}) == 1 and "score" in rows[0]
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert 'id="fixed"' in page and "finished" in page and "data:image/jpeg" in page
    with pytest.raises(InputError, match="add eval_benchmarks or, for reward, eval_steps"):
        train_reward_model(reward_config(tiny_vlm_path, tmp_path / "no", stop_on_warning="any"), pairs)
    assert not (tmp_path / "no").exists()


def test_dpo_evaluates_and_writes_the_best_policy(tiny_vlm_path, pairs, tmp_path):
    values = [0.5, 0.9, 0.6]
    config = DPOConfig(model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path / "run"), max_steps=2,
                       per_device_train_batch_size=2, lora_r=4, eval_steps=1, metric_for_best_model="my_f1", response_length=6,
                       learning_rate=1e-3, lr_scheduler_type="constant", load_best_model_at_end=True, num_sample_generations=2)  # fmt: skip
    policy = dpo(config, pairs, lambda vlm: {"my_f1": values.pop(0)})
    finished = json.loads((tmp_path / "run/finished.json").read_text())
    assert finished["best"]["step"] == finished["policy_step"] == 1
    assert policy == tmp_path / "run/policy" and not (tmp_path / "run/best").exists()
    rows = read_jsonl(tmp_path / "run/samples.jsonl")
    assert [row["step"] for row in rows] == [0, 0, 1, 1, 2, 2] and rows[0]["reference"] == pairs[0].answers[0]
