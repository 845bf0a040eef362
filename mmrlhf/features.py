"""What a frozen vision tower made of pictures, kept: on the GPU, in main memory, on disk, each within a byte budget.

A key names the picture's content and everything that had a hand in its features (processor, tower, precision, decoder), so
that features of another model, or of a file that has changed, are never found. Files are safetensors, written whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmrlhf.records import InputError

GIB = 1 << 30


@dataclass(frozen=True)
class Picture:
    """One picture as the language model sees it.

    `columns` holds the projected features, then deepstack layers if the family has them; each is a list of units [tokens, dim], one
    a picture or tile. `stacked` says whether the model wants units as one tensor. `text` is what the processor writes in the
    place of the picture's placeholder, None where that cannot be told; `grid` [1, 3] its layout for the positions (Qwen).
    """

    columns: list[list[Tensor]]
    stacked: bool
    text: str | None
    grid: Tensor | None

    @property
    def bytes(self) -> int:
        return sum(u.numel() * u.element_size() for column in self.columns for u in column)

    def to(self, device: torch.device) -> Picture:
        """On a device; in main memory pinned where there is a GPU to copy to."""
        pin = device.type == "cpu" and torch.cuda.is_available()

        def move(unit: Tensor) -> Tensor:
            return unit.to(device).pin_memory() if pin else unit.to(device, non_blocking=True)

        return replace(self, columns=[[move(u) for u in column] for column in self.columns])


@dataclass
class Counters:
    """`encodes` pictures through the tower, `again` those of them that had been encoded before and were pushed out; `hits` by memory,
    `disk_hits` by disk."""

    encodes: int = 0
    again: int = 0
    hits: int = 0
    disk_hits: int = 0


class Memory:
    """The most recently used pictures on one device, within a byte budget; the newest always stays."""

    def __init__(self, device: torch.device, budget: int):
        self.device, self.budget, self.bytes = device, budget, 0
        self.entries: OrderedDict[str, Picture] = OrderedDict()

    def get(self, key: str) -> Picture | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: str, picture: Picture) -> Iterator[tuple[str, Picture]]:
        """Keep a picture; yields those that had to go."""
        if key not in self.entries:
            self.entries[key] = picture.to(self.device)
            self.bytes += picture.bytes
        while self.bytes > self.budget and len(self.entries) > 1:
            old, gone = self.entries.popitem(last=False)
            self.bytes -= gone.bytes
            yield old, gone


class Disk:
    """A folder of safetensors files, a subfolder for each tower. What cannot be read is encoded again; what cannot be written is
    said once, and work goes on without it."""

    def __init__(self, folder: Path, budget: int):
        self.folder, self.budget = folder, budget
        self.writable = True
        self.bytes = 0
        if folder.exists():
            if not folder.is_dir():
                raise InputError(f"feature_cache_dir {folder} is a file: name a folder")
            self.bytes = sum(size for _, size, _ in self._files())

    def _path(self, key: str) -> Path:
        tower, _, picture = key.partition("/")
        return self.folder / tower / f"{picture}.safetensors"

    def get(self, key: str) -> Picture | None:
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                card = json.loads(file.metadata()["picture"])
                if card["key"] != key:
                    raise ValueError("it holds another picture")
                columns = [[file.get_tensor(f"{c}.{u}") for u in range(n)] for c, n in enumerate(card["units"])]
                grid = file.get_tensor("grid") if card["grid"] else None
            if _checksum(columns) != card["checksum"]:
                raise ValueError("its content is damaged")
            with contextlib.suppress(OSError):
                os.utime(path)  # recently used
            return Picture(columns, card["stacked"], card["text"], grid)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            print(f"note: {path} is no whole feature file ({str(error).splitlines()[0]}): the picture is encoded again")
            return None

    def put(self, key: str, picture: Picture) -> None:
        if not self.writable:
            return
        tensors = {f"{c}.{u}": t.cpu().contiguous() for c, column in enumerate(picture.columns) for u, t in enumerate(column)}
        if picture.grid is not None:
            tensors["grid"] = picture.grid.cpu()
        card = {
            "key": key,
            "units": [len(column) for column in picture.columns],
            "stacked": picture.stacked,
            "text": picture.text,
            "grid": picture.grid is not None,
            "checksum": _checksum(picture.columns),
        }
        data = save(tensors, {"picture": json.dumps(card)})
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A power cut may leave a torn file; it is then read as one (above). Waiting for the disk at each would cost more.
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            self.writable = False
            with contextlib.suppress(OSError):
                temporary.unlink()
            print(f"note: feature_cache_dir {self.folder} cannot be written ({error.strerror}): going on without it")
            return
        self.bytes += len(data)
        if self.bytes > self.budget:
            self._shrink(keep=path)

    def _shrink(self, keep: Path) -> None:
        """Remove the files that were used longest ago until a tenth of the budget is free."""
        files = sorted(self._files())
        self.bytes = sum(size for _, size, _ in files)
        for _, size, file in files:
            if self.bytes <= 0.9 * self.budget:
                break
            if file != keep:
                with contextlib.suppress(OSError):  # another process may have been quicker
                    file.unlink()
                self.bytes -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was last used, its bytes, and its path; those of killed runs go, files that vanish meanwhile do not count."""
        for file in self.folder.rglob("*.safetensors*"):
            with contextlib.suppress(OSError):
                state = file.stat()
                if file.suffix == ".safetensors":
                    yield state.st_mtime, state.st_size, file
                elif time.time() - state.st_mtime > ABANDONED:
                    file.unlink()


ABANDONED = 3600.0
"""Seconds after which a file that was being written is nobody's."""


def _checksum(columns: list[list[Tensor]]) -> int:
    found = 0
    for unit in (u for column in columns for u in column):
        found = zlib.crc32(unit.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), found)
    return found


class FeatureCache:
    """GPU memory (where the model is on one), then main memory, then disk (where a folder is given). What one tier has no room for
    goes to the next."""

    def __init__(self, device: torch.device, memory_gib: float = 2.0, folder: str | None = None, disk_gib: float = 100.0):
        places = [device] if device.type == "cpu" else [device, torch.device("cpu")]
        self.device = device
        self.tiers = [Memory(place, int(memory_gib * GIB)) for place in places]
        self.disk = Disk(Path(folder), int(disk_gib * GIB)) if folder else None
        self.count = Counters()
        self._encoded: set[str] = set()

    def get(self, key: str) -> Picture | None:
        for level, tier in enumerate(self.tiers):
            if (found := tier.get(key)) is not None:
                self.count.hits += 1
                if level:
                    self._keep(key, found)
                return found.to(self.device)
        if self.disk is not None and (found := self.disk.get(key)) is not None:
            self.count.disk_hits += 1
            self._keep(key, found)
            return found.to(self.device)
        return None

    def put(self, key: str, picture: Picture) -> None:
        """Keep what has just been encoded."""
        self.count.encodes += 1
        if key in self._encoded:
            self.count.again += 1
            if self.count.again == 1:
                room = " or give feature_cache_dir" * (self.disk is None)
                print(f"note: pictures are encoded again, memory for features is full: raise feature_memory_gib{room}")
        self._encoded.add(key)
        self._keep(key, picture)
        if self.disk is not None:
            self.disk.put(key, picture)

    def _keep(self, key: str, picture: Picture) -> None:
        moving = [(key, picture)]
        for tier in self.tiers:
            moving = [gone for k, p in moving for gone in tier.put(k, p)]

    @property
    def bytes(self) -> int:
        """In memory, all tiers."""
        return sum(tier.bytes for tier in self.tiers)
