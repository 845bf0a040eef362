"""Split the base over processes: FSDP2 holds a share of each decoder layer in each process.

Adapters and heads are whole in every process, as are the vision tower, the embeddings and the LM
head. PyTorch gathers a layer's weights before it runs, in forward and backward, and frees them
afterwards; all processes have to take part. But processes do not run the same passes: their answers
end at different tokens, and their micro-batches differ. So before a layer is gathered, each process
sends the others the number of the layer that it needs. All gather the layer that most of them need,
and those that need another one free it at once. A process that has finished its passes serves the
others until they have finished too (`settle`); `mmrlhf.models.processes` calls it before any other
communication.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import str_to_bool
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from mmrlhf.models.lost_process import naming_lost_process
from mmrlhf.records import InputError

DONE = -1
"""Sent by a process that needs no layer."""


def is_wanted(config: Any) -> bool:
    """Return whether `accelerate launch --use_fsdp`, or its configuration, asks for shards.

    Raises InputError for settings that are incompatible with shards.
    """
    if not str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")) or not dist.is_initialized():
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError(
            "the base is sharded with FSDP2 only: launch with --fsdp_version 2, or fsdp_version: 2 in accelerate's file"
        )
    if str_to_bool(os.environ.get("FSDP_OFFLOAD_PARAMS", "false")):
        raise InputError("shards are not offloaded to the CPU: launch with --fsdp_offload_params false")
    check_can_be_sharded(config)
    return True


def check_can_be_sharded(config: Any) -> None:
    """Raise InputError if a stage has settings that a base in shards does not support."""
    if getattr(config, "tuning", None) == "full":
        raise InputError(
            "tuning full trains the base, and only a frozen one can be sharded: use tuning lora, or leave shards out"
        )
    if config.dtype == "nf4":
        raise InputError("a base of 4 bits (dtype nf4) is not sharded: use dtype bfloat16, or leave shards out")


def shard(model: Any, device: torch.device) -> None:
    """Freeze a model, split its decoder's layers over all processes, and move it to the device.

    Call it before adapters are added, which are then whole in every process. Only one layer at a
    time is whole on the device.
    """
    model.requires_grad_(False)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in model.base_model.get_decoder().layers:
        # Each layer is its own root: a common root would gather layers ahead, without agreement.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        _exchange.add(layer, device)
    model.to(device)


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` has split the model."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def settle() -> None:
    """Serve other processes with layers until none of them needs one."""
    _exchange.settle()


def choose(wanted: Iterable[int]) -> int:
    """Return the layer that most processes need, the first of several; DONE if all are done.

    Processes that run the same layers thus synchronise again after they have diverged.
    """
    counts = Counter(layer for layer in wanted if layer != DONE)
    return min(counts, key=lambda layer: (-counts[layer], layer), default=DONE)


class _Exchange:
    """The sharded layers of this process, by numbers that are the same in every process."""

    def __init__(self) -> None:
        self._layers: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
        self._device = torch.device("cpu")
        self._count = 0
        self._newest = DONE  # the layer that was gathered last

    def add(self, layer: nn.Module, device: torch.device) -> None:
        """Number a layer, and gather its weights before each of its passes."""
        number, self._count, self._device = self._count, self._count + 1, device
        self._layers[number] = layer

        def gather(*_: Any) -> None:
            self.gather(number)

        def after_forward(module: nn.Module, args: Any, output: Tensor | Sequence[Any]) -> None:
            for tensor in [output] if isinstance(output, Tensor) else output:
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(gather)

        # Before FSDP's own hooks, which then find the layer gathered.
        layer.register_forward_pre_hook(gather, prepend=True)
        layer.register_forward_hook(after_forward, prepend=True)

    def gather(self, number: int) -> None:
        """Gather a layer's weights, and before it the layers that more processes need."""
        if number == self._newest and _is_gathered(self._layers[number]):
            return
        self._free_newest()
        while self._serve(number) != number:
            pass
        self._newest = number

    def settle(self) -> None:
        """Gather the layers that other processes need, until all are done."""
        if self._count:
            self._free_newest()
            while self._serve(DONE) != DONE:
                pass

    def _serve(self, wanted: int) -> int:
        """Send the layer that this process needs; gather and return the one that all agree on."""
        with naming_lost_process():
            own = torch.tensor([wanted], device=self._device)
            everyones = [torch.empty_like(own) for _ in range(dist.get_world_size())]
            dist.all_gather(everyones, own)
            served = choose(torch.cat(everyones).tolist())
            if served != DONE:
                layer: Any = self._layers[served]
                layer.unshard()
                if served != wanted:
                    layer.reshard()
        return served

    def _free_newest(self) -> None:
        """Free layers left gathered by a pass: FSDP keeps the first one until a backward ends."""
        layer: Any = self._layers.get(self._newest)
        if layer is not None and _is_gathered(layer):
            layer.reshard()
        self._newest = DONE


def _is_gathered(layer: nn.Module) -> bool:
    """Return whether a layer's weights are whole: FSDP registers plain tensors then."""
    return not any(isinstance(parameter, DTensor) for parameter in layer.parameters())


_exchange = _Exchange()
