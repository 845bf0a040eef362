"""Pictures to features: decoded and preprocessed on threads while the frozen tower runs on those before them, each distinct one once.

Preprocessing is the model's own processor, on the GPU where the model is on one; there, pictures whose tensors have one shape go through
the tower together. A family's placeholder text is learnt from its processor (`Picture.text`), so that a prompt about a picture that is
known needs no pixels.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, TypeVar

import PIL
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from mmrlhf.models.families import family_of
from mmrlhf.models.image_features import FeatureCache, ImageFeatures
from mmrlhf.models.images import open_image
from mmrlhf.records import ImageSource, InputError

MAX_ELEMENTS_GPU = 1 << 26
"""Most elements of pixel tensors in a pass of the tower on a GPU: 198 pictures of 336 x 336."""
MAX_ELEMENTS_CPU = 1 << 19
"""The same on a core, where only small pictures gain from company: 18 of 96 x 96, one of 336 x 336."""
IMAGES_PER_WORKER = 16
"""Most pictures that a core takes at a time."""
MissingImages = dict[str, tuple[ImageSource, int]]
"""Pictures by key, and how many stand in the prompt of each."""
MissingImage = tuple[str, tuple[ImageSource, int]]
NON_VISION_CONFIG = ("text_config", "architectures", "dtype", "transformers_version", "_name_or_path")
"""Settings of a model that its pictures' features do not follow from."""
S = TypeVar("S")
T = TypeVar("T")
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "text_replacement_offsets")
"""What a processor returns of the text."""


@dataclass(frozen=True)
class PreprocessedImage:
    """One picture, preprocessed: the tensors that the tower takes (of `copies` of it), its number of placeholders, and their text; `ready`
    when a GPU's side stream has them."""

    key: str
    name: str
    tensors: dict[str, Tensor]
    num_copies: int
    num_placeholders: int
    placeholder_text: str | None
    grid_thw: Tensor | None
    ready_event: torch.cuda.Event | None = None

    @property
    def shape(self) -> tuple:
        """Pictures of one shape may stand in one batch."""
        return tuple((k, tuple(t.shape[1:])) for k, t in sorted(self.tensors.items()))

    @property
    def num_elements(self) -> int:
        return self.tensors["pixel_values"].numel()


