"""Fixtures of the dataset tests: a folder with an image, and a table with one."""

import pytest

from tests.helpers.rows import assistant_turn, content_parts, make_data_dir, png_bytes, user_turn


@pytest.fixture
def data_dir(tmp_path):
    """Create a folder with an image, `a.png`, and another image outside it, `../secret.png`."""
    return make_data_dir(tmp_path)


@pytest.fixture(scope="session")
def image_table():
    """Build a `datasets` table of one TRL pair, with its image in the table."""
    import datasets

    row = {
        "images": [{"bytes": png_bytes(), "path": "a.png"}],
        "prompt": [user_turn(content_parts("What is it?"))],  # Arrow pads the image's part with `text: null`
        "chosen": [assistant_turn([{"type": "text", "text": "A cup."}])],
        "rejected": [assistant_turn([{"type": "text", "text": "A cat."}])],
        "facts": [{"kind": "object", "text": "cup", "source": None}],
    }
    return datasets.Dataset.from_list([row]).cast_column("images", datasets.List(datasets.Image()))
