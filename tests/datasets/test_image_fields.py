"""Images are read in every encoding, only from the image folder; their names select the facts."""

import base64
from pathlib import Path

import pytest

from mmrlhf.datasets import read_examples, read_preferences
from mmrlhf.models.images import open_image
from mmrlhf.records import Fact, Message
from tests.helpers.rows import (
    ONE_IMAGE,
    TEXT_PAIR,
    content_parts,
    error_of,
    gpt_turn,
    human_turn,
    png_bytes,
    user_turn,
    write_jsonl,
)


def facts_of_examples(path, facts_by_name):
    """Return the texts of each example's facts."""
    return [[fact.text for fact in example.facts] for example in read_examples(path, facts=facts_by_name)]


def test_read_examples_reads_zero_and_several_images(data_dir):
    (data_dir / "b.png").write_bytes(png_bytes("blue"))
    path = write_jsonl(
        data_dir,
        {"images": [], "prompt": "Hello?"},
        {"conversations": [human_turn("Hello?"), gpt_turn("Hello!")]},
        {"images": ["b.png", "a.png"], "prompt": [user_turn([*content_parts("What is it?"), {"type": "image"}])]},
    )
    examples = read_examples(path)
    assert [[Path(image.path).name for image in example.images] for example in examples] == [[], [], ["b.png", "a.png"]]
    assert examples[2].prompt == (Message("user", "What is it?", (0, 11)),)


@pytest.mark.parametrize("field", ["image", "image_path", "img_path", "images"])
@pytest.mark.parametrize("encoding", ["path", "object", "uri", "bytes", "base64", "bare", "wrapped", "list"])
def test_read_preferences_accepts_every_image_encoding(data_dir, field, encoding):
    image_bytes = png_bytes() + b"\0" * 300  # longer than any path
    (data_dir / "n.png").write_bytes(image_bytes)
    text = base64.b64encode(image_bytes).decode()
    value = {
        "path": "n.png",
        "object": {"path": "n.png", "bytes": None},
        "uri": f"data:image/png;base64,{text}",
        "bytes": {"bytes": text},
        "base64": {"base64": text, "path": "a.png"},
        "bare": text,
        "wrapped": "\n".join(text[start : start + 76] for start in range(0, len(text), 76)),
        "list": ["n.png", text],
    }[encoding]
    value = [value] if field == "images" and not isinstance(value, list) else value
    (pair,) = read_preferences(write_jsonl(data_dir, {**TEXT_PAIR, field: value}))
    assert [image.read() for image in pair.images] == [image_bytes] * (2 if encoding == "list" else 1)
    assert "image" not in str(pair.meta)
    assert all(open_image(image).size == (4, 3) for image in pair.images)
    reread = read_preferences(write_jsonl(data_dir, {**TEXT_PAIR, field: value}))
    assert reread[0] == reread[0] and reread[0].images == pair.images


def test_read_preferences_image_path_note_finds_facts(data_dir):
    row = {**TEXT_PAIR, "image": {"bytes": base64.b64encode(png_bytes()).decode()}, "image_path": "far/away/b.png"}
    (pair,) = read_preferences(write_jsonl(data_dir, row), facts={"b.png": (Fact("absent", "cat"),)})
    assert len(pair.images) == 1 and pair.meta == {"image_path": "far/away/b.png"}
    assert pair.facts == (Fact("absent", "cat"),)
    same_path = write_jsonl(data_dir, {**TEXT_PAIR, "image": "a.png", "image_path": "a.png"})
    (pair,) = read_preferences(same_path, facts={"a.png": pair.facts})
    assert pair.facts == (Fact("absent", "cat"),)


