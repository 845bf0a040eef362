"""Facts from annotations made for other ends: COCO's instances, and the scene graphs of GQA and Visual Genome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmrlhf.facts.parse import Box, count_fact, read_line, read_list
from mmrlhf.files.rows import Row, preview, type_name
from mmrlhf.records import Fact

FactsByImage = dict[str, tuple[Fact, ...]]


def is_coco(value: Any) -> bool:
    return isinstance(value, dict) and {"images", "annotations", "categories"} <= set(value)


def is_scene_graph(value: Any) -> bool:
    """One picture's graph."""
    return isinstance(value, dict) and "objects" in value and ("relationships" in value or isinstance(value["objects"], dict))


def parse_coco(path: str, value: Mapping[str, Any], source: str) -> FactsByImage:
    """Each instance with its box, and how many there are of a category. A crowd is there, and leaves its category uncounted."""
    root = Row(path, 0, value)
    category_names = {}
    for index, category in enumerate(read_list(root, "categories"), 1):
        row = _as_row(path, category, f"categories[{index}]")
        category_names[_read_id(row, "id")] = read_line(row, row.require("name"), "name")
    images = {}
    for index, image in enumerate(read_list(root, "images"), 1):
        row = _as_row(path, image, f"images[{index}]")
        size = tuple(_read_number(row, row.require(side), side, minimum=1) for side in ("width", "height"))
        images[_read_id(row, "id")] = (read_line(row, row.require("file_name"), "file_name"), size)
    objects: dict[str, list[Fact]] = {name: [] for name, _ in images.values()}
    counts: dict[str, Counter[str]] = {name: Counter() for name in objects}
    crowds: set[tuple[str, str]] = set()
    for index, annotation in enumerate(read_list(root, "annotations"), 1):
        row = _as_row(path, annotation, f"annotations[{index}]")
        if (image := _read_id(row, "image_id")) not in images:
            row.fail(f"`image_id` is {preview(image)}, and `images` has none of that id: add it, or drop the annotation")
        if (category := _read_id(row, "category_id")) not in category_names:
            row.fail(
                f"`category_id` is {preview(category)}, and `categories` has none of that id: add it, or drop the annotation"
            )
        (name, size), noun = images[image], category_names[category]
        if row.fields.get("iscrowd"):
            objects[name].append(Fact("object", noun, source))
            crowds.add((name, noun))
            continue
        objects[name].append(Fact("object", noun, source, box=_read_box(row, row.require("bbox"), "bbox", size)))
        counts[name][noun] += 1
    return {
        name: (*facts, *(count_fact(count, noun, source) for noun, count in counts[name].items() if (name, noun) not in crowds))
        for name, facts in objects.items()
    }


def parse_scene_graphs(path: str, graphs: Mapping[str, Any], source: str) -> FactsByImage:
    """Objects with attributes and boxes, and relations between them. What a graph leaves out is unknown: nothing is counted."""
    return {name: _parse_scene_graph(_as_row(path, graph, preview(name)), source) for name, graph in graphs.items()}


def _parse_scene_graph(row: Row, source: str) -> tuple[Fact, ...]:
    objects = row.fields.get("objects", {})
    if not isinstance(objects, dict | list):
        row.fail(f"`objects` must be an object or a list, not {type_name(objects)}")
    entries = objects.items() if isinstance(objects, dict) else ((None, value) for value in objects)
    size = None
    if "width" in row.fields and "height" in row.fields:
        size = tuple(_read_number(row, row.fields[side], side, minimum=1) for side in ("width", "height"))
    nouns: dict[str, str] = {}
    facts: list[Fact] = []
    relations: list[tuple[str, str, str]] = []
    for index, (object_id, value) in enumerate(entries, 1):
        object_row = _as_row(
            row.location, value, f"`objects[{index}]`" if object_id is None else f"`objects.{preview(object_id)[1:-1]}`"
        )
        if object_id is None:
            object_id = str(_read_id(object_row, "object_id"))
        object_names = object_row.fields.get("names")
        noun = read_line(
            object_row, object_names[0] if isinstance(object_names, list) and object_names else object_row.require("name"), "name"
        )
        nouns[object_id] = noun
        attributes = [read_line(object_row, word, "attributes") for word in read_list(object_row, "attributes")]
        coordinates = [object_row.fields.get(side) for side in "xywh"]
        object_box = _read_box(object_row, coordinates, "x, y, w, h", size) if size and None not in coordinates else None
        facts.append(Fact("object", " ".join([*attributes, noun]), source, box=object_box))
        for relation in read_list(object_row, "relations"):
            relation_row = _as_row(object_row.location, relation, "`relations`")
            relations.append(
                (object_id, read_line(relation_row, relation_row.require("name"), "name"), str(_read_id(relation_row, "object")))
            )
    for index, value in enumerate(read_list(row, "relationships"), 1):
        relation_row = _as_row(row.location, value, f"`relationships[{index}]`")
        endpoints = [str(_endpoint_id(relation_row, name)) for name in ("subject", "object")]
        relations.append((endpoints[0], read_line(relation_row, relation_row.require("predicate"), "predicate"), endpoints[1]))
    for subject, predicate, target in relations:
        if (missing_id := next((endpoint for endpoint in (subject, target) if endpoint not in nouns), None)) is not None:
            row.fail(
                f"a relation speaks of object {preview(missing_id)}, and `objects` has none of that id: add it, or drop the relation"
            )
        facts.append(Fact("relation", f"{nouns[subject]} {predicate.lower()} {nouns[target]}", source))
    return tuple(facts)


def _endpoint_id(row: Row, name: str) -> int | str:
    """Visual Genome has an id in one release and the whole object in another."""
    endpoint = row.fields.get(name)
    return (
        _read_id(_as_row(row.location, endpoint, f"`{name}`"), "object_id")
        if isinstance(endpoint, dict)
        else _read_id(row, f"{name}_id")
    )


def _as_row(location: str, value: Any, name: str) -> Row:
    row = Row(f"{location}, {name}", 0, value if isinstance(value, dict) else {})
    if not isinstance(value, dict):
        row.fail(f"must be an object with fields, not {type_name(value)}")
    return row


def _read_id(row: Row, name: str) -> int | str:
    value = row.require(name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        row.fail(f"`{name}` must be a whole number or text, not {type_name(value)}")
    return value


def _read_number(row: Row, value: Any, name: str, minimum: float = 0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value < 1e9:
        row.fail(f"`{name}` must be a number of at least {minimum}, not {preview(value)}")
    return float(value)


def _read_box(row: Row, value: Any, name: str, size: tuple[float, ...]) -> Box | None:
    """x, y, width and height in pixels as shares of the picture, cut at its edges; None for a box of no area."""
    if not isinstance(value, list) or len(value) != 4:
        row.fail(f"`{name}` must be a list of 4, not {preview(value)}")
    x, y, w, h = (_read_number(row, v, name, minimum=-1e9) for v in value)
    width, height = size
    x0, x1 = (min(max(v / width, 0.0), 1.0) for v in (x, x + w))
    y0, y1 = (min(max(v / height, 0.0), 1.0) for v in (y, y + h))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
