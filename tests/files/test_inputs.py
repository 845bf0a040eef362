"""Inputs of an output are compared by content, not by path."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace

import pytest

from mmrlhf.files import inputs
from mmrlhf.files.inputs import (
    content_digest,
    content_inputs,
    differences,
    has_same_content,
    image_digest,
    inputs_of,
    rows_digest,
)
from mmrlhf.records import Example, Fact, ImageSource, Message


@dataclass(frozen=True)
class FakeConfig:
    dataset_name: str = "owner/name"
    reward_model_path: str | None = None
    reward_terms: str = "length=1"
    seed: int = 0
    micro_batch_tokens: int = 100


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_content_digest_follows_content_and_not_the_path(tmp_path):
    first, copy, other = (write(tmp_path / name, text) for name, text in (("a", "x"), ("b", "x"), ("c", "y")))
    assert content_digest(str(first)) == content_digest(str(copy)) != content_digest(str(other))
    assert content_digest(str(tmp_path / "missing")) is None
    assert has_same_content(str(first), str(copy)) and not has_same_content(str(first), str(other))
    assert not has_same_content(str(first), None) and not has_same_content(*[str(tmp_path / "missing")] * 2)


def test_content_digest_of_a_checkpoint_covers_what_decides_its_outputs(tmp_path):
    for name in ("config.json", "model.safetensors", "chat_template.jinja", "README.md"):
        write(tmp_path / name, name)
    before = content_digest(str(tmp_path))
    write(tmp_path / "README.md", "another card")
    assert content_digest(str(tmp_path)) == before
    write(tmp_path / "chat_template.jinja", "another template")
    assert content_digest(str(tmp_path)) != before


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_content_digest_of_an_adapter_covers_weights_and_configuration(tmp_path, name):
    for file in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        write(tmp_path / file, file)
    before = content_digest(str(tmp_path))
    write(tmp_path / "README.md", "another card")
    assert content_digest(str(tmp_path)) == before
    write(tmp_path / name, "another")
    assert content_digest(str(tmp_path)) != before


def test_content_digest_of_a_dataset_folder_covers_its_subfolders(tmp_path):
    write(tmp_path / "data" / "train-0.parquet", "a")
    before = content_digest(str(tmp_path))
    write(tmp_path / "data" / "train-1.parquet", "b")
    after = content_digest(str(tmp_path))
    assert after != before
    write(tmp_path / "images" / "a.PNG", "a picture")  # counts by itself, if a row names it
    assert content_digest(str(tmp_path)) == after


def test_content_digest_of_an_imagefolder_covers_its_table_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("mmrlhf.files.paths.MAX_FOLDERS", 1)  # a folder for every class or video
    write(tmp_path / "cats" / "a.png", "a picture")
    write(tmp_path / "dogs" / "b.txt", "a note")
    write(tmp_path / "metadata.jsonl", "{}")
    before = content_digest(str(tmp_path))
    write(tmp_path / "dogs" / "b.txt", "another note")
    assert content_digest(str(tmp_path)) == before
    write(tmp_path / "metadata.jsonl", "{} ")
    assert content_digest(str(tmp_path)) != before


def test_content_digest_samples_files_of_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_HASHED_BYTES", 100)
    monkeypatch.setattr(inputs, "SAMPLE_BYTES", 10)
    monkeypatch.setattr(inputs, "NUM_SAMPLES", 5)
    path = tmp_path / "shard"
    path.write_bytes(bytes(1000))
    digests = [content_digest(str(path))]
    for position in (0, 999):  # the samples reach both ends
        content = bytearray(1000)
        content[position] = 1
        path.write_bytes(content)
        digests.append(content_digest(str(path)))
    path.write_bytes(bytes(1001))
    digests.append(content_digest(str(path)))
    assert len(set(digests)) == 4


def test_content_inputs_name_every_reward_model_and_reward_function(tmp_path):
    write(tmp_path / "one" / "reward.json", json.dumps({"seal": "s1", "base": "there"}))
    write(tmp_path / "two" / "reward.json", json.dumps({"seal": "s2"}))
    function = write(tmp_path / "terms.py", "def short(samples): ...")
    config = FakeConfig(reward_model_path=f"{tmp_path / 'one'}, {tmp_path / 'two'}", reward_terms=f"{function}:short=1, length=2")
    before = content_inputs(config)
    assert before["reward_model_path"]["sha256"] == "s1,s2" and "dataset_name" not in before
    write(function, "def short(samples): return 1")
    (changed,) = differences(before, content_inputs(config))
    assert changed.startswith(f"reward function file {function} (") and changed.endswith("has changed since)")


def test_differences_leave_out_engine_settings_and_moved_files(tmp_path):
    first, moved = write(tmp_path / "a.jsonl", "x"), write(tmp_path / "b.jsonl", "x")
    before, after = (inputs_of(FakeConfig(dataset_name=str(path), micro_batch_tokens=n)) for path, n in ((first, 1), (moved, 2)))
    assert differences(before, after) == []
    assert differences(before, inputs_of(FakeConfig(dataset_name=str(first), seed=3))) == ["seed (was 0, now 3)"]


def test_rows_digest_notices_another_image_of_the_same_size_and_time(tmp_path):
    path = write(tmp_path / "a.png", "head" + "x" * 20_000 + "tail")
    rows = [Example("1", (ImageSource(path=str(path)),), (Message("user", "?"),))]
    before, times = rows_digest(rows, images_only=True), os.stat(path)
    path.write_text("head" + "x" * 20_000 + "liat")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert rows_digest(rows, images_only=True) != before
    path.unlink()
    assert image_digest(rows[0].images[0]) is None and rows_digest(rows, images_only=True) != before


def test_rows_digest_covers_which_row_shows_a_repeated_image(tmp_path):
    red, blue = (ImageSource(path=str(write(tmp_path / name, name))) for name in ("a.png", "b.png"))

    def digest(images, images_only):
        rows = [Example(str(number), (image,), (Message("user", "?"),)) for number, image in enumerate(images)]
        return rows_digest(rows, images_only=images_only)

    assert digest([red, blue, red], images_only=False) != digest([red, blue, blue], images_only=False)
    assert digest([red, blue, red], images_only=True) == digest([red, blue, blue], images_only=True)  # a file tells the rest


def test_rows_digest_of_rows_in_memory_covers_everything_but_meta():
    row = Example("1", (ImageSource(data=b"x"),), (Message("user", "?"),), "an answer")
    before = rows_digest([row], images_only=False)
    assert rows_digest([replace(row, meta={"a": 1})], images_only=False) == before
    others = (
        replace(row, answer="another"),
        replace(row, facts=(Fact("object", "a dog"),)),
        replace(row, images=(ImageSource(data=b"y"),)),
        replace(row, id="2"),
    )
    assert len({before, *(rows_digest([other], images_only=False) for other in others)}) == 5
