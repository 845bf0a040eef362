"""DASH-B: images in which models see an object that is not there, and images that show it
(Augustin et al. 2025).

    mmrlhf eval dash_b --model runs/sft/model --data DASH-B --out runs/dash_b
    mmrlhf eval dash_b --answers Paligemma-3b_answers.json --out runs/dash_b

--data is the folder with dash_benchmark_neg.json and dash_benchmark_pos.json, --image_folder the
one with `neg` and `pos`. The authors' answer files contain the questions and need no --data.

`official` looks for the letters `yes`, then `no`, anywhere in an answer; `robust` reads answers
with `mmrlhf.text.answer_parsing.parse_yes_no`. Both count answers with neither as wrong. Metrics
are fractions: `accuracy`, `tnr` on absent objects, `tpr` on present objects, and the
`harmonic_mean` of these two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.evaluation.benchmark import Benchmark, Fields, ScoreRow, Task, answered, contains_yes_no, first_present, first_valid
from mmrlhf.files.rows import read_json, read_json_objects
from mmrlhf.metrics.intervals import Proportion, SufficientStats
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.text.answer_parsing import parse_yes_no

FILES = {"no": "dash_benchmark_neg.json", "yes": "dash_benchmark_pos.json"}
"""Files of images by the right answer."""
IMAGE_FOLDERS = {"no": "neg", "yes": "pos"}


class DashB(Benchmark):
    """DASH-B."""

    version = "3"
    license = "not stated"
    headline = "accuracy"
    direction = "higher"
    cluster = "image"
    answer_fields = ("img_id", "response")

    def load(self, task: Task) -> list[Example]:
        """Return the questions, absent objects first, with ids OBJECT/IMAGE.

        --limit is for each kind of object. Without --data, the questions come from the answer file.
        """
        if task.data is None and task.answers is not None:
            examples = []
            for row in read_json_objects(Path(task.answers)):
                label, object_name, image = (str(row.require(name)) for name in ("gt", "object_name", "img_id"))
                examples.append(_make_example((), label, object_name, image, data_set=""))
            return list({example.id: example for example in examples}.values())
        examples = []
        for label, path in zip(FILES, self.files(task), strict=True):
            data_sets = read_json(path)
            if not isinstance(data_sets, dict) or not all(isinstance(objects, dict) for objects in data_sets.values()):
                raise InputError(f"{path} must hold {{data set: {{object: [images]}}}}")
            of_label = []
            for data_set, images_by_object in data_sets.items():
                for object_name, images in images_by_object.items():
                    if not isinstance(images, list):
                        raise InputError(f"{path}: {object_name} of {data_set} must be a list of images")
                    folder, location = (IMAGE_FOLDERS[label], data_set, object_name), f"{path}: {object_name} of {data_set}"
                    for image in map(str, images):
                        source = task.image_source(*folder, image, location=location, name=image)
                        of_label.append(_make_example((source,), label, object_name, image, data_set))
            examples += of_label[: task.limit]
        return examples

    def files(self, task: Task) -> list[Path]:
        """Return the files of absent and of present objects, which a folder `images` may hold."""
        if not task.path.is_dir():
            raise InputError(f"--data {task.path} must be the folder with {' and '.join(FILES.values())}")
        paths = []
        for name in FILES.values():
            nested_path = task.path / "images" / name
            use_nested = nested_path.is_file() and not (task.path / name).is_file()
            paths.append(nested_path if use_nested else task.path / name)
        return paths

    def match_id(self, fields: Fields, task: Task) -> str | None:
        """Return the id of the question about a row's object and image."""
        if {"object_name", "img_id"} <= fields.keys():
            return f"{fields['object_name']}/{fields['img_id']}"
        return first_present(fields, ("id", "question_id"))

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return whether the first answer says yes or no, by the script's rule and by ours."""
        parsed = parse_yes_no(answers[0], example.meta["question"])
        return {
            "label": example.meta["label"],
            "official": contains_yes_no(answers[0]),
            "said": parsed,
            "unparsed": parsed is None,
        }

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return accuracy on all questions and on each kind.

        The script counts the answers of its own run, without missing or repeated ones.
        """
        return {
            "official": _sufficient_stats(answered(rows), task, "official"),
            "robust": _sufficient_stats(first_valid(rows), task, "said"),
        }


def _make_example(images: tuple[ImageSource, ...], label: str, object_name: str, image: str, data_set: str) -> Example:
    question = f"Can you see a {object_name} in this image? Please answer only with yes or no."
    meta = {"label": label, "object": object_name, "image": image, "set": data_set, "question": question}
    return Example(f"{object_name}/{image}", images, (Message("user", question),), meta=meta)


def _sufficient_stats(rows: list[ScoreRow], task: Task, verdict_field: str) -> SufficientStats:
    """Return statistics: right answers and questions on absent, then on present objects."""
    columns = np.zeros((len(rows), 4))
    for row_columns, row in zip(columns, rows, strict=True):
        start = 2 * (row["label"] == "yes")
        row_columns[start : start + 2] = row[verdict_field] == row["label"], 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        right_absent, num_absent, right_present, num_present = np.moveaxis(sums, -1, 0)
        tnr, tpr = right_absent / num_absent, right_present / num_present
        return {
            "accuracy": (right_absent + right_present) / (num_absent + num_present),
            "tnr": tnr,
            "tpr": tpr,
            "harmonic_mean": 2 * (tpr * tnr) / (tpr + tnr),
        }

    clusters = [task.examples[row["id"]].meta["image"] for row in rows]
    reasons = {"": "there is nothing to divide by: the official script raises ZeroDivisionError"}
    shares = {"accuracy": Proportion((0, 2), (1, 3)), "tnr": Proportion(0, 1), "tpr": Proportion(2, 3)}
    return SufficientStats(clusters, columns, metrics, reasons, shares)
