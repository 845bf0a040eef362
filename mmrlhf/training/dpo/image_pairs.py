"""Other pictures for a row, about which its answer is worse (Wang et al. 2024, mDPO)."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrlhf.config.dpo import DPOConfig
from mmrlhf.models.images import open_image
from mmrlhf.records import ImageSource, Preference

CROP_AREA = (0.01, 0.2)
"""Share of a picture's area that a crop shows: mDPO's."""
CROP_ASPECT = (3 / 4, 4 / 3)
"""Width of a crop relative to its height, before it is stretched to the picture's size."""
PREFIX = "other_image."
"""Start of the names of pictures in a saved step."""
MAX_TRIES = 1000
"""Number of rows to try for one with other pictures."""


def rejected_images(config: DPOConfig, preferences: Sequence[Preference], row: Preference) -> tuple[ImageSource, ...] | None:
    """Return other pictures for a row, always the same; None if there are none or it has none.

    `preferences` are all rows, from which `other` takes one with the same number of pictures.
    Raises InputError for a picture that cannot be opened.
    """
    if config.image_pairs == "none" or not row.images:
        return None
    rng = np.random.default_rng([config.seed, 23, zlib.crc32(row.id.encode("utf-8", "replace"))])
    if config.image_pairs == "crop":
        return tuple(_crop(image, rng) for image in row.images)
    start = int(rng.integers(len(preferences)))
    for offset in range(min(len(preferences), MAX_TRIES)):
        images = preferences[(start + offset) % len(preferences)].images
        if len(images) == len(row.images) and not set(images) & set(row.images):
            return images
    return None


def images_to_tensors(images_by_row: Sequence[tuple[ImageSource, ...] | None]) -> dict[str, Tensor]:
    """Return other pictures as tensors of their encoded bytes, to save a step with them."""
    return {
        f"{PREFIX}{row}.{number}": torch.frombuffer(bytearray(image.read()), dtype=torch.uint8)
        for row, images in enumerate(images_by_row)
        for number, image in enumerate(images or ())
    }


def images_from_tensors(tensors: Mapping[str, Tensor], num_rows: int) -> list[tuple[ImageSource, ...] | None]:
    """Return the other pictures of each row of a saved step, or None; other names are ignored."""
    images: list[list[ImageSource]] = [[] for _ in range(num_rows)]
    names = [name.removeprefix(PREFIX).split(".") for name in tensors if name.startswith(PREFIX)]
    for row, number in sorted((int(row), int(number)) for row, number in names):
        images[row].append(ImageSource(data=bytes(tensors[f"{PREFIX}{row}.{number}"].numpy().tobytes())))
    return [tuple(row_images) or None for row_images in images]


def _crop(source: ImageSource, rng: np.random.Generator) -> ImageSource:
    """Return a random part of a picture, stretched to the picture's size."""
    image = open_image(source)
    area = rng.uniform(*CROP_AREA) * image.width * image.height
    aspect = math.exp(rng.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])))
    width = min(image.width, max(1, round(math.sqrt(area * aspect))))
    height = min(image.height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    part = image.resize(image.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    file = io.BytesIO()
    part.save(file, "PNG", compress_level=1)
    return ImageSource(data=file.getvalue())
