"""What a row of a data file is, and where it stands, before anyone says what its fields mean."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mmrlhf.records import InputError


@dataclass(frozen=True)
class Row:
    """A row's fields and its place for messages. A null counts as a field that is not there."""

    location: str
    number: int
    fields: Mapping[str, Any]

    def fail(self, problem: str) -> NoReturn:
        """Raise InputError with the row's place."""
        raise InputError(f"{self.location}: {problem}")

    def require_text(self, value: Any, name: str) -> str:
        """A value that must be text, without the white space around it. Raises InputError."""
        if not isinstance(value, str):
            self.fail(f"`{name}` must be text, not {type_name(value)}")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half a character, which no tokenizer takes
            self.fail(f"`{name}` is not valid Unicode: remove the unpaired surrogate")
        return value.strip()

    def require(self, name: str, hint: str = "add it") -> Any:
        """The field. Raises InputError when it is missing."""
        return self.fields[self.require_any(name, hint=hint)]

    def require_any(self, *names: str, hint: str = "add it") -> str:
        """The first of these fields that the row has. Raises InputError, with a field that looks like a slip of one."""
        for name in names:
            if name in self.fields:
                return name
        for name in names:
            others = [field for field in self.fields if field[:-1] != name[:-1]]  # output_1 is no slip of output_2
            if typo := difflib.get_close_matches(name, others, n=1, cutoff=0.75):
                self.fail(f"`{name}` is missing: rename `{preview(typo[0])[1:-1]}` to it")
        present = ", ".join(preview(field)[1:-1] for field in list(self.fields)[:12])
        self.fail(f"`{names[0]}` is missing: {hint} (the row has {present or 'no fields'})")


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in the file. It is parsed when it is its turn, so that one bad line is one bad row."""

    location: str
    number: int
    content: Any

    def parse(self) -> Row:
        """Its fields. Raises InputError when it is no JSON object."""
        content = self.content
        if isinstance(content, bytes):
            content = parse_json(content, self.location)
        if not isinstance(content, dict):
            raise InputError(f"{self.location}: a row must be an object with fields, not {type_name(content)}")
        try:
            return Row(self.location, self.number, _drop_nulls(content))
        except RecursionError:
            raise InputError(f"{self.location}: nested too deep to be data: correct it") from None


def read_json(path: Path) -> Any:
    """The JSON value that a whole file holds. Raises InputError when there is none."""
    with open_binary(path) as file:
        return parse_json(file.read(), str(path))


def read_json_objects(path: Path) -> list[Row]:
    """The rows of a JSON list, or of JSON lines, nulls kept. Raises InputError for one that is no object."""
    with open_binary(path) as file:
        content = file.read()
    if content.lstrip()[:1] == b"[":
        located_values = [(f"{path} row {n}", row) for n, row in enumerate(parse_json(content, str(path)), 1)]
    else:
        lines = enumerate(content.split(b"\n"), 1)
        located_values = [(f"{path} line {n}", parse_json(line, f"{path} line {n}")) for n, line in lines if line.strip()]
    for location, row in located_values:
        if not isinstance(row, dict):
            raise InputError(f"{location}: a row must be an object with fields, not {type_name(row)}")
    return [Row(location, n, row) for n, (location, row) in enumerate(located_values, 1)]


def parse_json(text: bytes, location: str) -> Any:
    """The JSON value that bytes hold. Raises InputError with the place of the fault."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        position = f"column {error.colno}" if b"\n" not in text.strip() else f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{location}: not JSON ({error.msg} at {position}): correct it") from None
    except RecursionError:
        raise InputError(f"{location}: nested too deep to be data: correct it") from None
    except ValueError as error:  # not UTF-8, or an integer of thousands of digits
        raise InputError(f"{location}: not JSON ({error}): write it as UTF-8") from None


def type_name(value: Any) -> str:
    """How a message speaks of a value of the wrong type."""
    type_names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return type_names.get(type(value), "an object" if isinstance(value, dict) else f"a {type(value).__name__}")


def preview(value: Any, max_length: int = 80) -> str:
    """A value in a message: on one line, printable, and not too long."""
    text = repr(value)
    return text if len(text) <= max_length else f"{text[: max_length - 4]}...{text[-1]}"


def open_binary(path: Path) -> io.BufferedReader:
    """A file to read bytes from. Raises InputError."""
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist: correct the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a file") from None


def _drop_nulls(value: Any) -> Any:
    """Arrow pads objects of one column with nulls until all have the same keys; a null says what a missing key says."""
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items() if item is not None}
    return [_drop_nulls(item) for item in value] if isinstance(value, list) else value
