"""The run directory: leftovers of killed runs, and exact resumption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mmrlhf.files import stop_signals
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import InputError
from mmrlhf.training import checkpoint_files
from mmrlhf.training.optim import load_optimizer_state_dict, optimizer_state_dict
from mmrlhf.training.run import Run
from tests.helpers.runs import FakeConfig, open_run

# ---- configuration -------------------------------------------------------------------------------


def test_run_refuses_changed_settings_by_name_and_value(tmp_path):
    open_run(tmp_path).begin()
    with pytest.raises(InputError) as caught:
        open_run(tmp_path, learning_rate=2e-5, facts="given")
    message = str(caught.value)
    assert "learning_rate (was 1e-05, now 2e-05), facts (was none, now given)" in message
    assert message.endswith("remove this one, or continue it with --allow_change learning_rate,facts")


def test_run_accepts_resumable_changes(tmp_path):
    open_run(tmp_path).begin()
    open_run(tmp_path, logging_steps=1, output_dir="./here", micro_batch_tokens=512).resume()
    assert "logging_steps: 1" in (tmp_path / "config.yaml").read_text()


def test_run_refuses_setting_unknown_to_the_directory(tmp_path):
    open_run(tmp_path).begin()
    text = (tmp_path / "config.yaml").read_text().replace("max_steps", "num_steps")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"max_steps \(was not set, now 10\), num_steps \(was 10, now not set\)"):
        open_run(tmp_path)


def test_run_refuses_unusable_output_dir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output_dir"):
        open_run(tmp_path / "file" / "run")


def test_run_writes_nothing_before_the_first_step(tmp_path):
    run = open_run(tmp_path / "new" / "run")
    assert run.resume() is None
    run.log(0, {"eval/utility": 1.0})
    run.log_samples(0, [{"answer": "a"}])
    assert [path.name for path in run.path.iterdir()] == [".lock"]
    run.log(1, {"loss": 2.0})
    assert [row["step"] for row in read_jsonl(run.path / "metrics.jsonl")] == [0, 1]
    names = sorted(path.name for path in run.path.iterdir())
    assert names == [".lock", "config.yaml", "inputs.json", "metrics.jsonl", "samples.jsonl"]


# ---- damaged runs --------------------------------------------------------------------------------


def test_resume_notices_one_flipped_byte(tmp_path, capsys):
    run = open_run(tmp_path)
    for step in (5, 10):
        run.save_checkpoint(step, {"w": torch.full((100,), float(step))}, {"step": step})
    newest = tmp_path / "checkpoints" / "step-000010" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-10] ^= 1
    newest.write_bytes(content)
    assert open_run(tmp_path).resume()[0] == 5
    assert "step-000010 does not load (its files are not as they were written)" in capsys.readouterr().out.replace("\n", "")


def test_run_answers_damaged_files_with_one_sentence(tmp_path):
    run = open_run(tmp_path)
    run.log(1, {"loss": 1.0})
    (tmp_path / "checkpoints" / "step-final").mkdir(parents=True)  # not a checkpoint
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 2.0}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl row 2 has no `step`"):
        open_run(tmp_path).resume()
    for content in ('{"ac', "[1]", "["):
        (tmp_path / "finished.json").write_text(content)
        with pytest.raises(InputError, match=r"finished.json is damaged"):
            _ = open_run(tmp_path).is_finished
    (tmp_path / "finished.json").unlink()
    (tmp_path / "inputs.json").write_text("[]")
    with pytest.raises(InputError, match=r"inputs.json is damaged"):
        open_run(tmp_path)


# ---- full disks and removed directories ----------------------------------------------------------


def fail_on_full_disk(*_):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path, monkeypatch):
    run = open_run(tmp_path, save_total_limit=1)
    run.save_checkpoint(5, {"w": torch.ones(3)}, {})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "save_file", fail_on_full_disk)
        with pytest.raises(InputError) as caught:
            run.save_checkpoint(10, {"w": torch.ones(3)}, {})
    assert str(caught.value) == (
        f"the checkpoint after step 10 is not saved: {tmp_path} is on a full disk: make room; "
        "the same command continues from the checkpoint after step 5"
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000005"]
    assert open_run(tmp_path, save_total_limit=1).resume()[0] == 5


def test_full_disk_before_the_first_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "save_file", fail_on_full_disk)
    with pytest.raises(InputError, match=r"make room; the same command continues from the first step$"):
        open_run(tmp_path).save_checkpoint(10, {"w": torch.ones(3)}, {})


@pytest.mark.parametrize("is_replaced", [False, True])
def test_run_stops_if_its_directory_is_removed(tmp_path, is_replaced):
    run = open_run(tmp_path / "run")
    run.log(1, {"loss": 1.0})
    shutil.rmtree(run.path)
    if is_replaced:  # by another command that has started there
        (run.path).mkdir()
        (run.path / ".lock").write_text("{}")
    for write in (
        lambda: run.log(2, {"loss": 1.0}),
        lambda: run.save_checkpoint(2, {"w": torch.ones(1)}, {}),
        lambda: run.finish({}),
    ):
        with pytest.raises(InputError, match=r"run was removed or replaced while this command was writing to it, so it stops"):
            write()
    assert [path.name for path in tmp_path.rglob("*")] == (["run", ".lock"] if is_replaced else [])


# ---- signals -------------------------------------------------------------------------------------


def test_signal_waits_for_the_end_of_the_step_and_saves_it(tmp_path, capfd):
    with stop_signals.handled():
        run = open_run(tmp_path, save_steps=2)
        assert not run.end_step(1, is_last=False)
        os.kill(os.getpid(), signal.SIGTERM)  # in step 2
        assert run.end_step(2, is_last=False)
        with pytest.raises(stop_signals.Stopped) as caught:
            run.save_checkpoint(2, {"w": torch.ones(1)}, {"step": 2})
    assert caught.value.exit_code == 143 and open_run(tmp_path).resume()[0] == 2
    captured = capfd.readouterr()
    assert captured.err == "SIGTERM: stopping after this step, with a checkpoint; a second signal stops at once\n"
    assert captured.out.startswith("saved after step 2, because of SIGTERM\n")


def test_signal_stops_at_once_where_nothing_is_unsaved_and_the_second_time(tmp_path, monkeypatch):
    monkeypatch.setattr(stop_signals, "REPEAT_SECONDS", 0)
    with stop_signals.handled():
        run = open_run(tmp_path, save_steps=2)
        with pytest.raises(stop_signals.Stopped):
            os.kill(os.getpid(), signal.SIGHUP)  # before the first step
        assert run.end_step(2, is_last=False)
        run.save_checkpoint(2, {"w": torch.ones(1)}, {})
        with pytest.raises(stop_signals.Stopped):
            os.kill(os.getpid(), signal.SIGHUP)  # in step 3, and a checkpoint has step 2
        assert not run.end_step(3, is_last=False)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(stop_signals.Stopped) as caught:
            os.kill(os.getpid(), signal.SIGHUP)
        assert caught.value.exit_code == 129


def test_signal_while_a_checkpoint_is_written_stops_after_it(tmp_path, monkeypatch):
    save = checkpoint_files.save
    monkeypatch.setattr(checkpoint_files, "save", lambda *rest: (os.kill(os.getpid(), signal.SIGINT), save(*rest)))
    with stop_signals.handled():
        run = open_run(tmp_path, save_steps=1)
        assert run.end_step(1, is_last=True)
        with pytest.raises(stop_signals.Stopped) as caught:
            run.save_checkpoint(1, {"w": torch.ones(1)}, {})
    assert caught.value.exit_code == 130 and open_run(tmp_path).resume()[0] == 1


# ---- resuming after a kill -----------------------------------------------------------------------


def test_resume_truncates_logs_to_the_checkpoint(tmp_path):
    run = open_run(tmp_path)
    assert run.resume() is None
    for step in range(1, 8):
        run.log(step, {"loss": float(step)})
        run.log_samples(step, [{"answer": "a"}, {"answer": "b"}])
        if step == 5:
            run.save_checkpoint(step, {"w": torch.tensor([1.5])}, {"seen": 40})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    step, tensors, state = open_run(tmp_path).resume()
    assert (step, tensors["w"].tolist(), state) == (5, [1.5], {"seen": 40})
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert len(read_jsonl(tmp_path / "samples.jsonl")) == 10


def test_resume_without_checkpoint_clears_logs(tmp_path):
    run = open_run(tmp_path)
    run.log(1, {"loss": 1.0})
    run.log_samples(1, [{"answer": "a"}])
    assert open_run(tmp_path).resume() is None
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"" == (tmp_path / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_save_checkpoint_keeps_the_newest(tmp_path, limit):
    run = open_run(tmp_path, save_total_limit=limit)
    for step in (5, 10, 1_000_000, 15_000_000):
        run.save_checkpoint(step, {"w": torch.ones(1)}, {})
    kept = ["step-000010", "step-1000000", "step-15000000"][-limit:]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == kept


def test_resume_skips_broken_checkpoint_and_next_save_replaces_it(tmp_path, capsys):
    run = open_run(tmp_path)
    for step in (5, 10):
        run.save_checkpoint(step, {"w": torch.full((100,), float(step))}, {"step": step})
    newest = tmp_path / "checkpoints" / "step-000010" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-40])
    run = open_run(tmp_path)
    step, tensors, state = run.resume()
    assert (step, tensors["w"][0].item(), state) == (5, 5.0, {"step": 5})
    assert "step-000010 does not load" in capsys.readouterr().out.replace("\n", "")
    run.save_checkpoint(7, {"w": torch.ones(1)}, {})  # the newest two are 5 and 7, not the broken 10
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000005", "step-000007"]
    (tmp_path / "checkpoints" / "step-000007" / "state.json").write_text('{"st')
    assert open_run(tmp_path).resume()[0] == 5


def test_resume_removes_leftovers_of_a_killed_run(tmp_path):
    open_run(tmp_path).save_checkpoint(5, {"w": torch.ones(1)}, {})
    (tmp_path / "checkpoints" / ".step-000006.unfinished").mkdir()
    (tmp_path / "checkpoints" / ".step-000006.unfinished" / "state.safetensors").write_bytes(b"half")
    (tmp_path / ".finished.json.4711").write_text('{"ac')
    run = open_run(tmp_path)
    assert run.finished is None and run.resume()[0] == 5
    assert [p.name for p in tmp_path.rglob(".*")] == [".lock"]


def test_resume_puts_back_a_folder_that_a_killed_run_had_set_aside(tmp_path):
    """Here the same checkpoint was being saved again, and the best policy replaced."""
    open_run(tmp_path).save_checkpoint(5, {"w": torch.ones(1)}, {})
    (tmp_path / "checkpoints" / "step-000005").rename(tmp_path / "checkpoints" / ".step-000005.replaced")
    for name, content in ((".best.replaced", "old"), (".best.unfinished", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.json").write_text(content)
    assert open_run(tmp_path).resume()[0] == 5
    assert (tmp_path / "best" / "best.json").read_text() == "old"
    assert [p.name for p in tmp_path.rglob(".*")] == [".lock"]


KILLED_SCRIPT = """
import os, signal, sys, torch
from dataclasses import dataclass
from mmrlhf.files import atomic as module
from tests.helpers.runs import open_run
from pathlib import Path

