"""Read a row's id, images (as checked paths or bytes) and facts. Opens no image."""

from __future__ import annotations

import base64
import binascii
import difflib
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mmrlhf.datasets.conversations import IMAGE_PARTS, PLACEHOLDER
from mmrlhf.facts import ImageMatches, matching_name, parse_typed_facts
from mmrlhf.files.rows import Row, preview, type_name
from mmrlhf.files.tables import dataset_folder
from mmrlhf.records import Fact, ImageSource, InputError

FactsByName = Mapping[str, tuple[Fact, ...]]


@dataclass(frozen=True)
class RowContext:
    """The context for parsing a row: where its images may be, and known facts."""

    image_folder: str | None
    """Absolute path; None for a Hub dataset without --image_folder."""
    allow_external_links: bool
    """Whether symlinks may leave the folder: yes if the user named it and therefore trusts it, no
    for the data file's own folder, because its symlinks came with the data."""
    facts: FactsByName
    matches: ImageMatches = field(default_factory=ImageMatches)
    """The images of earlier rows to which names in `facts` were matched."""


def row_context(dataset_name: str, image_folder: str | None = None, facts: FactsByName | None = None) -> RowContext:
    """Build the context of a dataset's rows. Raises InputError for a missing image folder."""
    if image_folder is not None and not os.path.isdir(image_folder):
        raise InputError(f"image folder {image_folder} does not exist: correct the path")
    root = image_folder if image_folder is not None else dataset_folder(dataset_name)
    return RowContext(None if root is None else os.path.abspath(root), image_folder is not None, facts or {})


def parse_id(row: Row) -> str:
    """Return `id`, else `idx`, else the row's number. Raises InputError if the id is unusable."""
    field = next((name for name in ("id", "idx") if name in row.fields), "id")
    value = without_decimals(row.fields.get(field, row.number))
    if isinstance(value, bool) or not isinstance(value, int | str):
        row.fail(f"`{field}` must be text or a whole number, not {type_name(value)}")
    text = row.require_text(str(value), field)
    if not text:
        row.fail(f"`{field}` is empty: fill it in or remove it")
    return text


def without_decimals(value: Any) -> Any:
    """Return a whole float as an integer: pandas writes 3 as 3.0 in a column with gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parse_images(row: Row, context: RowContext) -> tuple[ImageSource, ...]:
    """Read a row's images. Raises InputError if one is missing or outside the image folder."""
    return tuple(_parse_image(row, value, name, context) for name, value in _image_values(row))


def parse_pair_images(
    row: Row, images: tuple[ImageSource, ...], counts: Sequence[int], context: RowContext
) -> tuple[tuple[ImageSource, ...], tuple[ImageSource, ...], tuple[ImageSource, ...]]:
    """Divide a pair's images into those of its prompt, its chosen and its rejected answer.

    `images` are those of `parse_images`, and `counts` the numbers inside the answers. An answer's
    parts may contain its images. Otherwise, if both answers have some, they come after the prompt's
    in `images`, the chosen answer's first; ms-swift's `rejected_images` lists those of prompt and
    rejected answer. Raises InputError for another number of images, or if the two answers belong to
    different prompt images.
    """
    num_chosen, num_rejected = counts

    def take_last(images: tuple[ImageSource, ...], count: int) -> tuple[tuple[ImageSource, ...], tuple[ImageSource, ...]]:
        if count and not min(counts) and "rejected_images" not in row.fields:
            row.fail(
                "one answer contains an image or <image>, and the other none: remove it from the text, or give the image in a part "
                "of type image"
            )
        if count > len(images):
            row.fail(f"an answer shows {count} images and the row has {len(images)} left for it: add them to `images`")
        return images[: len(images) - count], images[len(images) - count :]

    rejected = _images_in_answer(row, ("rejected", "rejected_messages"), num_rejected, context)
    listed: tuple[ImageSource, ...] | None = None
    if "rejected_images" in row.fields:
        values = row.fields["rejected_images"]
        values = values if isinstance(values, list) else [values]
        listed = tuple(_parse_image(row, value, f"rejected_images[{i}]", context) for i, value in enumerate(values, 1))
    elif rejected is None:
        images, rejected = take_last(images, num_rejected)
    chosen = _images_in_answer(row, ("chosen",), num_chosen, context)
    if chosen is None:
        images, chosen = take_last(images, num_chosen)
    if listed is not None:
        if not num_rejected or listed[: len(images)] != images:
            row.fail(
                "`rejected_images` has other images for the prompt, and answers are compared about the same ones: list the "
                "prompt's and then those inside the rejected answer, or compare images with image_pairs of dpo"
            )
        rejected = listed[len(images) :]
    assert rejected is not None
    if len(rejected) != num_rejected:
        plural = "" if num_rejected == 1 else "s"
        row.fail(f"the rejected answer has placeholders for {num_rejected} image{plural} and the row has {len(rejected)} for it")
    return images, chosen, rejected


