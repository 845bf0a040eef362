"""Read a row's references to its question in an answer file: id, words, image, split, position.

Other programs use their own names for these fields; only this module knows them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

Fields = Mapping[str, Any]
"""A row of an answer file, before it is joined to the example that it answers."""

POSITION_FIELDS = ("index", "doc_id")
"""Fields that count the rows of a program's own copy of the data: VLMEvalKit's, lmms-eval's."""
ID_FIELDS = ("id", "question_id", *POSITION_FIELDS, "custom_id")
"""Names under which answer files give the id of an example, in order of preference."""
QUESTION_FIELDS = ("question", "query", "prompt", "input", "messages", "conversations")
"""Names of a question; each may hold text or the turns of a chat."""
IMAGE_FIELDS = (
    "image_source",
    "image_path",
    "image",
    "image_name",
    "image_file",
    "file_name",
    "img_id",
    "filename",
    "image_src",
    "image_id",
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLIT_FIELDS = ("category", "split", "subset", "type")
MAX_QUESTION_CHARS, MAX_PATH_CHARS = 16_000, 300
"""A table may hold the image itself in place of a name, and a prompt may hold a document."""


@dataclass(frozen=True)
class RowFacts:
    """The fields of a row that describe its question. An empty text means that the row lacks it."""

    id: str | None
    """The example's id, as the benchmark reads it, without its split."""
    is_position: bool
    """Whether the id comes from a field that counts rows, so it may refer to no question."""
    number: int | None
    """The row's number, to be compared with the examples' order."""
    asked: str
    """The question, as the row gives it."""
    wordings: tuple[str, ...]
    """Candidates for the question, without instructions around it, in the benchmark's normal
    form."""
    image: str
    splits: tuple[str, ...]
    file: str


def first_present(fields: Fields, names: Iterable[str]) -> str | None:
    """Return the first of these fields that is not null, as text; None if all are.

    Whole numbers lose the `.0` that pandas adds in a column with gaps.
    """
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else str(value)


def with_image_name(fields: Fields) -> Fields:
    """Return a row with its only entry of `images` as its image, if it has no other."""
    images = fields.get("images")
    if not isinstance(images, list) or len(images) != 1 or not fields.keys().isdisjoint(IMAGE_FIELDS):
        return fields
    name = images[0].get("path") if isinstance(images[0], dict) else images[0]
    return {**fields, "image": name} if isinstance(name, str) else fields


def read_facts(
    fields: Fields, read_id: Callable[[Fields], str | None], question_key: Callable[[str], str], known_splits: Sequence[str]
) -> RowFacts:
    """Return the fields of a row that describe its question.

    read_id: returns a row's id for the benchmark. question_key: brings a question into the form in
    which questions are compared. known_splits: the names of splits with ids of their own.
    """
    own_id = read_id(fields)
    is_position = False
    if own_id is not None and not fields.keys().isdisjoint(POSITION_FIELDS):
        is_position = read_id({name: value for name, value in fields.items() if name not in POSITION_FIELDS}) != own_id
    split, _, rest = (own_id or "").partition("/")
    named: tuple[str, ...] = ()
    if split in known_splits and rest:
        own_id, named = rest, (split,)
    file = str(fields.get("file", ""))
    if not named and known_splits:
        own_id, named = _split_and_number(own_id, known_splits)
        stated = " ".join(str(fields.get(name) or "") for name in SPLIT_FIELDS)
        named = splits_in(stated, known_splits) or named or splits_in(file, known_splits)
    question = next((fields[name] for name in QUESTION_FIELDS if fields.get(name) is not None), "")
    asked = "\n".join(_texts(question))[:MAX_QUESTION_CHARS]
    number = first_present(fields, ("question_id", "id", *POSITION_FIELDS))
    return RowFacts(
        own_id,
        is_position,
        int(number) if number is not None and re.fullmatch(r"\d{1,18}", number) else None,
        asked,
        tuple(_wordings(asked, question_key)) if asked.strip() else (),
        image_key(first_present(fields, IMAGE_FIELDS) or _image_in_id(own_id)),
        named,
        file,
    )


def _split_and_number(id_: str | None, known_splits: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Return the number at the end of an id that names a split (`coco_pope_adversarial_17`), and
    the split. Other ids stay as they are, without a split."""
    number = re.search(r"\d+$", id_ or "")
    named = splits_in(id_ or "", known_splits)
    return (number[0], named) if number and len(named) == 1 else (id_, ())


def _image_in_id(id_: str | None) -> str:
    """Return an id if it is the name of an image, as in MME's logs; else ""."""
    return id_ if id_ is not None and id_.lower().endswith(IMAGE_SUFFIXES) else ""


def splits_in(text: str, known_splits: Sequence[str]) -> tuple[str, ...]:
    """Return the splits that a text names, such as `adversarial,popular` or `coco_pope_random`, in
    any case."""
    words = re.findall(r"[^\W_]+", text.casefold())
    return tuple(split for split in known_splits if split in words)


@lru_cache(maxsize=1 << 16)
def image_key(image: str) -> str:
    """Return the name of an image without its folder and ending, and COCO's names without zeros."""
    stem = Path(image[:MAX_PATH_CHARS].replace("\\", "/")).stem
    coco = re.fullmatch(r"(?:COCO_(?:train|val|test)\d{4}_)?0*(\d+)", stem) if len(stem) >= 12 else None
    return coco[1] if coco else stem


@lru_cache(maxsize=1 << 16)
def fold(text: str) -> str:
    """Return a text in lower case, with single spaces and without image placeholders."""
    return " ".join(re.sub(r"<image>|<image \d+>|<ImageHere>", " ", text).casefold().split())


def _wordings(asked: str, question_key: Callable[[str], str]) -> Iterator[str]:
    """Yield the whole text, then without its last lines, then without its first ones, and last its
    only question: other programs put instructions around it."""
    lines = [line for line in asked.replace("<image>", "\n").splitlines() if line.strip()]
    spans = [
        (0, len(lines)),
        *((0, end) for end in range(len(lines) - 1, 0, -1)),
        *((start, len(lines)) for start in range(1, len(lines))),
    ]
    texts = ["\n".join(lines[start:end]) for start, end in spans[:40]]
    if asked.count("?") == 1:
        texts.append(re.split(r"[\n.:!]", asked.partition("?")[0])[-1].strip() + "?")
    keys = map(question_key, texts)
    yield from dict.fromkeys(key for key in keys if any(map(str.isalnum, key)))


# ---- rows of particular programs -----------------------------------------------------------------


def lmms_eval_fields(row: Fields) -> dict[str, Any]:
    """Return the fields of an lmms-eval sample that describe its question.

    Logs up to 0.3 have the whole `doc`. Later ones have the prompt as `input`, and the ids in the
    metrics' objects.
    """
    fields: dict[str, Any] = {}
    doc = row.get("doc")
    objects = [doc] if isinstance(doc, dict) else [value for value in row.values() if isinstance(value, dict)]
    for inner in objects:
        for name, value in inner.items():
            if isinstance(value, str | int) and not isinstance(value, bool):
                fields.setdefault(name, value)
    fields |= {name: row[name] for name in ("doc_id", "file") if row.get(name) is not None}
    if not any(fields.get(name) for name in QUESTION_FIELDS):
        fields["input"] = "\n".join(_texts(row.get("input") or row.get("arguments")))
    return fields


def lmms_eval_answer(row: Fields) -> Any:
    """Return the first generation of an lmms-eval sample, after its filters; None without any."""
    response = row.get("filtered_resps")
    if response is None:
        response = row.get("resps")
    # A list of generations; each may be a list of one.
    while isinstance(response, list):
        response = response[0] if response else None
    return response


def _texts(prompt: Any) -> Iterator[str]:
    """Yield the texts of a prompt, which may be chat messages."""
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt, list):
        for part in prompt:
            yield from _texts(part)
    elif isinstance(prompt, dict) and prompt.get("role", prompt.get("from")) in (None, "user", "human"):
        yield from _texts(next((prompt[name] for name in ("content", "value", "text") if name in prompt), None))
