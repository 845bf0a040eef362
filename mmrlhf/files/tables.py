"""Open datasets of every kind as tables: iterate once from start to end, then index by row number.

Only the positions of rows are held in memory, so a file may be larger than memory; a JSON list,
which is a single value, must fit into it. A file that changes after it was opened is refused, since
its rows may have moved. Images stay encoded.

JSON is read with `json`, because Arrow's reader guesses types (the answer "2024-01-01" would become
a date, "3" a number) and refuses a file with one broken line without giving its number. Parquet,
saved `datasets` folders and the Hub have their own types, which `datasets` handles; local files are
read in place, so no cached copy can be out of date.
"""

from __future__ import annotations

import bisect
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mmrlhf.config.loader import suggestion
from mmrlhf.files.hub_names import HUB_ID, is_hub_id
from mmrlhf.files.paths import files_in
from mmrlhf.files.rows import RawRow, is_single_object, open_binary, parse_json, read_lines
from mmrlhf.records import InputError

HEAD_BYTES = 4096
NESTED_ROWS = re.compile(
    rb'\{\s*("\w+"\s*:\s*("[^"]*"|[\w.+-]+)\s*,\s*)*"(data|rows|examples|train|test|validation)"\s*:\s*\[\s*\{'
)
"""The start of a JSON object that contains rows in a list, after fields that are not lists."""
ROWS_PER_BATCH = 64
"""Rows to decode at once while iterating, so that a large table is never in memory twice."""
MAX_ROW_GROUP_BYTES = 2 << 30
"""Maximum uncompressed size of a row group of a parquet file, which is read as a whole; compressed,
it may be a thousand times smaller."""
MAX_CACHED_BYTES = 1 << 30
"""Row groups of parquet files are kept up to this size: training reads rows in shuffled order."""
MAX_CELL_BYTES = 64 << 20
"""Largest text or encoded image of a row."""


DEFAULT_SPLIT = "train"
LIST_NAMES = ("data", "rows", "examples")
"""Fields of a JSON object that contain all of its rows, and are not names of splits."""


class _NoSplitsError(InputError):
    """A split was requested from a dataset without splits."""


class Table(Protocol):
    """A dataset's rows. Iterating locates them; after that, `[index]` (from 0) returns one."""

    def __iter__(self) -> Iterator[RawRow]: ...

    def __getitem__(self, index: int) -> RawRow: ...


