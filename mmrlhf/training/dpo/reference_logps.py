"""Compute the log-probs of a frozen reference once, and keep them in the run directory.

`reference_logps.jsonl` has a line for each training row: its index, its id, and the weighted
log-prob of each of its answers. A killed run continues the file. It is refused if it was made from
other rows, another base, or other settings that affect the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from mmrlhf.config.dpo import DPOConfig
from mmrlhf.files.inputs import content_digest, rows_digest
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.files.resumable import discard
from mmrlhf.models.adapters import Role
from mmrlhf.models.processes import gather_object
from mmrlhf.records import InputError, Preference
from mmrlhf.training.dpo.batch import PreferenceBatch
from mmrlhf.training.run import Run
from mmrlhf.training.shared_writer import SharedWriter

FILE = "reference_logps.jsonl"
ROWS_PER_BATCH = 64
"""Rows that are computed and written at once. The batches do not depend on where an earlier run
stopped, so the numbers are the same to the last bit."""

SETTINGS = ("dtype", "min_pixels", "max_pixels", "changed_token_weight", "image_pairs", "seed")
"""Settings that the log-probs depend on."""
DECIDING_SETTINGS = {*SETTINGS, "max_steps", "num_train_epochs"}
"""Settings that determine which log-probs a run needs."""


def precompute(
    run: Run,
    accelerator: Accelerator,
    config: DPOConfig,
    reference: Role,
    rows: Sequence[Preference],
    indices: Sequence[int],
    build: Callable[[Sequence[Preference]], PreferenceBatch],
) -> dict[int, list[float]]:
    """Return the reference's log-probs of the answers of `rows[i]`, for each of the indices.

    Reads them if they exist. Raises InputError if they were made from other inputs, or are damaged.
    Computes them again after a change of settings that determine them.
    """
    if not indices:
        return {}

    def inputs() -> dict[str, Any]:
        return {
            "base": reference.vlm.fingerprint,
            "adapter": content_digest(config.adapter_path) if config.adapter_path else None,
            "rows": rows_digest(rows, images_only=False),
            "num_rows": len(indices),
            **{name: getattr(config, name) for name in SETTINGS},
        }

    path = run.path / FILE
    if accelerator.is_main_process and run.changed_settings & DECIDING_SETTINGS:
        discard(path)
    writer = SharedWriter(run, path, inputs, ROWS_PER_BATCH)
    if not writer.is_finished:
        with run.progress(len(indices), writer.num_done, "reference") as progress_bar:
            for start in range(writer.num_done, len(indices), ROWS_PER_BATCH):
                batch_indices = indices[start : start + ROWS_PER_BATCH]
                local_indices = batch_indices[accelerator.process_index :: accelerator.num_processes]
                local_logps = _row_logps(reference, build([rows[i] for i in local_indices])) if local_indices else []
                logps = dict(gather_object(list(zip(local_indices, local_logps, strict=True))))
                writer.append([{"row": i, "id": rows[i].id, "logps": logps[i]} for i in batch_indices])
                progress_bar.advance(len(batch_indices))
        writer.finish()
    accelerator.wait_for_everyone()
    return _read(path, indices)


def _row_logps(reference: Role, batch: PreferenceBatch) -> list[list[float]]:
    """Return the log-probs of each row's answers. Raises InputError if one is not finite."""
    logps_N = batch.weighted_logps(reference)
    if not bool(logps_N.isfinite().all()):
        raise InputError(f"the reference {reference.vlm.name} gives log-probs that are not finite: use dtype float32")
    return [row_logps.tolist() for row_logps in logps_N.split(batch.answers_per_row)]


def reference_logps(logps: Sequence[list[float]], like: Tensor) -> Tensor:
    """Return the kept log-probs of a batch's rows as one tensor [N]."""
    return like.new_tensor([value for row_logps in logps for value in row_logps])


def _read(path: Path, indices: Sequence[int]) -> dict[int, list[float]]:
    logps: dict[int, list[float]] = {}
    for line in read_jsonl(path):
        row_index, row_logps = line.get("row"), line.get("logps")
        if isinstance(row_index, int) and isinstance(row_logps, list):
            logps[row_index] = [value for value in row_logps if isinstance(value, float) and math.isfinite(value)]
    if set(logps) != set(indices):
        raise InputError(f"{path} is damaged: remove it, and it is computed again")
    return logps
