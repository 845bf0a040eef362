"""A short form of the crash study: training that is killed and resumed ends with the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def crash(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "eval" / "studies"))
    import crash

    return crash


@pytest.mark.slow
def test_killed_and_resumed_runs_are_identical(tmp_path):
    """One kill in an update of each of two stages, of which dpo also evaluates along the way.

    The study forks, so it has a process of its own.
    """
    command = [sys.executable, "eval/studies/crash.py", "--kills", "1", "--stages", "sft,dpo", "--out", str(tmp_path)]
    process = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert json.loads(process.stdout.splitlines()[-1]) == {"kills": 1, "identical": 1, "stages": {"sft": 1, "dpo": 1}}
    assert "| sft | update | 1 | 1 |\n| dpo | update | 1 | 1 |" in process.stdout


def write_run(folder: Path, weights: bytes = b"w", steps: tuple[int, ...] = (1, 2), loss: float = 0.5) -> Path:
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "adapter_model.safetensors").write_bytes(weights)
    rows = [{"step": step, "time": step / 7, "memory/peak_gib": 1 / step, "loss": loss} for step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "finished.json").write_text('{"steps": 2}')
    return folder


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, []),
        ({"weights": b"v"}, ["policy/adapter_model.safetensors differs"]),
        ({"loss": 0.25}, ["metrics.jsonl differs"]),
        (
            {"steps": (1, 2, 2)},
            ["metrics.jsonl differs: steps [1, 2, 2], not [1, 2]", "metrics.jsonl has a step twice: [1, 2, 2]"],
        ),
        ({"steps": (2,)}, ["metrics.jsonl differs: steps [2], not [1, 2]"]),
    ],
)
def test_differences_are_weights_rows_and_repeated_steps(crash, tmp_path, other, expected):
    alone, resumed = write_run(tmp_path / "alone"), write_run(tmp_path / "resumed", **other)
    assert crash.differences(alone, resumed) == expected


def test_differences_find_a_missing_file(crash, tmp_path):
    alone, resumed = write_run(tmp_path / "alone"), write_run(tmp_path / "resumed")
    (alone / "warnings.jsonl").write_text('{"step": 2, "warning": "w"}\n')
    (resumed / "policy" / "adapter_model.safetensors").unlink()
    found = crash.differences(alone, resumed)
    assert found == ["policy/adapter_model.safetensors differs", "warnings.jsonl differs: steps [], not [2]"]
