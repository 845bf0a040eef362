"""`mmrlhf export`: write a trained model so that other programs can load it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from mmrlhf.config import ExportConfig
from mmrlhf.files.atomic import refuse_unwritable
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.export import merge, save_model, save_policy
from mmrlhf.models.loading import load
from mmrlhf.models.policy import check_is_adapter, check_same_base
from mmrlhf.records import InputError


def export(config: ExportConfig) -> Path:
    """Write a whole model, or an adapter that loads by itself; return the folder.

    Raises InputError if the folder has content, or the model or the adapter cannot be used.
    """
    output_dir, adapter_dir = Path(config.output_dir), Path(config.adapter_path) if config.adapter_path else None
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"output_dir {output_dir} is not empty: give another --output_dir or remove it")
    refuse_unwritable(output_dir, "output_dir")
    if config.merge and adapter_dir is None:
        raise InputError("--merge needs an adapter: give --adapter_path, or leave --merge out to write the model as it is")
    if adapter_dir is not None:
        check_is_adapter(adapter_dir)
    vlm = load(config.model_name_or_path, config.dtype or _stored_dtype(config.model_name_or_path), "cpu")
    if adapter_dir is None:
        save_model(vlm, output_dir)
    else:
        check_same_base(adapter_dir, vlm)
        adapters = Adapters(vlm)
        adapters.load("policy", adapter_dir, trainable=False)
        if config.merge:
            merge(adapters, "policy")
            save_model(vlm, output_dir, made_from=f": `{vlm.name}` with the adapter `{adapter_dir}` merged")
        else:
            save_policy(adapters, "policy", output_dir)
    kind = "an adapter with its processor" if adapter_dir is not None and not config.merge else "a whole model"
    print(f"{output_dir} holds {kind}; {output_dir / 'README.md'} says how to load it")
    return output_dir


def _stored_dtype(name: str) -> str:
    """Return the precision of a checkpoint's weights, in which merging rounds only once."""
    try:
        dtype = getattr(AutoConfig.from_pretrained(name), "dtype", None)
    except (OSError, ValueError, KeyError):  # loading reports it
        dtype = None
    return str(dtype).removeprefix("torch.") if dtype in (torch.bfloat16, torch.float16) else "float32"
