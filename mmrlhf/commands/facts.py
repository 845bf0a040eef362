"""`mmrlhf data facts FILE`: write a facts file from captions, annotations or a captioner's replies.

Rows of the output are {"image": NAME, "facts": [{kind, text, source, confidence, box}]}, as every
stage reads them with `--facts_file`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrlhf.datasets import read_examples, row_context
from mmrlhf.datasets.write import facts_field
from mmrlhf.evaluation.openai_client import Endpoint, chat_message, request_replies, resolve_model_name
from mmrlhf.facts import (
    FactsByImage,
    ImageMatches,
    facts_for_image,
    matching_name,
    read_captions,
    read_facts,
    split_scope,
)
from mmrlhf.files import lock
from mmrlhf.files.atomic import refuse_output_file, write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.files.row_errors import RowErrors
from mmrlhf.files.rows import preview
from mmrlhf.files.tables import split_of
from mmrlhf.models.images import read_image_size
from mmrlhf.records import Fact, ImageSource, InputError
from mmrlhf.report.progress import progress

CAPTION_QUESTION = (
    "Describe the image in detail: every object with its colour and number, where objects are relative to each other, "
    "what people and animals do, and any text that can be read. Write only what can be seen."
)


def facts_from_files(
    paths: Sequence[str],
    output_file: str,
    caption_key: str | None = None,
    dataset_name: str | None = None,
    image_folder: str | None = None,
    confidence: float | None = None,
    split: str = "train",
) -> Path:
    """Write the facts of annotation or caption files by image, merged over several files.

    `caption_key` is the column of captions in a dataset's rows. With `dataset_name`, only images of
    that dataset are kept, under the names that its rows use. `confidence` replaces that of the
    facts. Raises InputError if a file cannot be read or there are no facts to write.
    """
    output_path = Path(output_file)
    refuse_output_file(output_path, inputs=[*paths, dataset_name])
    is_secondary = dataset_name is not None or len(paths) > 1
    files = [
        read_facts(path)
        if caption_key is None
        else read_captions(path, caption_key, split_of(path, split) if is_secondary else split)
        for path in paths
    ]
    if dataset_name is None:
        names, note = dict.fromkeys(name for file in files for name in file), ""
        facts = {name: _join([file.get(name, ()) for file in files]) for name in names}
    else:
        images = _images_of(dataset_name, image_folder, split)
        for path, file in zip(paths, files, strict=True):
            _refuse_shared_names(path, file, images)
        facts = {i.name: _join([facts_for_image(file, i.name) for file in files]) for i in images}
        facts = {name: image_facts for name, image_facts in facts.items() if image_facts}
        note = f" of the {len(images)} of {dataset_name}"
        if not facts and images:
            raise InputError(
                f"{', '.join(paths)}: no facts about the images of {dataset_name} (its first is {images[0].name}): "
                "name images as its rows do, or by their file names"
            )
    if confidence is not None:
        facts = {name: tuple(replace(fact, confidence=confidence) for fact in found) for name, found in facts.items()}
    _write(output_path, facts)
    print(f"{output_path}: {sum(len(split_scope(found)[1]) for found in facts.values())} facts about {len(facts)} images{note}")
    return output_path


def _refuse_shared_names(path: str, facts: FactsByImage, images: Sequence[_Image]) -> None:
    """Raise InputError if a name in the facts, such as a file name, refers to several images."""
    matches = ImageMatches()
    for image in images:
        if (key := matching_name(facts, image.name)) is not None:
            matches.check(key, image.source.path or image.name, path)


def _join(lists: Iterable[Sequence[Fact]]) -> tuple[Fact, ...]:
    """Return the facts of several lists; a fact in two lists counts once.

    Repetitions within a list are kept: two equal objects are two.
    """
    joined: list[Fact] = []
    for facts in lists:
        known_facts = set(joined)
        joined += [fact for fact in facts if fact not in known_facts]
    return tuple(joined)


def facts_from_captioner(
    dataset_name: str,
    output_file: str,
    endpoint: Endpoint,
    question: str = CAPTION_QUESTION,
    max_tokens: int = 512,
    image_folder: str | None = None,
    confidence: float = 1.0,
    split: str = "train",
) -> Path:
    """Write a server's caption of each distinct image of a dataset as a fact about it.

    Replies are kept in a hidden file as they arrive, so the same command continues after a kill or
    a failure. The output appears once every image has a caption. Raises InputError if the server
    cannot be used, or if images are left without a caption.
    """
    output_path = Path(output_file)
    refuse_output_file(output_path, inputs=[dataset_name])
    images = _images_of(dataset_name, image_folder, split)
    if not images:
        raise InputError(f"{dataset_name} has no images to caption: give rows with images")
    _refuse_unreadable(dataset_name, images)
    endpoint = resolve_model_name(endpoint)
    kept_path = output_path.with_name(f".{output_path.name}.captions.jsonl")
    lock_path = output_path.with_name(f".{output_path.name}.lock")
    output_path.parent.mkdir(parents=True, exist_ok=True)
    lock.acquire(lock_path, output_path, "output_file")
    try:
        params = {"temperature": 0, "max_tokens": max_tokens}
        request_key = hashlib.sha256(json.dumps([endpoint.model, question, params]).encode()).hexdigest()[:16]
        captions = _ask(endpoint, question, params, images, request_key, kept_path)
    finally:
        lock.release(lock_path)
    facts: FactsByImage = {}
    for image in images:
        caption = Fact("caption", captions[image.source.key], endpoint.model, confidence)
        facts[image.name] = (*facts.get(image.name, ()), caption)
    _write(output_path, facts)
    kept_path.unlink(missing_ok=True)
    print(f"{output_path}: captions of {len(images)} images by {endpoint.model}")
    return output_path


def _ask(
    endpoint: Endpoint, question: str, params: Mapping[str, Any], images: Sequence[_Image], request_key: str, kept_path: Path
) -> dict[str, str]:
    """Return captions by image key: the kept ones, and new replies for all others."""
    rows = read_jsonl(kept_path) if kept_path.exists() else []
    captions = {str(row["image"]): str(row["caption"]) for row in rows if row.get("request") == request_key}
    sources = {image.source.key: image.source for image in images if image.source.key not in captions}
    chats = [(key, lambda source=source: [chat_message(question, (source,))]) for key, source in sources.items()]
    failures: list[str] = []
    num_done = len({image.source.key for image in images}) - len(sources)
    if chats:  # also cuts off a line that a kill left incomplete
        write_atomic(kept_path, "".join(map(json_line, rows)))
    with progress(num_done + len(chats), "caption", start=num_done) as progress_bar:
        for key, reply in request_replies(endpoint, chats, params):
            text = " ".join((reply.text or "").split())
            if reply.status != "ok" or not text:
                failures.append(reply.reason or "an empty reply")
                continue
            captions[key] = text
            with kept_path.open("a", encoding="utf-8") as file:
                file.write(json_line({"image": key, "caption": text, "request": request_key}))
            progress_bar.advance()
    if failures:
        raise InputError(
            f"{len(failures)} of {num_done + len(chats)} images got no caption (the first: {failures[0]}): "
            "run the same command again, which asks for these alone"
        )
    return captions


@dataclass(frozen=True)
class _Image:
    """An image, and its name in the dataset's rows."""

    name: str
    source: ImageSource


