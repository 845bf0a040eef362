"""Files of facts, told apart by what they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.facts.annotations import Found, coco, is_coco, is_scene_graph, scene_graphs
from mmrlhf.facts.lists import listed
from mmrlhf.records import Fact, InputError
from mmrlhf.rows import Row, contents, kind, shown
from mmrlhf.tables import read


def read_facts(path: str | Path) -> Found:
    """Facts by picture name (or row id), from JSONL with the fields of `LISTS`, LLaVA-RLHF's map to captions, COCO's instances, or the
    scene graphs of GQA or Visual Genome.

    Raises InputError with the place and field that cannot be used.
    """
    found: Found = {}
    for name, facts in _named(Path(path), need_name=True):
        assert name is not None
        found[name] = found.get(name, ()) + facts
    return found


@dataclass(frozen=True)
class FactsFile:
    """A file of facts, for answers that name their picture and for answers that stand in its rows' order."""

    path: str
    named: Mapping[str, tuple[Fact, ...]]
    rows: Sequence[tuple[Fact, ...]]
    """Empty for a file that has no order: a map, or annotations."""

    def of(self, image: str | None, number: int, where: str) -> tuple[Fact, ...]:
        """What is known of an answer's picture: by its name if it has one and the file has names, else by its row, counted from 1.

        Raises InputError where neither leads anywhere.
        """
        if image is not None and self.named:
            return known(self.named, image)
        if not self.rows:
            raise InputError(f"{where}: `image` is missing, and {self.path} has facts by name: add it")
        if number > len(self.rows):
            raise InputError(
                f"{where}: {self.path} has {len(self.rows)} rows, and no facts for this one: add a row, or name the `image` in both"
            )
        return self.rows[number - 1]


def read_facts_file(path: str) -> FactsFile:
    """The same files as `read_facts` reads, and JSONL whose rows name no picture. Raises InputError."""
    found: Found = {}
    rows = []
    for name, facts in _named(Path(path), need_name=False):
        rows.append(facts)
        if name is not None:
            found[name] = found.get(name, ()) + facts
    return FactsFile(path, found, () if Path(path).suffix == ".json" else rows)


def _named(path: Path, need_name: bool) -> Iterator[tuple[str | None, tuple[Fact, ...]]]:
    value: Any = contents(path) if path.suffix == ".json" else None
    if is_coco(value):
        yield from coco(str(path), value, path.name).items()
        return
    if isinstance(value, list) and value and all(is_scene_graph(graph) and "image_id" in graph for graph in value):
        yield from scene_graphs(str(path), {str(graph["image_id"]): graph for graph in value}, path.name).items()
        return
    if isinstance(value, dict) and value and all(map(is_scene_graph, value.values())):
        yield from scene_graphs(str(path), value, path.name).items()
        return
    if isinstance(value, dict):
        for name, lines in value.items():
            yield name, listed(Row(f"{path}, {shown(name)}", 0, {"captions": lines}), path.name)
        return
    for unread in read(str(path)):
        row = unread.row()
        name = row.fields.get("image", row.fields.get("id"))
        if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
            row.fail(f"`{'image' if 'image' in row.fields else 'id'}` must be a picture's name or an id, not {kind(name)}")
        if name is None and need_name:
            name = row.need("image")
        yield None if name is None else str(name), listed(row, path.name)


def known(facts: Mapping[str, tuple[Fact, ...]], name: str) -> tuple[Fact, ...]:
    """What is known of a picture: by its name as it is given, else without folders, else without the suffix (scene graphs have ids)."""
    base = os.path.basename(name)
    return next((facts[key] for key in (name, base, os.path.splitext(base)[0]) if facts.get(key)), ())