run = open_run(Path(sys.argv[1]))
run.resume()
for step in range(1, 5):
    run.log(step, {"loss": float(step)})
    if step == 4:  # dies when the second checkpoint is written but not renamed yet
        module.fsync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    if step % 2 == 0:
        run.save_checkpoint(step, {"w": torch.full((3,), float(step))}, {"step": step})
"""


def test_resume_after_kill_in_the_middle_of_a_checkpoint(tmp_path):
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_SCRIPT, str(tmp_path)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 4
    assert any(p.name.startswith(".step-000004") for p in (tmp_path / "checkpoints").iterdir())
    step, tensors, state = open_run(tmp_path).resume()
    assert (step, tensors["w"].tolist(), state) == (2, [2.0, 2.0, 2.0], {"step": 2})
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]


def new_model() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3) / 10)
        model.bias.zero_()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.02}]
    return model, torch.optim.AdamW(groups, lr=0.1, weight_decay=0.01)


def take_steps(model: torch.nn.Linear, optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()


def test_resume_is_bit_exact(tmp_path):
    uninterrupted, optimizer = new_model()
    take_steps(uninterrupted, optimizer, range(10))

    first, optimizer = new_model()
    take_steps(first, optimizer, range(5))
    tensors = {f"model.{k}": v for k, v in first.state_dict().items()} | optimizer_state_dict(optimizer)
    assert {"optim.0.exp_avg", "optim.0.exp_avg_sq", "optim.0.step", "optim.1.step"} < set(tensors)
    open_run(tmp_path).save_checkpoint(5, tensors, {})

    second, optimizer = new_model()
    step, tensors, _ = open_run(tmp_path).resume()
    second.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    load_optimizer_state_dict(optimizer, tensors)
    before = tensors["optim.0.exp_avg"].clone()
    take_steps(second, optimizer, range(step, 10))
    assert torch.equal(second.weight, uninterrupted.weight) and torch.equal(second.bias, uninterrupted.bias)
    assert torch.equal(tensors["optim.0.exp_avg"], before)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]


def test_load_optimizer_state_dict_refuses_other_parameters():
    model, optimizer = new_model()
    take_steps(model, optimizer, range(1))
    tensors = optimizer_state_dict(optimizer)
    with pytest.raises(InputError, match=r"has optim\.1\..*, and the optimiser 1 parameters: remove the checkpoints"):
        load_optimizer_state_dict(torch.optim.AdamW([model.weight]), tensors)
    with pytest.raises(InputError, match=r"shape \(2, 3\), and its parameter \(2,\)"):
        load_optimizer_state_dict(torch.optim.AdamW([model.bias, model.weight]), tensors)


# ---- finished runs -------------------------------------------------------------------------------


def test_finish_leaves_result_and_no_checkpoints(tmp_path):
    run = open_run(tmp_path)
    run.resume()
    run.log(1, {"loss": 1.0})
    run.save_checkpoint(1, {"w": torch.ones(1)}, {})
    run.finish({"accuracy": torch.tensor(0.5), "kl": float("nan")})
    assert open_run(tmp_path).finished == {"accuracy": 0.5, "kl": None}
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(AssertionError):  # resuming would cut the lines of a finished run
        run.resume()
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


# ---- logging and printing ------------------------------------------------------------------------


def test_log_writes_null_for_non_finite_metrics(tmp_path, capsys):
    run = open_run(tmp_path)
    metrics = {"nan": float("nan"), "inf": torch.tensor(float("inf")), "half": torch.tensor(0.5), "count": 3}
    run.log(1, metrics, show=True)
    line = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {k: row[k] for k in ("step", "nan", "inf", "half", "count")} == {
        "step": 1, "nan": None, "inf": None, "half": 0.5, "count": 3,
    }  # fmt: skip
    assert capsys.readouterr().out == "step 1  nan none  inf none  half 0.5  count 3\n"


def test_log_samples_keeps_answers_whole_and_prints_them_escaped(tmp_path, capsys):
    run = open_run(tmp_path)
    answer = "A [red] star.\n\x1b[2J" + "x" * 500
    run.log_samples(3, [{"id": "a", "answer": answer, "reward": 1.25, "terms": {"rm": 2.0, "kl": -0.75}}])
    assert read_jsonl(tmp_path / "samples.jsonl")[0]["answer"] == answer
    printed = capsys.readouterr().out
    assert "A [red] star." in printed and "\x1b" not in printed and len(printed) < 450
    assert "reward 1.25  terms.rm 2  terms.kl -0.75" in printed


def test_progress_without_terminal_prints_every_tenth(tmp_path, capsys):
    with open_run(tmp_path).progress(total=100, start=55, description="ppo") as bar:
        for _ in range(45):
            bar.advance(loss=0.25)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["60/100", "70/100", "80/100", "90/100", "100/100"]
    assert lines[-1] == "ppo 100/100  elapsed 0:00, ETA 0:00  loss 0.25"


def test_run_other_processes_read_and_neither_write_nor_print(tmp_path, capsys):
    other = Run(str(tmp_path / "run"), FakeConfig(), main_process=False)
    assert not (tmp_path / "run").exists()
    assert other.end_step(100, is_last=False) and not other.end_step(101, is_last=False)
    main = open_run(tmp_path / "run")
    main.log(7, {"loss": 1.0})
    main.save_checkpoint(5, {"w": torch.ones(1)}, {"seen": 1})
    other.log(6, {"loss": 1.0}, show=True)
    other.log_samples(6, [{"answer": "a"}])
    other.save_checkpoint(6, {"w": torch.ones(1)}, {})
    with other.progress(1, 0, "ppo") as bar:
        bar.advance()
    assert other.resume()[0] == 5
    other.finish({})
    assert main.finished is None and capsys.readouterr().out == ""
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [7]


def test_print_row_prints_aligned_columns_with_a_header(tmp_path, capsys):
    run = Run(str(tmp_path / "out"), FakeConfig())
    for step in range(1, 22):
        run.print_row(step, {"reward": step / 8, "KL": None, "policy loss": -0.25})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "reward", "policy", "loss"]  # KL had no value at first
    assert lines[1].split() == ["1", "0.125", "-0.25"] and len({len(line) for line in lines}) == 1
    assert [number for number, line in enumerate(lines) if "reward" in line] == [0, 21]  # the header comes again


def test_print_row_says_that_a_step_was_skipped(tmp_path, capsys):
    run = Run(str(tmp_path / "out"), FakeConfig())
    run.print_row(1, {})
    run.print_row(2, {"reward": 0.5})
    run.print_row(3, {})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["1", "skipped"],
        ["step", "reward"],
        ["2", "0.5"],
        ["3", "skipped"],
    ]
