"""The benchmark runner, on the project's own benchmark and on a user's."""

import json
from dataclasses import replace

import pytest

from mmrlhf.config import EvalConfig, ScenesConfig
from mmrlhf.config.loader import load_config
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.files.bundled import find
from mmrlhf.records import InputError
from tests.helpers.fake_server import scripted_server


def test_scenes_metrics_match_hand_computation():
    module = load_benchmark("scenes").module
    row = {"split": "held_out", "kind": "describe", "claims_by_type": [[1, 3, 0, 0]], "length": [10]}
    rows = [
        row
        | {
            "index": 0,
            "answers": ["x y"],
            "false_by_type": [[0, 2, 0, 0]],
            "true": [6],
            "cooccurrence_errors": [2],
            "perception_errors": [0],
            "covered": [4],
            "expected": [8],
        },
        row
        | {
            "index": 1,
            "answers": ["x z"],
            "false_by_type": [[0, 0, 0, 0]],
            "true": [2],
            "cooccurrence_errors": [0],
            "perception_errors": [0],
            "covered": [2],
            "expected": [4],
        },
    ]
    metrics = module.by_split(rows)["held_out"]
    assert metrics["chair_i"] == 0.2 and metrics["chair_s"] == 0.5 and metrics["coverage"] == 0.5
    assert metrics["claim_f1"] == pytest.approx(2 * 0.8 * 0.5 / 1.3)
    assert metrics["utility"] == (8 - 4 * 2) / 2 and metrics["cooccurrence_errors"] == 1 and metrics["perception_errors"] == 0
    # Two of six claims about attributes are false; no count is claimed.
    assert metrics["chair_i_attribute"] == pytest.approx(1 / 3) and "chair_i_count" not in metrics
    # Wilson for 0 of 2 scenes, z² / (n + z²), and by hand for 1 of 2.
    assert metrics["chair_i_object_ci"] == pytest.approx([0, 3.8415 / 5.8415], abs=1e-4)
    assert metrics["chair_s_ci"] == pytest.approx([0.0945, 0.9055], abs=1e-4)


def test_scenes_metrics_of_yes_no_answers_alone():
    module = load_benchmark("scenes").module
    rows = [
        {
            "id": "0",
            "index": 0,
            "split": "held_out",
            "kind": "yes_no",
            "status": "ok",
            "answers": ["yes"],
            "said": ["yes"],
            "truth": "yes",
        }
    ]
    assert module.by_split(rows)["held_out"]["n"] == 0
    assert load_benchmark("scenes").aggregate(rows, Task())["official"].columns_RK.shape[0] == 1


def test_scenes_length_is_in_words_and_in_characters_of_chinese():
    benchmark = load_benchmark("scenes")
    example = next(e for e in benchmark.load(Task(limit=1)) if e.meta["kind"] == "describe")
    assert benchmark.score(example, ["There is a red cube.", "杯子是红色的。"], Task())["length"] == [5, 6]


def test_scenes_benchmark_shares_its_utility_with_the_demo():
    config = load_config(ScenesConfig, find("configs", "demo/scenes"), {})
    assert config.false_claim_penalty == load_benchmark("scenes").module.FALSE_CLAIM_PENALTY
    assert config == ScenesConfig()  # the file for people and the class for programs have the same values


