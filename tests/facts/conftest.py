"""Write files of facts, and read their errors."""

import json

import pytest

from mmrlhf.facts import read_facts
from mmrlhf.records import InputError


@pytest.fixture
def write_facts(tmp_path):
    """Return a function that writes rows as JSON lines and returns the file's path."""

    def write(name, *rows):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    return write


@pytest.fixture
def facts_error():
    """Return a function that reads a file of facts and returns its error message."""

    def error_of(path):
        with pytest.raises(InputError) as caught:
            read_facts(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return error_of
