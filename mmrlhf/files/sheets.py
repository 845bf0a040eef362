"""Sheets of rows with named columns: TSV, CSV and XLSX, with cells as text. No torch."""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrlhf.files.rows import decode_text, open_binary, preview
from mmrlhf.records import InputError

MAX_CELL_CHARS = 1 << 30
"""Maximum length of a field: answers may be long, and such tables contain images; csv's default is
128 KiB."""
MAX_UNPACKED_BYTES = 64 << 20
MAX_COLUMNS, MAX_CELLS = 1000, 2_000_000
"""Maximum size of an unpacked workbook: a small file may unpack to an enormous one."""
MAX_HEADER_ROW = 100
"""Last row of a workbook's sheet in which the names of its columns may be."""
DELIMITERS = ",;\t"
"""Delimiters of CSV; Excel writes semicolons in countries with decimal commas."""


def read_sheet(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a sheet, the first one of a workbook that has any. Missing cells are null.
    The first row that is not blank names the columns.

    Raises InputError if the file is not a sheet, if columns share a name, or if a row has more
    cells than there are columns.
    """
    return _read_xlsx(path) if path.suffix == ".xlsx" else _read_delimited(path)


def _read_delimited(path: Path) -> list[dict[str, Any]]:
    with open_binary(path) as file:
        text = decode_text(file.read(), path).lstrip("\r\n")
    csv.field_size_limit(MAX_CELL_CHARS)
    header = text.partition("\n")[0]
    delimiter = "\t" if path.suffix == ".tsv" else next((mark for mark in DELIMITERS if mark in header), ",")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = []
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for number, row in enumerate(reader, 1):
            if None in row:
                raise InputError(
                    f"{path} row {number}: it has more cells than the {len(reader.fieldnames or ())} columns of the header: "
                    "quote cells that hold the delimiter or line breaks"
                )
            rows.append(row)
        _refuse_repeated(path, reader.fieldnames or ())
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: it is not a sheet ({error}): save it again") from None
    return rows


def _read_xlsx(path: Path) -> list[dict[str, Any]]:
    from openpyxl import load_workbook

    with open_binary(path) as file:
        # openpyxl raises errors of zipfile, of its XML parser and of its own checks, which have no
        # common class.
        try:
            _refuse_large(file)
            workbook = load_workbook(file, read_only=True, data_only=True)
            if not workbook.worksheets:
                raise ValueError("it has no sheet")
            for sheet in workbook.worksheets:
                names, rows = _read_worksheet(sheet)
                if rows:
                    break
        except Exception as error:
            problem = " ".join(f"{error}".split())[:200] or type(error).__name__
            raise InputError(f"{path} cannot be read as XLSX ({problem}): save it again, or as TSV") from None
    _refuse_repeated(path, names)
    return rows


def _read_worksheet(sheet: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names of a worksheet's columns, and its rows. Raises ValueError if it is too
    large."""
    names: list[str] = []
    header_row = 0
    while not names and header_row < MAX_HEADER_ROW:
        header_row += 1
        cells = next(sheet.iter_rows(min_row=header_row, max_row=header_row, max_col=MAX_COLUMNS, values_only=True), ())
        names = [_cell_text(name).strip() for name in cells]
        while names and not names[-1]:
            names.pop()
    rows = []
    for number, cells in enumerate(sheet.iter_rows(min_row=header_row + 1, max_col=len(names) or 1, values_only=True), 1):
        if number * len(names) > MAX_CELLS:
            raise ValueError(f"it has more than {MAX_CELLS} cells")
        if any(cell is not None for cell in cells):
            rows.append({name: _cell_text(cell) for name, cell in zip(names, cells, strict=False)})
    return names, rows


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    """Raise InputError if two columns share a name: rows would keep one. Empty names may repeat."""
    repeated = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if repeated is not None:
        raise InputError(f"{path}: the column {preview(repeated)} is given twice: keep one of them")


def _refuse_large(file: io.BufferedReader) -> None:
    """Raise ValueError if a workbook unpacks to more than can be read in about a minute."""
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_UNPACKED_BYTES:
        raise ValueError(f"it unpacks to {size >> 20} MiB, and at most {MAX_UNPACKED_BYTES >> 20} are read")
    file.seek(0)


def _cell_text(cell: Any) -> str:
    """Return a cell as text, and a whole number without the `.0` that a column with gaps adds."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
