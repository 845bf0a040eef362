"""Steps that are not finite: skipped, kept whole, counted, computed again; three stop a run."""

import json
import math
import re
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrlhf.cli import main
from mmrlhf.config import SFTConfig
from mmrlhf.engine.vllm_requests import EngineError
from mmrlhf.engine.vllm_server import RefusedError
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.finite import NotFiniteError, check_finite, is_finite
from mmrlhf.models.loading import load
from mmrlhf.models.lost_process import LostProcessError
from mmrlhf.records import InputError
from mmrlhf.replay import replay
from mmrlhf.reward_model import train_reward_model
from mmrlhf.sft import sft
from mmrlhf.training import losses, skipped_steps
from mmrlhf.training.replay_file import SavedStep, read_step
from mmrlhf.training.reward_model import losses as preference_losses
from tests.helpers.runs import stopped_after
from tests.helpers.stages import ppo_config, reward_config


def sft_config(model, output_dir, **settings):
    settings = {"per_device_train_batch_size": 2, "max_steps": 5, "lora_r": 4, "save_steps": 1, **settings}
    return SFTConfig(model_name_or_path=model, dataset_name="x", output_dir=str(output_dir), **settings)


def spoil_losses(monkeypatch, module, name, spoilt_calls):
    """Make a loss infinite at some of its calls, counted from 1 over the whole test."""
    real, num_calls = getattr(module, name), [0]

    def spoilt(*args, **kwargs):
        num_calls[0] += 1
        loss = real(*args, **kwargs)
        factor = math.inf if num_calls[0] in spoilt_calls else 1.0
        return (loss[0] * factor, *loss[1:]) if isinstance(loss, tuple) else loss * factor

    monkeypatch.setattr(module, name, spoilt)
    return num_calls


def weights_of(directory, file="model.safetensors"):
    return load_file(directory / file)


def assert_same_weights(first, second):
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_is_finite_finds_one_bad_value(value):
    tensor = torch.ones(100)
    assert is_finite(tensor) and is_finite(torch.full((100,), 3e38)) and is_finite(torch.tensor([1, 2]))
    tensor[17] = value
    assert not is_finite(tensor)
    with pytest.raises(InputError, match=r"^adapter x has values in w that are not finite \(NaN or infinity\): give another"):
        check_finite([("v", torch.ones(1)), ("w", tensor)], "adapter x")


def test_a_skipped_step_changes_nothing_and_is_kept_whole(tiny_vlm_path, examples, tmp_path, monkeypatch, capsys):
    """The weights are those of a run with a learning rate of zero in that step."""
    spoil_losses(monkeypatch, losses, "sft", {3})
    sft(sft_config(tiny_vlm_path, tmp_path / "run"), examples)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("skipped_steps") for row in rows] == [None, None, 1.0, 1.0, 1.0]
    assert [("loss" in row, "grad_norm" in row) for row in rows] == [(True, True)] * 2 + [(False, False)] + [(True, True)] * 2
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["skipped_steps"] == 1.0
    file = tmp_path / "run" / "skipped" / "step-000003.safetensors"
    warning = f"step 3: skipped_step: the loss is inf: the step is skipped, and kept in {file}"
    assert warning in capsys.readouterr().out and read_jsonl(tmp_path / "run" / "warnings.jsonl")[0]["step"] == 3
    saved = read_step(file)
    assert (saved.stage, saved.step, saved.numbers["loss"]) == ("sft", 3, math.inf)
    assert [image.read() for row in saved.rows for image in row.images]
    by_id = {example.id: example for example in examples}
    for row in saved.rows:
        original = by_id[row.id]
        assert replace(row, images=(), meta={}) == replace(original, images=(), meta={})
        assert [image.key for image in row.images] == [image.key for image in original.images]
    # Without the step that was spoilt: here the loss is finite, so the run's was not the batch's.
    assert not replay(str(file))
    assert "which is not as in the run" in capsys.readouterr().out


def test_a_step_with_an_infinite_gradient_is_skipped_and_replayed(tiny_vlm_path, examples, tmp_path, monkeypatch, capsys):
    """Its loss is finite. The replay is as in the run only while the gradient is infinite again."""
    real, num_calls = losses.sft, [0]

    def spoilt(*args, **kwargs):
        loss = real(*args, **kwargs)
        num_calls[0] += 1
        if num_calls[0] != 1:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr(losses, "sft", spoilt)
    sft(sft_config(tiny_vlm_path, tmp_path / "run", max_steps=2), examples)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("skipped_steps") for row in rows] == [None, 1.0]
    file = tmp_path / "run" / "skipped" / "step-000002.safetensors"
    assert read_step(file).problem.startswith("the gradient is not finite (norm ")
    assert replay(str(file)) and "the gradient is not finite, as in the run" in capsys.readouterr().out
    monkeypatch.setattr(losses, "sft", real)
    assert not replay(str(file))
    assert "and the gradient is finite, which is not as in the run" in capsys.readouterr().out


