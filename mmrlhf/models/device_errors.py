"""Distinguish failures of a device from errors caused by its input."""

from __future__ import annotations

import torch

MESSAGES = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "CUSOLVER_STATUS")
"""Beginnings of messages for which torch has no separate class."""


def is_device_error(error: BaseException) -> bool:
    """Return whether a device failed or ran out of memory, regardless of its input."""
    return isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or str(error).startswith(MESSAGES)
