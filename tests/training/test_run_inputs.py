"""A run that is called with other inputs than before is refused, and the inputs are named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mmrlhf.datasets import Records, read_examples
from mmrlhf.records import InputError
from mmrlhf.training import run as run_module
from mmrlhf.training.run import Run
from tests.helpers.runs import FakeConfig, open_run


@dataclass(frozen=True)
class FakeConfigWithData(FakeConfig):
    dataset_name: str = "x"
    image_folder: str | None = None


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


def test_run_refuses_another_number_of_processes(data, tmp_path):
    open_run_on(data, tmp_path / "run", num_processes=2).begin()
    with pytest.raises(InputError, match=r"num_processes \(there 2, now 1\)"):
        open_run_on(data, tmp_path / "run")


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
    open_run_on(data, tmp_path / "run")
    assert "(no inputs.json): only settings are compared" in capsys.readouterr().out
    assert "images" in json.loads((tmp_path / "run" / "inputs.json").read_text())["inputs"]


def test_run_says_other_versions_when_it_resumes(tmp_path, monkeypatch, capsys):
    run = open_run(tmp_path)
    monkeypatch.setattr(run_module, "package_versions", lambda: {"torch": "2.13.0", "peft": "0.21"})
    run.save_checkpoint(1, {"w": torch.ones(1)}, {})
    monkeypatch.setattr(run_module, "package_versions", lambda: {"torch": "2.14.0", "peft": "0.21"})
    open_run(tmp_path).resume()
    assert "after step 1, which began with other versions: torch (there 2.13.0, now 2.14.0)\n" in capsys.readouterr().out


def test_run_says_that_it_is_finished(tmp_path, capsys):
    open_run(tmp_path).finish({})
    assert not (tmp_path / ".lock").exists()
    open_run(tmp_path).print_finished(tmp_path / "model")
    assert capsys.readouterr().out.endswith(f"{tmp_path} is finished, nothing to do: the result is {tmp_path / 'model'}\n")
    assert not (tmp_path / ".lock").exists()
