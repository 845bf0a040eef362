"""A complete training step in one file: its rows with their images, weights, batch and settings.

The file is in the format safetensors: weights as `weights.NAME`, tensors of the batch as
`batch.NAME`, images as their encoded bytes, and everything else as JSON in the header. To replay
it, only the models that the run loads are needed (its base, adapter_path and reward_model_path),
and nothing else of the run or its data.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmrlhf.files.atomic import atomic
from mmrlhf.records import Example, Fact, ImageSource, InputError, Message, PlacedImage, Preference

HEADER = "mmrlhf_step"
"""The entry of the file's header that holds the JSON."""


@dataclass(frozen=True)
class SavedStep:
    """A step of a training stage, with everything needed to compute it again.

    `step` counts from 1. `problem` says what was not finite; `numbers` are the loss and its
    divisors, on the process that saved the step. `is_cause`: whether the problem arose in that
    process, not in another one.
    """

    stage: str
    step: int
    problem: str
    config: Mapping[str, Any]
    base_fingerprint: str
    rows: Sequence[Example] | Sequence[Preference]
    numbers: Mapping[str, float]
    weights: Mapping[str, Tensor]
    batch: Mapping[str, Tensor]
    is_cause: bool = True

    def write(self, path: Path) -> None:
        """Write the file atomically. Raises OSError."""
        images = {image.key: image.read() for row in self.rows for image in row.all_images}
        header = {
            "stage": self.stage,
            "step": self.step,
            "problem": self.problem,
            "is_cause": self.is_cause,
            "config": dict(self.config),
            "base_fingerprint": self.base_fingerprint,
            "rows": [_row_to_json(row) for row in self.rows],
            "numbers": {name: repr(float(value)) for name, value in self.numbers.items()},  # JSON has no NaN
        }
        tensors = {
            **{f"weights.{name}": tensor.detach().cpu().clone() for name, tensor in self.weights.items()},
            **{f"batch.{name}": tensor.detach().cpu().clone() for name, tensor in self.batch.items()},
            **{f"image.{key}": torch.frombuffer(bytearray(data), dtype=torch.uint8) for key, data in images.items()},
        }
        with atomic(path) as temporary_path:
            save_file(tensors, temporary_path, metadata={HEADER: json.dumps(header, default=str)})


def read_step(path: Path) -> SavedStep:
    """Read a step. Raises InputError if the file is missing, damaged, or of another kind."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a file of the folder `skipped` in the output_dir of a run")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise InputError(f"{path} holds no training step: give a file of the folder `skipped` in the output_dir of a run")
            header = json.loads(metadata[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
        images = {n.removeprefix("image."): bytes(t.numpy().tobytes()) for n, t in tensors.items() if n.startswith("image.")}
        rows = [_row_from_json(row, images) for row in header.pop("rows")]
        weights, batch = (
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for prefix in ("weights.", "batch.")
        )
        numbers = {name: float(value) for name, value in header.pop("numbers").items()}
        return SavedStep(rows=rows, numbers=numbers, weights=weights, batch=batch, **header)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged, it cannot be read as a training step: copy it again from the run") from None


def _row_to_json(row: Example | Preference) -> dict[str, Any]:
    answer_images = {}
    if isinstance(row, Preference):
        answer_images["answer_images"] = [[[i.position, i.source.key] for i in images] for images in row.answer_images]
    return {
        **{field.name: getattr(row, field.name) for field in dataclasses.fields(row)},
        "kind": type(row).__name__,
        "images": [image.key for image in row.images],
        "prompt": [message.to_dict() for message in row.prompt],
        "facts": [asdict(fact) for fact in row.facts],
        "meta": dict(row.meta),
        **answer_images,
    }


def _row_from_json(row: dict[str, Any], images: Mapping[str, bytes]) -> Any:
    row_class = {"Example": Example, "Preference": Preference}[row.pop("kind")]
    row["images"] = tuple(ImageSource(data=images[key]) for key in row["images"])
    row["prompt"] = tuple(Message(m["role"], m["content"], tuple(m.get("image_positions", ()))) for m in row["prompt"])
    row["answer_images"] = [
        tuple(PlacedImage(position, ImageSource(data=images[key])) for position, key in answer)
        for answer in row.get("answer_images", [])
    ]
    if row_class is Example:
        del row["answer_images"]
    row["facts"] = tuple(Fact(**(fact | {"box": fact["box"] and tuple(fact["box"])})) for fact in row["facts"])
    return row_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})
