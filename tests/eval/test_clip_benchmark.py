"""The benchmark of a user's own images and an open_clip model, by hand, and in training."""

import json

import pytest
import yaml

from mmrlhf.config import EvalConfig, PPOConfig, SFTConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.policy_eval import PolicyEvaluation
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import InputError
from mmrlhf.sft import sft
from tests.helpers.tiny_clip import random_image, save_tiny_clip

ANSWERS = {"a": "There is a dog. There may be a cat.", "b": "There are two cats.", "c": "Hello."}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    for seed, name in enumerate(ANSWERS):
        (tmp_path / f"{name}.png").write_bytes(random_image(seed).read())
    return write_lines(tmp_path / "rows.jsonl", [{"id": id_, "image": f"{id_}.png", "prompt": "What is it?"} for id_ in ANSWERS])


@pytest.fixture
def clip_model(tmp_path):
    """A model that takes every object for false, every count for true, and knows no other kind."""
    directory = save_tiny_clip(tmp_path / "clip")
    calibration = {"certainty": {"object": [0, -9], "count": [0, 9]}, "unknown_between": [0.3, 0.7]}
    (directory / "calibration.json").write_text(json.dumps(calibration))
    return str(directory)


def intervals(tmp_path, data, answers=ANSWERS, **options):
    path = write_lines(tmp_path / "answers.jsonl", [{"id": id_, "answer": text} for id_, text in answers.items()])
    result = evaluate("clip", EvalConfig(answers=path, data=data, output_dir=str(tmp_path / "out")), options)
    return result["metrics"]["official"]


def evaluate_answers(tmp_path, data, answers=ANSWERS, **options):
    return {name: metric and metric["value"] for name, metric in intervals(tmp_path, data, answers, **options).items()}


def test_claims_are_counted_by_the_verdict_of_the_model(tmp_path, data, clip_model):
    """False are the dog of a and the cats of b, true is that they are two; a's cat is hedged."""
    official = intervals(tmp_path, data, clip_model=clip_model)
    metrics = {name: metric["value"] for name, metric in official.items()}
    assert official["unknown_rate"]["high"] > 0.5  # of two answers with claims
    assert metrics["chair_s"] == pytest.approx(2 / 3) and metrics["chair_i"] == pytest.approx(2 / 3)
    assert metrics["supported"] == pytest.approx(1 / 3) and metrics["claims"] == 1 and metrics["unknown_rate"] == 0


def test_length_is_in_words_and_in_characters_of_chinese(tmp_path, data, clip_model):
    answers = {"a": "杯子是红色的。", "b": "There are two cats.", "c": "你好，世界！"}
    assert evaluate_answers(tmp_path, data, answers, clip_model=clip_model)["mean_length"] == pytest.approx((6 + 4 + 4) / 3)


def test_a_denial_of_only_a_part_is_not_false_where_the_model_sees_the_object(tmp_path, data, clip_model):
    """The model sees every object: only b denies one as a whole."""
    calibration = {"certainty": {"object": [0, 9]}, "unknown_between": [0.3, 0.7]}
    (tmp_path / "clip" / "calibration.json").write_text(json.dumps(calibration))
    answers = {"a": "There is a man. Nobody looks at the camera.", "b": "There are no people.", "c": "Hello."}
    metrics = evaluate_answers(tmp_path, data, answers, clip_model=clip_model)
    assert metrics["chair_s"] == pytest.approx(1 / 3) and metrics["chair_i"] == pytest.approx(1 / 2)


def test_a_model_that_is_missing_or_not_calibrated_is_refused(tmp_path, data, clip_model):
    with pytest.raises(InputError, match="the benchmark clip needs an open_clip model: give --clip_model"):
        evaluate_answers(tmp_path, data)
    (tmp_path / "clip" / "calibration.json").unlink()
    with pytest.raises(InputError, match="has no calibration, without which every verdict is unknown: make one with"):
        evaluate_answers(tmp_path, data, clip_model=clip_model)


def test_a_run_is_evaluated_by_a_verifier_that_no_reward_uses(tiny_vlm_path, examples, tmp_path, data, clip_model):
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"benchmarks": {"clip": {"data": data, "clip_model": clip_model}}}))
    settings = {"model_name_or_path": tiny_vlm_path, "dataset_name": "x", "eval_benchmarks": str(suite), "response_length": 8}
    sft(SFTConfig(**settings, output_dir=str(tmp_path / "run"), max_steps=1, lora_r=4, per_device_train_batch_size=2), examples)
    assert [row["step"] for row in read_jsonl(tmp_path / "run/metrics.jsonl") if "eval/clip/chair_s" in row] == [0, 1]
    rewarded = {"reward_terms": "verifier_score=1", "clip_model": clip_model, "output_dir": str(tmp_path / "ppo")}
    with pytest.raises(InputError, match="as the reward verifier_score does: what is optimised must not evaluate"):
        PolicyEvaluation(PPOConfig(**settings, **rewarded))
    PolicyEvaluation(PPOConfig(**settings, **rewarded | {"clip_model": str(tmp_path / "another")}))
