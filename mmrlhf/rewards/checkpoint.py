"""The reward model on disk, with what it takes to trust it: loading scores a few kept rows again, and refuses other scores.

adapter_model.safetensors, adapter_config.json    the adapter in PEFT's format; or model/, a whole checkpoint
head.safetensors                                  the scalar head
reward.json                                       base, fingerprints, how facts are read, scale, calibration, accuracy
reference.jsonl                                   a few rows, pictures and all, with the scores they had
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmrlhf.config import EngineConfig, PPOConfig
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import YES_NO_QUESTION, scalar_head
from mmrlhf.models.loading import load as load_vlm
from mmrlhf.models.vision_encoder import fingerprint
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Fact, ImageSource, InputError, Message
from mmrlhf.rewards.ledger import parse_reward_spec
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel

NUM_REFERENCE_ROWS = 4
"""Rows that are kept with their scores."""
SCORE_TOLERANCE = {"float32": 0.02, "bfloat16": 0.3, "nf4": 0.5}
"""By how many standard deviations a kept row's score may differ where it is loaded: another device, or another version of a kernel."""


def save_reward_model(model: RewardModel, directory: Path, groups: Sequence[AnswerGroup]) -> None:
    """Weights, card and the first few of the `reference` rows, of which there is one at least. A model whose base was trained is written
    whole."""
    role = model.role
    assert role.head is not None and groups
    directory.mkdir(parents=True, exist_ok=True)
    if role.adapter:
        role.adapters.save(role.adapter, directory)
        base_name = role.vlm.name
        base_metadata = {
            "base": str(Path(base_name).resolve()) if Path(base_name).is_dir() else base_name,
            "base_fingerprint": role.vlm.fingerprint,
        }
    else:
        temporary_dir, model_dir = directory / ".model", directory / "model"
        shutil.rmtree(temporary_dir, ignore_errors=True)
        role.vlm.model.save_pretrained(temporary_dir)
        role.vlm.processor.save_pretrained(temporary_dir)
        shutil.rmtree(model_dir, ignore_errors=True)
        temporary_dir.rename(model_dir)
        base_metadata = {"base": "model", "base_fingerprint": fingerprint(role.vlm.model.state_dict().items())}
    save_file({k: v.contiguous() for k, v in role.head.state_dict().items()}, directory / "head.safetensors")
    reference_groups = sorted(groups[: 4 * NUM_REFERENCE_ROWS], key=lambda g: sum(len(i.read()) for i in g.images))[
        :NUM_REFERENCE_ROWS
    ]
    scored_groups = zip(reference_groups, model.score(reference_groups), strict=True)
    write_atomic(
        directory / "reference.jsonl", "".join(json_line(_group_to_json(group, scores)) for group, scores in scored_groups)
    )
    metadata = {
        **base_metadata,
        "template_fingerprint": template_fingerprint(role.vlm),
        "dtype": role.vlm.dtype,
        "review": YES_NO_QUESTION,
        "facts": model.facts,
        "facts_position": model.facts_position,
        "facts_template": model.facts_template,
        "max_facts_tokens": model.max_facts_tokens,
        "mean": model.mean,
        "std": model.std,
        "temperature": model.temperature,
        "accuracy": model.accuracy,
        "probes": model.probes,
    }
    write_atomic(directory / "reward.json", json.dumps(metadata | {"seal": _checksum(directory, metadata)}, indent=1))


