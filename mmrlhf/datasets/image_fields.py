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

from mmrlhf.facts import facts_for_image, parse_typed_facts
from mmrlhf.files.rows import Row, preview, type_name
from mmrlhf.files.tables import dataset_folder
from mmrlhf.records import Fact, ImageSource, InputError

FactsByName = Mapping[str, tuple[Fact, ...]]


@dataclass(frozen=True)
class RowContext:
    """What a row is read with: the folder that its paths must stay in (a Hub dataset has none), and known facts.

    A link may lead out of a folder that the user named: whoever names it vouches for it. The data file's own folder came
    with the data, and its links, too.
    """

    image_folder: str | None
    allow_external_links: bool
    facts: FactsByName


def row_context(dataset_name: str, image_folder: str | None = None, facts: FactsByName | None = None) -> RowContext:
    """Raises InputError when the image folder is none."""
    if image_folder is not None and not os.path.isdir(image_folder):
        raise InputError(f"image folder {image_folder} does not exist: correct the path")
    root = image_folder if image_folder is not None else dataset_folder(dataset_name)
    return RowContext(None if root is None else os.path.abspath(root), image_folder is not None, facts or {})


def parse_images(row: Row, context: RowContext) -> tuple[ImageSource, ...]:
    """Raises InputError for a picture that is not there or not where it may be."""
    return tuple(_parse_image(row, value, name, context) for name, value in _image_values(row))


PATH_FIELDS = ("image_path", "img_path")
"""RLHF-V's and VLFeedback's: beside `image` a note on where it came from, without it the picture."""


def _image_values(row: Row) -> Iterator[tuple[str, Any]]:
    if "images" in row.fields and "image" in row.fields:
        row.fail("both `images` and `image` are given: keep one")
    names = [name for name in ("images", "image", *PATH_FIELDS) if name in row.fields]
    if not names and "conversations" in row.fields:
        return  # LLaVA's rows without a picture have no field for one
    if not names and "video" in row.fields:
        row.fail("`video` is given and no image: only pictures are read, so drop the row")
    field_name = names[0] if names else row.require_any("images", "image", hint="add it, `[]` for a row without pictures")
    value = row.fields[field_name]
    if field_name == "images" and not isinstance(value, list):
        row.fail(f"`images` must be a list, not {type_name(value)}: write one picture as `image`")
    if isinstance(value, list):
        yield from ((f"{field_name}[{number}]", item) for number, item in enumerate(value, 1))
    else:
        yield field_name, value


@dataclass(frozen=True)
class _LocatedImageSource(ImageSource):
    """A picture whose name in messages tells which field of which row gave it."""

    location: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return f"{super().name} ({self.location})"


def _parse_image(row: Row, value: Any, name: str, context: RowContext) -> ImageSource:
    image_folder, location = context.image_folder, f"{row.location}, `{name}`"
    if isinstance(data := value.get("bytes") if isinstance(value, dict) else value, bytes):
        return _LocatedImageSource(data=data, location=location)
    if (text := _base64_text(value)) is not None:
        return _LocatedImageSource(data=_decode_base64(row, text, name), location=location)
    path = _path_value(value)
    if path is None:
        row.fail(f"`{name}` must be a path, or an object with bytes, not {preview(value)}")
    if "://" in path:
        row.fail(f"`{name}` is an address, {preview(path)}: download the picture and give its path")
    if image_folder is None:
        row.fail(f"`{name}` is a path, {preview(path)}: give --image_folder, the folder that it starts from")
    # Compared as text first: `a/../../b` leads out even if `a` is a link to a place where it would not.
    full_path = os.path.normpath(os.path.join(image_folder, path))
    if not Path(full_path).is_relative_to(image_folder):
        row.fail(
            f"`{name}` leads out of the image folder {image_folder}: {preview(path)}; move the picture, or give --image_folder"
        )
    if not os.path.isfile(full_path):
        row.fail(f"`{name}` does not exist in {image_folder}: {preview(path)}; correct the path or give --image_folder")
    if not context.allow_external_links and not Path(os.path.realpath(full_path)).is_relative_to(os.path.realpath(image_folder)):
        row.fail(
            f"`{name}` leads out of {image_folder} by a link: {preview(path)}; if the link is yours, give --image_folder {image_folder}"
        )
    return _LocatedImageSource(path=full_path, location=location)


def _path_value(value: Any) -> str | None:
    path = value.get("path") if isinstance(value, dict) and "bytes" not in value else value
    return path if isinstance(path, str) and path.strip() else None


BASE64_PATTERN = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
"""Of base64."""
MAX_FILENAME_LENGTH = 255
"""Of a file. A longer text of nothing but LETTERS is taken for base64."""


def _base64_text(value: Any) -> str | None:
    """A picture's bytes as text, where the value is that."""
    if isinstance(value, dict):
        text = value.get("bytes", value.get("base64"))
        return text if isinstance(text, str) else None
    if not isinstance(value, str):
        return None
    return value if value.startswith("data:") or (len(value) > MAX_FILENAME_LENGTH and BASE64_PATTERN.fullmatch(value)) else None


def _decode_base64(row: Row, text: str, name: str) -> bytes:
    if text.startswith("data:"):
        header, _, text = text.partition(",")
        if not re.fullmatch(r"data:image/[\w.+-]+;base64", header):
            row.fail(f"`{name}` must be a path or a picture in base64 (data:image/png;base64,...), not {preview(header)}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        row.fail(f"`{name}` is not base64 ({str(error).rstrip('.').lower()}): encode the picture again, or give its path")


def collect_facts(row: Row, context: RowContext) -> tuple[Fact, ...]:
    """The row's own, and besides them those known of its pictures' names, or of its id where no picture has a name."""
    row_facts = parse_typed_facts(row)
    return row_facts + tuple(
        fact for fact in (_lookup_facts(row, context.facts) if context.facts else ()) if fact not in row_facts
    )


def _lookup_facts(row: Row, facts: FactsByName) -> tuple[Fact, ...]:
    paths = [value.get("path") if isinstance(value, dict) else value for _, value in _image_values(row)]
    image_names = [
        name
        for name in [*paths, *(row.fields.get(name) for name in PATH_FIELDS)]
        if isinstance(name, str) and _base64_text(name) is None
    ]
    for names in (paths, [row.fields.get(name) for name in PATH_FIELDS]):  # the note says which picture one without a name is
        facts_per_name = [facts_for_image(facts, name) for name in dict.fromkeys(n for n in names if isinstance(n, str))]
        if any(facts_per_name):
            return tuple(fact for name_facts in facts_per_name for fact in name_facts)
    return () if image_names else facts.get(str(row.fields.get("id", row.fields.get("idx"))), ())
