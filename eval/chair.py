"""CHAIR: the share of objects in captions that the image lacks, recall and length (Rohrbach et al.
2018).

    mmrlhf eval chair --model runs/sft/model --data coco/annotations --image_folder coco/val2014
        --limit 500 --out runs/chair
    mmrlhf eval chair --answers captions.jsonl --data coco/annotations --lineage a --out runs/chair
    mmrlhf eval chair --answers log.jsonl --caption_key output --data coco/annotations
        --out runs/chair

--data is COCO's annotation folder (instances_*.json and captions_*.json), or a JSON map of image id
to the objects in the image.

`official` follows one of two scripts with different results: --lineage a is the original (singulars
by `pattern.en`; also in Maxlinn's standalone script), b uses NLTK's tagger and WordNet (OPERA,
less-is-more, lmms-eval). Both need NLTK's data. `robust`, and everything with --lineage portable,
uses `mmrlhf.text.coco_objects.find_objects`, which needs no data: English plurals, without negated
objects ("no cat") and unknown images. Metrics are in percent, length in words.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.config import STRICT
from mmrlhf.evaluation.answer_rows import IMAGE_FIELDS
from mmrlhf.evaluation.benchmark import Benchmark, Fields, ScoreRow, Task, answered, first_present
from mmrlhf.files.rows import read_json
from mmrlhf.metrics.intervals import Proportion, SufficientStats
from mmrlhf.records import Example, InputError, Message
from mmrlhf.text import coco_objects, lemmatize

ImageInfo = tuple[str, list[str], list[str]]
"""File name, objects and captions of an image."""
MentionsAndLength = tuple[list[tuple[str, str]], int]
"""A caption's mentions, as pairs of the word and its object, and the caption's length in words."""
COCO_SPLITS = ("", "COCO_val2014_", "COCO_train2014_")
"""How the file names of COCO's images begin."""
EMPTY_REASON = "no caption names an object, or the images hold none"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """How objects are found, and how descriptions are asked for."""

    lineage: Literal["a", "b", "portable"] = "b"
    """The script that `official` follows: `a` pattern.en (the original), `b` tagger and WordNet
    (OPERA), `portable` ours, without NLTK."""
    prompt: str = "Please describe this image in detail."
    """The prompt that asks for a description."""
    caption_key: str | None = None
    """Field of --answers that holds the caption (default: caption, answer, response, text, ...)."""
    image_id_key: str | None = None
    """Field of --answers that holds the image's id or name (default: image_id, image, ...)."""


