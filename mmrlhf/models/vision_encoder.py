"""Encode each distinct image once.

Threads decode and preprocess images while the frozen tower runs on earlier ones. The model's own
processor does the preprocessing, on the GPU if the model is on one. There, images with tensors of
the same shape go through the tower together. The processor also reports its text for an image's
placeholder (`ImageFeatures.placeholder_text`), so a prompt about a known image needs no pixels. The
features in the cache are the base's. With an adapter that changes the tower or the projector,
images are encoded in each forward pass, from pixels that stay in memory.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from typing import Any

import PIL
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel

from mmrlhf.models.control_tokens import MARKED
from mmrlhf.models.device_errors import is_device_error
from mmrlhf.models.families import family_of
from mmrlhf.models.fingerprints import full_fingerprint, language_parameter_prefixes
from mmrlhf.models.image_features import FeatureCache, ImageFeatures, MemoryTier
from mmrlhf.models.images import open_image
from mmrlhf.models.lora_layers import active_adapter, are_changed
from mmrlhf.models.prefetch import map_ahead, num_cores
from mmrlhf.models.preprocessed_images import PreprocessedImage, batch_by_shape, split_by_image, wait_until_ready
from mmrlhf.records import ImageSource, InputError
from mmrlhf.text.printable import first_line

MAX_ELEMENTS_GPU = 1 << 23
"""Maximum elements of pixel tensors per pass of the tower on a GPU: 24 images of 336 x 336. Larger
batches would leave nothing to preprocess while the tower runs."""
MAX_ELEMENTS_CPU = 1 << 19
"""The same per CPU core, where batching only helps small images: 18 of 96 x 96, 1 of 336 x 336."""
IMAGES_PER_WORKER = 16
"""Maximum number of images that a core takes at a time."""
MAX_GPU_WORKERS = 8
"""Threads that preprocess for a GPU."""
NON_VISION_CONFIG = ("text_config", "architectures", "dtype", "transformers_version", "_name_or_path")
"""Entries of a model's configuration that do not affect image features."""
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "text_replacement_offsets")
"""Outputs of a processor that belong to the text."""
MissingImages = dict[str, tuple[ImageSource, int]]
"""Images by key, each with the number of images in its prompt."""
MissingImage = tuple[str, tuple[ImageSource, int]]
"""An item of `MissingImages`."""


