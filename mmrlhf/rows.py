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

    where: str
    number: int
    fields: Mapping[str, Any]

    def fail(self, problem: str) -> NoReturn:
        """Raise InputError with the row's place."""
        raise InputError(f"{self.where}: {problem}")

    def text(self, value: Any, name: str) -> str:
        """A value that must be text, without the white space around it. Raises InputError."""
        if not isinstance(value, str):
            self.fail(f"`{name}` must be text, not {kind(value)}")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half a character, which no tokenizer takes
            self.fail(f"`{name}` is not valid Unicode: remove the unpaired surrogate")
        return value.strip()

    def need(self, name: str, hint: str = "add it") -> Any:
        """The field. Raises InputError when it is missing."""
        return self.fields[self.either(name, hint=hint)]

    def either(self, *names: str, hint: str = "add it") -> str:
        """The first of these fields that the row has. Raises InputError, with a field that looks like a slip of one."""
        for name in names:
            if name in self.fields:
                return name
        for name in names:
            others = [field for field in self.fields if field[:-1] != name[:-1]]  # output_1 is no slip of output_2
            if slip := difflib.get_close_matches(name, others, n=1, cutoff=0.75):
                self.fail(f"`{name}` is missing: rename `{shown(slip[0])[1:-1]}` to it")
        there = ", ".join(shown(field)[1:-1] for field in list(self.fields)[:12])
        self.fail(f"`{names[0]}` is missing: {hint} (the row has {there or 'no fields'})")


@dataclass(frozen=True)
class Unread:
    """A row as it stands in the file. It is parsed when it is its turn, so that one bad line is one bad row."""

    where: str
    number: int
    content: Any

    def row(self) -> Row:
        """Its fields. Raises InputError when it is no JSON object."""
        content = self.content
        if isinstance(content, bytes):
            content = parse(content, self.where)
        if not isinstance(content, dict):
            raise InputError(f"{self.where}: a row must be an object with fields, not {kind(content)}")
        try:
            return Row(self.where, self.number, _without_nulls(content))
        except RecursionError:
            raise InputError(f"{self.where}: nested too deep to be data: correct it") from None


def contents(path: Path) -> Any:
    """The JSON value that a whole file holds. Raises InputError when there is none."""
    with opened(path) as file:
        return parse(file.read(), str(path))


def objects(path: Path) -> list[Row]:
    """The rows of a JSON list, or of JSON lines, nulls kept. Raises InputError for one that is no object."""
    with opened(path) as file:
        content = file.read()
    if content.lstrip()[:1] == b"[":
        found = [(f"{path} row {n}", row) for n, row in enumerate(parse(content, str(path)), 1)]
    else:
        lines = enumerate(content.split(b"\n"), 1)
        found = [(f"{path} line {n}", parse(line, f"{path} line {n}")) for n, line in lines if line.strip()]
    for where, row in found:
        if not isinstance(row, dict):
            raise InputError(f"{where}: a row must be an object with fields, not {kind(row)}")
    return [Row(where, n, row) for n, (where, row) in enumerate(found, 1)]


def parse(text: bytes, where: str) -> Any:
    """The JSON value that bytes hold. Raises InputError with the place of the fault."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if b"\n" not in text.strip() else f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{where}: not JSON ({error.msg} at {place}): correct it") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deep to be data: correct it") from None
    except ValueError as error:  # not UTF-8, or an integer of thousands of digits
        raise InputError(f"{where}: not JSON ({error}): write it as UTF-8") from None


def kind(value: Any) -> str:
    """How a message speaks of a value of the wrong type."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else f"a {type(value).__name__}")


def shown(value: Any, most: int = 80) -> str:
    """A value in a message: on one line, printable, and not too long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 4]}...{text[-1]}"


def opened(path: Path) -> io.BufferedReader:
    """A file to read bytes from. Raises InputError."""
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist: correct the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a file") from None


def _without_nulls(value: Any) -> Any:
    """Arrow pads objects of one column with nulls until all have the same keys; a null says what a missing key says."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
