"""Records are read lazily: memory does not grow with the file, and changed files are refused."""

import base64
import json
import os
import random
import tracemalloc
from pathlib import Path

import datasets
import pytest

from mmrlhf.datasets import Records, read_examples, read_preferences
from mmrlhf.files import paths, rows, tables
from mmrlhf.files.inputs import content_digest
from mmrlhf.files.tables import open_table, read_rows, split_of
from mmrlhf.records import InputError


def image_bytes(number, size=64):
    return random.Random(number).randbytes(size)


def make_row(number, size=64):
    return {
        "id": number,
        "image": {"bytes": base64.b64encode(image_bytes(number, size)).decode()},
        "prompt": f"Number {number}?",
        "chosen": f"It is {number}.",
        "rejected": "None.",
    }


def write_rows(path, count, size=64):
    with path.open("w") as file:
        file.writelines(f"{json.dumps(make_row(number, size))}\n" for number in range(count))
    return str(path)


def image_table(count, size=64):
    values = [{**make_row(n), "image": {"bytes": image_bytes(n, size), "path": f"{n}.png"}} for n in range(count)]
    return datasets.Dataset.from_list(values).cast_column("image", datasets.Image())


def rewrite(path, content):
    """Write a file again and make sure that its modification time differs."""
    previous_mtime = os.stat(path).st_mtime_ns
    Path(path).write_bytes(content)
    os.utime(path, ns=(previous_mtime + 1, previous_mtime + 1))


KINDS = ["jsonl", "json", "parquet", "saved", "folder"]


def write_dataset(folder, kind, count):
    if kind == "jsonl":
        return write_rows(folder / "rows.jsonl", count)
    if kind == "json":
        (folder / "rows.json").write_text(json.dumps([make_row(number) for number in range(count)]))
        return str(folder / "rows.json")
    if kind == "parquet":
        image_table(count).to_parquet(str(folder / "rows.parquet"), batch_size=3)
        return str(folder / "rows.parquet")
    if kind == "saved":
        image_table(count).save_to_disk(str(folder / "saved"))
        return str(folder / "saved")
    (folder / "parts").mkdir()
    table = image_table(count)
    for number, shard in enumerate((table.select(range(4)), table.select(range(4, count)))):
        shard.to_parquet(str(folder / "parts" / f"train-{number:05d}-of-00002.parquet"), batch_size=2)
    return str(folder / "parts")


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_indexed_in_any_order(kind, tmp_path):
    records = read_preferences(write_dataset(tmp_path, kind, 11))
    assert isinstance(records, Records) and len(records) == 11
    chosen = [f"It is {number}." for number in range(11)]
    assert [record.chosen for record in records] == chosen
    for number in random.Random(0).sample(range(-11, 11), 22):
        record = records[number]
        assert (record.chosen, record.id) == (chosen[number], str(number % 11))
        assert record == records[number] and record is not records[number]
        assert record.images[0].data == image_bytes(number % 11)
    assert [record.chosen for record in records[3:-2]] == chosen[3:-2]
    assert [record.chosen for record in records[3:][::-2][1:]] == chosen[3:][::-2][1:]
    assert [record.chosen for record in records[2:].subset([5, 0, 5])[:2]] == [chosen[7], chosen[2]]
    assert len(records[20:]) == 0 and not records[20:]
    assert [record.chosen for record in reversed(records)] == chosen[::-1]
    for number in (11, -12):
        with pytest.raises(IndexError):
            records[number]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "folder"])
@pytest.mark.parametrize("change", ["rewritten", "longer", "gone"])
def test_records_refuse_changed_file(kind, change, tmp_path):
    path = write_dataset(tmp_path, kind, 11)
    records = read_preferences(path)
    files = [Path(path)]
    if os.path.isdir(path):
        files = sorted(file for file in Path(path).rglob("*") if file.suffix in (".arrow", ".parquet"))
    content = files[0].read_bytes()
    if change == "gone":
        files[0].unlink()
    else:
        rewrite(files[0], content if change == "rewritten" else content + b"\n")
    with pytest.raises(InputError) as caught:
        records[3]
    message = str(caught.value)
    is_missing_jsonl = change == "gone" and kind == "jsonl"
    assert ("does not exist" if is_missing_jsonl else "has changed since it was first read: start again") in message
    assert str(files[0]) in message and "\n" not in message


def test_table_refuses_file_changed_during_first_pass(tmp_path):
    path = Path(write_rows(tmp_path / "rows.jsonl", 3))
    rows = iter(open_table(str(path)))
    next(rows)
    rewrite(path, path.read_bytes() + b"\n")
    with pytest.raises(InputError, match="has changed since it was first read"):
        list(rows)


