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

from mmrlhf.features import FeatureCache, Picture
from mmrlhf.images import open_image
from mmrlhf.records import ImageSource, InputError

ELEMENTS = 1 << 26
"""Most elements of pixel tensors in a pass of the tower on a GPU: 198 pictures of 336 x 336."""
ELEMENTS_CPU = 1 << 19
"""The same on a core, where only small pictures gain from company: 18 of 96 x 96, one of 336 x 336."""
LANE = 16
"""Most pictures that a core takes at a time."""
Missing = dict[str, tuple[ImageSource, int]]
"""Pictures by key, and how many stand in the prompt of each."""
Item = tuple[str, tuple[ImageSource, int]]
BESIDE_THE_TOWER = ("text_config", "architectures", "dtype", "transformers_version", "_name_or_path")
"""Settings of a model that its pictures' features do not follow from."""
S = TypeVar("S")
T = TypeVar("T")
BESIDES = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "text_replacement_offsets")
"""What a processor returns of the text."""


@dataclass(frozen=True)
class Prepared:
    """One picture, preprocessed: the tensors that the tower takes (of `copies` of it), its number of placeholders, and their text; `ready`
    when a GPU's side stream has them."""

    key: str
    name: str
    tensors: dict[str, Tensor]
    copies: int
    placeholders: int
    text: str | None
    grid: Tensor | None
    ready: torch.cuda.Event | None = None

    @property
    def shape(self) -> tuple:
        """Pictures of one shape may stand in one batch."""
        return tuple((k, tuple(t.shape[1:])) for k, t in sorted(self.tensors.items()))

    @property
    def elements(self) -> int:
        return self.tensors["pixel_values"].numel()


