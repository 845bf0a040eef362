"""Files of facts: their formats, rows merged by image, lookups by name and by row."""

import pytest

from mmrlhf.facts import facts_about, facts_for_image, read_facts, read_facts_file
from mmrlhf.records import Fact, ImageSource, InputError


def test_read_facts_reads_llava_rlhf_map(write_facts):
    path = write_facts("image_to_caption.json", {"a.jpg": ["A dog\n on grass."], "b.jpg": [], "c.jpg": "A cat."})
    dog, cat = (Fact("caption", text, path.name) for text in ("A dog on grass.", "A cat."))
    assert read_facts(path) == {"a.jpg": (dog,), "b.jpg": (), "c.jpg": (cat,)}


def test_read_facts_merges_lines_of_one_image(write_facts):
    path = write_facts("f.jsonl", {"image": "a", "ocr": ["x"]}, {"id": 7, "ocr": ["y"]}, {"image": "a", "ocr": ["z"]})
    assert {name: [fact.text for fact in facts] for name, facts in read_facts(path).items()} == {
        "a": ["x", "z"],
        "7": ["y"],
    }


def test_read_facts_merges_scene_graphs_of_one_image(write_facts):
    dog, cat = ({"image_id": 7, "objects": [{"object_id": 1, "names": [noun]}]} for noun in ("dog", "cat"))
    for name, rows in (
        ("graphs.json", [[dog, cat]]),
        ("graphs.jsonl", [{"image": "7", "objects": ["dog"]}, {"image": "7", "objects": ["cat"]}]),
    ):
        assert [fact.text for fact in read_facts(write_facts(name, *rows))["7"]] == ["dog", "cat"]


def test_read_facts_keeps_the_scope(write_facts):
    path = write_facts("f.jsonl", {"image": "a", "objects": [["dog"]], "facts": [{"kind": "scope", "text": "complete"}]})
    assert read_facts(path)["a"] == (Fact("object", "dog", "f.jsonl"), Fact("scope", "complete"))


def test_read_facts_refuses_missing_or_malformed_file(tmp_path, write_facts, facts_error):
    assert "facts.jsonl does not exist: correct the path" in facts_error(tmp_path / "facts.jsonl")
    assert "map.json does not exist: correct the path" in facts_error(tmp_path / "map.json")
    assert "map.json, 'a.jpg': `captions` must be a list, not a number" in facts_error(write_facts("map.json", {"a.jpg": 3}))


def texts(found):
    """Return the texts of the facts that a lookup found, and whether they are its row's."""
    facts, is_by_row = found
    return [fact.text for fact in facts], is_by_row


def test_facts_file_looks_up_by_name_and_by_row(write_facts):
    path = write_facts("facts.jsonl", {"ocr": ["x"]}, {"ocr": ["y"]})
    facts_file = read_facts_file(str(path))
    assert texts(facts_file.lookup((), None, 2, "answer 2")) == (["y"], True)
    assert texts(facts_file.lookup(("b.jpg",), 9, 2, "answer 2")) == (["y"], True)
    with pytest.raises(InputError, match=r"answer 3: .*facts.jsonl has only 2 rows"):
        facts_file.lookup((), None, 3, "answer 3")
    captions = read_facts_file(str(write_facts("map.json", {"a.jpg": ["A dog."]})))
    assert texts(captions.lookup(("images/a.jpg",), None, 1, "answer 1")) == (["A dog."], False)
    with pytest.raises(InputError, match=r"answer 1: `image` is missing, and .*map.json has facts by image name"):
        captions.lookup((), None, 1, "answer 1")


def test_facts_file_never_joins_named_facts_by_row(write_facts):
    rows = ({"id": "r1", "images": ["a.jpg"], "ocr": ["a"]}, {"id": "r2", "image": "b.jpg", "ocr": ["b"]})
    facts_file = read_facts_file(str(write_facts("facts.jsonl", *rows)))
    assert texts(facts_file.lookup(("dir/b.jpg",), "r1", 1, "answer 1")) == (["b"], False)  # the image decides
    assert texts(facts_file.lookup(("b.jpg", "a.jpg"), None, 1, "answer 1")) == (["b", "a"], False)
    assert texts(facts_file.lookup((), "r2", 1, "answer 1")) == (["b"], False)
    assert texts(facts_file.lookup(("c.jpg",), None, 1, "answer 1")) == ([], False)
    for id_ in (None, "r3"):
        with pytest.raises(InputError, match=r"answer 1: `image` is missing"):
            facts_file.lookup((), id_, 1, "answer 1")


