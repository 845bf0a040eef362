"""A checkpoint, or a model that is there already, made into a `VLM`: frozen, in its precision, with what it may say and where it ends."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from mmrlhf.config import EngineConfig
from mmrlhf.models.image_features import FeatureCache
from mmrlhf.models.kv_cache import supports_packing
from mmrlhf.models.micro_batch import Budget
from mmrlhf.models.vision_encoder import Encoder, fingerprint
from mmrlhf.models.vlm import VLM, EngineState, apply_chat_template
from mmrlhf.records import InputError, Message


def load(name: str, dtype: str = "float32", device: torch.device | str | None = None, engine: EngineConfig | None = None) -> VLM:
    """A checkpoint directory or Hub id, frozen, in eval mode (dropout off); on the GPU where there is one, unless told otherwise.

    Raises InputError when it is not there or holds no image-text-to-text model.
    """
    _require_checkpoint(name)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        processor = AutoProcessor.from_pretrained(name)
        model, loading_info = AutoModelForImageTextToText.from_pretrained(
            name,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_precision_kwargs(name, dtype, device),
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        not_found = "" if Path(name).is_dir() else "no such directory, and as a Hub id: "
        raise InputError(
            f"model {name} cannot be loaded ({not_found}{reason}): give the directory or Hub id of an image-text-to-text model"
        ) from None
    if bad_keys := sorted({*loading_info["missing_keys"], *(key for key, *_ in loading_info["mismatched_keys"])}):
        raise InputError(
            f"model {name} lacks {len(bad_keys)} of its weights or has them in another shape, {bad_keys[0]} first: config.json and "
            "weights do not belong together, copy the checkpoint again"
        )
    if getattr(processor, "chat_template", None) is None:
        raise InputError(f"model {name} has no chat template: put a chat_template.jinja beside its config.json")
    vlm = wrap(model if dtype == "nf4" else model.to(device), processor, name, engine)
    vlm.dtype = dtype  # nf4 is more than the model's own says
    return vlm


def _precision_kwargs(name: str, dtype: str, device: torch.device) -> dict[str, Any]:
    """How transformers is told of a precision: 4 bits for the language model's layers (QLoRA, Dettmers et al. 2023), the rest in bfloat16."""
    if dtype != "nf4":
        return {"dtype": getattr(torch, dtype)}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("dtype nf4 needs bitsandbytes: pip install 'mmrlhf[quantization]'")
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


def wrap(model: PreTrainedModel, processor: Any, name: str, engine: EngineConfig | None = None) -> VLM:
    """A model that is there already, on its device, with its processor: frozen and in eval mode from here on."""
    model.requires_grad_(False).eval()
    tokenizer, engine = processor.tokenizer, engine or EngineConfig()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    cache = FeatureCache(model.device, engine.feature_memory_gib, engine.feature_cache_dir, engine.feature_disk_gib)
    one_image_text, two_image_text = (
        apply_chat_template(processor, [Message("user", "?")], num_images, generation_prompt=True) for num_images in (1, 2)
    )
    eos = _eos_token_ids(model, tokenizer) | _end_of_turn_ids(processor)
    if engine.activation_checkpointing:
        _enable_activation_checkpointing(model)
    return VLM(
        name=name,
        model=model,
        processor=processor,
        suppressed_tokens=torch.tensor(_suppressed_token_ids(model, tokenizer, eos), device=model.device),
        eos=tuple(sorted(eos)),
        encoder=Encoder(model, processor, cache, one_image_text, two_image_text),
        budget=Budget(engine.micro_batch_tokens),
        engine=EngineState(
            share_prefix=engine.share_prefix,
            supports_packing=supports_packing(model),
            use_cuda_graphs=model.device.type == "cuda" and supports_packing(model),
        ),
        dtype=str(model.dtype).removeprefix("torch."),
        fingerprint=fingerprint(model.state_dict().items()),
    )


def _enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Recompute the language model's layers in backward. transformers drops the cache when it checkpoints, and log-probs with it,
    unless a layer says that it can do with one: ours are written so that a layer may run twice (`kv.Joined`)."""
    model.base_model.get_decoder().train()  # checkpointing acts in train mode only; dropout is 0 in every layer, or refused here
    dropout_rates = {m.p for m in model.base_model.get_decoder().modules() if isinstance(m, torch.nn.Dropout)}
    if dropout_rates := (dropout_rates | {getattr(model.config.get_text_config(), "attention_dropout", 0.0)}) - {0.0}:
        raise InputError(
            f"activation_checkpointing needs a language model without dropout, and this one has {max(dropout_rates)}"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.base_model.get_decoder().modules():
        if isinstance(module, GradientCheckpointingLayer):
            module._can_checkpoint_with_cache = True


def _require_checkpoint(name: str) -> None:
    """What is given instead, most often: a path that is not there, or the directory of the run that made the model."""
    path = Path(name)
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise InputError(f"model {name}: no such directory; give a checkpoint directory or a Hub id (owner/name)")
    elif not (path / "config.json").is_file():
        model_dir = path / "model"
        suggestion = model_dir if (model_dir / "config.json").is_file() else "a checkpoint directory or a Hub id (owner/name)"
        raise InputError(f"model {name}: the directory holds no config.json; give {suggestion}")


def _eos_token_ids(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    token_ids: set[int] = set()
    for value in (tokenizer.eos_token_id, model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id):
        token_ids |= set(value) if isinstance(value, (list, tuple)) else {value}
    return {i for i in token_ids if i is not None}


def _end_of_turn_ids(processor: Any) -> set[int]:
    """The special token that the chat template writes after an assistant's turn: some checkpoints leave it out of their lists of
    ends, and a policy that is kept from saying it could never stop."""
    answer = Message("assistant", "\N{BULLET}")
    text = apply_chat_template(processor, [Message("user", "?"), answer], 0, generation_prompt=False)
    following_ids = processor.tokenizer(text[text.rindex(answer.content) + 1 :], add_special_tokens=False)["input_ids"]
    special_ids = {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    return {following_ids[0]} & special_ids if following_ids else set()


def _suppressed_token_ids(model: PreTrainedModel, tokenizer: Any, eos: set[int]) -> list[int]:
    """Special added tokens, every id that a config names, and rows of the embedding beyond the tokenizer; minus each EOS.

    A sampled image placeholder would make the next forward fail, or silently read another picture's features.
    """
    token_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for config in (model.config, model.config.get_text_config()):
        token_ids |= {v for k, v in vars(config).items() if k.endswith(("_token_id", "_token_index")) and type(v) is int}
    num_embeddings = model.get_output_embeddings().weight.shape[0]
    return sorted(i for i in (token_ids | set(range(len(tokenizer), num_embeddings))) - eos if 0 <= i < num_embeddings)
