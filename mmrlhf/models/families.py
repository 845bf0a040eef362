"""The quirks of model families, in one table.

Most differences follow from a model's configuration and methods (tiles, deepstack features, rotary
axes, windows, soft caps) and need no entry. The table holds the others. A family that is not listed
has no known quirks; a run's self-check (`engine.prefill.is_verified`) notices unknown ones.

Adding a family: load it, run `python -m tests.models.test_families` with a builder for it in
`tests/helpers/tiny_models.py`, and add an entry here if the table shows a difference.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """Quirks of one `model_type`; the defaults describe a family without any."""

    uses_cross_attention: bool = False
    """Image features enter through cross-attention layers as one sequence of states per prompt,
    instead of replacing placeholder tokens. Answers to a prompt cannot share a sequence."""
    tiles_only_lone_images: bool = False
    """The processor cuts an image into tiles only if it is its prompt's only image. The same image
    therefore has other features in a prompt with several."""
    first_position_id: int = 0
    """Position id of a prompt's first token."""
    answer_token_type_id: int = 0
    """Value of `token_type_ids` on answer tokens."""
    has_one_token_per_patch: bool = False
    """Whether an image has one placeholder per patch of the tower. `mmrlhf plan` then counts
    patches if the configuration does not give the number of image tokens."""
    max_tiles: int = 1
    """The largest number of tiles of an image, the overview included, if the model's configuration
    does not list sizes (`image_grid_pinpoints`). Only `mmrlhf plan` reads it."""


FAMILIES = {
    "llava": Family(has_one_token_per_patch=True),
    "internvl": Family(max_tiles=13),
    "llava_onevision": Family(tiles_only_lone_images=True, has_one_token_per_patch=True),
    "mllama": Family(uses_cross_attention=True),
    # Token type 0 is the prompt, which attends in both directions; 1 is the answer.
    "paligemma": Family(first_position_id=1, answer_token_type_id=1),
    "qianfan_ocr": Family(max_tiles=13),
}
"""Quirks by `config.model_type`."""


def family_of(config: PretrainedConfig) -> Family:
    """Return the quirks of the model with this configuration."""
    return FAMILIES.get(config.model_type, Family())
