"""Where rows lie: a table of them for each kind of file, read from end to end once and then by number.

What is kept of a file is where its rows begin, so that it may be larger than memory; a JSON list is one value and is kept.
A file that changes after it was opened is refused, since its rows may stand elsewhere. Pictures stay encoded.

JSON is read with `json`: Arrow's reader guesses types, so that an answer "2024-01-01" would come back as a date and
"3" as a number, and one broken line loses the file without saying which. Parquet, saved `datasets` folders and the Hub
have types of their own, which `datasets` knows; local files are read where they lie, so that no cached copy goes stale.
"""

from __future__ import annotations

import bisect
import os
import re
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mmrlhf.records import InputError
from mmrlhf.rows import Unread, opened, parse
from mmrlhf.settings import suggestion

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
ROWS_AT_A_TIME = 64
"""Of a table, on the way through it, so that a large one is not in memory twice."""


class Table(Protocol):
    """A dataset's rows. Going through it finds where they are; `[place]`, counted from 0, gives one again after that."""

    def __iter__(self) -> Iterator[Unread]: ...

    def __getitem__(self, place: int) -> Unread: ...


def table(dataset_name: str, split: str = "train") -> Table:
    """A JSON, JSONL or parquet file, a saved `datasets` folder, or a Hub dataset.

    Raises InputError, now or on the way through it, when there is no such thing or it cannot be read.
    """
    path = Path(dataset_name)
    if path.suffix in (".json", ".jsonl") and not path.is_dir():
        with opened(path) as file:
            is_list = file.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
        return _List(path) if is_list else _Lines(path)  # whichever the content is, whatever the suffix says
    with _told(dataset_name):
        return _of_datasets(dataset_name, split)


def read(dataset_name: str, split: str = "train") -> Iterator[Unread]:
    """The rows of a dataset, once. Raises InputError as `table` does, and when there are none."""
    return through(dataset_name, table(dataset_name, split))


def through(name: str, rows: Table) -> Iterator[Unread]:
    """The rows of a table. Raises InputError when there are none."""
    found = False
    for row in rows:
        found = True
        yield row
    if not found:
        raise InputError(f"{name} has no rows: give a dataset with at least one")


def folder(dataset_name: str) -> Path | None:
    """Where relative paths of a dataset start unless the user says otherwise: its own folder; none for a Hub id."""
    path = Path(dataset_name)
    return path if path.is_dir() else path.parent if path.is_file() else None


class _Unchanged:
    """What files were when they were opened. Calling it raises InputError when one of them is no longer that."""

    def __init__(self, files: Sequence[str | Path]) -> None:
        self._were = {str(file): self._state(file) for file in files}

    def __call__(self) -> None:
        for file, was in self._were.items():
            if self._state(file) != was:
                raise InputError(f"{file} has changed since it was first read: start again, and leave it alone until the end")

    @staticmethod
    def _state(file: str | Path) -> tuple[int, int, int] | None:
        try:
            found = os.stat(file)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


# ---- JSON ------------------------------------------------------------------------------------------------------------