def open_table(dataset_name: str, split: str = "train") -> Table:
    """Open a JSON, JSONL or parquet file, a saved `datasets` folder, or a Hub dataset.

    Raises InputError, now or during iteration, if it does not exist or cannot be read.
    """
    path = Path(dataset_name)
    if path.suffix in (".json", ".jsonl") and not os.path.isdir(path):
        with open_binary(path) as file:
            head = file.peek(HEAD_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
        if head[:1] == b"[":
            _refuse_split(dataset_name, split)
            return _JsonListTable(path)  # by content: the suffix may be wrong
        if NESTED_ROWS.match(head):
            return _JsonListTable(path, split)
        _refuse_split(dataset_name, split)
        if is_single_object(path, head):
            raise InputError(f"{path} is one JSON object over several lines, not a row per line: write rows as a list, [{{...}}]")
        return _JsonlTable(path)
    if os.path.isfile(path / "metadata.jsonl"):
        _refuse_split(dataset_name, split)
        return _JsonlTable(path / "metadata.jsonl")  # imagefolder
    with _as_input_errors(dataset_name):
        return _open_arrow_table(dataset_name, split)


def read_rows(dataset_name: str, split: str = "train") -> Iterator[RawRow]:
    """Iterate over a dataset's rows. Raises InputError as `open_table` does, or if it is empty."""
    return checked_rows(dataset_name, open_table(dataset_name, split))


def checked_rows(name: str, rows: Table) -> Iterator[RawRow]:
    """Iterate over a table's rows. Raises InputError if there are none."""
    has_rows = False
    for row in rows:
        has_rows = True
        yield row
    if not has_rows:
        raise InputError(f"{name} has no rows: give a dataset with at least one")


def split_of(dataset_name: str, split: str) -> str:
    """Return the split of a second dataset for a requested one: the default if it has no splits.

    Raises InputError if it has splits but not this one, or cannot be opened.
    """
    try:
        if split != DEFAULT_SPLIT and os.path.exists(dataset_name):
            open_table(dataset_name, split)
    except _NoSplitsError:
        return DEFAULT_SPLIT
    return split


def dataset_folder(dataset_name: str) -> Path | None:
    """Return the default folder for a dataset's relative paths, None for a Hub id."""
    path = Path(dataset_name)
    if os.path.isdir(path):
        return path
    return path.parent if os.path.isfile(path) else None


class _ChangeGuard:
    """The state of files at one time. A call raises InputError if a file has changed since then."""

    def __init__(self, files: Sequence[str | Path]) -> None:
        self._initial_states = {str(file): self._file_state(file) for file in files}

    def __call__(self) -> None:
        for file, initial_state in self._initial_states.items():
            if self._file_state(file) != initial_state:
                raise InputError(f"{file} has changed since it was first read: start again, and do not modify it until the end")

    @staticmethod
    def _file_state(file: str | Path) -> tuple[int, int, int] | None:
        try:
            stat_result = os.stat(file)
        except OSError:
            return None
        return stat_result.st_mtime_ns, stat_result.st_size, stat_result.st_ino


# ---- JSON ----------------------------------------------------------------------------------------


class _JsonlTable:
    """One object per line. Blank lines are skipped, but count in the line numbers of messages."""

    def __init__(self, path: Path) -> None:
        self._path, self._check_unchanged = path, _ChangeGuard([path])
        self._offsets, self._line_numbers = array("Q"), array("Q")

    def __iter__(self) -> Iterator[RawRow]:
        self._offsets, self._line_numbers, offset = array("Q"), array("Q"), 0
        with open_binary(self._path) as file:
            for number, line in enumerate(read_lines(file, self._path), 1):
                if line.strip():
                    self._offsets.append(offset)
                    self._line_numbers.append(number)
                    yield self._raw_row(number, line)
                offset += len(line)
        self._check_unchanged()

    def __getitem__(self, index: int) -> RawRow:
        with open_binary(self._path) as file:
            self._check_unchanged()
            file.seek(self._offsets[index])
            return self._raw_row(self._line_numbers[index], file.readline())

    def _raw_row(self, number: int, line: bytes) -> RawRow:
        return RawRow(f"{self._path}, line {number}", number, line)


class _JsonListTable:
    """One list of objects, or an object that contains it: {"data": [...]}, or a list per split."""

    def __init__(self, path: Path, split: str = "train") -> None:
        self._path = path
        with open_binary(path) as file:
            value = parse_json(file.read(), str(path))
        if isinstance(value, dict):
            lists = {name: rows for name, rows in value.items() if isinstance(rows, list)}
            if split not in lists and len(lists) == 1 and set(lists) <= set(LIST_NAMES):
                _refuse_split(str(path), split)
            value = lists[_resolve_split(str(path), split, lists)]
        self._values: list[Any] = value

    def __iter__(self) -> Iterator[RawRow]:
        return (self[index] for index in range(len(self._values)))

    def __getitem__(self, index: int) -> RawRow:
        return RawRow(f"{self._path}, row {index + 1}", index + 1, self._values[index])


# ---- Arrow and parquet ---------------------------------------------------------------------------


@contextmanager
def _as_input_errors(name: str) -> Iterator[None]:
    """Turn every error into InputError: `datasets`, pyarrow and the Hub share no base class."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{name} cannot be read ({reason}): correct the file, the name or the split") from None


def _open_arrow_table(name: str, split: str) -> Table:
    path = Path(name)
    if os.path.isfile(path) and path.suffix != ".parquet":
        raise InputError(f"{name} is not a .json, .jsonl or .parquet file: convert it to one of them")
    if not os.path.exists(path) and not is_hub_id(name):
        hint = ""
        if HUB_ID.fullmatch(name) and os.path.isdir(path.parts[0]):
            hint = f"; the folder {path.parts[0]} here hides any Hub id of its name, so run the command in another folder"
        raise InputError(f"{name} does not exist: give a file, a `datasets` folder, or a Hub id such as owner/name{hint}")
    import datasets

    if path.is_file():
        _refuse_split(name, split)
        return _ParquetTable(name, [path])
    if not path.exists():
        return _ArrowTable(name, datasets.load_dataset(name, split=split))
    if any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(name)
        if isinstance(saved, datasets.DatasetDict):
            saved = saved[_resolve_split(name, split, saved)]
        else:
            _refuse_split(name, split)
        return _ArrowTable(name, saved)
    if parquet_files := [file.relative_to(path).as_posix() for file in files_in(path) if file.suffix == ".parquet"]:
        files = datasets.load_dataset_builder("parquet", data_dir=name).config.data_files
        if list(files) == [DEFAULT_SPLIT] and not any(DEFAULT_SPLIT in file for file in parquet_files):
            _refuse_split(name, split)  # `datasets` calls the rows of a folder without splits so
        return _ParquetTable(name, [Path(file) for file in files[_resolve_split(name, split, files)]])
    raise InputError(f"{name} is not a saved `datasets` folder: name the data file itself")


def _refuse_split(name: str, split: str) -> None:
    """Raise InputError if a split was requested from a dataset without splits."""
    if split != DEFAULT_SPLIT:
        raise _NoSplitsError(f"{name} has no splits: leave --split out, or name the file of split {split}")


def _resolve_split(name: str, split: str, splits: Mapping[str, Any]) -> str:
    """Return the requested split, or the only one if none was named. Raises InputError."""
    if split not in splits and (len(splits) > 1 or split != DEFAULT_SPLIT):
        raise InputError(f"{name} has no split {split}: {suggestion(split, map(str, splits))}")
    return split if split in splits else next(iter(splits))


class _ArrowTable:
    """A `datasets.Dataset`, memory-mapped from disk."""

    def __init__(self, name: str, dataset: Any) -> None:
        self._name, self._dataset, self._features = name, dataset.with_format("arrow"), _without_image_decoding(dataset.features)
        self._check_unchanged = _ChangeGuard([file["filename"] for file in dataset.cache_files])

    def __iter__(self) -> Iterator[RawRow]:
        for start in range(0, len(self._dataset), ROWS_PER_BATCH):
            with _as_input_errors(self._name):
                rows = _decode_rows(self._dataset[start : start + ROWS_PER_BATCH], self._features)
            yield from (_raw_row(self._name, start + offset, row) for offset, row in enumerate(rows))

    def __getitem__(self, index: int) -> RawRow:
        self._check_unchanged()
        with _as_input_errors(self._name):
            (row,) = _decode_rows(self._dataset[index : index + 1], self._features)
        return _raw_row(self._name, index, row)


@dataclass(frozen=True)
class _RowGroup:
    """A row group of a parquet file, the smallest unit that can be read."""

    file: Path
    number: int
    first_index: int
    """Index of its first row in the table."""


class _ParquetTable:
    """Parquet files in order. Iterating reads small batches, indexing reads whole row groups."""

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        from pyarrow import parquet

        self._name, self._files, self._check_unchanged = name, files, _ChangeGuard(files)
        self._open_parquet = parquet.ParquetFile
        self._groups: list[_RowGroup] = []
        self._cached_groups: dict[_RowGroup, Any] = {}  # the last used ones, in this order
        num_rows = 0
        for path in files:
            with self._open_parquet(path) as file:
                for number in range(file.metadata.num_row_groups):
                    group = file.metadata.row_group(number)
                    if group.total_byte_size > MAX_ROW_GROUP_BYTES:
                        raise InputError(
                            f"{path}: row group {number + 1} holds {group.total_byte_size / (1 << 30):.1f} GiB, and one is read at "
                            f"a time: write the file with row groups of at most {MAX_ROW_GROUP_BYTES >> 30} GiB"
                        )
                    self._groups.append(_RowGroup(path, number, num_rows))
                    num_rows += group.num_rows

    def __iter__(self) -> Iterator[RawRow]:
        # Batches come from pyarrow, not from a stream of `datasets`, whose threads outlive an
        # iteration that stops early, as at a bad row; Python then hangs or aborts on exit.
        import pyarrow

        batch_start = 0
        for path in self._files:
            with _as_input_errors(self._name):
                file = self._open_parquet(path)
            with file:
                batches = file.iter_batches(ROWS_PER_BATCH, use_threads=False)
                while True:
                    with _as_input_errors(self._name):
                        batch = next(batches, None)
                        if batch is None:
                            break
                        rows = _decode_rows(pyarrow.Table.from_batches([batch]))
                    yield from (_raw_row(self._name, batch_start + offset, row) for offset, row in enumerate(rows))
                    batch_start += len(rows)
        self._check_unchanged()

    def __getitem__(self, index: int) -> RawRow:
        self._check_unchanged()
        # The last group that starts at or before the row.
        group = self._groups[bisect.bisect_right(self._groups, index, key=lambda group: group.first_index) - 1]
        with _as_input_errors(self._name):
            (row,) = _decode_rows(self._read_group(group).slice(index - group.first_index, 1))
        return _raw_row(self._name, index, row)

    def _read_group(self, group: _RowGroup) -> Any:
        """Read a row group as an Arrow table, or take it from the cache."""
        rows = self._cached_groups.pop(group, None)
        if rows is None:
            with self._open_parquet(group.file) as file:
                rows = file.read_row_group(group.number, use_threads=False)
            num_free = MAX_CACHED_BYTES - rows.nbytes - sum(cached.nbytes for cached in self._cached_groups.values())
            while self._cached_groups and num_free < 0:
                num_free += self._cached_groups.pop(next(iter(self._cached_groups))).nbytes
        self._cached_groups[group] = rows
        return rows


def _raw_row(name: str, index: int, row: Any) -> RawRow:
    return RawRow(f"{name}, row {index + 1}", index + 1, row)


def _decode_rows(rows: Any, features: Any = None) -> list[dict[str, Any]]:
    """Convert an Arrow table to Python rows: JSON columns parsed, images as bytes or paths.

    Raises ValueError for a value above MAX_CELL_BYTES: as a Python object it takes several times
    its size.
    """
    import datasets

    largest = max((_largest_value(column) for column in rows.columns), default=0)
    if largest > MAX_CELL_BYTES:
        raise ValueError(f"a value has {largest >> 20} MiB, more than {MAX_CELL_BYTES >> 20}")
    features = _without_image_decoding(datasets.Features.from_arrow_schema(rows.schema)) if features is None else features
    return [features.decode_example(row) for row in rows.to_pylist()]


def _largest_value(column: Any) -> int:
    """Return the size in bytes of a column's largest text or binary value, also inside lists."""
    from pyarrow import compute, types

    kind = column.type
    if any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)):
        return compute.max(compute.binary_length(column)).as_py() or 0
    if types.is_list(kind) or types.is_large_list(kind):
        return _largest_value(compute.list_flatten(column))
    if types.is_struct(kind):
        return max((_largest_value(compute.struct_field(column, i)) for i in range(kind.num_fields)), default=0)
    return 0


def _without_image_decoding(features: Any) -> Any:
    """Return the same features with image decoding switched off."""
    import datasets

    def disable_decoding(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return replace(feature, decode=False)
        if isinstance(feature, dict):
            return {name: disable_decoding(inner_feature) for name, inner_feature in feature.items()}
        if hasattr(feature, "feature"):  # a list of features
            return replace(feature, feature=disable_decoding(feature.feature))
        return feature

    return datasets.Features(disable_decoding(dict(features)))
