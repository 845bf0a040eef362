"""Load files of facts, whose format is recognised by their content."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.facts.annotations import FactsByImage, is_coco, is_scene_graph, parse_coco, parse_scene_graphs
from mmrlhf.facts.parse import parse_fact_fields
from mmrlhf.files.rows import Row, preview, read_json, type_name
from mmrlhf.files.tables import read_rows
from mmrlhf.records import Fact, InputError


def read_facts(path: str | Path) -> FactsByImage:
    """Return facts by image name or row id.

    The file is JSONL with the fields of `FACT_FIELDS`, LLaVA-RLHF's map from images to captions,
    COCO instances, or scene graphs of GQA or Visual Genome. Raises InputError that names the place
    and the field of a mistake.
    """
    facts_by_image: FactsByImage = {}
    for name, facts in _iter_facts(Path(path), require_name=True):
        assert name is not None
        facts_by_image[name] = facts_by_image.get(name, ()) + facts
    return facts_by_image


@dataclass(frozen=True)
class FactsFile:
    """A file of facts, for answers that name their image or that are in the order of its rows."""

    path: str
    by_name: Mapping[str, tuple[Fact, ...]]
    by_row: Sequence[tuple[Fact, ...]]
    """Empty for a file without rows: a map, or annotations."""

    def lookup(self, image: str | None, row_number: int, location: str) -> tuple[Fact, ...]:
        """Return the facts of an answer's image.

        They are looked up by image name if both the answer and the file have names, else by the
        answer's row number, counted from 1. Raises InputError if neither is possible.
        """
        if image is not None and self.by_name:
            return facts_for_image(self.by_name, image)
        if not self.by_row:
            raise InputError(f"{location}: `image` is missing, and {self.path} has facts by image name: add it")
        if row_number > len(self.by_row):
            raise InputError(
                f"{location}: {self.path} has only {len(self.by_row)} rows: add one for this answer, or name the `image` in both"
            )
        return self.by_row[row_number - 1]


def read_facts_file(path: str) -> FactsFile:
    """Read a file as `read_facts` does, or JSONL with rows that name no image.

    Raises InputError for a malformed file.
    """
    by_name: FactsByImage = {}
    by_row = []
    for name, facts in _iter_facts(Path(path), require_name=False):
        by_row.append(facts)
        if name is not None:
            by_name[name] = by_name.get(name, ()) + facts
    return FactsFile(path, by_name, () if Path(path).suffix == ".json" else by_row)


def _iter_facts(path: Path, require_name: bool) -> Iterator[tuple[str | None, tuple[Fact, ...]]]:
    """Yield image names and facts. A missing name is None, or an error if `require_name`."""
    value: Any = read_json(path) if path.suffix == ".json" else None
    if is_coco(value):
        yield from parse_coco(str(path), value, path.name).items()
        return
    if isinstance(value, list) and value and all(is_scene_graph(graph) and "image_id" in graph for graph in value):
        yield from parse_scene_graphs(str(path), {str(graph["image_id"]): graph for graph in value}, path.name).items()
        return
    if isinstance(value, dict) and value and all(map(is_scene_graph, value.values())):
        yield from parse_scene_graphs(str(path), value, path.name).items()
        return
    if isinstance(value, dict):
        for name, captions in value.items():
            yield name, parse_fact_fields(Row(f"{path}, {preview(name)}", 0, {"captions": captions}), path.name)
        return
    for raw_row in read_rows(str(path)):
        row = raw_row.parse()
        name = row.fields.get("image", row.fields.get("id"))
        if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
            row.fail(f"`{'image' if 'image' in row.fields else 'id'}` must be an image name or an id, not {type_name(name)}")
        if name is None and require_name:
            name = row.require("image")
        yield None if name is None else str(name), parse_fact_fields(row, path.name)


def facts_for_image(facts: Mapping[str, tuple[Fact, ...]], name: str) -> tuple[Fact, ...]:
    """Look up an image's facts by full name, else by file name, else by file name without suffix.

    Scene graphs name images by ids, which are file names without a suffix.
    """
    basename = os.path.basename(name)
    for key in (name, basename, os.path.splitext(basename)[0]):
        if facts.get(key):
            return facts[key]
    return ()
