"""The input of a benchmark. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.datasets.image_fields import path_inside
from mmrlhf.records import Example, ImageSource, InputError


@dataclass(frozen=True)
class Task:
    """The input of a benchmark: the user's data and settings, and results of earlier steps.

    answers: the file of answers to score, for a benchmark whose answer files contain their own
    questions. options: an instance of the benchmark's `options_type`. examples: by id, in order,
    once loaded. replies: judgments by the key of their `JudgeRequest`, each with `text` (None where
    the judge failed) and `status`.
    """

    data: str | None = None
    image_folder: str | None = None
    answers: str | None = None
    options: Any = None
    limit: int | None = None
    seed: int = 0
    examples: Mapping[str, Example] = field(default_factory=dict)
    replies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Return the path of the data. Raises InputError if none was given or it does not exist."""
        if self.data is None:
            raise InputError("this benchmark needs its data: add --data PATH")
        path = Path(self.data)
        if not path.exists():
            raise InputError(f"--data {path} does not exist: correct the path")
        return path

    @property
    def image_root(self) -> Path:
        """Return the folder to which image paths are relative: --image_folder, else the data's."""
        if self.image_folder:
            return Path(self.image_folder)
        return self.path if self.path.is_dir() else self.path.parent

    def image_source(self, *parts: str, location: str, name: str) -> ImageSource:
        """Return an image by its path, given in parts, from `image_root`. The file may be missing.

        Raises InputError, with the row's location and the field's name, if the path leaves the
        folder; symlinks may leave it only if the user named the folder and therefore trusts it.
        """
        folder = os.path.abspath(self.image_root)
        path = os.path.join(*parts)
        return ImageSource(path=path_inside(folder, path, bool(self.image_folder), location, name))
