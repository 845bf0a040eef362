"""Load files of facts, whose format is recognised by their content."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.facts.annotations import (
    FactsByImage,
    is_coco,
    is_coco_captions,
    is_scene_graph,
    parse_coco,
    parse_coco_captions,
    parse_scene_graphs,
)
from mmrlhf.facts.parse import parse_fact_fields, read_line
from mmrlhf.files.rows import Row, open_binary, preview, read_json, type_name
from mmrlhf.files.tables import read_rows
from mmrlhf.records import Fact, ImageSource, InputError


def read_facts(path: str | Path) -> FactsByImage:
    """Return facts by image name or row id.

    The file is JSONL with the fields of `FACT_FIELDS`, LLaVA-RLHF's map from images to captions,
    COCO instances or captions, or scene graphs of GQA or Visual Genome. Raises InputError that
    names the place and the field of a mistake.
    """
    facts_by_image: FactsByImage = {}
    for image, id_, facts in _iter_facts(Path(path), require_name=True):
        name = image if image is not None else id_
        assert name is not None
        facts_by_image[name] = facts_by_image.get(name, ()) + facts
    return facts_by_image


def facts_for_image(facts: Mapping[str, tuple[Fact, ...]], name: str) -> tuple[Fact, ...]:
    """Look up an image's facts by `matching_name`."""
    key = matching_name(facts, name)
    return () if key is None else facts[key]


OTHER_NAME_FIELDS = ("file_name", "image_path", "img_path", "image_id")
"""Fields that name a row's image if `image`, `images` and `id` do not."""
IMAGE_NAME_FIELDS = ("image", "images", *OTHER_NAME_FIELDS, "id")
"""Fields that may name the image of a row with captions; the first that a row has."""
NAMES_HINT = "name images as the rows do, or rows whose images have no name by their id"
"""How facts that match no row can be mended."""


def facts_about(facts: FactsByImage, row_id: str, images: Sequence[ImageSource]) -> tuple[Fact, ...]:
    """Return the facts about a row's images, or those under its id if no image has a name.

    A row id may be another image's name. There may be no facts.
    """
    names = [name for image in images if (name := image.path or image.recorded_name)]
    return _facts_under(facts, [matching_name(facts, name) for name in names]) if names else facts.get(row_id, ())


def _facts_under(facts: Mapping[str, tuple[Fact, ...]], keys: Sequence[str | None]) -> tuple[Fact, ...]:
    """Return the facts listed under some names, each name's once: two equal objects are two."""
    return tuple(fact for key in dict.fromkeys(keys) if key is not None for fact in facts[key])


def matching_name(facts: Mapping[str, tuple[Fact, ...]], name: str) -> str | None:
    """Return the name under which facts list an image, None if they do not list it.

    It is the image's path or the longest end of it, such as the file name, else the file name
    without suffix: scene graphs name images by ids, which are such file names.
    """
    parts = name.split("/")
    ends = ("/".join(parts[first:]) for first in range(len(parts)))
    return next((key for key in itertools.chain(ends, [os.path.splitext(parts[-1])[0]]) if key in facts), None)


class ImageMatches:
    """The images to which names in facts were matched: each name may refer to one image only.

    A name may be a file name, which images in several folders may share.
    """

    def __init__(self) -> None:
        self._image_of: dict[str, str] = {}
        self._copies: set[tuple[str, str]] = set()

    def check(self, key: str, image: str, location: str) -> None:
        """Record that a name refers to an image. Raises InputError if another image has the name.

        A copy of the image in another folder may also have it. `location` begins the message.
        """
        image = os.path.normpath(image)
        other = self._image_of.setdefault(key, image)
        if image == other or (key, image) in self._copies:
            return
        if not _may_be_same(image, other):
            raise InputError(
                f"{location}: the facts about {preview(key)} match two images, {preview(other)} and {preview(image)}: "
                "name images in the facts file by paths, as the rows do, also those without facts"
            )
        self._copies.add((key, image))


def _may_be_same(first: str, second: str) -> bool:
    """Return whether two files are equal, or two names without files may refer to one image."""
    if os.path.isfile(first) and os.path.isfile(second):
        return ImageSource(first).key == ImageSource(second).key
    return first.endswith(f"/{second}") or second.endswith(f"/{first}")


