"""Where the files are that choose: recipes (`configs/`), samples (`data/`), benchmarks (`eval/`).

They stand in the repository's root, and a wheel carries a copy inside the package. Code is loaded from them by path
only, so that a user's own benchmark is a file like any other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

from mmrlhf.config_loader import suggestion
from mmrlhf.records import InputError

ResourceKind = Literal["configs", "data", "eval"]
SUFFIXES = {"configs": ".yaml", "data": "", "eval": ".py"}
"""What a name may leave out."""


def folder(kind: ResourceKind) -> Path:
    """The bundled folder of an installed wheel, else the repository's."""
    package = Path(__file__).parents[1]
    bundled = package / "_content" / kind
    return bundled if bundled.is_dir() else package.parent / kind


def names(kind: ResourceKind) -> list[str]:
    """What `find` knows, as it would be asked for; files that begin with `_` are not meant to be."""
    root, suffix = folder(kind), SUFFIXES[kind]
    files = (path.relative_to(root) for path in root.rglob(f"*{suffix}") if path.is_file())
    return sorted(path.as_posix().removesuffix(suffix) for path in files if not path.name.startswith(("_", ".")))


def find(kind: ResourceKind, name: str) -> Path:
    """The file (or folder, of `data`) with this name: `pope`, `demo/sft`. A name that ends in `.py` is a path.

    Raises InputError with the nearest name there is.
    """
    if name.endswith(".py"):
        path = Path(name)
        if path.is_file():
            return path
        candidates = [str(file) for file in path.parent.glob("*.py")]
        raise InputError(f"{name} does not exist" + (f": {suggestion(name, candidates)}" if candidates else ""))
    stem = name.removeprefix(f"{kind}/").removesuffix(SUFFIXES[kind])
    path = folder(kind) / f"{stem}{SUFFIXES[kind]}"
    if stem and (path.is_file() or (kind == "data" and path.is_dir())):
        return path
    matches = [candidate for candidate in names(kind) if kind == "eval" and _normalize_name(candidate) == _normalize_name(stem)]
    if len(matches) == 1:  # MMHal-Bench, mmhal and mmhal_bench are one
        return folder(kind) / f"{matches[0]}{SUFFIXES[kind]}"
    raise InputError(f"there is no {name} in {kind}: {suggestion(stem, names(kind))}")


def _normalize_name(name: str) -> str:
    """A benchmark's name without what its spellings differ in."""
    return re.sub(r"[^a-z0-9/]", "", name.lower()).removesuffix("bench")


def load_module(path: Path) -> ModuleType:
    """Run a Python file as a module of its own, so that two files of one name never meet.

    It is in `sys.modules` while it runs, which dataclasses with postponed annotations need. What it raises is raised.
    """
    path_digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"mmrlhf_content_{path.stem}_{path_digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
