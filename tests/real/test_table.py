"""The table of real and made-up text sides is in the docs. Runs with the ordinary tests."""

from pathlib import Path

from tests.real.families import FAMILIES, table
from tests.real.oracle import AROUND_ANSWER


def test_docs_say_what_is_real():
    assert table() in (Path(__file__).parents[2] / "docs" / "supported_models.md").read_text()


def test_every_family_has_an_oracle():
    assert FAMILIES.keys() == AROUND_ANSWER.keys()
