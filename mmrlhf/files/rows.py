"""Rows of data files with their location, before their fields are interpreted, and JSON parsing."""

from __future__ import annotations

import codecs
import difflib
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from mmrlhf.records import InputError

MAX_LINE_BYTES = 64 << 20
"""Longest line of a JSONL file. Parsed, a line can take twenty times its size."""


@dataclass(frozen=True)
class Row:
    """A row's fields, and its location for messages."""

    location: str
    number: int
    fields: Mapping[str, Any]
    """The fields that are not null, if `RawRow.parse` made the row."""
    null_fields: frozenset[str] = frozenset()
    """The names of its null fields."""

    def fail(self, problem: str) -> NoReturn:
        """Raise InputError with the row's location."""
        raise InputError(f"{self.location}: {problem}")

    def require_text(self, value: Any, name: str) -> str:
        """Return a text value, stripped. Raises InputError if it is not valid text."""
        if not isinstance(value, str):
            self.fail(f"`{name}` must be text, not {type_name(value)}")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can escape half of a surrogate pair, which no tokenizer accepts
            self.fail(f"`{name}` is not valid Unicode: remove the unpaired surrogate")
        return value.strip()

    def require(self, name: str, hint: str = "add it") -> Any:
        """Return a field's value. Raises InputError if it is missing."""
        return self.fields[self.require_any(name, hint=hint)]

    def require_any(self, *names: str, hint: str = "add it") -> str:
        """Return the first of these names that the row has. Raises InputError if it has none."""
        for name in names:
            if name in self.fields:
                return name
        for name in names:
            others = [field for field in self.fields if field[:-1] != name[:-1]]  # output_1 is no typo of output_2
            typos = difflib.get_close_matches(name, others, n=1, cutoff=0.75)
            if typos:
                self.fail(f"`{name}` is missing: rename `{preview(typos[0])[1:-1]}` to it")
        present = ", ".join(preview(field)[1:-1] for field in list(self.fields)[:12])
        self.fail(f"`{names[0]}` is missing: {hint} (the row has {present or 'no fields'})")


@dataclass(frozen=True)
class RawRow:
    """An unparsed row. It is parsed only when it is used, so a bad line affects no other row."""

    location: str
    number: int
    content: Any

    def parse(self) -> Row:
        """Return the row's fields. Raises InputError if it is not a JSON object."""
        content = self.content
        if isinstance(content, bytes):
            content = parse_json(content, self.location)
        if not isinstance(content, dict):
            raise InputError(f"{self.location}: a row must be an object with fields, not {type_name(content)}")
        try:
            null_fields = frozenset(name for name, value in content.items() if value is None)
            return Row(self.location, self.number, _drop_nulls(content), null_fields)
        except RecursionError:
            raise InputError(f"{self.location}: nested too deeply: correct it") from None


def read_lines(file: io.BufferedReader, path: Path) -> Iterator[bytes]:
    """Yield the lines of an open file. Raises InputError at a line above MAX_LINE_BYTES."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{path}, line {number} is longer than {MAX_LINE_BYTES >> 20} MiB: write one row per line, and images as files"
            )
        yield line


def read_json(path: Path) -> Any:
    """Return the JSON value of a file. Raises InputError if it cannot be read or is not JSON."""
    with open_binary(path) as file:
        return _parse_unicode_json(file.read(), str(path))


def read_json_objects(path: Path) -> list[Row]:
    """Return the rows of a JSON list or JSONL, null fields included. Raises InputError."""
    with open_binary(path) as file:
        if file.peek(1).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            values = _parse_unicode_json(file.read(), str(path))
            located_values = [(f"{path} row {n}", value) for n, value in enumerate(values, 1)]
        else:
            lines = ((f"{path} line {n}", line) for n, line in enumerate(read_lines(file, path), 1) if line.strip())
            located_values = [(location, _parse_unicode_json(line, location)) for location, line in lines]
    for location, value in located_values:
        if not isinstance(value, dict):
            raise InputError(f"{location}: a row must be an object with fields, not {type_name(value)}")
    return [Row(location, number, value) for number, (location, value) in enumerate(located_values, 1)]


def _parse_unicode_json(text: bytes, location: str) -> Any:
    """Parse JSON. Raises InputError as `parse_json`, and for text that no file can hold."""
    value = parse_json(text, location)
    if re.search(rb"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError(f"{location}: not valid Unicode: remove the unpaired surrogate") from None
    return value


class _RepeatedFieldError(ValueError):
    """An object repeats a field; `json` would silently keep the last value."""


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _RepeatedFieldError(preview(repeated)[1:-1])
    return fields


def parse_json(text: bytes, location: str) -> Any:
    """Parse JSON.

    Raises InputError with the position of the error, or the name of a field that an object repeats.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_fields)
    except _RepeatedFieldError as error:
        raise InputError(f"{location}: `{error}` is given twice in an object: keep one of them") from None
    except json.JSONDecodeError as error:
        position = f"column {error.colno}" if b"\n" not in text.strip() else f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{location}: not JSON ({error.msg} at {position}): correct it") from None
    except RecursionError:
        raise InputError(f"{location}: nested too deeply: correct it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: not JSON ({error}): write it as UTF-8") from None
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{location}: not JSON ({error}): correct it") from None


def is_single_object(path: Path, head: bytes) -> bool:
    """Return whether a file of at most MAX_LINE_BYTES is one JSON object, spread over lines.

    head: the beginning of the file.
    """
    first_line, newline, _ = head.partition(b"\n")
    is_open = newline and first_line.startswith(b"{") and not first_line.rstrip().endswith(b"}")
    if not is_open or path.stat().st_size > MAX_LINE_BYTES:
        return False
    try:
        return isinstance(read_json(path), dict)
    except InputError:  # lines, some of them bad
        return False


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a number that a float can hold; integers may be larger."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def type_name(value: Any) -> str:
    """Return the name of a value's type in messages."""
    if isinstance(value, dict):
        return "an object"
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


def preview(value: Any, max_length: int = 80) -> str:
    """Return a value for a message: printable, on one line, cut to `max_length` characters."""
    text = repr(value)
    return text if len(text) <= max_length else f"{text[: max_length - 4]}...{text[-1]}"


def open_binary(path: Path) -> io.BufferedReader:
    """Open a file to read bytes. Raises InputError if it cannot be read."""
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist: correct the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a file") from None


def decode_text(content: bytes, path: Path) -> str:
    """Decode the content of a file, without a byte order mark. Raises InputError if it is not
    UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): write it as UTF-8") from None


def read_text(path: Path) -> str:
    """Return the text of a file. Raises InputError if it cannot be read or is not UTF-8."""
    with open_binary(path) as file:
        return decode_text(file.read(), path)


def _drop_nulls(value: Any) -> Any:
    """Remove null fields, which Arrow adds to give all objects of a column the same keys."""
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_drop_nulls(item) for item in value]
    return value
