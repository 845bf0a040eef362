"""Write and read checkpoints: directories that appear complete, with a checksum, or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrlhf.files.atomic import atomic_folder, fsync, remove_folder
from mmrlhf.models.finite import check_finite


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the number of steps after which a checkpoint was written."""
    return int(path.name.removeprefix("step-"))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a checkpoint's tensors, on the CPU, and its state.

    Raises OSError, ValueError or SafetensorError if it is damaged or has values that are not
    finite. Earlier versions wrote no checksum.
    """
    checksum_file = path / "sha256"
    if checksum_file.exists() and checksum_file.read_text(encoding="utf-8") != _checksum(path):
        raise ValueError("its files are not as they were written")
    tensors = load_file(path / "state.safetensors")
    check_finite(tensors.items(), "it")
    return tensors, json.loads((path / "state.json").read_text(encoding="utf-8"))


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], max_checkpoints: int) -> None:
    """Write a checkpoint after `step` steps, and then delete all but the newest `max_checkpoints`.

    If writing fails, no part of it remains and the older ones stay. Raises InputError if a tensor
    has values that are not finite.
    """
    check_finite(tensors.items(), f"after step {step} the run", "start over from its last checkpoint, with a lower learning rate")
    with atomic_folder(folder / f"step-{step:06d}") as temporary_dir:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary_dir / "state.safetensors")
        (temporary_dir / "state.json").write_text(json.dumps(state), encoding="utf-8")
        (temporary_dir / "sha256").write_text(_checksum(temporary_dir), encoding="utf-8")
    fsync(folder.parent)  # the folder's name
    # A checkpoint of a later step did not load: otherwise the run would have resumed from it.
    kept_checkpoints = [path for path in newest_first(folder) if step_of(path) <= step][:max_checkpoints]
    for path in newest_first(folder):
        if path not in kept_checkpoints:
            remove_folder(path)


def _checksum(path: Path) -> str:
    """Return a hash of a checkpoint's tensors and state, which detects a single flipped bit."""
    digest = hashlib.sha256()
    for name in ("state.safetensors", "state.json"):
        with open(path / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
