"""Rejection-sampling fine-tuning: it learns what it keeps, round by round, and resumes exactly."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from safetensors.torch import load_file

from mmrlhf import rft as stage
from mmrlhf.config import RFTConfig
from mmrlhf.datasets import read_examples
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.records import ImageSource, InputError, Message
from mmrlhf.rewards.ledger import RewardBreakdown
from mmrlhf.rewards.types import Sample
from mmrlhf.rft import rft
from mmrlhf.scenes import export_dataset
from mmrlhf.training.answer_batches import NOT_FINITE
from mmrlhf.training.best_model import BestModel
from mmrlhf.training.monitor import ZERO_CLAIM_KEY
from mmrlhf.training.rft.evaluations import best_round
from mmrlhf.training.rft.metrics import round_metrics
from mmrlhf.training.rft.scored_answers import ScoredAnswer
from mmrlhf.training.rft.selection import Selection
from mmrlhf.training.run import Run
from mmrlhf.training.sampled_answers import why_unusable
from tests.helpers.runs import killed_at


def rft_config(model, output_dir, **settings):
    defaults = {
        "num_rounds": 2, "num_generations": 3, "response_length": 30, "max_steps": 1, "per_device_train_batch_size": 2,
        "learning_rate": 2e-3, "lora_r": 4, "reward_terms": "longer=1",
    }  # fmt: skip
    return RFTConfig(model_name_or_path=model, dataset_name="x", output_dir=str(output_dir), **{**defaults, **settings})


def longer(samples):
    return [float(len(sample.answer)) for sample in samples]


def run_rft(config, rows):
    return rft(config, rows, {"longer": longer})


def test_each_round_learns_the_best_answers_of_the_last_rounds_policy(tiny_vlm_path, examples, tmp_path):
    model = run_rft(rft_config(tiny_vlm_path, tmp_path), examples[:3])
    assert model == tmp_path / "model"
    names = {name.replace("vision_tower.vision_model.", "vision_tower.") for name in load_file(model / "model.safetensors")}
    assert names == load_file(f"{tiny_vlm_path}/model.safetensors").keys()
    for number in (1, 2):
        answers = read_jsonl(tmp_path / f"round_{number}" / "answers.jsonl")
        assert [row["row"] for row in answers] == [row for row in range(3) for _ in range(3)]
        kept = {row["id"]: row for row in read_jsonl(tmp_path / f"round_{number}" / "sft.jsonl")}
        for example in examples[:3]:
            own = [row for row in answers if row["id"] == example.id and not row["unusable"]]
            best = max(own, key=lambda row: row["values"]["longer"]) if own else None
            assert (kept[example.id]["messages"][-1]["content"][0]["text"] if best else None) == (best and best["answer"])
    settings = [(tmp_path / f"round_{number}" / "sft" / "config.yaml").read_text() for number in (1, 2)]
    assert f"model_name_or_path: {tiny_vlm_path}" in settings[0]
    assert f"model_name_or_path: {tmp_path}/round_1/sft/model" in settings[1] and "train_on: last" in settings[1]
    metrics = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2] and metrics[0]["rft/sampled"] == 9
    assert metrics[0]["rft/best_score"] >= metrics[0]["rft/mean_score"] == metrics[0]["objective/scores"]
    assert len(read_jsonl(tmp_path / "ledger.jsonl")) == 18


def test_scores_rise_over_rounds(tiny_vlm_path, examples, tmp_path):
    """The reward is the length of an answer, so answers get longer."""
    settings = {"num_generations": 8, "max_steps": 6, "per_device_train_batch_size": 4, "response_length": 60}
    run_rft(rft_config(tiny_vlm_path, tmp_path, **settings), examples[:4])
    means = [row["rft/mean_score"] for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert means[1] > means[0] + 5


def test_a_round_may_start_from_the_base_again(tiny_vlm_path, examples, tmp_path):
    run_rft(rft_config(tiny_vlm_path, tmp_path, start_from="base"), examples[:3])
    assert f"model_name_or_path: {tiny_vlm_path}" in (tmp_path / "round_2" / "sft" / "config.yaml").read_text()
    inputs = (tmp_path / "round_2" / ".answers.jsonl.inputs.json").read_text()
    assert "round_1/sft/model" in inputs  # its answers are those of the newest policy


def run_that_falls_silent(config, rows):
    """Run rft, and log that every answer of the first round claims something, none of the next."""

    def metrics_of(config, answers, selection):
        is_second = (Path(config.output_dir) / "round_2").exists()
        return round_metrics(config, answers, selection) | {ZERO_CLAIM_KEY: float(is_second)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "round_metrics", metrics_of)
        run_rft(config, rows)


BY_LENGTH = {
    "eval_benchmarks": "scenes",
    "eval_limit": 1,
    "metric_for_best_model": "scenes/mean_length",
    "greater_is_better": True,
}
WATCHED = {**BY_LENGTH, "load_best_model_at_end": True, "length_bounds": "auto"}


@pytest.fixture(scope="module")
def whole_run(tiny_vlm_path, examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_that_falls_silent(rft_config(tiny_vlm_path, folder, **WATCHED), examples[:3])
    assert "zero_claim_rate" in {row["name"] for row in read_jsonl(folder / "warnings.jsonl")}
    return folder


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (ResumableWriter, "append", 2),  # in the middle of the first round's answers
        (stage, "sft", 2),
        (Run, "log_ledger", 2),
        (Run, "finish", 3),  # the two of sft, and its own
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(tiny_vlm_path, examples, tmp_path, whole_run, owner, name, call):
    config = rft_config(tiny_vlm_path, tmp_path, **WATCHED)
    with killed_at(owner, name, call):
        run_that_falls_silent(config, examples[:3])
    run_that_falls_silent(config, examples[:3])
    for path in (
        "model/model.safetensors",
        "round_1/answers.jsonl",
        "round_2/answers.jsonl",
        "round_2/sft.jsonl",
        "ledger.jsonl",
        "eval.jsonl",
        "warnings.jsonl",
        "finished.json",
    ):
        assert (tmp_path / path).read_bytes() == (whole_run / path).read_bytes(), path
    without_time = [[{**row, "time": 0} for row in read_jsonl(path / "metrics.jsonl")] for path in (tmp_path, whole_run)]
    assert without_time[0] == without_time[1]


def test_a_round_reports_the_evaluation_of_its_model_and_the_best_round_is_the_result(whole_run):
    rows, metrics = read_jsonl(whole_run / "eval.jsonl"), read_jsonl(whole_run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in metrics] == [0, 1, 2]
    lengths = [row["eval/scenes/mean_length"] for row in metrics]
    assert lengths == [row["metrics"]["mean_length"]["value"] for row in rows]
    for number in (1, 2):  # by default before the first step and after the last
        of_sft = read_jsonl(whole_run / f"round_{number}" / "sft" / "eval.jsonl")
        best, before = max(of_sft, key=lambda row: row["metrics"]["mean_length"]["value"]), of_sft[0]
        assert [row["step"] for row in of_sft] == [0, 1] and best["metrics"] == rows[number]["metrics"]
        assert before["metrics"] == rows[number - 1]["metrics"]  # a round starts from the last one's model
    best = json.loads((whole_run / "finished.json").read_text())["best"]
    assert best["value"] == max(lengths) and best["step"] == lengths.index(max(lengths))
    without_model = [number for number in (1, 2) if not (whole_run / f"round_{number}" / "sft" / "model").exists()]
    assert without_model == [max(1, best["step"])]  # its model was moved


def test_the_first_of_equally_good_rounds_is_the_best(tmp_path):
    folders = [tmp_path / str(number) for number in range(1, 5)]
    values = [("f1", 0.5, 0), ("f1", 0.7, 2), ("f1", 0.7, 0), ("other", 0.9, 1)]
    for folder, (metric, value, step) in zip(folders, values, strict=True):
        folder.mkdir()
        best = {"metric": metric, "value": value, "step": step}
        (folder / "finished.json").write_text(json.dumps({"steps": 2, "best": best}))
    assert best_round(folders, BestModel("f1", True)) == (2, {"metric": "f1", "value": 0.7, "step": 2})
    assert best_round(folders, BestModel("f1", False)) == (1, {"metric": "f1", "value": 0.5, "step": 0})
    assert best_round(folders, BestModel("f2", True)) is None


def test_other_settings_are_refused_and_a_finished_run_is_left_alone(tiny_vlm_path, examples, whole_run, tmp_path, capsys):
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    with pytest.raises(InputError, match="other settings, temperature"):
        run_rft(rft_config(tiny_vlm_path, copy, **WATCHED, temperature=0.5), examples[:3])
    with pytest.raises(InputError, match="other inputs, rows"):
        run_rft(rft_config(tiny_vlm_path, copy, **WATCHED), examples[:2])
    capsys.readouterr()
    assert run_rft(rft_config(tiny_vlm_path, copy, **WATCHED), examples[:3]) == copy / "model"
    assert "is finished, nothing to do" in capsys.readouterr().out


def test_nothing_kept_stops_the_run_and_says_why(tiny_vlm_path, examples, tmp_path):
    config = rft_config(tiny_vlm_path, tmp_path, min_score=1e6)
    with pytest.raises(InputError, match=r"round 1 keeps none of 9 answers: .*below min_score.*lower min_score or min_margin"):
        run_rft(config, examples[:3])
    config = rft_config(tiny_vlm_path, tmp_path / "cut", response_length=2)
    with pytest.raises(InputError, match="9 cut off at response_length; raise response_length"):
        run_rft(config, examples[:3])


def longer_but_nan(bad_ids):
    """Return the reward `longer`, which is NaN for answers to some rows."""
    return {"longer": lambda samples: [math.nan if sample.id in bad_ids else float(len(sample.answer)) for sample in samples]}


def test_a_batch_that_is_not_finite_is_left_out_also_after_a_kill(tiny_vlm_path, examples, tmp_path, capsys):
    """The second of three batches is; the killed run has written it before it is killed."""
    rows, runs = examples[:3], {}
    for name, call in (("whole", 0), ("killed", 3)):
        config = rft_config(tiny_vlm_path, tmp_path / name, num_rounds=1, per_device_train_batch_size=1)
        if call:
            with killed_at(ResumableWriter, "append", call):
                rft(config, rows, longer_but_nan({rows[1].id}))
        rft(config, rows, longer_but_nan({rows[1].id}))
        files = ("metrics.jsonl", "warnings.jsonl", "ledger.jsonl", "round_1/answers.jsonl", "round_1/sft.jsonl")
        texts = {file: (tmp_path / name / file).read_text() for file in files}
        runs[name] = {file: re.sub('"time": [^,}]+', "", text) for file, text in texts.items()}
    assert runs["whole"] == runs["killed"]
    warning, = (row for row in read_jsonl(tmp_path / "whole" / "warnings.jsonl") if row["name"] == "skipped_batch")  # fmt: skip
    assert warning["warning"] == f"3 answers are left out, {NOT_FINITE}: round_1/answers.jsonl has their rows"
    note = f"note: the answers of a batch are left out: reward function longer returned nan on an answer to row {rows[1].id}\n"
    assert capsys.readouterr().out.count(note) == 2  # once in each run
    metrics, = read_jsonl(tmp_path / "whole" / "metrics.jsonl")  # fmt: skip
    assert (metrics["rft/not_finite"], metrics["rft/sampled"]) == (3, 6)
    answers = read_jsonl(tmp_path / "whole" / "round_1" / "answers.jsonl")
    assert [(row["row"], bool(row["values"])) for row in answers[::3]] == [(0, True), (1, False), (2, True)]
    assert {row["unusable"] for row in answers if not row["values"]} == {NOT_FINITE}  # on any number of processes
    ledger = read_jsonl(tmp_path / "whole" / "ledger.jsonl")
    assert metrics["rft/mean_score"] == pytest.approx(fmean(row["total"] for row in ledger)) and len(ledger) == 6


def test_three_batches_in_a_row_that_are_not_finite_stop_the_run(tiny_vlm_path, examples, tmp_path):
    """The count survives a kill, and a corrected reward function then goes on, if allowed to."""
    rows, file, run_dir = examples[:4], tmp_path / "own.py", tmp_path / "run"
    lengths = "def longer(samples):\n    return [{}float(len(s.answer)) for s in samples]\n"
    file.write_text(lengths.format(f"float('nan') if s.id != {rows[0].id!r} else "))
    settings = {"num_rounds": 1, "per_device_train_batch_size": 1, "reward_terms": f"{file}:longer=1"}
    config = rft_config(tiny_vlm_path, run_dir, **settings)
    with killed_at(ResumableWriter, "append", 3):  # a good batch and a bad one are written
        rft(config, rows)
    cause = f"the last because reward function {file}:longer returned nan on an answer to row {rows[3].id}. If"
    for _ in range(2):  # repeating the command changes nothing
        with pytest.raises(InputError, match=rf"3 batches in a row are not finite, {cause} .* remove {run_dir}/round_1 and"):
            rft(config, rows)
    file.write_text(lengths.format(""))
    shutil.rmtree(run_dir / "round_1")
    with pytest.raises(InputError, match=f"{file}.*--allow_change reward_terms"):
        rft(config, rows)
    with killed_at(stage, "sft", 1):
        rft(dataclasses.replace(config, allow_change="reward_terms"), rows)
    assert all(row["values"] for row in read_jsonl(run_dir / "round_1" / "answers.jsonl"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_terms": "fact_rm=1"}, "give --reward_model_path, or leave fact_rm out"),
        ({"reward_terms": "nice=1"}, "reward_terms names nice, which does not exist"),
        ({"reward_terms": "absent.py:f=1"}, "the file absent.py does not exist"),
        ({"stop_on_warning": "zero_claim_rate"}, "it needs the claims of answers: add monitor_verifiers"),
        ({"tuning": "full", "dtype": "bfloat16"}, "tuning full needs dtype float32"),
        ({"response_length": 4096}, "leaves no room for a prompt"),
        ({"eval_steps": 5}, "eval_steps is about benchmarks, and there are none"),
        ({"tuning": "full", **BY_LENGTH}, "add load_best_model_at_end true"),
        ({**BY_LENGTH, "metric_for_best_model": "rewards/longer/mean"}, "what is optimised must not choose"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(tmp_path, examples, settings, message):
    with pytest.raises(InputError, match=message):
        run_rft(rft_config("no-such-model", tmp_path / "new", **settings), examples)
    assert not (tmp_path / "new").exists()


def test_a_round_measures_silence_and_vagueness():
    def answer(claims):
        sample = Sample("a", (), (), "It may be a dog.", num_tokens=5)
        return ScoredAnswer(0, sample, RewardBreakdown({"x": 1.0}, {}, {"x": 1.0}, {"x": 1.0}), claims, "")

    sure = {"by": "facts", "verdict": "supported", "hedged": False}
    answers = [answer([sure, sure | {"hedged": True}]), answer([sure, sure]), answer([]), answer([])]
    config = rft_config("m", "o", num_generations=4, reward_terms="coverage=1")
    metrics = round_metrics(config, answers, Selection([0]))
    assert (metrics["hacking/vagueness"], metrics["hacking/zero_claim_rate"]) == (0.25, 0.5)
    assert round_metrics(config, answers[2:] * 2, Selection([0]))["hacking/vagueness"] == 0
    # Without a verifier, claims are counted if a reward model scores: here one, a hedged dog.
    unverified = [answer(None)] * 4
    scored = dataclasses.replace(config, reward_terms="fact_rm=1", reward_model_path="rm")
    metrics = round_metrics(scored, unverified, Selection([0]))
    assert (metrics["hacking/vagueness"], metrics["hacking/zero_claim_rate"]) == (1.0, 0.0)
    assert "hacking/vagueness" not in round_metrics(
        dataclasses.replace(config, reward_terms="length=1"), unverified, Selection([0])
    )


def test_prompts_from_a_file_keep_their_paths_and_earlier_turns_are_not_learnt(tiny_vlm_path, tmp_path):
    export_dataset(str(tmp_path / "scenes"), num_rows=3)
    config = dataclasses.replace(rft_config(tiny_vlm_path, tmp_path / "run", reward_terms="coverage=1", num_rounds=1),
                                 dataset_name=str(tmp_path / "scenes" / "prompts.jsonl"))  # fmt: skip
    rft(config)
    row, *_ = kept = read_jsonl(tmp_path / "run" / "round_1" / "sft.jsonl")
    assert row["images"][0].startswith("images/") and {"score", "terms"} <= row.keys()
    read = read_examples(str(tmp_path / "run/round_1/sft.jsonl"), image_folder=str(tmp_path / "scenes"), require_answer=True)
    assert [example.answer for example in read] == [row["messages"][-1]["content"][0]["text"] for row in kept]
    ledger = read_jsonl(tmp_path / "run" / "ledger.jsonl")
    assert any(row["claims"] for row in ledger)
    assert all(sum(row["terms"].values()) == pytest.approx(row["total"]) for row in ledger)


@pytest.mark.parametrize(
    ("answer", "finished", "reason"),
    [
        ("A dog.", True, ""),
        ("A dog and", False, "cut off at response_length"),
        (" \u200b\n", True, "empty"),
        ("A dog.</s>", True, "with a control token"),
        ("A <image> of a dog.", True, "with a control token"),
    ],
)
def test_answers_that_cannot_be_learnt(vlm, answer, finished, reason):
    sample = Sample("1", (ImageSource(data=b""),), (Message("user", "?"),), answer, finished=finished)
    assert why_unusable(sample, vlm.escape_control_tokens) == reason


@pytest.mark.parametrize("setting", [{"min_score": 0.5}, {"top_share": 0.5}])
def test_scores_relative_to_their_prompt_have_no_threshold_over_prompts(tiny_vlm_path, examples, tmp_path, setting):
    config = rft_config(tiny_vlm_path, tmp_path, multi_objective_aggregation="normalize_then_sum", **setting)
    with pytest.raises(InputError, match=f"{next(iter(setting))} compares answers to different prompts"):
        run_rft(config, examples[:3])
