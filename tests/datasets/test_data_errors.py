"""Every kind of bad row is refused in one sentence that gives its location and says what to do.

A case is a change to a good row, with a pattern that the error must match. The cases are in
`bad_pairs` and `bad_rows`; `python -m tests.datasets.test_data_errors` writes docs/data_errors.md
from them.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmrlhf.commands.check import check
from mmrlhf.datasets import read_examples, read_preferences
from mmrlhf.models.images import open_image
from mmrlhf.records import InputError
from tests.datasets.bad_pairs import IMAGE_CASES, TRL_CASES
from tests.datasets.bad_rows import (
    BAD_LINES,
    LLAVA,
    LLAVA_CASES,
    MM_RLHF,
    MM_RLHF_CASES,
    PPO,
    PPO_CASES,
    RANKING,
    RANKING_CASES,
    RLAIF_V,
    RLAIF_V_CASES,
    RLHF_V,
    RLHF_V_CASES,
    SFT,
    SFT_CASES,
    VLFEEDBACK,
    VLFEEDBACK_CASES,
)
from tests.helpers.rows import PAIR, REMOVED, make_data_dir, png_bytes

DOCUMENT = Path(__file__).parents[2] / "docs" / "data_errors.md"
CASES_BY_FORMAT = {
    "TRL pairs": (read_preferences, PAIR, TRL_CASES),
    "Images": (read_preferences, PAIR, IMAGE_CASES),
    "LLaVA-RLHF pairs": (read_preferences, LLAVA, LLAVA_CASES),
    "RLHF-V": (read_preferences, RLHF_V, RLHF_V_CASES),
    "RLAIF-V": (read_preferences, RLAIF_V, RLAIF_V_CASES),
    "MM-RLHF": (read_preferences, MM_RLHF, MM_RLHF_CASES),
    "VLFeedback": (read_preferences, VLFEEDBACK, VLFEEDBACK_CASES),
    "Rankings": (read_preferences, RANKING, RANKING_CASES),
    "LLaVA-RLHF prompts for PPO": (read_examples, PPO, PPO_CASES),
    "Answers for SFT": (read_examples, SFT, SFT_CASES),
}
"""By title: the reader, a good row, and changes to it with the patterns of their errors."""


@dataclass(frozen=True)
class Case:
    """A bad line of a JSONL file. The document shows only its `change`."""

    title: str
    read: Callable[..., Any]
    change: Any
    line: str
    pattern: str


def apply_change(row, change):
    return {name: value for name, value in {**row, **change}.items() if value is not REMOVED}


def all_cases():
    for title, (read, good_row, cases) in CASES_BY_FORMAT.items():
        for change, pattern in cases:
            yield Case(title, read, change, json.dumps(apply_change(good_row, change)), pattern)
    for line, pattern in BAD_LINES:
        yield Case("Lines that are not rows", read_preferences, line, line, pattern)


ALL_CASES = list(all_cases())


def make_bad_data_dir(parent):
    """Create a folder `data` with a good image, broken ones, and symlinks that leave the folder."""
    data = make_data_dir(parent)
    (data / "broken.png").write_bytes(png_bytes()[:45])
    (data / "empty.png").write_bytes(b"")
    (data / "link.png").symlink_to("../secret.png")
    (data / "up").symlink_to("..")
    return data


def error_message(data_dir, case):
    """Return the error for a row, with the folder's path shortened to its name."""
    path = data_dir / "rows.jsonl"
    path.write_text(case.line)
    # Rows for SFT need an answer; prompts for PPO do not.
    options = {"require_answer": True} if case.read is read_examples and "caption_type" not in case.line else {}
    try:
        for record in case.read(str(path), **options):
            for image in record.images:
                open_image(image)
    except InputError as error:
        return str(error).replace(str(path), "rows.jsonl").replace(str(data_dir), "data")
    return "(no error)"


@pytest.fixture(scope="module")
def bad_data_dir(tmp_path_factory):
    return make_bad_data_dir(tmp_path_factory.mktemp("bad"))


def test_cases_are_many_and_distinct():
    assert len(ALL_CASES) >= 150
    assert len({(case.title, case.line) for case in ALL_CASES}) == len(ALL_CASES)


@pytest.mark.parametrize("case", ALL_CASES, ids=[f"{case.title}-{number}" for number, case in enumerate(ALL_CASES)])
def test_bad_row_error_matches_its_pattern(bad_data_dir, case):
    error = error_message(bad_data_dir, case)
    assert re.search(case.pattern, error)
    assert "rows.jsonl, line 1" in error and len(error) < 400
    assert error.isprintable()


@pytest.mark.parametrize("good_row", [PAIR, LLAVA, RLHF_V, RLAIF_V, MM_RLHF, VLFEEDBACK, RANKING])
def test_cases_start_from_good_rows(bad_data_dir, good_row):
    path = bad_data_dir / "good.jsonl"
    path.write_text(json.dumps(good_row))
    (preference,) = read_preferences(str(path))
    assert (preference.chosen, preference.rejected) == ("A cup.", "A cat.")
    assert len(read_examples(str(path))) == 1


def test_check_continues_after_each_bad_row(bad_data_dir, capsys):
    bad_lines = [case.line for case in ALL_CASES if case.read is read_preferences]
    path = bad_data_dir / "all.jsonl"
    path.write_text("\n".join([json.dumps(PAIR), *bad_lines]))
    assert check(str(path)) == 1
    printed_lines = capsys.readouterr().out.splitlines()
    assert f" {len(bad_lines)} " in next(line for line in printed_lines if "bad rows" in line)
    assert len(printed_lines) < 40


# ---- docs/data_errors.md -------------------------------------------------------------------------


def describe_change(change, max_length=70):
    """Describe in Markdown how a bad row differs from the good one."""
    if not isinstance(change, dict):
        return markdown_code(change, max_length)
    parts = [f"no `{name}`" for name, value in change.items() if value is REMOVED]
    text = json.dumps({name: value for name, value in change.items() if value is not REMOVED})[1:-1]
    if text:
        parts.append(markdown_code(text, max_length))
    return ", ".join(parts)


def markdown_code(text, max_length):
    text = text if len(text) <= max_length else f"{text[: max_length - 1]}…"
    return f"`{text}`".replace("|", "\\|").replace("\x00", "\\0")


def render_document(data_dir):
    lines = [
        "# Data errors",
        "",
        "The errors that bad rows give. `mmrlhf data check FILE` prints those of a file by cause, and",
        "`--bad_rows_file OUT` writes every bad row with its error.",
        "Generated by `python -m tests.datasets.test_data_errors` from the tested cases.",
    ]
    title = None
    for case in ALL_CASES:
        if case.title != title:
            title = case.title
            lines += ["", f"## {title}", "", "| row | error |", "|---|---|"]
        error = error_message(data_dir, case).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {describe_change(case.change)} | {error} |")
    return "\n".join(lines) + "\n"


def test_document_is_up_to_date(bad_data_dir):
    """Texts in brackets are not compared: they come from other libraries and vary with versions."""

    def without_brackets(text):
        return re.sub(r"\([^()]*\)", "()", text)

    expected = render_document(bad_data_dir)
    assert without_brackets(DOCUMENT.read_text(encoding="utf-8")) == without_brackets(expected), (
        "run python -m tests.datasets.test_data_errors"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as parent:
        DOCUMENT.write_text(render_document(make_bad_data_dir(Path(parent))), encoding="utf-8")
    print(DOCUMENT, file=sys.stderr)
