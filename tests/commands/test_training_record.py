"""A model card's facts are read from run directories, which may be old, damaged or hostile."""

from __future__ import annotations

import json

import pytest

from mmrlhf.commands.training_record import (
    DataFile,
    Figure,
    _number,
    hub_base,
    policy_evaluations,
    read_lineage,
    read_record,
    reward_model_evaluations,
    run_of,
    without_folders,
)
from mmrlhf.config import DPOConfig, PPOConfig, SFTConfig
from mmrlhf.config.loader import save_config


def write_run(path, config, **files):
    """Write a run directory with its settings and some JSON files."""
    (path / "policy").mkdir(parents=True)
    (path / "model").mkdir()
    save_config(config, path / "config.yaml")
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An sft run on a model of the Hub, and a dpo run on its model."""
    monkeypatch.chdir(tmp_path)
    sft = SFTConfig(model_name_or_path="them/llava", dataset_name="/home/me/rows.jsonl", output_dir="x", lora_r=8)
    dpo = DPOConfig(model_name_or_path="runs/sft/model", dataset_name="them/pairs", output_dir="y", max_steps=7, save_steps=3)
    inputs = {"inputs": {"dataset_name": {"path": "/home/me/rows.jsonl", "sha256": "ab" * 32}}, "versions": {}}
    rows = {"signature": "", "checks": {"num_rows": 60}}
    write_run(tmp_path / "runs" / "sft", sft, inputs=inputs, rows=rows, finished={"steps": 4})
    write_run(tmp_path / "runs" / "dpo", dpo)
    return tmp_path / "runs"


def test_runs_are_followed_back_to_the_model_of_the_hub(runs):
    records = read_lineage("runs/sft/model", "runs/dpo/policy")
    assert [record.stage for record in records] == ["sft", "dpo"]
    assert records == read_lineage("runs/dpo/policy")  # its settings name the model
    assert hub_base("runs/sft/model", records) == "them/llava"
    assert records[0].data == [DataFile("dataset_name", "rows.jsonl", 60, "ab" * 32)] and records[0].num_steps == 4
    assert records[1].data == [DataFile("dataset_name", "them/pairs", None, None)] and records[1].num_steps is None
    assert records[0].settings == {"lora_r": "8"} and records[1].settings == {"max_steps": "7"}
    assert read_lineage("them/llava", None) == [] and hub_base("them/llava", []) == "them/llava"
    assert hub_base("runs/model", []) is None  # a folder's name is no owner


def test_a_settings_former_name_is_read_as_the_new_one(tmp_path):
    ppo = {"model_name_or_path": "them/llava", "dataset_name": "x", "output_dir": "y"}
    run = write_run(tmp_path / "ppo", PPOConfig(**ppo, reward_model_path="r", allow_worse_reward_model=True))
    expected = read_record(run)
    assert expected.stage == "ppo" and expected.settings["allow_worse_reward_model"] == "True"
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("allow_worse_reward_model", "allow_worse_judge"))
    assert read_record(run) == expected


def test_runs_that_name_each_other_end(runs):
    text = (runs / "sft" / "config.yaml").read_text().replace("them/llava", "runs/dpo/policy")
    (runs / "sft" / "config.yaml").write_text(text)
    assert [record.stage for record in read_lineage("runs/sft/model")] == ["dpo", "sft"]


def test_a_run_is_found_by_its_result_only(runs, tmp_path):
    assert run_of(runs / "sft" / "model") == run_of(runs / "sft") == runs / "sft"
    assert run_of(runs / "sft" / "model" / "deeper") is None and run_of(tmp_path / "nowhere") is None
    (runs / "sft" / "metrics.jsonl").unlink()  # another program's config.yaml
    assert run_of(runs / "sft" / "model") is None


def test_damaged_files_are_left_out(runs):
    for name in ("inputs", "rows", "finished"):
        (runs / "sft" / f"{name}.json").write_text("[1, {")
    record = read_record(runs / "sft")
    assert record.num_steps is None and record.data == [DataFile("dataset_name", "rows.jsonl", None, None)]


def test_settings_show_no_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert without_folders("/home/me/my.py:score=0.5, length=1") == "my.py:score=0.5, length=1"
    assert without_folders("length=1,../a/b.py:f") == "length=1,b.py:f"
    assert without_folders("them/llava") == "them/llava" and without_folders("/home/me/runs/sft/") == "sft"


def write_evaluations(run, rows):
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row_of(step, value, **changes):
    metrics = {"other": {"value": 1.0}, "chair_s": {"value": value, "low": value - 0.1, "high": value + 0.1}, "none": None}
    return {
        "step": step,
        "benchmark": "scenes",
        "n": 9,
        "headline": "chair_s",
        "direction": "lower",
        "metrics": metrics,
    } | changes


def test_figures_are_of_the_policy_in_the_folder(runs):
    run = runs / "dpo"
    write_evaluations(run, [row_of(0, 0.5), row_of(3, 0.25), row_of(7, 0.375)])
    record = read_record(run)
    assert policy_evaluations(record, run / "policy") == []  # it is not known of which step it is
    (run / "finished.json").write_text('{"steps": 7, "policy_step": 7}')
    (evaluation,) = policy_evaluations(record, run / "policy")
    assert evaluation.note == "by the dpo run itself, after step 7"
    assert [(f.name, f.value, f.interval) for f in evaluation.figures] == [
        ("chair_s", 0.375, (0.275, 0.475)),
        ("other", 1.0, None),
    ]
    (run / "best").mkdir()
    (run / "best" / "best.json").write_text('{"step": 3}')
    assert policy_evaluations(record, run / "best")[0].figures[0].value == 0.25


def test_figures_that_are_no_numbers_are_left_out(runs):
    run = runs / "dpo"
    (run / "finished.json").write_text('{"steps": 7}')
    write_evaluations(run, [row_of(7, 0.5, metrics={"chair_s": {"value": float("nan")}, "b": {"value": "<b>"}, "c": [1]})])
    assert policy_evaluations(read_record(run), run / "policy")[0].figures == []


def test_a_reward_models_figures_have_intervals(tmp_path):
    rates = {"j": 0.2, "tpr": 0.8, "fpr": 0.6, "n_false": 70, "n_true": 80}
    after = {"all": {**rates, "low": 0.0524, "high": 0.3339}, "object": rates}  # the latter of an earlier version
    metadata = {"j": {"measured_on": "injected claims", "after": after, "change": None}}
    (tmp_path / "finished.json").write_text(json.dumps({"right": [1.0] * 3 + [0.0]}))
    accuracy, judged = reward_model_evaluations(tmp_path, metadata)
    assert accuracy.figures[0].value == 0.75 and accuracy.num_examples == 4
    assert accuracy.figures[0].interval == pytest.approx((0.3006, 0.9544), abs=1e-4)
    (tmp_path / "finished.json").write_text(json.dumps({"right": [1.0] * 3 + [0.0], "clusters": [0, 0, 0, 3]}))
    assert reward_model_evaluations(tmp_path, metadata)[0].figures[0].interval == (0.0, 1.0)  # two images, one of them wrong
    assert judged.figures == [Figure("J", 0.2, (0.0524, 0.3339)), Figure("J, object", 0.2, None)]
    assert judged.num_examples == 150
    assert reward_model_evaluations(tmp_path / "nowhere", {}) == []


def test_huge_numbers_of_a_file_are_no_metrics():
    assert [_number(value) for value in (10**400, float("nan"), True, "1", 3)] == [None, None, None, None, 3.0]
