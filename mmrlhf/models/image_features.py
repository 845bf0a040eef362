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
class ImageFeatures:
    """One picture as the language model sees it.

    `columns` holds the projected features, then deepstack layers if the family has them; each is a list of units [tokens, dim], one
    a picture or tile. `stacked` says whether the model wants units as one tensor. `text` is what the processor writes in the
    place of the picture's placeholder, None where that cannot be told; `grid` [1, 3] its layout for the positions (Qwen).
    """

    levels: list[list[Tensor]]
    is_stacked: bool
    placeholder_text: str | None
    grid_thw: Tensor | None

    @property
    def num_bytes(self) -> int:
        return sum(unit.numel() * unit.element_size() for level in self.levels for unit in level)

    def to(self, device: torch.device) -> ImageFeatures:
        """On a device; in main memory pinned where there is a GPU to copy to."""
        should_pin = device.type == "cpu" and torch.cuda.is_available()

        def move(unit: Tensor) -> Tensor:
            return unit.to(device).pin_memory() if should_pin else unit.to(device, non_blocking=True)

        return replace(self, levels=[[move(u) for u in level] for level in self.levels])


@dataclass
class CacheCounters:
    """`encodes` pictures through the tower, `again` those of them that had been encoded before and were pushed out; `hits` by memory,
    `disk_hits` by disk."""

    encodes: int = 0
    reencodes: int = 0
    memory_hits: int = 0
    disk_hits: int = 0


class MemoryTier:
    """The most recently used pictures on one device, within a byte budget; the newest always stays."""

    def __init__(self, device: torch.device, max_bytes: int):
        self.device, self.max_bytes, self.num_bytes = device, max_bytes, 0
        self.entries: OrderedDict[str, ImageFeatures] = OrderedDict()

    def get(self, key: str) -> ImageFeatures | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: str, features: ImageFeatures) -> Iterator[tuple[str, ImageFeatures]]:
        """Keep a picture; yields those that had to go."""
        if key not in self.entries:
            self.entries[key] = features.to(self.device)
            self.num_bytes += features.num_bytes
        while self.num_bytes > self.max_bytes and len(self.entries) > 1:
            evicted_key, evicted = self.entries.popitem(last=False)
            self.num_bytes -= evicted.num_bytes
            yield evicted_key, evicted


class DiskTier:
    """A folder of safetensors files, a subfolder for each tower. What cannot be read is encoded again; what cannot be written is
    said once, and work goes on without it."""

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self.writable = True
        self.num_bytes = 0
        if folder.exists():
            if not folder.is_dir():
                raise InputError(f"feature_cache_dir {folder} is a file: name a folder")
            self.num_bytes = sum(size for _, size, _ in self._files())

    def _path(self, key: str) -> Path:
        tower, _, image_key = key.partition("/")
        return self.folder / tower / f"{image_key}.safetensors"

    def get(self, key: str) -> ImageFeatures | None:
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = json.loads(file.metadata()["picture"])
                if metadata["key"] != key:
                    raise ValueError("it holds another picture")
                levels = [[file.get_tensor(f"{c}.{u}") for u in range(n)] for c, n in enumerate(metadata["units"])]
                grid_thw = file.get_tensor("grid") if metadata["grid"] else None
            if _checksum(levels) != metadata["checksum"]:
                raise ValueError("its content is damaged")
            with contextlib.suppress(OSError):
                os.utime(path)  # recently used
            return ImageFeatures(levels, metadata["stacked"], metadata["text"], grid_thw)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            print(f"note: {path} is no whole feature file ({str(error).splitlines()[0]}): the picture is encoded again")
            return None

    def put(self, key: str, features: ImageFeatures) -> None:
        if not self.writable:
            return
        tensors = {f"{c}.{u}": t.cpu().contiguous() for c, level in enumerate(features.levels) for u, t in enumerate(level)}
        if features.grid_thw is not None:
            tensors["grid"] = features.grid_thw.cpu()
        metadata = {
            "key": key,
            "units": [len(level) for level in features.levels],
            "stacked": features.is_stacked,
            "text": features.placeholder_text,
            "grid": features.grid_thw is not None,
            "checksum": _checksum(features.levels),
        }
        data = save(tensors, {"picture": json.dumps(metadata)})
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
        self.num_bytes += len(data)
        if self.num_bytes > self.max_bytes:
            self._evict(kept_path=path)

    def _evict(self, kept_path: Path) -> None:
        """Remove the files that were used longest ago until a tenth of the budget is free."""
        files = sorted(self._files())
        self.num_bytes = sum(size for _, size, _ in files)
        for _, size, file in files:
            if self.num_bytes <= 0.9 * self.max_bytes:
                break
            if file != kept_path:
                with contextlib.suppress(OSError):  # another process may have been quicker
                    file.unlink()
                self.num_bytes -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was last used, its bytes, and its path; those of killed runs go, files that vanish meanwhile do not count."""
        for file in self.folder.rglob("*.safetensors*"):
            with contextlib.suppress(OSError):
                status = file.stat()
                if file.suffix == ".safetensors":
                    yield status.st_mtime, status.st_size, file
                elif time.time() - status.st_mtime > ABANDONED_AFTER_SECONDS:
                    file.unlink()


ABANDONED_AFTER_SECONDS = 3600.0
"""Seconds after which a file that was being written is nobody's."""


def _checksum(levels: list[list[Tensor]]) -> int:
    checksum = 0
    for unit in (u for level in levels for u in level):
        checksum = zlib.crc32(unit.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), checksum)
    return checksum


class FeatureCache:
    """GPU memory (where the model is on one), then main memory, then disk (where a folder is given). What one tier has no room for
    goes to the next."""

    def __init__(self, device: torch.device, memory_gib: float = 2.0, folder: str | None = None, disk_gib: float = 100.0):
        devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
        self.device = device
        self.tiers = [MemoryTier(tier_device, int(memory_gib * GIB)) for tier_device in devices]
        self.disk = DiskTier(Path(folder), int(disk_gib * GIB)) if folder else None
        self.counters = CacheCounters()
        self._encoded_keys: set[str] = set()

    def get(self, key: str) -> ImageFeatures | None:
        for level, tier in enumerate(self.tiers):
            if (features := tier.get(key)) is not None:
                self.counters.memory_hits += 1
                if level:
                    self._store(key, features)
                return features.to(self.device)
        if self.disk is not None and (features := self.disk.get(key)) is not None:
            self.counters.disk_hits += 1
            self._store(key, features)
            return features.to(self.device)
        return None

    def put(self, key: str, features: ImageFeatures) -> None:
        """Keep what has just been encoded."""
        self.counters.encodes += 1
        if key in self._encoded_keys:
            self.counters.reencodes += 1
            if self.counters.reencodes == 1:
                hint = " or give feature_cache_dir" * (self.disk is None)
                print(f"note: pictures are encoded again, memory for features is full: raise feature_memory_gib{hint}")
        self._encoded_keys.add(key)
        self._store(key, features)
        if self.disk is not None:
            self.disk.put(key, features)

    def _store(self, key: str, features: ImageFeatures) -> None:
        entries = [(key, features)]
        for tier in self.tiers:
            entries = [evicted for k, p in entries for evicted in tier.put(k, p)]

    @property
    def num_bytes(self) -> int:
        """In memory, all tiers."""
        return sum(tier.num_bytes for tier in self.tiers)
