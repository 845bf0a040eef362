"""Cache the features of a frozen vision tower on the GPU, in main memory and on disk.

Each of these tiers has a byte budget. A key identifies the image's content and everything else that
determines its features (processor, tower, precision, image decoder). Features of another model, or
of a file that has changed, are never returned. Files are safetensors, written atomically.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmrlhf.models.encoding_claims import EncodingClaims
from mmrlhf.records import InputError
from mmrlhf.text.printable import first_line

GIB = 1 << 30
ABANDONED_AFTER_SECONDS = 3600.0
"""Age at which an unfinished file counts as a leftover of a killed run."""
EVICT_TO = 0.9
"""Share of the disk budget that remains in use after an eviction. The margin avoids listing the
folder, which takes time, for every new file."""
LIST_AFTER = 0.02
"""Share of the disk budget after which a process lists the folder again, because others write to it
too."""
FILE_NAME = re.compile(r"[0-9a-f]{20}/[0-9a-f]{64}(-several)?\.safetensors")
"""Files that a cache writes, and may remove: a tower's fingerprint and an image's content."""
UNFINISHED_FILE_NAME = re.compile(r"[0-9a-f]{20}/\.[0-9a-f]{64}(-several)?\.safetensors\.[0-9a-f]+")


@dataclass(frozen=True)
class ImageFeatures:
    """One image as the language model receives it."""

    levels: list[list[Tensor]]
    """Projected features, then deepstack features if the family has them. Each level is a list of
    units [tokens, dim]: one per image, or one per tile."""
    is_stacked: bool
    """Whether the model expects the units of a batch as one tensor."""
    placeholder_text: str | None
    """The processor's text for the image's placeholder; None if it does not report this."""
    grid_thw: Tensor | None
    """Layout [1, 3] (time, height, width) for rotary positions (Qwen)."""

    @property
    def num_bytes(self) -> int:
        """Size of the features in memory."""
        return sum(unit.numel() * unit.element_size() for level in self.levels for unit in level)

    def to(self, device: torch.device) -> ImageFeatures:
        """Copy to a device; copies from a GPU are pinned, so that they return fast."""

        def move(unit: Tensor) -> Tensor:
            should_pin = device.type == "cpu" and unit.is_cuda
            return unit.to(device).pin_memory() if should_pin else unit.to(device, non_blocking=True)

        return replace(self, levels=[[move(u) for u in level] for level in self.levels])

    def clone(self) -> ImageFeatures:
        """Return the features in memory that this thread allocates."""
        return replace(self, levels=[[unit.clone() for unit in level] for level in self.levels])


@dataclass
class CacheCounters:
    """Statistics of the cache, in images."""

    encodes: int = 0
    """Images encoded by the tower."""
    reencodes: int = 0
    """How many of them had been encoded before and evicted."""
    memory_hits: int = 0
    disk_hits: int = 0


Entry = TypeVar("Entry", bound="Movable")


class Movable(Protocol):
    """A memory tier's entry of an image."""

    @property
    def num_bytes(self) -> int: ...

    def to(self: Entry, device: torch.device) -> Entry: ...


class MemoryTier(Generic[Entry]):
    """The most recently used images on one device, within a byte budget.

    The newest image always stays, even if it exceeds the budget.
    """

    def __init__(self, device: torch.device, max_bytes: int):
        self.device, self.max_bytes, self.num_bytes = device, max_bytes, 0
        self.entries: OrderedDict[str, Entry] = OrderedDict()

    def get(self, key: str) -> Entry | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: str, entry: Entry) -> list[tuple[str, Entry]]:
        """Store an image's entry; return the entries that were evicted for it."""
        if key not in self.entries:
            self.entries[key] = entry.to(self.device)
            self.num_bytes += entry.num_bytes
        evicted = []
        while self.num_bytes > self.max_bytes and len(self.entries) > 1:
            oldest_key, oldest = self.entries.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
            evicted.append((oldest_key, oldest))
        return evicted


class DiskTier:
    """A folder of safetensors files with a subfolder per tower.

    If a file cannot be read, its image is encoded again. If the folder cannot be written, a note
    says so once, and the run continues without writing. All processes that write to the folder
    share one budget; files not written by a cache neither count nor are removed.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self.claims = EncodingClaims(folder)
        self.writable = True
        self.num_bytes = 0
        self._num_unlisted_bytes = 0
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
                    raise ValueError("it holds another image")
                levels = [
                    [file.get_tensor(f"{level}.{unit}") for unit in range(num_units)]
                    for level, num_units in enumerate(metadata["units"])
                ]
                grid_thw = file.get_tensor("grid") if metadata["grid"] else None
            if _checksum(levels) != metadata["checksum"]:
                raise ValueError("its content is damaged")
            with contextlib.suppress(OSError):
                os.utime(path)  # recently used
            return ImageFeatures(levels, metadata["stacked"], metadata["text"], grid_thw)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            print(f"note: {path} is not a complete feature file ({first_line(error)}): encoding the image again")
            return None

    def put(self, key: str, features: ImageFeatures) -> None:
        if not self.writable:
            return
        levels = [[unit.cpu().contiguous() for unit in level] for level in features.levels]
        tensors = {f"{level}.{unit}": tensor for level, units in enumerate(levels) for unit, tensor in enumerate(units)}
        if features.grid_thw is not None:
            tensors["grid"] = features.grid_thw.cpu()
        metadata = {
            "key": key,
            "units": [len(level) for level in features.levels],
            "stacked": features.is_stacked,
            "text": features.placeholder_text,
            "grid": features.grid_thw is not None,
            "checksum": _checksum(levels),
        }
        data = save(tensors, {"picture": json.dumps(metadata)})
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # No fsync: it would cost more than re-encoding after a power cut. `get` detects damage.
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            self.writable = False
            with contextlib.suppress(OSError):
                temporary.unlink()
            print(f"note: feature_cache_dir {self.folder} cannot be written ({error.strerror}): going on without it")
            return
        self.num_bytes += len(data)
        self._num_unlisted_bytes += len(data)
        if self.num_bytes > self.max_bytes or self._num_unlisted_bytes > LIST_AFTER * self.max_bytes:
            self._evict(kept_path=path)

    def _evict(self, kept_path: Path) -> None:
        """List the folder; if it is over the budget, keep the last used files in EVICT_TO of it."""
        files = sorted(self._files())
        self.num_bytes, self._num_unlisted_bytes = sum(size for _, size, _ in files), 0
        if self.num_bytes <= self.max_bytes:
            return
        for _, size, file in files:
            if self.num_bytes <= EVICT_TO * self.max_bytes:
                break
            if file != kept_path:
                with contextlib.suppress(OSError):  # another process may have removed it
                    file.unlink()
                self.num_bytes -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield each file's time of last use, size and path.

        Removes unfinished files of killed runs, and skips files that disappear meanwhile or were
        not written by a cache.
        """
        for file in self.folder.glob("*/*.safetensors*"):
            name = f"{file.parent.name}/{file.name}"
            with contextlib.suppress(OSError):
                if FILE_NAME.fullmatch(name):
                    status = file.stat()
                    yield status.st_mtime, status.st_size, file
                elif UNFINISHED_FILE_NAME.fullmatch(name) and time.time() - file.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                    file.unlink()