@dataclass(frozen=True)
class FactsFile:
    """A file of facts, for answers that name their image or row, or have the order of its rows.

    by_row: empty for a file without rows: a map, or annotations.
    """

    path: str
    by_image: Mapping[str, tuple[Fact, ...]]
    by_id: Mapping[str, tuple[Fact, ...]]
    by_row: Sequence[tuple[Fact, ...]]
    matches: ImageMatches = field(default_factory=ImageMatches, compare=False)

    def lookup(self, images: Sequence[str], id_: Any, row_number: int, location: str) -> tuple[tuple[Fact, ...], bool]:
        """Return the facts of an answer's images, and whether they are those of its row number.

        Images are looked up by name, then the answer's row by id. Its row number, counted from 1,
        decides only if the file names no images and does not have its id. Raises InputError if
        nothing identifies its facts, or if a name in the file also matches another answer's image.
        """
        if images and self.by_image:
            return self._facts_for_images(self.by_image, images, location), False
        if id_ is not None and str(id_) in self.by_id:
            return self.by_id[str(id_)], False
        if self.by_image:
            raise InputError(f"{location}: `image` is missing, and {self.path} has facts by image name: add it")
        if self.by_id and (images or id_ is not None):  # ids of scene graphs are names of images
            return self._facts_for_images(self.by_id, images, location), False
        if row_number > len(self.by_row):
            raise InputError(
                f"{location}: {self.path} has only {len(self.by_row)} rows: add one for this answer, or name the `image` in both"
            )
        return self.by_row[row_number - 1], True

    def _facts_for_images(self, facts: Mapping[str, tuple[Fact, ...]], images: Sequence[str], location: str) -> tuple[Fact, ...]:
        keys = [matching_name(facts, image) for image in images]
        for key, image in zip(keys, images, strict=True):
            if key is not None:
                self.matches.check(key, image, location)
        return _facts_under(facts, keys)


def read_facts_file(path: str) -> FactsFile:
    """Read a file as `read_facts` does, or JSONL with rows that name no image.

    Raises InputError for a malformed file.
    """
    by_image: FactsByImage = {}
    by_id: FactsByImage = {}
    by_row = []
    for image, id_, facts in _iter_facts(Path(path), require_name=False):
        by_row.append(facts)
        for names, name in ((by_image, image), (by_id, id_)):
            if name is not None:
                names[name] = names.get(name, ()) + facts
    return FactsFile(path, by_image, by_id, by_row)


def _iter_facts(path: Path, require_name: bool) -> Iterator[tuple[str | None, str | None, tuple[Fact, ...]]]:
    """Yield image names, row ids and facts. A missing name or id is None.

    Raises InputError if both are missing and `require_name`.
    """
    value: Any = read_json(path) if path.suffix == ".json" and not _holds_lines(path) else None
    if not isinstance(value, dict) and not _is_graph_list(value):
        for raw_row in read_rows(str(path)):
            row = raw_row.parse()
            image, id_ = _row_name(row, "image"), _row_name(row, "id")
            if image is None and id_ is None:
                image = next((name for field in OTHER_NAME_FIELDS if (name := _row_name(row, field)) is not None), None)
            if image is None and id_ is None and require_name:
                row.require("image")
            yield image, id_, parse_fact_fields(row, path.name)
        return
    for name, facts in _facts_of_annotations(path, value):
        yield name, None, facts


def _holds_lines(path: Path) -> bool:
    """Return whether a file is JSONL of several rows: its first line is an object by itself."""
    with open_binary(path) as file:
        first, second = file.readline(), file.readline()
    return first.rstrip().endswith(b"}") and second.lstrip().startswith(b"{")


def _row_name(row: Row, field: str) -> str | None:
    """Return a row's image name or id as text, None without one, or with several images."""
    value = row.fields.get(field)
    if field == "image" and value is None and isinstance(images := row.fields.get("images"), list) and len(images) == 1:
        value = images[0]
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        row.fail(f"`{field}` must be an image name or an id, not {type_name(value)}")
    return None if value is None else str(value)


def _is_graph_list(value: Any) -> bool:
    """Return whether a JSON list contains scene graphs that name their images."""
    return isinstance(value, list) and bool(value) and all(is_scene_graph(graph) and "image_id" in graph for graph in value)


def _facts_of_annotations(path: Path, value: Any) -> Iterator[tuple[str, tuple[Fact, ...]]]:
    """Yield image names and facts of COCO's annotations, scene graphs, or a map to captions."""
    if is_coco(value):
        yield from parse_coco(str(path), value, path.name).items()
    elif is_coco_captions(value):
        yield from parse_coco_captions(str(path), value, path.name).items()
    elif isinstance(value, list):
        for graph in value:  # several may be of one image
            yield from parse_scene_graphs(str(path), {str(graph["image_id"]): graph}, path.name).items()
    elif value and all(map(is_scene_graph, value.values())):
        yield from parse_scene_graphs(str(path), value, path.name).items()
    else:
        for name, captions in value.items():
            yield name, parse_fact_fields(Row(f"{path}, {preview(name)}", 0, {"captions": captions}), path.name)


def read_captions(path: str | Path, caption_key: str, split: str = "train") -> FactsByImage:
    """Return the captions in a column of a dataset's rows by image: a text or a list of texts.

    Raises InputError if a row lacks the column or a name of its image.
    """
    facts: FactsByImage = {}
    for raw_row in read_rows(str(path), split):
        row = raw_row.parse()
        name_field = row.require_any(*IMAGE_NAME_FIELDS)
        name = row.fields[name_field]
        if isinstance(name, list) and len(name) == 1:
            name = name[0]
        if isinstance(name, dict):
            name = name.get("path")
        if isinstance(name, bool) or not isinstance(name, str | int):
            row.fail(f"`{name_field}` must name one image, not {preview(name)}")
        captions = row.require(caption_key)
        for caption in captions if isinstance(captions, list) else [captions]:
            fact = Fact("caption", read_line(row, caption, caption_key), Path(path).name)
            facts[str(name)] = (*facts.get(str(name), ()), fact)
    return facts
