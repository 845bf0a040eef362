"""Tell the names of Hub repositories from those of files."""

from __future__ import annotations

import os
import re
from pathlib import Path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILE_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv")


def is_hub_id(name: str) -> bool:
    """Return whether a name such as owner/name is one of the Hub, and no file or folder here.

    A name of the Hub has no suffix of a data file, and a local folder's name is no owner.
    """
    path = Path(name)
    return HUB_ID.fullmatch(name) is not None and path.suffix not in FILE_SUFFIXES and not os.path.isdir(path.parts[0])
