"""Tell failures of a device from those that its input causes."""

from __future__ import annotations

import torch

MESSAGES = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "CUSOLVER_STATUS")
"""Beginnings of messages for which torch has no class of their own."""


def is_device_error(error: BaseException) -> bool:
    """Return whether a device failed or ran out of memory, whatever it was given."""
    return isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or str(error).startswith(MESSAGES)