def _images_of(dataset_name: str, image_folder: str | None, split: str) -> list[_Image]:
    """Return a dataset's images, each once.

    An embedded image has its recorded name, else its row's id, under which the row's further images
    are, too: facts by an id are about all images of its row. Raises InputError if images of several
    rows share a name and differ.
    """
    root = row_context(dataset_name, image_folder).image_folder
    images: dict[str, list[ImageSource]] = {}
    for example in read_examples(dataset_name, split, image_folder):
        images_of_row: dict[str, list[ImageSource]] = {}
        for image in dict.fromkeys(example.images):
            name = (image.recorded_name or example.id) if image.path is None else os.path.relpath(image.path, root)
            images_of_row.setdefault(name, []).append(image)
        for name, found in images_of_row.items():
            known = images.setdefault(name, found)
            if known != found and {image.key for image in known} != {image.key for image in found}:
                raise InputError(
                    f"{dataset_name}: different images are named {preview(name)}, {known[0].name} and {found[0].name}: "
                    "give each its own path, or each row its own id, because facts are found by them"
                )
    return [_Image(name, image) for name, found in images.items() for image in found]


def _refuse_unreadable(dataset_name: str, images: Sequence[_Image]) -> None:
    """Raise one InputError that names all unreadable images, before a server is asked."""
    errors = RowErrors()
    for image in images:
        try:
            read_image_size(image.source)
        except InputError as error:
            errors.add(image.name, str(error))
    if errors.count:
        raise InputError(f"{dataset_name}: {errors.count} of {len(images)} images cannot be read: {errors.summary('images')}")


def _write(path: Path, facts: FactsByImage) -> None:
    if not any(facts.values()):
        raise InputError(f"there are no facts to write to {path}: give a file with captions, objects or relations")
    try:
        write_atomic(path, "".join(_lines(facts)))
    except OSError as error:
        raise InputError(f"output_file {path} cannot be written ({error.strerror}): free some space or name another") from None


def _lines(facts: FactsByImage) -> Iterator[str]:
    for name, image_facts in facts.items():
        if image_facts:
            rows = [{key: value for key, value in row.items() if value is not None} for row in facts_field(image_facts) or []]
            yield json_line({"image": name, "facts": rows})
