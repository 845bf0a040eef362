"""Facts from COCO's instances and from scene graphs."""

import pytest

from mmrlhf.facts import read_facts
from mmrlhf.records import Fact


def test_parse_coco_crowd_leaves_its_category_uncounted(write_facts):
    def person(annotation_id, is_crowd, image_id=1):
        return {"id": annotation_id, "image_id": image_id, "category_id": 1, "iscrowd": is_crowd, "bbox": [0, 0, 5, 10]}

    instances = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 10, "height": 10} for n in (1, 2)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [person(1, 0), person(2, 1), person(3, 0, 2), person(4, 0, 2)],
    }
    facts = read_facts(write_facts("instances.json", instances))
    assert [f.text for f in facts["1.jpg"]] == ["person", "person"]  # a crowd has an unknown number
    assert [f.text for f in facts["2.jpg"]] == ["person", "person", "two people"]


GQA_GRAPH = {
    "width": 10,
    "height": 20,
    "objects": {
        "1": {
            "name": "dog",
            "attributes": ["brown"],
            "x": 0,
            "y": 5,
            "w": 5,
            "h": 30,
            "relations": [{"name": "on", "object": "2"}],
        },
        "2": {"name": "grass"},
    },
}


def test_parse_scene_graphs_reads_gqa(write_facts):
    facts = read_facts(write_facts("graphs.json", {"713": GQA_GRAPH}))["713"]
    assert facts == (
        Fact("object", "brown dog", "graphs.json", box=(0.0, 0.25, 0.5, 1.0)),  # clipped at the lower edge
        Fact("object", "grass", "graphs.json"),
        Fact("relation", "dog on grass", "graphs.json"),
    )


@pytest.mark.parametrize(
    "relationship", [{"subject_id": 1, "object_id": 2}, {"subject": {"object_id": 1}, "object": {"object_id": 2}}]
)
def test_parse_scene_graphs_reads_both_releases_of_visual_genome(write_facts, relationship):
    graph = {
        "image_id": 7,
        "objects": [{"object_id": 1, "names": ["dog"]}, {"object_id": 2, "names": ["grass"]}],
        "relationships": [relationship | {"predicate": "ON"}],
    }
    facts = read_facts(write_facts("graphs.json", [graph]))["7"]
    assert [(fact.kind, fact.text) for fact in facts] == [
        ("object", "dog"),
        ("object", "grass"),
        ("relation", "dog on grass"),
    ]


def test_parse_scene_graphs_refuses_relation_to_unknown_object(write_facts, facts_error):
    dog = {"name": "dog", "relations": [{"name": "on", "object": "9"}]}
    message = facts_error(write_facts("graphs.json", {"713": {"objects": {"1": dog}}}))
    assert "a relation names object '9', and `objects` has no such id" in message