class Encoder:
    """A model's tower and projector with their cache. `single` is a prompt's text with one placeholder, `several` one with two."""

    def __init__(self, model: PreTrainedModel, processor: Any, cache: FeatureCache, single: str, several: str):
        self.model, self.processor, self.cache = model, processor, cache
        self._texts = {1: single, 2: several}
        language = language_prefixes(model)
        self._named = [(n, p) for n, p in model.named_parameters() if not n.startswith(language)]
        self.tower = [p for _, p in self._named]
        self.mllama = model.config.model_type == "mllama"
        self.by_company = model.config.model_type == "llava_onevision"
        """LLaVA-OneVision cuts a picture into tiles when it stands alone in a prompt, and does not when there are several."""
        self._fingerprint = ""
        self._lock = threading.Lock()  # who asks for a picture that is being encoded waits, and then finds it

    @property
    def fingerprint(self) -> str:
        """A hash of everything but the picture that its features follow from."""
        if not self._fingerprint:
            images = self.processor.image_processor
            tower = {k: v for k, v in self.model.config.to_dict().items() if k not in BESIDE_THE_TOWER}
            parts = [
                _whole_fingerprint(self._named), type(self.model).__name__, tower, metadata.version("torchvision"),
                type(self.processor).__name__, type(images).__name__, images.to_json_string(), self.dtype, self.model.device.type,
                PIL.__version__, transformers.__version__, torch.__version__.split("+")[0],
                {k: v for k, v in vars(self.processor).items() if isinstance(v, int | str | bool) and k != "chat_template"},
            ]  # fmt: skip
            self._fingerprint = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:20]
        return self._fingerprint

    @property
    def dtype(self) -> torch.dtype:
        return self.tower[0].dtype

    def pictures(self, rows: Sequence[tuple[ImageSource, ...]]) -> list[tuple[Picture, ...]]:
        """The pictures of each row, encoded where the cache does not hold them."""
        pinned = [[source.pinned() for source in row] for row in rows]
        wanted = [[(self._key(s, len(row)), s) for s in row] for row in pinned]
        with self._lock:
            found: dict[str, Picture] = {}
            missing: Missing = {}
            for row in wanted:
                for key, source in row:
                    if key in found or key in missing:
                        continue
                    if (hit := self.cache.get(key)) is not None:
                        found[key] = hit
                    else:
                        missing[key] = source, len(row)
            found |= self.encode(missing)
        return [tuple(found[key] for key, _ in row) for row in wanted]

    def encode(self, missing: Missing) -> dict[str, Picture]:
        """Encode pictures by key (with how many stand in their prompt) and put them into the cache."""
        if not missing:
            return {}
        if any(p.requires_grad for p in self.tower):
            raise RuntimeError(
                "the vision tower or the projector is trainable: features of a tower that changes cannot be kept; "
                "freeze both (requires_grad_(False))"
            )
        found: dict[str, Picture] = {}
        for key, picture in self._by_batches(missing) if self.model.device.type == "cuda" else self._by_lanes(missing):
            self.cache.put(key, picture)
            found[key] = picture
        return found

    def _key(self, source: ImageSource, company: int) -> str:
        return f"{self.fingerprint}/{source.key}" + ("-several" if self.by_company and company > 1 else "")

    # ---- from a file to features -----------------------------------------------------------------------------------

    def _by_lanes(self, missing: Missing) -> Iterator[tuple[str, Picture]]:
        """On a CPU: each core takes pictures from their files to their features. A tower's products gain less from a second core than
        other pictures do."""
        items, lanes = list(missing.items()), os.cpu_count() or 1
        rounds = -(-len(items) // (LANE * lanes))
        size = -(-len(items) // (rounds * lanes))  # so that every lane has as much to do

        def whole(some: list[Item]) -> list[tuple[str, Picture]]:
            return [
                found
                for batch in _batches((self._prepare(*item) for item in some), ELEMENTS_CPU)
                for found in self._named_tower(batch)
            ]

        for done in _ahead(lanes, whole, [items[i : i + size] for i in range(0, len(items), size)]):
            yield from done

    def _by_batches(self, missing: Missing) -> Iterator[tuple[str, Picture]]:
        """On a GPU: large batches on the device, while threads prepare those that follow, and a side stream takes them there."""
        side = torch.cuda.Stream(self.model.device) if self.model.device.type == "cuda" else None

        def work(item: Item) -> Prepared:
            if side is None:
                return self._prepare(*item)
            with torch.cuda.stream(side):
                one = self._prepare(*item)
                there = {k: self._on_device(t) for k, t in one.tensors.items()}
                return replace(one, tensors=there, ready=side.record_event())

        prepared = _ahead(min(8, os.cpu_count() or 1), work, list(missing.items()))
        for batch in _batches(prepared, ELEMENTS):
            yield from self._named_tower(batch)

    def _named_tower(self, batch: list[Prepared]) -> list[tuple[str, Picture]]:
        """A batch's pictures by key; in halves where a GPU has no room for all."""
        try:
            return list(zip((p.key for p in batch), self._tower(batch), strict=True))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(batch) // 2
        print(f"note: out of GPU memory: going on with {half} pictures at a time in the tower")
        return self._named_tower(batch[:half]) + self._named_tower(batch[half:])

    def _prepare(self, key: str, asked: tuple[ImageSource, int]) -> Prepared:
        source, company = asked
        picture = open_image(source)
        copies = 2 if self.by_company and company > 1 else 1  # the first of two is what each of several becomes
        try:
            batch, texts = self.process([self._texts[copies]], [[picture] * copies], offsets=True)
        except (ValueError, ZeroDivisionError, RuntimeError) as error:  # a strip of 5,000 x 1, say
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            width, height = picture.size
            raise InputError(
                f"image {source.name} ({width} x {height}) is refused by the model's processor ({reason}): change its size or drop the row"
            ) from None
        tensors = {k: batch[k] for k in self._names() if k in batch}
        placeholders = int((batch["input_ids"] == self.model.config.image_token_id).sum()) // copies
        grid = batch["image_grid_thw"].cpu() if "image_grid_thw" in batch else None
        return Prepared(key, source.name, tensors, copies, placeholders, texts[0][0] if texts else None, grid)

    def process(
        self, texts: list[str], pictures: list[list[Any]], *, offsets: bool = False
    ) -> tuple[dict[str, Any], list[list[str]]]:
        """The processor's tensors for rows with their pictures, left-padded, and what it wrote for each placeholder if it says so."""
        where = {"device": self.model.device} if self.model.device.type == "cuda" and _on_torch(self.processor) else {}
        tokenizer = self.processor.tokenizer
        batch = dict(
            self.processor(
                text=list(texts), images=pictures if any(pictures) else None, padding=True, padding_side="left", return_tensors="pt",
                add_special_tokens=not any(tokenizer.bos_token and t.startswith(tokenizer.bos_token) for t in texts),
                **({"return_text_replacement_offsets": True} if offsets else {}), **where,
            )
        )  # fmt: skip
        said = batch.pop("text_replacement_offsets", None) or []
        return batch, [[one["replacement"] for one in row if one["type"] == "image"] for row in said]

    def _names(self) -> list[str]:
        if self.mllama:
            return ["pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"]
        return [k for k in inspect.signature(self.model.base_model.get_image_features).parameters if k not in BESIDES]

    # ---- the tower -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _tower(self, batch: list[Prepared]) -> list[Picture]:
        for one in batch:
            if one.ready is not None:  # made on another stream: waited for, and not freed there while this one reads it
                torch.cuda.current_stream().wait_event(one.ready)
                for tensor in one.tensors.values():
                    tensor.record_stream(torch.cuda.current_stream())
        tensors = {k: torch.cat([p.tensors[k] for p in batch]).to(self.model.device) for k in batch[0].tensors}
        tensors["pixel_values"] = tensors["pixel_values"].to(self.dtype)
        base = self.model.base_model
        if self.mllama:  # cross-attention states [tiles x patches, dim] of each picture
            seen = base.vision_model(**tensors).last_hidden_state
            states = base.multi_modal_projector(seen).reshape(len(batch), -1, base.multi_modal_projector.out_features)
            return [Picture([[s.clone()]], True, None, None) for s in states]
        encoded = base.get_image_features(**tensors, return_dict=True)
        columns = [list(encoded.pooler_output)] + [list(f) for f in getattr(encoded, "deepstack_features", None) or []]
        stacked = torch.is_tensor(encoded.pooler_output)
        # Idefics3 and SmolVLM leave an empty unit for what is no picture.
        full = [i for i, unit in enumerate(columns[0]) if len(unit)]
        columns = [[column[i] for i in full] for column in columns]
        found, at = [], 0
        for one in batch:
            start, count = at, one.placeholders * one.copies
            while count > 0 and at < len(columns[0]):
                count -= len(columns[0][at])
                at += 1
            if count:
                raise InputError(
                    f"image {one.name}: the processor writes {one.placeholders} image tokens for it and the model's tower gives another "
                    "number; load model and processor from one checkpoint"
                )
            end = start + (at - start) // one.copies
            # Cloned: a view would keep the whole batch's output alive.
            found.append(Picture([[u.clone() for u in column[start:end]] for column in columns], stacked, one.text, one.grid))
        if at != len(columns[0]):
            raise InputError(
                f"image {batch[0].name}: the model's tower gives more features than the processor writes image tokens; "
                "load model and processor from one checkpoint"
            )
        return found

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.model.device, non_blocking=True) if tensor.device.type == "cpu" else tensor


def _batches(prepared: Iterable[Prepared], limit: int) -> Iterator[list[Prepared]]:
    """Pictures of one shape, of as many elements as `limit` allows together, one at least; twice that of all shapes may wait."""
    waiting: dict[tuple, list[Prepared]] = {}

    def elements(same: list[Prepared]) -> int:
        return sum(p.elements for p in same)

    for one in prepared:
        same = waiting.setdefault(one.shape, [])
        same.append(one)
        if elements(same) + one.elements > limit:
            yield waiting.pop(one.shape)
        elif sum(map(elements, waiting.values())) > 2 * limit:
            yield waiting.pop(max(waiting, key=lambda shape: elements(waiting[shape])))
    yield from waiting.values()


def _ahead(workers: int, work: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """What `work` makes of each item, in order; threads are a few items ahead of what has been asked for. What one raises, is raised."""
    with ThreadPoolExecutor(min(workers, len(items)), "pictures", lambda: torch.set_num_threads(1)) as pool:
        coming: deque[Future[T]] = deque()
        try:
            for item in items:
                coming.append(pool.submit(work, item))
                if len(coming) > 2 * workers:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def language_prefixes(model: PreTrainedModel) -> tuple[str, ...]:
    """What the names of the language model's and its head's parameters begin with."""
    decoder, head = model.base_model.get_decoder(), model.get_output_embeddings()
    return tuple(n + "." for n, m in model.named_modules() if m is decoder or m is head)


def _on_torch(processor: Any) -> bool:
    """Whether pictures are preprocessed by torchvision, which can do it on a GPU."""
    from transformers.image_processing_backends import TorchvisionBackend

    return isinstance(processor.image_processor, TorchvisionBackend)


def _whole_fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
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
        some = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().to(torch.bfloat16).float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
