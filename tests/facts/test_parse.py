"""Facts of one row: every field gives its kind, and errors name the field."""

import pytest

from mmrlhf.facts import read_facts


def test_read_facts_gives_every_list_its_kind(write_facts):
    row = {
        "image": "a.jpg",
        "captions": ["Two buses."],
        "objects": [["bus", 2, "red"], ["tree", 1, None], ["car", None, None], ["cap", None, "blue"], ["dog"]],
        "attributes": [["bus", "double-decker"]],
        "relations": [["bus", "behind", "tree"]],
        "ocr": ["C10e"],
        "qa": [["Is it day?", "Yes."]],
        "rationales": ["Buses run by day."],
        "absent": ["bicycle"],
        "facts": [{"kind": "ocr", "text": "12", "source": "model", "confidence": 0.5}],
    }
    facts = read_facts(write_facts("facts.jsonl", row))["a.jpg"]
    assert [(fact.kind, fact.text) for fact in facts] == [
        ("caption", "Two buses."),
        ("object", "red bus"),
        ("count", "two buses"),
        ("object", "tree"),
        ("count", "one tree"),
        ("object", "car"),
        ("object", "blue cap"),
        ("object", "dog"),
        ("attribute", "double-decker bus"),
        ("relation", "bus behind tree"),
        ("ocr", "C10e"),
        ("qa", "Is it day? Yes."),
        ("rationale", "Buses run by day."),
        ("absent", "bicycle"),
        ("ocr", "12"),
    ]
    assert {fact.source for fact in facts[:-1]} == {"facts.jsonl"}
    assert (facts[-1].source, facts[-1].confidence) == ("model", 0.5)


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"objects": ["dog", ["cat", 2], "red bus"]}, ["dog", "cat", "two cats", "red bus"]),
        ({"objects": "dog"}, ["dog"]),
        ({"objects": [["dog", "2"], ["cat", 3.0], ["cow", "01", "brown"]]}, ["dog", "two dogs", "cat", "three cats", "brown cow", "one cow"]),
        ({"captions": "A dog\non grass."}, ["A dog on grass."]),
        ({"captions": "A dog.", "ocr": "STOP", "rationales": "It barks.", "absent": "cat"}, ["A dog.", "STOP", "It barks.", "cat"]),
        ({"captions": [], "objects": []}, []),
    ],
)  # fmt: skip
def test_read_facts_accepts_single_texts_and_names(write_facts, row, texts):
    facts = read_facts(write_facts("facts.jsonl", {"image": "a", **row})).get("a", ())
    assert [fact.text for fact in facts] == texts


@pytest.mark.parametrize(
    ("noun", "count_text"),
    [
        ("apple", "two apples"),
        ("bus", "two buses"),
        ("traffic light", "two traffic lights"),
        ("baby", "two babies"),
        ("toy", "two toys"),
        ("person", "two people"),
        ("butter knife", "two butter knives"),
        ("broccoli", "two broccoli"),
    ],
)
def test_read_facts_pluralises_counted_nouns(write_facts, noun, count_text):
    path = write_facts("facts.jsonl", {"image": "a", "objects": [[noun, 2, None]]})
    assert read_facts(path)["a"][1].text == count_text


def test_read_facts_writes_large_counts_as_digits(write_facts):
    path = write_facts("facts.jsonl", {"image": "a", "objects": [["boat", 40]]})
    assert read_facts(path)["a"][1].text == "40 boats"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"captions": []}, "line 1: `image` is missing: add it (the row has captions)"),
        ({"imgae": "a"}, "line 1: `image` is missing: rename `imgae` to it"),
        ({"image": "a", "objets": []}, "line 1: `objets` is not a field of facts: rename it to objects"),
        ({"image": ["a.png"], "captions": []}, "line 1: `image` must be an image name or an id, not a list"),
        ({"image": "a", "captions": {"en": "A dog."}}, "line 1: `captions` must be a list, not an object"),
        (
            {"image": "a", "objects": '["dog", "cat"]'},
            "line 1: `objects` must be one name or a list of names, not a text that lists",
        ),
        (
            {"image": "a", "absent": "dog, cat"},
            "line 1: `absent` must be one name or a list of names, not a text that lists several",
        ),
        ({"image": "a", "absent": "dog\ncat"}, "several ('dog\\ncat'): write a list"),
        ({"image": "a", "captions": ""}, "line 1: `captions[1]` is empty: fill it in or remove it"),
        ({"image": "a", "relations": "a on b"}, "line 1: `relations` must be a list, not text"),
        ({"image": "a", "captions": [" "]}, "line 1: `captions[1]` is empty: fill it in or remove it"),
        ({"image": "a", "absent": [3]}, "line 1: `absent[1]` must be text, not a number"),
        ({"image": "a", "relations": [["a", "on"]]}, "line 1: `relations[1]` must be a list of 3, not ['a', 'on']"),
        ({"image": "a", "objects": [["a", 0]]}, "line 1: `objects[1]` must have a count of at least 1"),
        ({"image": "a", "objects": [["a", True]]}, "or null where it is unknown, not True"),
        ({"image": "a", "objects": [["a", "0"]]}, "or null where it is unknown, not '0'"),
        ({"image": "a", "objects": [["a", "two"]]}, "or null where it is unknown, not 'two'"),
        ({"image": "a", "objects": [["a", 1.5]]}, "or null where it is unknown, not 1.5"),
        ({"image": "a", "objects": [["a", "9" * 5000]]}, "or null where it is unknown, not '999"),
        ({"image": "a", "objects": [" "]}, "line 1: `objects[1]` is empty: fill it in or remove it"),
        (
            {"image": "a", "objects": [{"name": "a"}]},
            "line 1: `objects[1]` must be a name, or a list of a name and, if known, a count, a colour and a box, not {'name': 'a'}",
        ),
        ({"image": "a", "objects": [[]]}, "line 1: `objects[1]` must be a name, or a list of a name"),
        ({"image": "a", "objects": [[2, "a"]]}, "a count, a colour and a box, not [2, 'a']"),
        ({"image": "a", "objects": [["a", 1, None, None, 5]]}, "a count, a colour and a box, not ['a', 1, None, None, 5]"),
        ({"image": "a", "facts": [{"kind": "objct", "text": "a"}]}, "`facts[1].kind` must be one of caption, object,"),
        ({"image": "a", "facts": [{"kind": "ocr"}]}, "line 1: `facts[1].text` must be text, not null"),
        (
            {"image": "a", "facts": [{"kind": "ocr", "text": "a", "confidence": 2}]},
            "must be a number from 0 to 1, not 2",
        ),
        (
            {"image": "a", "facts": [{"kind": "scope", "text": "all"}]},
            "line 1: `facts[1].text` of a scope must be complete or incomplete, not 'all'",
        ),
        ({"image": "a", "facts": [{"kind": "scope"}]}, "line 1: `facts[1].text` must be text, not null"),
        (5, "line 1: a row must be an object with fields, not a number"),
    ],
)
def test_read_facts_errors_name_line_and_field(write_facts, facts_error, row, message):
    assert message in facts_error(write_facts("facts.jsonl", row))