def test_facts_file_with_ids_alone_looks_up_rows_and_scene_graphs(write_facts):
    facts_file = read_facts_file(str(write_facts("facts.jsonl", {"id": 7, "ocr": ["x"]}, {"id": 8, "ocr": ["y"]})))
    assert texts(facts_file.lookup((), 8, 1, "answer 1")) == (["y"], False)
    assert texts(facts_file.lookup(("8.jpg",), None, 1, "answer 1")) == (["y"], False)
    assert texts(facts_file.lookup(("9.jpg",), None, 1, "answer 1")) == ([], False)  # another image, not row 1
    assert texts(facts_file.lookup((), None, 1, "answer 1")) == (["x"], True)


def test_facts_for_image_falls_back_to_the_longest_end_of_the_path_and_the_id():
    dog, cat, cow, hen = ((Fact("object", noun),) for noun in ("dog", "cat", "cow", "hen"))
    facts = {"train/a.jpg": dog, "a.jpg": cat, "b": cow, "train/c.jpg": (), "c.jpg": hen}
    assert facts_for_image(facts, "train/a.jpg") == facts_for_image(facts, "/data/train/a.jpg") == dog
    assert facts_for_image(facts, "val/a.jpg") == facts_for_image(facts, "untrain/a.jpg") == cat
    assert facts_for_image(facts, "val/b.jpg") == cow
    assert facts_for_image(facts, "train/c.jpg") == facts_for_image(facts, "d.jpg") == ()


def test_facts_about_a_row_are_those_of_its_images_or_without_names_those_under_its_id():
    dog, cat = (Fact("object", noun) for noun in ("dog", "cat"))
    facts = {"1": (dog,), "2": (cat, dog), "3": ()}
    images = [ImageSource(path=f"x/{name}.jpg") for name in ("1", "2", "4")]
    assert facts_about(facts, "2", images[:1]) == (dog,)  # its id is another image's name
    assert facts_about(facts, "2", images[2:]) == ()
    assert facts_about(facts, "5", images) == (dog, cat, dog)
    assert facts_about(facts, "5", [ImageSource(data=b"x", recorded_name="1.jpg")]) == (dog,)
    for unnamed in ((), (ImageSource(data=b"x"),)):
        assert [facts_about(facts, row_id, unnamed) for row_id in ("2", "3", "5")] == [(cat, dog), (), ()]


def test_equal_facts_of_one_image_stay_two_in_every_lookup(write_facts):
    path = write_facts("facts.jsonl", {"image": "a.jpg", "objects": ["dog", "dog"]}, {"image": "b.jpg", "objects": ["dog"]})
    assert texts(read_facts_file(str(path)).lookup(("x/a.jpg", "a.jpg"), None, 1, "answer 1")) == (["dog", "dog"], False)
    images = tuple(ImageSource(path=name) for name in ("a.jpg", "b.jpg", "a.jpg"))
    assert [fact.text for fact in facts_about(read_facts(path), "row 1", images)] == ["dog", "dog", "dog"]


def test_a_file_name_stands_for_one_image(write_facts):
    facts_file = read_facts_file(str(write_facts("facts.jsonl", {"image": "a.jpg", "ocr": ["x"]})))
    for image in ("x/a.jpg", "./x/a.jpg", "a.jpg", "/data/x/a.jpg"):
        assert texts(facts_file.lookup((image,), None, 1, "answer 1")) == (["x"], False)
    with pytest.raises(InputError, match=r"answer 2: the facts about 'a.jpg' match two images, 'x/a.jpg' and 'y/a.jpg'"):
        facts_file.lookup(("y/a.jpg",), None, 2, "answer 2")


def test_read_facts_reads_lines_in_a_file_named_json(write_facts):
    path = write_facts("facts.json", {"image": "a", "ocr": ["x"]}, {"image": "b", "ocr": ["y"]})
    assert read_facts(path) == {"a": (Fact("ocr", "x", "facts.json"),), "b": (Fact("ocr", "y", "facts.json"),)}
