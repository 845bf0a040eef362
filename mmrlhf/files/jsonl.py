"""Read and write JSONL files the same way everywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrlhf.files.atomic import write_atomic
from mmrlhf.records import InputError


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, as `iter_jsonl` yields them."""
    return list(iter_jsonl(path))


def iter_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, without an incomplete last line of a killed process.

    Raises InputError if the file cannot be read or any other line is not a JSON object.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                row = _parse_object(line)
                if row is not None:
                    yield row
                elif line.strip() and line.endswith(b"\n"):  # text after the last newline may be incomplete
                    raise InputError(f"{path} line {number} is not a JSON object: correct or remove the line")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def read_appended(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file for appending, [] without one.

    An incomplete last line of a killed process is removed from the file. Raises InputError like
    `read_jsonl`.
    """
    if not path.exists():
        return []
    rows = read_jsonl(path)
    if not path.read_bytes().endswith(b"\n"):
        write_atomic(path, "".join(map(json_line, rows)))
    return rows


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deeply
        return None
    return row if isinstance(row, dict) else None


def json_line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of JSONL, newline included."""
    return json.dumps(to_jsonable(row), ensure_ascii=False, allow_nan=False) + "\n"


def to_jsonable(value: Any) -> Any:
    """Convert torch and NumPy values to numbers and lists, and non-finite numbers to null."""
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return to_jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
