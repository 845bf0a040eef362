"""Batch preprocessed images by shape for the tower, and divide its output among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrlhf.models.image_features import ImageFeatures
from mmrlhf.records import InputError


@dataclass(frozen=True)
class PreprocessedImage:
    """An image, ready for the tower."""

    key: str
    name: str
    tensors: dict[str, Tensor]
    """The tower's inputs for `num_copies` copies of the image."""
    num_copies: int
    """2 for an image that the processor treats as one of several, else 1."""
    num_placeholders: int
    """Number of image tokens of one copy."""
    placeholder_text: str | None
    grid_thw: Tensor | None
    ready_event: torch.cuda.Event | None = None
    """Recorded on the side stream that moves `tensors` to a GPU."""

    @property
    def shape(self) -> tuple:
        """Return the key of images that fit into one batch."""
        return tuple((k, tuple(t.shape[1:])) for k, t in sorted(self.tensors.items()))

    @property
    def num_elements(self) -> int:
        """Number of pixel values."""
        return self.tensors["pixel_values"].numel()

    @property
    def num_bytes(self) -> int:
        """Size of the tower's inputs in memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def layout(self) -> ImageFeatures:
        """The information about the image that a prompt needs, without its features."""
        return ImageFeatures([], False, self.placeholder_text, self.grid_thw)

    def to(self, device: torch.device) -> PreprocessedImage:
        """Copy to a device."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})


def wait_until_ready(image: PreprocessedImage) -> None:
    """Make the current stream wait for an image's tensors, and keep them allocated."""
    if image.ready_event is None:
        return
    current_stream = torch.cuda.current_stream()
    current_stream.wait_event(image.ready_event)
    for tensor in image.tensors.values():
        # The allocator only knows the stream that made a tensor. Without this, it could reuse the
        # memory on that stream while the current one still reads it.
        tensor.record_stream(current_stream)


def split_by_image(batch: list[PreprocessedImage], levels: list[list[Tensor]], *, is_stacked: bool) -> list[ImageFeatures]:
    """Divide the tower's units among a batch's images, by the processor's image token counts.

    Raises InputError if tower and processor disagree on that number.
    """
    num_units = len(levels[0])
    features, position = [], 0
    for image in batch:
        start, remaining = position, image.num_placeholders * image.num_copies
        while remaining > 0 and position < num_units:
            remaining -= len(levels[0][position])
            position += 1
        if remaining != 0:
            raise InputError(
                f"image {image.name}: the processor writes {image.num_placeholders} image tokens for it and the model's tower "
                "gives another number; load model and processor from one checkpoint"
            )
        end = start + (position - start) // image.num_copies  # the first copy's units
        # Clone: a view would keep the batch's full output in memory.
        image_levels = [[unit.clone() for unit in level[start:end]] for level in levels]
        features.append(ImageFeatures(image_levels, is_stacked, image.placeholder_text, image.grid_thw))
    if position != num_units:
        raise InputError(
            f"image {batch[0].name}: the model's tower gives more features than the processor writes image tokens; "
            "load model and processor from one checkpoint"
        )
    return features


def batch_by_shape(preprocessed: Iterable[PreprocessedImage], max_elements: int) -> Iterator[list[PreprocessedImage]]:
    """Yield batches of images of one shape, with at most `max_elements` or a single image.

    At most twice `max_elements` are held back for more images of their shape; beyond that, the
    largest batch is yielded.
    """
    pending: dict[tuple, list[PreprocessedImage]] = {}

    def num_elements(group: list[PreprocessedImage]) -> int:
        return sum(p.num_elements for p in group)

    for image in preprocessed:
        group = pending.setdefault(image.shape, [])
        group.append(image)
        if num_elements(group) + image.num_elements > max_elements:
            yield pending.pop(image.shape)
        elif sum(map(num_elements, pending.values())) > 2 * max_elements:
            yield pending.pop(max(pending, key=lambda shape: num_elements(pending[shape])))
    yield from pending.values()
