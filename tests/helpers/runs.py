"""A run directory of a small configuration, and runs that stop in their middle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmrlhf.training.run import Run


@dataclass(frozen=True)
class FakeConfig:
    """A flat configuration like that of a stage; a resumed run may change some of its settings."""

    output_dir: str = "here"
    learning_rate: float = 1e-5
    max_steps: int = 10
    seed: int = 0
    facts: str | None = None
    logging_steps: int = 10
    save_steps: int = 100
    save_total_limit: int = 2
    allow_change: str | None = None
    report_to: str | None = None
    max_length: int = 2048
    micro_batch_tokens: int = 16384


def open_run(path: Path, **settings: object) -> Run:
    return Run(str(path), FakeConfig(**settings))  # type: ignore[arg-type]


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """Stop the run of the block once it has the checkpoint after a step."""
    save = Run.save_checkpoint

    def save_and_stop(run: Run, saved_step: int, *rest: object) -> None:
        save(run, saved_step, *rest)  # type: ignore[arg-type]
        if saved_step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save_checkpoint", save_and_stop)
        yield


class Killed(Exception):
    """What ends a run in `killed_at`; nothing in a stage catches it."""


@contextmanager
def killed_at(owner: object, name: str, call: int) -> Iterator[None]:
    """End the run of the block at a call of a function or method, counted from 1."""
    real, calls = getattr(owner, name), []

    def killed(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, killed)
        yield
