"""`mmrlhf data facts` writes facts that stages read, from annotations, captions and a captioner."""

import base64
import json

import pytest

from mmrlhf.cli import main
from mmrlhf.datasets import read_examples
from mmrlhf.facts import read_facts
from mmrlhf.files import bundled
from mmrlhf.records import Fact
from tests.helpers.fake_server import FAKE_MODEL, chat_completion, scripted_server
from tests.helpers.rows import make_data_dir, png_bytes, write_jsonl

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}, {"id": 2, "file_name": "other.png", "width": 1, "height": 1}],
    "categories": [{"id": 3, "name": "cup"}],
    "annotations": [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5]}],
}  # fmt: skip
CAPTIONS = {"images": COCO["images"], "annotations": [{"image_id": 1, "id": 9, "caption": "A cup.\n"}]}
VG_OBJECTS = [{"image_id": 1, "objects": [{"object_id": 5, "names": ["man"], "attributes": ["old"]}]}]
VG_RELATIONS = [
    {
        "image_id": 1,
        "relationships": [
            {
                "predicate": "ON",
                "subject": {"object_id": 5, "name": "man"},
                "object": {"object_id": 6, "names": ["horse"]},
            }
        ],
    }
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Create a folder with images and rows, and go there."""
    folder = make_data_dir(tmp_path)
    for name in ("b", "1"):
        (folder / f"{name}.png").write_bytes(png_bytes("green" if name == "b" else "blue"))
    write_jsonl(folder, *[{"id": f"r{n}", "image": f"{n}.png", "prompt": "What is it?"} for n in ("a", "b", "1", "a")])
    monkeypatch.chdir(folder)
    return folder


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))
    return name


def test_facts_of_coco_files_are_kept_for_a_dataset(folder, capsys):
    instances, captions = write(folder, "instances.json", COCO), write(folder, "captions.json", CAPTIONS)
    line = ["data", "facts", instances, captions, "--dataset_name", "rows.jsonl", "--output_file", "facts.jsonl"]
    assert main([*line, "--confidence", "0.5"]) == 0
    assert "facts.jsonl: 3 facts about 1 images of the 3 of rows.jsonl" in capsys.readouterr().out
    expected = (
        Fact("object", "cup", "instances.json", 0.5, (0.0, 0.0, 0.5, 0.5)),
        Fact("count", "one cup", "instances.json", 0.5),
        Fact("caption", "A cup.", "captions.json", 0.5),
    )
    assert read_facts("facts.jsonl") == {"a.png": expected}
    assert read_examples("rows.jsonl", facts=read_facts("facts.jsonl"))[0].facts == expected
    assert main([*line[:4], "--output_file", "all.jsonl"]) == 0
    assert read_facts("all.jsonl")["a.png"][0].confidence == 1.0


def test_facts_of_visual_genome_come_from_two_files(folder):
    files = [write(folder, "objects.json", VG_OBJECTS), write(folder, "relationships.json", VG_RELATIONS)]
    assert main(["data", "facts", *files, "--dataset_name", "rows.jsonl", "--output_file", "facts.jsonl"]) == 0
    texts = [(fact.kind, fact.text, fact.source) for fact in read_facts("facts.jsonl")["1.png"]]
    assert texts == [("object", "old man", "objects.json"), ("relation", "man on horse", "relationships.json")]


def test_facts_from_a_column_of_captions(folder, capsys):
    write_jsonl(
        folder, {"file_name": "a.png", "text": "A cup."}, {"image": "b.png", "text": ["A mug.", "A\nplate."]}, name="c.jsonl"
    )
    assert main(["data", "facts", "c.jsonl", "--caption_key", "text", "--output_file", "facts.jsonl"]) == 0
    assert [fact.text for facts in read_facts("facts.jsonl").values() for fact in facts] == ["A cup.", "A mug.", "A plate."]
    write(folder, "rows.json", {"test": [{"image": "a.png", "prompt": "What is it?"}]})
    line = ["data", "facts", "c.jsonl", "--caption_key", "text", "--dataset_name", "rows.json", "--split", "test"]
    assert main([*line, "--output_file", "test.jsonl"]) == 0 and set(read_facts("test.jsonl")) == {"a.png"}
    assert main(["data", "facts", "c.jsonl", "--caption_key", "txet", "--output_file", "facts.jsonl"]) == 2
    assert "c.jsonl, line 1: `txet` is missing: rename `text` to it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coco.json", "--dataset_name", "rows.jsonl", "--confidence", "2"], "must be a number from 0 to 1, not '2'"),
        (["foreign.json", "--dataset_name", "rows.jsonl"], "no facts about the images of rows.jsonl (its first is a.png)"),
        (["empty.json"], "there are no facts to write to facts.jsonl"),
        (["rows.jsonl", "--captioner", "http://127.0.0.1:1/v1", "--caption_key", "x"], "--captioner takes one FILE"),
        (["rows.jsonl", "--captioner", "127.0.0.1"], "is not a server URL: use http://HOST:PORT/v1"),
    ],
)
def test_unusable_arguments_leave_no_file(arguments, message, folder, capsys):
    write(folder, "coco.json", COCO)
    write(folder, "foreign.json", {"x.png": ["A cat."]})
    write(folder, "empty.json", {**COCO, "annotations": []})
    before = sorted(folder.iterdir())
    assert main(["data", "facts", *arguments, "--output_file", "facts.jsonl"]) == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_a_captioner_is_asked_once_about_each_image(folder, capsys):
    with scripted_server((200, chat_completion("A  cup.\nIt is red."), {})) as server:
        line = ["data", "facts", "rows.jsonl", "--captioner", server.url, "--question", "What?", "--output_file", "facts.jsonl"]
        assert main([*line, "--confidence", "0.7"]) == 0
        assert len(server.requests) == 3
        content = server.requests[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"] and content[1]["text"] == "What?"
    fact = Fact("caption", "A cup. It is red.", FAKE_MODEL, 0.7)
    assert read_facts("facts.jsonl") == {"a.png": (fact,), "b.png": (fact,), "1.png": (fact,)}
    assert "captions of 3 images by stub" in capsys.readouterr().out
    assert not list(folder.glob(".*"))


def embedded(*colours, **fields):
    """Return a row with these images inside it."""
    images = [{"bytes": base64.b64encode(png_bytes(colour)).decode()} for colour in colours]
    return {"images": images, "prompt": "<image>" * len(colours) + "?", **fields}


def test_each_embedded_image_of_a_row_gets_a_caption(folder):
    """They have no names, so their captions are facts about their row."""
    write_jsonl(folder, embedded("red", "green", id="r"), embedded("red", id="s"), name="embedded.jsonl")
    line = ["data", "facts", "embedded.jsonl", "--concurrency", "1", "--output_file", "facts.jsonl", "--captioner"]
    with scripted_server(*((200, chat_completion(text), {}) for text in ("Red.", "Green."))) as server:
        assert main([*line, server.url]) == 0
        assert len(server.requests) == 2
    examples = read_examples("embedded.jsonl", facts=read_facts("facts.jsonl"))
    assert [[fact.text for fact in example.facts] for example in examples] == [["Red.", "Green."], ["Red."]]


@pytest.mark.parametrize("shared", [{"image_path": "image.png"}, {"id": "r"}])
def test_different_images_of_one_name_are_refused(shared, folder, capsys):
    """Facts found by the name would be about both."""
    line = ["data", "facts", "embedded.jsonl", "--output_file", "facts.jsonl", "--captioner"]
    write_jsonl(folder, embedded("red", **shared), embedded("green", **shared), name="embedded.jsonl")
    with scripted_server((200, chat_completion("A cup."), {})) as server:
        assert main([*line, server.url]) == 2
        error = capsys.readouterr().err
        assert f"embedded.jsonl: different images are named '{next(iter(shared.values()))}', <" in error
        assert "embedded.jsonl, line 1, `images[1]`" in error and "embedded.jsonl, line 2, `images[1]`" in error
        write_jsonl(folder, embedded("red", **shared), embedded("red", **shared), name="embedded.jsonl")
        assert main([*line, server.url]) == 0 and len(server.requests) == 1


def test_a_captioner_goes_on_after_failures(folder, capsys):
    good, bad = (200, chat_completion("A cup."), {}), (400, {"error": "no"}, {})
    line = ["data", "facts", "rows.jsonl", "--concurrency", "1", "--output_file", "facts.jsonl", "--captioner"]
    with scripted_server(good, bad, good) as server:
        assert main([*line, server.url]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 images got no caption (the first: HTTP 400" in error and "run the same command again" in error
    assert not (folder / "facts.jsonl").exists()
    with (folder / ".facts.jsonl.captions.jsonl").open("a") as file:
        file.write('{"image": "cut')  # as a kill leaves it
    with scripted_server(good) as server:
        assert main([*line, server.url]) == 0
        assert len(server.requests) == 1
    assert len(read_facts("facts.jsonl")) == 3


@pytest.mark.parametrize("name", ["trl_preference.parquet", "rlhf_v.parquet", "rlaif_v.jsonl", "mm_rlhf.jsonl"])
def test_facts_written_for_a_dataset_are_found_for_each_of_its_rows(name, tmp_path):
    samples = bundled.find("data", "samples")
    line = ["data", "facts", str(samples / name), "--output_file", str(tmp_path / "facts.jsonl"), "--captioner"]
    with scripted_server((200, chat_completion("A cup."), {})) as server:
        assert main([*line, server.url]) == 0
    facts = read_facts(tmp_path / "facts.jsonl")
    examples = read_examples(str(samples / name), facts=facts)
    assert all(any(fact.source == FAKE_MODEL for fact in example.facts) for example in examples)


def test_files_that_are_no_images_are_named_before_the_captioner_is_asked(folder, capsys):
    for name in ("a.png", "b.png"):
        (folder / name).write_text("<html>")
    with scripted_server((200, chat_completion("A cup."), {})) as server:
        assert main(["data", "facts", "rows.jsonl", "--captioner", server.url, "--output_file", "facts.jsonl"]) == 2
        assert server.requests == []
    assert "rows.jsonl: 2 of 3 images cannot be read: 2 images: image" in capsys.readouterr().err
    assert not list(folder.glob("*facts*"))


def test_facts_of_several_files_keep_equal_objects_and_count_no_scope(folder, capsys):
    scope = {"kind": "scope", "text": "complete"}
    write_jsonl(folder, {"image": "a.png", "objects": [["cup"], ["cup"]], "facts": [scope]}, name="one.jsonl")
    line = ["data", "facts", "one.jsonl", "one.jsonl", "--output_file", "facts.jsonl"]
    assert main(line) == 0
    assert "facts.jsonl: 2 facts about 1 images" in capsys.readouterr().out
    assert [fact.text for fact in read_facts("facts.jsonl")["a.png"]] == ["cup", "cup", "complete"]


def test_facts_are_not_written_over_an_input(folder, capsys):
    write_jsonl(folder, {"image": "a.png", "objects": ["cup"]}, name="facts.jsonl")
    assert main(["data", "facts", "facts.jsonl", "--output_file", "facts.jsonl"]) == 2
    assert "output_file facts.jsonl is an input file: name another" in capsys.readouterr().err


def test_facts_by_a_file_name_that_two_images_share_are_not_written(folder, capsys):
    (folder / "x").mkdir()
    (folder / "x" / "a.png").write_bytes(png_bytes("green"))
    rows = write_jsonl(folder, *({"image": name, "prompt": "?"} for name in ("a.png", "x/a.png")), name="shared.jsonl")
    facts = write_jsonl(folder, {"image": "a.png", "objects": [["cup"]]}, name="by_name.jsonl")
    assert main(["data", "facts", facts, "--dataset_name", rows, "--output_file", "out.jsonl"]) == 2
    assert "by_name.jsonl: the facts about 'a.png' match two images" in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()
