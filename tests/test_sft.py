"""Supervised fine-tuning on the tiny model."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmrlhf.config import SFTConfig
from mmrlhf.engine.scoring import hidden_states
from mmrlhf.files import stop_signals
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.chat_text import ChatText
from mmrlhf.records import Example, InputError, Message
from mmrlhf.sft import sft
from mmrlhf.training.run import Run
from mmrlhf.training.sft_batch import build_sft_batch
from tests.helpers.family_setup import family_examples
from tests.helpers.runs import stopped_after
from tests.helpers.tiny_models import build_checkpoint


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_sft_learns_and_writes_an_ordinary_checkpoint(tiny_vlm_path, examples, tmp_path, tuning):
    config = SFTConfig(model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path), tuning=tuning, max_steps=5,
                       learning_rate=2e-3, per_device_train_batch_size=6, lora_r=8)  # fmt: skip
    rows = [dataclasses.replace(e, answer="A purple elephant sings.") for e in examples]
    model = sft(config, rows)
    losses = [r["loss"] for r in read_jsonl(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    before, after = load_file(f"{tiny_vlm_path}/model.safetensors"), load_file(model / "model.safetensors")
    after = {name.replace("vision_tower.vision_model.", "vision_tower."): tensor for name, tensor in after.items()}
    assert set(before) == set(after)
    changed = {k for k in before if not torch.allclose(before[k].float(), after[k].float(), atol=1e-6)}
    assert changed and not [k for k in changed if "vision" in k or "projector" in k]
    assert sft(config, rows) == model  # finished: returns at once


def test_sft_on_a_4_bit_base_merges_into_the_checkpoint_itself(tmp_path):
    """QLoRA: the adapter of the 4-bit base is kept, and added to the weights in bfloat16."""
    pytest.importorskip("bitsandbytes")
    build_checkpoint("llava", tmp_path / "base")
    base, rows = str(tmp_path / "base"), family_examples("llava")
    rows = [dataclasses.replace(row, answer="A red circle.") for row in rows]
    settings = {"dataset_name": "x", "dtype": "nf4", "max_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 2}
    model_dir = sft(SFTConfig(model_name_or_path=base, output_dir=str(tmp_path / "run"), **settings), rows)
    written = load_file(model_dir / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, tmp_path / "run" / "adapter").merge_and_unload()
    loaded = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in merged.state_dict().items())
    before = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16).state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in loaded.items())
    # The adapter itself goes on where it was trained, on the 4-bit base.
    adapter = str(tmp_path / "run" / "adapter")
    sft(SFTConfig(model_name_or_path=base, output_dir=str(tmp_path / "more"), adapter_path=adapter, **settings), rows)


CONVERSATION = (
    Message("user", "What is there?"),
    Message("assistant", "A red star."),
    Message("user", "Is there a moon?"),
    Message("assistant", "No, there is no moon."),
    Message("user", "What colour is the star?"),
)


@pytest.mark.parametrize("template_writes_end", [True, False])
def test_turns_learnt_together_have_the_loss_of_each_by_itself(vlm, examples, template_writes_end):
    """Once with one prompt for three turns, and once with a prompt for each."""
    if not template_writes_end:  # as LLaVA-1.5's: the end is learnt, but not read by later turns
        vlm.processor.chat_template = vlm.processor.chat_template.replace("</s>", " ")
        vlm.chat = ChatText(vlm.processor, "model", vlm.eos)
    example = Example("r", examples[0].images, CONVERSATION, "Red.")
    losses, counts = [], []
    for rows, train_on in (
        ([example], "all"),
        ([dataclasses.replace(example, prompt=CONVERSATION[:i], answer=a) for i, a in ((1, "A red star."), (3, "No, there is no moon."), (5, "Red."))], "last"),
    ):  # fmt: skip
        batch = build_sft_batch(vlm, rows, 2048, train_on)
        counts.append(int(batch.is_learnt_NT.sum()))
        total = 0.0
        with torch.no_grad():
            for indices, hidden in hidden_states(Role(Adapters(vlm), None), batch.completions):
                width = hidden.shape[1]
                learnt = batch.is_learnt_NT[indices, :width]
                total += float(vlm.token_logps(hidden, batch.targets_NT[indices, :width], learnt).sum())
        losses.append(total)
    assert len(batch.completions.prompts) == 3 and counts[0] == counts[1]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_sft_refuses_facts_before_it_loads(tmp_path):
    with pytest.raises(InputError, match="a policy that learns answers never sees facts; leave it out"):
        sft(SFTConfig(model_name_or_path="none", dataset_name="x", output_dir=str(tmp_path / "r"), facts_file="f.jsonl"), [])
    assert not (tmp_path / "r").exists()


def test_sft_says_which_row_the_template_refuses(tiny_vlm_path, examples, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_vlm_path, model)
    template = (model / "chat_template.jinja").read_text()
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    (model / "chat_template.jinja").write_text(refusal + template)
    bad = dataclasses.replace(examples[3], id="30", prompt=(Message("system", "Be brief."), *examples[3].prompt))
    config = SFTConfig(model_name_or_path=str(model), dataset_name="x", output_dir=str(tmp_path / "out"), max_steps=1)
    with pytest.raises(InputError, match=r"refuses it \(no system turns\).*\(row 30\)"):
        sft(config, [*examples[:3], bad])


def watched_config(model, folder, **settings):
    defaults = {"max_steps": 4, "save_steps": 3, "eval_steps": 1, "learning_rate": 1e-3, "lora_r": 4, "response_length": 8}
    defaults |= {"per_device_train_batch_size": 3, "num_sample_generations": 2, "output_dir": str(folder)}
    return SFTConfig(model_name_or_path=model, dataset_name="x", **{**defaults, **settings})


def scripted(values):
    remaining = list(values)
    return lambda vlm: {"my_f1": remaining.pop(0)}


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_sft_evaluates_and_writes_the_best_model(tiny_vlm_path, examples, tmp_path, tuning):
    """The best is that after step 2; a benchmark and fixed prompts beside it change no weight."""
    plain = watched_config(tiny_vlm_path, tmp_path / "plain", tuning=tuning, max_steps=2, eval_steps=None,
                           num_sample_generations=0, lr_scheduler_type="constant")  # fmt: skip
    until_2 = load_file(sft(plain, examples) / "model.safetensors")
    settings = {"eval_benchmarks": "scenes", "eval_limit": 2, "metric_for_best_model": "my_f1", "load_best_model_at_end": True}
    config = watched_config(tiny_vlm_path, tmp_path / "run", tuning=tuning, lr_scheduler_type="constant", **settings)
    best = load_file(sft(config, examples, scripted((0.5, 0.7, 0.9, 0.9, 0.6))) / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in until_2.items())
    finished = json.loads((tmp_path / "run/finished.json").read_text())
    assert finished["best"]["step"] == finished["policy_step"] == 2 and not (tmp_path / "run/best").exists()
    metrics = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in metrics if "eval/scenes/coverage" in row and "eval/my_f1" in row] == [0, 1, 2, 3, 4]
    samples = [row for row in read_jsonl(tmp_path / "run/samples.jsonl") if row["fixed"]]
    assert len({row["id"] for row in samples}) == 2 and sorted({row["step"] for row in samples}) == [0, 1, 2, 3, 4]
    assert all((tmp_path / "run" / row["images"][0]).is_file() for row in samples)  # scenes are in memory


def test_fixed_prompts_with_one_id_keep_their_own_answers(tiny_vlm_path, examples, tmp_path):
    rows = [dataclasses.replace(row, id="same") for row in examples[:2]]
    config = watched_config(tiny_vlm_path, tmp_path / "run", max_steps=1, eval_steps=None, num_sample_generations=2)
    sft(config, rows)
    first, second = (row for row in read_jsonl(tmp_path / "run/samples.jsonl") if row["step"] == 1)
    assert first["reference"] != second["reference"] and first["answer"] != second["answer"]


def test_sft_stops_at_a_warning_and_goes_on_without_it(tiny_vlm_path, examples, tmp_path):
    """The held-out metric falls from the first evaluation on, while the loss falls too."""
    settings = {"metric_for_best_model": "my_f1", "logging_steps": 1, "save_steps": 100, "max_steps": 6, "learning_rate": 3e-3}
    config = watched_config(tiny_vlm_path, tmp_path / "run", stop_on_warning="proxy_divergence", **settings)
    same_rows = [examples[0]] * 3
    with pytest.raises(InputError, match="stopped after step 4 at the warning proxy_divergence"):
        sft(config, same_rows, scripted((0.9, 0.8, 0.7, 0.6, 0.5)))
    assert [row["name"] for row in read_jsonl(tmp_path / "run/warnings.jsonl")] == ["proxy_divergence"]
    with pytest.raises(InputError, match="stopped after step 5"):  # another one, of the next evaluation
        sft(config, same_rows, scripted((0.4, 0.3)))
    sft(dataclasses.replace(config, stop_on_warning=None), same_rows, scripted((0.3,)))
    whole = watched_config(tiny_vlm_path, tmp_path / "whole", **settings)
    sft(whole, same_rows, scripted((0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)))
    for name in ("warnings.jsonl", "samples.jsonl", "finished.json"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()
    refused = watched_config(tiny_vlm_path, tmp_path / "refused", stop_on_warning="yes_rate", eval_steps=None)
    with pytest.raises(InputError, match="this stage samples none"):
        sft(refused, same_rows)
    assert not (tmp_path / "refused").exists()


def test_sft_ends_at_a_warning_with_the_best_model(tiny_vlm_path, examples, tmp_path):
    """Early stopping: with load_best_model_at_end the run is finished there, also after a kill."""
    settings = {"metric_for_best_model": "my_f1", "logging_steps": 1, "save_steps": 100, "max_steps": 6, "learning_rate": 3e-3}
    settings |= {"stop_on_warning": "proxy_divergence", "load_best_model_at_end": True, "num_sample_generations": 0}
    whole, killed = (watched_config(tiny_vlm_path, tmp_path / name, **settings) for name in ("whole", "killed"))
    values = (0.9, 0.8, 0.7, 0.6, 0.5)
    sft(whole, [examples[0]] * 3, scripted(values))
    finished = json.loads((tmp_path / "whole/finished.json").read_text())
    assert (finished["steps"], finished["policy_step"]) == (4, 0)
    assert finished["stopped"].startswith("ended after step 4 at the warning proxy_divergence (stop_on_warning): ")
    with stopped_after(4):
        sft(killed, [examples[0]] * 3, scripted(values))
    sft(killed, [examples[0]] * 3, scripted(()))
    assert json.loads((tmp_path / "killed/finished.json").read_text()) == finished
    models = [load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def test_sft_told_to_stop_saves_its_step_and_ends_like_an_unbroken_run(tiny_vlm_path, examples, tmp_path, monkeypatch):
    settings = {"max_steps": 3, "save_steps": 100, "per_device_train_batch_size": 2, "lora_r": 4}
    unbroken, stopped = (
        SFTConfig(model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path / name), **settings)
        for name in ("unbroken", "stopped")
    )
    log = Run.log

    def log_and_signal(self, step, *rest, **options):
        log(self, step, *rest, **options)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, stop_signals.handled():
        patch.setattr(Run, "log", log_and_signal)
        with pytest.raises(stop_signals.Stopped) as caught:
            sft(stopped, examples)
    assert caught.value.exit_code == 143 and not (tmp_path / "stopped" / ".lock").exists()
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step-000002"]
    weights = [(sft(config, examples) / "model.safetensors").read_bytes() for config in (unbroken, stopped)]
    assert weights[0] == weights[1]
    assert [row["step"] for row in read_jsonl(tmp_path / "stopped" / "metrics.jsonl")] == [1, 2, 3]
