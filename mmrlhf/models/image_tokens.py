"""Count the tokens that a processor writes for an image, from its size alone.

Most processors of transformers compute that number themselves (`_get_num_multimodal_tokens`), for
servers that plan before they preprocess. It is used if it agrees with the processor on blank images
of `PROBE_SIZES`. Otherwise blank images are processed: one per layout of tiles
(`get_number_of_image_patches`) if that determines the tokens, else one per size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from PIL import Image

from mmrlhf.models.vision_encoder import Encoder
from mmrlhf.records import InputError
from mmrlhf.text.printable import first_line

Size = tuple[int, int]
"""Width and height in pixels."""
PROBE_SIZES: tuple[Size, ...] = ((336, 336), (640, 480), (480, 640), (1500, 400), (400, 1500), (1333, 1000), (96, 64), (60, 112))
"""Sizes of the blank images on which a processor's own count is compared with its text."""


def blank_image(size: Size) -> Image.Image:
    """Return a grey image; the number of an image's tokens does not depend on its pixels."""
    return Image.new("RGB", size, (128, 128, 128))


class ImageTokens:
    """The text and the number of tokens that a processor writes for an image, by its size.

    `num_images` is the number of images in the prompt: some families tile only lone images.
    """

    def __init__(self, encoder: Encoder, num_images: int) -> None:
        self._encoder, self._num_images = encoder, num_images
        self._processor = encoder.processor
        self._texts: dict[Size, str | None] = {}
        self._predictions: dict[Size, int] = {}
        self._representatives: dict[Hashable, Size] = {}
        self._probed_texts = self._probe()
        self._base_size = min(self._probed_texts, key=lambda size: len(self._probed_texts[size] or ""), default=None)
        self._can_predict = self._agrees_with_predictions()
        self._key = self._choose_key()

    def representative(self, size: Size) -> Size:
        """Return a representative size, the same for all sizes whose images have the same tokens.

        Raises InputError if the processor refuses an image of that size.
        """
        return self._representatives.setdefault(self._key(size), size)

    def placeholder(self, size: Size) -> tuple[str | None, int]:
        """Return a text to write for an image, and the number of its tokens beyond that text.

        The text begins and ends like the processor's text for the image's placeholder; it is None
        if the processor does not report that text. Raises InputError if it refuses the image.
        """
        if self._can_predict and self._base_size is not None:
            return self._probed_texts[self._base_size], self._predict(size) - self._predict(self._base_size)
        size = self.representative(size)
        if size not in self._texts:
            self._texts[size] = self._process(size)
        return self._texts[size], 0

    def _process(self, size: Size) -> str | None:
        return self._encoder.preprocess(blank_image(size), self._num_images, "of a row").placeholder_text

    def _probe(self) -> dict[Size, str | None]:
        """Return the processor's text for blank images, without the sizes that it refuses."""
        texts = {}
        for size in PROBE_SIZES:
            try:
                texts[size] = self._process(size)
            except InputError:
                continue
        return texts

    # ---- what decides --------------------------------------------------------------------------

    def _predict(self, size: Size) -> int:
        """Return the processor's own count. Raises InputError if it refuses the size."""
        if size not in self._predictions:
            width, height = size
            try:
                counts = self._processor._get_num_multimodal_tokens([[height, width]])
            except (ValueError, ZeroDivisionError) as error:
                raise _refused(size, error) from None
            self._predictions[size] = int(counts["num_image_tokens"][0])
        return self._predictions[size]

    def _tile_layout(self, size: Size) -> Hashable:
        width, height = size
        try:
            layout = self._processor.image_processor.get_number_of_image_patches(height, width, {})
        except (ValueError, ZeroDivisionError) as error:
            raise _refused(size, error) from None
        return tuple(layout) if isinstance(layout, list | tuple) else layout

    def _agrees_with_predictions(self) -> bool:
        """Return whether predicted and written numbers of tokens differ by a constant."""
        if not hasattr(self._processor, "_get_num_multimodal_tokens") or None in self._probed_texts.values():
            return False
        gaps = {self._count(text) - self._predict(size) for size, text in self._probed_texts.items()}
        return len(gaps) == 1

    def _count(self, text: str | None) -> int:
        return len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _choose_key(self) -> Callable[[Size], Hashable]:
        """Return a function of an image's size that determines the processor's text for it."""
        if self._can_predict:
            return self._predict
        if hasattr(self._processor.image_processor, "get_number_of_image_patches") and self._is_decided_by(self._tile_layout):
            return self._tile_layout
        has_own_count = hasattr(self._processor, "_get_num_multimodal_tokens")
        if not has_own_count and len(self._probed_texts) > 1 and len(set(self._probed_texts.values())) == 1:
            return lambda size: None  # the same for every size
        return lambda size: size

    def _is_decided_by(self, key: Callable[[Size], Hashable]) -> bool:
        texts_by_key: dict[Hashable, Any] = {}
        return all(texts_by_key.setdefault(key(size), text) == text for size, text in self._probed_texts.items())


def _refused(size: Size, error: Exception) -> InputError:
    reason = first_line(error)
    return InputError(
        f"image of a row ({size[0]} x {size[1]}) is refused by the model's processor ({reason}): change its size or drop the row"
    )