def test_read_preferences_treats_binary_column_as_images(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = {"image": [png_bytes()], "prompt": ["What?"], "chosen": ["A cup."], "rejected": ["A cat."]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "one.parquet")
    rows["images"] = [[rows.pop("image")[0]] * 2]
    parquet.write_table(pyarrow.table(rows), tmp_path / "two.parquet")
    assert [len(read_preferences(str(tmp_path / f"{name}.parquet"))[0].images) for name in ("one", "two")] == [1, 2]
    assert read_preferences(str(tmp_path / "one.parquet"))[0].images[0].data == png_bytes()


def test_read_examples_absolute_path_must_stay_in_folder(data_dir, tmp_path):
    path = write_jsonl(tmp_path, {"image": str(data_dir / "a.png"), "prompt": "What is it?"})
    assert read_examples(path)[0].images[0].path == str(data_dir / "a.png")
    assert read_examples(path, image_folder=str(data_dir))
    (tmp_path / "other").mkdir()
    assert "is outside the image folder" in error_of(read_examples, path, image_folder=str(tmp_path / "other"))


def test_read_examples_link_may_leave_only_explicit_folder(data_dir):
    (data_dir / "link.png").symlink_to("../secret.png")
    (data_dir / "inner.png").symlink_to("a.png")
    (data_dir / "up").symlink_to("..")
    for image in ("link.png", "up/secret.png"):
        path = write_jsonl(data_dir, {"image": image, "prompt": "What is it?"})
        error = error_of(read_examples, path)
        assert f"line 1: `image` leaves {data_dir} through a symlink: {image!r}; if you trust it, give --image_folder" in error
        assert read_examples(path, image_folder=str(data_dir))[0].images[0].read() == png_bytes("blue")
    assert read_examples(write_jsonl(data_dir, {"image": "inner.png", "prompt": "What is it?"}))
    # A symlink cannot circumvent the check of `..`, which is resolved before links are followed.
    path = write_jsonl(data_dir, {"image": "up/../../secret.png", "prompt": "What is it?"})
    assert "is outside the image folder" in error_of(read_examples, path, image_folder=str(data_dir))


def test_read_examples_follows_link_to_dataset_folder(data_dir):
    (data_dir.parent / "alias").symlink_to(data_dir)
    write_jsonl(data_dir, {"image": "a.png", "prompt": "What is it?"})
    assert read_examples(str(data_dir.parent / "alias" / "rows.jsonl"))


def test_read_examples_image_name_states_its_row(data_dir, image_table):
    path = write_jsonl(data_dir, {**ONE_IMAGE, "prompt": "One?"}, {"image": "a.png", "prompt": "Two?"})
    assert [example.images[0].name for example in read_examples(path)] == [
        f"{data_dir / 'a.png'} ({path}, line 1, `images[1]`)",
        f"{data_dir / 'a.png'} ({path}, line 2, `image`)",
    ]
    image_table.to_parquet(str(data_dir / "rows.parquet"))
    (pair,) = read_preferences(str(data_dir / "rows.parquet"))
    assert pair.images[0].name == f"<{len(png_bytes())} bytes> ({data_dir / 'rows.parquet'}, row 1, `images[1]`)"


def test_read_examples_resolves_relative_image_folder(data_dir, monkeypatch):
    monkeypatch.chdir(data_dir.parent)
    path = write_jsonl(data_dir.parent, {"image": "a.png", "prompt": "What is it?"})
    assert read_examples(path, image_folder="data")[0].images[0].path == str(data_dir / "a.png")


def test_read_examples_matches_facts_by_image_then_id(data_dir):
    (data_dir / "sub").mkdir()
    (data_dir / "sub" / "b.png").write_bytes(png_bytes())
    path = write_jsonl(
        data_dir,
        {**ONE_IMAGE, "prompt": "One?", "facts": [{"kind": "ocr", "text": "own"}]},
        {"id": "x", "image": "sub/b.png", "prompt": "Two?"},
        {"id": "y", "image": "sub/b.png", "prompt": "Three?"},
        {"id": "x", "images": [], "prompt": "Four?"},
        {"images": [], "prompt": "Five?"},
    )
    facts_by_name = {"a.png": (Fact("ocr", "a"),), "b.png": (Fact("ocr", "b"),), "x": (Fact("ocr", "x"),)}
    assert facts_of_examples(path, facts_by_name) == [["own", "a"], ["b"], ["b"], ["x"], []]
    with_full_path = {**facts_by_name, "sub/b.png": (Fact("ocr", "sub"),)}
    assert facts_of_examples(path, with_full_path)[1] == ["sub"]


def test_read_examples_repeats_no_fact(data_dir):
    path = write_jsonl(
        data_dir,
        {**ONE_IMAGE, "prompt": "One?", "facts": [{"kind": "ocr", "text": "a"}]},
        {"images": ["a.png", "a.png"], "prompt": "Two?"},
    )
    assert facts_of_examples(path, {"a.png": (Fact("ocr", "a"),)}) == [["a"], ["a"]]


def test_read_examples_row_id_finds_no_facts_of_a_named_image(data_dir):
    (data_dir / "b.png").write_bytes(png_bytes())
    path = write_jsonl(data_dir, {"id": "x", "image": "a.png", "prompt": "Whose id?"}, {"image": "b.png", "prompt": "?"})
    assert facts_of_examples(path, {"x": (Fact("ocr", "x"),), "b.png": (Fact("ocr", "b"),)}) == [[], ["b"]]


def test_read_preferences_refuses_facts_about_other_images(data_dir):
    path = write_jsonl(data_dir, TEXT_PAIR | {"image": "a.png"})
    error = error_of(read_preferences, path, facts={"z.png": (Fact("ocr", "x"),)})
    assert "the facts file has no facts about the images of the 1 row (it has 'z.png')" in error
    (data_dir / "z.png").write_bytes(png_bytes())
    rows = [TEXT_PAIR | {"image": "a.png"}] * 1000 + [TEXT_PAIR | {"image": "z.png"}]
    assert read_preferences(write_jsonl(data_dir, *rows), facts={"z.png": (Fact("ocr", "x"),)})[-1].facts


def test_read_examples_refuses_facts_by_a_file_name_that_two_images_share(data_dir):
    for name, colour in (("x/a.png", "red"), ("y/a.png", "blue"), ("z/a.png", "red")):
        (data_dir / name).parent.mkdir()
        (data_dir / name).write_bytes(png_bytes(colour))

    def prompts(*images):
        return write_jsonl(data_dir, *({"image": image, "prompt": "?"} for image in images))

    by_name = {"a.png": (Fact("ocr", "a"),)}
    for images in (("x/a.png", "y/a.png"), ("y/a.png", "a.png")):
        error = error_of(read_examples, prompts(*images), facts=by_name)
        assert "line 2: the facts about 'a.png' match two images" in error and "name images in the facts file by paths" in error
    assert facts_of_examples(prompts("x/a.png", "z/a.png", "./x/a.png", "a.png"), by_name) == [["a"]] * 4  # copies of one image
    by_path = {"x/a.png": (Fact("ocr", "x"),), "y/a.png": (Fact("ocr", "y"),), "z/a.png": ()}
    assert facts_of_examples(prompts("x/a.png", "y/a.png", "z/a.png"), by_path | by_name) == [["x"], ["y"], []]
    pair = {"images": ["x/a.png", "y/a.png"], "prompt": "?"}
    assert "line 1: the facts about 'a.png' match two images" in error_of(
        read_examples, write_jsonl(data_dir, pair), facts=by_name
    )


def test_facts_are_found_by_ids_that_pandas_wrote(data_dir):
    path = write_jsonl(data_dir, {"id": 1.0, "images": [], "prompt": "?"}, {"images": [], "prompt": "?"})
    facts = {"1": (Fact("ocr", "one"),), "None": (Fact("ocr", "none"),), "2": (Fact("ocr", "two"),)}
    assert facts_of_examples(path, facts) == [["one"], []]
