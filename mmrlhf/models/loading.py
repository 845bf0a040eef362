"""Load a checkpoint as a frozen `VLM`, or wrap a model that is already loaded.

Also finds the tokens that the model may not sample and those that end an answer.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from mmrlhf.config import EngineConfig, FeedbackConfig, PixelConfig, TrainConfig
from mmrlhf.models import sharding
from mmrlhf.models.chat_template import apply_chat_template
from mmrlhf.models.chat_text import ChatText
from mmrlhf.models.engine_state import EngineState
from mmrlhf.models.fingerprints import fingerprint
from mmrlhf.models.finite import check_finite
from mmrlhf.models.image_features import FeatureCache
from mmrlhf.models.kv_cache import supports_packing
from mmrlhf.models.loading_turns import UNREADABLE, loading_turn
from mmrlhf.models.micro_batch import Budget
from mmrlhf.models.pixel_limits import limit_pixels
from mmrlhf.models.vision_encoder import Encoder
from mmrlhf.models.vlm import VLM
from mmrlhf.records import InputError, Message
from mmrlhf.text.printable import first_line


def load(
    name: str,
    dtype: str = "float32",
    device: torch.device | str | None = None,
    engine: EngineConfig | None = None,
    pixels: PixelConfig | None = None,
    *,
    sharded: bool = False,
    in_turns: bool = False,
) -> VLM:
    """Load a checkpoint directory or Hub id, frozen, in eval mode (dropout off).

    The default device is the GPU if there is one. `pixels` limits the pixels of images. With
    `in_turns` all processes call this, and read the checkpoint in turns (`models.loading_turns`);
    if it is also `sharded`, each keeps a share of the decoder's layers (`models.sharding`).

    Raises InputError if the checkpoint is missing, contains no image-text-to-text model, lacks
    weights or has some that are not finite, or has no chat template that separates prompts from
    answers.
    """
    _require_checkpoint(name)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    takes_turns = in_turns and dtype != "nf4" and PartialState().num_processes > 1
    with loading_turn(name, getattr(torch, dtype)) if takes_turns else contextlib.nullcontext():
        model, processor = _read_checkpoint(name, dtype, device)
        if pixels is not None:
            limit_pixels(model, processor, pixels, name)
        base_fingerprint = fingerprint(model.state_dict().items()) if sharded else None
        if sharded:
            sharding.shard(model, device)
        elif dtype != "nf4":
            model = model.to(device)
    vlm = wrap(model, processor, name, engine, base_fingerprint)
    if sharded:
        vlm.engine.use_cuda_graphs = False  # a graph cannot replay what processes agree on
    vlm.dtype = dtype  # the model's own dtype is bfloat16 for nf4, too
    return vlm


def load_base(config: TrainConfig | FeedbackConfig, accelerator: Accelerator, name: str | None = None) -> VLM:
    """Load a stage's base, or the model `name` in its place, in all processes of the stage.

    They read it in turns, and share it if the launcher asks for that. Raises InputError like
    `load`, and for settings that do not fit shards.
    """
    name = name or config.model_name_or_path
    is_sharded = sharding.is_wanted(config)
    return load(name, config.dtype, accelerator.device, config, config, sharded=is_sharded, in_turns=True)


def _read_checkpoint(name: str, dtype: str, device: torch.device) -> tuple[PreTrainedModel, Any]:
    """Return the model, in main memory or (nf4) on the device, and its processor."""
    try:
        processor = AutoProcessor.from_pretrained(name)
        model, loading_info = AutoModelForImageTextToText.from_pretrained(
            name,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_precision_kwargs(name, dtype, device),
        )
    except (*UNREADABLE, SafetensorError) as error:
        reason = first_line(error)
        not_found = "" if Path(name).is_dir() else "no such directory, and as a Hub id: "
        raise InputError(
            f"model {name} cannot be loaded ({not_found}{reason}): give the directory or Hub id of an image-text-to-text model"
        ) from None
    if bad_keys := sorted({*loading_info["missing_keys"], *(key for key, *_ in loading_info["mismatched_keys"])}):
        raise InputError(
            f"model {name} lacks {len(bad_keys)} of its weights or has them in another shape, {bad_keys[0]} first: "
            "config.json and weights do not belong together, copy the checkpoint again"
        )
    _check_processor(processor, name)
    check_finite(model.state_dict().items(), f"model {name}")
    return model, processor


def _check_processor(processor: Any, name: str) -> None:
    """Find the processor's chat template. Raises InputError if it lacks that or a patch size."""
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise InputError(f"model {name} has no processor of images: copy its processor_config.json or preprocessor_config.json")
    if getattr(processor, "patch_size", 0) is None:  # checkpoints of LLaVA from before processor_config.json
        raise InputError(f"model {name}: its processor has no patch_size: add it to processor_config.json")
    if getattr(processor, "chat_template", None) is None:  # older checkpoints have it in tokenizer_config.json
        processor.chat_template = getattr(processor.tokenizer, "chat_template", None)
    templates = processor.chat_template
    if templates is None:
        raise InputError(f"model {name} has no chat template: put a chat_template.jinja next to its config.json")
    if isinstance(templates, dict) and "default" not in templates:
        raise InputError(
            f"model {name} has chat templates for {', '.join(map(str, templates))} and none named default: "
            "put a chat_template.jinja next to its config.json"
        )