def test_a_run_with_skipped_steps_resumes_bit_identically(tiny_vlm_path, examples, tmp_path, monkeypatch):
    """Two steps in a row are skipped before the kill, and one later: that is no third."""
    spoil_losses(monkeypatch, losses, "sft", {2, 3, 5, 5 + 2, 5 + 3, 5 + 5})
    sft(sft_config(tiny_vlm_path, tmp_path / "whole"), examples)
    with stopped_after(step=3):
        sft(sft_config(tiny_vlm_path, tmp_path / "killed"), examples)
    (tmp_path / "killed" / "skipped").mkdir(exist_ok=True)
    (tmp_path / "killed" / "skipped" / "step-000005.safetensors").write_text("of a step after the checkpoint")
    sft(sft_config(tiny_vlm_path, tmp_path / "killed"), examples)
    assert_same_weights(*(weights_of(tmp_path / name / "model") for name in ("whole", "killed")))
    counts = [[row.get("skipped_steps") for row in read_jsonl(tmp_path / n / "metrics.jsonl")] for n in ("whole", "killed")]
    assert counts[0] == counts[1] == [None, 1, 2, 2, 3]
    kept = [{path.name: path.read_bytes() for path in (tmp_path / n / "skipped").iterdir()} for n in ("whole", "killed")]
    assert kept[0].keys() == kept[1].keys() == {f"step-{step:06d}.safetensors" for step in (2, 3, 5)}
    tensors = [{name: load_file(tmp_path / n / "skipped" / name) for name in kept[0]} for n in ("whole", "killed")]
    for name in kept[0]:
        assert_same_weights(tensors[0][name], tensors[1][name])


@pytest.fixture(scope="module")
def overflowing_model(tiny_vlm_path, tmp_path_factory):
    """A checkpoint whose weights are finite, and whose logits are not."""
    directory = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(tiny_vlm_path, directory)
    tensors = load_file(directory / "model.safetensors")
    name = "language_model.model.embed_tokens.weight"
    tensors[name] = tensors[name].float()
    tensors[name][100] = 3e38
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)


