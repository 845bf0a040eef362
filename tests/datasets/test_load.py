"""Every format gives the same records, and every fault is one sentence with its place."""

import base64
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrlhf.commands.check import check
from mmrlhf.datasets import has_preferences, read_examples, read_preferences
from mmrlhf.facts import read_facts
from mmrlhf.files import bundled
from mmrlhf.models.images import open_image
from mmrlhf.records import Fact, InputError, Message

QUESTION = Message("user", "What is it?")


def user_turn(content):
    return {"role": "user", "content": content}


def assistant_turn(content):
    return {"role": "assistant", "content": content}


def human_turn(value):
    return {"from": "human", "value": value}


def gpt_turn(value):
    return {"from": "gpt", "value": value}


def content_parts(*texts):
    return [{"type": "image"}, *({"type": "text", "text": text} for text in texts)]


def png_bytes(colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def data_dir(tmp_path):
    """A folder with a picture, `a.png`, and a text file beside it, `../secret.png`."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(png_bytes())
    (tmp_path / "secret.png").write_bytes(png_bytes("blue"))
    return folder


def write_jsonl(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def write_json(folder, *rows):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=1))
    return str(path)


def error_of(read, path, **options):
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- TRL -------------------------------------------------------------------------------------------------------------

ONE_IMAGE = {"images": ["a.png"]}


@pytest.mark.parametrize(
    "row",
    [
        {
            **ONE_IMAGE,
            "prompt": [user_turn("What is it?")],
            "chosen": [assistant_turn("A cup.")],
            "rejected": [assistant_turn("A cat.")],
        },
        {
            **ONE_IMAGE,
            "prompt": [user_turn(content_parts("What is it?"))],
            "chosen": [assistant_turn("A cup.")],
            "rejected": "A cat.",
        },
        {**ONE_IMAGE, "prompt": "What is it?", "chosen": " A cup.\n", "rejected": "A cat."},
        {**ONE_IMAGE, "prompt": "<image>\nWhat is it?", "chosen": "A cup.", "rejected": "A cat."},
        {"image": "a.png", "question": "What is it?", "chosen": "A cup.", "rejected": "A cat."},
        {
            "image": "a.png",
            "chosen": [user_turn("What is it?"), assistant_turn("A cup.")],
            "rejected": [user_turn("What is it?"), assistant_turn("A cat.")],
        },
        {
            **ONE_IMAGE,
            "prompt": "What is it?",
            "chosen": [user_turn(content_parts("What ", "is it?")), assistant_turn([{"type": "text", "text": "A cup."}])],
            "rejected": [user_turn(content_parts("What ", "is it?")), assistant_turn("A cat.")],
        },
        {
            "image": "a.png",
            "conversations": [human_turn("<image>\nWhat is it?"), gpt_turn("A cup.")],
            "output_1": gpt_turn("A cat."),
            "output_2": gpt_turn("A cup."),
            "preference": 2,
        },
    ],
)
def test_read_preferences_accepts_every_pair_layout(place, row):
    (pair,) = read_preferences(write_jsonl(place, row))
    assert (pair.id, pair.prompt, pair.chosen, pair.rejected) == ("1", (QUESTION,), "A cup.", "A cat.")
    assert [image.path for image in pair.images] == [str(place / "a.png")]
    assert not pair.meta and not pair.facts
    (example,) = read_examples(write_jsonl(place, row))
    assert (example.prompt, example.answer) == ((QUESTION,), None)
    assert has_preferences(write_jsonl(place, row))


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({**ONE_IMAGE, "messages": [user_turn("What is it?"), assistant_turn("A cup.")]}, "A cup."),
        ({**ONE_IMAGE, "messages": [user_turn(content_parts("What is it?")), assistant_turn("A cup.")]}, "A cup."),
        ({**ONE_IMAGE, "messages": [user_turn("What is it?")]}, None),
        ({**ONE_IMAGE, "prompt": "What is it?", "completion": "A cup."}, "A cup."),
        ({**ONE_IMAGE, "prompt": [user_turn("What is it?")], "completion": [assistant_turn("A cup.")]}, "A cup."),
        ({"image": "a.png", "question": "What is it?", "answer": "A cup."}, "A cup."),
        ({**ONE_IMAGE, "prompt": "What is it?"}, None),
        ({"image": "a.png", "conversations": [human_turn("What is it?\n<image>"), gpt_turn("A cup.")]}, "A cup."),
        ({"image": "a.png", "conversations": [human_turn("<image>What is it?")]}, None),
    ],
)
def test_read_examples_accepts_every_example_layout(place, row, answer):
    path = write_jsonl(place, row)
    (example,) = read_examples(path, require_answer=answer is not None)
    assert (example.prompt, example.answer, example.meta) == ((QUESTION,), answer, {})
    assert [image.path for image in example.images] == [str(place / "a.png")]
    assert not has_preferences(path)
    if answer is None:
        assert "line 1: the row has no answer: add `completion`" in error_of(read_examples, path, require_answer=True)


def test_read_examples_keeps_earlier_turns_in_prompt(place):
    turns = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Hello!"), ("user", "What is it?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    trl = {**ONE_IMAGE, "messages": [*messages, assistant_turn("A cup.")]}
    roles = {"system": "system", "user": "human", "assistant": "gpt"}
    llava = [{"from": roles[role], "value": text} for role, text in turns]
    llava[3]["value"] += "<image>"
    for row in (trl, {"image": "a.png", "conversations": [*llava, gpt_turn("A cup.")]}):
        (example,) = read_examples(write_jsonl(place, row))
        assert [(turn.role, turn.content) for turn in example.prompt] == turns


def test_read_examples_ppo_row_uses_only_first_human_turn(place):
    row = {
        "id": 12,
        "image": "a.png",
        "conversations": [human_turn("<image>\nWhat is it?"), gpt_turn(""), human_turn("And this?"), gpt_turn("A cup.")],
        "captions": ["A cup."],
        "caption_type": 1,
        "length_bonus": -0.5,
    }
    (example,) = read_examples(write_json(place, row))
    assert (example.id, example.prompt, example.answer, example.facts) == ("12", (QUESTION,), None, ())
    assert example.meta == {"captions": ["A cup."], "caption_type": 1, "length_bonus": -0.5}


def test_read_preferences_keeps_unused_fields_in_meta(place):
    row = {
        **ONE_IMAGE,
        "prompt": "What is it?",
        "chosen": "A cup.",
        "rejected": "A cat.",
        "rejected_reason": "No cat.",
        "source": 3,
    }
    assert read_preferences(write_jsonl(place, row))[0].meta == {"rejected_reason": "No cat.", "source": 3}


def test_read_examples_reads_zero_and_several_images(place):
    (place / "b.png").write_bytes(png_bytes("blue"))
    path = write_jsonl(
        place,
        {"images": [], "prompt": "Hello?"},
        {"conversations": [human_turn("Hello?"), gpt_turn("Hello!")]},
        {"images": ["b.png", "a.png"], "prompt": [user_turn([*content_parts("What is it?"), {"type": "image"}])]},
    )
    examples = read_examples(path)
    assert [[Path(image.path).name for image in example.images] for example in examples] == [[], [], ["b.png", "a.png"]]
    assert examples[2].prompt == (QUESTION,)


# ---- preferences of other data sets -----------------------------------------------------------------------------------

PLAIN_PAIR = {"prompt": "What is it?", "chosen": "A cup.", "rejected": "A cat."}
TEXT_PAIR = {"question": "What is it?", "chosen": "A cup.", "rejected": "A cat."}


def rating_annotations(**ratings):
    return {name.replace("_", " "): {"Rating": rating, "Rationale": "So."} for name, rating in ratings.items()}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**PLAIN_PAIR, "margin": 2}, {"ratings": (2.0, 0.0)}),
        ({**PLAIN_PAIR, "margin": -0.5, "is_tie": True}, {"ratings": (-0.5, 0.0), "ranks": (1, 1)}),
        ({**PLAIN_PAIR, "is_tie": None, "margin": None}, {}),
        ({**PLAIN_PAIR, "hallucination": False, "source": " lab "}, {"hallucinated": False, "source": "lab"}),
        (
            {"text": json.dumps(TEXT_PAIR), "ds_name": "RLHF-V", "origin_dataset": "VQAv2", "idx": 7},
            {"id": "7", "source": "VQAv2"},
        ),
        ({"text": TEXT_PAIR, "ds_name": "RLHF-V", "idx": "x"}, {"id": "x", "source": "RLHF-V"}),
        ({**TEXT_PAIR, "idx": "3", "origin_dataset": "COCO", "id": 4}, {"id": "4", "source": "COCO"}),
        (
            {**PLAIN_PAIR, "is_tie": True, "chosen_reason": "a", "rejected_reason": "b", "ls_factor": 0},
            {"ratings": (0.0, 0.0), "ranks": (1, 1)},
        ),
        (
            {**PLAIN_PAIR, "is_tie": False, "ls_factor": 1.5, "source": 3, "ds_name": "MM"},
            {"ratings": (1.5, 0.0), "source": "MM"},
        ),
        ({"prompt": "What is it?", "answers": ["A cat.", "A cup."], "ranks": [5, 2]}, {"ranks": (2, 5)}),
        ({"prompt": [user_turn("What is it?")], "answers": ["A cat.", "A cup."], "ratings": [1, 4.5]}, {"ratings": (4.5, 1.0)}),
    ],
)
def test_read_preferences_accepts_other_datasets(place, row, expected):
    (pair,) = read_preferences(write_jsonl(place, {"image": "a.png", **row}))
    given = {"id": "1", "ranks": (1, 2), "ratings": (), "source": "", "hallucinated": None, **expected}
    assert (pair.prompt, pair.answers) == ((QUESTION,), ("A cup.", "A cat."))
    assert {name: getattr(pair, name) for name in given} == given
    (example,) = read_examples(write_jsonl(place, {"image": "a.png", **row}))
    assert (example.prompt, example.answer, example.id) == ((QUESTION,), None, pair.id)


@pytest.mark.parametrize("ratings", [[2, 5, 2], ["2", "5.0", "2"]])
def test_read_preferences_sorts_ranking_and_keeps_ties(place, ratings):
    row = {**ONE_IMAGE, "prompt": "What is it?", "answers": ["A cat.", "A cup.", "A dog."]}
    ranked = {**row, "ranks": [2, 1, 2]}
    rated = {**row, "ratings": [2, 5, 2]}
    both = {**row, "ranks": [2, 1, 2], "ratings": [9, 0, 9]}  # ranks count
    completions = [
        {
            "response": text,
            "model": "m",
            "annotations": rating_annotations(Helpfulness=rating, Ethical_Considerations="N/A", Visual_Faithfulness=rating),
        }
        for text, rating in zip(row["answers"], ratings, strict=True)
    ]
    again = {
        **completions[0],
        "response": " A cat.",
        "annotations": rating_annotations(Helpfulness="5"),
    }  # the first of one text counts
    feedback = {"id": 1, "prompt": "What is it?", "completions": [*completions, again], "img_path": "a.png"}
    table = {"response": [c["response"] for c in completions], "model": ["m"] * 3}
    table |= {"annotations": {aspect: {part: [c["annotations"][aspect][part] for c in completions] for part in ("Rating", "Rationale")}
                              for aspect in completions[0]["annotations"]}}  # fmt: skip
    hub = {"id": 1, "prompt": "What is it?", "completions": table, "image": "a.png"}
    listed_notes = {**hub, "completions": {**table, "annotations": [c["annotations"] for c in completions]}}
    for one in (ranked, rated, both, feedback, hub, listed_notes):
        (ranking,) = read_preferences(write_jsonl(place, one))
        assert ranking.answers == ("A cup.", "A cat.", "A dog.")
        assert ranking.ranks == (1, 2, 2)
        assert ranking.ratings == {"ranks": () if one is ranked else (0, 9, 9)}.get("ranks" if "ranks" in one else "", (5, 2, 2))
        assert has_preferences(write_jsonl(place, one))


def test_read_preferences_rating_mean_skips_non_numbers(place):
    notes = rating_annotations(Helpfulness="4", Ethical_Considerations="N/A", Visual_Faithfulness="1")
    row = {"prompt": "?", "img_path": "a.png", "completions": [
        {"response": "a", "annotations": notes}, {"response": "b", "annotations": rating_annotations(Helpfulness=3)},
        {"response": "c", "annotations": rating_annotations(Helpfulness="N/A")},
    ]}  # fmt: skip
    (ranking,) = read_preferences(write_jsonl(place, row))
    assert (ranking.answers, ranking.ratings) == (("b", "a"), (3.0, 2.5))


def test_has_preferences_ignores_fields_shared_with_examples(place):
    for more in ({"completions": ["a", "b"]}, {"answers": ["a"]}, {"ranks": [1]}, {"text": "a"}, {"ratings": 3, "is_tie": 1}):
        path = write_jsonl(place, {**ONE_IMAGE, "prompt": "What is it?", "completion": "A cup.", **more})
        assert not has_preferences(path)
        assert read_examples(path, require_answer=True)[0].answer == "A cup."


@pytest.mark.parametrize("field", ["image", "image_path", "img_path", "images"])
@pytest.mark.parametrize("way", ["path", "object", "uri", "bytes", "base64", "plain", "wrapped", "list"])
def test_read_preferences_accepts_every_image_encoding(place, field, way):
    text = base64.b64encode(noise := (png_bytes() + b"\0" * 300)).decode()
    (place / "n.png").write_bytes(noise)
    value = {
        "path": "n.png", "object": {"path": "n.png", "bytes": None}, "uri": f"data:image/png;base64,{text}", "bytes": {"bytes": text},
        "base64": {"base64": text, "path": "a.png"}, "plain": text, "wrapped": "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        "list": ["n.png", text],
    }[way]  # fmt: skip
    value = [value] if field == "images" and not isinstance(value, list) else value
    (pair,) = read_preferences(write_jsonl(place, {**PLAIN_PAIR, field: value}))
    assert [image.read() for image in pair.images] == [noise] * (2 if way == "list" else 1)
    assert "image" not in str(pair.meta)
    assert all(open_image(image).size == (4, 3) for image in pair.images)
    again = read_preferences(write_jsonl(place, {**PLAIN_PAIR, field: value}))
    assert again[0] == again[0] and again[0].images == pair.images


def test_read_preferences_image_path_note_finds_facts(place):
    row = {**PLAIN_PAIR, "image": {"bytes": base64.b64encode(png_bytes()).decode()}, "image_path": "far/away/b.png"}
    (pair,) = read_preferences(write_jsonl(place, row), facts={"b.png": (Fact("absent", "cat"),)})
    assert len(pair.images) == 1 and pair.meta == {"image_path": "far/away/b.png"}
    assert pair.facts == (Fact("absent", "cat"),)
    (pair,) = read_preferences(
        write_jsonl(place, {**PLAIN_PAIR, "image": "a.png", "image_path": "a.png"}), facts={"a.png": pair.facts}
    )
    assert pair.facts == (Fact("absent", "cat"),)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_read_preferences_keeps_dates_and_numbers_as_text(place):
    row = {"id": "007", **ONE_IMAGE, "prompt": "When?", "chosen": "2024-01-01", "rejected": "3"}
    (pair,) = read_preferences(write_jsonl(place, row, {**row, "prompt": [user_turn("When?")]}))[:1]
    assert (pair.id, pair.chosen, pair.rejected) == ("007", "2024-01-01", "3")


def test_read_examples_detects_list_or_lines_by_content(place):
    rows = [{**ONE_IMAGE, "prompt": "One?"}, {**ONE_IMAGE, "prompt": [user_turn("Two?")]}]
    as_list = Path(write_json(place, *rows))
    as_lines = place / "lines.json"
    as_lines.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n")
    named_lines = place / "list.jsonl"
    named_lines.write_text("\ufeff\n " + as_list.read_text())
    for path in (as_list, as_lines, named_lines):
        assert [example.prompt[0].content for example in read_examples(str(path))] == ["One?", "Two?"]
    assert [example.id for example in read_examples(str(as_lines))] == ["1", "3"]


def test_read_examples_rereads_edited_file(place):
    import datasets

    for answer in ("A cup.", "A mug."):
        row = {"images": [{"bytes": png_bytes(), "path": None}], "prompt": "What is it?", "completion": answer}
        datasets.Dataset.from_list([row]).to_parquet(str(place / "rows.parquet"))
        assert read_examples(str(place / "rows.parquet"))[0].answer == answer


@pytest.fixture(scope="module")
def image_table():
    import datasets

    rows = [
        {
            "images": [{"bytes": png_bytes(), "path": "a.png"}],
            "prompt": [user_turn(content_parts("What is it?"))],  # Arrow pads the image's part with `text: null`
            "chosen": [assistant_turn([{"type": "text", "text": "A cup."}])],
            "rejected": [assistant_turn([{"type": "text", "text": "A cat."}])],
            "facts": [{"kind": "object", "text": "cup", "source": None}],
        }
    ]
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


@pytest.mark.parametrize("layout", ["parquet", "[odd] name.parquet", "saved", "saved splits", "folder of parquet"])
def test_read_preferences_reads_tables_with_embedded_images(tmp_path, table, layout):
    import datasets

    path = tmp_path / layout
    if layout.endswith(".parquet") or layout == "parquet":
        path = path if path.suffix else tmp_path / "rows.parquet"
        table.to_parquet(str(path))
    elif layout == "saved":
        table.save_to_disk(str(path))
    elif layout == "saved splits":
        datasets.DatasetDict(train=table, test=table).save_to_disk(str(path))
        assert "has no split tets: did you mean test?" in error_of(read_preferences, str(path), split="tets")
        assert len(read_preferences(str(path), "test")) == 1
    else:
        (path / "data").mkdir(parents=True)
        table.to_parquet(str(path / "data" / "train-00000-of-00001.parquet"))
    (pair,) = read_preferences(str(path), facts={"a.png": (Fact("absent", "cat"),)})
    assert (pair.prompt, pair.chosen, pair.rejected) == ((QUESTION,), "A cup.", "A cat.")
    assert pair.images[0].data == png_bytes()
    assert pair.facts == (Fact("object", "cup"), Fact("absent", "cat"))


def test_read_preferences_treats_binary_column_as_images(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = {"image": [png_bytes()], "prompt": ["What?"], "chosen": ["A cup."], "rejected": ["A cat."]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "one.parquet")
    rows["images"] = [[rows.pop("image")[0]] * 2]
    parquet.write_table(pyarrow.table(rows), tmp_path / "two.parquet")
    assert [len(read_preferences(str(tmp_path / f"{name}.parquet"))[0].images) for name in ("one", "two")] == [1, 2]
    assert read_preferences(str(tmp_path / "one.parquet"))[0].images[0].data == png_bytes()


def test_read_preferences_reads_table_in_parts_without_decoding(tmp_path, table, monkeypatch):
    import datasets

    monkeypatch.setattr("mmrlhf.files.tables.ROWS_PER_BATCH", 2)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    (whole,) = table.cast_column("images", datasets.List(datasets.Image(decode=False)))
    rows = [{**whole, "chosen": [assistant_turn([{"type": "text", "text": f"Cup {number}."}])]} for number in range(1, 6)]
    datasets.Dataset.from_list(rows, features=table.features).to_parquet(str(tmp_path / "rows.parquet"))
    assert [(pair.id, pair.chosen) for pair in read_preferences(str(tmp_path / "rows.parquet"))] == [
        (f"{number}", f"Cup {number}.") for number in range(1, 6)
    ]
    rows[3]["rejected"] = rows[3]["chosen"]
    for part, name in ((rows[:1], "train-00000-of-00002"), (rows[1:], "train-00001-of-00002"), (rows[:2], "test-00000-of-00001")):
        (tmp_path / "shards").mkdir(exist_ok=True)
        datasets.Dataset.from_list(part, features=table.features).to_parquet(str(tmp_path / "shards" / f"{name}.parquet"))
    assert "shards, row 4: the chosen and the rejected answer are the same" in error_of(
        read_preferences, str(tmp_path / "shards")
    )
    assert len(read_preferences(str(tmp_path / "shards"), "test")) == 2
    assert "has no split tets: did you mean test?" in error_of(read_preferences, str(tmp_path / "shards"), split="tets")


def test_read_examples_reads_json_columns(tmp_path):
    import datasets

    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets has no columns of JSON")
    rows = [{"images": [], "prompt": [user_turn("Hello?")]}]
    features = datasets.Features(images=datasets.List(datasets.Image()), prompt=datasets.List(datasets.Json()))
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    assert read_examples(str(tmp_path / "saved"))[0].prompt == (Message("user", "Hello?"),)


def test_read_examples_hub_dataset_needs_image_folder(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([{"image": "a.png", "prompt": "What is it?"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "owner/name, row 1: `image` is a path, 'a.png': give --image_folder" in error_of(
        read_examples, "owner/name", split="test"
    )
    assert asked == [("owner/name", "test")]


def test_read_examples_hub_error_is_one_sentence(monkeypatch):
    import datasets

    def load_dataset(name, split):
        raise ConnectionError("cannot\nreach it.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert error_of(read_examples, "owner/name").startswith("owner/name cannot be read (cannot reach it): correct")


def test_read_examples_refuses_unusable_files(place):
    assert "none.jsonl does not exist: correct the path" in error_of(read_examples, str(place / "none.jsonl"))
    for name in ("none.parquet", "none"):
        assert "does not exist: give a file, a `datasets` folder" in error_of(read_examples, str(place / name))
    assert "is not a .json, .jsonl or .parquet file" in error_of(read_examples, str(place / "a.png"))
    assert "is not a saved `datasets` folder: name the data file" in error_of(read_examples, str(place))
    (place / "bad.parquet").write_bytes(b"PAR1 and more")
    assert "bad.parquet cannot be read (Parquet magic bytes" in error_of(read_examples, str(place / "bad.parquet"))
    for empty in (write_jsonl(place), write_jsonl(place, "", " "), write_json(place)):
        assert "has no rows: give a dataset with at least one" in error_of(read_examples, empty)
    path = write_jsonl(place, {**ONE_IMAGE, "prompt": "What is it?"})
    assert "image folder no/such does not exist" in error_of(read_examples, path, image_folder="no/such")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{bad", "rows.jsonl, line 2: not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ('"text"', "line 2: a row must be an object with fields, not text"),
        ("null", "line 2: a row must be an object with fields, not null"),
        ('{"a": ' + "[" * 100_000, "line 2: nested too deep to be data"),
        ('{"id": ' + "[" * 600 + "]" * 600 + "}", "line 2: "),
    ],
)
def test_read_examples_refuses_line_that_is_not_a_row(place, row, message):
    assert message in error_of(read_examples, write_jsonl(place, {**ONE_IMAGE, "prompt": "What is it?"}, row))


def test_read_examples_refuses_invalid_json_list(place):
    path = place / "rows.json"
    path.write_text('[{"a": 1},\n {"a" 2}]')
    assert "rows.json: not JSON (Expecting ':' delimiter at line 2, column 7)" in error_of(read_examples, str(path))
    path.write_bytes(b'[{"a": "\xff"}]')
    assert "rows.json: not JSON" in error_of(read_examples, str(path))


# ---- rows ------------------------------------------------------------------------------------------------------------

PAIR = {"id": "p", **ONE_IMAGE, "prompt": [user_turn("What is it?")], "chosen": "A cup.", "rejected": "A cat."}
LLAVA_PAIR = {
    "image": "a.png",
    "conversations": [human_turn("<image>\nWhat is it?"), gpt_turn("A cup.")],
    "output_1": gpt_turn("A cup."),
    "output_2": gpt_turn("A cat."),
    "preference": 1,
}


def without_field(row, field):
    return {name: value for name, value in row.items() if name != field}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without_field(PAIR, "chosen"), "`chosen` is missing: add it (the row has id, images, prompt, rejected)"),
        ({**PAIR, "chosen": None}, "`chosen` is missing: add it"),
        ({**without_field(PAIR, "chosen"), "chosne": "A cup."}, "`chosen` is missing: rename `chosne` to it"),
        (without_field(PAIR, "prompt"), "`prompt` is missing: add it"),
        (without_field(PAIR, "images"), "`images` is missing: add it, `[]` for a row without pictures"),
        ({**without_field(PAIR, "images"), "imagse": ["a.png"]}, "`images` is missing: rename `imagse` to it"),
        ({**PAIR, "image": "a.png"}, "both `images` and `image` are given: keep one"),
        ({**PAIR, "id": 1.5}, "`id` must be text or a whole number, not a number"),
        ({**PAIR, "prompt": 3}, "`prompt` must be text or a list of turns, not a number"),
        ({**PAIR, "prompt": []}, "`prompt` must be text or a list of turns, not an empty one"),
        ({**PAIR, "prompt": ["Hello?"]}, "`prompt[1]` must be an object with role and content, not text"),
        (
            {**PAIR, "prompt": [{"role": "human", "content": "a"}]},
            "`prompt[1].role` must be one of system, user, assistant, not 'human'",
        ),
        ({**PAIR, "prompt": [{"role": "user"}]}, "`prompt[1].content` must be text, not null"),
        (
            {**PAIR, "prompt": [user_turn([{"type": "video"}])]},
            "`prompt[1].content[1]` must be a part of type text or image",
        ),
        (
            {**PAIR, "prompt": [user_turn([*content_parts(), {"type": "text", "text": 1}])]},
            "`prompt[1].content[2].text` must be text",
        ),
        ({**PAIR, "prompt": [user_turn("Hi."), assistant_turn("Hi.")]}, "the prompt must end with a user turn"),
        (
            {**PAIR, "prompt": [user_turn("Hi."), {"role": "system", "content": "a"}, user_turn("Hi.")]},
            "turn 2 of the prompt is a system turn: only the first may be one",
        ),
        ({**PAIR, "prompt": " "}, "turn 1 of the prompt is empty"),
        (
            {**PAIR, "prompt": [user_turn("Hi."), assistant_turn("<image>Hi."), user_turn("So?")]},
            "turn 2 of the prompt, not the user's",
        ),
        ({**PAIR, "prompt": [user_turn([*content_parts("a"), {"type": "image"}])]}, "has places for 2 images and the row has 1"),
        ({**PAIR, "prompt": [user_turn([{"type": "text", "text": "a"}])]}, "has places for 0 images and the row has 1"),
        ({**PAIR, "prompt": "<image><image>What is it?"}, "has places for 2 images and the row has 1"),
        ({**PAIR, "images": [], "prompt": [user_turn(content_parts("a"))]}, "has places for 1 images and the row has 0"),
        ({**PAIR, "prompt": "half \ud800"}, "is not valid Unicode: remove the unpaired surrogate"),
        ({**PAIR, "rejected": "A cup. "}, "the chosen and the rejected answer are the same"),
        ({**PAIR, "rejected": " "}, "`rejected` is empty: fill it in or drop the row"),
        ({**PAIR, "rejected": 4}, "`rejected` must be text or a list of turns, not a number"),
        ({**PAIR, "rejected": [user_turn("A cat.")]}, "`rejected` must be the assistant's turn, not the user's"),
        ({**PAIR, "rejected": "<image> A cat."}, "`rejected` holds an image or <image>: an answer is text alone"),
        ({**PAIR, "rejected": [assistant_turn("a"), assistant_turn("b")]}, "`rejected` must be one assistant turn, not 2 turns"),
        (
            {**ONE_IMAGE, "chosen": [user_turn("a"), assistant_turn("b")], "rejected": [user_turn("c"), assistant_turn("d")]},
            "`chosen` and `rejected` may differ in their last turn only",
        ),
        ({**PAIR, "images": "a.png"}, "`images` must be a list, not text: write one picture as `image`"),
        ({**PAIR, "images": [3]}, "`images[1]` must be a path, or an object with bytes, not 3"),
        ({**PAIR, "images": [{"bytes": "iVBOR"}]}, "`images[1]` is not base64 ("),
        ({**PAIR, "images": ["b.png"]}, "`images[1]` does not exist in "),
        ({**PAIR, "images": ["a.png\0"]}, "`images[1]` does not exist in "),
        ({**PAIR, "images": ["../secret.png"]}, "`images[1]` leads out of the image folder "),
        ({**PAIR, "images": [{"path": "x/../../secret.png"}]}, "`images[1]` leads out of the image folder "),
        ({**PAIR, "images": ["/etc/passwd"]}, "`images[1]` leads out of the image folder "),
        ({**PAIR, "images": ["https://example.org/a.png"]}, "`images[1]` is an address, "),
        ({**PAIR, "facts": {"kind": "ocr"}}, "`facts` must be a list, not an object"),
        ({**PAIR, "facts": ["A cup."]}, "`facts[1]` must be an object with kind and text, not text"),
        (without_field(LLAVA_PAIR, "output_2"), "`output_2` is missing: add it (the row has image, conversations, output_1,"),
        (without_field(LLAVA_PAIR, "preference"), "`preference` is missing: add it"),
        ({**LLAVA_PAIR, "preference": 0}, "`preference` must be 1 or 2, the number of the better output, not 0"),
        ({**LLAVA_PAIR, "preference": True}, "`preference` must be 1 or 2, the number of the better output, not True"),
        ({**LLAVA_PAIR, "preference": "1"}, "`preference` must be 1 or 2, the number of the better output, not '1'"),
        ({**LLAVA_PAIR, "output_1": gpt_turn("A cat.")}, "the chosen and the rejected answer are the same"),
        ({**LLAVA_PAIR, "output_1": human_turn("A cup.")}, "`output_1` must be the assistant's turn, not the user's"),
        ({**LLAVA_PAIR, "output_1": "A cup."}, "`output_1` must be an object with from and value, not text"),
        ({**LLAVA_PAIR, "conversations": []}, "`conversations` must be a list of turns, not an empty one"),
        ({**LLAVA_PAIR, "conversations": [gpt_turn("A cup.")]}, "the prompt must end with a user turn"),
        (
            {**LLAVA_PAIR, "conversations": [{"from": "user", "value": "a"}]},
            "`conversations[1].from` must be one of system, human, gpt, not 'user'",
        ),
        ({**LLAVA_PAIR, "conversations": [human_turn("What is it?")]}, "has places for 0 images and the row has 1"),
        (without_field(LLAVA_PAIR, "image"), "has places for 1 images and the row has 0"),
    ],
)
def test_read_preferences_errors_name_line_and_field(place, row, message):
    path = write_jsonl(place, PAIR, "", row)
    assert f"{path}, line 3: " in error_of(read_preferences, path)
    assert message in error_of(read_preferences, path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ONE_IMAGE, "`messages` is missing: add it, or `prompt` (the row has images)"),
        ({**ONE_IMAGE, "mesages": []}, "`messages` is missing: rename `mesages` to it"),
        ({**ONE_IMAGE, "promt": "a"}, "`prompt` is missing: rename `promt` to it"),
        ({**ONE_IMAGE, "messages": "a"}, "`messages` must be a list of turns, not text"),
        ({**ONE_IMAGE, "messages": [assistant_turn("a")]}, "the prompt must end with a user turn"),
        ({**ONE_IMAGE, "messages": [user_turn("a"), assistant_turn("")]}, "`messages[2]` is empty"),
        ({**ONE_IMAGE, "prompt": "a", "completion": ""}, "`completion` is empty"),
        ({**ONE_IMAGE, "prompt": "a", "chosen": "b", "rejected": "c"}, "no answer: pairs and prompts cannot be imitated"),
        ({"image": "a.png", "conversations": [human_turn("<image>a")], "captions": []}, "cannot be imitated"),
    ],
)
def test_read_examples_errors_name_row_and_field(place, row, message):
    path = write_json(place, row)
    said = error_of(read_examples, path, require_answer=True)
    assert f"{path}, row 1: " in said and message in said


def test_read_examples_absolute_path_must_stay_in_folder(place, tmp_path):
    path = write_jsonl(tmp_path, {"image": str(place / "a.png"), "prompt": "What is it?"})
    assert read_examples(path)[0].images[0].path == str(place / "a.png")
    assert read_examples(path, image_folder=str(place))
    (tmp_path / "other").mkdir()
    assert "leads out of the image folder" in error_of(read_examples, path, image_folder=str(tmp_path / "other"))


def test_read_examples_link_may_leave_only_explicit_folder(place):
    (place / "link.png").symlink_to("../secret.png")
    (place / "inner.png").symlink_to("a.png")
    (place / "up").symlink_to("..")
    for image in ("link.png", "up/secret.png"):
        path = write_jsonl(place, {"image": image, "prompt": "What is it?"})
        said = error_of(read_examples, path)
        assert f"line 1: `image` leads out of {place} by a link: {image!r}; if the link is yours, give --image_folder" in said
        assert read_examples(path, image_folder=str(place))[0].images[0].read() == png_bytes("blue")
    assert read_examples(write_jsonl(place, {"image": "inner.png", "prompt": "What is it?"}))
    # A link is no way round the rule on `..`: the two are settled as text, before any link is followed.
    path = write_jsonl(place, {"image": "up/../../secret.png", "prompt": "What is it?"})
    assert "leads out of the image folder" in error_of(read_examples, path, image_folder=str(place))


def test_read_examples_follows_link_to_dataset_folder(place):
    (place.parent / "alias").symlink_to(place)
    write_jsonl(place, {"image": "a.png", "prompt": "What is it?"})
    assert read_examples(str(place.parent / "alias" / "rows.jsonl"))


def test_read_examples_image_name_states_its_row(place, table):
    path = write_jsonl(place, {**ONE_IMAGE, "prompt": "One?"}, {"image": "a.png", "prompt": "Two?"})
    assert [e.images[0].name for e in read_examples(path)] == [
        f"{place / 'a.png'} ({path}, line 1, `images[1]`)",
        f"{place / 'a.png'} ({path}, line 2, `image`)",
    ]
    table.to_parquet(str(place / "rows.parquet"))
    (pair,) = read_preferences(str(place / "rows.parquet"))
    assert pair.images[0].name == f"<{len(png_bytes())} bytes> ({place / 'rows.parquet'}, row 1, `images[1]`)"


def test_read_examples_resolves_relative_image_folder(place, monkeypatch):
    monkeypatch.chdir(place.parent)
    path = write_jsonl(place.parent, {"image": "a.png", "prompt": "What is it?"})
    assert read_examples(path, image_folder="data")[0].images[0].path == str(place / "a.png")


def test_read_examples_matches_facts_by_image_then_id(place):
    (place / "sub").mkdir()
    (place / "sub" / "b.png").write_bytes(png_bytes())
    path = write_jsonl(
        place,
        {**ONE_IMAGE, "prompt": "One?", "facts": [{"kind": "ocr", "text": "own"}]},
        {"id": "x", "image": "sub/b.png", "prompt": "Two?"},
        {"id": "y", "image": "sub/b.png", "prompt": "Three?"},
        {"id": "x", "images": [], "prompt": "Four?"},
        {"images": [], "prompt": "Five?"},
    )
    known = {"a.png": (Fact("ocr", "a"),), "b.png": (Fact("ocr", "b"),), "x": (Fact("ocr", "x"),)}
    read = [[fact.text for fact in example.facts] for example in read_examples(path, facts=known)]
    assert read == [["own", "a"], ["b"], ["b"], ["x"], []]
    whole = {**known, "sub/b.png": (Fact("ocr", "sub"),)}
    assert [fact.text for fact in read_examples(path, facts=whole)[1].facts] == ["sub"]
    told_twice = write_jsonl(
        place,
        {**ONE_IMAGE, "prompt": "One?", "facts": [{"kind": "ocr", "text": "a"}]},
        {"images": ["a.png", "a.png"], "prompt": "Two?"},
    )
    assert [[fact.text for fact in e.facts] for e in read_examples(told_twice, facts=known)] == [["a"], ["a"]]
    elsewhere = write_jsonl(place, {"id": "x", "image": "a.png", "prompt": "Whose id?"}, {"image": "sub/b.png", "prompt": "?"})
    assert (
        read_examples(elsewhere, facts={"x": known["x"], "b.png": known["b.png"]})[0].facts == ()
    )  # the id is another picture's
    said = error_of(read_preferences, write_jsonl(place, PLAIN_PAIR | {"image": "a.png"}), facts={"z.png": known["x"]})
    assert "the facts file says nothing of the pictures in its first 1 rows (it speaks of 'z.png')" in said


FIELDS = "id image images prompt chosen rejected messages completion conversations output_1 output_2 preference facts"
FIELDS += " text question idx image_path img_path completions answers ranks ratings is_tie margin ls_factor hallucination source"
KEYS = st.sampled_from(["role", "content", "type", "text", "from", "value", "bytes", "path", "kind", "response", "annotations"])
STRINGS = st.sampled_from(["user", "assistant", "human", "gpt", "image", "text", "a.png", "../a", "<image>", "A"])
STRINGS |= st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | STRINGS, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS.split()) | STRINGS, VALUES, max_size=6) | VALUES, max_size=3))
def test_readers_accept_or_refuse_any_json(place, rows):
    for path in (write_jsonl(place, *map(json.dumps, rows)), write_json(place, *rows)):
        for read in (read_examples, read_preferences):
            try:
                records = read(path)
                assert len(records) == len(rows)
                assert list(records) == list(records)
            except InputError as error:
                assert "\n" not in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_read_examples_refuses_random_bytes(place, data):
    (place / "rows.jsonl").write_bytes(data)
    with pytest.raises(InputError):
        read_examples(str(place / "rows.jsonl"))


# ---- mmrlhf data check -----------------------------------------------------------------------------------------------


def test_check_names_each_bad_row_and_counts_the_rest(place, capsys):
    (place / "broken.png").write_bytes(png_bytes()[:45])
    (place / "[bold].png").write_bytes(b"")
    path = write_jsonl(
        place,
        PAIR,
        "{",
        without_field(PAIR, "chosen"),
        {**PAIR, "images": ["broken.png"]},
        {**PAIR, "images": ["[bold].png"]},
    )
    facts = write_jsonl(place, {"image": "a.png", "objects": [["cup", 2]]}, name="facts.jsonl")
    assert check(path, facts_file=facts) == 1
    printed = capsys.readouterr().out
    assert f"{path}: TRL preference pairs\n" in printed
    assert f"{path}, line 2: not JSON" in printed
    assert f"{path}, line 3: `chosen` is missing: add it" in printed
    assert f"image {place / 'broken.png'} ({path}, line 4, `images[1]`) is truncated or damaged" in printed
    assert f"image {place / '[bold].png'} ({path}, line 5, `images[1]`) is empty (0 bytes)" in printed
    summary = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in printed.splitlines() if "│" in line}
    assert summary == {
        "good rows": "1",
        "bad rows": "4",
        "distinct pictures": "3",
        "chosen, mean words": "2.0",
        "rejected, mean words": "2.0",
        "rows with facts": "1 of 1, 2.0 each",
    }


def test_check_shows_at_most_twenty_errors(place, capsys):
    assert check(write_jsonl(place, *[{**ONE_IMAGE, "prompt": ""}] * 23)) == 1
    printed = capsys.readouterr().out
    assert printed.count("is empty") == 20 and "... and 3 more" in printed


def test_check_refuses_missing_files(place):
    assert "does not exist" in error_of(check, str(place / "none.jsonl"))
    assert "does not exist" in error_of(check, write_jsonl(place, PAIR), facts_file=str(place / "none.json"))


# ---- the samples that come with the package --------------------------------------------------------------------------

SAMPLES = bundled.find("data", "samples")


@pytest.mark.parametrize(
    ("name", "layout", "rows", "with_facts"),
    [
        ("trl_preference.jsonl", "TRL preference pairs", 8, 8),
        ("trl_preference.parquet", "TRL preference pairs", 8, 8),
        ("llava_rlhf_preference.json", "LLaVA-RLHF pairs", 8, 8),
        ("llava_rlhf_ppo.json", "LLaVA-RLHF prompts", 7, 7),
        ("rlhf_v.parquet", "RLHF-V pairs", 8, 8),
        ("rlaif_v.jsonl", "RLAIF-V pairs", 8, 8),
        ("mm_rlhf.jsonl", "MM-RLHF pairs", 9, 9),
        ("vlfeedback.jsonl", "VLFeedback rankings", 6, 6),
        ("rankings.jsonl", "rankings", 6, 6),
        ("sft.jsonl", "TRL messages", 7, 6),
    ],
)
@pytest.mark.parametrize("facts", ["facts.jsonl", "image_to_caption.json"])
def test_check_accepts_bundled_samples(name, layout, rows, with_facts, facts, capsys):
    assert check(str(SAMPLES / name), facts_file=str(SAMPLES / facts)) == 0
    printed = capsys.readouterr().out
    assert f"{name}: {layout}\n" in printed
    assert f"{with_facts} of {rows}," in printed


def comparable(pairs):
    return [replace(pair, id="", images=tuple(image.key for image in pair.images), hallucinated=None, meta={}) for pair in pairs]


def test_samples_are_equal_in_every_format():
    facts = read_facts(SAMPLES / "facts.jsonl")
    jsonl, parquet, llava = (
        comparable(read_preferences(str(SAMPLES / name), facts=facts))
        for name in ("trl_preference.jsonl", "trl_preference.parquet", "llava_rlhf_preference.json")
    )
    assert jsonl == parquet == llava
    assert len(read_examples(str(SAMPLES / "sft.jsonl"), require_answer=True)) == 7


# ---- real photographs ------------------------------------------------------------------------------------------------

PHOTOS = Path(os.environ.get("MMRLHF_SHARED", Path(__file__).parents[3] / "shared")) / "photos"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs: MMRLHF_SHARED names the folder that holds photos/")
def test_photos_give_equal_pairs_in_both_formats(capsys):
    facts = read_facts(PHOTOS / "facts.jsonl")
    trl, llava = (read_preferences(str(PHOTOS / name), facts=facts) for name in ("pairs.jsonl", "llava_rlhf_preference.json"))
    assert len(trl) == 12 and comparable(trl) == comparable(llava)
    assert all(any(fact.kind == "absent" for fact in pair.facts) for pair in trl)
    assert read_facts(PHOTOS / "image_to_caption.json").keys() == facts.keys()
    assert check(str(PHOTOS / "pairs.jsonl"), facts_file=str(PHOTOS / "facts.jsonl")) == 0