class Encoder:
    """A model's tower and projector with their cache. `single` is a prompt's text with one placeholder, `several` one with two."""

    def __init__(self, model: PreTrainedModel, processor: Any, cache: FeatureCache, one_image_text: str, two_image_text: str):
        self.model, self.processor, self.cache = model, processor, cache
        self._prompt_texts = {1: one_image_text, 2: two_image_text}
        decoder_prefixes = language_parameter_prefixes(model)
        self._named_vision_parameters = [(n, p) for n, p in model.named_parameters() if not n.startswith(decoder_prefixes)]
        self.vision_parameters = [p for _, p in self._named_vision_parameters]
        self.family = family_of(model.config)
        self._fingerprint = ""
        self._lock = threading.Lock()  # who asks for a picture that is being encoded waits, and then finds it

    @property
    def fingerprint(self) -> str:
        """A hash of everything but the picture that its features follow from."""
        if not self._fingerprint:
            image_processor = self.processor.image_processor
            vision_config = {k: v for k, v in self.model.config.to_dict().items() if k not in NON_VISION_CONFIG}
            parts = [
                _full_fingerprint(self._named_vision_parameters), type(self.model).__name__, vision_config, metadata.version("torchvision"),
                type(self.processor).__name__, type(image_processor).__name__, image_processor.to_json_string(), self.dtype, self.model.device.type,
                PIL.__version__, transformers.__version__, torch.__version__.split("+")[0],
                {k: v for k, v in vars(self.processor).items() if isinstance(v, int | str | bool) and k != "chat_template"},
            ]  # fmt: skip
            self._fingerprint = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:20]
        return self._fingerprint

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_parameters[0].dtype

    def get_features(self, image_rows: Sequence[tuple[ImageSource, ...]]) -> list[tuple[ImageFeatures, ...]]:
        """The pictures of each row, encoded where the cache does not hold them."""
        pinned_rows = [[source.pinned() for source in row] for row in image_rows]
        keyed_rows = [[(self._key(s, len(row)), s) for s in row] for row in pinned_rows]
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
        """Encode pictures by key (with how many stand in their prompt) and put them into the cache."""
        if not missing:
            return {}
        if any(p.requires_grad for p in self.vision_parameters):
            raise RuntimeError(
                "the vision tower or the projector is trainable: features of a tower that changes cannot be kept; "
                "freeze both (requires_grad_(False))"
            )
        features_by_key: dict[str, ImageFeatures] = {}
        for key, features in self._encode_gpu(missing) if self.model.device.type == "cuda" else self._encode_cpu(missing):
            self.cache.put(key, features)
            features_by_key[key] = features
        return features_by_key

    def _key(self, source: ImageSource, num_images: int) -> str:
        return f"{self.fingerprint}/{source.key}" + ("-several" if self.family.tiles_only_lone_images and num_images > 1 else "")

    # ---- from a file to features -----------------------------------------------------------------------------------

    def _encode_cpu(self, missing: MissingImages) -> Iterator[tuple[str, ImageFeatures]]:
        """On a CPU: each core takes pictures from their files to their features. A tower's products gain less from a second core than
        other pictures do."""
        items, num_workers = list(missing.items()), os.cpu_count() or 1
        num_rounds = -(-len(items) // (IMAGES_PER_WORKER * num_workers))
        chunk_size = -(-len(items) // (num_rounds * num_workers))  # so that every lane has as much to do

        def encode_chunk(chunk: list[MissingImage]) -> list[tuple[str, ImageFeatures]]:
            return [
                encoded
                for batch in _batch_by_shape((self._preprocess(*item) for item in chunk), MAX_ELEMENTS_CPU)
                for encoded in self._encode_batch(batch)
            ]

        for encoded_chunk in _map_ahead(
            num_workers, encode_chunk, [items[i : i + chunk_size] for i in range(0, len(items), chunk_size)]
        ):
            yield from encoded_chunk

    def _encode_gpu(self, missing: MissingImages) -> Iterator[tuple[str, ImageFeatures]]:
        """On a GPU: large batches on the device, while threads prepare those that follow, and a side stream takes them there."""
        side_stream = torch.cuda.Stream(self.model.device) if self.model.device.type == "cuda" else None

        def preprocess(item: MissingImage) -> PreprocessedImage:
            if side_stream is None:
                return self._preprocess(*item)
            with torch.cuda.stream(side_stream):
                image = self._preprocess(*item)
                device_tensors = {k: self._on_device(t) for k, t in image.tensors.items()}
                return replace(image, tensors=device_tensors, ready_event=side_stream.record_event())

        preprocessed = _map_ahead(min(8, os.cpu_count() or 1), preprocess, list(missing.items()))
        for batch in _batch_by_shape(preprocessed, MAX_ELEMENTS_GPU):
            yield from self._encode_batch(batch)

    def _encode_batch(self, batch: list[PreprocessedImage]) -> list[tuple[str, ImageFeatures]]:
        """A batch's pictures by key; in halves where a GPU has no room for all."""
        try:
            return list(zip((p.key for p in batch), self._run_tower(batch), strict=True))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(batch) // 2
        print(f"note: out of GPU memory: going on with {half} pictures at a time in the tower")
        return self._encode_batch(batch[:half]) + self._encode_batch(batch[half:])

    def _preprocess(self, key: str, source_and_count: tuple[ImageSource, int]) -> PreprocessedImage:
        source, num_images = source_and_count
        image = open_image(source)
        num_copies = (
            2 if self.family.tiles_only_lone_images and num_images > 1 else 1
        )  # the first of two is what each of several becomes
        try:
            batch, texts = self.process([self._prompt_texts[num_copies]], [[image] * num_copies], offsets=True)
        except (ValueError, ZeroDivisionError, RuntimeError) as error:  # a strip of 5,000 x 1, say
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            width, height = image.size
            raise InputError(
                f"image {source.name} ({width} x {height}) is refused by the model's processor ({reason}): change its size or drop the row"
            ) from None
        tensors = {k: batch[k] for k in self._tower_input_names() if k in batch}
        num_placeholders = int((batch["input_ids"] == self.model.config.image_token_id).sum()) // num_copies
        grid_thw = batch["image_grid_thw"].cpu() if "image_grid_thw" in batch else None
        return PreprocessedImage(
            key, source.name, tensors, num_copies, num_placeholders, texts[0][0] if texts else None, grid_thw
        )

    def process(
        self, texts: list[str], images: list[list[Any]], *, offsets: bool = False
    ) -> tuple[dict[str, Any], list[list[str]]]:
        """The processor's tensors for rows with their pictures, left-padded, and what it wrote for each placeholder if it says so."""
        device_kwargs = (
            {"device": self.model.device} if self.model.device.type == "cuda" and _uses_torchvision(self.processor) else {}
        )
        tokenizer = self.processor.tokenizer
        batch = dict(
            self.processor(
                text=list(texts), images=images if any(images) else None, padding=True, padding_side="left", return_tensors="pt",
                add_special_tokens=not any(tokenizer.bos_token and t.startswith(tokenizer.bos_token) for t in texts),
                **({"return_text_replacement_offsets": True} if offsets else {}), **device_kwargs,
            )
        )  # fmt: skip
        replacements = batch.pop("text_replacement_offsets", None) or []
        return batch, [
            [replacement["replacement"] for replacement in row if replacement["type"] == "image"] for row in replacements
        ]

    def _tower_input_names(self) -> list[str]:
        if self.family.uses_cross_attention:
            return ["pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"]
        return [k for k in inspect.signature(self.model.base_model.get_image_features).parameters if k not in TEXT_INPUTS]

    # ---- the tower -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _run_tower(self, batch: list[PreprocessedImage]) -> list[ImageFeatures]:
        for image in batch:
            if image.ready_event is not None:  # made on another stream: waited for, and not freed there while this one reads it
                torch.cuda.current_stream().wait_event(image.ready_event)
                for tensor in image.tensors.values():
                    tensor.record_stream(torch.cuda.current_stream())
        tensors = {k: torch.cat([p.tensors[k] for p in batch]).to(self.model.device) for k in batch[0].tensors}
        tensors["pixel_values"] = tensors["pixel_values"].to(self.dtype)
        base_model = self.model.base_model
        if self.family.uses_cross_attention:  # cross-attention states [tiles x patches, dim] of each picture
            vision_states = base_model.vision_model(**tensors).last_hidden_state
            states = base_model.multi_modal_projector(vision_states).reshape(
                len(batch), -1, base_model.multi_modal_projector.out_features
            )
            return [ImageFeatures([[s.clone()]], True, None, None) for s in states]
        encoded = base_model.get_image_features(**tensors, return_dict=True)
        levels = [list(encoded.pooler_output)] + [list(f) for f in getattr(encoded, "deepstack_features", None) or []]
        is_stacked = torch.is_tensor(encoded.pooler_output)
        # Idefics3 and SmolVLM leave an empty unit for what is no picture.
        non_empty = [i for i, unit in enumerate(levels[0]) if len(unit)]
        levels = [[level[i] for i in non_empty] for level in levels]
        features, position = [], 0
        for image in batch:
            start, remaining = position, image.num_placeholders * image.num_copies
            while remaining > 0 and position < len(levels[0]):
                remaining -= len(levels[0][position])
                position += 1
            if remaining:
                raise InputError(
                    f"image {image.name}: the processor writes {image.num_placeholders} image tokens for it and the model's tower gives another "
                    "number; load model and processor from one checkpoint"
                )
            end = start + (position - start) // image.num_copies
            # Cloned: a view would keep the whole batch's output alive.
            features.append(
                ImageFeatures(
                    [[u.clone() for u in level[start:end]] for level in levels],
                    is_stacked,
                    image.placeholder_text,
                    image.grid_thw,
                )
            )
        if position != len(levels[0]):
            raise InputError(
                f"image {batch[0].name}: the model's tower gives more features than the processor writes image tokens; "
                "load model and processor from one checkpoint"
            )
        return features

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.model.device, non_blocking=True) if tensor.device.type == "cpu" else tensor


def _batch_by_shape(preprocessed: Iterable[PreprocessedImage], max_elements: int) -> Iterator[list[PreprocessedImage]]:
    """Pictures of one shape, of as many elements as `limit` allows together, one at least; twice that of all shapes may wait."""
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


def _map_ahead(num_workers: int, work: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """What `work` makes of each item, in order; threads are a few items ahead of what has been asked for. What one raises, is raised."""
    with ThreadPoolExecutor(min(num_workers, len(items)), "pictures", lambda: torch.set_num_threads(1)) as pool:
        futures: deque[Future[T]] = deque()
        try:
            for item in items:
                futures.append(pool.submit(work, item))
                if len(futures) > 2 * num_workers:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()


def language_parameter_prefixes(model: PreTrainedModel) -> tuple[str, ...]:
    """What the names of the language model's and its head's parameters begin with."""
    decoder, head = model.base_model.get_decoder(), model.get_output_embeddings()
    return tuple(n + "." for n, m in model.named_modules() if m is decoder or m is head)


def _uses_torchvision(processor: Any) -> bool:
    """Whether pictures are preprocessed by torchvision, which can do it on a GPU."""
    from transformers.image_processing_backends import TorchvisionBackend

    return isinstance(processor.image_processor, TorchvisionBackend)


def _full_fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of every value: features are kept for longer than a tower's few sampled values could vouch for."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of every tensor's name, shape and up to 64 of its values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters, key=lambda item: item[0]):
        flat = tensor.detach().reshape(-1)
        sampled = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().to(torch.bfloat16).float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sampled.numpy().tobytes())
    return digest.hexdigest()[:16]