def _images_in_answer(row: Row, names: Sequence[str], count: int, context: RowContext) -> tuple[ImageSource, ...] | None:
    """Return the images in the parts of an answer's turn, None if there are none."""
    name = next((name for name in names if name in row.fields), "")
    value = row.fields.get(name)
    turn = value[-1] if isinstance(value, list) and value else value
    held = list(_images_of_turn(row, turn, name, is_only_source=False))
    if held and len(held) != count:
        row.fail(f"`{name}` shows {count} images, and its parts hold {len(held)} of them: give all of them in the parts")
    return tuple(_parse_image(row, image, place, context) for place, image in held) if held else None


PATH_FIELDS = ("image_path", "img_path", "file_name")
"""Fields of RLHF-V, VLFeedback and imagefolder's metadata.jsonl with the image or, next to `image`,
a note on its origin."""
OTHER_MEDIA = ("video", "videos", "audio", "audios")
"""Fields of unsupported media; a row may have them next to images."""
IMAGE_FIELD = re.compile(r"ima?g|picture|photo", re.IGNORECASE)
"""Part of the name of a field that may contain an image."""
IMAGE_VALUE = re.compile(r"data:image/|[^\n]*\.(?:jpe?g|png|webp|bmp|gif|tiff?|ppm)\s*$", re.IGNORECASE)
"""Text that is an encoded image, or the path of one."""
TEXT_FIELDS = ("id", "idx", "messages", "conversations", "system", "solution", "answer")
"""Fields that never contain an image next to a conversation, regardless of their text."""
IMAGE_TAG = re.compile(r"<img>[^<>\n]+</img>")
"""An image in Qwen-VL's text."""
CONVERSATION_FIELDS = ("messages", "prompt", "chosen")
"""Fields with turns whose parts may contain images; the first of them that a row has."""


def _image_values(row: Row) -> Iterator[tuple[str, Any]]:
    if "images" in row.fields and "image" in row.fields:
        row.fail("both `images` and `image` are given: keep one")
    names = [name for name in ("images", "image", *PATH_FIELDS) if name in row.fields]
    media = next((name for name in OTHER_MEDIA if row.fields.get(name)), None)
    if media is not None and not any(row.fields[name] for name in names):
        row.fail(f"`{media}` is given and no image: only images are supported, so drop the row")
    part_images = list(_part_images(row, is_only_source=not names))
    if part_images:
        yield from _chosen_source(row, names, part_images)
        return
    if not names and (_is_null(row) or _is_text_only(row)):
        return  # text-only rows of conversations have no image field, those of tables a null
    field_name = names[0] if names else row.require_any("images", "image", hint="add it, `[]` for a row without images")
    value = row.fields[field_name]
    if field_name == "images" and not isinstance(value, list):
        row.fail(f"`images` must be a list, not {type_name(value)}: write a single image as `image`")
    if isinstance(value, list):
        yield from ((f"{field_name}[{number}]", item) for number, item in enumerate(value, 1) if item is not None)
    else:
        yield field_name, value


def _is_null(row: Row) -> bool:
    """Return whether a null states that the row has no image, and no field is misspelt."""
    return bool({"image", "images"} & row.null_fields) and not any(map(_is_typo, row.fields))


@functools.lru_cache(maxsize=4096)
def _is_typo(name: str) -> bool:
    """Return whether a field's name seems to be a misspelt `images`."""
    return bool(difflib.get_close_matches("images", [name], cutoff=0.75))


