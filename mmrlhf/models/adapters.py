"""Several roles on one base model: named LoRA adapters, and scalar heads.

`policy`, `value` and `reward` are adapters on one copy of the model; `reference` is the base
without an adapter. Switching roles sets which adapter is active and nothing else. PEFT's own
`set_adapter` and `disable_adapter` also flip `requires_grad`, which would freeze one role whenever
another runs. Adapters are in the language model; those that also change the projector or the vision
tower have different image features from the base (`Encoder.get_active_features`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from mmrlhf.models.adapter_files import check_same_shapes, read_adapter, saved_name, saved_tensors
from mmrlhf.models.lora_layers import (
    ALL_LINEAR,
    active_adapter,
    decoder_name,
    layers_by_part,
    target_layers,
    target_pattern,
)
from mmrlhf.models.vlm import VLM
from mmrlhf.records import InputError


class MasterWeightLinear(nn.Linear):
    """A linear layer with float32 weights that computes in its input's precision.

    PEFT would cast the inputs of a float32 adapter on a bfloat16 base to float32 and keep the
    copies for the backward pass. The optimiser still updates float32 weights.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> MasterWeightLinear:
        """Return a layer with the same parameters."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return nn.functional.linear(input, self.weight.to(input.dtype), bias)


OTHER_CHECKPOINT = "remove the checkpoints folder of the run, which then starts over, or give another --output_dir"
"""Advice for messages about a checkpoint with other weights."""


class Adapters:
    """The named adapters on one model.

    `peft_model` is PEFT's wrapper, used to save and merge; forward passes go to `vlm.model`.
    """

    def __init__(self, vlm: VLM):
        self.vlm = vlm
        self.peft_model: PeftModel | None = None
        self._lora_layers: list[BaseTunerLayer] = []
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}

    def target_pattern(self, target_modules: str = ALL_LINEAR) -> str:
        """Return a regular expression for the layers that `lora_target_modules` names.

        Raises InputError for a name that no layer has.
        """
        return target_pattern(self.vlm.model, target_layers(self.vlm.model, target_modules, self.vlm.name))

    def add(self, name: str, r: int, alpha: float, seed: int, target_modules: str = ALL_LINEAR) -> None:
        """Add a trainable float32 adapter to `target_modules`; it changes no outputs at first."""
        torch.manual_seed(seed)
        self._inject(
            name, LoraConfig(r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules=self.target_pattern(target_modules))
        )

    def _inject(self, name: str, config: LoraConfig) -> None:
        config.base_model_name_or_path = absolute_name(self.vlm.name)
        if self.peft_model is None:
            self.peft_model = get_peft_model(self.vlm.model, config, adapter_name=name)
        else:
            self.peft_model.add_adapter(name, config)
        self._lora_layers = [m for m in self.vlm.model.modules() if isinstance(m, BaseTunerLayer)]
        decoder_modules = set(self.vlm.model.base_model.get_decoder().modules())
        self.vlm.encoder.lora_layers = [layer for layer in self._lora_layers if layer not in decoder_modules]
        if self.vlm.model.dtype != torch.float32:
            for layer in self._lora_layers:
                _compute_in_input_precision(layer, name)
        # Every update asks for them; a walk through all modules takes as long as a small forward.
        self._parameters[name] = {k: p for k, p in self.vlm.model.named_parameters() if f".{name}." in k and "lora_" in k}
        for parameter in self._parameters[name].values():
            parameter.requires_grad_(True)

    def load(self, name: str, directory: Path, *, trainable: bool) -> None:
        """Load a saved adapter with all of its settings.

        Raises InputError if it is missing, belongs to another model, or has settings that cannot be
        applied (`adapter_files`).
        """
        layers = {name for part in layers_by_part(self.vlm.model).values() for name in part}
        saved = read_adapter(directory, decoder_name(self.vlm.model), layers, self.vlm.name)
        pattern = target_pattern(self.vlm.model, saved.ranks)
        self._inject(name, LoraConfig(**saved.lora_arguments, lora_dropout=0.0, target_modules=pattern))
        own_parameters = {saved_name(k, name): p for k, p in self.parameters(name).items()}
        check_same_shapes(directory, saved.tensors, own_parameters, self.vlm.name)
        with torch.no_grad():
            for key, parameter in own_parameters.items():
                parameter.copy_(saved.tensors[key])
                parameter.requires_grad_(trainable)

    def save(self, name: str, directory: Path) -> None:
        """Save an adapter in PEFT's format.

        `AutoPeftModel.from_pretrained(directory)` finds base and model class in its configuration.
        """
        assert self.peft_model is not None
        directory.mkdir(parents=True, exist_ok=True)
        tensors = saved_tensors(self.parameters(name), name)
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        model_class = type(self.vlm.model)
        auto_mapping = {"base_model_class": model_class.__name__, "parent_library": model_class.__module__}
        self.peft_model.peft_config[name].save_pretrained(str(directory), auto_mapping_dict=auto_mapping)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Return an adapter's parameters by their names in `vlm.model`."""
        return self._parameters[name]

    def count_weights(self, name: str) -> dict[str, int]:
        """Return the number of an adapter's weights by part of the model."""
        parameters = self.parameters(name).items()
        return {
            part: sum(p.numel() for k, p in parameters if k.partition(".lora_")[0] in layers)
            for part, layers in layers_by_part(self.vlm.model).items()
        }

    def use(self, name: str | None) -> contextlib.AbstractContextManager[None]:
        """Run with one adapter, or the base alone (None), in a `with` block."""
        return active_adapter(self._lora_layers, name)


