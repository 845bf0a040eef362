"""Load a model in the processes of a machine in turns, so that its main memory suffices.

A process reads all of a base before it moves it to its GPU or keeps its shard of it. Eight
processes with a base of 145 GB each would take more than a terabyte at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import psutil
import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForImageTextToText

from mmrlhf.models.lost_process import naming_lost_process
from mmrlhf.models.processes import gather_object

MEMORY_SHARE = 0.8
"""Share of the available memory that whole models may take."""


def models_at_a_time(model_bytes: int, available_bytes: int) -> int:
    """Return how many copies of a model fit into main memory, at least 1."""
    return max(1, int(MEMORY_SHARE * available_bytes / model_bytes))


@contextlib.contextmanager
def loading_turn(name: str, dtype: torch.dtype) -> Iterator[None]:
    """Wait until this process may load a model; all processes enter, and leave after the last turn.

    The number of processes per turn is the number of copies that fit into the machine with the
    least memory. If loading fails, the others find out in their next exchange.
    """
    room = min(gather_object([models_at_a_time(_model_bytes(name, dtype), psutil.virtual_memory().available)]))
    turn = int(os.environ.get("LOCAL_RANK", "0")) // room
    num_turns = 1 + max(gather_object([turn]))
    _wait(turn)
    yield
    _wait(num_turns - turn)


def _wait(num_turns: int) -> None:
    """Wait for all processes, some of which have no sharded layers yet that they could gather."""
    with naming_lost_process():
        for _ in range(num_turns):
            PartialState().wait_for_everyone()


UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError, AttributeError)
"""Exceptions of transformers for a model that it cannot read."""


def _model_bytes(name: str, dtype: torch.dtype) -> int:
    """Return the size of a model's weights, or 1 if it cannot be read; loading reports that."""
    try:
        config = AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
    except UNREADABLE:
        return 1
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize
