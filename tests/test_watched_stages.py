"""What reward and dpo watch: held-out metrics, fixed rows, warnings, and their page."""

import dataclasses
import json

import pytest

from mmrlhf import reward_model
from mmrlhf.config import DPOConfig
from mmrlhf.dpo import dpo
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.metrics.intervals import wilson
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.records import InputError
from mmrlhf.reward_model import train_reward_model
from mmrlhf.training.dpo.held_out_pairs import HeldOutPairs
from tests.helpers.stages import dpo_config, reward_config


def test_reward_logs_fixed_pairs_and_can_stop_at_a_divergence(tiny_vlm_path, pairs, tmp_path, live_pages):
    settings = {"eval_steps": 1, "max_steps": 2, "logging_steps": 1, "stop_on_warning": "any", "eval_dataset_name": "y"}
    train_reward_model(reward_config(tiny_vlm_path, tmp_path / "run", **settings), pairs, pairs[:5])
    rows = read_jsonl(tmp_path / "run/samples.jsonl")
    assert [row["step"] for row in rows] == [step for step in (0, 1, 2) for _ in range(8)]  # four pairs
    first = [row for row in rows if row["id"] == rows[0]["id"]]
    assert rows[0]["id"].endswith("chosen") and len({row["answer"] for row in first}) == 1 and "score" in rows[0]
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert 'id="fixed"' in page and "finished" in page and "data:image/jpeg" in page
    with pytest.raises(InputError, match=r"add eval_benchmarks \(dpo: or eval_dataset_name; reward: eval_steps\)"):
        train_reward_model(reward_config(tiny_vlm_path, tmp_path / "no", stop_on_warning="any"), pairs)
    assert not (tmp_path / "no").exists()


def test_scores_that_are_not_finite_at_an_evaluation_do_not_end_reward(tiny_vlm_path, pairs, tmp_path, monkeypatch):
    """Of the measurements before training and after steps 1 and 2, the second fails."""
    real, calls = reward_model._measure, []

    def measure(*args):
        calls.append(args)
        if len(calls) == 2:
            raise NotFiniteError("the reward model gives scores that are not finite")
        return real(*args)

    monkeypatch.setattr(reward_model, "_measure", measure)
    config = reward_config(tiny_vlm_path, tmp_path / "run", eval_steps=1, max_steps=2, eval_dataset_name="y")
    train_reward_model(config, pairs, pairs[:5])
    rows = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [(row["step"], "eval/accuracy" in row, "loss" in row) for row in rows] == [
        (0, True, False),
        (1, False, True),
        (2, True, True),
    ]
    (warning,) = [row for row in read_jsonl(tmp_path / "run/warnings.jsonl") if row["name"] == "undefined_evaluation"]
    assert warning["step"] == 1 and "scores that are not finite" in warning["warning"]


def test_dpo_can_stop_where_held_out_pairs_diverge(tiny_vlm_path, pairs, tmp_path):
    """The held-out rows prefer the other answer, so that their loss rises as the trained one falls.

    The best evaluation is the one at step 0. At step 1 the training loss is still the first step's,
    so that the steps 2, 3 and 4 are the three in a row that a metric without an interval takes.
    """
    settings = {"eval_steps": 1, "max_steps": 6, "logging_steps": 1, "lr_scheduler_type": "constant"}
    config = dpo_config(tiny_vlm_path, tmp_path / "run", stop_on_warning="proxy_divergence", **settings)
    reversed_pairs = [dataclasses.replace(row, answers=row.answers[::-1]) for row in pairs]
    message = "stopped after step 4 at the warning proxy_divergence.*the training loss fell from 0.69.* while loss, held out"
    with pytest.raises(InputError, match=message):
        dpo(config, pairs, held_out=reversed_pairs)


def test_accuracy_of_held_out_pairs_is_watched_with_its_interval(tiny_vlm_path, pairs, tmp_path):
    watched = HeldOutPairs(dpo_config(tiny_vlm_path, tmp_path), pairs[:10]).watch({"loss": 0.5, "rewards/accuracies": 0.9})
    assert watched["loss"] == (0.5, None, None, False)
    assert watched["rewards/accuracies"] == (0.9, *wilson(9, 10), True)


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
