"""Facts are read with their kinds, and written in one order for all who compare."""

import json

import pytest

from mmrlhf.facts import load_facts_template, read_facts, render_facts
from mmrlhf.records import Fact, InputError


def write_rows(tmp_path, name, *rows):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def facts_error(path):
    with pytest.raises(InputError) as caught:
        read_facts(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_read_facts_reads_llava_rlhf_map(tmp_path):
    path = write_rows(tmp_path, "image_to_caption.json", {"a.jpg": ["A dog\n on grass."], "b.jpg": []})
    assert read_facts(path) == {"a.jpg": (Fact("caption", "A dog on grass.", path.name),), "b.jpg": ()}


def test_read_facts_gives_every_list_its_kind(tmp_path):
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
    found = read_facts(write_rows(tmp_path, "facts.jsonl", row))["a.jpg"]
    assert [(fact.kind, fact.text) for fact in found] == [
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
    assert {fact.source for fact in found[:-1]} == {"facts.jsonl"}
    assert (found[-1].source, found[-1].confidence) == ("model", 0.5)


@pytest.mark.parametrize(
    ("noun", "many"),
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
def test_read_facts_pluralises_counted_nouns(tmp_path, noun, many):
    path = write_rows(tmp_path, "facts.jsonl", {"image": "a", "objects": [[noun, 2, None]]})
    assert read_facts(path)["a"][1].text == many


def test_read_facts_writes_large_counts_as_digits(tmp_path):
    path = write_rows(tmp_path, "facts.jsonl", {"image": "a", "objects": [["boat", 40]]})
    assert read_facts(path)["a"][1].text == "40 boats"


def test_read_facts_merges_lines_of_one_image(tmp_path):
    path = write_rows(tmp_path, "f.jsonl", {"image": "a", "ocr": ["x"]}, {"id": 7, "ocr": ["y"]}, {"image": "a", "ocr": ["z"]})
    assert {name: [fact.text for fact in facts] for name, facts in read_facts(path).items()} == {
        "a": ["x", "z"],
        "7": ["y"],
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"captions": []}, "line 1: `image` is missing: add it (the row has captions)"),
        ({"imgae": "a"}, "line 1: `image` is missing: rename `imgae` to it"),
        ({"image": "a", "objets": []}, "line 1: `objets` is not a field of facts: rename it to objects"),
        ({"image": ["a.png"], "captions": []}, "line 1: `image` must be a picture's name or an id, not a list"),
        ({"image": "a", "captions": "A dog."}, "line 1: `captions` must be a list, not text"),
        ({"image": "a", "captions": [" "]}, "line 1: `captions[1]` is empty: fill it in or remove it"),
        ({"image": "a", "absent": [3]}, "line 1: `absent[1]` must be text, not a number"),
        ({"image": "a", "relations": [["a", "on"]]}, "line 1: `relations[1]` must be a list of 3, not ['a', 'on']"),
        ({"image": "a", "objects": [["a", 0]]}, "line 1: `objects[1]` must have a count of at least 1"),
        ({"image": "a", "objects": [["a", True]]}, "or null where it is unknown, not True"),
        ({"image": "a", "objects": ["a"]}, "line 1: `objects[1]` must be a list of 4, not 'a'"),
        ({"image": "a", "facts": [{"kind": "objct", "text": "a"}]}, "`facts[1].kind` must be one of caption, object,"),
        ({"image": "a", "facts": [{"kind": "ocr"}]}, "line 1: `facts[1].text` must be text, not null"),
        (
            {"image": "a", "facts": [{"kind": "ocr", "text": "a", "confidence": 2}]},
            "must be a number from 0 to 1, not 2",
        ),
        (5, "line 1: a row must be an object with fields, not a number"),
    ],
)
def test_read_facts_errors_name_line_and_field(tmp_path, row, message):
    assert message in facts_error(write_rows(tmp_path, "facts.jsonl", row))


def test_read_facts_refuses_missing_or_malformed_file(tmp_path):
    assert "facts.jsonl does not exist: correct the path" in facts_error(tmp_path / "facts.jsonl")
    assert "map.json does not exist: correct the path" in facts_error(tmp_path / "map.json")
    assert "map.json, 'a.jpg': `captions` must be a list, not text" in facts_error(
        write_rows(tmp_path, "map.json", {"a.jpg": "A dog."})
    )


def test_read_facts_crowd_leaves_its_kind_uncounted(tmp_path):
    def person(number, crowd, image=1):
        return {"id": number, "image_id": image, "category_id": 1, "iscrowd": crowd, "bbox": [0, 0, 5, 10]}

    whole = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 10, "height": 10} for n in (1, 2)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [person(1, 0), person(2, 1), person(3, 0, 2), person(4, 0, 2)],
    }
    found = read_facts(write_rows(tmp_path, "instances.json", whole))
    assert [f.text for f in found["1.jpg"]] == ["person", "person"]  # more than one, and nobody knows how many
    assert [f.text for f in found["2.jpg"]] == ["person", "person", "two people"]


def test_load_facts_template_keeps_a_users_template(tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for f in facts %}<{{ f.text }}>{% endfor %}")
    text = load_facts_template(str(tmp_path / "mine.jinja"))
    (tmp_path / "mine.jinja").unlink()
    assert render_facts(FACTS[:2], template=text) == "<plate><fork>" and load_facts_template("captions") == "captions"
    with pytest.raises(InputError, match="there is typed, captions, or the path of a Jinja file"):
        load_facts_template(str(tmp_path / "mine.jinja"))
    (tmp_path / "bad.jinja").write_text("{{ fact.text }}")
    with pytest.raises(InputError, match=r"facts_template cannot be used .*it is given `facts`"):
        load_facts_template(str(tmp_path / "bad.jinja"))


FACTS = tuple(Fact("object", name) for name in ("plate", "fork", "cup", "spoon", "bowl"))


def test_render_facts_is_one_line_in_seeded_order():
    text = render_facts((Fact("caption", "A\n\n dog"), Fact("absent", "cat")))
    assert text == "Facts: caption A dog; absent cat."
    assert render_facts(()) == render_facts((), 3) == ""
    assert render_facts(FACTS, 3) == render_facts(FACTS, 3)
    orders = {render_facts(FACTS, seed) for seed in range(20)}
    assert len(orders) > 10
    assert all(sorted(text[7:-1].split("; ")) == sorted(f"object {fact.text}" for fact in FACTS) for text in orders)
