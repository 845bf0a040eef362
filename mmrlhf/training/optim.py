"""The learning rate, and the optimiser: its step, and its state in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmrlhf.config import TrainConfig
from mmrlhf.models.adapters import OTHER_CHECKPOINT
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.records import InputError

BUCKET_SIZE = 1 << 24
"""Number of gradient values exchanged at once: 64 MiB in float32, and twice that in copies."""


def lr_multiplier(config: TrainConfig, step: int, num_steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up to 1, then constant or a decay.

    Linear and cosine decay end at a tenth of the peak.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    decay = 0.5 * (1 + math.cos(math.pi * progress)) if config.lr_scheduler_type == "cosine" else 1 - progress
    return 0.1 + 0.9 * decay


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, num_steps: int) -> float:
    """Set the learning rate of a step and return it; parameter groups may have their own `peak`."""
    factor = lr_multiplier(config, step, num_steps)
    for param_group in optimizer.param_groups:
        param_group["lr"] = param_group.get("peak", config.learning_rate) * factor
    return config.learning_rate * factor


GRADIENT_PROBLEM = "the gradient is not finite"


def check_loss(loss: float) -> None:
    """Raise NotFiniteError unless the loss, the same on all processes, is finite."""
    if not math.isfinite(loss):
        raise NotFiniteError(f"the loss is {loss}")


def optimizer_step(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_grad_norm: float
) -> float:
    """Sum the gradients of all processes, clip, step, and clear. Return the norm before clipping.

    Losses are already divided by global counts, so gradients are summed, not averaged. Forward
    passes bypass any DDP wrapper, which therefore cannot reduce the gradients. Raises
    NotFiniteError if the gradient is not finite, before it changes anything.
    """
    for p in parameters:
        # A gradient of None (of a tower's adapter in a step without images) becomes 0 on any number
        # of processes: AdamW would skip a parameter with None, but moves one with a gradient of 0.
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    if accelerator.num_processes > 1:
        _sum_gradients(accelerator, parameters)
    grad_norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(grad_norm):
        optimizer.zero_grad(set_to_none=True)
        raise NotFiniteError(f"{GRADIENT_PROBLEM} (norm {grad_norm})")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm


def _sum_gradients(accelerator: Accelerator, parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients over the processes, many small ones in one exchange."""
    all_gradients = [p.grad for p in parameters if p.grad is not None]
    for gradients in _buckets(sorted(all_gradients, key=lambda gradient: str(gradient.dtype))):
        total = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
        for gradient, part in zip(gradients, total.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield runs of tensors of one dtype, at most BUCKET_SIZE values or a single larger tensor."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(other.numel() for other in bucket) + tensor.numel()
        if bucket and (size > BUCKET_SIZE or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def optimizer_state_dict(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as `optim.{index}.{name}` (AdamW: exp_avg, exp_avg_sq, step).

    Parameters are numbered in order. Learning rates are left out: they follow from the
    configuration and the step.
    """
    state = optimizer.state_dict()["state"]
    return {f"optim.{i}.{name}": tensor for i, parameter_state in state.items() for name, tensor in parameter_state.items()}


def load_optimizer_state_dict(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Continue from what `optimizer_state_dict` returned; other names in `tensors` are ignored.

    Raises InputError if the state belongs to other parameters: another number, or other shapes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optim."):
            _, i, name = key.split(".")
            if int(i) >= len(parameters):
                raise InputError(f"the checkpoint has {key}, and the optimiser {len(parameters)} parameters: {OTHER_CHECKPOINT}")
            if tensor.dim() and tensor.shape != parameters[int(i)].shape:
                parameter_shape = tuple(parameters[int(i)].shape)
                raise InputError(
                    f"{key} of the checkpoint has the shape {tuple(tensor.shape)}, and its parameter {parameter_shape}: "
                    f"{OTHER_CHECKPOINT}"
                )
            # Clone: the optimiser updates its state in place; the caller's tensors must not change.
            state.setdefault(int(i), {})[name] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
