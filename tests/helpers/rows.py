"""Build dataset rows and files of them."""

import io
import json

import pytest
from PIL import Image

from mmrlhf.records import InputError, Message

QUESTION = Message("user", "What is it?")
ONE_IMAGE = {"images": ["a.png"]}
REMOVED = object()
"""The value that marks a field as removed, in changes to a row."""


def user_turn(content):
    return {"role": "user", "content": content}


def assistant_turn(content):
    return {"role": "assistant", "content": content}


def human_turn(value):
    return {"from": "human", "value": value}


def gpt_turn(value):
    return {"from": "gpt", "value": value}


def content_parts(*texts):
    """Build the content of a turn: an image, then the texts."""
    return [{"type": "image"}, *({"type": "text", "text": text} for text in texts)]


PAIR = {"id": "p", **ONE_IMAGE, "prompt": [user_turn("What is it?")], "chosen": "A cup.", "rejected": "A cat."}
TEXT_PAIR = {"prompt": "What is it?", "chosen": "A cup.", "rejected": "A cat."}


def without_field(row, field):
    return {name: value for name, value in row.items() if name != field}


def png_bytes(colour="red"):
    """Encode an image of 4 x 3 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(file, "PNG")
    return file.getvalue()


def make_data_dir(parent):
    """Create `parent/data` with an image `a.png`, and an image outside it, `parent/secret.png`."""
    folder = parent / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(png_bytes())
    (parent / "secret.png").write_bytes(png_bytes("blue"))
    return folder


def write_jsonl(folder, *rows, name="rows.jsonl"):
    """Write rows, each an object or a line of text, and return the file's path as a string."""
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def write_json(folder, *rows):
    """Write rows as a JSON list and return the file's path as a string."""
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=1))
    return str(path)


def error_of(function, path, **options):
    """Return the message of the InputError that a function must raise: a single line."""
    with pytest.raises(InputError) as caught:
        function(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
