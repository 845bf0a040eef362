"""Find bundled recipes (`configs/`), samples (`data/`) and benchmarks (`eval/`) by name.

They are in the repository root, and a wheel has a copy inside the package. Code is loaded by path
only, so a user's own benchmark is loaded in the same way as a bundled one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

from mmrlhf.config.loader import suggestion
from mmrlhf.records import InputError

ResourceKind = Literal["configs", "data", "eval"]
SUFFIXES = {"configs": ".yaml", "data": "", "eval": ".py"}
"""The suffix that a name may omit."""


def folder(kind: ResourceKind) -> Path:
    """Return the folder of one kind: inside the installed wheel, else in the repository."""
    package = Path(__file__).parents[1]
    bundled = package / "_content" / kind
    return bundled if bundled.is_dir() else package.parent / kind


def names(kind: ResourceKind) -> list[str]:
    """Return the names that `find` accepts. Files that start with `_` or `.` are private."""
    root, suffix = folder(kind), SUFFIXES[kind]
    files = (path.relative_to(root) for path in root.rglob(f"*{suffix}") if path.is_file())
    return sorted(path.as_posix().removesuffix(suffix) for path in files if not path.name.startswith(("_", ".")))


def find(kind: ResourceKind, name: str) -> Path:
    """Return the bundled file (or `data` folder) with a name such as `pope` or `demo/sft`.

    A name that ends in `.py` is a path. Raises InputError that suggests the nearest name.
    """
    if name.endswith(".py"):
        path = Path(name)
        if os.path.exists(path) and not os.path.isdir(path):
            return path
        candidates = [str(file) for file in path.parent.glob("*.py")]
        raise InputError(f"{name} does not exist" + (f": {suggestion(name, candidates)}" if candidates else ""))
    short_name = name.removeprefix(f"{kind}/").removesuffix(SUFFIXES[kind])
    path = folder(kind) / f"{short_name}{SUFFIXES[kind]}"
    is_inside = path.resolve().is_relative_to(folder(kind).resolve())  # not ../name, nor /name
    if short_name and is_inside and (os.path.isfile(path) or (kind == "data" and os.path.isdir(path))):
        return path
    normalised = _normalise_name(short_name)
    matches = [candidate for candidate in names(kind) if kind == "eval" and _normalise_name(candidate) == normalised]
    if len(matches) == 1:  # MMHal-Bench, mmhal and mmhal_bench are the same benchmark
        return folder(kind) / f"{matches[0]}{SUFFIXES[kind]}"
    choices = [candidate for candidate in names(kind) if kind != "eval" or "/" not in candidate]  # eval/speed/ is for developers
    missing = (
        f"{name} does not exist, and {kind} has none of this name"
        if name.endswith((".yaml", ".yml"))
        else f"there is no {name} in {kind}"
    )
    raise InputError(f"{missing}: {suggestion(short_name, choices)}")


def _normalise_name(name: str) -> str:
    """Reduce a benchmark's name to a form that all of its spellings share."""
    return re.sub(r"[^a-z0-9/]", "", name.lower()).removesuffix("bench")


def load_module(path: Path) -> ModuleType:
    """Import a Python file under a unique module name, because file names may be equal.

    If the file raises an exception, it propagates and no module remains.
    """
    path_digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"mmrlhf_content_{path.stem}_{path_digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses with postponed annotations look it up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