def test_records_of_json_list_survive_file_removal(tmp_path):
    path = write_dataset(tmp_path, "json", 3)
    records = read_preferences(path)
    os.unlink(path)
    assert [record.id for record in records] == ["0", "1", "2"]


def test_records_count_blank_lines_and_skip_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({name: value for name, value in make_row(n).items() if name != "id"}) for n in range(3)]
    path.write_text("\n\n" + "\n \n".join(lines))
    assert [record.id for record in read_preferences(str(path))] == ["3", "5", "7"]


def test_read_examples_first_pass_finds_a_bad_row_anywhere(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", 200)
    with open(path, "a") as file:
        file.write("{\n")
    with pytest.raises(InputError, match="line 201: not JSON"):
        read_examples(path)


def test_records_memory_does_not_grow_with_the_file(tmp_path):
    size, peaks = 200_000, []
    for count in (20, 240):  # 5 and 64 MB of images in base64
        path = write_rows(tmp_path / f"{count}.jsonl", count, size)
        assert os.path.getsize(path) > count * size * 4 / 3
        tracemalloc.start()
        records = read_preferences(path)
        for number in random.Random(1).sample(range(count), 15):
            assert len(records[number].images[0].data) == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + size and peaks[1] < 20 * size


def test_parquet_row_groups_are_kept_up_to_a_size(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    image_table(12).to_parquet(str(path), batch_size=3)  # four row groups
    shuffled = [0, 9, 3, 6, 1, 10, 4, 7, 2, 11, 5, 8]

    def count_reads():
        table, opened = open_table(str(path)), []
        open_parquet = table._open_parquet
        table._open_parquet = lambda file: opened.append(file) or open_parquet(file)
        assert [table[index].number for index in shuffled] == [index + 1 for index in shuffled]
        return len(opened)

    assert count_reads() == 4
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 1)
    assert count_reads() == 12  # the newest alone


def test_records_release_parquet_row_groups(tmp_path, monkeypatch):
    import pyarrow

    size = 100_000
    monkeypatch.setattr(tables, "MAX_CACHED_BYTES", 10 * size)
    path = tmp_path / "rows.parquet"
    image_table(60, size).to_parquet(str(path), batch_size=5)
    records = read_preferences(str(path))
    allocated_before, peak = pyarrow.total_allocated_bytes(), 0
    for record in records:
        assert len(record.images[0].data) == size
        peak = max(peak, pyarrow.total_allocated_bytes() - allocated_before)
    assert peak < 25 * size  # two groups of five rows, and the overhead of reading one, but not all sixty


def test_table_refuses_a_long_line(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1000)
    file = tmp_path / "long.jsonl"
    file.write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "a" * 1000}) + "\n")
    with pytest.raises(InputError, match=r"long\.jsonl, line 2 is longer than"):
        list(open_table(str(file)))
    with pytest.raises(InputError, match=r"long\.jsonl, line 2 is longer than"):
        rows.read_json_objects(file)


@pytest.mark.parametrize("as_list", [False, True])
def test_json_objects_may_follow_a_byte_order_mark(tmp_path, as_list):
    file, objects = tmp_path / "a.json", [{"a": "\N{SNOWMAN}"}, {"a": "\N{DOG}"}]
    text = json.dumps(objects, indent=1) if as_list else "\n".join(map(json.dumps, objects))
    file.write_text("\ufeff" + text)
    assert [row.fields for row in rows.read_json_objects(file)] == objects
    file.write_text(text.replace(r"\udc15", ""))  # half of the dog
    place = "a.json" if as_list else "a.json line 2"
    with pytest.raises(InputError, match=rf"{place}: not valid Unicode: remove the unpaired surrogate"):
        rows.read_json_objects(file)


def test_table_refuses_a_large_parquet_row_group(tmp_path, monkeypatch):
    file = tmp_path / "large.parquet"
    datasets.Dataset.from_dict({"prompt": ["a" * 2000]}).to_parquet(str(file))
    monkeypatch.setattr(tables, "MAX_ROW_GROUP_BYTES", 1000)
    with pytest.raises(InputError, match=r"large\.parquet: row group 1 holds .* write the file with row groups of at most"):
        open_table(str(file))


