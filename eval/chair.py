"""CHAIR: how many of the objects that a caption names are not in the picture (Rohrbach et al. 2018), with recall and length beside it.

    mmrlhf eval chair --model runs/sft/model --data coco/annotations --image_folder coco/val2014 --limit 500 --out runs/chair
    mmrlhf eval chair --answers captions.jsonl --data coco/annotations --lineage a --out runs/chair

--data is COCO's annotation folder (instances_*.json and captions_*.json), or a JSON map of image id to the objects that are in it. `official` is one
of two scripts, whose figures differ: --lineage a is the first one (singulars by `pattern.en`; Maxlinn's standalone script), b the tagger and WordNet
(OPERA, less-is-more, lmms-eval); both need NLTK's data. `robust`, and --lineage portable as a whole, read with `mmrlhf.coco_words.read`, which needs
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

from mmrlhf import coco_words, english
from mmrlhf.benchmark import Counted, Task
from mmrlhf.config import STRICT
from mmrlhf.records import Example, ImageSource, InputError, Message
from mmrlhf.rows import contents

VERSION, LICENSE = "1", "BSD-2-Clause (words), CC-BY-4.0 (COCO's annotations)"
HEADLINE, DIRECTION, CLUSTER = "chair_s", "lower", "image"
ANSWER = ("image_id", "caption")
COMPLETE = False  # whoever measures chooses the pictures
Found = tuple[list[tuple[str, str]], int]
"""Mentions, each the word and its object, and the caption's length."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """Whose words are found, and how descriptions are asked for."""

    lineage: Literal["a", "b", "portable"] = "b"
    """Whose script `official` is: `a` singulars by pattern.en (the first), `b` tagger and WordNet (OPERA), `portable` ours, without NLTK."""
    prompt: str = "Please describe this image in detail."
    """How a description is asked for."""


# ---- pictures --------------------------------------------------------------------------------------------------------


def load(task: Task) -> list[Example]:
    """A picture an example, with its objects and, where they come from COCO, its five captions."""
    if task.path.is_file():
        ready = contents(task.path)
        if not isinstance(ready, dict) or not all(
            isinstance(v, list) and all(isinstance(o, str) for o in v) for v in ready.values()
        ):
            raise InputError(f"--data {task.path} must map image ids to lists of objects, or be COCO's annotation folder")
        nodes = coco_words.node_of()
        found = {
            str(id_): (
                f"COCO_val2014_{int(id_):012d}.jpg" if id_.isdecimal() else id_,
                [nodes.get(o.lower(), o) for o in objects],
                [],
            )
            for id_, objects in ready.items()
        }
    else:
        found = _coco(task.path)
    return [
        Example(
            id_, (ImageSource(path=str(task.pictures / name)),), (Message("user", task.options.prompt),),
            meta={"objects": tuple(dict.fromkeys(objects)), "captions": tuple(captions)},
        )
        for id_, (name, objects, captions) in list(found.items())[: task.limit]
    ]  # fmt: skip


def files(task: Task) -> list[Path]:
    """The map, or COCO's files."""
    if task.path.is_file():
        return [task.path]
    found = {kind: sorted(task.path.glob(f"{kind}_*.json")) for kind in ("instances", "captions")}
    for kind, paths in found.items():
        if not paths:
            raise InputError(
                f"--data {task.path} has no {kind}_*.json: give COCO's annotation folder, or a map of image id to objects"
            )
    return [*found["instances"], *found["captions"]]


def _coco(folder: Path) -> dict[str, tuple[str, list[str], list[str]]]:
    """File name, objects and captions by image id."""
    found: dict[str, tuple[str, list[str], list[str]]] = {}
    for path in files(Task(str(folder))):
        whole = contents(path)
        try:
            for image in whole["images"]:
                found.setdefault(str(image["id"]), (image.get("file_name", f"{image['id']}.jpg"), [], []))
            names = {c["id"]: c["name"] for c in whole.get("categories", [])}
            for row in whole["annotations"]:
                _, objects, captions = found.setdefault(str(row["image_id"]), (f"{row['image_id']}.jpg", [], []))
                if "caption" in row:
                    captions.append(row["caption"])
                else:
                    objects.append(coco_words.node_of()[names[row["category_id"]]])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}: not an annotation file of COCO's ({error} is missing or unknown): give the original"
            ) from None
    return found


