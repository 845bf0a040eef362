"""Which linear layers of a model an adapter has, and which adapter is active in them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel

from mmrlhf.records import InputError

LANGUAGE_MODEL, PROJECTOR, VISION_TOWER = "language_model", "projector", "vision_tower"
"""Parts of a model. The last two are also words of `lora_target_modules`."""
ALL_LINEAR = "all-linear"
"""All linear layers of the language model."""
PROJECTOR_IN_TOWER = "merger"
"""Parts of the names of projector layers inside a family's tower (Qwen-VL, GLM-V)."""


def layers_by_part(model: PreTrainedModel) -> dict[str, dict[str, nn.Linear]]:
    """Return the linear layers that an adapter may have, by part and by name.

    The output head, audio encoders and layers that are read by their weights are left out.
    """
    decoder, tower, head = model.base_model.get_decoder(), model.get_encoder(modality="image"), model.get_output_embeddings()
    in_decoder, in_tower = ({id(module) for module in part.modules()} for part in (decoder, tower))
    layers: dict[str, dict[str, nn.Linear]] = {LANGUAGE_MODEL: {}, PROJECTOR: {}, VISION_TOWER: {}}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is head or ".lora_" in name or "audio" in name:
            continue
        if isinstance(module, NonDynamicallyQuantizableLinear):  # nn.MultiheadAttention reads its weight
            continue
        part = VISION_TOWER if id(module) in in_tower and PROJECTOR_IN_TOWER not in name else PROJECTOR
        part = LANGUAGE_MODEL if id(module) in in_decoder else part
        layers[part][name.removesuffix(".base_layer")] = module  # of a layer that has an adapter
    return layers


def decoder_name(model: PreTrainedModel) -> str:
    """Return the name of the language model among a model's modules."""
    decoder = model.base_model.get_decoder()
    return next(name for name, module in model.named_modules() if module is decoder)


def target_layers(model: PreTrainedModel, target_modules: str, model_name: str) -> dict[str, nn.Linear]:
    """Return the layers that `lora_target_modules` names. Raises InputError if one has no layer."""
    layers = layers_by_part(model)
    language_layers, selected = layers[LANGUAGE_MODEL], dict[str, nn.Linear]()
    words = [word.strip() for word in target_modules.split(",")]
    kinds = {_kind(name) for name in language_layers}
    if unknown := sorted(set(words) - kinds - {ALL_LINEAR, PROJECTOR, VISION_TOWER}):
        available = ", ".join([*sorted(kinds), ALL_LINEAR, PROJECTOR, VISION_TOWER])
        raise InputError(f"lora_target_modules names {', '.join(unknown)}: {model_name} has {available}")
    for word in words:
        if word in (PROJECTOR, VISION_TOWER):
            if not layers[word]:
                raise InputError(f"lora_target_modules names {word}, and that of {model_name} has no linear layer: leave it out")
            selected |= layers[word]
        else:
            selected |= {name: layer for name, layer in language_layers.items() if word in (ALL_LINEAR, _kind(name))}
    return selected


def target_pattern(model: PreTrainedModel, names: Collection[str]) -> str:
    """Return a regular expression for PEFT that matches these layers and no other module.

    PEFT also accepts a list of suffixes, but `q_proj` would then also match layers of the tower.
    """
    language_names = set(names) & set(layers_by_part(model)[LANGUAGE_MODEL])
    kinds = "|".join(sorted({_kind(name) for name in language_names}))
    patterns = []
    if language_names:
        patterns.append(_exact(model, rf"{re.escape(decoder_name(model))}\..*\.({kinds})", language_names))
    if vision_names := set(names) - language_names:
        numbered = {re.sub(r"(?<=\\\.)\d+(?=\\\.|$)", r"\\d+", re.escape(name)) for name in vision_names}
        patterns.append(_exact(model, "|".join(sorted(numbered)), vision_names))
    return "|".join(patterns)


def _exact(model: PreTrainedModel, pattern: str, names: Collection[str]) -> str:
    """Return the pattern if it matches these modules only, or else their names."""
    fitting = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    return pattern if fitting == set(names) else "|".join(map(re.escape, sorted(names)))


def _kind(name: str) -> str:
    return name.rsplit(".", 1)[-1]


@contextlib.contextmanager
def active_adapter(layers: Sequence[BaseTunerLayer], name: str | None) -> Iterator[None]:
    """Activate one adapter, or none, in these layers. Leaves `requires_grad` unchanged."""
    # PEFT's layers read these two attributes; its public setters also change requires_grad.
    previous = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter = [name] if name else layer._active_adapter
        layer._disable_adapters = name is None
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, previous, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def are_changed(layers: Sequence[BaseTunerLayer]) -> bool:
    """Return whether the active adapter has any of these layers."""
    return any(not layer.disable_adapters and set(layer.active_adapters) & set(layer.lora_A) for layer in layers)