def _checksum(directory: Path, metadata: dict[str, Any]) -> str:
    """A hash of all that scores follow from: what was changed or exchanged by hand does not pass for what was trained. Where the base lies
    is left out: it may move."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in metadata.items() if k not in ("base", "seal")}, sort_keys=True).encode())
    for name in ("head.safetensors", "adapter_model.safetensors", "adapter_config.json", "reference.jsonl"):
        if (directory / name).is_file():
            digest.update(name.encode() + hashlib.sha256((directory / name).read_bytes()).digest())
    return digest.hexdigest()


def template_fingerprint(vlm: VLM) -> str:
    """A hash of the chat template and of what is done to pictures before the tower."""
    parts = (str(vlm.processor.chat_template), vlm.processor.image_processor.to_json_string())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def load_reward_model(
    path: str,
    adapters: Adapters | None = None,
    max_length: int = 2048,
    device: torch.device | str | None = None,
    engine: EngineConfig | None = None,
    adapter_name: str = "reward",
) -> RewardModel:
    """A saved reward model: on `adapters`' base, as the adapter `name`, where it belongs to that base in that precision, else on its own.

    Raises InputError when the directory is no reward model or was changed since, its base is gone or has changed, or it scores its kept
    rows otherwise than when it was saved.
    """
    directory = Path(path)
    if not (directory / "reward.json").is_file():
        raise InputError(f"reward model {path} does not exist: give the output_dir of a finished `mmrlhf reward` run")
    try:
        metadata = json.loads((directory / "reward.json").read_text())
        if metadata["review"] != YES_NO_QUESTION:
            raise InputError(f"reward model {path} was trained with another review turn: train it again with this version")
        if metadata["seal"] != _checksum(directory, metadata):
            raise InputError(
                f"reward model {path} is not as it was saved, a file of it was changed: copy it again, or train it again"
            )
        is_full_checkpoint = metadata["base"] == "model"
        if adapters is not None and (is_full_checkpoint or adapters.vlm.fingerprint != metadata["base_fingerprint"]):
            adapters = None
        elif adapters is not None and adapters.vlm.dtype != metadata["dtype"]:
            print(f"note: reward model {path} was calibrated in {metadata['dtype']}: it runs in that, on a base of its own")
            adapters = None
        adapters = adapters or _load_own_base(path, metadata, device, engine)
        if not is_full_checkpoint:
            adapters.load(adapter_name, directory, trainable=False)
        head = scalar_head(torch.zeros(adapters.vlm.hidden_size, device=adapters.vlm.device))
        head.load_state_dict(load_file(directory / "head.safetensors"))
        head.requires_grad_(False)
        model = RewardModel(
            role=Role(adapters, None if is_full_checkpoint else adapter_name, head),
            max_length=max_length,
            **{
                k: metadata[k]
                for k in ("facts", "facts_position", "facts_template", "max_facts_tokens", "mean", "std", "temperature")
            },
            **{k: metadata[k] for k in ("accuracy", "probes")},
        )
        _verify_reference_scores(model, path, metadata, read_jsonl(directory / "reference.jsonl"))
        return model
    except (InputError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"reward model {path} cannot be loaded ({reason}): copy it again, or train it again") from None


def _load_own_base(path: str, metadata: dict[str, Any], device: Any, engine: EngineConfig | None) -> Adapters:
    base = str(Path(path) / "model") if metadata["base"] == "model" else metadata["base"]
    try:
        adapters = Adapters(load_vlm(base, metadata["dtype"], device, engine))
    except InputError as error:
        raise InputError(f"reward model {path} needs the base it was trained on, and that {error}") from None
    if adapters.vlm.fingerprint != metadata["base_fingerprint"]:
        raise InputError(f"reward model {path} was trained on another base than {base} now holds: restore that base")
    return adapters


def _verify_reference_scores(model: RewardModel, path: str, metadata: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Score the kept rows again. Raises InputError when a score is another: then no score of this model can be trusted."""
    if template_fingerprint(model.role.vlm) != metadata["template_fingerprint"]:
        raise InputError(
            f"reward model {path} was trained with another chat template or image processor than {model.role.vlm.name} now has: "
            "restore them, or train it again"
        )
    new_scores = replace(model, max_length=1 << 30).score([_group_from_json(row) for row in rows])
    tolerance = SCORE_TOLERANCE[model.role.vlm.dtype]
    for row, scores in zip(rows, new_scores, strict=True):
        max_difference = max(abs(a - b) for a, b in zip(scores, row["scores"], strict=True))
        if not max_difference <= tolerance:
            raise InputError(
                f"reward model {path} scores row {row['id']} of its reference.jsonl {max_difference:.2g} standard deviations from what it did when "
                f"it was saved (at most {tolerance:g}): use the versions and the precision it was trained with, or train it again"
            )


def _group_to_json(group: AnswerGroup, scores: Sequence[float]) -> dict[str, Any]:
    return {
        "id": group.id,
        "images": [{"base64": base64.b64encode(image.read()).decode()} for image in group.images],
        "prompt": [asdict(message) for message in group.prompt],
        "answers": list(group.answers),
        "facts": [asdict(fact) for fact in group.facts],
        "scores": list(scores),
    }


def _group_from_json(row: dict[str, Any]) -> AnswerGroup:
    facts = tuple(Fact(**(fact | {"box": fact["box"] and tuple(fact["box"])})) for fact in row["facts"])
    images = tuple(ImageSource(data=base64.b64decode(image["base64"])) for image in row["images"])
    return AnswerGroup(images, tuple(Message(**m) for m in row["prompt"]), tuple(row["answers"]), facts, row["id"])


def reward_model_paths(config: PPOConfig) -> list[str]:
    return [path.strip() for path in (config.reward_model_path or "").split(",") if path.strip()]


def load_reward_models(config: PPOConfig, adapters: Adapters, accelerator: Accelerator) -> list[RewardModel]:
    """Those that the term fact_rm reads; none where it is not asked for. Raises InputError for one that fails too many probes."""
    if "fact_rm" not in parse_reward_spec(config.reward_terms):
        return []
    if not reward_model_paths(config):
        raise InputError("reward_terms names fact_rm: give --reward_model_path, or leave fact_rm out")
    reward_models = []
    for index, path in enumerate(reward_model_paths(config)):
        adapter_name = "reward" if index == 0 else f"reward_{index}"
        reward_model = load_reward_model(path, adapters, config.max_length, accelerator.device, config, adapter_name)
        if config.min_probe_detection_rate and not reward_model.probes:
            print(
                f"note: reward model {path} was never probed for false claims: it was trained without facts that such claims are made of"
            )
        for kind, detection_rate in reward_model.probes.items():
            if detection_rate < config.min_probe_detection_rate:
                raise InputError(
                    f"reward model {path} lowers its score for {detection_rate:.0%} of planted false claims of type {kind}, less than "
                    f"min_probe_detection_rate {config.min_probe_detection_rate:g}: a policy would learn to make them; train it on such pairs, or lower "
                    "--min_probe_detection_rate"
                )
        reward_models.append(reward_model)
    return reward_models
