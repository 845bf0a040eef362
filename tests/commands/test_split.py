"""`mmrlhf data split` holds rows out so that no image is on both sides."""

import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.cli import main
from mmrlhf.commands.split import _groups_by_image, split
from mmrlhf.records import InputError
from tests.helpers.rows import PAIR, TEXT_PAIR, make_data_dir, png_bytes, write_jsonl


@pytest.fixture
def data_dir(tmp_path):
    """Create a folder with images a.png to f.png; b.png is a copy of a.png."""
    directory = make_data_dir(tmp_path)
    for name, colour in {"b": "red", "c": "blue", "d": "green", "e": "white", "f": "black"}.items():
        (directory / f"{name}.png").write_bytes(png_bytes(colour))
    return directory


def rows_about(*names):
    return [{**PAIR, "id": str(i), "images": [f"{name}.png"]} for i, name in enumerate(names)]


def written(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_split_keeps_rows_of_an_image_together_and_as_they_are(data_dir, capsys):
    rows = rows_about(*"acbdaefc")
    path = write_jsonl(data_dir, *rows)
    train, held_out = data_dir / "train.jsonl", data_dir / "held_out.jsonl"
    arguments = ["--held_out", "3", "--train_file", str(train), "--held_out_file", str(held_out)]
    assert main(["data", "split", path, *arguments]) == 0
    left, right = written(train), written(held_out)
    assert sorted([*left, *right], key=lambda row: row["id"]) == rows and 3 <= len(right) < len(rows)
    content = {"b": "a"}  # copies of an image under two names

    def images(side):
        return {content.get(row["images"][0][0], row["images"][0][0]) for row in side}

    assert not images(left) & images(right)
    assert [row["id"] for row in left] == sorted(row["id"] for row in left)  # in their order
    assert f"{train}: {len(left)} rows; {held_out}: {len(right)} rows" in capsys.readouterr().out
    before = train.read_bytes()
    split(path, 3, str(train), str(held_out))
    assert train.read_bytes() == before
    others = set()
    for seed in range(8):
        split(path, 3, str(train), str(held_out), seed=seed)
        others.add(train.read_bytes())
    assert len(others) > 1


def test_split_reads_a_list_and_rows_without_images(data_dir):
    rows = [{**TEXT_PAIR, "images": [], "prompt": prompt} for prompt in ("Why?", "How?", "Why?", "Who?")]
    path = data_dir / "rows.json"
    path.write_text(json.dumps(rows))
    split(str(path), 1, str(data_dir / "train.jsonl"), str(data_dir / "held_out.jsonl"))
    left, right = written(data_dir / "train.jsonl"), written(data_dir / "held_out.jsonl")
    assert len(left) + len(right) == 4 and not {row["prompt"] for row in left} & {row["prompt"] for row in right}


@pytest.mark.parametrize(
    ("held_out", "files", "message"),
    [
        (2, ("train.jsonl", "held_out.jsonl"), "holding out 2 of 2 rows leaves none to train on"),
        (1, ("train.jsonl", "train.jsonl"), "are both"),
        (1, ("train.jsonl", "rows.jsonl"), r"held_out_file .*rows\.jsonl is an input file"),
        (1, ("train.parquet", "held_out.jsonl"), r"train_file .*train\.parquet must end in \.jsonl"),
        (1, ("train.jsonl", "."), "is a directory"),
    ],
)
def test_split_refuses_and_writes_nothing(data_dir, held_out, files, message):
    path = write_jsonl(data_dir, *rows_about("a", "b"))
    before = set(data_dir.iterdir())
    with pytest.raises(InputError, match=message):
        split(path, held_out, *(str(data_dir / name) for name in files))
    assert set(data_dir.iterdir()) == before


def test_split_names_a_bad_row(data_dir):
    path = write_jsonl(data_dir, *rows_about("c", "missing"))
    with pytest.raises(InputError, match="line 2"):
        split(path, 1, str(data_dir / "train.jsonl"), str(data_dir / "held_out.jsonl"))


def test_split_refuses_embedded_images(data_dir):
    import datasets

    rows = [
        {"image": {"bytes": png_bytes(colour), "path": None}, "question": "What?", "chosen": "A.", "rejected": "B."}
        for colour in ("red", "blue")
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(data_dir / "rows.parquet"))
    with pytest.raises(InputError, match="the row embeds its images: write the file as JSONL first"):
        split(str(data_dir / "rows.parquet"), 1, str(data_dir / "train.jsonl"), str(data_dir / "held_out.jsonl"))


@settings(max_examples=50)
@given(st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=3), max_size=25))
def test_groups_by_image_are_connected_components(keys):
    groups = _groups_by_image([set(map(str, row)) for row in keys])
    assert sorted(i for group in groups for i in group) == list(range(len(keys)))
    keys_of_groups = [{key for i in group for key in keys[i]} for group in groups]
    assert sum(map(len, keys_of_groups)) == len(set().union(*keys_of_groups))  # no key in two groups
    for group in groups:  # and each group hangs together
        reached, pending = {group[0]}, [group[0]]
        while pending:
            current = pending.pop()
            nearby = {i for i in group if keys[i] & keys[current]} - reached
            reached |= nearby
            pending += nearby
        assert reached == set(group)


def test_grouping_reads_each_rows_images_once():
    """Read again for each later row, 100,000 rows with one image would take hours."""
    reads = []

    class Keys(list):
        def __iter__(self):
            reads.append(self)
            return super().__iter__()

    assert _groups_by_image([Keys(["blank"]) for _ in range(50)]) == [list(range(50))] and len(reads) == 50


def test_split_elsewhere_says_where_images_start_and_drops_the_mark_of_a_file(data_dir, capsys):
    path = write_jsonl(data_dir, *rows_about(*"acdef"))
    (data_dir / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + (data_dir / "rows.jsonl").read_bytes())
    out = data_dir / "out"
    split(path, 2, str(out / "train.jsonl"), str(out / "held_out.jsonl"))
    assert f"image paths start from {data_dir} (--image_folder {data_dir})" in capsys.readouterr().out
    assert b"\xef" not in (out / "train.jsonl").read_bytes() + (out / "held_out.jsonl").read_bytes()


def test_split_writes_dates_as_text(data_dir):
    import datasets

    rows = [{**TEXT_PAIR, "images": [], "prompt": prompt, "time": datetime(2026, 1, 2)} for prompt in ("Why?", "How?")]
    datasets.Dataset.from_list(rows).to_parquet(str(data_dir / "rows.parquet"))
    split(str(data_dir / "rows.parquet"), 1, str(data_dir / "train.jsonl"), str(data_dir / "held_out.jsonl"))
    assert written(data_dir / "train.jsonl")[0]["time"] == "2026-01-02 00:00:00"


def test_split_explains_a_full_disk(data_dir, monkeypatch):
    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=r"train\.jsonl is on a full disk: make room$"):
        split(write_jsonl(data_dir, *rows_about("c", "d")), 1, str(data_dir / "train.jsonl"), str(data_dir / "held_out.jsonl"))
