"""Trackers: what arrives in TensorBoard and trackio, once each, also after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmrlhf.records import InputError
from mmrlhf.training.trackers import TRACKERS, parse_report_to
from tests.helpers.runs import open_run

SAMPLE = {
    "id": "r1",
    "prompt": "What | is it?",
    "answer": "A mug.\nIt is red.",
    "score": 0.5,
    "terms": {"fact_rm": 0.5, "length": None},
}
CLAIMS = [{"claim": "a mug", "verdict": "supported"}, {"claim": "a red mug", "verdict": "contradicted"}]


def log_steps(folder, name, steps, checkpoint=None):
    """Log steps, with samples at step 2, as a run that resumes would."""
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    run = open_run(folder / "run", report_to=name)
    run.resume()
    for step in steps:
        run.log(step, {"loss": float(step), "eval/f1": step / 10, "undefined": None})
        if step == 2:
            run.log_samples(step, [{**SAMPLE, "claims": CLAIMS, "images": [str(folder / "a.png")]}], show=False)
        if step == checkpoint:
            run.save_checkpoint(step, {}, {})
    return run


def test_tensorboard_has_each_point_once_after_a_kill(tmp_path, live_pages):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_steps(tmp_path, "tensorboard", range(6), checkpoint=3)  # killed after step 5
    log_steps(tmp_path, "tensorboard", range(4, 8)).finish({})
    events = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "eval/f1"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(step, float(step)) for step in range(8)]
    (image,) = events.Images("samples/r1")
    assert (image.step, image.width, image.height) == (2, 40, 30)
    (table,) = events.Tensors("samples/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert "What \\| is it?" in text and "A mug.<br>It is red." in text and "fact_rm 0.5, length –" in text
    assert "supported: a mug<br>contradicted: a red mug" in text


TRACKIO_SCRIPT = """
import json, pathlib, sys
from tests.training.test_trackers import log_steps

folder = pathlib.Path(sys.argv[1])
killed = log_steps(folder, "trackio", range(6), checkpoint=3)
killed._trackers.finish()  # a killed run has sent its points, or the first ones
log_steps(folder, "trackio", range(4, 8)).finish({})
from trackio.sqlite_storage import SQLiteStorage

(name,) = SQLiteStorage.get_runs("mmrlhf")
(folder / "points.json").write_text(json.dumps(SQLiteStorage.get_logs("mmrlhf", name)))
"""


def test_trackio_has_each_point_once_after_a_kill(tmp_path):
    """In a process of its own, because trackio reads its folder when it is imported."""
    pytest.importorskip("trackio")
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", TRACKIO_SCRIPT, str(tmp_path)], check=True, cwd=root, env=env)
    points = json.loads((tmp_path / "points.json").read_text())
    losses = [(row["step"], row["train/loss"]) for row in points if "train/loss" in row]
    assert losses == [(step, float(step)) for step in range(8)]
    (table,) = (row["samples"]["_value"] for row in points if "samples" in row)
    assert table[0]["claims"] == "supported: a mug\ncontradicted: a red mug" and table[0]["score"] == 0.5
    assert table[0]["images"][0]["file_path"].endswith(".png")


@pytest.mark.parametrize("name", TRACKERS)
def test_report_to_a_missing_package_is_one_sentence(name, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"report_to {name} needs the package {name}, .* `pip install {name}`, or leave it out"):
        open_run(tmp_path / "run", report_to=name)
    assert not (tmp_path / "run").exists()


def test_report_to_names():
    assert parse_report_to(None) == parse_report_to("none") == ()
    with pytest.raises(InputError, match="report_to 'mlflow' is no tracker: the choices are tensorboard, wandb, trackio"):
        parse_report_to("mlflow")
