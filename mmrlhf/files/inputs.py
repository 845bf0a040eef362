"""Record the inputs of an output: settings, and the content of the files that they name.

Run directories (`training.run`) and resumable files (`files.resumable`) keep this record. A later
call with other inputs is refused, and the differences are named; a call with the same inputs
continues, or has nothing to do. Contents are compared, not paths, so datasets and models may move.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mmrlhf.config import EngineConfig
from mmrlhf.files.paths import files_in
from mmrlhf.records import Example, ImageSource, Preference

CONTENT_FIELDS = (
    "model_name_or_path",
    "adapter_path",
    "dataset_name",
    "eval_dataset_name",
    "ptx_dataset_name",
    "human_dataset_name",
    "facts_file",
    "facts_template",
    "reward_model_path",
    "lexicon_file",
    "clip_model",
    "clip_calibration",
    "vlm_calibration",
    "answers",
    "truth_file",
    "dpo_config",
    "reward_config",
    "ppo_config",
)
"""Settings that name files, directories or Hub ids, whose content is compared."""
ENGINE_FIELDS = tuple(EngineConfig.__dataclass_fields__)
"""Settings that do not affect results."""
VERSIONED_PACKAGES = ("mmrlhf", "torch", "transformers", "peft")
"""Packages whose versions are recorded. Another version is reported, not refused."""
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Suffixes of the files that count in a checkpoint: a model card or a plot may change."""
MAX_HASHED_BYTES = 1 << 28
"""Files up to this size are hashed completely, larger ones (shards of weights) by samples."""
SAMPLE_BYTES, NUM_SAMPLES = 1 << 18, 256
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Suffixes that do not count in a dataset's folder: the images of rows are hashed separately."""
IMAGE_SAMPLE_BYTES = 1 << 12
"""Bytes of an image's start and of its end that are hashed; PNG ends in checksums of its pixels."""

Inputs = Mapping[str, Any]
"""Values by setting: as given or, if a path's content counts, {"path": ..., "sha256": ...}."""


# ---- contents ------------------------------------------------------------------------------------


def content_digest(name: str) -> str | None:
    """Return a hash of a file's or a directory's content; None if it is not on this machine.

    In a reward model, an adapter or a checkpoint, only the files that determine its outputs count,
    and in an imagefolder metadata.jsonl. For a Hub id, the snapshot in the cache is hashed, if
    there is one. Raises InputError for a folder of too many others (`files_in`).
    """
    path = Path(name)
    if path.is_file():
        return _file_digest(path)
    if not path.is_dir():
        snapshot = _cached_snapshot(name)
        return None if snapshot is None else content_digest(str(snapshot))
    if (path / "reward.json").is_file():
        return _reward_model_checksum(path)
    if (path / "adapter_model.safetensors").is_file():
        files = [path / "adapter_config.json", path / "adapter_model.safetensors"]
    elif (path / "config.json").is_file():
        files = [file for file in path.iterdir() if file.suffix in MODEL_SUFFIXES]
    elif (path / "metadata.jsonl").is_file():  # imagefolder: its table is this file alone
        files = [path / "metadata.jsonl"]
    else:
        files = [file for file in files_in(path) if not file.name.startswith(".") and file.suffix.lower() not in IMAGE_SUFFIXES]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        digest.update(f"{file.relative_to(path)}\0{_file_digest(file)}\0".encode())
    return digest.hexdigest()


