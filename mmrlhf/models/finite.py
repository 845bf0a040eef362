"""Refuse numbers that are not finite: NaN and infinity spread to everything computed from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from mmrlhf.records import InputError


class NotFiniteError(InputError):
    """Something that a model or a reward function computed is NaN or infinite.

    A training stage skips the step and saves it for replay (`training.skipped_steps`). Elsewhere it
    stops the command like any InputError.
    """


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values of a tensor are finite."""
    # A sum is fast and needs no memory. If it overflows, the values themselves are checked.
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


@torch.no_grad()
def check_finite(tensors: Iterable[tuple[str, Tensor]], what: str, advice: str = "give another checkpoint") -> None:
    """Raise InputError, from `what` to `advice`, if a tensor has a value that is not finite."""
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise InputError(f"{what} has values in {name} that are not finite (NaN or infinity): {advice}")


@contextlib.contextmanager
def trace_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that receives the name of each module whose output is not finite, in order."""
    names: list[str] = []

    def hook(name: str) -> object:
        def check(_module: nn.Module, _inputs: object, output: object) -> None:
            if not all(is_finite(tensor.detach()) for tensor in _tensors_in(output)):
                names.append(name)

        return check

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]  # type: ignore[arg-type]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _tensors_in(output: object) -> Iterator[Tensor]:
    """Yield the tensors of a module's output: one, or those in a tuple or a transformers output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for item in output:
            yield from _tensors_in(item)
    elif isinstance(output, dict):
        for item in output.values():
            yield from _tensors_in(item)
