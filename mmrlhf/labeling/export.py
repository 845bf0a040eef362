"""Write labels to files: as preferences, verdicts on claims, facts, or unchanged; and flags."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mmrlhf.commands.convert import check_target, write_records
from mmrlhf.config.loader import suggestion
from mmrlhf.datasets import EXAMPLE_FORMATS, FORMATS
from mmrlhf.datasets.write import facts_field
from mmrlhf.files.atomic import refuse_output_file, write_atomic
from mmrlhf.files.jsonl import json_line
from mmrlhf.labeling.results import Labels, claim_rows, preferences, read_labels, typed_facts
from mmrlhf.labeling.store import Store
from mmrlhf.records import ImageSource, InputError

OWN_FORMATS = ("labels", "claims", "facts", "flags")
ALL_FORMATS = (*OWN_FORMATS, *FORMATS, *EXAMPLE_FORMATS)


def export_labels(
    labels_file: str, target_format: str, output_file: str, is_anonymous: bool = False, without: Collection[str] = ()
) -> None:
    """Write the labels of a file in a format; the file appears when it is complete.

    `labels` has every current label, `flags` every current flag and skip, one row each; `claims`
    and `facts` are what `mmrlhf claims` and `--facts_file` read; the others are those of
    `mmrlhf data convert`. Annotators whose pseudonyms are in `without` are left out. Raises
    InputError if there is nothing to write in that format, if nobody has such a pseudonym, or if
    the file cannot be written.
    """
    if target_format not in ALL_FORMATS:
        raise InputError(f"there is no format {target_format}: {suggestion(target_format, ALL_FORMATS)}")
    output = Path(output_file)
    with contextlib.closing(Store(labels_file)) as store:
        labels = read_labels(store, is_anonymous=is_anonymous, without=without)
        facts_root = _folder_of_paths(store.image_paths("facts"))
    if target_format not in OWN_FORMATS:
        check_target(target_format, output, [labels_file])
        records = list(preferences(labels))
        if not records and without:
            raise InputError(_nothing_left(labels_file, "labels that compare answers", without))
        if not records:
            raise InputError(f"{labels_file} has no labels that compare answers: label pairs, rankings or claims first")
        image_root = common_folder(image for record in records for image in record.images)
        write_records(records, labels_file, target_format, output, image_root)
        return
    if output.suffix != ".jsonl":
        raise InputError(f"output_file {output} must end in .jsonl: {target_format} are written as JSON lines")
    refuse_output_file(output, inputs=[labels_file])
    rows: list[Mapping[str, Any]]
    image_root = None
    if target_format == "labels":
        image_root = common_folder(image for label in labels.labels for image in label.task.images)
        rows = list(_label_rows(labels, image_root))
    elif target_format == "facts":
        # Of all tasks of facts, so that an image's name depends neither on who labelled nor on
        # tasks of other modes.
        image_root = facts_root
        rows = list(_facts_rows(labels, image_root))
    else:
        rows = list(claim_rows(labels) if target_format == "claims" else _flag_rows(labels))
    if not rows and without:
        what = "flags and no skips" if target_format == "flags" else target_format
        raise InputError(_nothing_left(labels_file, what, without))
    if not rows and target_format == "flags":
        raise InputError(f"{labels_file} has no flags and no skips: there is nothing to look at")
    if not rows:
        raise InputError(f"{labels_file} has no {target_format} yet: label some first")
    try:
        write_atomic(output, "".join(map(json_line, rows)))
    except OSError as error:
        raise InputError(f"output_file {output} cannot be written ({error.strerror}): free some space or name another") from None
    note = "" if image_root is None else f"; image paths start from {image_root} (--image_folder {image_root})"
    print(f"{output}: {len(rows)} rows as {target_format}{note}")


def _nothing_left(labels_file: str, what: str, without: Collection[str]) -> str:
    return f"{labels_file} has no {what} without {', '.join(without)}: leave out fewer annotators (--without)"


def common_folder(images: Iterable[ImageSource]) -> str | None:
    """Return the folder to which image paths are relative, None if no image has a path."""
    return _folder_of_paths(image.path for image in images if image.path is not None)


def _folder_of_paths(paths: Iterable[str]) -> str | None:
    folders = {os.path.dirname(path) for path in paths}
    return os.path.commonpath(folders) if folders else None


def _label_rows(labels: Labels, image_root: str | None) -> Iterable[Mapping[str, Any]]:
    for label in labels.labels:
        task = label.task
        yield {
            "id": task.name,
            "mode": task.mode,
            "annotator": labels.names[label.annotator],
            "is_gold": bool(task.gold),
            "time": label.time or None,
            "seconds": label.seconds,
            "images": [_name_of(image, image_root) for image in task.images],
            "prompt": [turn.to_dict() for turn in task.prompt],
            "answers": list(task.answers),
            "models": list(task.models),
            "shown_order": list(label.order),
            **label.content,
        }


def _flag_rows(labels: Labels) -> Iterable[Mapping[str, Any]]:
    for event in labels.others:
        assert event.task is not None
        yield {
            "id": labels.tasks[event.task].name,
            "annotator": labels.names[event.annotator],
            "time": event.time or None,
            "kind": event.kind,
            "note": event.content.get("note", ""),
        }


def _facts_rows(labels: Labels, image_root: str | None) -> Iterable[Mapping[str, Any]]:
    for task, facts in typed_facts(labels):
        name = _name_of(task.images[0], image_root) if len(task.images) == 1 else ""
        yield {"id": task.name, **({"image": name} if name else {}), "facts": facts_field(facts)}


def _name_of(image: ImageSource, image_root: str | None) -> str:
    """Return an image's path below the common folder, because folders may share file names."""
    return image.recorded_name if image.path is None else os.path.relpath(image.path, image_root)
