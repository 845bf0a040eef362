"""Facts from annotations made for other ends: COCO's instances, and the scene graphs of GQA and Visual Genome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmrlhf.facts.lists import Box, as_list, counted, line
from mmrlhf.records import Fact
from mmrlhf.rows import Row, kind, shown

Found = dict[str, tuple[Fact, ...]]


def is_coco(value: Any) -> bool:
    return isinstance(value, dict) and {"images", "annotations", "categories"} <= set(value)


def is_scene_graph(value: Any) -> bool:
    """One picture's graph."""
    return isinstance(value, dict) and "objects" in value and ("relationships" in value or isinstance(value["objects"], dict))


def coco(path: str, value: Mapping[str, Any], source: str) -> Found:
    """Each instance with its box, and how many there are of a category. A crowd is there, and leaves its category uncounted."""
    whole = Row(path, 0, value)
    names = {}
    for number, category in enumerate(as_list(whole, "categories"), 1):
        row = _row(path, category, f"categories[{number}]")
        names[_id(row, "id")] = line(row, row.need("name"), "name")
    pictures = {}
    for number, image in enumerate(as_list(whole, "images"), 1):
        row = _row(path, image, f"images[{number}]")
        size = tuple(_number(row, row.need(side), side, least=1) for side in ("width", "height"))
        pictures[_id(row, "id")] = (line(row, row.need("file_name"), "file_name"), size)
    objects: dict[str, list[Fact]] = {name: [] for name, _ in pictures.values()}
    counts: dict[str, Counter[str]] = {name: Counter() for name in objects}
    crowds: set[tuple[str, str]] = set()
    for number, annotation in enumerate(as_list(whole, "annotations"), 1):
        row = _row(path, annotation, f"annotations[{number}]")
        if (image := _id(row, "image_id")) not in pictures:
            row.fail(f"`image_id` is {shown(image)}, and `images` has none of that id: add it, or drop the annotation")
        if (category := _id(row, "category_id")) not in names:
            row.fail(f"`category_id` is {shown(category)}, and `categories` has none of that id: add it, or drop the annotation")
        (name, size), noun = pictures[image], names[category]
        if row.fields.get("iscrowd"):
            objects[name].append(Fact("object", noun, source))
            crowds.add((name, noun))
            continue
        objects[name].append(Fact("object", noun, source, box=_box(row, row.need("bbox"), "bbox", size)))
        counts[name][noun] += 1
    return {
        name: (*found, *(counted(n, noun, source) for noun, n in counts[name].items() if (name, noun) not in crowds))
        for name, found in objects.items()
    }


def scene_graphs(path: str, graphs: Mapping[str, Any], source: str) -> Found:
    """Objects with attributes and boxes, and relations between them. What a graph leaves out is unknown: nothing is counted."""
    return {name: _graph(_row(path, graph, shown(name)), source) for name, graph in graphs.items()}


def _graph(row: Row, source: str) -> tuple[Fact, ...]:
    given = row.fields.get("objects", {})
    if not isinstance(given, dict | list):
        row.fail(f"`objects` must be an object or a list, not {kind(given)}")
    named = given.items() if isinstance(given, dict) else ((None, value) for value in given)
    size = None
    if "width" in row.fields and "height" in row.fields:
        size = tuple(_number(row, row.fields[side], side, least=1) for side in ("width", "height"))
    nouns: dict[str, str] = {}
    facts: list[Fact] = []
    relations: list[tuple[str, str, str]] = []
    for number, (key, value) in enumerate(named, 1):
        inner = _row(row.where, value, f"`objects[{number}]`" if key is None else f"`objects.{shown(key)[1:-1]}`")
        if key is None:
            key = str(_id(inner, "object_id"))
        names = inner.fields.get("names")
        noun = line(inner, names[0] if isinstance(names, list) and names else inner.need("name"), "name")
        nouns[key] = noun
        attributes = [line(inner, word, "attributes") for word in as_list(inner, "attributes")]
        box = [inner.fields.get(side) for side in "xywh"]
        where = _box(inner, box, "x, y, w, h", size) if size and None not in box else None
        facts.append(Fact("object", " ".join([*attributes, noun]), source, box=where))
        for relation in as_list(inner, "relations"):
            one = _row(inner.where, relation, "`relations`")
            relations.append((key, line(one, one.need("name"), "name"), str(_id(one, "object"))))
    for number, value in enumerate(as_list(row, "relationships"), 1):
        one = _row(row.where, value, f"`relationships[{number}]`")
        ends = [str(_end(one, name)) for name in ("subject", "object")]
        relations.append((ends[0], line(one, one.need("predicate"), "predicate"), ends[1]))
    for subject, how, to in relations:
        if (missing := next((end for end in (subject, to) if end not in nouns), None)) is not None:
            row.fail(
                f"a relation speaks of object {shown(missing)}, and `objects` has none of that id: add it, or drop the relation"
            )
        facts.append(Fact("relation", f"{nouns[subject]} {how.lower()} {nouns[to]}", source))
    return tuple(facts)


def _end(row: Row, name: str) -> int | str:
    """Visual Genome has an id in one release and the whole object in another."""
    whole = row.fields.get(name)
    return _id(_row(row.where, whole, f"`{name}`"), "object_id") if isinstance(whole, dict) else _id(row, f"{name}_id")


def _row(where: str, value: Any, name: str) -> Row:
    row = Row(f"{where}, {name}", 0, value if isinstance(value, dict) else {})
    if not isinstance(value, dict):
        row.fail(f"must be an object with fields, not {kind(value)}")
    return row


def _id(row: Row, name: str) -> int | str:
    value = row.need(name)
    if isinstance(value, bool) or not isinstance(value, int | str):
        row.fail(f"`{name}` must be a whole number or text, not {kind(value)}")
    return value


def _number(row: Row, value: Any, name: str, least: float = 0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e9:
        row.fail(f"`{name}` must be a number of at least {least}, not {shown(value)}")
    return float(value)


def _box(row: Row, value: Any, name: str, size: tuple[float, ...]) -> Box | None:
    """x, y, width and height in pixels as shares of the picture, cut at its edges; None for a box of no area."""
    if not isinstance(value, list) or len(value) != 4:
        row.fail(f"`{name}` must be a list of 4, not {shown(value)}")
    x, y, w, h = (_number(row, v, name, least=-1e9) for v in value)
    width, height = size
    x0, x1 = (min(max(v / width, 0.0), 1.0) for v in (x, x + w))
    y0, y1 = (min(max(v / height, 0.0), 1.0) for v in (y, y + h))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
