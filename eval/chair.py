"""CHAIR: how many of the objects that a caption names are not in the picture (Rohrbach et al. 2018), with recall and length beside it.

    mmrlhf eval chair --model runs/sft/model --data coco/annotations --image_folder coco/val2014 --limit 500 --out runs/chair
    mmrlhf eval chair --answers captions.jsonl --data coco/annotations --lineage a --out runs/chair

--data is COCO's annotation folder (instances_*.json and captions_*.json), or a JSON map of image id to the objects that are in it. `official` is one
of two scripts, whose figures differ: --lineage a is the first one (singulars by `pattern.en`; Maxlinn's standalone script), b the tagger and WordNet
(OPERA, less-is-more, lmms-eval); both need NLTK's data. `robust`, and --lineage portable as a whole, read with `mmrlhf.text.coco_objects.read`, which needs
nothing: plurals as English has them, no denied objects ("no cat"), no unknown pictures. Percent; length in words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.benchmark import Benchmark, Task
from mmrlhf.files.rows import read_json
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.text import coco_objects
from mmrlhf.text import lemmatize as lemmatize

MentionsAndLength = tuple[list[tuple[str, str]], int]

"""Mentions, each the word and its object, and the caption's length."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Whose words are found, and how descriptions are asked for."""

    lineage: Literal["a", "b", "portable"] = "b"
    """Whose script `official` is: `a` singulars by pattern.en (the first), `b` tagger and WordNet (OPERA), `portable` ours, without NLTK."""
    prompt: str = "Please describe this image in detail."
    """How a description is asked for."""


class Chair(Benchmark):
    """TODO."""

    version = "1"
    license = "BSD-2-Clause (words), CC-BY-4.0 (COCO's annotations)"
    headline = "chair_s"
    direction = "lower"
    cluster = "image"
    answer_fields = ("image_id", "caption")
    requires_all_answers = False
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """A picture an example, with its objects and, where they come from COCO, its five captions."""
        if task.path.is_file():
            objects_by_image = read_json(task.path)
            if not isinstance(objects_by_image, dict) or not all(
                isinstance(v, list) and all(isinstance(o, str) for o in v) for v in objects_by_image.values()
            ):
                raise InputError(f"--data {task.path} must map image ids to lists of objects, or be COCO's annotation folder")
            nodes = coco_objects.object_by_synonym()
            images = {
                str(id_): (
                    f"COCO_val2014_{int(id_):012d}.jpg" if id_.isdecimal() else id_,
                    [nodes.get(o.lower(), o) for o in objects],
                    [],
                )
                for id_, objects in objects_by_image.items()
            }
        else:
            images = _read_coco(task.path)
        return [
            Example(
                id_, (ImageSource(path=str(task.image_root / name)),), (Message("user", task.options.prompt),),
                meta={"objects": tuple(dict.fromkeys(objects)), "captions": tuple(captions)},
            )
            for id_, (name, objects, captions) in list(images.items())[: task.limit]
        ]  # fmt: skip

    def files(self, task: Task) -> list[Path]:
        """The map, or COCO's files."""
        return [task.path] if task.path.is_file() else _annotation_files(task.path)

    def match_id(self, fields: Mapping[str, Any], task: Task) -> str | None:
        """The image id of a row: a number, or what a file's name ends in."""
        image = next(
            (fields[k] for k in ("image_id", "image", "image_path", "id", "question_id") if fields.get(k) is not None), None
        )
        number = re.search(r"(\d+)(?:\.\w+)?$", str(image))
        return None if image is None else str(image) if str(image) in task.examples or not number else str(int(number.group(1)))

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """The first answer, by both readings."""
        official = _compare_objects(answers[0], example, task.options.lineage)
        robust = official if task.options.lineage == "portable" else _compare_objects(answers[0], example, "portable")
        return {"official": official, "robust": robust, "right": not robust["false"]}

    def aggregate(self, rows: list[dict[str, Any]], task: Task) -> dict[str, SufficientStats]:
        """CHAIRs and CHAIRi over all captions, of a picture as many as there are. To the scripts an unknown picture is an empty one."""
        answered_rows = [r for r in rows if r["status"] in ("ok", "duplicate")]
        official = [r["official"] if "official" in r else _compare_objects(r["answers"][0], None, task.options.lineage)
                    for r in rows if r["status"] != "null"]  # fmt: skip
        has_null = any(r["status"] == "null" for r in rows)
        reason = "the official script raises AttributeError on a caption that is null" if has_null else ""
        return {
            "official": _sufficient_stats(
                [r["id"] for r in rows if r["status"] != "null"], official, undefined_if_empty=True, reason=reason
            ),
            "robust": _sufficient_stats(
                [r["id"] for r in answered_rows], [r["robust"] for r in answered_rows], undefined_if_empty=False
            ),
        }