def test_three_skipped_steps_in_a_row_stop_the_run(overflowing_model, examples, tmp_path, capsys):
    with pytest.raises(InputError) as refused:
        sft(sft_config(overflowing_model, tmp_path / "run", num_sample_generations=0, save_steps=100), examples)
    file = tmp_path / "run" / "skipped" / "step-000003.safetensors"
    assert str(refused.value) == (
        "steps 1 to 3 were skipped in a row, the last because the loss is nan: see what is not finite with "
        f"`mmrlhf replay {file}`, and start over with a lower learning_rate or without that row"
    )
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]  # not lost with the run
    capsys.readouterr()
    assert main(["replay", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "step 3 of sft was skipped: the loss is nan" in printed and "rows: selection-0000" in printed
    assert "not finite: the output of lm_head first" in printed and "not finite: 28 of 28 gradients: " in printed
    assert printed.rstrip().endswith("computed again: the loss is nan, as in the run")


def test_a_shorter_run_stops_if_all_of_its_steps_are_skipped(overflowing_model, examples, tmp_path):
    """Without a step that trained, what it would write is the model that it began with."""
    for max_steps, steps in ((1, "step 1 was skipped"), (2, "steps 1 to 2 were skipped in a row, the last")):
        config = sft_config(overflowing_model, tmp_path / str(max_steps), num_sample_generations=0, max_steps=max_steps)
        with pytest.raises(InputError, match=f"^{steps} because the loss is nan"):
            sft(config, examples)
        assert not (tmp_path / str(max_steps) / "model").exists()


def test_a_replay_names_weights_that_are_not_finite(overflowing_model, examples, tmp_path, capsys):
    with pytest.raises(InputError):
        sft(sft_config(overflowing_model, tmp_path / "run", num_sample_generations=0), examples)
    file = tmp_path / "run" / "skipped" / "step-000001.safetensors"
    saved = read_step(file)
    name = next(iter(saved.weights))
    saved.weights[name][0, 0] = math.nan
    saved.write(file)
    capsys.readouterr()
    assert replay(str(file))
    assert f"not finite: 1 of 28 weights: {name} (1 of {saved.weights[name].numel()} values)" in capsys.readouterr().out


def test_reward_skips_counts_and_replays(tiny_vlm_path, pairs, tmp_path, monkeypatch, capsys):
    """With facts dropped and claims injected: the file has the rows as the model saw them."""
    settings = {"injected_claim_rate": 0.5, "fact_dropout": 0.5, "fact_noise": 0.3, "max_steps": 3}
    num_calls = spoil_losses(monkeypatch, preference_losses, "bradley_terry", set())
    whole = reward_config(tiny_vlm_path, tmp_path / "whole", **settings)
    train_reward_model(whole, pairs)
    calls_per_step = num_calls[0] // 3
    spoil_losses(monkeypatch, preference_losses, "bradley_terry", {calls_per_step + 1})
    train_reward_model(replace(whole, output_dir=str(tmp_path / "run")), pairs)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("skipped_steps") for row in rows] == [None, 1.0, 1.0] and "loss" not in rows[1]
    file = tmp_path / "run" / "skipped" / "step-000002.safetensors"
    saved = read_step(file)
    loss_of_step_2 = read_jsonl(tmp_path / "whole" / "metrics.jsonl")[1]["loss"]
    saved.numbers["loss"] = loss_of_step_2
    saved.write(file)
    monkeypatch.undo()
    capsys.readouterr()
    assert replay(str(file)), "the same rows, weights and settings give the loss of the run without the fault"
    assert re.search(rf"the loss is {loss_of_step_2:.5f}\d*, as in the run", capsys.readouterr().out)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not exist: give a file of the folder `skipped`"),
        (b"not safetensors", "is damaged, it cannot be read as a training step"),
        ("other", "holds no training step: give a file of the folder `skipped`"),
    ],
)
def test_replay_refuses_other_files(tmp_path, capsys, content, message):
    file = tmp_path / "step-000001.safetensors"
    if content == "other":
        save_file({"w": torch.ones(1)}, file)
    elif content:
        file.write_bytes(content)
    assert main(["replay", str(file)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("is_cause", [True, False])
def test_a_problem_of_one_process_ends_the_step_of_all(monkeypatch, is_cause):
    """Each of them knows whether the problem was its own."""
    monkeypatch.setattr(skipped_steps, "gather_object", lambda own: [None, (False, "term f returned nan")])
    attempt = skipped_steps.Attempt(1, ())
    with pytest.raises(NotFiniteError, match=r"^term f returned nan$"), skipped_steps.raise_on_all_processes(attempt):
        if is_cause:
            raise NotFiniteError("term f returned nan")
    assert attempt.is_cause == is_cause


@pytest.mark.parametrize(
    ("error", "others", "raised"),
    [
        (NotFiniteError("nan"), [None], (NotFiniteError, "nan")),
        (NotFiniteError("nan"), [(1, "the judge is away")], (InputError, "the judge is away")),
        (InputError("the judge is away"), [(0, "nan"), (2, "the server is gone")], (EngineError, "the server is gone")),
        (RefusedError(400, "http://x", "y"), [(0, "nan")], (EngineError, "http://x refuses a request (HTTP 400: y)")),
        (None, [(0, "nan"), (1, "the judge is away")], (InputError, "the judge is away")),
    ],
)
def test_all_processes_end_a_step_by_the_gravest_error(monkeypatch, error, others, raised):
    """Only if nothing else happened is the step skipped; else the run saves and stops."""
    monkeypatch.setattr(skipped_steps, "gather_object", lambda own: [*own, *others])
    attempt = skipped_steps.Attempt(1, ())
    with pytest.raises(InputError) as caught, skipped_steps.raise_on_all_processes(attempt):
        if error is not None:
            raise error
    assert type(caught.value) is raised[0] and raised[1] in str(caught.value)
    assert attempt.is_cause == isinstance(error, NotFiniteError)


def test_nothing_is_exchanged_once_a_process_is_lost(monkeypatch):
    monkeypatch.setattr(skipped_steps, "gather_object", lambda own: 1 / 0)
    with pytest.raises(LostProcessError), skipped_steps.raise_on_all_processes(skipped_steps.Attempt(1, ())):
        raise LostProcessError("another one has stopped")


def test_a_replay_of_another_processs_share_is_as_in_the_run(tiny_vlm_path, examples, tmp_path, capsys):
    """It was skipped for what another process had; here, answers and rewards are finite."""
    settings = {"response_length": 4, "reward_terms": "length=1", "advantage_estimator": "grpo"}
    config = asdict(ppo_config(tiny_vlm_path, None, tmp_path, **settings))
    adapters = Adapters(load(tiny_vlm_path))
    adapters.add("policy", 4, 32.0, 0)
    weights = Role(adapters, "policy").state_dict()
    for is_cause in (False, True):
        file = tmp_path / "step-000001-rank0.safetensors"
        problem, fingerprint = "term f returned nan", adapters.vlm.fingerprint
        SavedStep("ppo", 1, problem, config, fingerprint, examples[:1], {}, weights, {}, is_cause).write(file)
        assert replay(str(file)) != is_cause
        printed = capsys.readouterr().out
        assert ("f returned nan (the cause was in another process: see its file in the same folder)" in printed) != is_cause
        assert printed.endswith(f"are finite, {'which is not' if is_cause else ''} as in the run\n".replace("  ", " "))


def test_a_replay_needs_the_base_of_the_run(tiny_vlm_path, examples, tmp_path, capsys):
    config = asdict(sft_config(tiny_vlm_path, tmp_path))
    file = tmp_path / "step-000001.safetensors"
    SavedStep("sft", 1, "the loss is nan", config, "of another base", examples[:1], {}, {}, {}).write(file)
    assert main(["replay", str(file), "--model_name_or_path", tiny_vlm_path]) == 2
    assert f"is of a run on other weights than {tiny_vlm_path} holds: give its base" in capsys.readouterr().err
