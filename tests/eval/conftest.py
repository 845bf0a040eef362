"""Fixtures that import studies, and that score small files of answers."""

import csv
import importlib
import json
from pathlib import Path

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from tests.helpers import fake_data
from tests.helpers.fake_data import write_jsonl
from tests.helpers.pope_files import OBJECTS

STUDIES = Path(__file__).parents[2] / "eval" / "studies"


@pytest.fixture
def load_study(monkeypatch):
    """Import a study as its command does, from its own folder."""
    pytest.importorskip("open_clip")
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module


@pytest.fixture
def run_benchmark(tmp_path):
    """Return a function that runs a benchmark on fake data, with these answers or a model's, and
    returns its result."""

    def run(name, answers=None, options=None, **settings):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        config = {**fake_data.DATASET_WRITERS[name](root), **settings}
        if answers is not None:
            pairs = answers.items() if isinstance(answers, dict) else answers
            rows = [pair if isinstance(pair, dict) else {"id": pair[0], "answers": [pair[1]]} for pair in pairs]
            config["answers"] = str(fake_data.write_jsonl(tmp_path / "answers.jsonl", rows))
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        return evaluate(name, EvalConfig(output_dir=str(out), **config), options)

    return run


@pytest.fixture
def score(tmp_path):
    """Return a function that scores rows, or a file, with a benchmark, and returns its result."""

    def run(name, rows, data, options=None, suffix=".jsonl", **settings):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        path = rows
        if isinstance(rows, list) and suffix == ".jsonl":
            path = write_jsonl(tmp_path / "answers.jsonl", rows)
        elif isinstance(rows, list | dict) and suffix == ".json":
            path = tmp_path / "answers.json"
            path.write_text(json.dumps(rows))
        elif isinstance(rows, list):
            path = tmp_path / "answers.tsv"
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0], delimiter="\t")
                writer.writeheader()
                writer.writerows(rows)
        return evaluate(name, EvalConfig(answers=str(path), data=str(data), output_dir=str(out), **settings), options)

    return run


@pytest.fixture
def pope(tmp_path):
    """Three splits of two images: a dog is there (all splits ask), the split's object is not."""
    folder = tmp_path / "POPE"
    folder.mkdir()
    for split, absent in OBJECTS.items():
        rows = [
            {"question_id": 2 * image + n + 1, "image": f"COCO_val2014_{image:012d}.jpg", "text": f"Is there a {noun} in the image?", "label": label}
            for image in range(2)
            for n, (noun, label) in enumerate((("dog", "yes"), (absent, "no")))
        ]  # fmt: skip
        write_jsonl(folder / f"coco_pope_{split}.json", rows)
    return folder