def _checksum(levels: list[list[Tensor]]) -> int:
    """Return a CRC-32 of all values; safetensors checks a file's length, but not its content."""
    checksum = 0
    for unit in (u for level in levels for u in level):
        checksum = zlib.crc32(unit.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), checksum)
    return checksum


Encode = Callable[[Sequence[str]], Iterable[tuple[str, ImageFeatures]]]
"""Encodes images, given by their keys, and yields each key with its features."""


class FeatureCache:
    """Tiers of memory: the GPU (if the model is on one), main memory, and a disk folder (if given).

    Entries evicted from one memory tier move to the next. The disk stores everything that was
    encoded.
    """

    def __init__(self, device: torch.device, memory_gib: float = 2.0, folder: str | None = None, disk_gib: float = 100.0):
        devices = [device] if device.type == "cpu" else [device, torch.device("cpu")]
        self.max_bytes = int(memory_gib * GIB)
        self.tiers = [MemoryTier[ImageFeatures](tier_device, self.max_bytes) for tier_device in devices]
        self.disk = DiskTier(Path(folder), int(disk_gib * GIB)) if folder else None
        self.counters = CacheCounters()
        self._encoded_keys: set[str] = set()

    def get(self, key: str) -> ImageFeatures | None:
        """Return features on the model's device, or None if no tier has them."""
        for level, tier in enumerate(self.tiers):
            if (features := tier.get(key)) is not None:
                self.counters.memory_hits += 1
                # Used again: move it to the first tier.
                return self._store(key, features) if level > 0 else features
        if self.disk is not None and (features := self.disk.get(key)) is not None:
            self.counters.disk_hits += 1
            return self._store(key, features)
        return None

    def encode_missing(self, keys: Sequence[str], encode: Encode) -> dict[str, ImageFeatures]:
        """Return the features of images that this cache lacks, and store them.

        Of the processes that share the folder, one encodes an image; the others wait and read it.
        """
        if self.disk is None or not self.disk.writable:
            return self._encode(keys, encode)
        claims, features_by_key = self.disk.claims, dict[str, ImageFeatures]()
        remaining = list(keys)
        while remaining:
            claimed = claims.claim(remaining)
            try:
                # Another process may have written some of them since they were missed.
                written = {key: features for key in claimed if (features := self.get(key)) is not None}
                claims.release(written)
                features_by_key |= written
                features_by_key |= self._encode([k for k in remaining if k in claimed and k not in written], encode)
            finally:
                claims.release(claimed)
            remaining = [key for key in remaining if key not in claimed]
            if remaining and not claims.wait(remaining[0]):
                return features_by_key | self._encode(remaining, encode)
        return features_by_key

    def _encode(self, keys: Sequence[str], encode: Encode) -> dict[str, ImageFeatures]:
        """Encode images, store them, and release each at once for processes that wait for it."""
        features_by_key = {}
        for key, features in encode(keys) if keys else ():
            self.put(key, features)
            features_by_key[key] = features
            if self.disk is not None:
                self.disk.claims.release([key])
        return features_by_key

    def put(self, key: str, features: ImageFeatures) -> None:
        """Store newly encoded features, in memory and on disk."""
        self.counters.encodes += 1
        if key in self._encoded_keys:
            self.counters.reencodes += 1
            if self.counters.reencodes == 1:
                hint = " or give feature_cache_dir" if self.disk is None else ""
                print(f"note: images are encoded again because the feature memory is full: raise feature_memory_gib{hint}")
        self._encoded_keys.add(key)
        self._store(key, features)
        if self.disk is not None:
            self.disk.put(key, features)

    def _store(self, key: str, features: ImageFeatures) -> ImageFeatures:
        """Put features into the first tier, and evicted entries of each tier into the next.

        Returns the first tier's.
        """
        entries = [(key, features)]
        for tier in self.tiers:
            entries = [evicted for entry in entries for evicted in tier.put(*entry)]
        return self.tiers[0].entries[key]

    @property
    def num_bytes(self) -> int:
        """Bytes in memory, all tiers together."""
        return sum(tier.num_bytes for tier in self.tiers)
