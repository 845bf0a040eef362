"""DASH-B: pictures that make models see an object that is not there, and pictures where it is (Augustin et al. 2025).

    mmrlhf eval dash_b --model runs/sft/model --data DASH-B --out runs/dash_b
    mmrlhf eval dash_b --answers Paligemma-3b_answers.json --out runs/dash_b

--data is the folder with dash_benchmark_neg.json and dash_benchmark_pos.json, --image_folder the one with `neg` and `pos`.
The authors' files of answers say themselves what was asked. `official` looks for the
letters `yes`, then `no`, anywhere in an answer, and counts what has neither as wrong; so does `robust`, which reads answers with
`mmrlhf.answers.yes_no`. Fractions: `accuracy`, `tnr` where the object is absent, `tpr` where it is there, their `harmonic_mean`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.answers import yes_no
from mmrlhf.benchmark import Counted, Task, first
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.rows import contents, objects

VERSION, LICENSE = "1", "not stated"
HEADLINE, DIRECTION, CLUSTER = "accuracy", "higher", "image"
ANSWER = ("img_id", "response")
FILES = {"no": "dash_benchmark_neg.json", "yes": "dash_benchmark_pos.json"}


def load(task: Task) -> list[Example]:
    """Questions with ids OBJECT/PICTURE, negatives first. Without --data they are those that the answers' file says were asked."""
    if task.data is None and task.answers is not None:
        rows = objects(Path(task.answers))
        asked = [_question(task, *(str(row.need(name)) for name in ("gt", "object_name", "img_id"))) for row in rows]
        return list({e.id: e for e in asked}.values())
    found = []
    for label, path in zip(FILES, files(task), strict=True):
        sets = contents(path)
        if not (isinstance(sets, dict) and all(isinstance(things, dict) for things in sets.values())):
            raise InputError(f"{path} must hold {{data set: {{object: [pictures]}}}}")
        for set_, things in sets.items():
            found += [_question(task, label, thing, picture, set_) for thing, pictures in things.items() for picture in pictures]
    return found[: task.limit]


def _question(task: Task, label: str, thing: str, picture: str, set_: str = "") -> Example:
    asked = f"Can you see a {thing} in this image? Please answer only with yes or no."
    images = ()
    if task.data is not None:
        images = (ImageSource(path=str(task.pictures / ("neg" if label == "no" else "pos") / set_ / thing / picture)),)
    meta = {"label": label, "object": thing, "image": picture, "set": set_, "question": asked}
    return Example(f"{thing}/{picture}", images, (Message("user", asked),), meta=meta)


def files(task: Task) -> list[Path]:
    """The negatives and the positives."""
    if not task.path.is_dir():
        raise InputError(f"--data {task.path} must be the folder with {' and '.join(FILES.values())}")
    return [
        next((p for p in (task.path / name, task.path / "images" / name) if p.is_file()), task.path / name)
        for name in FILES.values()
    ]


def identify(fields: Mapping[str, Any], task: Task) -> str | None:
    """By object and picture."""
    return f"{fields['object_name']}/{fields['img_id']}" if {"object_name", "img_id"} <= fields.keys() else fields.get("id")


def says(answer: str) -> str | None:
    """What the official script reads: `know` has a no in it."""
    return "yes" if "yes" in answer.lower() else "no" if "no" in answer.lower() else None


def score(example: Example, answers: list[str], task: Task) -> dict[str, Any]:
    """What the first answer says, by the script's rule and by ours."""
    said = yes_no(answers[0], example.meta["question"])
    return {"label": example.meta["label"], "official": says(answers[0]), "said": said, "unparsed": said is None}


def aggregate(rows: list[dict[str, Any]], task: Task) -> dict[str, Counted]:
    """Accuracy on both kinds and on each. The script counts the answers of its own run, so that none is missing or given twice."""
    return {"official": _counted(rows, task, "official"), "robust": _counted(first(rows), task, "said")}


def _counted(rows: list[dict[str, Any]], task: Task, rule: str) -> Counted:
    """Columns: right and asked with the object absent, right and asked with it there."""
    rows = [r for r in rows if r["status"] in ("ok", "duplicate")]
    columns = np.zeros((len(rows), 4))
    for i, row in enumerate(rows):
        at = 2 * (row["label"] == "yes")
        columns[i, at : at + 2] = row[rule] == row["label"], 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        true_no, no, true_yes, yes = np.moveaxis(sums, -1, 0)
        tnr, tpr = true_no / no, true_yes / yes
        return {
            "accuracy": (true_no + true_yes) / (no + yes),
            "tnr": tnr,
            "tpr": tpr,
            "harmonic_mean": 2 * (tpr * tnr) / (tpr + tnr),
        }

    pictures = [task.examples[r["id"]].meta["image"] for r in rows]
    return Counted(pictures, columns, metrics, {"": "nothing to divide by: the official script raises ZeroDivisionError"})
