"""A run that is called with other inputs than before is refused, and the inputs are named."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mmrlhf.datasets import Records, read_examples
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import InputError
from mmrlhf.training import run_inputs
from mmrlhf.training.run import Run
from tests.helpers.runs import FakeConfig, open_run


@dataclass(frozen=True)
class FakeConfigWithData(FakeConfig):
    dataset_name: str = "x"
    image_folder: str | None = None


@dataclass(frozen=True)
class FakeConfigWithHeldOut(FakeConfigWithData):
    eval_dataset_name: str | None = None


@dataclass(frozen=True)
class FakeConfigWithPTX(FakeConfigWithData):
    ptx_dataset_name: str | None = None


@dataclass(frozen=True)
class FakeConfigWithBatch(FakeConfigWithData):
    per_device_train_batch_size: int = 8


@dataclass(frozen=True)
class FakeConfigWithLaterSetting(FakeConfig):
    load_best_model_at_end: bool = False


@dataclass(frozen=True)
class FakeConfigWithRenamedSetting(FakeConfig):
    allow_worse_reward_model: bool = False


@dataclass(frozen=True)
class FakeConfigWithTerms(FakeConfig):
    reward_terms: str = ""


def rows_of(dataset: Path, image_folder: Path) -> Records:
    return read_examples(str(dataset), "train", str(image_folder))


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with a data file and its image."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text('{"prompt": "What is here?", "images": ["a.png"]}\n')
    (tmp_path / "data" / "a.png").write_bytes(b"a picture")
    return tmp_path / "data"


def open_run_on(data: Path, path: Path, num_processes: int = 1) -> Run:
    config = FakeConfigWithData(dataset_name=str(data / "rows.jsonl"), image_folder=str(data))
    run = Run(str(path), config, num_processes=num_processes)
    run.claim_rows(rows_of(data / "rows.jsonl", data))
    return run


def test_run_refuses_training_data_as_held_out(data, tmp_path):
    rows, copy, other = (data / name for name in ("rows.jsonl", "copy.jsonl", "other.jsonl"))
    copy.write_bytes(rows.read_bytes())
    other.write_bytes(rows.read_bytes() * 2)
    for path in (rows, copy):
        with pytest.raises(InputError, match="has the rows that are trained on"):
            Run(str(tmp_path / "run"), FakeConfigWithHeldOut(dataset_name=str(rows), eval_dataset_name=str(path)))
    Run(str(tmp_path / "run"), FakeConfigWithHeldOut(dataset_name=str(rows), eval_dataset_name=str(other)))


@pytest.mark.parametrize("is_finished", [False, True])
def test_run_refuses_other_data_and_images_by_name(data, tmp_path, is_finished):
    run = open_run_on(data, tmp_path / "run")
    run.log(1, {"loss": 1.0})
    if is_finished:
        run.finish({})
    assert open_run_on(data, tmp_path / "run").is_finished == is_finished
    (data / "a.png").write_bytes(b"a pictura")
    with pytest.raises(InputError, match=r"a run with other inputs, images \(has changed since\): give"):
        open_run_on(data, tmp_path / "run")
    (data / "a.png").write_bytes(b"a picture")
    rows = (data / "rows.jsonl").read_text()
    (data / "rows.jsonl").write_text(rows.replace("here", "that"))
    with pytest.raises(InputError, match=r"other inputs, dataset_name \(.*rows.jsonl has changed since\): give"):
        open_run_on(data, tmp_path / "run")
    (data / "rows.jsonl").write_text(rows)
    data.rename(tmp_path / "moved")
    assert open_run_on(tmp_path / "moved", tmp_path / "run").is_finished == is_finished


def test_run_of_another_stage_is_named(tmp_path):
    open_run(tmp_path).finish({})
    with pytest.raises(
        InputError, match=rf"{re.escape(str(tmp_path))} holds a run of sft: give another --output_dir, or remove this one"
    ):
        Run(str(tmp_path), FakeConfigWithTerms(reward_terms="length=1"))


def test_run_refuses_another_number_of_processes(data, tmp_path):
    open_run_on(data, tmp_path / "run", num_processes=2).begin()
    with pytest.raises(InputError, match=r"num_processes \(was 2, now 1\)"):
        open_run_on(data, tmp_path / "run")


# ---- allow_change --------------------------------------------------------------------------------


def start(path: Path, **settings: object) -> None:
    """Start a run that has a checkpoint after step 5."""
    open_run(path, **settings).save_checkpoint(5, {"w": torch.ones(1)}, {})


def go_on(run: Run) -> None:
    """Resume a run, and write its settings, as its first step does."""
    run.resume()
    run.begin()


def test_a_change_that_a_stage_refuses_leaves_the_settings_as_they_were(tmp_path):
    """Stages look at a checkpoint after `resume`, and may find that it does not fit."""
    start(tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    run = open_run(tmp_path, learning_rate=2e-5, allow_change="learning_rate")
    assert run.resume() is not None and run.changed_settings == {"learning_rate"}
    assert (tmp_path / "config.yaml").read_text() == before and not (tmp_path / "changes.jsonl").exists()
    assert open_run(tmp_path).changed_settings == set()


def test_allowed_change_continues_is_recorded_and_holds_from_then_on(tmp_path, capsys):
    start(tmp_path)
    go_on(open_run(tmp_path, learning_rate=2e-5, allow_change="learning_rate, facts"))
    assert capsys.readouterr().out.startswith("note: learning_rate (was 1e-05, now 2e-05) (--allow_change)\nresuming")
    assert read_jsonl(tmp_path / "changes.jsonl") == [{"step": 5, "name": "learning_rate", "there": 1e-05, "now": 2e-05}]
    open_run(tmp_path, learning_rate=2e-5).resume()
    with pytest.raises(InputError, match=r"learning_rate \(was 2e-05, now 1e-05\)"):
        open_run(tmp_path)
    assert len(read_jsonl(tmp_path / "changes.jsonl")) == 1


def test_all_differences_are_listed_and_only_named_ones_may_change(tmp_path):
    start(tmp_path)
    changed = {"learning_rate": 2e-5, "max_steps": 9, "facts": "given", "seed": 3}
    with pytest.raises(InputError) as caught:
        open_run(tmp_path, **changed, allow_change="max_steps,learning_rate")
    message = str(caught.value)
    assert all(f"{name} (was " in message for name in changed)
    assert message.endswith("(seed determines the rows of a step and cannot change along the way)")
    with pytest.raises(InputError, match=r", or continue it with --allow_change learning_rate,facts$"):
        open_run(tmp_path, learning_rate=2e-5, facts="given", allow_change="learning_rate")
    assert not (tmp_path / "changes.jsonl").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("max_length", "allow_change max_length: it determines the rows of a step, so it cannot change along the way"),
        ("learning_rat", "allow_change learning_rat is not a setting: did you mean learning_rate?"),
        (
            "max_steps,seed",
            "allow_change seed: it determines the rows of a step, so it cannot change along the way: start a new run",
        ),
    ],
)
def test_allow_change_refuses_what_is_no_setting_or_fixed(tmp_path, names, message):
    with pytest.raises(InputError, match=re.escape(message)):
        open_run(tmp_path, allow_change=names)
    assert not (tmp_path / "config.yaml").exists()


def test_a_finished_run_cannot_change(tmp_path):
    open_run(tmp_path).finish({})
    with pytest.raises(InputError, match=r"learning_rate .*: give another --output_dir or remove this one$"):
        open_run(tmp_path, learning_rate=2e-5, allow_change="learning_rate")


def test_refused_inputs_leave_the_settings_as_they_were(data, tmp_path):
    open_run_on(data, tmp_path / "run").save_checkpoint(5, {"w": torch.ones(1)}, {})
    before = (tmp_path / "run/config.yaml").read_text()
    (data / "a.png").write_bytes(b"a pictura")
    config = FakeConfigWithData(
        dataset_name=str(data / "rows.jsonl"), image_folder=str(data), max_steps=3, allow_change="max_steps"
    )
    run = Run(str(tmp_path / "run"), config)
    with pytest.raises(InputError, match="images"):
        run.claim_rows(rows_of(data / "rows.jsonl", data))
    assert (tmp_path / "run/config.yaml").read_text() == before


def test_processes_may_change_if_the_global_batch_does_not(data, tmp_path):
    def open_with(num_processes: int, batch_size: int, allow_change: str | None = None) -> Run:
        config = FakeConfigWithBatch(
            dataset_name=str(data / "rows.jsonl"), per_device_train_batch_size=batch_size, allow_change=allow_change
        )
        return Run(str(tmp_path / "run"), config, num_processes=num_processes)

    both = "num_processes,per_device_train_batch_size"
    open_with(2, 4).save_checkpoint(5, {"w": torch.ones(1)}, {})
    with pytest.raises(
        InputError,
        match=r"num_processes .was 2, now 1.* determines the rows of a step .*; a step had 8 rows and would have 4: choose",
    ):
        open_with(1, 4, both)
    with pytest.raises(
        InputError,
        match=r"per_device_train_batch_size \(was 4, now 8\).*continue it with --allow_change per_device\w+,num_processes$",
    ):
        open_with(1, 8)
    go_on(open_with(1, 8, both))
    assert json.loads((tmp_path / "run/inputs.json").read_text())["inputs"]["num_processes"] == 1
    assert {row["name"]: row["now"] for row in read_jsonl(tmp_path / "run/changes.jsonl")} == {
        "num_processes": 1, "per_device_train_batch_size": 8,
    }  # fmt: skip
    open_with(1, 8).resume()


@pytest.mark.parametrize("name", ["mine.py", "my own.py", "a=b.py"])
def test_a_corrected_reward_function_counts_as_reward_terms(tmp_path, name):
    function_file = tmp_path / name

    def open_with(allow_change: str | None = None) -> Run:
        terms = f"{function_file}:brief=1"
        return Run(str(tmp_path / "run"), FakeConfigWithTerms(reward_terms=terms, allow_change=allow_change))

    function_file.write_text("def brief(samples): return [0.0] * len(samples)\n")
    open_with().save_checkpoint(5, {"w": torch.ones(1)}, {})
    function_file.write_text("def brief(samples): return [1.0] * len(samples)\n")
    with pytest.raises(InputError, match=r"reward function file .*\.py has changed since\): .* --allow_change reward_terms$"):
        open_with()
    go_on(open_with("reward_terms"))
    open_with().resume()


def test_other_ptx_rows_count_as_ptx_dataset_name(data, tmp_path):
    def open_with(**settings: str) -> Run:
        config = FakeConfigWithPTX(dataset_name="prompts", ptx_dataset_name=str(data / "rows.jsonl"), **settings)
        run = Run(str(tmp_path / "run"), config)
        run.claim_rows(rows_of(data / "rows.jsonl", data), "ptx")
        return run

    open_with().save_checkpoint(5, {"w": torch.ones(1)}, {})
    (data / "a.png").write_bytes(b"a pictura")
    with pytest.raises(InputError, match=r"ptx images .* --allow_change ptx_dataset_name$"):
        open_with()
    open_with(allow_change="ptx_dataset_name").resume()


def test_run_refuses_fewer_steps_than_it_has_taken(tmp_path):
    start(tmp_path)
    run = open_run(tmp_path, max_steps=3, allow_change="max_steps")
    with pytest.raises(InputError, match=r"has a checkpoint after step 5, and these settings end after step 3: give a larger"):
        run.resume(3)
    open_run(tmp_path).resume(10)  # the settings are those of before


# ---- rows in memory, versions --------------------------------------------------------------------


def test_run_refuses_other_rows_in_memory(examples, tmp_path):
    run = open_run(tmp_path)
    run.claim_rows(examples[:3])
    run.log(1, {"loss": 1.0})
    open_run(tmp_path).claim_rows(examples[:3])
    with pytest.raises(InputError, match=r"other inputs, rows \(has changed since\)"):
        open_run(tmp_path).claim_rows(examples[:2])


class UnbuiltRows(Sequence):
    def __len__(self):
        raise AssertionError("built")

    __getitem__ = __len__


def test_finished_run_builds_no_rows_that_are_built_on_demand(examples, tmp_path):
    run = open_run(tmp_path)
    run.claim_rows(examples[:3])
    run.finish({})
    open_run(tmp_path).claim_rows(UnbuiltRows())


def test_run_of_an_earlier_version_goes_on_with_a_note(data, tmp_path, capsys):
    open_run_on(data, tmp_path / "run").begin()
    (tmp_path / "run" / "inputs.json").unlink()
    go_on(open_run_on(data, tmp_path / "run"))
    assert "(no inputs.json): only settings are compared" in capsys.readouterr().out
    assert "images" in json.loads((tmp_path / "run" / "inputs.json").read_text())["inputs"]


def test_run_of_a_version_without_a_setting_goes_on_with_its_default_alone(tmp_path):
    open_run(tmp_path).begin()
    with pytest.raises(InputError, match=r"load_best_model_at_end \(was False, now True\)"):
        Run(str(tmp_path), FakeConfigWithLaterSetting(load_best_model_at_end=True))
    Run(str(tmp_path), FakeConfigWithLaterSetting())


def test_run_with_a_settings_former_name_goes_on_under_the_new_one(tmp_path):
    settings = tmp_path / "config.yaml"
    Run(str(tmp_path), FakeConfigWithRenamedSetting(allow_worse_reward_model=True)).save_checkpoint(5, {"w": torch.ones(1)}, {})
    settings.write_text(settings.read_text().replace("allow_worse_reward_model: true", "allow_worse_judge: true"))
    with pytest.raises(InputError, match=r"allow_worse_reward_model \(was True, now False\)"):
        Run(str(tmp_path), FakeConfigWithRenamedSetting())
    with pytest.raises(InputError, match=r"^allow_change: `allow_worse_judge` was renamed: use `allow_worse_reward_model`$"):
        Run(str(tmp_path), FakeConfigWithRenamedSetting(allow_change="allow_worse_judge"))
    run = Run(str(tmp_path), FakeConfigWithRenamedSetting(allow_worse_reward_model=True))
    assert run.resume()[0] == 5
    run.begin()
    assert "allow_worse_reward_model: true" in settings.read_text() and "allow_worse_judge" not in settings.read_text()


def test_run_says_other_versions_when_it_resumes(tmp_path, monkeypatch, capsys):
    run = open_run(tmp_path)
    monkeypatch.setattr(run_inputs, "package_versions", lambda: {"torch": "2.13.0", "peft": "0.21"})
    run.save_checkpoint(1, {"w": torch.ones(1)}, {})
    monkeypatch.setattr(run_inputs, "package_versions", lambda: {"torch": "2.14.0", "peft": "0.21"})
    open_run(tmp_path).resume()
    assert "after step 1, which began with other versions: torch (was 2.13.0, now 2.14.0)\n" in capsys.readouterr().out


def test_run_says_that_it_is_finished(tmp_path, capsys):
    open_run(tmp_path).finish({})
    assert not (tmp_path / ".lock").exists()
    open_run(tmp_path).print_finished(tmp_path / "model")
    assert capsys.readouterr().out.endswith(f"{tmp_path} is finished, nothing to do: the result is {tmp_path / 'model'}\n")
    assert not (tmp_path / ".lock").exists()
