"""Records are made when they are asked for: memory does not grow with the file, and a file that changes is refused."""

import base64
import json
import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from mmrlhf.datasets import Records, read_examples, read_preferences
from mmrlhf.records import InputError


def make_row(number, size=64):
    picture = base64.b64encode(random.Random(number).randbytes(size)).decode()
    return {
        "id": number,
        "image": {"bytes": picture},
        "prompt": f"Number {number}?",
        "chosen": f"It is {number}.",
        "rejected": "None.",
    }


def write_rows(path, count, size=64):
    with path.open("w") as file:
        file.writelines(f"{json.dumps(make_row(number, size))}\n" for number in range(count))
    return str(path)


def image_table(count):
    import datasets

    stored = [{**make_row(n), "image": {"bytes": random.Random(n).randbytes(64), "path": f"{n}.png"}} for n in range(count)]
    return datasets.Dataset.from_list(stored).cast_column("image", datasets.Image())


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
    whole = image_table(count)
    for number, part in enumerate((whole.select(range(4)), whole.select(range(4, count)))):
        part.to_parquet(str(folder / "parts" / f"train-{number:05d}-of-00002.parquet"), batch_size=2)
    return str(folder / "parts")


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_indexed_in_any_order(kind, tmp_path):
    records = read_preferences(write_dataset(tmp_path, kind, 11))
    assert isinstance(records, Records) and len(records) == 11
    chosen = [f"It is {number}." for number in range(11)]
    assert [one.chosen for one in records] == chosen
    for number in random.Random(0).sample(range(-11, 11), 22):
        one = records[number]
        assert (one.chosen, one.id) == (chosen[number], str(number % 11))
        assert one == records[number] and one is not records[number]
        assert one.images[0].data == random.Random(number % 11).randbytes(64)
    assert [one.chosen for one in records[3:-2]] == chosen[3:-2]
    assert [one.chosen for one in records[3:][::-2][1:]] == chosen[3:][::-2][1:]
    assert [one.chosen for one in records[2:].subset([5, 0, 5])[:2]] == [chosen[7], chosen[2]]
    assert len(records[20:]) == 0 and not records[20:]
    assert [one.chosen for one in reversed(records)] == chosen[::-1]
    for number in (11, -12):
        with pytest.raises(IndexError):
            records[number]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "folder"])
@pytest.mark.parametrize("change", ["rewritten", "longer", "gone"])
def test_records_refuse_changed_file(kind, change, tmp_path):
    path = write_dataset(tmp_path, kind, 11)
    records = read_preferences(path)
    files = (
        [path] if os.path.isfile(path) else sorted(str(p) for p in Path(path).rglob("*") if p.suffix in (".arrow", ".parquet"))
    )
    content = Path(files[0]).read_bytes()
    time.sleep(0.02)
    if change == "gone":
        os.unlink(files[0])
    else:
        Path(files[0]).write_bytes(content if change == "rewritten" else content + b"\n")
    with pytest.raises(InputError) as caught:
        records[3]
    said = "does not exist" if change == "gone" and kind == "jsonl" else "has changed since it was first read: start again"
    assert said in str(caught.value) and files[0] in str(caught.value) and "\n" not in str(caught.value)


def test_table_refuses_file_changed_during_first_pass(tmp_path):
    path = Path(write_rows(tmp_path / "rows.jsonl", 3))
    from mmrlhf.files.tables import open_table

    rows = iter(open_table(str(path)))
    next(rows)
    time.sleep(0.02)
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="has changed since it was first read"):
        list(rows)


def test_records_of_json_list_survive_file_removal(tmp_path):
    path = write_dataset(tmp_path, "json", 3)
    records = read_preferences(path)
    os.unlink(path)
    assert [one.id for one in records] == ["0", "1", "2"]


def test_records_count_blank_lines_and_skip_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n" + "\n \n".join(json.dumps({k: v for k, v in make_row(n).items() if k != "id"}) for n in range(3)))
    assert [one.id for one in read_preferences(str(path))] == ["3", "5", "7"]


def test_read_examples_first_pass_finds_a_bad_row_anywhere(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", 200)
    with open(path, "a") as file:
        file.write("{\n")
    with pytest.raises(InputError, match="line 201: not JSON"):
        read_examples(path)


def test_records_memory_does_not_grow_with_the_file(tmp_path):
    size, peaks = 200_000, []
    for count in (20, 240):  # 5 and 64 MB of pictures in base64
        path = write_rows(tmp_path / f"{count}.jsonl", count, size)
        assert os.path.getsize(path) > count * size * 4 / 3
        tracemalloc.start()
        records = read_preferences(path)
        for number in random.Random(1).sample(range(count), 15):
            assert len(records[number].images[0].data) == size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + size and peaks[1] < 20 * size


def test_records_release_parquet_row_groups(tmp_path):
    import datasets

    rows = [{**make_row(n), "image": {"bytes": random.Random(n).randbytes(100_000), "path": None}} for n in range(60)]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(
        str(tmp_path / "rows.parquet"), batch_size=5
    )
    records = read_preferences(str(tmp_path / "rows.parquet"))
    import pyarrow

    before, most = pyarrow.total_allocated_bytes(), 0
    for one in records:
        assert len(one.images[0].data) == 100_000
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < 25 * 100_000  # two groups of five and what reading one takes, not sixty
