"""Files of facts, told apart by what they hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrlhf.facts.annotations import Found, coco, is_coco, is_scene_graph, scene_graphs
from mmrlhf.facts.lists import listed
from mmrlhf.records import Fact
from mmrlhf.rows import Row, contents, kind, shown
from mmrlhf.tables import read


def read_facts(path: str | Path) -> Found:
    """Facts by picture name (or row id), from JSONL with the fields of `LISTS`, LLaVA-RLHF's map to captions, COCO's instances, or the
    scene graphs of GQA or Visual Genome.

    Raises InputError with the place and field that cannot be used.
    """
    path = Path(path)
    value: Any = contents(path) if path.suffix == ".json" else None
    if is_coco(value):
        return coco(str(path), value, path.name)
    if isinstance(value, list) and value and all(is_scene_graph(graph) and "image_id" in graph for graph in value):
        return scene_graphs(str(path), {str(graph["image_id"]): graph for graph in value}, path.name)
    if isinstance(value, dict) and value and all(map(is_scene_graph, value.values())):
        return scene_graphs(str(path), value, path.name)
    rows: list[tuple[str, Row]] = []
    if isinstance(value, dict):
        rows = [(name, Row(f"{path}, {shown(name)}", 0, {"captions": lines})) for name, lines in value.items()]
    else:
        for unread in read(str(path)):
            row = unread.row()
            name = row.fields.get("image", row.fields.get("id"))
            if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
                row.fail(f"`{'image' if 'image' in row.fields else 'id'}` must be a picture's name or an id, not {kind(name)}")
            rows.append((str(row.need("image") if name is None else name), row))
    found: Found = {}
    for name, row in rows:
        found[name] = found.get(name, ()) + listed(row, path.name)
    return found


def known(facts: Mapping[str, tuple[Fact, ...]], name: str) -> tuple[Fact, ...]:
    """What is known of a picture: by its name as it is given, else without folders, else without the suffix (scene graphs have ids)."""
    base = os.path.basename(name)
    return next((facts[key] for key in (name, base, os.path.splitext(base)[0]) if facts.get(key)), ())
