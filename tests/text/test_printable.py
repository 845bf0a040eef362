"""Text from data and servers cannot steer a terminal."""

import pytest

from mmrlhf.text.printable import first_line, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07id", "\ufffd]0;title\ufffdid"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
        ("a\u2066b\u2069", "a\ufffdb\ufffd"),
        ("half \ud800", "half \ufffd"),
        ("\x9b31m", "\ufffd31m"),
        ("line\nline", "line\ufffdline"),
        ("Größe 猫 🐈 שלום", "Größe 猫 🐈 שלום"),
    ],
)
def test_printable_replaces_what_a_terminal_acts_on(text, expected):
    assert printable(text) == expected


def test_printable_keeps_what_is_asked_for():
    assert printable("a\n\x1b[31mb", keep="\n") == "a\n\ufffd[31mb"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one.\ntwo"), "one"),
        (KeyError(), "KeyError"),
        (ValueError("."), "ValueError"),
        (OSError("\n  later.\nlast"), "later"),
        (OSError("\n \n"), "OSError"),
    ],
)
def test_first_line_names_an_error_without_a_message(error, expected):
    assert first_line(error) == expected
