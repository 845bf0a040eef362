"""Checkpoints with real text sides, built and loaded once per session."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.real.families import FAMILIES, write_checkpoint


def pytest_collection_modifyitems(items):
    """Keep the tests of a family in one process, which then builds its checkpoint once."""
    for item in items:
        parameters = (
            item.callspec.params.values() if Path(__file__).parent in item.path.parents and hasattr(item, "callspec") else ()
        )
        for name in FAMILIES.keys() & {value for value in parameters if isinstance(value, str)}:
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def shared_processors():
    """Read each vocabulary once: Gemma's takes seconds, and every stage loads the model again."""
    from transformers import AutoProcessor

    read, processors = AutoProcessor.from_pretrained, {}

    def from_pretrained(name: str, *args: Any, **kwargs: Any) -> Any:
        files = [path for path in sorted(Path(name).glob("*.j*")) if path.name not in ("config.json", "generation_config.json")]
        contents = [path.name.encode() + path.read_bytes() for path in files]
        key = hashlib.blake2b(b"".join(contents)).hexdigest()
        if key not in processors:
            processors[key] = read(name, *args, **kwargs)
        return processors[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoProcessor, "from_pretrained", from_pretrained)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, shared_processors):
    """Return a function that writes a family's checkpoint once and returns its folder."""
    folders: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            write_checkpoint(name, folder)
            folders[name] = folder
        return folders[name]

    return build


@pytest.fixture(scope="session", params=FAMILIES)
def family(request) -> str:
    """The name of each family in turn."""
    return request.param


@pytest.fixture(scope="session")
def vlm(family, checkpoint):
    """The family's model, loaded; tests must not change it."""
    from mmrlhf.models.loading import load

    return load(str(checkpoint(family)))
