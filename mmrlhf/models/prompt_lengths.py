"""Count the tokens of prompts before training, from the sizes of images, without decoding them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from PIL import Image

from mmrlhf.models.device_errors import is_device_error
from mmrlhf.models.image_tokens import ImageTokens, Size, blank_image
from mmrlhf.models.images import read_image_size
from mmrlhf.models.preprocessed_images import PreprocessedImage
from mmrlhf.models.vlm import VLM
from mmrlhf.records import ImageSource, InputError, Message
from mmrlhf.text.printable import first_line

MIN_ORDINARY_SIDE, MAX_ORDINARY_ASPECT = 64, 8
"""Images with a shorter side or a larger aspect ratio are tested on the processor and the tower, as
blank images of their size: both refuse only small or narrow images."""


class PromptLengths:
    """The lengths that `VLM.build_prompts` will find, and the images that it will refuse.

    `shrunk_images` are hashes of the images with more than `max_pixels`, which the processor
    shrinks.
    """

    def __init__(self, vlm: VLM, max_pixels: int | None = None) -> None:
        self._vlm, self._max_pixels = vlm, max_pixels
        self.shrunk_images: set[int] = set()
        self._image_tokens: dict[bool, ImageTokens] = {}
        self._refusals: dict[tuple[Size, bool], str] = {}
        self._refusals_by_shape: dict[tuple, str] = {}
        self._blank_encoder: Any = None
        self._needs_processor: bool | None = None

    def count(self, messages: Sequence[Message], images: Sequence[ImageSource]) -> int:
        """Return the number of tokens of a prompt with its images.

        Raises InputError for a conversation that the chat template refuses, a control token in its
        text, a file that is no image, and an image that the processor or the tower refuses.
        """
        text = self._vlm.apply_chat_template(messages, len(images), generation_prompt=True)
        self._vlm.check_control_tokens("the prompt", text, (messages, tuple(images)))
        return self.count_rendered(text, images)

    def count_rendered(self, text: str, images: Sequence[ImageSource]) -> int:
        """Return the number of tokens of a rendered prompt with its images. Raises as `count`."""
        sizes = []
        for image in images:
            size = read_image_size(image)
            if reason := self._refusal(size, len(images)):
                raise InputError(f"image {image.name} ({size[0]} x {size[1]}) {reason}: change its size or drop the row")
            if self._max_pixels is not None and size[0] * size[1] > self._max_pixels:
                self.shrunk_images.add(hash(image))
            sizes.append(size)
        if self._needs_processor is None:
            self._needs_processor = any(
                self._count_written_out(*probe) != self._count_processed(*probe) for probe in self._probes()
            )
        return self._count_processed(text, sizes) if self._needs_processor else self._count_written_out(text, sizes)

    def _probes(self) -> list[tuple[str, list[Size]]]:
        """Return prompts with one and with two images."""
        question = [Message("user", "What is it?")]
        return [(self._vlm.apply_chat_template(question, n, generation_prompt=True), [(336, 336)] * n) for n in (1, 2)]

    def _tokens_for(self, num_images: int) -> ImageTokens:
        is_one_of_several = self._vlm.family.tiles_only_lone_images and num_images > 1
        if is_one_of_several not in self._image_tokens:
            self._image_tokens[is_one_of_several] = ImageTokens(self._vlm.encoder, num_images)
        return self._image_tokens[is_one_of_several]

    def limit(self, max_length: int) -> int:
        """Return the maximum number of tokens: `max_length`, or the model's positions if fewer."""
        max_positions = getattr(self._vlm.model.config.get_text_config(), "max_position_embeddings", None)
        return min(max_length, max_positions) if max_positions else max_length

    # ---- two ways to count ---------------------------------------------------------------------

    def _count_written_out(self, text: str, sizes: Sequence[Size]) -> int:
        """Count with the tokenizer alone; -1 if the processor's text is unknown."""
        num_added = 0
        if sizes:
            image_tokens = self._tokens_for(len(sizes))
            first_segment, *segments = text.split(self._vlm.processor.image_token)
            text = first_segment
            for size, segment in zip(sizes, segments, strict=True):
                written, num_more = image_tokens.placeholder(size)
                if written is None:
                    return -1
                num_added += num_more
                text += written + segment
        return len(self._vlm.tokenize_expanded(text)) + num_added

    def _count_processed(self, text: str, sizes: Sequence[Size]) -> int:
        """Count with the processor, which processes each kind of image once, as a blank one."""
        if self._blank_encoder is None:
            self._blank_encoder = copy.copy(self._vlm.encoder)
            self._blank_encoder.processor = copy.copy(self._vlm.processor)
            self._blank_encoder.processor.image_processor = _RememberingImageProcessor(self._vlm.processor.image_processor)
        image_tokens = self._tokens_for(len(sizes))
        images = [blank_image(image_tokens.representative(size)) for size in sizes]
        try:
            batch, _ = self._blank_encoder.process([text], [images])
        except ValueError as error:
            raise InputError(f"{self._vlm.name}: its processor refuses a prompt with {len(images)} images ({error})") from None
        return int(batch["input_ids"].shape[1])

    # ---- refused images ------------------------------------------------------------------------

    def _refusal(self, size: Size, num_images: int) -> str:
        """Return why images of a size cannot be encoded, or ""; only unusual sizes are tested."""
        shorter, longer = sorted(size)
        if shorter >= MIN_ORDINARY_SIDE and longer <= MAX_ORDINARY_ASPECT * shorter:
            return ""
        key = (size, self._vlm.family.tiles_only_lone_images and num_images > 1)
        if key not in self._refusals:
            self._refusals[key] = self._try(size, num_images)
        return self._refusals[key]

    def _try(self, size: Size, num_images: int) -> str:
        try:
            preprocessed = self._vlm.encoder.preprocess(blank_image(size), num_images, "of a row")
        except InputError as error:
            reason = str(error).partition("(")[2].partition("(")[2].rpartition(")")[0] or str(error)
            return f"is refused by the model's processor ({reason})"
        if preprocessed.shape not in self._refusals_by_shape:
            self._refusals_by_shape[preprocessed.shape] = self._try_tower(preprocessed)
        return self._refusals_by_shape[preprocessed.shape]

    def _try_tower(self, preprocessed: PreprocessedImage) -> str:
        try:
            self._vlm.encoder.run_tower([preprocessed])
        except (InputError, ValueError, RuntimeError, IndexError) as error:
            if is_device_error(error):
                raise
            return f"is refused by the model's vision tower ({first_line(error)})"
        return ""


class _RememberingImageProcessor:
    """An image processor that processes images of the same sizes only once."""

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor
        self._results: dict[tuple, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)

    def __call__(self, images: Any, **options: Any) -> Any:
        key = _sizes_in(images), repr(sorted(options.items(), key=lambda item: item[0]))
        if key not in self._results:
            self._results[key] = self._image_processor(images, **options)
        return copy.copy(self._results[key])


def _sizes_in(images: Any) -> tuple:
    """Return the sizes of images in nested lists."""
    return images.size if isinstance(images, Image.Image) else tuple(map(_sizes_in, images))