def _annotation_files(folder: Path) -> list[Path]:
    """Return COCO's files of objects, then those of captions. Raise InputError if a kind is missing."""
    paths: list[Path] = []
    for kind in ("instances", "captions"):
        matching = sorted(folder.glob(f"{kind}_*.json"))
        if not matching:
            raise InputError(
                f"--data {folder} has no {kind}_*.json: give COCO's annotation folder, or a map of image id to objects"
            )
        paths += matching
    return paths


def _read_coco(folder: Path) -> dict[str, tuple[str, list[str], list[str]]]:
    """File name, objects and captions by image id."""
    images: dict[str, tuple[str, list[str], list[str]]] = {}
    for path in _annotation_files(folder):
        annotations = read_json(path)
        try:
            for image in annotations["images"]:
                images.setdefault(str(image["id"]), (image.get("file_name", f"{image['id']}.jpg"), [], []))
            names = {c["id"]: c["name"] for c in annotations.get("categories", [])}
            for row in annotations["annotations"]:
                _, objects, captions = images.setdefault(str(row["image_id"]), (f"{row['image_id']}.jpg", [], []))
                if "caption" in row:
                    captions.append(row["caption"])
                else:
                    objects.append(coco_objects.object_by_synonym()[names[row["category_id"]]])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}: not an annotation file of COCO's ({error} is missing or unknown): give the original"
            ) from None
    return images


# ---- words -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)
def find_mentions(caption: str, lineage: str) -> MentionsAndLength:
    """A caption's mentions, by the script's way or ours."""
    if lineage == "portable":
        return coco_objects.find_objects(caption), len(caption.split())
    words = (
        lemmatize.lemmas(caption.lower())
        if lineage == "b"
        else [lemmatize.pattern_singularize(w) for w in lemmatize.tokens(caption.lower())]
    )
    return coco_objects.chair_mentions(words)


@functools.lru_cache(maxsize=1 << 16)
def _caption_objects(captions: tuple[str, ...], lineage: str) -> frozenset[str]:
    return frozenset(node for caption in captions for _, node in find_mentions(caption, lineage)[0])


def _compare_objects(caption: str, example: Example | None, lineage: str) -> dict[str, Any]:
    """What is compared: mentions, those of objects that are not there, objects that are there and were named, objects that are there, length."""
    true_objects = set(example.meta["objects"]) | _caption_objects(example.meta["captions"], lineage) if example else set()
    mentions, length = find_mentions(caption, lineage)
    false_mentions = [pair for pair in mentions if pair[1] not in true_objects]
    named_objects = {node for _, node in mentions} & true_objects
    return {
        "said": len(mentions),
        "false": false_mentions,
        "hit": sorted(named_objects),
        "there": len(true_objects),
        "length": length,
    }


def _sufficient_stats(
    ids: list[str], comparisons: list[dict[str, Any]], undefined_if_empty: bool, reason: str = ""
) -> SufficientStats:
    columns = np.array(
        [[bool(j["false"]), 1, len(j["false"]), j["said"], len(j["hit"]), j["there"], j["length"]] for j in comparisons], float
    )

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        num_hallucinated, num_captions, num_false, num_mentions, num_named, num_objects, length = np.moveaxis(sums, -1, 0)
        mask = (
            np.where(num_mentions * num_objects > 0, 1.0, np.nan) if undefined_if_empty else 1.0
        )  # the script prints nothing where one of them is 0
        mask = mask * np.nan if reason else mask
        return {
            "chair_s": num_hallucinated / num_captions * 100 * mask, "chair_i": num_false / num_mentions * 100 * mask, "recall": num_named / num_objects * 100 * mask,
            "length": length / num_captions,
        }  # fmt: skip

    empty_reason = (
        "the official script raises ZeroDivisionError: no caption names an object, or the pictures hold none"
        if undefined_if_empty
        else ""
    )
    return SufficientStats(ids, columns.reshape(-1, 7), metrics, {"": reason or empty_reason or "no caption names an object, or the pictures hold none"},
                   {"chair_s": (0, 1)})  # fmt: skip
