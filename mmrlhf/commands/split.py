"""`mmrlhf data split FILE`: hold rows out for evaluation, with no image on both sides."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.datasets import is_preference, parse_example, parse_preference, row_context
from mmrlhf.files.atomic import atomic, refuse_output_file
from mmrlhf.files.rows import RawRow
from mmrlhf.files.tables import Table, checked_rows, open_table
from mmrlhf.files.writing import writing
from mmrlhf.records import InputError


def split(
    path: str,
    num_held_out: int,
    train_file: str,
    held_out_file: str,
    image_folder: str | None = None,
    split_name: str = "train",
    seed: int = 0,
) -> None:
    """Write about `num_held_out` rows to one file and the others to another, each in their order.

    Rows that share an image stay together: a model that has learnt an image would otherwise be
    evaluated on it. Images are compared by content. Rows are written unchanged. Raises InputError
    if a row cannot be used, rows contain images that are not files, or one side would be empty.
    """
    files = [Path(train_file), Path(held_out_file)]
    if files[0].resolve() == files[1].resolve():
        raise InputError(f"train_file and held_out_file are both {files[0]}: give two files")
    for name, file in zip(("train_file", "held_out_file"), files, strict=True):
        refuse_output_file(file, name, [path])
        if file.suffix != ".jsonl":
            raise InputError(f"{name} {file} must end in .jsonl")
    table = open_table(path, split_name)
    groups = _groups_by_image(_image_keys(path, table, image_folder))
    random.Random(seed).shuffle(groups)
    held_out: set[int] = set()
    for group in groups:
        if len(held_out) >= num_held_out:
            break
        held_out.update(group)
    num_rows = sum(map(len, groups))
    if len(held_out) == num_rows:
        raise InputError(
            f"{path}: holding out {num_held_out} of {num_rows} rows leaves none to train on, because rows that share an image stay "
            "together: hold out fewer"
        )
    with writing(files[0], kept=None), atomic(files[0]) as train_path, atomic(files[1]) as held_out_path:
        for path_to_write, keeps_held_out in ((train_path, False), (held_out_path, True)):
            with path_to_write.open("w", encoding="utf-8") as output:
                output.writelines(_line(table[index]) for index in range(num_rows) if (index in held_out) == keeps_held_out)
    notes = [f"{files[0]}: {num_rows - len(held_out)} rows", f"{files[1]}: {len(held_out)} rows", "no image is in both"]
    image_root = row_context(path, image_folder).image_folder
    if image_root is not None and any(file.parent.resolve() != Path(image_root).resolve() for file in files):
        notes.append(f"image paths start from {image_root} (--image_folder {image_root})")
    print("; ".join(notes))


def _image_keys(path: str, table: Table, image_folder: str | None) -> list[set[str]]:
    """Return the hashes of each row's images; those of its prompt if it has none."""
    context, keys = row_context(path, image_folder), []
    for raw_row in checked_rows(path, table):
        row = raw_row.parse()
        record = parse_preference(row, context) if is_preference(row) else parse_example(row, context, require_answer=False)
        keys.append({image.key for image in record.all_images} or {repr(record.prompt)})
    return keys


def _groups_by_image(keys: Sequence[Iterable[str]]) -> list[list[int]]:
    """Group the indices of rows that share a key, directly or through other rows.

    Union-find: each row points to an earlier row of its group, and the first to itself.
    """
    earlier_row = list(range(len(keys)))
    first_row_of_key: dict[str, int] = {}

    def first_row(index: int) -> int:
        while earlier_row[index] != index:
            earlier_row[index] = earlier_row[earlier_row[index]]  # shortens the way for the next call
            index = earlier_row[index]
        return index

    for index, row_keys in enumerate(keys):
        for key in row_keys:
            first, second = sorted((first_row(first_row_of_key.setdefault(key, index)), first_row(index)))
            earlier_row[second] = first
    groups: dict[int, list[int]] = {}
    for index in range(len(keys)):
        groups.setdefault(first_row(index), []).append(index)
    return list(groups.values())


def _line(row: RawRow) -> str:
    """Return a row as a line of JSONL. Raises InputError if it contains encoded images as bytes."""
    if isinstance(row.content, bytes):
        return row.content.decode("utf-8-sig").strip() + "\n"  # a file's mark is before its first row

    def to_text(value: Any) -> str:  # such as a date
        if isinstance(value, bytes):
            raise InputError(f"{row.location}: the row embeds its images: write the file as JSONL first (`mmrlhf data convert`)")
        return str(value)

    return json.dumps(row.content, ensure_ascii=False, default=to_text) + "\n"
