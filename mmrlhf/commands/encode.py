"""`mmrlhf encode`: precompute the image features of a dataset into a folder."""

from __future__ import annotations

import time

from mmrlhf.config import EncodeConfig
from mmrlhf.datasets import read_records
from mmrlhf.models.image_features import GIB
from mmrlhf.models.loading import load
from mmrlhf.records import InputError
from mmrlhf.report.progress import progress

ROWS_PER_BATCH = 256
"""Rows encoded at once; their features may be evicted from memory by the next ones."""


def cache_features(config: EncodeConfig) -> dict[str, float]:
    """Encode every image that is not in the folder yet; return the printed statistics.

    If the command is killed, the same command resumes. Raises InputError if the folder cannot be
    written.
    """
    rows = read_records(config.dataset_name, config.dataset_train_split, config.image_folder, answer_images=True)
    vlm = load(config.model_name_or_path, config.dtype, engine=config, pixels=config)
    disk, counters = vlm.encoder.cache.disk, vlm.encoder.cache.counters
    assert disk is not None
    start_time, num_done = time.monotonic(), 0
    with progress(len(rows), "encode") as progress_bar:
        for start in range(0, len(rows), ROWS_PER_BATCH):
            batch = rows[start : start + ROWS_PER_BATCH]
            vlm.encoder.get_features([row.all_images for row in batch])
            if not disk.writable:
                raise InputError(f"feature_cache_dir {disk.folder} cannot be written: free some space or name another")
            num_done += len(batch)
            progress_bar.advance(len(batch), **{"images/s": counters.encodes / max(time.monotonic() - start_time, 1e-6)})
    seconds = time.monotonic() - start_time
    summary = {
        "encoded": float(counters.encodes),
        "already_there": float(counters.disk_hits),
        "images_per_s": counters.encodes / max(seconds, 1e-6),
        "gib": disk.num_bytes / GIB,
    }
    print(
        f"{disk.folder}: {counters.encodes} images encoded in {seconds:.1f} s ({summary['images_per_s']:.1f} per second), "
        f"{counters.disk_hits} already there; {disk.num_bytes / 2**20:.1f} MiB on disk"
    )
    if disk.num_bytes >= 0.9 * disk.max_bytes:
        print(f"note: feature_disk_gib {config.feature_disk_gib:g} is reached: the least recently used features were removed")
    return summary
