"""Datasets load from every kind of file, and unusable files are refused in one sentence."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrlhf.commands.check import check
from mmrlhf.datasets import read_examples, read_preferences
from mmrlhf.facts import read_facts
from mmrlhf.files import bundled
from mmrlhf.records import Fact, InputError, Message
from tests.helpers.rows import (
    ONE_IMAGE,
    QUESTION,
    assistant_turn,
    error_of,
    png_bytes,
    user_turn,
    write_json,
    write_jsonl,
)

SAMPLES = bundled.find("data", "samples")
PHOTOS = Path(os.environ.get("MMRLHF_SHARED", Path(__file__).parents[3] / "shared")) / "photos"


def test_read_preferences_keeps_dates_and_numbers_as_text(data_dir):
    row = {"id": "007", **ONE_IMAGE, "prompt": "When?", "chosen": "2024-01-01", "rejected": "3"}
    (pair,) = read_preferences(write_jsonl(data_dir, row, {**row, "prompt": [user_turn("When?")]}))[:1]
    assert (pair.id, pair.chosen, pair.rejected) == ("007", "2024-01-01", "3")


def test_read_examples_detects_list_or_lines_by_content(data_dir):
    rows = [{**ONE_IMAGE, "prompt": "One?"}, {**ONE_IMAGE, "prompt": [user_turn("Two?")]}]
    as_list = Path(write_json(data_dir, *rows))
    as_lines = data_dir / "lines.json"
    as_lines.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n")
    named_lines = data_dir / "list.jsonl"
    named_lines.write_text("\ufeff\n " + as_list.read_text())
    for path in (as_list, as_lines, named_lines):
        assert [example.prompt[0].content for example in read_examples(str(path))] == ["One?", "Two?"]
    assert [example.id for example in read_examples(str(as_lines))] == ["1", "3"]


def test_read_examples_rereads_edited_file(data_dir):
    import datasets

    for answer in ("A cup.", "A mug."):
        row = {"images": [{"bytes": png_bytes(), "path": None}], "prompt": "What is it?", "completion": answer}
        datasets.Dataset.from_list([row]).to_parquet(str(data_dir / "rows.parquet"))
        assert read_examples(str(data_dir / "rows.parquet"))[0].answer == answer


@pytest.mark.parametrize("layout", ["parquet", "[odd] name.parquet", "saved", "saved splits", "folder of parquet"])
def test_read_preferences_reads_tables_with_embedded_images(tmp_path, image_table, layout):
    import datasets

    path = tmp_path / layout
    if layout.endswith(".parquet") or layout == "parquet":
        path = path if path.suffix else tmp_path / "rows.parquet"
        image_table.to_parquet(str(path))
    elif layout == "saved":
        image_table.save_to_disk(str(path))
    elif layout == "saved splits":
        datasets.DatasetDict(train=image_table, test=image_table).save_to_disk(str(path))
        assert "has no split tets: did you mean test?" in error_of(read_preferences, str(path), split="tets")
        assert len(read_preferences(str(path), "test")) == 1
    else:
        (path / "data").mkdir(parents=True)
        image_table.to_parquet(str(path / "data" / "train-00000-of-00001.parquet"))
    (pair,) = read_preferences(str(path), facts={"a.png": (Fact("absent", "cat"),)})
    assert (pair.prompt, pair.chosen, pair.rejected) == ((QUESTION,), "A cup.", "A cat.")
    assert pair.images[0].data == png_bytes()
    assert pair.facts == (Fact("object", "cup"), Fact("absent", "cat"))


def test_read_preferences_reads_table_in_parts_without_decoding(tmp_path, image_table, monkeypatch):
    import datasets

    monkeypatch.setattr("mmrlhf.files.tables.ROWS_PER_BATCH", 2)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded"))
    (pair,) = image_table.cast_column("images", datasets.List(datasets.Image(decode=False)))
    rows = [{**pair, "chosen": [assistant_turn([{"type": "text", "text": f"Cup {number}."}])]} for number in range(1, 6)]
    datasets.Dataset.from_list(rows, features=image_table.features).to_parquet(str(tmp_path / "rows.parquet"))
    assert [(pair.id, pair.chosen) for pair in read_preferences(str(tmp_path / "rows.parquet"))] == [
        (f"{number}", f"Cup {number}.") for number in range(1, 6)
    ]
    rows[3]["rejected"] = rows[3]["chosen"]
    (tmp_path / "shards").mkdir()
    for shard, name in (
        (rows[:1], "train-00000-of-00002"),
        (rows[1:], "train-00001-of-00002"),
        (rows[:2], "test-00000-of-00001"),
    ):
        datasets.Dataset.from_list(shard, features=image_table.features).to_parquet(str(tmp_path / "shards" / f"{name}.parquet"))
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

    requests = []

    def load_dataset(name, split):
        requests.append((name, split))
        return datasets.Dataset.from_list([{"image": "a.png", "prompt": "What is it?"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "owner/name, row 1: `image` is a path, 'a.png': give --image_folder" in error_of(
        read_examples, "owner/name", split="test"
    )
    assert requests == [("owner/name", "test")]


def test_read_examples_hub_error_is_one_sentence(monkeypatch):
    import datasets

    def load_dataset(name, split):
        raise ConnectionError("cannot\nreach it.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert error_of(read_examples, "owner/name").startswith("owner/name cannot be read (cannot reach it): correct")


def test_read_examples_refuses_unusable_files(data_dir):
    assert "none.jsonl does not exist: correct the path" in error_of(read_examples, str(data_dir / "none.jsonl"))
    for name in ("none.parquet", "none"):
        assert "does not exist: give a file, a `datasets` folder" in error_of(read_examples, str(data_dir / name))
    assert "is not a .json, .jsonl or .parquet file" in error_of(read_examples, str(data_dir / "a.png"))
    assert "is not a saved `datasets` folder: name the data file" in error_of(read_examples, str(data_dir))
    (data_dir / "bad.parquet").write_bytes(b"PAR1 and more")
    assert "bad.parquet cannot be read (Parquet magic bytes" in error_of(read_examples, str(data_dir / "bad.parquet"))
    for empty in (write_jsonl(data_dir), write_jsonl(data_dir, "", " "), write_json(data_dir)):
        assert "has no rows: give a dataset with at least one" in error_of(read_examples, empty)
    path = write_jsonl(data_dir, {**ONE_IMAGE, "prompt": "What is it?"})
    assert "image folder no/such does not exist" in error_of(read_examples, path, image_folder="no/such")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{bad", "rows.jsonl, line 2: not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ('"text"', "line 2: a row must be an object with fields, not text"),
        ("null", "line 2: a row must be an object with fields, not null"),
        ('{"a": ' + "[" * 100_000, "line 2: nested too deeply"),
        ('{"id": ' + "[" * 600 + "]" * 600 + "}", "line 2: "),
    ],
)
def test_read_examples_refuses_line_that_is_not_a_row(data_dir, row, message):
    assert message in error_of(read_examples, write_jsonl(data_dir, {**ONE_IMAGE, "prompt": "What is it?"}, row))


def test_read_examples_refuses_invalid_json_list(data_dir):
    path = data_dir / "rows.json"
    path.write_text('[{"a": 1},\n {"a" 2}]')
    assert "rows.json: not JSON (Expecting ':' delimiter at line 2, column 7)" in error_of(read_examples, str(path))
    path.write_text('[{"a": 1, "b": {"c": 1, "c": 1}}]')
    assert "rows.json: `c` is given twice in an object: keep one of them" in error_of(read_examples, str(path))
    path.write_bytes(b'[{"a": "\xff"}]')
    assert "rows.json: not JSON" in error_of(read_examples, str(path))


# ---- any content ---------------------------------------------------------------------------------

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


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS.split()) | STRINGS, VALUES, max_size=6) | VALUES, max_size=3))
def test_readers_accept_or_refuse_any_json(data_dir, rows):
    for path in (write_jsonl(data_dir, *map(json.dumps, rows)), write_json(data_dir, *rows)):
        for read in (read_examples, read_preferences):
            try:
                records = read(path)
                assert len(records) == len(rows)
                assert list(records) == list(records)
            except InputError as error:
                assert "\n" not in str(error)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_read_examples_refuses_random_bytes(data_dir, data):
    (data_dir / "rows.jsonl").write_bytes(data)
    with pytest.raises(InputError):
        read_examples(str(data_dir / "rows.jsonl"))


# ---- samples and photographs ---------------------------------------------------------------------


def comparable_pairs(pairs):
    """Reduce pairs to the fields that TRL and LLaVA-RLHF files have in common."""
    return [replace(pair, id="", images=tuple(image.key for image in pair.images), hallucinated=None, meta={}) for pair in pairs]


def test_samples_are_equal_in_every_format():
    facts = read_facts(SAMPLES / "facts.jsonl")
    jsonl, parquet, llava = (
        comparable_pairs(read_preferences(str(SAMPLES / name), facts=facts))
        for name in ("trl_preference.jsonl", "trl_preference.parquet", "llava_rlhf_preference.json")
    )
    assert jsonl == parquet == llava
    assert len(read_examples(str(SAMPLES / "sft.jsonl"), require_answer=True)) == 7


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs: set MMRLHF_SHARED to the folder that contains photos/")
def test_photos_give_equal_pairs_in_both_formats(capsys):
    facts = read_facts(PHOTOS / "facts.jsonl")
    trl, llava = (read_preferences(str(PHOTOS / name), facts=facts) for name in ("pairs.jsonl", "llava_rlhf_preference.json"))
    assert len(trl) == 12 and comparable_pairs(trl) == comparable_pairs(llava)
    assert all(any(fact.kind == "absent" for fact in pair.facts) for pair in trl)
    assert read_facts(PHOTOS / "image_to_caption.json").keys() == facts.keys()
    assert check(str(PHOTOS / "pairs.jsonl"), facts_file=str(PHOTOS / "facts.jsonl")) == 0