class Chair(Benchmark):
    """CHAIR on COCO's images."""

    version = "1"
    license = "BSD-2-Clause (words), CC-BY-4.0 (COCO's annotations)"
    headline = "chair_s"
    direction = "lower"
    cluster = "image"
    answer_fields = ("image_id", "caption")
    requires_all_answers = False  # users choose the images
    counts_repeated = True  # several captions of an image
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return an example for each image, with its objects and COCO's captions, if available."""
        images = _read_object_map(task.path) if task.path.is_file() else _read_coco(task.path)
        name_field = "id" if task.path.is_file() else "file_name"
        return [
            Example(
                id_,
                (task.image_source(name, location=f"{task.path}, image {id_}", name=name_field),),
                (Message("user", task.options.prompt),),
                meta={"objects": tuple(dict.fromkeys(objects)), "captions": tuple(captions)},
            )
            for id_, (name, objects, captions) in list(images.items())[: task.limit]
        ]

    def files(self, task: Task) -> list[Path]:
        """Return the map of objects, or COCO's files."""
        return [task.path] if task.path.is_file() else _annotation_files(task.path)

    def rename_fields(self, fields: Fields, task: Task) -> Fields:
        """Return a row with the fields that --caption_key and --image_id_key name."""
        renamed = dict(fields)
        for name, option in (("caption", "caption_key"), ("image_id", "image_id_key")):
            key = getattr(task.options, option)
            if key is not None and key not in fields:
                raise InputError(f"--{option} names `{key}`, which the row does not have (it has {', '.join(list(fields)[:12])})")
            if key is not None:
                renamed[name] = fields[key]
        return renamed

    def match_id(self, fields: Fields, task: Task) -> str | None:
        """Return the image id of a row: its own, or the number at the end of the image's name.

        A map of objects may have COCO's file names as ids.
        """
        image = first_present(fields, ("image_id", *IMAGE_FIELDS, "id", "question_id"))
        if image is None or image in task.examples:
            return image
        match = re.search(r"(\d+)(?:\.\w+)?$", image)
        if match is None:
            return image
        number = match[1].lstrip("0") or "0"
        names = [f"{split}{number.zfill(12)}{suffix}" for split in COCO_SPLITS for suffix in (".jpg", "")]
        return next((name for name in names if name in task.examples), number)

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Compare the objects of the first answer and the image, by the script's rules and ours."""
        official = _compare_objects(answers[0], example, task.options.lineage)
        robust = official
        if task.options.lineage != "portable":
            robust = _compare_objects(answers[0], example, "portable")
        return {"official": official, "robust": robust, "right": not robust["false"]}

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return metrics over all captions, including several of one image.

        For the scripts, an unknown image has no objects.
        """
        with_answer = [row for row in rows if row["answers"] and None not in row["answers"]]
        official = [
            row["official"] if "official" in row else _compare_objects(row["answers"][0], None, task.options.lineage)
            for row in with_answer
        ]
        reason = ""
        if len(with_answer) < len(rows):
            reason = "the official script raises AttributeError on a caption that is null"
        scored = answered(rows)
        return {
            "official": _official_stats([row["id"] for row in with_answer], official, reason),
            "robust": _robust_stats([row["id"] for row in scored], [row["robust"] for row in scored]),
        }


# ---- images --------------------------------------------------------------------------------------


def _read_object_map(path: Path) -> dict[str, ImageInfo]:
    """Read a JSON map of image id, or image name, to objects."""
    objects_by_image = read_json(path)
    if not isinstance(objects_by_image, dict) or not all(
        isinstance(objects, list) and all(isinstance(name, str) for name in objects) for objects in objects_by_image.values()
    ):
        raise InputError(f"--data {path} must map image ids to lists of objects, or be COCO's annotation folder")
    object_of = coco_objects.object_by_synonym()
    images: dict[str, ImageInfo] = {}
    for id_, objects in objects_by_image.items():
        name = f"COCO_val2014_{id_.zfill(12)}.jpg" if id_.isdecimal() else id_
        images[str(id_)] = name, [object_of.get(word.lower(), word) for word in objects], []
    return images


def _annotation_files(folder: Path) -> list[Path]:
    """Return COCO's files of objects, then those of captions.

    Raises InputError if either kind is missing.
    """
    paths: list[Path] = []
    for kind in ("instances", "captions"):
        matching = sorted(folder.glob(f"{kind}_*.json"))
        if not matching:
            raise InputError(
                f"--data {folder} has no {kind}_*.json: give COCO's annotation folder, or a map of image id to objects"
            )
        paths += matching
    return paths


def _read_coco(folder: Path) -> dict[str, ImageInfo]:
    """Read COCO's annotations by image id. Raises InputError for files in another format."""
    images: dict[str, ImageInfo] = {}
    object_of = coco_objects.object_by_synonym()
    for path in _annotation_files(folder):
        annotations = read_json(path)
        try:
            for image in annotations["images"]:
                images.setdefault(str(image["id"]), (image.get("file_name", f"{image['id']}.jpg"), [], []))
            names = {category["id"]: category["name"] for category in annotations.get("categories", [])}
            for row in annotations["annotations"]:
                _, objects, captions = images.setdefault(str(row["image_id"]), (f"{row['image_id']}.jpg", [], []))
                if "caption" in row:
                    captions.append(row["caption"])
                else:
                    objects.append(object_of[names[row["category_id"]]])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}: not an annotation file of COCO's ({error} is missing or unknown): give the original"
            ) from None
    return images