class Encoder:
    """A model's tower and projector with their cache.

    `one_image_text` and `two_image_text` are prompts with one and two placeholders, because a
    processor needs text with its images.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, cache: FeatureCache, one_image_text: str, two_image_text: str):
        self.model, self.processor, self.cache = model, processor, cache
        self._prompt_texts = {1: one_image_text, 2: two_image_text}
        decoder_prefixes = language_parameter_prefixes(model)
        self._named_vision_parameters = [(n, p) for n, p in model.named_parameters() if not n.startswith(decoder_prefixes)]
        self.vision_parameters = [p for _, p in self._named_vision_parameters]
        self.lora_layers: list[BaseTunerLayer] = []  # those of the tower and the projector, which `Adapters` sets
        self.family = family_of(model.config)
        self._pixels = MemoryTier[PreprocessedImage](torch.device("cpu"), cache.max_bytes)
        self._fingerprint = ""
        self._lock = threading.Lock()  # a caller waits for images that another one is encoding

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the features, except the image."""
        if not self._fingerprint:
            image_processor = self.processor.image_processor
            vision_config = {k: v for k, v in self.model.config.to_dict().items() if k not in NON_VISION_CONFIG}
            processor_settings = {
                k: v for k, v in vars(self.processor).items() if isinstance(v, int | str | bool) and k != "chat_template"
            }
            # The order is part of the hash, and so of the keys of caches on disk.
            parts = [
                full_fingerprint(self._named_vision_parameters),
                type(self.model).__name__,
                vision_config,
                metadata.version("torchvision"),
                type(self.processor).__name__,
                type(image_processor).__name__,
                image_processor.to_json_string(),
                self.dtype,
                self.model.device.type,
                PIL.__version__,
                transformers.__version__,
                torch.__version__.split("+")[0],
                processor_settings,
            ]
            self._fingerprint = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:20]
        return self._fingerprint

    @cached_property
    def _side_stream(self) -> torch.cuda.Stream | None:
        """On a GPU, the stream that moves images to it."""
        return torch.cuda.Stream(self.model.device) if self.model.device.type == "cuda" else None

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_parameters[0].dtype

    def get_features(self, image_rows: Sequence[tuple[ImageSource, ...]]) -> list[tuple[ImageFeatures, ...]]:
        """Return the base's features of each row's images, encoding those that the cache lacks."""
        keyed_rows = self._keyed_rows(image_rows)
        with self._lock:
            features_by_key: dict[str, ImageFeatures] = {}
            missing: MissingImages = {}
            for row in keyed_rows:
                for key, source in row:
                    if key in features_by_key or key in missing:
                        continue
                    if (cached := self.cache.get(key)) is not None:
                        features_by_key[key] = cached
                    else:
                        missing[key] = source, len(row)
            features_by_key |= self.encode(missing)
        return [tuple(features_by_key[key] for key, _ in row) for row in keyed_rows]

    def encode(self, missing: MissingImages) -> dict[str, ImageFeatures]:
        """Encode images, put them into the cache and return them by key.

        Raises RuntimeError if the tower or the projector is trainable, InputError for an image that
        cannot be read or that the processor refuses.
        """
        if not missing:
            return {}
        if any(p.requires_grad for p in self.vision_parameters):
            raise RuntimeError(
                "the vision tower or the projector is trainable: features of a tower that changes cannot be cached; "
                "freeze both (requires_grad_(False))"
            )
        encode = self._encode_gpu if self.model.device.type == "cuda" else self._encode_cpu
        with active_adapter(self.lora_layers, None):
            return self.cache.encode_missing(list(missing), lambda keys: encode({key: missing[key] for key in keys}))

    def get_prompt_features(self, image_rows: Sequence[tuple[ImageSource, ...]]) -> list[tuple[ImageFeatures, ...]]:
        """Return the features that prompts keep of their images: the base's.

        If adapters change the tower or the projector, each role has its own features
        (`get_active_features`), and prompts keep only the images' layout.
        """
        if not self.lora_layers:
            return self.get_features(image_rows)
        return [tuple(image.layout for image in row) for row in self._get_pixels(image_rows)]

    def get_active_features(self, image_rows: Sequence[tuple[ImageSource, ...]]) -> list[tuple[ImageFeatures, ...]]:
        """Return each row's image features under the active adapter.

        They are the base's, from the cache, unless the adapter changes the tower or the projector.
        Then they are computed here, each image's once, with gradients if these are enabled.
        """
        if not are_changed(self.lora_layers):
            return self.get_features(image_rows)
        pixel_rows = self._get_pixels(image_rows)
        distinct = {image.key: image for row in pixel_rows for image in row}
        max_elements = MAX_ELEMENTS_GPU if self.model.device.type == "cuda" else MAX_ELEMENTS_CPU
        features_by_key: dict[str, ImageFeatures] = {}
        for batch in batch_by_shape(distinct.values(), max_elements):
            features_by_key |= self._encode_batch(batch)
        self.cache.counters.encodes += len(distinct)
        return [tuple(features_by_key[image.key] for image in row) for row in pixel_rows]

    def _get_pixels(self, image_rows: Sequence[tuple[ImageSource, ...]]) -> list[tuple[PreprocessedImage, ...]]:
        """Return each row's images as inputs of the tower, from memory if they are there."""
        keyed_rows = self._keyed_rows(image_rows)
        with self._lock:
            images: dict[str, PreprocessedImage] = {}
            missing: MissingImages = {}
            for key, source, num_images in ((key, source, len(row)) for row in keyed_rows for key, source in row):
                if (known := self._pixels.get(key)) is not None:
                    images[key] = known
                else:
                    missing[key] = source, num_images
            workers = min(MAX_GPU_WORKERS, num_cores())
            for image in map_ahead(workers, lambda item: self._preprocess(*item), list(missing.items())) if missing else ():
                images[image.key] = image
                self._pixels.put(image.key, image)
        return [tuple(images[key] for key, _ in row) for row in keyed_rows]

    def _keyed_rows(self, image_rows: Sequence[tuple[ImageSource, ...]]) -> list[list[tuple[str, ImageSource]]]:
        """Return each row's images with their keys."""
        pinned_rows = [[source.pinned() for source in row] for row in image_rows]
        return [[(self.feature_key(source, len(row)), source) for source in row] for row in pinned_rows]

    def feature_key(self, source: ImageSource, num_images: int) -> str:
        """Return the cache key of an image in a prompt with `num_images` images."""
        suffix = "-several" if self.family.tiles_only_lone_images and num_images > 1 else ""
        return f"{self.fingerprint}/{source.key}{suffix}"

    # ---- from a file to features ---------------------------------------------------------------

    def _encode_cpu(self, missing: MissingImages) -> Iterator[tuple[str, ImageFeatures]]:
        """Encode on a CPU: each core takes images from their files to their features.

        Giving each core its own images is faster than sharing one image's matrix products.
        """
        items, num_workers = list(missing.items()), num_cores()
        # Use as few rounds as IMAGES_PER_WORKER allows, in equal chunks: all workers end together.
        num_rounds = math.ceil(len(items) / (IMAGES_PER_WORKER * num_workers))
        chunk_size = math.ceil(len(items) / (num_rounds * num_workers))

        def encode_chunk(chunk: list[MissingImage]) -> list[tuple[str, ImageFeatures]]:
            return [
                encoded
                for batch in batch_by_shape((self._preprocess(*item) for item in chunk), MAX_ELEMENTS_CPU)
                for encoded in self._encode_batch(batch)
            ]

        for encoded_chunk in map_ahead(
            num_workers, encode_chunk, [items[i : i + chunk_size] for i in range(0, len(items), chunk_size)]
        ):
            # Small features among a worker's temporary memory leave gaps that are never returned.
            yield from ((key, features.clone()) for key, features in encoded_chunk)

    def _encode_gpu(self, missing: MissingImages) -> Iterator[tuple[str, ImageFeatures]]:
        """Encode on a GPU in large batches.

        Meanwhile, threads prepare the next images, and a side stream moves them to the GPU. Tests
        call this on a CPU.
        """
        side_stream = self._side_stream

        def preprocess(item: MissingImage) -> PreprocessedImage:
            if side_stream is None:
                return self._preprocess(*item)
            with torch.cuda.stream(side_stream):
                image = self._preprocess(*item)
                device_tensors = {k: self._on_device(t) for k, t in image.tensors.items()}
                return replace(image, tensors=device_tensors, ready_event=side_stream.record_event())

        preprocessed = map_ahead(min(MAX_GPU_WORKERS, num_cores()), preprocess, list(missing.items()))
        for batch in batch_by_shape(preprocessed, MAX_ELEMENTS_GPU):
            yield from self._encode_batch(batch)

    def _encode_batch(self, batch: list[PreprocessedImage]) -> list[tuple[str, ImageFeatures]]:
        """Return a batch's features with their keys; in halves if the GPU runs out of memory.

        Raises InputError, naming the image, if the tower refuses one.
        """
        try:
            return list(zip((p.key for p in batch), self.run_tower(batch), strict=True))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            print(f"note: out of GPU memory: going on with {len(batch) // 2} images at a time in the tower")
        except Exception as error:  # for an image of one patch, for example
            if isinstance(error, InputError) or is_device_error(error):
                raise
            if len(batch) == 1:
                reason = first_line(error)
                raise InputError(
                    f"image {batch[0].name} is refused by the model's vision tower ({reason}): change its size or drop the row"
                ) from None
        half = len(batch) // 2  # one by one, the image that is refused can be named
        return self._encode_batch(batch[:half]) + self._encode_batch(batch[half:])

    def _preprocess(self, key: str, source_and_count: tuple[ImageSource, int]) -> PreprocessedImage:
        """Open an image and run the processor on it. Raises InputError if either refuses it."""
        source, num_images = source_and_count
        return self.preprocess(open_image(source), num_images, source.name, key)

    def preprocess(self, image: Image, num_images: int, name: str, key: str = "") -> PreprocessedImage:
        """Run the processor on an image of a prompt with `num_images`. Raises InputError."""
        # One of several images is preprocessed as the first of two copies of itself, because the
        # processor treats it differently from a single image.
        num_copies = 2 if self.family.tiles_only_lone_images and num_images > 1 else 1
        inputs = [self._prompt_texts[num_copies]], [[image] * num_copies]
        try:
            try:
                batch, texts = self.process(*inputs, offsets=True)
            except torch.OutOfMemoryError:  # on a GPU; main memory has more room
                torch.cuda.empty_cache()
                batch, texts = self.process(*inputs, offsets=True, on_cpu=True)
        except Exception as error:  # for a strip of 5,000 x 1, or because a setting is missing
            if is_device_error(error):
                raise
            reason = first_line(error)
            width, height = image.size
            advice = "complete processor_config.json" if isinstance(error, TypeError) else "change its size or drop the row"
            raise InputError(
                f"image {name} ({width} x {height}) is refused by the model's processor ({reason}): {advice}"
            ) from None
        tensors = {k: batch[k] for k in self._tower_input_names() if k in batch}
        num_placeholders = int((batch["input_ids"] == self.model.config.image_token_id).sum()) // num_copies
        grid_thw = batch["image_grid_thw"].cpu() if "image_grid_thw" in batch else None
        return PreprocessedImage(key, name, tensors, num_copies, num_placeholders, texts[0][0] if texts else None, grid_thw)

    def process(
        self, texts: list[str], images: list[list[Any]], *, offsets: bool = False, on_cpu: bool = False
    ) -> tuple[dict[str, Any], list[list[str]]]:
        """Run the processor on texts with their images, left-padded.

        Returns its tensors and, with `offsets`, its text for each image's placeholder, if it
        reports that.
        """
        options: dict[str, Any] = {}
        if self.model.device.type == "cuda" and not on_cpu and _uses_torchvision(self.processor):
            options["device"] = self.model.device
        if offsets:
            options["return_text_replacement_offsets"] = True
        if tag := next(filter(None, map(MARKED.search, texts)), None):
            options["sanitize_control_tokens"] = True  # read marked tags as text
        bos = self.processor.tokenizer.bos_token
        try:
            batch = dict(
                self.processor(
                    text=list(texts),
                    images=images if any(images) else None,
                    padding=True,
                    padding_side="left",
                    return_tensors="pt",
                    add_special_tokens=not any(bos and text.startswith(bos) for text in texts),  # not a second <s>
                    **options,
                )
            )
        except (TypeError, ValueError, NotImplementedError) as error:
            if tag is None:
                raise
            raise InputError(f"a processor cannot read {tag[1]} in a text as text ({error}): remove it from the text") from None
        if tag and self.family.answer_token_type_id:  # transformers leaves out the token types of such a prompt
            raise InputError(f"a processor takes {tag[1]} in a text for a control token: remove it from the text")
        replacements = batch.pop("text_replacement_offsets", None) or []
        return batch, [
            [replacement["replacement"] for replacement in row if replacement["type"] == "image"] for row in replacements
        ]

    def _tower_input_names(self) -> list[str]:
        """Return the names of the processor's outputs that are inputs of the tower."""
        if self.family.uses_cross_attention:
            return ["pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"]
        return [k for k in inspect.signature(self.model.base_model.get_image_features).parameters if k not in TEXT_INPUTS]

    # ---- the tower -----------------------------------------------------------------------------

    def run_tower(self, batch: list[PreprocessedImage]) -> list[ImageFeatures]:
        """Run the tower and the projector on images of one shape.

        Has gradients if these are enabled and the active adapter changes them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and are_changed(self.lora_layers)):
            return self._run_tower(batch)

    def _run_tower(self, batch: list[PreprocessedImage]) -> list[ImageFeatures]:
        for image in batch:
            wait_until_ready(image)
        # Kept pixels are in main memory, and new ones may be on a GPU.
        tensors = {k: torch.cat([p.tensors[k].to(self.model.device) for p in batch]) for k in batch[0].tensors}
        tensors["pixel_values"] = tensors["pixel_values"].to(self.dtype)
        if self.family.uses_cross_attention:
            return self._cross_attention_features(tensors, len(batch))
        encoded = self.model.base_model.get_image_features(**tensors, return_dict=True)
        levels = [list(encoded.pooler_output)] + [list(f) for f in getattr(encoded, "deepstack_features", None) or []]
        # Idefics3 and SmolVLM pad to a number of tiles; each padding tile gives an empty unit.
        non_empty = [i for i, unit in enumerate(levels[0]) if len(unit)]
        levels = [[level[i] for i in non_empty] for level in levels]
        return split_by_image(batch, levels, is_stacked=torch.is_tensor(encoded.pooler_output))

    def _cross_attention_features(self, tensors: dict[str, Tensor], num_images: int) -> list[ImageFeatures]:
        """Return Mllama's cross-attention states [tiles x patches, dim] of each image."""
        base_model = self.model.base_model
        projector = base_model.multi_modal_projector
        vision_states = base_model.vision_model(**tensors).last_hidden_state
        states = projector(vision_states).reshape(num_images, -1, projector.out_features)
        return [ImageFeatures([[image_states.clone()]], True, None, None) for image_states in states]

    def _on_device(self, tensor: Tensor) -> Tensor:
        """Move a tensor to the model's device without waiting for it."""
        return tensor.pin_memory().to(self.model.device, non_blocking=True) if tensor.device.type == "cpu" else tensor


def _uses_torchvision(processor: Any) -> bool:
    """Return whether images are preprocessed by torchvision, which can run on a GPU."""
    from transformers.image_processing_backends import TorchvisionBackend

    return isinstance(processor.image_processor, TorchvisionBackend)