def _is_text_only(row: Row) -> bool:
    """Return whether a conversation shows no image and no field seems to contain one."""
    turns = row.fields.get("messages", row.fields.get("conversations"))
    if turns is None or ("messages" in row.fields and PLACEHOLDER in str(turns)):
        return False
    if tag := IMAGE_TAG.search(str(turns)):
        row.fail(f"its text shows an image as {preview(tag[0])}: write {PLACEHOLDER} there, and the path in `images`")
    return not any(
        IMAGE_FIELD.search(name) or _is_typo(name) or (name not in TEXT_FIELDS and _looks_like_image(value))
        for name, value in row.fields.items()
    )


def _looks_like_image(value: Any) -> bool:
    """Return whether a value, or one in a list, is an encoded image or a path with its suffix."""
    if isinstance(value, list):
        return any(map(_looks_like_image, value))
    if isinstance(value, dict):
        return isinstance(value.get("bytes", value.get("base64")), str | bytes) or _looks_like_image(value.get("path"))
    return isinstance(value, bytes) or (isinstance(value, str) and IMAGE_VALUE.match(value) is not None)


def _part_images(row: Row, *, is_only_source: bool) -> Iterator[tuple[str, Any]]:
    """Yield the images inside the parts of turns, such as {type: image, image: PATH}.

    Raises InputError if a part does not contain its image, and `is_only_source`.
    """
    field_name = next((name for name in CONVERSATION_FIELDS if isinstance(row.fields.get(name), list)), None)
    turns = row.fields[field_name] if field_name is not None else []
    for turn_number, turn in enumerate(turns[:-1] if field_name == "chosen" else turns, 1):  # the last is an answer
        yield from _images_of_turn(row, turn, f"{field_name}[{turn_number}]", is_only_source=is_only_source)


def _images_of_turn(row: Row, turn: Any, turn_name: str, *, is_only_source: bool) -> Iterator[tuple[str, Any]]:
    """Yield the images inside the parts of a turn. Raises as `_part_images` does."""
    content = turn.get("content") if isinstance(turn, dict) else None
    for part_number, part in enumerate(content if isinstance(content, list) else [], 1):
        part_type = part.get("type") if isinstance(part, dict) else None
        keys = IMAGE_PARTS.get(str(part_type), ())
        key = next((key for key in keys if key in part), None)
        name = f"{turn_name}.content[{part_number}]"
        if key is not None:
            yield f"{name}.{key}", {key: part[key]} if key in ("base64", "bytes") else _without_url(part[key])
        elif keys and is_only_source:
            row.fail(f"`{name}` does not hold its image: add `{keys[0]}` to it, or give the images as `images`")


def _without_url(value: Any) -> Any:
    """Return the URL in OpenAI's {"url": ...}, or the value itself."""
    return value["url"] if isinstance(value, dict) and isinstance(value.get("url"), str) else value


def _without_file_scheme(path: str) -> str:
    """Return the path of a file:// URL, as in Qwen's rows, or the value itself."""
    return unquote(path.removeprefix("file://")) if path.startswith("file://") else path


