"""Failures of a device are told from those of its input."""

import pytest
import torch

from mmrlhf.models.device_errors import is_device_error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("no room"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("shape '[1, 2]' is invalid for input of size 3"), False),
        (ValueError("the image has no CUDA error"), False),
    ],
)
def test_is_device_error(error, expected):
    assert is_device_error(error) is expected