def test_evaluate_writes_files_and_resumes(tiny_vlm_path, tmp_path):
    config = EvalConfig(model_name_or_path=tiny_vlm_path, output_dir=str(tmp_path / "run"), limit=4, response_length=20)
    first = evaluate("scenes", config)
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    metric = first["metrics"]["official"]["held_out"]["chair_s"]
    assert len(lines) == 6 and 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1
    # as a killed run leaves it: half of the lines, and a torn one
    (tmp_path / "run" / "predictions.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    assert evaluate("scenes", config) == first
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(json.dumps(first))
    assert first["model_sha256"] and first["generation"]["response_length"] == 20 and first["n"] == 6


CUSTOM_BENCHMARK = """
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, Message
import numpy as np
VERSION = LICENSE = HEADLINE = CLUSTER = "1"
DIRECTION = "higher"
ANSWER_FIELDS = ("id", "answer")

def load(task):
    return [Example(str(i), (), (Message("user", f"{i}?"),), meta={"truth": "yes"}) for i in range(4)]

def score(example, answers, task):
    return {"right": answers[0] == example.meta["truth"]}

def aggregate(rows, task):
    right = [r["right"] for r in rows if r["status"] == "ok"]
    columns = np.array([[r, 1] for r in right]).reshape(-1, 2)
    return {"robust": SufficientStats(range(len(right)), columns, lambda s: {"accuracy": s[..., 0] / s[..., 1]}, proportions={"accuracy": (0, 1)})}
"""


def test_evaluate_custom_benchmark_and_its_refusals(tiny_vlm_path, tmp_path):
    (tmp_path / "mine.py").write_text(CUSTOM_BENCHMARK)
    (tmp_path / "given.jsonl").write_text(
        '{"id": "1", "answer": "yes"}\n{"id": 0, "answer": "no"}\n{"id": "1", "answer": "no"}\n{"id": 9, "answer": "x"}\n{"id": 2, "answer": null}'
    )
    config = EvalConfig(output_dir=str(tmp_path / "run"), answers=str(tmp_path / "given.jsonl"))
    result = evaluate(str(tmp_path / "mine.py"), config)
    metric = result["metrics"]["robust"]["accuracy"]
    assert metric["value"] == 0.5 and metric["low"] == pytest.approx(0.0945, abs=1e-4)  # Wilson, 1 of 2
    counts = {"missing": 2, "unknown_ids": 1, "duplicate": 1, "null": 1, "unparsed": 0, "judge_errors": 0}
    assert result["counts"] == counts and result["n"] == 2
    with pytest.raises(InputError, match="these answers: 2 missing, 1 with an unknown id, 1 repeated, 1 null: complete"):
        evaluate(str(tmp_path / "mine.py"), replace(config, strict=True))
    with pytest.raises(InputError, match=r"made from other inputs, benchmark \(was .*mine.py, now scenes\)"):
        evaluate(
            "scenes", EvalConfig(model_name_or_path=tiny_vlm_path, output_dir=str(tmp_path / "run"), limit=2, response_length=4)
        )
    with pytest.raises(InputError, match="nothing to measure"):
        evaluate(str(tmp_path / "mine.py"), EvalConfig(output_dir=str(tmp_path / "new")))
    (tmp_path / "asks.py").write_text(
        CUSTOM_BENCHMARK.replace("    return [Example", "    return open(task.data)\n    return [Example")
    )
    with pytest.raises(InputError, match=r"its data none\.jsonl does not exist: correct --data"):
        evaluate(str(tmp_path / "asks.py"), replace(config, output_dir=str(tmp_path / "new"), data="none.jsonl"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "asks.py").write_text(CUSTOM_BENCHMARK.replace("VERSION", "OTHER"))
    with pytest.raises(InputError, match="does not state its VERSION"):
        evaluate(str(tmp_path / "asks.py"), config)
    (tmp_path / "bad.py").write_text("VERSION='1'")
    with pytest.raises(InputError, match="it defines no load and no score and no aggregate"):
        evaluate(str(tmp_path / "bad.py"), config)


def test_evaluate_says_that_a_server_answered_nothing(tmp_path):
    with scripted_server((400, b"no images here")) as server:
        config = EvalConfig(model_name_or_path=server.url, output_dir=str(tmp_path), limit=2, endpoint_retries=0)
        with pytest.raises(InputError, match="no example was answered, and the notes above say why"):
            evaluate("scenes", config)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("row", ['{"id": "held_out-000000-describe", "answer": null}', '{"id": "other", "answer": "x"}'])
def test_evaluate_scenes_without_a_single_answer(tmp_path, row):
    (tmp_path / "answers.jsonl").write_text(row + "\n")
    config = EvalConfig(output_dir=str(tmp_path / "run"), answers=str(tmp_path / "answers.jsonl"), limit=1)
    result = evaluate("scenes", config)
    assert result["n"] == 0 and result["metrics"]["official"] == {}
