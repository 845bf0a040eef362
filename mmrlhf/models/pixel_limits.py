"""Limit the pixels of images through the settings of each family's processor.

    pixels      `size` of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and relatives: shortest_edge and
                longest_edge are the least and the most pixels of a resized image
    edge        `size` with longest_edge alone (Pixtral, Mistral 3, Idefics3, SmolVLM): the longer
                side is at most the square root of the limit, in whole tiles if there are any
    pinpoints   `image_grid_pinpoints` (LLaVA-NeXT, LLaVA-OneVision): larger canvases are left out
    patches     `max_patches` (InternVL): as many tiles as fit
    tokens      `max_soft_tokens` (Gemma 4): the largest of its numbers that fits

Other processors give every image the same size, or a size on which the model's weights depend.
"""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedModel

from mmrlhf.config import PixelConfig
from mmrlhf.records import InputError

GEMMA4_SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""The numbers of image tokens that Gemma 4's processor accepts."""


def limit_pixels(model: PreTrainedModel, processor: Any, limits: PixelConfig, name: str) -> None:
    """Change a processor's settings to limit the pixels of images.

    Raises InputError if the processor has no such setting, or none that is small enough.
    """
    if limits.min_pixels is None and limits.max_pixels is None:
        return
    image_processor = processor.image_processor
    size = {key: value for key, value in dict(image_processor.size or {}).items() if value is not None}
    if {"shortest_edge", "longest_edge"} <= size.keys() and hasattr(image_processor, "merge_size"):
        smallest, largest = limits.min_pixels or size["shortest_edge"], limits.max_pixels or size["longest_edge"]
        if smallest > largest:
            raise InputError(f"min_pixels {smallest} is over max_pixels {largest} of model {name}: give both, the larger as max")
        image_processor.size = type(image_processor.size)(**{**size, "shortest_edge": smallest, "longest_edge": largest})
        return
    if limits.min_pixels is not None or limits.max_pixels is None:
        raise InputError(f"min_pixels: the processor of model {name} has no minimum number of pixels: leave it out")
    if set(size) == {"longest_edge"}:
        tile = _tile_side(image_processor)
        edge = math.isqrt(limits.max_pixels) // tile * tile
        _require(edge, f"{tile} x {tile}", limits, name)
        image_processor.size = type(image_processor.size)(longest_edge=min(edge, size["longest_edge"]))
    elif pinpoints := getattr(image_processor, "image_grid_pinpoints", None):
        kept = [point for point in pinpoints if math.prod(point) <= limits.max_pixels]
        _require(len(kept), " x ".join(map(str, min(pinpoints, key=math.prod))), limits, name)
        # The model unpads its features by the same list.
        image_processor.image_grid_pinpoints = model.config.image_grid_pinpoints = kept
    elif getattr(image_processor, "crop_to_patches", False):
        num_patches = limits.max_pixels // (size["height"] * size["width"])
        _require(num_patches, f"{size['height']} x {size['width']}", limits, name)
        image_processor.max_patches = min(num_patches, image_processor.max_patches)
    elif hasattr(image_processor, "max_soft_tokens"):
        pixels_per_token = (image_processor.patch_size * image_processor.pooling_kernel_size) ** 2
        fitting = [tokens for tokens in GEMMA4_SOFT_TOKENS if tokens * pixels_per_token <= limits.max_pixels]
        _require(len(fitting), f"{GEMMA4_SOFT_TOKENS[0] * pixels_per_token:,} pixels", limits, name)
        image_processor.max_soft_tokens = min(fitting[-1], image_processor.max_soft_tokens)
    else:
        raise InputError(f"max_pixels: the processor of model {name} has no limit to lower, only a fixed size: leave it out")


def _tile_side(image_processor: Any) -> int:
    """Return the side of the tiles that an image is cut into, 1 if it is not cut."""
    tile_size = getattr(image_processor, "max_image_size", None)
    return int(dict(tile_size)["longest_edge"]) if tile_size and getattr(image_processor, "do_image_splitting", False) else 1


def _require(value: int, smallest: str, limits: PixelConfig, name: str) -> None:
    if value < 1:
        raise InputError(f"max_pixels {limits.max_pixels}: model {name} shows an image with at least {smallest}: raise it")
