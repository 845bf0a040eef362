"""Direct preference optimisation on the tiny model: what it learns, resumes and refuses."""

import dataclasses
import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.cli import main
from mmrlhf.dpo import dpo
from mmrlhf.files.bundled import folder
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.records import InputError, Message, Preference
from mmrlhf.replay import replay
from mmrlhf.training.dpo import held_out_pairs, losses, reference_logps
from mmrlhf.training.run import Run
from tests.helpers.runs import stopped_after
from tests.helpers.stages import dpo_config, save_start_adapter

SAMPLES = folder("data") / "samples"


def metrics_of(run):
    """Return the metrics of a run without their times."""
    return [{name: value for name, value in row.items() if name != "time"} for row in read_jsonl(run / "metrics.jsonl")]


def assert_same_policy(first, second):
    first_tensors, second_tensors = (load_file(run / "policy" / "adapter_model.safetensors") for run in (first, second))
    assert set(first_tensors) == set(second_tensors)
    assert all(torch.equal(first_tensors[name], second_tensors[name]) for name in first_tensors)


def test_dpo_learns_the_pairs_from_the_reference_on(tiny_vlm_path, pairs, tmp_path, capsys):
    adapter_dir = dpo(dpo_config(tiny_vlm_path, tmp_path / "run"), pairs)
    rows = metrics_of(tmp_path / "run")
    # At first the policy is the reference: -log sigmoid(0).
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4) and abs(rows[0]["rewards/margins"]) < 1e-5
    assert rows[-1]["loss"] < 0.3 and rows[-1]["rewards/accuracies"] == 1.0 and rows[-1]["rewards/margins"] > 1
    assert rows[-1]["logps/rejected"] < rows[0]["logps/rejected"] - 10
    assert (adapter_dir / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["rewards/accuracies"] == 1.0
    assert dpo(dpo_config(tiny_vlm_path, tmp_path / "run"), pairs) == adapter_dir  # finished: returns at once
    assert "is finished, nothing to do" in capsys.readouterr().out


def test_dpo_measures_held_out_pairs(tiny_vlm_path, pairs, tmp_path):
    config = dpo_config(tiny_vlm_path, tmp_path / "run", max_steps=2, eval_steps=1, loss_type="sigmoid,sft", image_pairs="other")
    dpo(config, pairs[:6], held_out=[dataclasses.replace(pairs[6], ranks=(1, 1)), *pairs[6:]])
    evaluated = {row["step"]: {k[5:]: v for k, v in row.items() if k[:5] == "eval/"} for row in metrics_of(tmp_path / "run")}
    assert set(evaluated) == {0, 1, 2} and "image_pairs/margins" not in evaluated[0]
    assert evaluated[0]["loss/sigmoid"] == pytest.approx(0.6931, abs=1e-4) and evaluated[0]["rewards/margins"] == pytest.approx(0)
    assert evaluated[2]["rewards/accuracies"] == 1.0 and evaluated[2]["loss/sigmoid"] < 0.5
    assert evaluated[0]["loss"] == pytest.approx(evaluated[0]["loss/sigmoid"] + evaluated[0]["loss/sft"])


def test_held_out_metrics_do_not_depend_on_batches(vlm, tiny_vlm_path, pairs, tmp_path, monkeypatch):
    config = dpo_config(tiny_vlm_path, tmp_path / "run", loss_type="sigmoid,sft")
    adapters = Adapters(vlm)
    adapters.add("policy", 4, 8.0, seed=0)
    policy, reference = Role(adapters, "policy"), Role(adapters, None)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02
    at_once, in_parts = (held_out_pairs.HeldOutPairs(config) for _ in range(2))
    for measure in (at_once, in_parts):
        measure.prepare(policy, reference, pairs)
    whole = at_once(vlm)
    monkeypatch.setattr(held_out_pairs, "ROWS_PER_BATCH", 5)
    assert in_parts(vlm) == pytest.approx(whole, rel=1e-4) and in_parts(vlm) == pytest.approx(whole, rel=1e-4)
    assert abs(whole["rewards/margins"]) > 1e-3


def test_held_out_rows_need_no_other_pictures(tiny_vlm_path, pairs, tmp_path):
    """Image pairs are for rows that are trained on."""
    text_only = [dataclasses.replace(row, images=(), prompt=(Message("user", "What is a cup?"),)) for row in pairs[6:]]
    config = dpo_config(tiny_vlm_path, tmp_path / "run", max_steps=1, eval_steps=1, image_pairs="other")
    dpo(config, pairs[:6], held_out=text_only)
    assert "eval/loss" in metrics_of(tmp_path / "run")[-1]


def test_kept_log_probs_of_the_reference_are_those_of_every_step(tiny_vlm_path, pairs, tmp_path):
    for precompute in (True, False):
        dpo(dpo_config(tiny_vlm_path, tmp_path / str(precompute), precompute_ref_log_probs=precompute, max_steps=3), pairs)
    kept, computed = metrics_of(tmp_path / "True"), metrics_of(tmp_path / "False")
    assert kept[0]["rewards/accuracies"] == computed[0]["rewards/accuracies"] == 0  # all rewards are 0 at first
    for kept_row, computed_row in zip(kept, computed, strict=True):
        assert kept_row == pytest.approx(computed_row, rel=1e-4, abs=1e-4)
    assert not (tmp_path / "False" / "reference_logps.jsonl").exists()
    lines = read_jsonl(tmp_path / "True" / "reference_logps.jsonl")
    assert [line["row"] for line in lines] == list(range(12)) and lines[0]["id"] == pairs[0].id


RESUMED_SETTINGS = {"image_pairs": "other", "loss_type": "sigmoid,sft", "max_steps": 3, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def whole_run(tiny_vlm_path, pairs, tmp_path_factory):
    """A run that was not interrupted."""
    run = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_logps, "ROWS_PER_BATCH", 5)
        dpo(dpo_config(tiny_vlm_path, run, **RESUMED_SETTINGS), pairs)
    return run


@pytest.mark.parametrize("interrupted_at", ["reference", 2])
def test_dpo_resumes_exactly(tiny_vlm_path, pairs, tmp_path, monkeypatch, whole_run, interrupted_at):
    monkeypatch.setattr(reference_logps, "ROWS_PER_BATCH", 5)
    config = dpo_config(tiny_vlm_path, tmp_path / "cut", **RESUMED_SETTINGS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if interrupted_at == "reference":
            compute, calls = reference_logps._row_logps, []

            def interrupt_second(*args):
                calls.append(1)
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return compute(*args)

            patch.setattr(reference_logps, "_row_logps", interrupt_second)
        else:
            log = Run.log

            def interrupt_step(run, step, *args, **kwargs):
                log(run, step, *args, **kwargs)
                if step == interrupted_at:
                    raise KeyboardInterrupt

            patch.setattr(Run, "log", interrupt_step)
        dpo(config, pairs)
    dpo(config, pairs)
    assert metrics_of(tmp_path / "cut") == metrics_of(whole_run)
    assert read_jsonl(tmp_path / "cut" / "reference_logps.jsonl") == read_jsonl(whole_run / "reference_logps.jsonl")
    assert_same_policy(tmp_path / "cut", whole_run)


def test_dpo_resumes_if_it_was_killed_before_the_file_of_log_probs_got_its_name(tiny_vlm_path, pairs, tmp_path, monkeypatch):
    """The rows fill whole batches, so that none is computed again."""
    monkeypatch.setattr(reference_logps, "ROWS_PER_BATCH", len(pairs) // 3)
    config = dpo_config(tiny_vlm_path, tmp_path / "run", max_steps=2)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(ResumableWriter, "finish", lambda writer: 1 / 0)
        dpo(config, pairs)
    dpo(config, pairs)
    assert len(read_jsonl(tmp_path / "run" / "reference_logps.jsonl")) == len(pairs)


def test_dpo_of_no_steps_writes_the_policy_it_starts_from(tiny_vlm_path, pairs, tmp_path):
    adapter_dir = dpo(dpo_config(tiny_vlm_path, tmp_path / "run", max_steps=0), pairs)
    weights = load_file(adapter_dir / "adapter_model.safetensors")
    assert not any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)


def test_dpo_refuses_log_probs_of_other_rows_or_another_base(tiny_vlm_path, pairs, tmp_path, monkeypatch):
    config = dpo_config(tiny_vlm_path, tmp_path / "run")
    monkeypatch.setattr(Run, "log", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dpo(config, pairs)
    monkeypatch.undo()
    inputs_file = tmp_path / "run" / ".reference_logps.jsonl.inputs.json"
    inputs = json.loads(inputs_file.read_text())
    inputs["inputs"]["base"] = "another"
    inputs_file.write_text(json.dumps(inputs))
    with pytest.raises(InputError, match=r"reference_logps.jsonl was made with other inputs, base \(was another, now "):
        dpo(config, pairs)
    inputs_file.unlink()  # unknown inputs: computed again
    logps_file = tmp_path / "run" / "reference_logps.jsonl"
    logps_file.write_text(logps_file.read_text().replace("-", "-9"))
    dpo(config, pairs)
    assert metrics_of(tmp_path / "run")[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_more_steps_need_the_log_probs_of_more_rows(tiny_vlm_path, pairs, tmp_path):
    """One step of six rows, killed; then three steps, which read all twelve."""
    with stopped_after(step=1):
        dpo(dpo_config(tiny_vlm_path, tmp_path / "run", max_steps=1), pairs)
    dpo(dpo_config(tiny_vlm_path, tmp_path / "run", max_steps=3, allow_change="max_steps"), pairs)
    assert len(read_jsonl(tmp_path / "run" / "reference_logps.jsonl")) == 12
    assert [row["step"] for row in metrics_of(tmp_path / "run")] == [1, 2, 3]


def test_dpo_starts_from_an_adapter_which_is_then_the_reference(tiny_vlm_path, pairs, tmp_path):
    save_start_adapter(tiny_vlm_path, tmp_path / "start")
    config = dpo_config(tiny_vlm_path, tmp_path / "run", adapter_path=str(tmp_path / "start"), max_steps=2)
    dpo(config, pairs)
    rows = metrics_of(tmp_path / "run")
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4) and rows[1]["loss"] < 0.65
    assert re.search(r'"r": 3', (tmp_path / "run" / "policy" / "adapter_config.json").read_text())


def test_dpo_leaves_ties_out_and_weighs_rankings(tiny_vlm_path, pairs, tmp_path, capsys):
    tie = dataclasses.replace(pairs[0], ranks=(1, 1))
    ranking = Preference("k", pairs[1].images, pairs[1].prompt, (pairs[1].chosen, "A ring.", "A cup."), (1, 2, 3))
    dpo(dpo_config(tiny_vlm_path, tmp_path / "run", max_steps=1), [tie, ranking, pairs[2]])
    assert "1 of 3 rows are ties and are left out" in capsys.readouterr().out
    assert [len(line["logps"]) for line in read_jsonl(tmp_path / "run" / "reference_logps.jsonl")] == [3, 2]
    with pytest.raises(InputError, match="x has ties only, and a tie has no better answer to learn"):
        dpo(dpo_config(tiny_vlm_path, tmp_path / "ties", max_steps=1), [tie])
    with pytest.raises(InputError, match="row k: changed_token_weight compares an answer with its correction, and the row has 3"):
        dpo(dpo_config(tiny_vlm_path, tmp_path / "ddpo", changed_token_weight=5), [pairs[0], ranking])
    with pytest.raises(InputError, match="has no row with an image, and image_pairs compares images"):
        text_only = dataclasses.replace(pairs[0], images=())
        dpo(dpo_config(tiny_vlm_path, tmp_path / "text", image_pairs="crop"), [text_only])


def test_dpo_with_image_pairs_learns_which_picture_an_answer_is_about(tiny_vlm_path, pairs, tmp_path):
    settings = {"image_pairs": "other", "anchor_coefficient": 1.0, "max_steps": 6}
    dpo(dpo_config(tiny_vlm_path, tmp_path / "run", **settings), pairs)
    rows = metrics_of(tmp_path / "run")
    assert rows[0]["loss"] == pytest.approx(3 * 0.6931, abs=1e-3)  # three losses at 0
    assert rows[-1]["image_pairs/margins"] > 0.2 and rows[-1]["loss/image_pairs"] < rows[0]["loss/image_pairs"]
    assert rows[-1]["rewards/chosen"] > 0


def test_a_skipped_step_is_computed_again_with_its_pictures(tiny_vlm_path, pairs, tmp_path, monkeypatch, capsys):
    real, calls = losses.comparison_loss, []

    def spoilt(*args):
        calls.append(1)
        return real(*args) * (math.inf if len(calls) in (3, 7) else 1)  # twice a step: answers, pictures

    monkeypatch.setattr(losses, "comparison_loss", spoilt)
    dpo(dpo_config(tiny_vlm_path, tmp_path / "run", image_pairs="other", per_device_train_batch_size=2, max_steps=3), pairs)
    assert [row.get("skipped_steps") for row in metrics_of(tmp_path / "run")] == [None, 1.0, 1.0]
    file = str(tmp_path / "run" / "skipped" / "step-000002.safetensors")
    assert replay(file) and "the loss is inf, as in the run" in capsys.readouterr().out  # the seventh call
    monkeypatch.undo()
    assert not replay(file) and "which is not as in the run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss_type", "orpo"], "loss_type 'orpo' is not one of sigmoid, sigmoid_norm, ipo, hinge, robust, bco_pair, sft"),
        (["--loss_type", "sigmoid,sft", "--loss_weights", "1"], "loss_weights has 1 numbers, and loss_type 2 losses"),
        (["--loss_type", "hinge", "--label_smoothing", "0.1"], "label_smoothing is for sigmoid, sigmoid_norm, robust"),
        (["--image_pair_coefficient", "0.5"], "image_pair_coefficient is for image_pairs, which is none; leave it out"),
        (["--facts_file", str(SAMPLES / "facts.jsonl")], "facts_file is for reward functions and reward models"),
        (["--loss_type", "sft"], "loss_type sft alone compares nothing: use `mmrlhf sft`"),
        (["--beta", "0"], "--beta must be a number above 0, not '0'"),
        (["--label_smoothing", "0.5"], "--label_smoothing must be a number of at least 0 and below 0.5"),
        (["--image_pairs", "rotate"], "--image_pairs must be none or crop or other"),
        (["--tuning", "full"], "has no flag --tuning"),
        (["--max_length", "5"], "are too long"),
    ],
)
def test_dpo_command_refuses_what_makes_no_sense(tiny_vlm_path, tmp_path, capsys, arguments, message):
    data = ["--dataset_name", str(SAMPLES / "trl_preference.jsonl"), "--output_dir", str(tmp_path / "run")]
    assert main(["dpo", "--model_name_or_path", tiny_vlm_path, *data, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {".lock"}  # until the process ends


def test_dpo_command_learns_corrections_from_a_file(tiny_vlm_path, tmp_path, capsys):
    arguments = ["--model_name_or_path", tiny_vlm_path, "--max_steps", "2", "--per_device_train_batch_size", "4", "--lora_r", "4"]
    settings = ["--loss_type", "sigmoid_norm", "--beta", "5", "--changed_token_weight", "5", "--image_pairs", "crop"]
    data = ["--dataset_name", str(SAMPLES / "rlhf_v.parquet"), "--output_dir", str(tmp_path / "run")]
    assert main(["dpo", *arguments, *settings, *data]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'run' / 'policy'}" in printed and "next: mmrlhf report" in printed
    assert main(["report", str(tmp_path / "run")]) == 0
