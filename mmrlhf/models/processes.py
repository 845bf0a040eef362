"""Communication between processes: sums, objects and barriers.

Use these instead of accelerate's own: they first let processes finish their passes through a
sharded base (`sharding.settle`), and report the loss of a process in one sentence.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import accelerate
import torch
from accelerate import utils
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from mmrlhf.models import sharding
from mmrlhf.models.lost_process import naming_lost_process
from mmrlhf.models.zero import use_fsdp_for_zero
from mmrlhf.records import InputError

EXCHANGE_TIMEOUT = timedelta(hours=2)
"""How long processes wait for one another: the first one alone merges and writes a model of 145 GB.
A dead process is noticed at once, by its connection."""

WORLD_SIZE_VARIABLES = {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}
"""Environment variables in which launchers, MPI's included, give the number of processes."""


class Accelerator(accelerate.Accelerator):
    """accelerate's, with the exchanges of this module, and FSDP2 in place of DeepSpeed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_single_process(os.environ)
        note = use_fsdp_for_zero(os.environ)
        if torch.backends.mps.is_available():
            kwargs.setdefault("cpu", True)  # Apple's GPUs have no float64
        kwargs.setdefault("kwargs_handlers", [InitProcessGroupKwargs(timeout=EXCHANGE_TIMEOUT)])
        super().__init__(*args, **kwargs)
        if note and self.is_main_process:
            print(f"note: {note}")

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the gradients of a loss.

        There are none if only the projector or the vision tower is trained, and the rows have no
        images.
        """
        if loss.requires_grad:
            super().backward(loss, **kwargs)

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        """Sum or average tensors over the processes."""
        with exchange():
            return super().reduce(*args, **kwargs)

    def gather(self, *args: Any, **kwargs: Any) -> Any:
        """Concatenate tensors of the processes."""
        with exchange():
            return super().gather(*args, **kwargs)

    def wait_for_everyone(self) -> None:
        """Wait until every process is here."""
        wait_for_everyone()


def _refuse_single_process(environment: Mapping[str, str]) -> None:
    """Raise InputError if accelerate was asked for several processes and has started one.

    `accelerate launch --cpu` does so on one machine: it sets an address for the others, but not
    their number. With a GPU, a script that sets MASTER_ADDR itself may want one process.
    """
    is_on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    asked_for_several = is_on_cpu and {"MASTER_ADDR", "ACCELERATE_DYNAMO_BACKEND"} <= environment.keys()
    if asked_for_several and not WORLD_SIZE_VARIABLES & environment.keys():
        raise InputError(
            "accelerate launch was asked for several processes and has started a single one, as it does on a CPU: "
            "use torchrun --nproc_per_node (docs/processes.md), or, for one process, unset MASTER_ADDR"
        )


def gather_object(objects: list[Any]) -> list[Any]:
    """Return the objects of all processes, in the order of the processes."""
    with exchange():
        return list(utils.gather_object(objects))


def gather_rows(local_rows: Sequence[Any]) -> list[Any]:
    """Return the rows of all processes in order; row i belongs to process i modulo their number."""
    shares = gather_object([list(local_rows)])
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def sum_over_processes(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the sums over processes by name; a process without a share of a step has {}."""
    totals: Counter[str] = Counter()
    for process_sums in gather_object([dict(sums)]):
        totals.update(process_sums)
    return dict(totals)


def broadcast_object_list(objects: list[Any]) -> list[Any]:
    """Return the main process's objects."""
    with exchange():
        return list(utils.broadcast_object_list(objects))


def wait_for_everyone() -> None:
    """Wait until every process is here."""
    with exchange():
        accelerate.PartialState().wait_for_everyone()


@contextlib.contextmanager
def exchange() -> Iterator[None]:
    """Communicate with all processes in the block.

    Raises InputError if one of them has stopped.
    """
    sharding.settle()
    with naming_lost_process():
        yield