@pytest.mark.parametrize("value", ["a" * 2000, {"bytes": b"a" * 2000}, [{"bytes": b"a" * 2000}], ["a" * 2000]])
@pytest.mark.parametrize("is_parquet", [True, False])
def test_table_refuses_a_large_cell(tmp_path, monkeypatch, value, is_parquet):
    dataset = datasets.Dataset.from_dict({"prompt": ["short"], "value": [value]})
    path = tmp_path / ("cell.parquet" if is_parquet else "saved")
    (dataset.to_parquet if is_parquet else dataset.save_to_disk)(str(path))
    monkeypatch.setattr(tables, "MAX_CELL_BYTES", 1999)
    with pytest.raises(InputError, match=r"cannot be read \(a value has 0 MiB, more than 0\)"):
        list(open_table(str(path)))
    monkeypatch.setattr(tables, "MAX_CELL_BYTES", 2000)
    assert len(list(open_table(str(path)))) == 1


def test_a_file_of_another_kind_is_no_hub_dataset(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("data/pairs", "data/pairs.csv", "pairs/data.csv"):
        with pytest.raises(InputError, match=f"{name} does not exist"):
            open_table(name)


def test_a_split_of_a_file_without_splits_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "rows.json").write_text("[{}]")
    (tmp_path / "split.json").write_text('{"train": [{"id": 1}]}')
    datasets.Dataset.from_list([{"id": 1}]).to_parquet(str(tmp_path / "rows.parquet"))
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        with pytest.raises(InputError, match=f"{name} has no splits: leave --split out, or name the file of split test"):
            open_table(str(tmp_path / name), "test")
    assert split_of(str(tmp_path / "rows.jsonl"), "test") == "train" and split_of("owner/name", "test") == "test"
    with pytest.raises(InputError, match="has no split test: the choices are train"):
        open_table(str(tmp_path / "split.json"), "test")


def test_a_secondary_dataset_is_read_by_the_split_if_it_has_splits(tmp_path):
    rows = datasets.Dataset.from_list([{"id": 1}])
    (tmp_path / "splits.json").write_text('{"train": [{"id": 1}], "test": [{"id": 2}]}')
    (tmp_path / "data.json").write_text('{"data": [{"id": 1}]}')
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    for folder, files in (("images", ["metadata.jsonl"]), ("parts", ["0.parquet"]), ("named", ["train.parquet", "test.parquet"])):
        (tmp_path / folder).mkdir()
        for file in files:
            rows.to_parquet(str(tmp_path / folder / file)) if file.endswith("parquet") else rows.to_json(
                str(tmp_path / folder / file)
            )
    for name in ("splits.json", "both", "named"):
        assert split_of(str(tmp_path / name), "test") == "test"
        with pytest.raises(InputError, match="has no split dev"):
            split_of(str(tmp_path / name), "dev")
    for name in ("data.json", "saved", "images", "parts"):
        assert split_of(str(tmp_path / name), "test") == "train"
        assert next(iter(open_table(str(tmp_path / name)))).parse().fields["id"] == 1


def test_a_folder_that_hides_a_hub_id_is_named(tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"owner/name does not exist: .*; the folder owner here hides any Hub id of its name"):
        open_table("owner/name")


@pytest.mark.parametrize("name", ["row.json", "row.jsonl"])
@pytest.mark.parametrize("first", ["", "\ufeff", "\n "])
def test_one_object_over_several_lines_is_named_as_such(tmp_path, name, first):
    path = tmp_path / name
    path.write_text(first + json.dumps({"prompt": "?", "images": [], "meta": {"a": 1}}, indent=2))
    with pytest.raises(InputError, match=rf"{name} is one JSON object over several lines, not a row per line: write rows as a"):
        list(read_rows(str(path)))


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}\n', '{"a": 1}', '{"a": 1}\n{\n', '{\n"a": 1\n}\n{"a": 2}\n', '{"a":\n'])
def test_lines_are_not_taken_for_one_object(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    assert len(list(read_rows(str(tmp_path / "rows.jsonl")))) == len(text.splitlines())


def test_a_folder_of_very_many_folders_is_not_searched(tmp_path, monkeypatch):
    rows = datasets.Dataset.from_list([{"id": 1}])
    for name in ("a", "b", "b/c"):
        (tmp_path / name).mkdir()
    rows.to_parquet(str(tmp_path / "b" / "c" / "rows.parquet"))
    monkeypatch.setattr(paths, "MAX_FOLDERS", 4)
    assert len(list(open_table(str(tmp_path)))) == 1
    monkeypatch.setattr(paths, "MAX_FOLDERS", 3)
    for read in (open_table, content_digest):
        with pytest.raises(InputError, match=f"{tmp_path} holds more than 3 folders: name the data file itself"):
            read(str(tmp_path))
    rows.to_json(str(tmp_path / "metadata.jsonl"))
    assert len(list(open_table(str(tmp_path)))) == 1  # named, so nothing is searched
