"""JSONL is read back as it was written, and non-finite numbers become null."""

import json

import numpy as np
import pytest

from mmrlhf.files.jsonl import iter_jsonl, json_line, read_appended, read_jsonl
from mmrlhf.records import InputError


def test_read_jsonl_drops_only_a_torn_last_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"a": 1}\n\n{"a": "é"}\n{"a": "é'.encode()[:-1])  # cut inside a character
    assert read_jsonl(file) == [{"a": 1}, {"a": "é"}]
    file.write_text('{"a": 1}\n{"a": 2}')  # complete, but without a newline at the end
    assert read_jsonl(file) == [{"a": 1}, {"a": 2}]
    file.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(InputError, match="line 2"):
        read_jsonl(file)
    with pytest.raises(InputError, match=r"none\.jsonl"):
        read_jsonl(tmp_path / "none.jsonl")


def test_iter_jsonl_reads_a_line_at_a_time(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\nno\n')
    rows = iter_jsonl(file)
    assert next(rows) == {"a": 1}
    with pytest.raises(InputError, match="line 2"):
        next(rows)


@pytest.mark.parametrize("content, rows", [('{"a": 1}\n{"b"', [{"a": 1}]), ('{"a"', []), ("", []), ('{"a": 1}\n', [{"a": 1}])])
def test_what_a_kill_left_torn_is_cut_before_more_is_appended(tmp_path, content, rows):
    path = tmp_path / "rows.jsonl"
    assert read_appended(path) == []
    path.write_text(content)
    assert read_appended(path) == rows
    with path.open("a") as file:
        file.write('{"c": 3}\n')
    assert read_jsonl(path) == [*rows, {"c": 3}]


def test_json_line_converts_numpy_and_replaces_non_finite_numbers():
    row = {"mean": np.float64("nan"), "counts": np.array([1, 2]), "nested": {"worst": float("-inf"), 3: "é"}}
    line = json_line(row)
    assert line.endswith("}\n") and "é" in line
    assert json.loads(line) == {"mean": None, "counts": [1, 2], "nested": {"worst": None, "3": "é"}}
