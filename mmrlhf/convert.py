"""`mmrlhf data convert FILE --to FORMAT`: preferences from any format into any other."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmrlhf.balance import balance_lengths
from mmrlhf.facts import read_facts
from mmrlhf.files import refuse_output_file, whole
from mmrlhf.formats import FORMATS, beside_of, holds_preferences, pairs_of, read_preferences
from mmrlhf.images import read
from mmrlhf.records import ImageSource, InputError, Preference
from mmrlhf.settings import suggestion
from mmrlhf.tables import ROWS_AT_A_TIME


def convert(
    path: str, to: str, output_file: str, image_folder: str | None = None, facts_file: str | None = None,
    balanced: bool = False, seed: int = 0, split: str = "train",
) -> None:  # fmt: skip
    """Write a file's preferences as rows of the format `to`, whole or not at all, and say what was left out.

    JSON keeps pictures that are files as paths, and has others in base64; parquet holds them all. Fields that nothing was made of
    are not carried over. Raises InputError when the file or a row cannot be read, or nothing is left to write.
    """
    if to not in FORMATS:
        raise InputError(f"there is no format {to}: {suggestion(to, FORMATS)}")
    out = Path(output_file)
    if out.suffix not in WRITERS:
        raise InputError(f"output_file {out} must end in {', '.join(WRITERS)}: what it is called says how it is written")
    refuse_output_file(out)
    if not holds_preferences(path, split):
        raise InputError(
            f"{path} holds no preferences, and convert writes nothing else: stages read prompts and answers as they are"
        )
    preferences = read_preferences(path, split, image_folder, read_facts(facts_file) if facts_file else None)
    home, left, form = beside_of(path, image_folder).folder, Counter[str](), FORMATS[to]

    def fitting() -> Iterator[Preference]:
        """What the format holds, in order, the same each time."""
        left.clear()
        for preference in preferences:
            for one in [preference] if form.rankings else pairs_of(preference):
                if lack := form.lacks(one):
                    left[f"{lack}, which {to} has no place for"] += 1
                else:
                    yield one

    kept = set(balance_lengths(fitting(), seed)) if balanced else None
    inside = out.suffix == ".parquet"

    def rows(pictures: bool = True) -> Iterator[dict[str, Any]]:
        for number, one in enumerate(fitting()):
            if kept is None or number in kept:
                yield form.row(one, [_picture(source, home, inside) if pictures else {} for source in one.images])
            else:
                left["pairs for balance"] += 1

    fields: set[str] = set()
    written = 0
    for row in rows(pictures=False):
        fields |= row.keys()
        written += 1
    if not written:
        raise InputError(f"{path} has nothing that is left to write: {_said(left)}")
    types = {name: of for name, of in form.types.items() if name in fields}
    try:
        with whole(out) as place:
            WRITERS[out.suffix](place, rows(), types)
    except OSError as error:
        raise InputError(f"output_file {out} cannot be written ({error.strerror}): free some space or name another") from None
    paths = "" if inside or home is None else f"; image paths start from {home} (--image_folder {home})"
    print(f"{out}: {written} rows as {to}{paths}{'; left out: ' * bool(left)}{_said(left)}")


def _said(left: Counter[str]) -> str:
    return "; ".join(f"{count} {what}" for what, count in left.items())


# ---- pictures --------------------------------------------------------------------------------------------------------

SIGNATURES = {
    b"\x89PNG": "png",
    b"\xff\xd8": "jpeg",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"II*": "tiff",
    b"MM\0*": "tiff",
}


def _picture(source: ImageSource, home: str | None, inside: bool) -> Any:
    if inside:
        return {"bytes": read(source), "path": os.path.basename(source.path) if source.path else None}
    if source.path is not None:
        return os.path.relpath(source.path, home)
    data = read(source)
    of = next((name for start, name in SIGNATURES.items() if data.startswith(start)), "x-unknown")
    return f"data:image/{of};base64,{base64.b64encode(data).decode()}"


# ---- files -----------------------------------------------------------------------------------------------------------


def _lines(place: Path, rows: Iterable[dict[str, Any]], _: dict[str, Any]) -> None:
    with place.open("w", encoding="utf-8") as file:
        file.writelines(f"{_json(row)}\n" for row in rows)


def _list(place: Path, rows: Iterable[dict[str, Any]], _: dict[str, Any]) -> None:
    with place.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            file.write((",\n" if number else "[\n") + _json(row))
        file.write("\n]\n")


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _parquet(place: Path, rows: Iterable[dict[str, Any]], types: dict[str, Any]) -> None:
    """Pictures as `datasets` has them, in row groups small enough to be read by number."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    def feature(of: Any) -> Any:
        if isinstance(of, list):
            return datasets.List(feature(of[0]))
        if isinstance(of, dict):
            return {name: feature(inner) for name, inner in of.items()}
        return datasets.Image() if of == "picture" else datasets.Value(of)

    schema = datasets.Features(feature(types)).arrow_schema
    stream = iter(rows)
    with parquet.ParquetWriter(place, schema) as file:
        while part := list(islice(stream, ROWS_AT_A_TIME)):
            file.write_table(pyarrow.Table.from_pylist(part, schema=schema))


WRITERS: dict[str, Callable[[Path, Iterable[dict[str, Any]], dict[str, Any]], None]] = {
    ".jsonl": _lines,
    ".json": _list,
    ".parquet": _parquet,
}
