"""DASH-B: pictures that make models see an object that is not there, and pictures where it is (Augustin et al. 2025).

    mmrlhf eval dash_b --model runs/sft/model --data DASH-B --out runs/dash_b
    mmrlhf eval dash_b --answers Paligemma-3b_answers.json --out runs/dash_b

--data is the folder with dash_benchmark_neg.json and dash_benchmark_pos.json, --image_folder the one with `neg` and `pos`.
The authors' files of answers say themselves what was asked. `official` looks for the
letters `yes`, then `no`, anywhere in an answer, and counts what has neither as wrong; so does `robust`, which reads answers with
`mmrlhf.text.answer_parsing.yes_no`. Fractions: `accuracy`, `tnr` where the object is absent, `tpr` where it is there, their `harmonic_mean`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.evaluation.benchmark import Benchmark, Task, first_valid
from mmrlhf.files.rows import read_json, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.text.answer_parsing import parse_yes_no

FILES = {"no": "dash_benchmark_neg.json", "yes": "dash_benchmark_pos.json"}


class DashB(Benchmark):
    """TODO."""

    version = "1"
    license = "not stated"
    headline = "accuracy"
    direction = "higher"
    cluster = "image"
    answer_fields = ("img_id", "response")

    def load(self, task: Task) -> list[Example]:
        """Questions with ids OBJECT/PICTURE, negatives first. Without --data they are those that the answers' file says were asked."""
        if task.data is None and task.answers is not None:
            rows = read_json_objects(Path(task.answers))
            examples = [
                _make_example(task, *(str(row.require(name)) for name in ("gt", "object_name", "img_id"))) for row in rows
            ]
            return list({e.id: e for e in examples}.values())
        questions = []
        for label, path in zip(FILES, self.files(task), strict=True):
            data_sets = read_json(path)
            if not (
                isinstance(data_sets, dict) and all(isinstance(objects_by_name, dict) for objects_by_name in data_sets.values())
            ):
                raise InputError(f"{path} must hold {{data set: {{object: [pictures]}}}}")
            for data_set, objects_by_name in data_sets.items():
                questions += [
                    _make_example(task, label, object_name, image, data_set)
                    for object_name, images in objects_by_name.items()
                    for image in images
                ]
        return questions[: task.limit]

    def files(self, task: Task) -> list[Path]:
        """The negatives and the positives."""
        if not task.path.is_dir():
            raise InputError(f"--data {task.path} must be the folder with {' and '.join(FILES.values())}")
        return [
            next((p for p in (task.path / name, task.path / "images" / name) if p.is_file()), task.path / name)
            for name in FILES.values()
        ]

    def match_id(self, fields: Mapping[str, Any], task: Task) -> str | None:
        """By object and picture."""
        return f"{fields['object_name']}/{fields['img_id']}" if {"object_name", "img_id"} <= fields.keys() else fields.get("id")

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """What the first answer says, by the script's rule and by ours."""
        parsed = parse_yes_no(answers[0], example.meta["question"])
        return {
            "label": example.meta["label"],
            "official": parse_official(answers[0]),
            "said": parsed,
            "unparsed": parsed is None,
        }

    def aggregate(self, rows: list[dict[str, Any]], task: Task) -> dict[str, SufficientStats]:
        """Accuracy on both kinds and on each. The script counts the answers of its own run, so that none is missing or given twice."""
        return {
            "official": _sufficient_stats(rows, task, "official"),
            "robust": _sufficient_stats(first_valid(rows), task, "said"),
        }


def _make_example(task: Task, label: str, object_name: str, image: str, data_set: str = "") -> Example:
    question = f"Can you see a {object_name} in this image? Please answer only with yes or no."
    images = ()
    if task.data is not None:
        images = (ImageSource(path=str(task.image_root / ("neg" if label == "no" else "pos") / data_set / object_name / image)),)
    meta = {"label": label, "object": object_name, "image": image, "set": data_set, "question": question}
    return Example(f"{object_name}/{image}", images, (Message("user", question),), meta=meta)


def parse_official(answer: str) -> str | None:
    """What the official script reads: `know` has a no in it."""
    return "yes" if "yes" in answer.lower() else "no" if "no" in answer.lower() else None


def _sufficient_stats(rows: list[dict[str, Any]], task: Task, field: str) -> SufficientStats:
    """Columns: right and asked with the object absent, right and asked with it there."""
    rows = [r for r in rows if r["status"] in ("ok", "duplicate")]
    columns = np.zeros((len(rows), 4))
    for i, row in enumerate(rows):
        start = 2 * (row["label"] == "yes")
        columns[i, start : start + 2] = row[field] == row["label"], 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        true_no, no, true_yes, yes = np.moveaxis(sums, -1, 0)
        tnr, tpr = true_no / no, true_yes / yes
        return {
            "accuracy": (true_no + true_yes) / (no + yes),
            "tnr": tnr,
            "tpr": tpr,
            "harmonic_mean": 2 * (tpr * tnr) / (tpr + tnr),
        }

    image_names = [task.examples[r["id"]].meta["image"] for r in rows]
    return SufficientStats(
        image_names, columns, metrics, {"": "nothing to divide by: the official script raises ZeroDivisionError"}
    )
