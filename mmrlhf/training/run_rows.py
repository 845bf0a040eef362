"""The training rows of a run: given in memory, or read from its dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from mmrlhf.config import FeedbackConfig, TrainConfig
from mmrlhf.datasets import Records
from mmrlhf.datasets.image_fields import row_context
from mmrlhf.facts import read_facts
from mmrlhf.records import Example, Preference
from mmrlhf.training.row_checks import KeptChecks
from mmrlhf.training.run import Run

Record = TypeVar("Record", Example, Preference)


def open_rows(
    config: TrainConfig | FeedbackConfig, run: Run, rows: Sequence[Record] | None, read: Callable[..., Records[Record]]
) -> tuple[Sequence[Record], KeptChecks | None]:
    """Return a run's rows, from its dataset unless given, and the file with their checks.

    Rows given in memory have no such file. Raises InputError if rows cannot be used, or the run was
    started with others.
    """
    kept = None
    if rows is None:
        kept = KeptChecks(run.path / "rows.json", run.add_file)
        facts = read_facts(config.facts_file) if config.facts_file else None
        rows = read(config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    run.claim_rows(rows)
    return rows, kept


def image_root(config: TrainConfig | FeedbackConfig) -> str | None:
    """Return the folder to which image paths are relative, in prompts and written files."""
    return row_context(config.dataset_name, config.image_folder).image_folder