# ---- objects -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)
def find_mentions(caption: str, lineage: str) -> MentionsAndLength:
    """Return a caption's mentions of objects, and its length, by the rules of a lineage."""
    if lineage == "portable":
        return coco_objects.find_objects(caption), len(caption.split())
    if lineage == "b":
        words = lemmatize.lemmas(caption.lower())
    else:
        words = [lemmatize.pattern_singularize(word) for word in lemmatize.tokens(caption.lower())]
    return coco_objects.chair_mentions(words)


@functools.lru_cache(maxsize=1 << 16)
def _caption_objects(captions: tuple[str, ...], lineage: str) -> frozenset[str]:
    return frozenset(name for caption in captions for _, name in find_mentions(caption, lineage)[0])


def _compare_objects(caption: str, example: Example | None, lineage: str) -> dict[str, Any]:
    """Compare a caption with its image's objects, including those that reference captions name.

    Without an example the image has no objects.
    """
    true_objects: set[str] = set()
    if example is not None:
        true_objects = set(example.meta["objects"]) | _caption_objects(example.meta["captions"], lineage)
    mentions, length = find_mentions(caption, lineage)
    return compare_mentions(mentions, true_objects, length)


def compare_mentions(mentions: list[tuple[str, str]], true_objects: set[str], length: int) -> dict[str, Any]:
    """Return the fields of scores.jsonl for a text's mentions.

    `said` counts mentions, `false` lists those of absent objects, `hit` lists the present objects
    that are named, and `there` counts the present objects.
    """
    return {
        "said": len(mentions),
        "false": [mention for mention in mentions if mention[1] not in true_objects],
        "hit": sorted({name for _, name in mentions} & true_objects),
        "there": len(true_objects),
        "length": length,
    }


# ---- metrics -------------------------------------------------------------------------------------


def _columns(comparisons: list[dict[str, Any]]) -> np.ndarray:
    rows = [[bool(c["false"]), 1, len(c["false"]), c["said"], len(c["hit"]), c["there"], c["length"]] for c in comparisons]
    return np.array(rows, float).reshape(-1, 7)


SHARES = {"chair_s": Proportion(0, 1, 100), "chair_i": Proportion(2, 3, 100), "recall": Proportion(4, 5, 100)}
"""The metrics that are shares, by the columns that `_metrics` reads."""


def _metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    num_hallucinated, num_captions, num_false, num_mentions, num_named, num_objects, length = np.moveaxis(sums, -1, 0)
    return {
        "chair_s": num_hallucinated / num_captions * 100,
        "chair_i": num_false / num_mentions * 100,
        "recall": num_named / num_objects * 100,
        "length": length / num_captions,
    }


def _official_stats(ids: list[str], comparisons: list[dict[str, Any]], reason: str) -> SufficientStats:
    """Return statistics that are undefined, except the length, if the script stops.

    It stops if there are no mentions or no objects to divide by, or for a given `reason`.
    """

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        num_mentions, num_objects = sums[..., 3], sums[..., 5]
        is_defined = (num_mentions * num_objects > 0) & (not reason)
        values = _metrics(sums)
        return {name: v if name == "length" else np.where(is_defined, v, np.nan) for name, v in values.items()}

    undefined = {"": reason or f"the official script raises ZeroDivisionError: {EMPTY_REASON}"}
    return SufficientStats(ids, _columns(comparisons), metrics, undefined, SHARES)


def _robust_stats(ids: list[str], comparisons: list[dict[str, Any]]) -> SufficientStats:
    return SufficientStats(ids, _columns(comparisons), _metrics, {"": EMPTY_REASON}, SHARES)
