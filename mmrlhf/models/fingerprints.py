"""Hash a model's weights, and separate the language model's from the vision tower's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

NUM_SAMPLED_VALUES = 64
"""Values of each tensor that go into `fingerprint`."""


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of every tensor's name, shape and up to NUM_SAMPLED_VALUES of its values.

    Values are rounded to bfloat16, so a model has the same hash in float32 and in bfloat16.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters, key=lambda item: item[0]):
        flat = tensor.detach().reshape(-1)
        sampled = flat[:: max(1, flat.numel() // NUM_SAMPLED_VALUES)][:NUM_SAMPLED_VALUES]
        sampled = sampled.float().cpu().to(torch.bfloat16).float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sampled.numpy().tobytes())
    return digest.hexdigest()[:16]


def full_fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of every value, for caches on disk, which outlive the model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def language_parameter_prefixes(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the prefixes of parameter names that belong to the language model and its head."""
    decoder, head = model.base_model.get_decoder(), model.get_output_embeddings()
    return tuple(n + "." for n, m in model.named_modules() if m is decoder or m is head)
