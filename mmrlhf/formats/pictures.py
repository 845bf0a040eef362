"""The pictures of a row, as paths that were checked or as bytes; nothing is opened. And the facts that are known of them."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.facts import known, typed
from mmrlhf.records import Fact, ImageSource, InputError
from mmrlhf.rows import Row, kind, shown
from mmrlhf.tables import folder

Facts = Mapping[str, tuple[Fact, ...]]


@dataclass(frozen=True)
class Beside:
    """What a row is read with: the folder that its paths must stay in (a Hub dataset has none), and known facts.

    A link may lead out of a folder that the user named: whoever names it vouches for it. The data file's own folder came
    with the data, and its links, too.
    """

    folder: str | None
    links_may_leave: bool
    facts: Facts


def beside_of(dataset_name: str, image_folder: str | None = None, facts: Facts | None = None) -> Beside:
    """Raises InputError when the image folder is none."""
    if image_folder is not None and not os.path.isdir(image_folder):
        raise InputError(f"image folder {image_folder} does not exist: correct the path")
    where = image_folder if image_folder is not None else folder(dataset_name)
    return Beside(None if where is None else os.path.abspath(where), image_folder is not None, facts or {})


def images_of(row: Row, beside: Beside) -> tuple[ImageSource, ...]:
    """Raises InputError for a picture that is not there or not where it may be."""
    return tuple(_image(row, value, name, beside) for name, value in _values(row))


PATHS = ("image_path", "img_path")
"""RLHF-V's and VLFeedback's: beside `image` a note on where it came from, without it the picture."""


def _values(row: Row) -> Iterator[tuple[str, Any]]:
    if "images" in row.fields and "image" in row.fields:
        row.fail("both `images` and `image` are given: keep one")
    names = [name for name in ("images", "image", *PATHS) if name in row.fields]
    if not names and "conversations" in row.fields:
        return  # LLaVA's rows without a picture have no field for one
    if not names and "video" in row.fields:
        row.fail("`video` is given and no image: only pictures are read, so drop the row")
    field = names[0] if names else row.either("images", "image", hint="add it, `[]` for a row without pictures")
    value = row.fields[field]
    if field == "images" and not isinstance(value, list):
        row.fail(f"`images` must be a list, not {kind(value)}: write one picture as `image`")
    if isinstance(value, list):
        yield from ((f"{field}[{number}]", one) for number, one in enumerate(value, 1))
    else:
        yield field, value


@dataclass(frozen=True)
class _Placed(ImageSource):
    """A picture whose name in messages tells which field of which row gave it."""

    where: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return f"{super().name} ({self.where})"


def _image(row: Row, value: Any, name: str, beside: Beside) -> ImageSource:
    inside, where = beside.folder, f"{row.where}, `{name}`"
    if isinstance(data := value.get("bytes") if isinstance(value, dict) else value, bytes):
        return _Placed(data=data, where=where)
    if (text := _base64(value)) is not None:
        return _Placed(data=_bytes(row, text, name), where=where)
    path = _path(value)
    if path is None:
        row.fail(f"`{name}` must be a path, or an object with bytes, not {shown(value)}")
    if "://" in path:
        row.fail(f"`{name}` is an address, {shown(path)}: download the picture and give its path")
    if inside is None:
        row.fail(f"`{name}` is a path, {shown(path)}: give --image_folder, the folder that it starts from")
    # Compared as text first: `a/../../b` leads out even if `a` is a link to a place where it would not.
    place = os.path.normpath(os.path.join(inside, path))
    if not Path(place).is_relative_to(inside):
        row.fail(f"`{name}` leads out of the image folder {inside}: {shown(path)}; move the picture, or give --image_folder")
    if not os.path.isfile(place):
        row.fail(f"`{name}` does not exist in {inside}: {shown(path)}; correct the path or give --image_folder")
    if not beside.links_may_leave and not Path(os.path.realpath(place)).is_relative_to(os.path.realpath(inside)):
        row.fail(f"`{name}` leads out of {inside} by a link: {shown(path)}; if the link is yours, give --image_folder {inside}")
    return _Placed(path=place, where=where)


def _path(value: Any) -> str | None:
    path = value.get("path") if isinstance(value, dict) and "bytes" not in value else value
    return path if isinstance(path, str) and path.strip() else None


LETTERS = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
"""Of base64."""
LONGEST_NAME = 255
"""Of a file. A longer text of nothing but LETTERS is taken for base64."""


def _base64(value: Any) -> str | None:
    """A picture's bytes as text, where the value is that."""
    if isinstance(value, dict):
        text = value.get("bytes", value.get("base64"))
        return text if isinstance(text, str) else None
    if not isinstance(value, str):
        return None
    return value if value.startswith("data:") or (len(value) > LONGEST_NAME and LETTERS.fullmatch(value)) else None


def _bytes(row: Row, text: str, name: str) -> bytes:
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not re.fullmatch(r"data:image/[\w.+-]+;base64", head):
            row.fail(f"`{name}` must be a path or a picture in base64 (data:image/png;base64,...), not {shown(head)}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        row.fail(f"`{name}` is not base64 ({str(error).rstrip('.').lower()}): encode the picture again, or give its path")


def facts_of(row: Row, beside: Beside) -> tuple[Fact, ...]:
    """The row's own, and besides them those known of its pictures' names, or of its id where no picture has a name."""
    own = typed(row)
    return own + tuple(fact for fact in (_known(row, beside.facts) if beside.facts else ()) if fact not in own)


def _known(row: Row, facts: Facts) -> tuple[Fact, ...]:
    paths = [value.get("path") if isinstance(value, dict) else value for _, value in _values(row)]
    named = [
        name for name in [*paths, *(row.fields.get(name) for name in PATHS)] if isinstance(name, str) and _base64(name) is None
    ]
    for names in (paths, [row.fields.get(name) for name in PATHS]):  # the note says which picture one without a name is
        found = [known(facts, name) for name in dict.fromkeys(n for n in names if isinstance(n, str))]
        if any(found):
            return tuple(fact for one in found for fact in one)
    return () if named else facts.get(str(row.fields.get("id", row.fields.get("idx"))), ())
