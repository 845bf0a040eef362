"""Distinguish names of Hub repositories from those of files."""

from __future__ import annotations

import os
import re
from pathlib import Path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv")


def is_hub_id(name: str) -> bool:
    """Return whether a name such as owner/name is on the Hub, and not a local file or folder.

    Such a name has no suffix of a data file, and its owner is not a local folder.
    """
    path = Path(name)
    return HUB_ID.fullmatch(name) is not None and path.suffix not in FILE_SUFFIXES and not os.path.isdir(path.parts[0])