def absolute_name(name: str) -> str:
    """Return a model's name, with a path made absolute to be valid in every working directory."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _compute_in_input_precision(layer: BaseTunerLayer, name: str) -> None:
    """Make a layer's adapter compute in the precision of the layer's inputs."""
    layer.cast_input_dtype_enabled = False
    for factors in (layer.lora_A, layer.lora_B):
        if name in factors:  # an adapter need not target every layer
            factors[name] = MasterWeightLinear.from_linear(factors[name])


@dataclass
class Role:
    """A model with one adapter, and a scalar head if it is a value or reward role.

    If `adapter` is None, the role is the base alone, and trains the base's own trainable weights.
    Roles need not share a model: a reward model may have a larger base, which then receives images
    and text.
    """

    adapters: Adapters
    adapter: str | None
    head: nn.Linear | None = None

    @property
    def vlm(self) -> VLM:
        return self.adapters.vlm

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Run the model in this role inside a `with` block."""
        return self.adapters.use(self.adapter)

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the role's weights: the adapter's, or the trainable ones of the base."""
        if self.adapter:
            return self.adapters.parameters(self.adapter)
        return {k: p for k, p in self.vlm.model.named_parameters() if p.requires_grad and "lora_" not in k}

    def parameters(self) -> list[nn.Parameter]:
        """Return the role's weights, including its head's."""
        return list(self._named_parameters().values()) + (list(self.head.parameters()) if self.head else [])

    def clear_gradients(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the role's tensors for a checkpoint, without copying them."""
        tensors = {k: p.detach() for k, p in self._named_parameters().items()}
        if self.head is not None:
            tensors |= {f"{self.adapter or 'base'}_head.{k}": v for k, v in self.head.state_dict().items()}
        return tensors

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Copy a checkpoint's tensors into the role's weights.

        Raises InputError, before it changes anything, if one is missing or has another shape.
        """
        own_tensors = self.state_dict()
        for key, tensor in own_tensors.items():
            if key not in state_dict or state_dict[key].shape != tensor.shape:
                problem = "is missing" if key not in state_dict else f"has the shape {tuple(state_dict[key].shape)}"
                raise InputError(
                    f"the checkpoint is not of the weights that this run trains, {key} {problem}: {OTHER_CHECKPOINT}"
                )
        with torch.no_grad():
            for key, tensor in own_tensors.items():
                tensor.copy_(state_dict[key])
