"""Rows of a data file, and where each stands: what is read before anyone says what the fields mean.

JSON is read with `json`: Arrow's reader guesses types, so that an answer "2024-01-01" would come back as a date and
"3" as a number, and one broken line loses the file without saying which. Parquet, saved `datasets` folders and the Hub
have types of their own and go through `datasets`; local files are read where they lie, so that no cached copy goes stale.
Pictures stay encoded.
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from mmrlhf.config import suggestion
from mmrlhf.records import InputError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


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


def read(dataset_name: str, split: str = "train") -> Iterator[Unread]:
    """The rows of a JSON, JSONL or parquet file, a saved `datasets` folder, or a Hub dataset.

    Raises InputError when there is no such thing, it cannot be read, or it has no rows.
    """
    path = Path(dataset_name)
    if path.suffix in (".json", ".jsonl") and not path.is_dir():
        rows = _read_json(path)
    else:
        rows = _read_datasets(dataset_name, split)
    found = False
    for row in rows:
        found = True
        yield row
    if not found:
        raise InputError(f"{dataset_name} has no rows: give a dataset with at least one")


def folder(dataset_name: str) -> Path | None:
    """Where relative paths of a dataset start unless the user says otherwise: its own folder; none for a Hub id."""
    path = Path(dataset_name)
    return path if path.is_dir() else path.parent if path.is_file() else None


def contents(path: Path) -> Any:
    """The JSON value that a whole file holds. Raises InputError when there is none."""
    with _opened(path) as file:
        return parse(file.read(), str(path))


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


def _read_json(path: Path) -> Iterator[Unread]:
    """One object a line, or one list of objects: whichever the content is, whatever the suffix says."""
    with _opened(path) as file:
        if file.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
            values = parse(file.read(), str(path))
            yield from (Unread(f"{path}, row {number}", number, value) for number, value in enumerate(values, 1))
        else:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Unread(f"{path}, line {number}", number, line)


def _opened(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist: correct the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a file") from None


def _read_datasets(name: str, split: str) -> Iterator[Unread]:
    try:
        tables = _tables(name, split)
        for number, value in enumerate((row for table in tables for row in _undecoded(table)), 1):
            yield Unread(f"{name}, row {number}", number, value)
    except InputError:
        raise
    except Exception as error:  # the readers of datasets, pyarrow and the Hub have no exception in common
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{name} cannot be read ({reason}): correct the file, the name or the split") from None


ROWS_AT_A_TIME = 64
"""Of a parquet file, so that a large one is not in memory twice."""


def _tables(name: str, split: str) -> Iterator[Any]:
    """A dataset as `datasets.Dataset`s, one after the other."""
    path = Path(name)
    if path.is_file() and path.suffix != ".parquet":
        raise InputError(f"{name} is not a .json, .jsonl or .parquet file: convert it to one of them")
    if not path.exists() and not (HUB_ID.fullmatch(name) and path.suffix != ".parquet"):
        raise InputError(f"{name} does not exist: give a file, a `datasets` folder, or a Hub id such as owner/name")
    import datasets

    if path.is_file():
        yield from _parquet(path)
    elif not path.exists():
        yield datasets.load_dataset(name, split=split)
    elif any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(name)
        yield saved[_split(name, split, saved)] if isinstance(saved, datasets.DatasetDict) else saved
    elif next(path.rglob("*.parquet"), None) is not None:
        files = datasets.load_dataset_builder("parquet", data_dir=name).config.data_files
        for file in files[_split(name, split, files)]:
            yield from _parquet(Path(file))
    else:
        raise InputError(f"{name} is not a saved `datasets` folder: name the data file itself")


def _split(name: str, split: str, splits: Mapping[str, Any]) -> str:
    """The split to read: the one that is asked for, or the only one. Raises InputError with the nearest name."""
    if split not in splits and len(splits) > 1:
        raise InputError(f"{name} has no split {split}: {suggestion(split, map(str, splits))}")
    return split if split in splits else next(iter(splits))


def _parquet(path: Path) -> Iterator[Any]:
    """A file's rows, some at a time. A stream of `datasets` has threads that outlive it where reading stops early, as it
    does at a bad row: Python then hangs or aborts when it ends.
    """
    import datasets
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME, use_threads=False):
            yield datasets.Dataset(pyarrow.Table.from_batches([batch]))


def _undecoded(dataset: Any) -> Iterator[Any]:
    """Its rows with pictures as encoded bytes or paths. `decode(False)` would leave columns of JSON undecoded too."""
    import datasets

    def encoded(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return replace(feature, decode=False)
        if isinstance(feature, dict):
            return {name: encoded(inner) for name, inner in feature.items()}
        return replace(feature, feature=encoded(feature.feature)) if hasattr(feature, "feature") else feature

    stream = dataset.to_iterable_dataset()  # casting a stream writes no cache
    return iter(stream.cast(datasets.Features(encoded(dict(dataset.features)))))


def _without_nulls(value: Any) -> Any:
    """Arrow pads objects of one column with nulls until all have the same keys; a null says what a missing key says."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
