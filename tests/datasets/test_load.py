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

ASK = Message("user", "What is it?")


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def human(value):
    return {"from": "human", "value": value}


def gpt(value):
    return {"from": "gpt", "value": value}


def parts(*texts):
    return [{"type": "image"}, *({"type": "text", "text": text} for text in texts)]


def png(colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def place(tmp_path):
    """A folder with a picture, `a.png`, and a text file beside it, `../secret.png`."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png("blue"))
    return folder


def lines(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def listed(folder, *rows):
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=1))
    return str(path)


def complaint(read, path, **options):
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- TRL -------------------------------------------------------------------------------------------------------------

IMAGE = {"images": ["a.png"]}


@pytest.mark.parametrize(
    "row",
    [
        {**IMAGE, "prompt": [user("What is it?")], "chosen": [assistant("A cup.")], "rejected": [assistant("A cat.")]},
        {**IMAGE, "prompt": [user(parts("What is it?"))], "chosen": [assistant("A cup.")], "rejected": "A cat."},
        {**IMAGE, "prompt": "What is it?", "chosen": " A cup.\n", "rejected": "A cat."},
        {**IMAGE, "prompt": "<image>\nWhat is it?", "chosen": "A cup.", "rejected": "A cat."},
        {"image": "a.png", "question": "What is it?", "chosen": "A cup.", "rejected": "A cat."},
        {
            "image": "a.png",
            "chosen": [user("What is it?"), assistant("A cup.")],
            "rejected": [user("What is it?"), assistant("A cat.")],
        },
        {
            **IMAGE,
            "prompt": "What is it?",
            "chosen": [user(parts("What ", "is it?")), assistant([{"type": "text", "text": "A cup."}])],
            "rejected": [user(parts("What ", "is it?")), assistant("A cat.")],
        },
        {
            "image": "a.png",
            "conversations": [human("<image>\nWhat is it?"), gpt("A cup.")],
            "output_1": gpt("A cat."),
            "output_2": gpt("A cup."),
            "preference": 2,
        },
    ],
)
def test_every_way_to_write_a_pair(place, row):
    (pair,) = read_preferences(lines(place, row))
    assert (pair.id, pair.prompt, pair.chosen, pair.rejected) == ("1", (ASK,), "A cup.", "A cat.")
    assert [image.path for image in pair.images] == [str(place / "a.png")]
    assert not pair.meta and not pair.facts
    (example,) = read_examples(lines(place, row))
    assert (example.prompt, example.answer) == ((ASK,), None)
    assert has_preferences(lines(place, row))


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({**IMAGE, "messages": [user("What is it?"), assistant("A cup.")]}, "A cup."),
        ({**IMAGE, "messages": [user(parts("What is it?")), assistant("A cup.")]}, "A cup."),
        ({**IMAGE, "messages": [user("What is it?")]}, None),
        ({**IMAGE, "prompt": "What is it?", "completion": "A cup."}, "A cup."),
        ({**IMAGE, "prompt": [user("What is it?")], "completion": [assistant("A cup.")]}, "A cup."),
        ({"image": "a.png", "question": "What is it?", "answer": "A cup."}, "A cup."),
        ({**IMAGE, "prompt": "What is it?"}, None),
        ({"image": "a.png", "conversations": [human("What is it?\n<image>"), gpt("A cup.")]}, "A cup."),
        ({"image": "a.png", "conversations": [human("<image>What is it?")]}, None),
    ],
)
def test_every_way_to_write_an_example(place, row, answer):
    path = lines(place, row)
    (example,) = read_examples(path, require_answer=answer is not None)
    assert (example.prompt, example.answer, example.meta) == ((ASK,), answer, {})
    assert [image.path for image in example.images] == [str(place / "a.png")]
    assert not has_preferences(path)
    if answer is None:
        assert "line 1: the row has no answer: add `completion`" in complaint(read_examples, path, require_answer=True)


def test_earlier_turns_stay_in_the_prompt(place):
    turns = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Hello!"), ("user", "What is it?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    trl = {**IMAGE, "messages": [*messages, assistant("A cup.")]}
    roles = {"system": "system", "user": "human", "assistant": "gpt"}
    llava = [{"from": roles[role], "value": text} for role, text in turns]
    llava[3]["value"] += "<image>"
    for row in (trl, {"image": "a.png", "conversations": [*llava, gpt("A cup.")]}):
        (example,) = read_examples(lines(place, row))
        assert [(turn.role, turn.content) for turn in example.prompt] == turns


def test_only_the_first_human_turn_of_a_ppo_row_counts(place):
    row = {
        "id": 12,
        "image": "a.png",
        "conversations": [human("<image>\nWhat is it?"), gpt(""), human("And this?"), gpt("A cup.")],
        "captions": ["A cup."],
        "caption_type": 1,
        "length_bonus": -0.5,
    }
    (example,) = read_examples(listed(place, row))
    assert (example.id, example.prompt, example.answer, example.facts) == ("12", (ASK,), None, ())
    assert example.meta == {"captions": ["A cup."], "caption_type": 1, "length_bonus": -0.5}


def test_what_no_stage_reads_is_kept(place):
    row = {**IMAGE, "prompt": "What is it?", "chosen": "A cup.", "rejected": "A cat.", "rejected_reason": "No cat.", "source": 3}
    assert read_preferences(lines(place, row))[0].meta == {"rejected_reason": "No cat.", "source": 3}


def test_rows_without_pictures_and_with_several(place):
    (place / "b.png").write_bytes(png("blue"))
    path = lines(
        place,
        {"images": [], "prompt": "Hello?"},
        {"conversations": [human("Hello?"), gpt("Hello!")]},
        {"images": ["b.png", "a.png"], "prompt": [user([*parts("What is it?"), {"type": "image"}])]},
    )
    examples = read_examples(path)
    assert [[Path(image.path).name for image in example.images] for example in examples] == [[], [], ["b.png", "a.png"]]
    assert examples[2].prompt == (ASK,)


# ---- preferences of other data sets -----------------------------------------------------------------------------------

PLAIN = {"prompt": "What is it?", "chosen": "A cup.", "rejected": "A cat."}
TEXT = {"question": "What is it?", "chosen": "A cup.", "rejected": "A cat."}


def aspects(**ratings):
    return {name.replace("_", " "): {"Rating": rating, "Rationale": "So."} for name, rating in ratings.items()}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**PLAIN, "margin": 2}, {"ratings": (2.0, 0.0)}),
        ({**PLAIN, "margin": -0.5, "is_tie": True}, {"ratings": (-0.5, 0.0), "ranks": (1, 1)}),
        ({**PLAIN, "is_tie": None, "margin": None}, {}),
        ({**PLAIN, "hallucination": False, "source": " lab "}, {"hallucinated": False, "source": "lab"}),
        ({"text": json.dumps(TEXT), "ds_name": "RLHF-V", "origin_dataset": "VQAv2", "idx": 7}, {"id": "7", "source": "VQAv2"}),
        ({"text": TEXT, "ds_name": "RLHF-V", "idx": "x"}, {"id": "x", "source": "RLHF-V"}),
        ({**TEXT, "idx": "3", "origin_dataset": "COCO", "id": 4}, {"id": "4", "source": "COCO"}),
        (
            {**PLAIN, "is_tie": True, "chosen_reason": "a", "rejected_reason": "b", "ls_factor": 0},
            {"ratings": (0.0, 0.0), "ranks": (1, 1)},
        ),
        ({**PLAIN, "is_tie": False, "ls_factor": 1.5, "source": 3, "ds_name": "MM"}, {"ratings": (1.5, 0.0), "source": "MM"}),
        ({"prompt": "What is it?", "answers": ["A cat.", "A cup."], "ranks": [5, 2]}, {"ranks": (2, 5)}),
        ({"prompt": [user("What is it?")], "answers": ["A cat.", "A cup."], "ratings": [1, 4.5]}, {"ratings": (4.5, 1.0)}),
    ],
)
def test_pairs_of_other_data_sets(place, row, expected):
    (pair,) = read_preferences(lines(place, {"image": "a.png", **row}))
    given = {"id": "1", "ranks": (1, 2), "ratings": (), "source": "", "hallucinated": None, **expected}
    assert (pair.prompt, pair.answers) == ((ASK,), ("A cup.", "A cat."))
    assert {name: getattr(pair, name) for name in given} == given
    (example,) = read_examples(lines(place, {"image": "a.png", **row}))
    assert (example.prompt, example.answer, example.id) == ((ASK,), None, pair.id)


@pytest.mark.parametrize("ratings", [[2, 5, 2], ["2", "5.0", "2"]])
def test_a_ranking_of_several_is_sorted_and_keeps_its_ties(place, ratings):
    row = {**IMAGE, "prompt": "What is it?", "answers": ["A cat.", "A cup.", "A dog."]}
    ranked = {**row, "ranks": [2, 1, 2]}
    rated = {**row, "ratings": [2, 5, 2]}
    both = {**row, "ranks": [2, 1, 2], "ratings": [9, 0, 9]}  # ranks count
    completions = [
        {
            "response": text,
            "model": "m",
            "annotations": aspects(Helpfulness=rating, Ethical_Considerations="N/A", Visual_Faithfulness=rating),
        }
        for text, rating in zip(row["answers"], ratings, strict=True)
    ]
    again = {**completions[0], "response": " A cat.", "annotations": aspects(Helpfulness="5")}  # the first of one text counts
    feedback = {"id": 1, "prompt": "What is it?", "completions": [*completions, again], "img_path": "a.png"}
    table = {"response": [c["response"] for c in completions], "model": ["m"] * 3}
    table |= {"annotations": {aspect: {part: [c["annotations"][aspect][part] for c in completions] for part in ("Rating", "Rationale")}
                              for aspect in completions[0]["annotations"]}}  # fmt: skip
    hub = {"id": 1, "prompt": "What is it?", "completions": table, "image": "a.png"}
    listed_notes = {**hub, "completions": {**table, "annotations": [c["annotations"] for c in completions]}}
    for one in (ranked, rated, both, feedback, hub, listed_notes):
        (ranking,) = read_preferences(lines(place, one))
        assert ranking.answers == ("A cup.", "A cat.", "A dog.")
        assert ranking.ranks == (1, 2, 2)
        assert ranking.ratings == {"ranks": () if one is ranked else (0, 9, 9)}.get("ranks" if "ranks" in one else "", (5, 2, 2))
        assert has_preferences(lines(place, one))


def test_the_mean_over_aspects_leaves_out_what_is_no_number(place):
    notes = aspects(Helpfulness="4", Ethical_Considerations="N/A", Visual_Faithfulness="1")
    row = {"prompt": "?", "img_path": "a.png", "completions": [
        {"response": "a", "annotations": notes}, {"response": "b", "annotations": aspects(Helpfulness=3)},
        {"response": "c", "annotations": aspects(Helpfulness="N/A")},
    ]}  # fmt: skip
    (ranking,) = read_preferences(lines(place, row))
    assert (ranking.answers, ranking.ratings) == (("b", "a"), (3.0, 2.5))


def test_fields_that_others_use_as_well_make_no_preference(place):
    for more in ({"completions": ["a", "b"]}, {"answers": ["a"]}, {"ranks": [1]}, {"text": "a"}, {"ratings": 3, "is_tie": 1}):
        path = lines(place, {**IMAGE, "prompt": "What is it?", "completion": "A cup.", **more})
        assert not has_preferences(path)
        assert read_examples(path, require_answer=True)[0].answer == "A cup."


@pytest.mark.parametrize("field", ["image", "image_path", "img_path", "images"])
@pytest.mark.parametrize("way", ["path", "object", "uri", "bytes", "base64", "plain", "wrapped", "list"])
def test_every_way_to_write_a_picture(place, field, way):
    text = base64.b64encode(noise := (png() + b"\0" * 300)).decode()
    (place / "n.png").write_bytes(noise)
    value = {
        "path": "n.png", "object": {"path": "n.png", "bytes": None}, "uri": f"data:image/png;base64,{text}", "bytes": {"bytes": text},
        "base64": {"base64": text, "path": "a.png"}, "plain": text, "wrapped": "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        "list": ["n.png", text],
    }[way]  # fmt: skip
    value = [value] if field == "images" and not isinstance(value, list) else value
    (pair,) = read_preferences(lines(place, {**PLAIN, field: value}))
    assert [image.read() for image in pair.images] == [noise] * (2 if way == "list" else 1)
    assert "image" not in str(pair.meta)
    assert all(open_image(image).size == (4, 3) for image in pair.images)
    again = read_preferences(lines(place, {**PLAIN, field: value}))
    assert again[0] == again[0] and again[0].images == pair.images


def test_a_note_on_where_a_picture_came_from_is_no_second_one_and_finds_its_facts(place):
    row = {**PLAIN, "image": {"bytes": base64.b64encode(png()).decode()}, "image_path": "far/away/b.png"}
    (pair,) = read_preferences(lines(place, row), facts={"b.png": (Fact("absent", "cat"),)})
    assert len(pair.images) == 1 and pair.meta == {"image_path": "far/away/b.png"}
    assert pair.facts == (Fact("absent", "cat"),)
    (pair,) = read_preferences(lines(place, {**PLAIN, "image": "a.png", "image_path": "a.png"}), facts={"a.png": pair.facts})
    assert pair.facts == (Fact("absent", "cat"),)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_texts_are_not_guessed_to_be_dates_or_numbers(place):
    row = {"id": "007", **IMAGE, "prompt": "When?", "chosen": "2024-01-01", "rejected": "3"}
    (pair,) = read_preferences(lines(place, row, {**row, "prompt": [user("When?")]}))[:1]
    assert (pair.id, pair.chosen, pair.rejected) == ("007", "2024-01-01", "3")


def test_the_content_decides_between_list_and_lines(place):
    rows = [{**IMAGE, "prompt": "One?"}, {**IMAGE, "prompt": [user("Two?")]}]
    as_list = Path(listed(place, *rows))
    as_lines = place / "lines.json"
    as_lines.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n")
    named_lines = place / "list.jsonl"
    named_lines.write_text("\ufeff\n " + as_list.read_text())
    for path in (as_list, as_lines, named_lines):
        assert [example.prompt[0].content for example in read_examples(str(path))] == ["One?", "Two?"]
    assert [example.id for example in read_examples(str(as_lines))] == ["1", "3"]


def test_an_edited_file_is_read_again(place):
    import datasets

    for answer in ("A cup.", "A mug."):
        row = {"images": [{"bytes": png(), "path": None}], "prompt": "What is it?", "completion": answer}
        datasets.Dataset.from_list([row]).to_parquet(str(place / "rows.parquet"))
        assert read_examples(str(place / "rows.parquet"))[0].answer == answer


@pytest.fixture(scope="module")
def table():
    import datasets

    rows = [
        {
            "images": [{"bytes": png(), "path": "a.png"}],
            "prompt": [user(parts("What is it?"))],  # Arrow pads the image's part with `text: null`
            "chosen": [assistant([{"type": "text", "text": "A cup."}])],
            "rejected": [assistant([{"type": "text", "text": "A cat."}])],
            "facts": [{"kind": "object", "text": "cup", "source": None}],
        }
    ]
    return datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))


@pytest.mark.parametrize("layout", ["parquet", "[odd] name.parquet", "saved", "saved splits", "folder of parquet"])
def test_tables_with_pictures_inside(tmp_path, table, layout):
    import datasets

    path = tmp_path / layout
    if layout.endswith(".parquet") or layout == "parquet":
        path = path if path.suffix else tmp_path / "rows.parquet"
        table.to_parquet(str(path))
    elif layout == "saved":
        table.save_to_disk(str(path))
    elif layout == "saved splits":
        datasets.DatasetDict(train=table, test=table).save_to_disk(str(path))
        assert "has no split tets: did you mean test?" in complaint(read_preferences, str(path), split="tets")
        assert len(read_preferences(str(path), "test")) == 1
    else:
        (path / "data").mkdir(parents=True)
        table.to_parquet(str(path / "data" / "train-00000-of-00001.parquet"))
    (pair,) = read_preferences(str(path), facts={"a.png": (Fact("absent", "cat"),)})
    assert (pair.prompt, pair.chosen, pair.rejected) == ((ASK,), "A cup.", "A cat.")
    assert pair.images[0].data == png()
    assert pair.facts == (Fact("object", "cup"), Fact("absent", "cat"))


def test_a_column_of_bare_bytes_is_pictures(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = {"image": [png()], "prompt": ["What?"], "chosen": ["A cup."], "rejected": ["A cat."]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "one.parquet")
    rows["images"] = [[rows.pop("image")[0]] * 2]
    parquet.write_table(pyarrow.table(rows), tmp_path / "two.parquet")
    assert [len(read_preferences(str(tmp_path / f"{name}.parquet"))[0].images) for name in ("one", "two")] == [1, 2]
    assert read_preferences(str(tmp_path / "one.parquet"))[0].images[0].data == png()


def test_a_table_is_read_in_parts_and_its_pictures_stay_as_they_are(tmp_path, table, monkeypatch):
    import datasets

    monkeypatch.setattr("mmrlhf.files.tables.ROWS_PER_BATCH", 2)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    (whole,) = table.cast_column("images", datasets.List(datasets.Image(decode=False)))
    rows = [{**whole, "chosen": [assistant([{"type": "text", "text": f"Cup {number}."}])]} for number in range(1, 6)]
    datasets.Dataset.from_list(rows, features=table.features).to_parquet(str(tmp_path / "rows.parquet"))
    assert [(pair.id, pair.chosen) for pair in read_preferences(str(tmp_path / "rows.parquet"))] == [
        (f"{number}", f"Cup {number}.") for number in range(1, 6)
    ]
    rows[3]["rejected"] = rows[3]["chosen"]
    for part, name in ((rows[:1], "train-00000-of-00002"), (rows[1:], "train-00001-of-00002"), (rows[:2], "test-00000-of-00001")):
        (tmp_path / "shards").mkdir(exist_ok=True)
        datasets.Dataset.from_list(part, features=table.features).to_parquet(str(tmp_path / "shards" / f"{name}.parquet"))
    assert "shards, row 4: the chosen and the rejected answer are the same" in complaint(
        read_preferences, str(tmp_path / "shards")
    )
    assert len(read_preferences(str(tmp_path / "shards"), "test")) == 2
    assert "has no split tets: did you mean test?" in complaint(read_preferences, str(tmp_path / "shards"), split="tets")


def test_columns_of_json_are_read(tmp_path):
    import datasets

    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets has no columns of JSON")
    rows = [{"images": [], "prompt": [user("Hello?")]}]
    features = datasets.Features(images=datasets.List(datasets.Image()), prompt=datasets.List(datasets.Json()))
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    assert read_examples(str(tmp_path / "saved"))[0].prompt == (Message("user", "Hello?"),)


def test_a_hub_dataset_has_no_folder(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([{"image": "a.png", "prompt": "What is it?"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "owner/name, row 1: `image` is a path, 'a.png': give --image_folder" in complaint(
        read_examples, "owner/name", split="test"
    )
    assert asked == [("owner/name", "test")]


def test_what_the_hub_says_becomes_one_sentence(monkeypatch):
    import datasets

    def load_dataset(name, split):
        raise ConnectionError("cannot\nreach it.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert complaint(read_examples, "owner/name").startswith("owner/name cannot be read (cannot reach it): correct")


def test_a_file_that_cannot_be_used(place):
    assert "none.jsonl does not exist: correct the path" in complaint(read_examples, str(place / "none.jsonl"))
    for name in ("none.parquet", "none"):
        assert "does not exist: give a file, a `datasets` folder" in complaint(read_examples, str(place / name))
    assert "is not a .json, .jsonl or .parquet file" in complaint(read_examples, str(place / "a.png"))
    assert "is not a saved `datasets` folder: name the data file" in complaint(read_examples, str(place))
    (place / "bad.parquet").write_bytes(b"PAR1 and more")
    assert "bad.parquet cannot be read (Parquet magic bytes" in complaint(read_examples, str(place / "bad.parquet"))
    for empty in (lines(place), lines(place, "", " "), listed(place)):
        assert "has no rows: give a dataset with at least one" in complaint(read_examples, empty)
    path = lines(place, {**IMAGE, "prompt": "What is it?"})
    assert "image folder no/such does not exist" in complaint(read_examples, path, image_folder="no/such")


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
def test_a_line_that_is_no_row(place, row, message):
    assert message in complaint(read_examples, lines(place, {**IMAGE, "prompt": "What is it?"}, row))


def test_a_list_that_is_no_json(place):
    path = place / "rows.json"
    path.write_text('[{"a": 1},\n {"a" 2}]')
    assert "rows.json: not JSON (Expecting ':' delimiter at line 2, column 7)" in complaint(read_examples, str(path))
    path.write_bytes(b'[{"a": "\xff"}]')
    assert "rows.json: not JSON" in complaint(read_examples, str(path))


# ---- rows ------------------------------------------------------------------------------------------------------------

PAIR = {"id": "p", **IMAGE, "prompt": [user("What is it?")], "chosen": "A cup.", "rejected": "A cat."}
LLAVA = {
    "image": "a.png",
    "conversations": [human("<image>\nWhat is it?"), gpt("A cup.")],
    "output_1": gpt("A cup."),
    "output_2": gpt("A cat."),
    "preference": 1,
}


def without(row, field):
    return {name: value for name, value in row.items() if name != field}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(PAIR, "chosen"), "`chosen` is missing: add it (the row has id, images, prompt, rejected)"),
        ({**PAIR, "chosen": None}, "`chosen` is missing: add it"),
        ({**without(PAIR, "chosen"), "chosne": "A cup."}, "`chosen` is missing: rename `chosne` to it"),
        (without(PAIR, "prompt"), "`prompt` is missing: add it"),
        (without(PAIR, "images"), "`images` is missing: add it, `[]` for a row without pictures"),
        ({**without(PAIR, "images"), "imagse": ["a.png"]}, "`images` is missing: rename `imagse` to it"),
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
            {**PAIR, "prompt": [user([{"type": "video"}])]},
            "`prompt[1].content[1]` must be a part of type text or image",
        ),
        (
            {**PAIR, "prompt": [user([*parts(), {"type": "text", "text": 1}])]},
            "`prompt[1].content[2].text` must be text",
        ),
        ({**PAIR, "prompt": [user("Hi."), assistant("Hi.")]}, "the prompt must end with a user turn"),
        (
            {**PAIR, "prompt": [user("Hi."), {"role": "system", "content": "a"}, user("Hi.")]},
            "turn 2 of the prompt is a system turn: only the first may be one",
        ),
        ({**PAIR, "prompt": " "}, "turn 1 of the prompt is empty"),
        (
            {**PAIR, "prompt": [user("Hi."), assistant("<image>Hi."), user("So?")]},
            "turn 2 of the prompt, not the user's",
        ),
        ({**PAIR, "prompt": [user([*parts("a"), {"type": "image"}])]}, "has places for 2 images and the row has 1"),
        ({**PAIR, "prompt": [user([{"type": "text", "text": "a"}])]}, "has places for 0 images and the row has 1"),
        ({**PAIR, "prompt": "<image><image>What is it?"}, "has places for 2 images and the row has 1"),
        ({**PAIR, "images": [], "prompt": [user(parts("a"))]}, "has places for 1 images and the row has 0"),
        ({**PAIR, "prompt": "half \ud800"}, "is not valid Unicode: remove the unpaired surrogate"),
        ({**PAIR, "rejected": "A cup. "}, "the chosen and the rejected answer are the same"),
        ({**PAIR, "rejected": " "}, "`rejected` is empty: fill it in or drop the row"),
        ({**PAIR, "rejected": 4}, "`rejected` must be text or a list of turns, not a number"),
        ({**PAIR, "rejected": [user("A cat.")]}, "`rejected` must be the assistant's turn, not the user's"),
        ({**PAIR, "rejected": "<image> A cat."}, "`rejected` holds an image or <image>: an answer is text alone"),
        ({**PAIR, "rejected": [assistant("a"), assistant("b")]}, "`rejected` must be one assistant turn, not 2 turns"),
        (
            {**IMAGE, "chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
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
        (without(LLAVA, "output_2"), "`output_2` is missing: add it (the row has image, conversations, output_1,"),
        (without(LLAVA, "preference"), "`preference` is missing: add it"),
        ({**LLAVA, "preference": 0}, "`preference` must be 1 or 2, the number of the better output, not 0"),
        ({**LLAVA, "preference": True}, "`preference` must be 1 or 2, the number of the better output, not True"),
        ({**LLAVA, "preference": "1"}, "`preference` must be 1 or 2, the number of the better output, not '1'"),
        ({**LLAVA, "output_1": gpt("A cat.")}, "the chosen and the rejected answer are the same"),
        ({**LLAVA, "output_1": human("A cup.")}, "`output_1` must be the assistant's turn, not the user's"),
        ({**LLAVA, "output_1": "A cup."}, "`output_1` must be an object with from and value, not text"),
        ({**LLAVA, "conversations": []}, "`conversations` must be a list of turns, not an empty one"),
        ({**LLAVA, "conversations": [gpt("A cup.")]}, "the prompt must end with a user turn"),
        (
            {**LLAVA, "conversations": [{"from": "user", "value": "a"}]},
            "`conversations[1].from` must be one of system, human, gpt, not 'user'",
        ),
        ({**LLAVA, "conversations": [human("What is it?")]}, "has places for 0 images and the row has 1"),
        (without(LLAVA, "image"), "has places for 1 images and the row has 0"),
    ],
)
def test_a_fault_names_line_and_field(place, row, message):
    path = lines(place, PAIR, "", row)
    assert f"{path}, line 3: " in complaint(read_preferences, path)
    assert message in complaint(read_preferences, path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (IMAGE, "`messages` is missing: add it, or `prompt` (the row has images)"),
        ({**IMAGE, "mesages": []}, "`messages` is missing: rename `mesages` to it"),
        ({**IMAGE, "promt": "a"}, "`prompt` is missing: rename `promt` to it"),
        ({**IMAGE, "messages": "a"}, "`messages` must be a list of turns, not text"),
        ({**IMAGE, "messages": [assistant("a")]}, "the prompt must end with a user turn"),
        ({**IMAGE, "messages": [user("a"), assistant("")]}, "`messages[2]` is empty"),
        ({**IMAGE, "prompt": "a", "completion": ""}, "`completion` is empty"),
        ({**IMAGE, "prompt": "a", "chosen": "b", "rejected": "c"}, "no answer: pairs and prompts cannot be imitated"),
        ({"image": "a.png", "conversations": [human("<image>a")], "captions": []}, "cannot be imitated"),
    ],
)
def test_a_fault_of_an_example(place, row, message):
    path = listed(place, row)
    said = complaint(read_examples, path, require_answer=True)
    assert f"{path}, row 1: " in said and message in said


def test_an_absolute_path_must_stay_in_the_folder(place, tmp_path):
    path = lines(tmp_path, {"image": str(place / "a.png"), "prompt": "What is it?"})
    assert read_examples(path)[0].images[0].path == str(place / "a.png")
    assert read_examples(path, image_folder=str(place))
    (tmp_path / "other").mkdir()
    assert "leads out of the image folder" in complaint(read_examples, path, image_folder=str(tmp_path / "other"))


def test_a_link_may_leave_the_folder_only_where_the_user_named_it(place):
    (place / "link.png").symlink_to("../secret.png")
    (place / "inner.png").symlink_to("a.png")
    (place / "up").symlink_to("..")
    for image in ("link.png", "up/secret.png"):
        path = lines(place, {"image": image, "prompt": "What is it?"})
        said = complaint(read_examples, path)
        assert f"line 1: `image` leads out of {place} by a link: {image!r}; if the link is yours, give --image_folder" in said
        assert read_examples(path, image_folder=str(place))[0].images[0].read() == png("blue")
    assert read_examples(lines(place, {"image": "inner.png", "prompt": "What is it?"}))
    # A link is no way round the rule on `..`: the two are settled as text, before any link is followed.
    path = lines(place, {"image": "up/../../secret.png", "prompt": "What is it?"})
    assert "leads out of the image folder" in complaint(read_examples, path, image_folder=str(place))


def test_a_folder_that_is_reached_by_a_link_is_the_folder(place):
    (place.parent / "alias").symlink_to(place)
    lines(place, {"image": "a.png", "prompt": "What is it?"})
    assert read_examples(str(place.parent / "alias" / "rows.jsonl"))


def test_a_picture_says_which_row_it_is_of(place, table):
    path = lines(place, {**IMAGE, "prompt": "One?"}, {"image": "a.png", "prompt": "Two?"})
    assert [e.images[0].name for e in read_examples(path)] == [
        f"{place / 'a.png'} ({path}, line 1, `images[1]`)",
        f"{place / 'a.png'} ({path}, line 2, `image`)",
    ]
    table.to_parquet(str(place / "rows.parquet"))
    (pair,) = read_preferences(str(place / "rows.parquet"))
    assert pair.images[0].name == f"<{len(png())} bytes> ({place / 'rows.parquet'}, row 1, `images[1]`)"


def test_a_relative_image_folder(place, monkeypatch):
    monkeypatch.chdir(place.parent)
    path = lines(place.parent, {"image": "a.png", "prompt": "What is it?"})
    assert read_examples(path, image_folder="data")[0].images[0].path == str(place / "a.png")


def test_facts_meet_rows_by_picture_else_by_id(place):
    (place / "sub").mkdir()
    (place / "sub" / "b.png").write_bytes(png())
    path = lines(
        place,
        {**IMAGE, "prompt": "One?", "facts": [{"kind": "ocr", "text": "own"}]},
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
    told_twice = lines(
        place,
        {**IMAGE, "prompt": "One?", "facts": [{"kind": "ocr", "text": "a"}]},
        {"images": ["a.png", "a.png"], "prompt": "Two?"},
    )
    assert [[fact.text for fact in e.facts] for e in read_examples(told_twice, facts=known)] == [["a"], ["a"]]
    elsewhere = lines(place, {"id": "x", "image": "a.png", "prompt": "Whose id?"}, {"image": "sub/b.png", "prompt": "?"})
    assert (
        read_examples(elsewhere, facts={"x": known["x"], "b.png": known["b.png"]})[0].facts == ()
    )  # the id is another picture's
    said = complaint(read_preferences, lines(place, PLAIN | {"image": "a.png"}), facts={"z.png": known["x"]})
    assert "the facts file says nothing of the pictures in its first 1 rows (it speaks of 'z.png')" in said


FIELDS = "id image images prompt chosen rejected messages completion conversations output_1 output_2 preference facts"
FIELDS += " text question idx image_path img_path completions answers ranks ratings is_tie margin ls_factor hallucination source"
KEYS = st.sampled_from(["role", "content", "type", "text", "from", "value", "bytes", "path", "kind", "response", "annotations"])
WORDS = st.sampled_from(["user", "assistant", "human", "gpt", "image", "text", "a.png", "../a", "<image>", "A"])
WORDS |= st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | WORDS, inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS.split()) | WORDS, VALUES, max_size=6) | VALUES, max_size=3))
def test_any_json_gives_records_or_an_input_error(place, rows):
    for path in (lines(place, *map(json.dumps, rows)), listed(place, *rows)):
        for read in (read_examples, read_preferences):
            try:
                records = read(path)
                assert len(records) == len(rows)
                assert list(records) == list(records)
            except InputError as error:
                assert "\n" not in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_give_records_or_an_input_error(place, data):
    (place / "rows.jsonl").write_bytes(data)
    with pytest.raises(InputError):
        read_examples(str(place / "rows.jsonl"))


# ---- mmrlhf data check -----------------------------------------------------------------------------------------------


def test_check_names_each_bad_row_and_counts_the_rest(place, capsys):
    (place / "broken.png").write_bytes(png()[:45])
    (place / "[bold].png").write_bytes(b"")
    path = lines(
        place,
        PAIR,
        "{",
        without(PAIR, "chosen"),
        {**PAIR, "images": ["broken.png"]},
        {**PAIR, "images": ["[bold].png"]},
    )
    facts = lines(place, {"image": "a.png", "objects": [["cup", 2]]}, name="facts.jsonl")
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


def test_check_shows_twenty_faults(place, capsys):
    assert check(lines(place, *[{**IMAGE, "prompt": ""}] * 23)) == 1
    printed = capsys.readouterr().out
    assert printed.count("is empty") == 20 and "... and 3 more" in printed


def test_check_refuses_what_is_no_dataset(place):
    assert "does not exist" in complaint(check, str(place / "none.jsonl"))
    assert "does not exist" in complaint(check, lines(place, PAIR), facts_file=str(place / "none.json"))


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
def test_the_samples_are_good(name, layout, rows, with_facts, facts, capsys):
    assert check(str(SAMPLES / name), facts_file=str(SAMPLES / facts)) == 0
    printed = capsys.readouterr().out
    assert f"{name}: {layout}\n" in printed
    assert f"{with_facts} of {rows}," in printed


def same(pairs):
    return [replace(pair, id="", images=tuple(image.key for image in pair.images), hallucinated=None, meta={}) for pair in pairs]


def test_the_samples_say_the_same_in_every_format():
    facts = read_facts(SAMPLES / "facts.jsonl")
    jsonl, parquet, llava = (
        same(read_preferences(str(SAMPLES / name), facts=facts))
        for name in ("trl_preference.jsonl", "trl_preference.parquet", "llava_rlhf_preference.json")
    )
    assert jsonl == parquet == llava
    assert len(read_examples(str(SAMPLES / "sft.jsonl"), require_answer=True)) == 7


# ---- real photographs ------------------------------------------------------------------------------------------------

PHOTOS = Path(os.environ.get("MMRLHF_SHARED", Path(__file__).parents[3] / "shared")) / "photos"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs: MMRLHF_SHARED names the folder that holds photos/")
def test_photographs_give_the_same_pairs_in_both_formats(capsys):
    facts = read_facts(PHOTOS / "facts.jsonl")
    trl, llava = (read_preferences(str(PHOTOS / name), facts=facts) for name in ("pairs.jsonl", "llava_rlhf_preference.json"))
    assert len(trl) == 12 and same(trl) == same(llava)
    assert all(any(fact.kind == "absent" for fact in pair.facts) for pair in trl)
    assert read_facts(PHOTOS / "image_to_caption.json").keys() == facts.keys()
    assert check(str(PHOTOS / "pairs.jsonl"), facts_file=str(PHOTOS / "facts.jsonl")) == 0