def _precision_kwargs(name: str, dtype: str, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a precision.

    nf4 means 4 bits for the language model's linear layers and bfloat16 for the rest (QLoRA,
    Dettmers et al. 2023). Raises InputError if it is chosen and bitsandbytes is not installed.
    """
    if dtype != "nf4":
        return {"dtype": getattr(torch, dtype)}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("dtype nf4 needs bitsandbytes, which is not installed: `pip install 'bitsandbytes>=0.46'`")
    # bitsandbytes takes the layers to skip by name; a model without weights has the same names.
    with torch.device("meta"):
        meta_model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(name))
    decoder = meta_model.base_model.get_decoder()
    decoder_module_ids = {id(m) for m in decoder.modules()}
    skipped_modules = [
        n for n, m in meta_model.named_modules() if isinstance(m, torch.nn.Linear) and id(m) not in decoder_module_ids
    ]
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=skipped_modules,
    )
    return {"dtype": torch.bfloat16, "quantization_config": config, "device_map": {"": device}}


def wrap(
    model: PreTrainedModel,
    processor: Any,
    name: str,
    engine: EngineConfig | None = None,
    base_fingerprint: str | None = None,
) -> VLM:
    """Wrap a model that is already on its device; freeze it and set eval mode.

    `base_fingerprint` is that of its whole weights, if this process has only a share of them.
    """
    model.requires_grad_(False).eval()
    if model.device.type == "cuda":
        # cuDNN's attention plans a kernel for every new shape, about half a second each, and its
        # gradients can be NaN under an explicit mask on Hopper (pytorch#196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer, config = processor.tokenizer, engine or EngineConfig()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    cache = FeatureCache(model.device, config.feature_memory_gib, config.feature_cache_dir, config.feature_disk_gib)
    one_image_text, two_image_text = (
        apply_chat_template(processor, [Message("user", "?")], num_images, generation_prompt=True, name=name)
        for num_images in (1, 2)
    )
    eos = _eos_token_ids(model, tokenizer) | _end_of_turn_ids(processor, name)
    if config.activation_checkpointing:
        _enable_activation_checkpointing(model)
    return VLM(
        name=name,
        model=model,
        processor=processor,
        suppressed_tokens=torch.tensor(_suppressed_token_ids(model, tokenizer, eos), device=model.device),
        eos=tuple(sorted(eos)),
        chat=ChatText(processor, name, sorted(eos)),
        encoder=Encoder(model, processor, cache, one_image_text, two_image_text),
        budget=Budget(config.micro_batch_tokens),
        engine=EngineState(
            share_prefix=config.share_prefix,
            supports_packing=supports_packing(model),
            use_cuda_graphs=model.device.type == "cuda" and supports_packing(model),
        ),
        dtype=str(model.dtype).removeprefix("torch."),
        fingerprint=base_fingerprint or fingerprint(model.state_dict().items()),
    )


def _enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Recompute the language model's layers in backward. Raises InputError if it has dropout."""
    decoder = model.base_model.get_decoder()
    decoder.train()  # checkpointing needs train mode, which would also turn dropout on
    dropout_rates = {module.p for module in decoder.modules() if isinstance(module, torch.nn.Dropout)}
    dropout_rates.add(getattr(model.config.get_text_config(), "attention_dropout", 0.0))
    if max(dropout_rates) > 0:
        raise InputError(
            f"activation_checkpointing needs a language model without dropout, and this one has {max(dropout_rates)}"
        )
    # Its name before transformers 5.24.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # When it checkpoints, transformers drops the cache, and with it the prompt that answers attend
    # to, unless a layer declares that it can handle a cache. Ours can: `kv_cache.FrozenPrefixLayer`
    # may run twice.
    for module in decoder.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module._can_checkpoint_with_cache = True


