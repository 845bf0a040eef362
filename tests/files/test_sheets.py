"""Sheets are read with cells as text, or refused in one sentence."""

import zipfile

import openpyxl
import pytest

from mmrlhf.files import sheets
from mmrlhf.files.sheets import read_sheet
from mmrlhf.records import InputError


def write_xlsx(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_read_sheet_gives_cells_as_text(tmp_path):
    rows = [["index", "prediction", "note"], [1.0, "Yes", None], [None, None, None], [2.5, 3, "a\nb"]]
    expected = [{"index": "1", "prediction": "Yes", "note": ""}, {"index": "2.5", "prediction": "3", "note": "a\nb"}]
    assert read_sheet(write_xlsx(tmp_path / "a.xlsx", rows)) == expected
    (tmp_path / "a.tsv").write_text('\ufeffindex\tprediction\n1\t"a\tb\nc"\n2\n', encoding="utf-8")
    assert read_sheet(tmp_path / "a.tsv") == [{"index": "1", "prediction": "a\tb\nc"}, {"index": "2", "prediction": None}]
    assert read_sheet(write_xlsx(tmp_path / "empty.xlsx", [])) == []


def test_read_sheet_takes_the_first_sheet_with_rows_below_its_first_row_with_cells(tmp_path):
    book = openpyxl.Workbook()
    book.create_sheet("only names").append(["a", "b"])
    full = book.create_sheet("full")
    for row in ([], [None], ["id", " answer "], [1, "Yes"]):
        full.append(row)
    book.save(tmp_path / "a.xlsx")
    assert read_sheet(tmp_path / "a.xlsx") == [{"id": "1", "answer": "Yes"}]


@pytest.mark.parametrize(
    "text",
    [
        "id,answer\n1,A; B\n",
        "id;answer\n1;A; B\n".replace("A; B", '"A; B"'),
        "id\tanswer\n1\tA; B\n",
        "\n\r\nid, answer\n1,A; B\n",
    ],
)
def test_read_sheet_finds_the_delimiter_and_the_names(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    assert read_sheet(tmp_path / "a.csv") == [{"id": "1", "answer": "A; B"}]


@pytest.mark.parametrize("name", ["a.tsv", "a.xlsx"])
def test_read_sheet_refuses_two_columns_of_one_name(tmp_path, name):
    header, row = ["index", "answer", "", "", "answer"], ["1", "Yes", "a", "b", "No"]
    if name == "a.xlsx":
        write_xlsx(tmp_path / name, [header, row])
    else:
        (tmp_path / name).write_text("\n".join(map("\t".join, (header, row))))
    with pytest.raises(InputError, match=rf"{name}: the column 'answer' is given twice: keep one of them"):
        read_sheet(tmp_path / name)


def replace_part(path, name, content):
    """Write a copy of a workbook with another content of one of its files."""
    copy = path.with_name("broken.xlsx")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        for entry in source.namelist():
            target.writestr(entry, content if entry == name else source.read(entry))
    return copy


NO_SHEETS = b'<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheets/></workbook>'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("[Content_Types].xml", b"<"),
        ("xl/workbook.xml", NO_SHEETS),
        ("xl/workbook.xml", b"<a><b></a>"),
        ("xl/styles.xml", b"<nothing"),
        ("xl/worksheets/sheet1.xml", b""),
        ("xl/worksheets/sheet1.xml", b"<worksheet><sheetData><row><c t='n'><v>x</v></c></row></sheetData></worksheet>"),
    ],
)
def test_read_sheet_refuses_broken_workbooks_in_one_sentence(tmp_path, name, content):
    path = replace_part(write_xlsx(tmp_path / "a.xlsx", [["id", "answer"], [1, "Yes"]]), name, content)
    try:
        read_sheet(path)
    except InputError as error:
        assert "cannot be read as XLSX (" in str(error) and "\n" not in str(error)


def test_read_sheet_refuses_what_is_no_workbook_and_what_is_too_large(tmp_path, monkeypatch):
    (tmp_path / "a.xlsx").write_bytes(b"id,answer\n")
    with pytest.raises(InputError, match=r"a\.xlsx cannot be read as XLSX \(File is not a zip file\)"):
        read_sheet(tmp_path / "a.xlsx")
    path = write_xlsx(tmp_path / "b.xlsx", [["id", "answer"]] + [[n, "Yes"] for n in range(9)])
    monkeypatch.setattr(sheets, "MAX_CELLS", 10)
    with pytest.raises(InputError, match="it has more than 10 cells"):
        read_sheet(path)
    monkeypatch.setattr(sheets, "MAX_UNPACKED_BYTES", 100)
    with pytest.raises(InputError, match="it unpacks to 0 MiB"):
        read_sheet(path)


def test_read_sheet_ignores_cells_without_a_column(tmp_path):
    # A cell far to the right makes no row a million cells long.
    book = openpyxl.Workbook()
    book.active.append(["id", "answer"])
    book.active.append(["1", "Yes"])
    book.active.cell(3, 16000, "stray")
    book.save(tmp_path / "a.xlsx")
    assert read_sheet(tmp_path / "a.xlsx") == [{"id": "1", "answer": "Yes"}]


def test_read_sheet_refuses_rows_with_extra_cells(tmp_path):
    (tmp_path / "a.csv").write_text("id,answer\n1,Yes\n2,No, there is none\n")
    with pytest.raises(InputError, match=r"a\.csv row 2: it has more cells than the 2 columns"):
        read_sheet(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"id,answer\n1,\xff\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_sheet(tmp_path / "b.csv")
