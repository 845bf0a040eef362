"""Sheets of rows with named columns: TSV, CSV and XLSX, with cells as text. No torch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from mmrlhf.files.rows import decode_text, open_binary
from mmrlhf.records import InputError

MAX_CELL_CHARS = 1 << 30
"""Answers may be long, and tables of this kind hold images; csv refuses fields above 128 KiB by
default."""


def read_sheet(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a sheet, of the first one in a workbook. Cells that a row lacks are null.

    Raises InputError if the file is no sheet, or a row has more cells than there are columns.
    """
    return _read_xlsx(path) if path.suffix == ".xlsx" else _read_delimited(path)


def _read_delimited(path: Path) -> list[dict[str, Any]]:
    with open_binary(path) as file:
        text = decode_text(file.read(), path, "utf-8-sig")
    csv.field_size_limit(MAX_CELL_CHARS)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    rows = []
    try:
        for number, row in enumerate(reader, 1):
            if None in row:
                raise InputError(
                    f"{path} row {number}: it has more cells than the {len(reader.fieldnames or ())} columns of the header: "
                    "quote cells that hold the delimiter or line breaks"
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: it is no sheet ({error}): save it again") from None
    return rows


def _read_xlsx(path: Path) -> list[dict[str, Any]]:
    from openpyxl import load_workbook

    with open_binary(path) as file:
        # openpyxl lets the errors of zipfile, of its XML parser and of its own checks pass, which
        # have no common class.
        try:
            workbook = load_workbook(file, read_only=True, data_only=True)
            if not workbook.worksheets:
                raise ValueError("it has no sheet")
            rows = workbook.worksheets[0].iter_rows(values_only=True)
            columns = [_cell_text(name) for name in next(rows, ())]
            return [{name: _cell_text(cell) for name, cell in zip(columns, row, strict=False)} for row in rows]
        except Exception as error:
            problem = " ".join(f"{error}".split())[:200] or type(error).__name__
            raise InputError(f"{path} cannot be read as XLSX ({problem}): save it again, or as TSV") from None


def _cell_text(cell: Any) -> str:
    """Return a cell as text; a whole number without its `.0`, which a column with gaps gets."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