def _require_checkpoint(name: str) -> None:
    """Raise InputError for common mistakes: a missing path, a run's directory, or a pickle."""
    path = Path(name)
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise InputError(f"model {name}: no such directory; give a checkpoint directory or a Hub id (owner/name)")
    elif not (path / "config.json").is_file():
        model_dir = path / "model"
        suggestion = model_dir if (model_dir / "config.json").is_file() else "a checkpoint directory or a Hub id (owner/name)"
        raise InputError(f"model {name}: the directory holds no config.json; give {suggestion}")
    elif any(path.glob("pytorch_model*.bin")) and not any(path.glob("*.safetensors")):
        raise InputError(
            f"model {name} is a pickle (pytorch_model.bin), which could run code: load it in transformers, if you trust it, "
            "and save it with save_pretrained, which writes model.safetensors"
        )


def _eos_token_ids(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    """Return the end-of-sequence ids of the tokenizer and both configurations."""
    token_ids: set[int] = set()
    for value in (tokenizer.eos_token_id, model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id):
        token_ids |= set(value) if isinstance(value, (list, tuple)) else {value}
    return {i for i in token_ids if i is not None}


def _end_of_turn_ids(processor: Any, name: str) -> set[int]:
    """Return the special token, if any, that the chat template writes after an assistant's turn.

    Some checkpoints do not list it as an end-of-sequence token. It would then be suppressed, and a
    policy could never stop.
    """
    answer = Message("assistant", "\N{BULLET}")
    text = apply_chat_template(processor, [Message("user", "?"), answer], 0, generation_prompt=False, name=name)
    after = text.rpartition(answer.content)[2].lstrip()
    following_ids = processor.tokenizer(after, add_special_tokens=False)["input_ids"]
    special_ids = {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    return {following_ids[0]} & special_ids if following_ids else set()


def _suppressed_token_ids(model: PreTrainedModel, tokenizer: Any, eos: set[int]) -> list[int]:
    """Return the ids that must never be sampled.

    These are special tokens, ids that a configuration names, and rows of the embedding beyond the
    tokenizer, except ids that end an answer. A sampled image placeholder would make the next
    forward pass fail, or silently read another image's features.
    """
    token_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for config in (model.config, model.config.get_text_config()):
        token_ids |= {v for k, v in vars(config).items() if k.endswith(("_token_id", "_token_index")) and type(v) is int}
    num_embeddings = model.get_output_embeddings().weight.shape[0]
    return sorted(i for i in (token_ids | set(range(len(tokenizer), num_embeddings))) - eos if 0 <= i < num_embeddings)