def identify(fields: Mapping[str, Any], task: Task) -> str | None:
    """The image id of a row: a number, or what a file's name ends in."""
    said = next((fields[k] for k in ("image_id", "image", "image_path", "id", "question_id") if fields.get(k) is not None), None)
    number = re.search(r"(\d+)(?:\.\w+)?$", str(said))
    return None if said is None else str(said) if str(said) in task.examples or not number else str(int(number.group(1)))


# ---- words -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1 << 16)
def find(caption: str, lineage: str) -> Found:
    """A caption's mentions, by the script's way or ours."""
    if lineage == "portable":
        return coco_words.read(caption), len(caption.split())
    words = english.lemmas(caption.lower()) if lineage == "b" else [english.singular(w) for w in english.tokens(caption.lower())]
    return coco_words.mentions(words)


@functools.lru_cache(maxsize=1 << 16)
def _in_captions(captions: tuple[str, ...], lineage: str) -> frozenset[str]:
    return frozenset(node for caption in captions for _, node in find(caption, lineage)[0])


def _judged(caption: str, example: Example | None, lineage: str) -> dict[str, Any]:
    """What is compared: mentions, those of objects that are not there, objects that are there and were named, objects that are there, length."""
    there = set(example.meta["objects"]) | _in_captions(example.meta["captions"], lineage) if example else set()
    said, length = find(caption, lineage)
    false = [pair for pair in said if pair[1] not in there]
    hit = {node for _, node in said} & there
    return {"said": len(said), "false": false, "hit": sorted(hit), "there": len(there), "length": length}


def score(example: Example, answers: list[str], task: Task) -> dict[str, Any]:
    """The first answer, by both readings."""
    official = _judged(answers[0], example, task.options.lineage)
    robust = official if task.options.lineage == "portable" else _judged(answers[0], example, "portable")
    return {"official": official, "robust": robust, "right": not robust["false"]}


def aggregate(rows: list[dict[str, Any]], task: Task) -> dict[str, Counted]:
    """CHAIRs and CHAIRi over all captions, of a picture as many as there are. To the scripts an unknown picture is an empty one."""
    known = [r for r in rows if r["status"] in ("ok", "duplicate")]
    official = [r["official"] if "official" in r else _judged(r["answers"][0], None, task.options.lineage)
                for r in rows if r["status"] != "null"]  # fmt: skip
    null = any(r["status"] == "null" for r in rows)
    why = "the official script raises AttributeError on a caption that is null" if null else ""
    return {
        "official": _counted([r["id"] for r in rows if r["status"] != "null"], official, stops=True, why=why),
        "robust": _counted([r["id"] for r in known], [r["robust"] for r in known], stops=False),
    }


def _counted(ids: list[str], judged: list[dict[str, Any]], stops: bool, why: str = "") -> Counted:
    columns = np.array(
        [[bool(j["false"]), 1, len(j["false"]), j["said"], len(j["hit"]), j["there"], j["length"]] for j in judged], float
    )

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        wrong, captions, false, said, hit, there, length = np.moveaxis(sums, -1, 0)
        printed = np.where(said * there > 0, 1.0, np.nan) if stops else 1.0  # the script prints nothing where one of them is 0
        printed = printed * np.nan if why else printed
        return {
            "chair_s": wrong / captions * 100 * printed, "chair_i": false / said * 100 * printed, "recall": hit / there * 100 * printed,
            "length": length / captions,
        }  # fmt: skip

    stopped = (
        "the official script raises ZeroDivisionError: no caption names an object, or the pictures hold none" if stops else ""
    )
    return Counted(ids, columns.reshape(-1, 7), metrics, {"": why or stopped or "no caption names an object, or the pictures hold none"},
                   {"chair_s": (0, 1)})  # fmt: skip
