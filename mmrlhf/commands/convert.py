"""`mmrlhf data convert FILE --to FORMAT`: rewrite preferences, or take rows from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmrlhf.config.loader import suggestion
from mmrlhf.datasets import (
    EXAMPLE_FORMATS,
    FORMATS,
    has_preferences,
    read_examples,
    read_preferences,
    row_context,
    to_pairs,
)
from mmrlhf.datasets.balance import balance_lengths
from mmrlhf.facts import read_facts
from mmrlhf.files.atomic import atomic, refuse_output_file
from mmrlhf.files.tables import ROWS_PER_BATCH
from mmrlhf.models.images import image_value
from mmrlhf.records import InputError, Preference


def convert(
    path: str,
    target_format: str,
    output_file: str,
    image_folder: str | None = None,
    facts_file: str | None = None,
    should_balance: bool = False,
    seed: int = 0,
    split: str = "train",
) -> None:
    """Write a file's preferences as rows of `target_format`, and print how many were left out.

    `sft` takes the best answers of preferences (or rows with answers), `prompts` drops answers;
    both write a repeated row once. The output appears when it is complete. JSON keeps the paths of
    image files and embeds other images in base64; parquet embeds all images. Fields that mmrlhf
    does not read are dropped.
    Raises InputError if the file or a row cannot be read, or no row is left to write.
    """
    output_path = Path(output_file)
    check_target(target_format, output_path, [path, facts_file])
    facts = read_facts(facts_file) if facts_file else None
    records: Any
    if has_preferences(path, split):
        records = read_preferences(path, split, image_folder, facts, answer_images=True)
    elif target_format in EXAMPLE_FORMATS:
        records = read_examples(path, split, image_folder, facts)
    else:
        raise InputError(f"{path} has no preferences to convert to {target_format}: stages read prompts and answers as they are")
    if should_balance and target_format in EXAMPLE_FORMATS:
        raise InputError(f"balance_lengths balances pairs, and {target_format} has none: convert to a format of pairs first")
    image_root = row_context(path, image_folder).image_folder
    write_records(records, path, target_format, output_path, image_root, should_balance, seed)


def check_target(target_format: str, output_path: Path, inputs: Iterable[str | None]) -> None:
    """Check a format's name and an output file's before any work. Raises InputError."""
    all_formats = FORMATS | EXAMPLE_FORMATS
    if target_format not in all_formats:
        raise InputError(f"there is no format {target_format}: {suggestion(target_format, all_formats)}")
    if output_path.suffix not in WRITERS:
        raise InputError(f"output_file {output_path} must end in {', '.join(WRITERS)}: the ending decides the format of the file")
    refuse_output_file(output_path, inputs=inputs)


def write_records(
    records: Any, name: str, target_format: str, output_path: Path, image_root: str | None, should_balance: bool = False,
    seed: int = 0,
) -> None:  # fmt: skip
    """Write records in a format atomically, and print how many were left out.

    name: the records' file, for messages. image_root: the folder to which image paths are relative.
    Raises InputError if no row is left to write, or the file cannot be written.
    """
    row_format: Any = (FORMATS | EXAMPLE_FORMATS)[target_format]
    skipped = Counter[str]()

    def candidates() -> Iterator[Any]:
        """Yield the records that the format can represent, in the same order on every call."""
        skipped.clear()  # each pass over the data counts them again
        if target_format in EXAMPLE_FORMATS:
            return row_format.select(records, skipped)
        return _representable(records, target_format, skipped)

    kept_indices = set(balance_lengths(candidates(), seed)) if should_balance else None
    embed_images = output_path.suffix == ".parquet"

    def iter_rows(with_images: bool = True) -> Iterator[dict[str, Any]]:
        for index, record in enumerate(candidates()):
            if kept_indices is not None and index not in kept_indices:
                skipped["pairs to balance lengths"] += 1
                continue
            images = [image_value(source, image_root, embed_images) if with_images else {} for source in record.all_images]
            yield row_format.to_row(record, images)

    # A first pass without images finds the columns, and any bad row before anything is written.
    fields: set[str] = set()
    num_written = 0
    for row in iter_rows(with_images=False):
        fields |= row.keys()
        num_written += 1
    if not num_written:
        raise InputError(f"{name} has no rows left to write: {_format_skipped(skipped)}")
    column_types = {column: column_type for column, column_type in row_format.column_types.items() if column in fields}
    try:
        with atomic(output_path) as temp_path:
            WRITERS[output_path.suffix](temp_path, iter_rows(), column_types)
    except OSError as error:
        message = f"output_file {output_path} cannot be written ({error.strerror}): free some space or name another"
        raise InputError(message) from None
    notes = [f"{num_written} rows as {target_format}"]
    if not embed_images and image_root is not None:
        notes.append(f"image paths start from {image_root} (--image_folder {image_root})")
    if skipped:
        notes.append(f"left out: {_format_skipped(skipped)}")
    print(f"{output_path}: {'; '.join(notes)}")


def _representable(preferences: Iterable[Preference], target_format: str, skipped: Counter[str]) -> Iterator[Preference]:
    """Yield preferences, or their pairs; `skipped` counts those that do not fit the format."""
    row_format = FORMATS[target_format]
    for preference in preferences:
        for candidate in [preference] if row_format.supports_rankings else to_pairs(preference):
            if unsupported := row_format.unsupported_feature(candidate):
                skipped[f"{unsupported}, which {target_format} cannot hold"] += 1
            else:
                yield candidate


def _format_skipped(skipped: Counter[str]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in skipped.items())


# ---- files ---------------------------------------------------------------------------------------


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]], _: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{_to_json(row)}\n" for row in rows)


def _write_json_list(path: Path, rows: Iterable[dict[str, Any]], _: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            file.write((",\n" if index else "[\n") + _to_json(row))
        file.write("\n]\n")


def _to_json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]], column_types: dict[str, Any]) -> None:
    """Write images as `datasets` does, in row groups small enough for random access."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    def to_feature(column_type: Any) -> Any:
        if isinstance(column_type, list):
            return datasets.List(to_feature(column_type[0]))
        if isinstance(column_type, dict):
            return {name: to_feature(inner_type) for name, inner_type in column_type.items()}
        return datasets.Image() if column_type == "image" else datasets.Value(column_type)

    schema = datasets.Features(to_feature(column_types)).arrow_schema
    row_iterator = iter(rows)
    with parquet.ParquetWriter(path, schema) as file:
        while batch := list(islice(row_iterator, ROWS_PER_BATCH)):
            file.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


WRITERS: dict[str, Callable[[Path, Iterable[dict[str, Any]], dict[str, Any]], None]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json_list,
    ".parquet": _write_parquet,
}