def _chosen_source(row: Row, names: list[str], part_images: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the images in parts. Raises InputError if a field has others."""
    for name in names:
        value = row.fields[name]
        if (
            name not in PATH_FIELDS
            and value not in ([], [None])
            and (value if isinstance(value, list) else [value]) != [image for _, image in part_images]
        ):
            row.fail(f"`{name}` and `{part_images[0][0]}` give different images: keep one of them")
    return part_images


@dataclass(frozen=True)
class _LocatedImageSource(ImageSource):
    """An image whose name in messages includes the row and field it came from."""

    location: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return f"{super().name} ({self.location})"


def _parse_image(row: Row, value: Any, name: str, context: RowContext) -> ImageSource:
    image_folder, location = context.image_folder, f"{row.location}, `{name}`"
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return _LocatedImageSource(data=data, location=location, recorded_name=_recorded_name(row, value))
    text = _base64_text(value)
    if text is not None:
        data = _decode_base64(row, text, name)
        return _LocatedImageSource(data=data, location=location, recorded_name=_recorded_name(row, value))
    path = _path_value(value)
    if path is None:
        row.fail(f"`{name}` must be a path or an object with bytes, not {preview(value)}")
    path = _without_file_scheme(path)
    if "://" in path:
        row.fail(f"`{name}` is a URL, {preview(path)}: download the image and give its path")
    if image_folder is None:
        row.fail(f"`{name}` is a path, {preview(path)}: give --image_folder, the folder it is relative to")
    full_path = path_inside(image_folder, path, context.allow_external_links, row.location, name)
    if not os.path.isfile(full_path):
        row.fail(f"`{name}` does not exist in {image_folder}: {preview(path)}; correct the path or give --image_folder")
    return _LocatedImageSource(path=full_path, location=location)


def path_inside(folder: str, path: str, allow_external_links: bool, location: str, name: str) -> str:
    """Return the path of an image that data names, which may not exist.

    folder: absolute. Raises InputError, with the row's location and the field's name, for a path
    outside the folder, also through a symlink unless these are allowed: data that others wrote must
    not make a program read, and send to a server, whatever file it names.
    """
    # Resolve `..` as text, before any symlink is followed: `a/../../b` is outside even if `a` is a
    # symlink to a nested folder, from which `../../b` would be inside.
    full_path = os.path.normpath(os.path.join(folder, path))
    if not Path(full_path).is_relative_to(folder):
        raise InputError(
            f"{location}: `{name}` is outside the image folder {folder}: {preview(path)}; move the image or give --image_folder"
        )
    if allow_external_links or not os.path.exists(full_path):
        return full_path
    if not Path(os.path.realpath(full_path)).is_relative_to(os.path.realpath(folder)):
        raise InputError(
            f"{location}: `{name}` leaves {folder} through a symlink: {preview(path)}; "
            f"if you trust it, give --image_folder {folder}"
        )
    return full_path


def _recorded_name(row: Row, value: Any) -> str:
    """Return a row's name for embedded bytes, next to them or in a note."""
    names = [value.get("path") if isinstance(value, dict) else None, *(row.fields.get(name) for name in PATH_FIELDS)]
    return next((name for name in names if isinstance(name, str)), "")


def _path_value(value: Any) -> str | None:
    path = value.get("path") if isinstance(value, dict) and "bytes" not in value else value
    return path if isinstance(path, str) and path.strip() else None


BASE64_PATTERN = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
"""Text that may be base64."""
MAX_FILENAME_LENGTH = 255
"""Longer text that matches BASE64_PATTERN is base64, not a file name."""


def _base64_text(value: Any) -> str | None:
    """Return the value's base64 text, or None if it has none."""
    if isinstance(value, dict):
        text = value.get("bytes", value.get("base64"))
        return text if isinstance(text, str) else None
    if not isinstance(value, str):
        return None
    is_base64 = value.startswith("data:") or (len(value) > MAX_FILENAME_LENGTH and BASE64_PATTERN.fullmatch(value))
    return value if is_base64 else None


def _decode_base64(row: Row, text: str, name: str) -> bytes:
    if text.startswith("data:"):
        header, _, text = text.partition(",")
        if not re.fullmatch(r"data:image/[\w.+-]+;base64", header):
            row.fail(f"`{name}` must be a path or a base64 image (data:image/png;base64,...), not {preview(header)}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        row.fail(f"`{name}` is not base64 ({str(error).rstrip('.').lower()}): encode the image again or give its path")


def collect_facts(row: Row, context: RowContext) -> tuple[Fact, ...]:
    """Return the row's own facts, then those found by its image names, or else by its id.

    Raises InputError if an earlier row's image, in another folder, has the same name in the facts.
    """
    row_facts = parse_typed_facts(row)
    known_facts = _lookup_facts(row, context) if context.facts else ()
    return row_facts + tuple(fact for fact in known_facts if fact not in row_facts)


def _lookup_facts(row: Row, context: RowContext) -> tuple[Fact, ...]:
    facts = context.facts
    paths = [value.get("path") if isinstance(value, dict) else value for _, value in _image_values(row)]
    path_notes = [row.fields.get(name) for name in PATH_FIELDS]
    candidates = [
        [name for name in names if isinstance(name, str) and _base64_text(name) is None] for names in (paths, path_notes)
    ]
    for names in candidates:  # the image's own path first, then the note on its origin
        keys = {name: key for name in names if (key := matching_name(facts, name)) is not None}
        for name, key in keys.items():
            context.matches.check(key, os.path.join(context.image_folder or "", _without_file_scheme(name)), row.location)
        if any(facts[key] for key in keys.values()):
            return tuple(fact for key in dict.fromkeys(keys.values()) for fact in facts[key])
    # A row id may be another image's name, so it counts only if no image has a name.
    if any(candidates):
        return ()
    return facts.get(parse_id(row), ()) if {"id", "idx"} & row.fields.keys() else ()
