"""Facts from annotations: COCO instances and captions, scene graphs of GQA and Visual Genome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmrlhf.facts.parse import Box, count_fact, read_line, read_list
from mmrlhf.files.rows import Row, preview, type_name
from mmrlhf.records import Fact

FactsByImage = dict[str, tuple[Fact, ...]]
"""Facts by image name or row id."""
Relation = tuple[str, str, str]
"""Subject's id, predicate, target's id."""


def is_coco(value: Any) -> bool:
    """Return whether a JSON value is a COCO instances file."""
    return isinstance(value, dict) and {"images", "annotations", "categories"} <= set(value)


def is_coco_captions(value: Any) -> bool:
    """Return whether a JSON value is a COCO captions file."""
    if not isinstance(value, dict) or not {"images", "annotations"} <= set(value) or "categories" in value:
        return False
    annotations = value["annotations"]
    return isinstance(annotations, list) and all(isinstance(a, dict) and "caption" in a for a in annotations[:1])


def is_scene_graph(value: Any) -> bool:
    """Return whether a JSON value is the scene graph of one image.

    GQA maps ids to objects. Visual Genome lists objects, relationships or both, by image.
    """
    if not isinstance(value, dict):
        return False
    objects = value.get("objects")
    has_object_rows = "image_id" in value and isinstance(objects, list) and all(isinstance(o, dict) for o in objects)
    return isinstance(objects, dict) or isinstance(value.get("relationships"), list) or has_object_rows


def parse_coco_captions(path: str, value: Mapping[str, Any], source: str) -> FactsByImage:
    """Return the captions in a COCO captions file by image. Raises InputError."""
    root = Row(path, 0, value)
    names = {}
    for index, image in enumerate(read_list(root, "images"), 1):
        row = _as_row(path, image, f"images[{index}]")
        names[_read_id(row, "id")] = read_line(row, row.require("file_name"), "file_name")
    captions: dict[str, tuple[Fact, ...]] = {}
    for index, annotation in enumerate(read_list(root, "annotations"), 1):
        row = _as_row(path, annotation, f"annotations[{index}]")
        image_id = _read_id(row, "image_id")
        if image_id not in names:
            row.fail(f"`image_id` is {preview(image_id)}, and `images` has no such id: add it, or drop the annotation")
        fact = Fact("caption", read_line(row, row.require("caption"), "caption"), source)
        captions[names[image_id]] = (*captions.get(names[image_id], ()), fact)
    return captions


def parse_coco(path: str, value: Mapping[str, Any], source: str) -> FactsByImage:
    """Return the facts in a COCO instances file: each object with its box, and category counts.

    A crowd becomes an object without a box, and its image gets no count of that category. Raises
    InputError for malformed annotations.
    """
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
        image_id = _read_id(row, "image_id")
        if image_id not in images:
            row.fail(f"`image_id` is {preview(image_id)}, and `images` has no such id: add it, or drop the annotation")
        category_id = _read_id(row, "category_id")
        if category_id not in category_names:
            row.fail(f"`category_id` is {preview(category_id)}, and `categories` has no such id: add it, or drop the annotation")
        (name, size), noun = images[image_id], category_names[category_id]
        if row.fields.get("iscrowd"):
            objects[name].append(Fact("object", noun, source))
            crowds.add((name, noun))
            continue
        objects[name].append(Fact("object", noun, source, box=_read_box(row, row.require("bbox"), "bbox", size)))
        counts[name][noun] += 1
    facts_by_image = {}
    for name, object_facts in objects.items():
        counted = [(count, noun) for noun, count in counts[name].items() if (name, noun) not in crowds]
        facts_by_image[name] = (*object_facts, *(count_fact(count, noun, source) for count, noun in counted))
    return facts_by_image


def parse_scene_graphs(path: str, graphs: Mapping[str, Any], source: str) -> FactsByImage:
    """Return the facts of scene graphs by image: objects with attributes and boxes, and relations.

    A graph may leave out objects, so it gives no counts. Raises InputError for a malformed graph.
    """
    return {name: _parse_scene_graph(_as_row(path, graph, preview(name)), source) for name, graph in graphs.items()}


def _parse_scene_graph(row: Row, source: str) -> tuple[Fact, ...]:
    """Return one image's facts. GQA's `objects` are a map by id, Visual Genome's a list."""
    objects = row.fields.get("objects", {})
    if not isinstance(objects, dict | list):
        row.fail(f"`objects` must be an object or a list, not {type_name(objects)}")
    entries = objects.items() if isinstance(objects, dict) else ((None, value) for value in objects)
    size = None
    if "width" in row.fields and "height" in row.fields:
        size = tuple(_read_number(row, row.fields[side], side, minimum=1) for side in ("width", "height"))
    nouns: dict[str, str] = {}
    facts: list[Fact] = []
    relations: list[Relation] = []
    for index, (object_id, value) in enumerate(entries, 1):
        # `preview` quotes the id: drop the quotes.
        location = f"`objects[{index}]`" if object_id is None else f"`objects.{preview(object_id)[1:-1]}`"
        object_row = _as_row(row.location, value, location)
        if object_id is None:
            object_id = str(_read_id(object_row, "object_id"))
        fact = _parse_graph_object(object_row, size, source)
        nouns[object_id] = _read_object_name(object_row)
        facts.append(fact)
        for relation in read_list(object_row, "relations"):
            relation_row = _as_row(object_row.location, relation, "`relations`")
            predicate = read_line(relation_row, relation_row.require("name"), "name")
            relations.append((object_id, predicate, str(_read_id(relation_row, "object"))))
    for index, value in enumerate(read_list(row, "relationships"), 1):
        relation_row = _as_row(row.location, value, f"`relationships[{index}]`")
        if "objects" not in row.fields:  # Visual Genome's relationships.json repeats the objects
            nouns |= _endpoint_nouns(relation_row)
        subject, target = (str(_endpoint_id(relation_row, name)) for name in ("subject", "object"))
        relations.append((subject, read_line(relation_row, relation_row.require("predicate"), "predicate"), target))
    for subject, predicate, target in relations:
        for object_id in (subject, target):
            if object_id not in nouns:
                row.fail(
                    f"a relation names object {preview(object_id)}, and `objects` has no such id: add it, or drop the relation"
                )
        facts.append(Fact("relation", f"{nouns[subject]} {predicate.lower()} {nouns[target]}", source))
    return tuple(facts)


