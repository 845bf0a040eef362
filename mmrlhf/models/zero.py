"""Read DeepSpeed's settings: a base in shards, which ZeRO-3 asks for, is FSDP2's here.

ZeRO splits weights, gradients and optimiser states over processes (Rajbhandari et al. 2020). The
base is frozen, so only splitting its weights (stage 3) saves memory, and `sharding` splits them.
Gradients and states are the adapters', a few MB, and stay whole (stages 1 and 2 change nothing).
DeepSpeed itself is not used; only accelerate's launcher wants the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from accelerate.utils import str_to_bool

from mmrlhf.records import InputError

_VARIABLES = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "stage",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "offload_param",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "offload_optimizer",
}
"""Variables of `accelerate launch --use_deepspeed` for settings of zero_optimization."""
_STAGE_SETTINGS = {
    "train_batch_size": "per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "micro_batch_tokens",
    "gradient_clipping": "max_grad_norm",
}
"""Numbers that a stage's own settings determine, so DeepSpeed's may only be "auto"."""


def use_fsdp_for_zero(environ: MutableMapping[str, str]) -> str | None:
    """Replace accelerate's variables for DeepSpeed by those for FSDP2; return a note, if any.

    Raises InputError for a file that is not readable, and settings that would have no effect.
    """
    if not str_to_bool(environ.get("ACCELERATE_USE_DEEPSPEED", "false")):
        return None
    stage = _zero_stage(environ)
    environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    if stage < 3:
        return f"DeepSpeed's ZeRO-{stage}: every process has the whole frozen base; only stage 3 splits it"
    environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    return "DeepSpeed's ZeRO-3: FSDP2 splits the frozen base over the processes; DeepSpeed itself is not used"


def _zero_stage(environ: Mapping[str, str]) -> int:
    """Return the stage of accelerate's variables or of the file that they name."""
    path = environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        given = {name: environ[key] for key, name in _VARIABLES.items() if key in environ}
        return _checked_stage(given, "accelerate's DeepSpeed settings")
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"DeepSpeed's settings {path} cannot be read ({error}): give a JSON file") from None
    zero = settings.get("zero_optimization", {}) if isinstance(settings, dict) else None
    if not isinstance(zero, dict):
        raise InputError(f"{path} is not a file of DeepSpeed's settings: its zero_optimization has to be an object with a stage")
    for section, names in {
        "optimizer": "learning_rate and weight_decay",
        "scheduler": "lr_scheduler_type and warmup_steps",
    }.items():
        if section in settings:
            raise InputError(f"{path}: remove `{section}`: {names} of the stage decide")
    for name, instead in _STAGE_SETTINGS.items():
        if settings.get(name, "auto") != "auto":
            raise InputError(f'{path}: `{name}` has to be "auto", because {instead} of the stage decides')
    half = settings.get("fp16")
    if (half.get("enabled") if isinstance(half, dict) else half) not in (None, False, "auto"):
        raise InputError(f"{path}: `fp16` overflows here: disable it, and use --dtype bfloat16")
    return _checked_stage(zero, path)


def _checked_stage(zero: Mapping[str, Any], source: str) -> int:
    """Return the stage. Raises InputError if it is invalid, or something is offloaded."""
    for name in ("offload_param", "offload_optimizer"):
        device = zero.get(name)
        if isinstance(device, dict):
            device = device.get("device")
        if device not in (None, "none"):
            raise InputError(f"{source}: `{name}` to {device} is not supported, shards stay on the GPU: use none")
    stage = zero.get("stage", 0)
    if str(stage) not in ("0", "1", "2", "3"):
        raise InputError(f"{source}: the stage of ZeRO is 0, 1, 2 or 3, not {stage!r}")
    return int(stage)
