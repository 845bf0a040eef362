"""`mmrlhf encode`: the picture features of a data set, made ahead of training and kept in a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mmrlhf.config import EncodeConfig
from mmrlhf.features import GIB
from mmrlhf.formats import holds_preferences, read_examples, read_preferences
from mmrlhf.loading import load
from mmrlhf.records import Example, InputError, Preference
from mmrlhf.run import progress

AT_A_TIME = 256
"""Pictures that are asked for at a time; their features leave memory as the next come."""


def encode(config: EncodeConfig) -> dict[str, float]:
    """Encode every picture that the folder does not hold yet; returns what it says at the end. Killed, the same command continues."""
    where = (config.dataset_name, config.dataset_train_split, config.image_folder)
    rows: Sequence[Example] | Sequence[Preference]
    if holds_preferences(config.dataset_name, config.dataset_train_split):
        rows = read_preferences(*where)
    else:
        rows = read_examples(*where)
    vlm = load(config.model_name_or_path, config.dtype, engine=config)
    disk, count = vlm.encoder.cache.disk, vlm.encoder.cache.count
    assert disk is not None
    began, done = time.monotonic(), 0
    with progress(len(rows), "encode") as steps:
        for start in range(0, len(rows), AT_A_TIME):
            part = rows[start : start + AT_A_TIME]
            vlm.encoder.pictures([row.images for row in part])
            if not disk.writable:
                raise InputError(
                    f"feature_cache_dir {disk.folder} cannot be written: nothing is kept; free some space or give another"
                )
            done += len(part)
            steps.advance(len(part), **{"images/s": count.encodes / max(time.monotonic() - began, 1e-6)})
    seconds = time.monotonic() - began
    said = {
        "encoded": float(count.encodes), "already_there": float(count.disk_hits), "images_per_s": count.encodes / max(seconds, 1e-6),
        "gib": disk.bytes / GIB,
    }  # fmt: skip
    print(
        f"{disk.folder}: {count.encodes} pictures encoded in {seconds:.1f} s ({said['images_per_s']:.1f} a second), "
        f"{count.disk_hits} were there; {disk.bytes / 2**20:.1f} MiB on disk"
    )
    if disk.bytes >= 0.9 * disk.budget:
        print(
            f"note: feature_disk_gib {config.feature_disk_gib:g} is reached: those that were used longest ago have been removed"
        )
    return said