def _parse_graph_object(row: Row, size: tuple[float, ...] | None, source: str) -> Fact:
    noun = _read_object_name(row)
    attributes = [read_line(row, word, "attributes") for word in read_list(row, "attributes")]
    coordinates = [row.fields.get(side) for side in "xywh"]
    box = _read_box(row, coordinates, "x, y, w, h", size) if size and None not in coordinates else None
    return Fact("object", " ".join([*attributes, noun]), source, box=box)


def _read_object_name(row: Row) -> str:
    """Return an object's name: `names[0]` in Visual Genome, `name` in GQA."""
    names = row.fields.get("names")
    return read_line(row, names[0] if isinstance(names, list) and names else row.require("name"), "name")


def _endpoint_nouns(row: Row) -> dict[str, str]:
    """Return the names of a relation's subject and object by their ids."""
    endpoints = [_as_row(row.location, row.require(name), f"`{name}`") for name in ("subject", "object")]
    return {str(_read_id(endpoint, "object_id")): _read_object_name(endpoint) for endpoint in endpoints}


def _endpoint_id(row: Row, name: str) -> int | str:
    """Return the id of a relation's subject or object.

    One release of Visual Genome gives the id, another the full object.
    """
    endpoint = row.fields.get(name)
    if isinstance(endpoint, dict):
        return _read_id(_as_row(row.location, endpoint, f"`{name}`"), "object_id")
    return _read_id(row, f"{name}_id")


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
    """Convert x, y, width, height in pixels to corners as shares of the image, clipped to it.

    Returns None for a box without area.
    """
    if not isinstance(value, list) or len(value) != 4:
        row.fail(f"`{name}` must be a list of 4, not {preview(value)}")
    x, y, w, h = (_read_number(row, v, name, minimum=-1e9) for v in value)
    width, height = size
    x0, x1 = (min(max(v / width, 0.0), 1.0) for v in (x, x + w))
    y0, y1 = (min(max(v / height, 0.0), 1.0) for v in (y, y + h))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
