"""Pictures for vLLM as the trainer's own features: checked, and in vLLM's formats.

vLLM crashes, or answers about another picture, if features have a wrong shape. They are therefore
compared with the prompt before they are sent.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmrlhf.models.image_features import ImageFeatures
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import InputError

FEATURE_LAYOUTS: dict[str, Literal["batched", "flat"]] = {
    "llava": "batched",
    "qwen2_5_vl": "flat",
    "qwen3_vl": "flat",
}
"""vLLM's layout of a family's features, by `config.model_type`: `batched`, an item per picture, or
`flat`, a slice of all pictures' rows. Both were compared with the trainer's. Other families are
sent as pixels: vLLM 0.32 stops at a batch of LLaVA-NeXT's or InternVL's features, whose sizes
differ."""
NEEDS_TOWER = ("qwen3_vl",)
"""Families for which vLLM must load the tower nevertheless."""


@dataclass(frozen=True)
class EnginePicture:
    """A picture's features [tokens, width], and where its placeholders begin in the prompt."""

    key: str
    """Identifies the content and the tower: vLLM caches features under this key."""
    embeds: Tensor
    offset: int
    grid_thw: Tensor | None

    @property
    def num_tokens(self) -> int:
        return len(self.embeds)


def takes_features(vlm: VLM) -> bool:
    """Return whether vLLM takes the family's features."""
    return vlm.model.config.model_type in FEATURE_LAYOUTS


def engine_pictures(vlm: VLM, prompt: Prompt) -> list[EnginePicture]:
    """Return a prompt's pictures. Raises InputError if features do not fit its placeholders."""
    places = (prompt.token_ids == vlm.model.config.image_token_id).nonzero()[:, 0].tolist()
    pictures, start = [], 0
    for source, features in zip(prompt.images, prompt.image_features, strict=True):
        embeds = _embeds(features)
        expected = vlm.hidden_size * len(features.levels)
        own = places[start : start + len(embeds)]
        is_run = len(own) == len(embeds) and own == list(range(own[0], own[0] + len(own)))
        if embeds.shape[1] != expected or not is_run:
            raise InputError(
                f"the features of image {source.name} have the shape {list(embeds.shape)}, and row {prompt.id} has "
                f"{len(own)} image placeholders of width {expected}: the features come from another model, encode them again"
            )
        key = vlm.encoder.feature_key(source, len(prompt.images))
        pictures.append(EnginePicture(key, embeds, own[0], features.grid_thw))
        start += len(embeds)
    if start != len(places):
        raise InputError(
            f"row {prompt.id} has {len(places)} image placeholders, and its images have {start} features: encode them again"
        )
    return pictures


def _embeds(features: ImageFeatures) -> Tensor:
    """Return all rows of a picture; deepstack levels follow the first one along the width."""
    return torch.cat([torch.cat(level) for level in features.levels], dim=-1).detach().cpu()


def multi_modal_data(vlm: VLM, pictures: Sequence[EnginePicture]) -> Any:
    """Return pictures as `multi_modal_data["image"]` of vLLM's Python interface."""
    if FEATURE_LAYOUTS[vlm.model.config.model_type] == "batched":
        return [picture.embeds for picture in pictures]
    return {
        "image_embeds": torch.cat([picture.embeds for picture in pictures]),
        "image_grid_thw": torch.cat([_grid(picture) for picture in pictures]),
    }


def features_field(vlm: VLM, pictures: Sequence[EnginePicture]) -> dict[str, Any]:
    """Return pictures as the field `features` of a request to `/inference/v1/generate`."""
    layout = FEATURE_LAYOUTS[vlm.model.config.model_type]
    return {
        "mm_hashes": {"image": [picture.key for picture in pictures]},
        "mm_placeholders": {"image": [{"offset": p.offset, "length": p.num_tokens} for p in pictures]},
        "kwargs_data": {"image": [base64.b64encode(_pack(_item(picture, layout))).decode() for picture in pictures]},
    }


def _grid(picture: EnginePicture) -> Tensor:
    assert picture.grid_thw is not None
    return picture.grid_thw.cpu()


def _item(picture: EnginePicture, layout: str) -> dict[str, Any]:
    """Return a picture as vLLM's MultiModalKwargsItem: tensors, and how a batch is made of each."""
    if layout == "batched":
        return {"image_embeds": {"data": _tensor(picture.embeds), "field": ["batched", {"keep_on_cpu": False}]}}
    rows = {"slices": [[0, picture.num_tokens, None]], "dim": 0, "keep_on_cpu": False}
    return {
        "image_embeds": {"data": _tensor(picture.embeds), "field": ["flat", rows]},
        "image_grid_thw": {"data": _tensor(_grid(picture)[0]), "field": ["batched", {"keep_on_cpu": True}]},
    }


# ---- MessagePack -------------------------------------------------------------------------------

RAW_VIEW = 3
"""vLLM's extension type for the bytes of a tensor."""


def _tensor(tensor: Tensor) -> list[Any]:
    content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), content]


def _pack(value: Any) -> bytes:
    """Return a value in MessagePack, in its forms of fixed width; bytes are of type RAW_VIEW."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xce" + value.to_bytes(4)
    if isinstance(value, str):
        return b"\xda" + len(value.encode()).to_bytes(2) + value.encode()
    if isinstance(value, bytes):
        return b"\xc9" + len(value).to_bytes(4) + RAW_VIEW.to_bytes() + value
    if isinstance(value, dict):
        return b"\xdf" + len(value).to_bytes(4) + b"".join(_pack(k) + _pack(v) for k, v in value.items())
    return b"\xdd" + len(value).to_bytes(4) + b"".join(map(_pack, value))
