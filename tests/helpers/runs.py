"""A run directory of a small configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