class _Lines:
    """One object a line. A blank line is none, and is counted for messages."""

    def __init__(self, path: Path) -> None:
        self._path, self._unchanged = path, _Unchanged([path])
        self._starts, self._numbers = array("Q"), array("Q")

    def __iter__(self) -> Iterator[Unread]:
        self._starts, self._numbers, start = array("Q"), array("Q"), 0
        with opened(self._path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._starts.append(start)
                    self._numbers.append(number)
                    yield self._row(number, line)
                start += len(line)
        self._unchanged()

    def __getitem__(self, place: int) -> Unread:
        with opened(self._path) as file:
            self._unchanged()
            file.seek(self._starts[place])
            return self._row(self._numbers[place], file.readline())

    def _row(self, number: int, line: bytes) -> Unread:
        return Unread(f"{self._path}, line {number}", number, line)


class _List:
    """One list of objects."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with opened(path) as file:
            self._values: list[Any] = parse(file.read(), str(path))

    def __iter__(self) -> Iterator[Unread]:
        return (self[place] for place in range(len(self._values)))

    def __getitem__(self, place: int) -> Unread:
        return Unread(f"{self._path}, row {place + 1}", place + 1, self._values[place])


# ---- tables of Arrow -------------------------------------------------------------------------------------------------


@contextmanager
def _told(name: str) -> Iterator[None]:
    """The readers of datasets, pyarrow and the Hub have no exception in common: all of theirs become InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{name} cannot be read ({reason}): correct the file, the name or the split") from None


def _of_datasets(name: str, split: str) -> Table:
    path = Path(name)
    if path.is_file() and path.suffix != ".parquet":
        raise InputError(f"{name} is not a .json, .jsonl or .parquet file: convert it to one of them")
    if not path.exists() and not (HUB_ID.fullmatch(name) and path.suffix != ".parquet"):
        raise InputError(f"{name} does not exist: give a file, a `datasets` folder, or a Hub id such as owner/name")
    import datasets

    if path.is_file():
        return _Parquet(name, [path])
    if not path.exists():
        return _Saved(name, datasets.load_dataset(name, split=split))
    if any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(name)
        return _Saved(name, saved[_split(name, split, saved)] if isinstance(saved, datasets.DatasetDict) else saved)
    if next(path.rglob("*.parquet"), None) is not None:
        files = datasets.load_dataset_builder("parquet", data_dir=name).config.data_files
        return _Parquet(name, [Path(file) for file in files[_split(name, split, files)]])
    raise InputError(f"{name} is not a saved `datasets` folder: name the data file itself")


def _split(name: str, split: str, splits: Mapping[str, Any]) -> str:
    """The split to read: the one that is asked for, or the only one. Raises InputError with the nearest name."""
    if split not in splits and len(splits) > 1:
        raise InputError(f"{name} has no split {split}: {suggestion(split, map(str, splits))}")
    return split if split in splits else next(iter(splits))


class _Saved:
    """A `datasets.Dataset`, which lies on the disk and is mapped into memory."""

    def __init__(self, name: str, dataset: Any) -> None:
        self._name, self._dataset, self._features = name, dataset.with_format("arrow"), _encoded(dataset.features)
        self._unchanged = _Unchanged([file["filename"] for file in dataset.cache_files])

    def __iter__(self) -> Iterator[Unread]:
        for start in range(0, len(self._dataset), ROWS_AT_A_TIME):
            with _told(self._name):
                rows = _decoded(self._dataset[start : start + ROWS_AT_A_TIME], self._features)
            yield from (_row(self._name, start + place, row) for place, row in enumerate(rows))

    def __getitem__(self, place: int) -> Unread:
        self._unchanged()
        with _told(self._name):
            (row,) = _decoded(self._dataset[place : place + 1], self._features)
        return _row(self._name, place, row)


@dataclass(frozen=True)
class _Group:
    """A row group of a parquet file: no row of it can be had without reading all. `first` is its first row's place in the table."""

    file: Path
    number: int
    first: int


class _Parquet:
    """Parquet files, one after the other. Through the files some rows are read at a time, by number a row group."""

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        from pyarrow import parquet

        self._name, self._files, self._unchanged = name, files, _Unchanged(files)
        self._open = parquet.ParquetFile
        self._groups: list[_Group] = []
        self._kept: deque[tuple[_Group, Any]] = deque(maxlen=2)
        rows = 0
        for path in files:
            with self._open(path) as file:
                for number in range(file.metadata.num_row_groups):
                    self._groups.append(_Group(path, number, rows))
                    rows += file.metadata.row_group(number).num_rows

    def __iter__(self) -> Iterator[Unread]:
        # A stream of `datasets` has threads that outlive it where reading stops early, as it does at a bad row: Python then
        # hangs or aborts when it ends. Hence pyarrow's batches.
        import pyarrow

        place = 0
        for path in self._files:
            with _told(self._name):
                file = self._open(path)
            with file:
                batches = file.iter_batches(ROWS_AT_A_TIME, use_threads=False)
                while True:
                    with _told(self._name):
                        if (batch := next(batches, None)) is None:
                            break
                        rows = _decoded(pyarrow.Table.from_batches([batch]))
                    yield from (_row(self._name, place + ahead, row) for ahead, row in enumerate(rows))
                    place += len(rows)
        self._unchanged()

    def __getitem__(self, place: int) -> Unread:
        self._unchanged()
        group = self._groups[bisect.bisect_right(self._groups, place, key=lambda group: group.first) - 1]
        with _told(self._name):
            held = next((rows for known, rows in self._kept if known is group), None)
            if held is None:
                with self._open(group.file) as file:
                    held = file.read_row_group(group.number, use_threads=False)
                self._kept.append((group, held))
            (row,) = _decoded(held.slice(place - group.first, 1))
        return _row(self._name, place, row)


def _row(name: str, place: int, row: Any) -> Unread:
    return Unread(f"{name}, row {place + 1}", place + 1, row)


def _decoded(rows: Any, features: Any = None) -> list[dict[str, Any]]:
    """An Arrow table's rows as Python has them: columns of JSON parsed, pictures as encoded bytes or paths."""
    import datasets

    features = _encoded(datasets.Features.from_arrow_schema(rows.schema)) if features is None else features
    return [features.decode_example(row) for row in rows.to_pylist()]


def _encoded(features: Any) -> Any:
    """The same features, whose pictures are not decoded."""
    import datasets

    def encoded(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return replace(feature, decode=False)
        if isinstance(feature, dict):
            return {name: encoded(inner) for name, inner in feature.items()}
        return replace(feature, feature=encoded(feature.feature)) if hasattr(feature, "feature") else feature

    return datasets.Features(encoded(dict(features)))