def has_same_content(name: str, other: str | None) -> bool:
    """Return whether two names stand for the same content; not if one is not on this machine."""
    digest = content_digest(name)
    return digest is not None and other is not None and digest == content_digest(other)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a whole file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    if size <= MAX_HASHED_BYTES:
        return file_sha256(path)
    with path.open("rb") as file:
        digest = hashlib.sha256(str(size).encode())
        for i in range(NUM_SAMPLES):
            file.seek(i * (size - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()


def _cached_snapshot(name: str) -> Path | None:
    """Return the directory of a Hub model in the local cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config_file = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path that does not exist, NAME:TAG of open_clip, a URL
        return None
    return Path(config_file).parent if isinstance(config_file, str) else None


def _reward_model_checksum(path: Path) -> str:
    """Return the checksum in a reward model, which loading verifies."""
    try:
        return str(json.loads((path / "reward.json").read_text(encoding="utf-8"))["seal"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # loading reports it
        return _file_digest(path / "reward.json")


def rows_digest(rows: Iterable[Example] | Iterable[Preference], *, images_only: bool) -> str:
    """Return a hash of the rows' images or, unless `images_only`, of everything in the rows.

    `images_only` is for rows of a data file that is hashed itself. Image files are hashed by size,
    start and end, which identifies them without a full read.
    """
    digest, digest_by_path = hashlib.sha256(), dict[str | None, str]()
    for row in rows:
        if not images_only:
            digest.update(repr(dataclasses.replace(row, images=(), meta={})).encode("utf-8", "surrogatepass"))
            if isinstance(row, Preference) and row.answer_images:
                digest.update(repr([[image.position for image in images] for images in row.answer_images]).encode())
        for image in row.all_images:
            if images_only and (image.path is None or image.path in digest_by_path):
                continue
            image_sha256 = digest_by_path.get(image.path) or str(image_digest(image))
            if image.path is not None:
                digest_by_path[image.path] = image_sha256
            digest.update(image_sha256.encode())
    return digest.hexdigest()


def image_digest(image: ImageSource) -> str | None:
    """Return a hash of an image file's size, start and end, or of bytes; None if it is missing."""
    if image.path is None:
        return image.key
    try:
        with open(image.path, "rb") as file:
            head = file.read(IMAGE_SAMPLE_BYTES)
            size = file.seek(0, 2)
            file.seek(max(0, size - IMAGE_SAMPLE_BYTES))
            return hashlib.sha256(b"%d\0" % size + head + file.read()).hexdigest()
    except OSError:  # opening the image reports it
        return None


# ---- what an output was made from ----------------------------------------------------------------


def inputs_of(config: Any, *, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Return a configuration's settings except engine settings and `ignored`, with contents."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    settings = {name: value for name, value in fields.items() if name not in (*ENGINE_FIELDS, *ignored)}
    return settings | content_inputs(config)


def content_inputs(config: Any) -> dict[str, Any]:
    """Return the settings that name content on this machine, each with its hash."""
    inputs: dict[str, Any] = {}
    for name in CONTENT_FIELDS:
        value = getattr(config, name, None)
        if not isinstance(value, str):
            continue
        # reward_model_path may name several, separated by commas.
        parts = [value] if os.path.exists(value) else [part.strip() for part in value.split(",") if part.strip()]
        digests = [content_digest(part) for part in parts]
        if digests and all(digests):
            inputs[name] = {"path": value, "sha256": ",".join(map(str, digests))}
    for file in reward_function_files(str(getattr(config, "reward_terms", ""))):
        if Path(file).is_file():
            inputs[f"reward function file {file}"] = {"path": file, "sha256": _file_digest(Path(file))}
    return inputs


def reward_function_files(reward_terms: str) -> list[str]:
    """Return the files of the entries FILE.py:NAME=WEIGHT of a list of rewards."""
    names = [part.rpartition("=")[0].strip() for part in reward_terms.split(",")]
    return [name.rpartition(":")[0] for name in names if ".py:" in name]


def changed_names(saved: Inputs, requested: Inputs) -> list[str]:
    """Return the names of the inputs that differ or that only one side has."""
    names = [*requested, *(name for name in saved if name not in requested)]
    return [name for name in names if not _is_same(saved.get(name), requested.get(name))]


def describe_change(saved: Inputs, requested: Inputs, name: str) -> str:
    """Return an input's name with the old and the new value."""
    return f"{name} ({_difference(saved, requested, name)})"


def differences(saved: Inputs, requested: Inputs) -> list[str]:
    """Return, for each input that differs, its name with the old and the new value."""
    return [describe_change(saved, requested, name) for name in changed_names(saved, requested)]


def join_differences(changes: Sequence[str]) -> str:
    """Return the first three differences as text, and the number of the others."""
    return ", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")


def _is_same(saved: Any, requested: Any) -> bool:
    if isinstance(saved, Mapping) and isinstance(requested, Mapping):
        return bool(saved.get("sha256") == requested.get("sha256"))
    return _display(saved) == _display(requested)


def _difference(saved: Inputs, requested: Inputs, name: str) -> str:
    if name not in saved or name not in requested:
        shown = [_display(values[name]) if name in values else "not set" for values in (saved, requested)]
        return f"was {shown[0]}, now {shown[1]}"
    was, now = _display(saved[name]), _display(requested[name])
    return f"{now} has changed since".strip() if was == now else f"was {was}, now {now}"


def _display(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("path"))
    return "none" if value is None else str(value)


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that results may depend on."""
    versions = {}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
