"""Check the paths in a configuration before anything heavy is imported or loaded."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrlhf.files.hub_names import is_hub_id
from mmrlhf.records import InputError

_MODEL = "give the directory or the Hub id of a model"
_DATASET = "give a file, a `datasets` folder, or a Hub id such as owner/name"
_RUN = "give the directory that the reward stage wrote"
_FILE = "correct the path"
PATH_FIELDS = {
    "model_name_or_path": _MODEL,
    "base_model_name_or_path": _MODEL,
    "dataset_name": _DATASET,
    "eval_dataset_name": _DATASET,
    "ptx_dataset_name": _DATASET,
    "human_dataset_name": _DATASET,
    "reward_model_path": _RUN,
    "adapter_path": "give the policy folder of a finished ppo run",
    "image_folder": "give the folder that the rows' image paths start from",
    "human_image_folder": "give the folder that the image paths of human_dataset_name start from",
    "facts_file": _FILE,
    "truth_file": _FILE,
    "lexicon_file": _FILE,
    "clip_calibration": _FILE,
    "vlm_calibration": _FILE,
    "answers": _FILE,
    "recorded_judgments": _FILE,
    "guidelines_file": _FILE,
    "gold_file": _FILE,
    "scores_file": _FILE,
    "reward_eval_file": _FILE,
}
"""Fields that name a file or a folder to read, and what to do if it does not exist."""
HUB_FIELDS = (
    "model_name_or_path",
    "base_model_name_or_path",
    "dataset_name",
    "eval_dataset_name",
    "ptx_dataset_name",
    "human_dataset_name",
    "adapter_path",
)
"""Fields that may be a Hub id instead."""

LIST_FIELDS = ("reward_model_path", "scores_file")
"""Fields that may name several, separated by commas."""

MAX_FOLDERS = 20_000
"""Folders that a dataset may consist of. Others, such as /tmp, would be searched for minutes."""


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those in it.

    Raises InputError at more than MAX_FOLDERS folders.
    """
    for number, (path, _, names) in enumerate(os.walk(folder), 1):
        if number > MAX_FOLDERS:
            raise InputError(f"{folder} holds more than {MAX_FOLDERS:,} folders: name the data file itself, or its own folder")
        yield from (Path(path, name) for name in names)


def require_paths(config: Any) -> None:
    """Raise one InputError with all files and folders of a configuration that do not exist.

    A name such as owner/name counts as a Hub id, unless there is a local folder `owner`.
    """
    problems = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in PATH_FIELDS or value is None or re.match(r"https?://", value):
            continue
        names = value.split(",") if field.name in LIST_FIELDS else [value]
        missing = [name.strip() for name in names if not _exists(name.strip(), field.name in HUB_FIELDS)]
        problems += [f"{field.name} {name} does not exist: {PATH_FIELDS[field.name]}" for name in missing]
    if problems:
        raise InputError("; ".join(problems))


def _exists(name: str, may_be_hub_id: bool) -> bool:
    return os.path.exists(name) or (may_be_hub_id and is_hub_id(name))
