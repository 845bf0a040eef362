"""What follows a command that ended: a page, and its last lines."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmrlhf.config import PPOConfig, RFTConfig
from mmrlhf.records import ImageSource, InputError
from mmrlhf.report.closing import closing_text


def print_closing(name: str, config: Any) -> None:
    """Print the files that a command wrote and the next command, on the main process.

    First write the page about the claims of the latest answers, if the run verified any.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    if isinstance(config, PPOConfig | RFTConfig):
        from mmrlhf.report.claims import write_claims_page

        if page := write_claims_page(Path(config.output_dir), lambda ids: _first_images(config, ids)):
            print(f"{page} shows every claim of the latest answers with its verdicts")
    if text := closing_text(name, config):
        print(text)


def _first_images(config: PPOConfig | RFTConfig, ids: Collection[str]) -> dict[str, ImageSource]:
    """Return the first image of each row with one of these ids, none if the dataset is gone."""
    from mmrlhf.datasets import read_examples

    try:
        examples = read_examples(config.dataset_name, config.dataset_train_split, config.image_folder)
        return {example.id: example.images[0] for example in examples if example.id in ids and example.images}
    except InputError:
        return {}
