"""Save and load a reward model.

Loading scores a few saved rows again, and rejects the model if the scores differ. The directory
has:

adapter_model.safetensors, adapter_config.json    the adapter in PEFT's format, or
model/                                            a full checkpoint
head.safetensors                                  the scalar head
reward.json                                       base, fingerprints, settings, scale, accuracy
reference.jsonl                                   a few rows with their images and scores
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmrlhf.config import EngineConfig, PixelConfig, RewardConfig
from mmrlhf.datasets import have_facts
from mmrlhf.facts import load_facts_template
from mmrlhf.files.atomic import atomic_folder, write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.models.adapters import Adapters, Role, absolute_name
from mmrlhf.models.export import save_checkpoint
from mmrlhf.models.fingerprints import fingerprint
from mmrlhf.models.finite import check_finite
from mmrlhf.models.heads import YES_NO_QUESTION, scalar_head
from mmrlhf.models.loading import load as load_vlm
from mmrlhf.models.lost_process import LostProcessError
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, Fact, ImageSource, InputError, Message, PlacedImage, Preference
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel, untrained_role
from mmrlhf.text.printable import first_line

NUM_REFERENCE_ROWS = 4
"""Number of rows saved with their scores."""
MAX_SCORE_CHANGE = {"float32": 0.02, "bfloat16": 0.3, "nf4": 0.5}
"""Allowed change of a saved row's score on another device, in standard deviations, by precision."""


# ---- saving ------------------------------------------------------------------------------------


def save_reward_model(model: RewardModel, directory: Path, groups: Sequence[AnswerGroup]) -> None:
    """Save weights, metadata, and a few of `groups` as reference rows. `groups` must not be empty.

    If the model has no adapter, its full base model is saved too.
    """
    role = model.role
    assert role.head is not None and groups
    directory.mkdir(parents=True, exist_ok=True)
    if role.adapter:
        role.adapters.save(role.adapter, directory)
        base_metadata = {"base": absolute_name(role.vlm.name), "base_fingerprint": role.vlm.fingerprint}
    else:
        with atomic_folder(directory / "model") as model_dir:
            save_checkpoint(role.vlm, model_dir)
        base_metadata = {"base": "model", "base_fingerprint": fingerprint(role.vlm.model.state_dict().items())}
    save_file({k: v.contiguous() for k, v in role.head.state_dict().items()}, directory / "head.safetensors")
    _save_reference_rows(model, directory, groups)
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
        "j": model.j,
        "untrained_prior": model.prior is not None,
    }
    # The checksum covers the files above, so reward.json is written last.
    write_atomic(directory / "reward.json", json.dumps(metadata | {"seal": _checksum(directory, metadata)}, indent=1))


def copy_reward_model(model: RewardModel, source: Path, directory: Path) -> None:
    """Write a reward model loaded from `source`, with the name under which its base was loaded."""
    role = model.role
    directory.mkdir(parents=True, exist_ok=True)
    metadata = json.loads((source / "reward.json").read_text(encoding="utf-8"))
    if role.adapter:
        role.adapters.save(role.adapter, directory)
        metadata["base"] = absolute_name(role.vlm.name)
    else:
        save_checkpoint(role.vlm, directory / "model")
    for name in ("head.safetensors", "reference.jsonl"):
        shutil.copyfile(source / name, directory / name)
    write_atomic(directory / "reward.json", json.dumps(metadata | {"seal": _checksum(directory, metadata)}, indent=1))


def _image_bytes(group: AnswerGroup) -> int:
    in_answers = [placed.source for images in group.answer_images for placed in images]
    return sum(len(image.read()) for image in (*group.images, *in_answers))


def _save_reference_rows(model: RewardModel, directory: Path, groups: Sequence[AnswerGroup]) -> None:
    """Write those of the first few rows that have the smallest images, with their scores."""
    candidates = groups[: 4 * NUM_REFERENCE_ROWS]
    reference_groups = sorted(candidates, key=_image_bytes)[:NUM_REFERENCE_ROWS]
    lines = [
        json_line(_group_to_json(group, scores))
        for group, scores in zip(reference_groups, model.score(reference_groups), strict=True)
    ]
    write_atomic(directory / "reference.jsonl", "".join(lines))


def _checksum(directory: Path, metadata: dict[str, Any]) -> str:
    """Return a hash of everything that determines scores, to detect files changed by hand.

    The path of the base, which may move, is excluded.
    """
    hashed_metadata = {k: v for k, v in metadata.items() if k not in ("base", "seal")}
    digest = hashlib.sha256(json.dumps(hashed_metadata, sort_keys=True).encode())
    for name in ("head.safetensors", "adapter_model.safetensors", "adapter_config.json", "reference.jsonl"):
        if (directory / name).is_file():
            digest.update(name.encode() + hashlib.sha256((directory / name).read_bytes()).digest())
    return digest.hexdigest()


def template_fingerprint(vlm: VLM) -> str:
    """Return a hash of the chat template and of the image preprocessing."""
    parts = (str(vlm.processor.chat_template), vlm.processor.image_processor.to_json_string())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# ---- loading -----------------------------------------------------------------------------------


def load_reward_model(
    path: str,
    adapters: Adapters | None = None,
    max_length: int = 2048,
    device: torch.device | str | None = None,
    engine: EngineConfig | None = None,
    pixels: PixelConfig | None = None,
    *,
    adapter_name: str = "reward",
    base_model_name_or_path: str | None = None,
    in_turns: bool = False,
) -> RewardModel:
    """Load a saved reward model.

    If `adapters` has the base and the precision that the reward model was trained with, it is
    loaded there as the adapter `adapter_name`. Otherwise it is loaded on its own copy of its base,
    from `base_model_name_or_path` if the base has moved. With `in_turns` all processes call this,
    and read that base in turns.

    Raises InputError if the directory is not a reward model or has changed since it was saved, if
    its base is missing or has changed, or if its reference rows now score differently.
    """
    directory = Path(path)
    if not (directory / "reward.json").is_file():
        raise InputError(f"reward model {path} does not exist: give the output_dir of a finished `mmrlhf reward` run")
    try:
        metadata = json.loads((directory / "reward.json").read_text())
        _check_metadata(path, metadata)
        is_full_checkpoint = metadata["base"] == "model"
        if adapters is None or not _fits_base(path, metadata, adapters.vlm):
            loading = {"device": device, "engine": engine, "pixels": pixels, "in_turns": in_turns}
            adapters = _load_own_base(path, metadata, base_model_name_or_path, loading)
        if not is_full_checkpoint:
            adapters.load(adapter_name, directory, trainable=False)
        head = scalar_head(torch.zeros(adapters.vlm.hidden_size, device=adapters.vlm.device))
        head.load_state_dict(load_file(directory / "head.safetensors"))
        check_finite(head.named_parameters(), f"reward model {path}")
        head.requires_grad_(False)
        model = RewardModel(
            role=Role(adapters, None if is_full_checkpoint else adapter_name, head),
            facts=metadata["facts"],
            facts_position=metadata["facts_position"],
            facts_template=metadata["facts_template"],
            max_facts_tokens=metadata["max_facts_tokens"],
            mean=metadata["mean"],
            std=metadata["std"],
            temperature=metadata["temperature"],
            accuracy=metadata["accuracy"],
            probes=metadata["probes"],
            j=metadata.get("j", {}),  # mmrlhf 0.3 and earlier measured none
            prior=untrained_role(adapters) if metadata.get("untrained_prior") else None,
            max_length=max_length,
        )
        _verify_reference_scores(model, path, metadata, read_jsonl(directory / "reference.jsonl"))
        return model
    except (InputError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"reward model {path} cannot be loaded ({first_line(error)}): copy it again, or train it again"
        ) from None


def _check_metadata(path: str, metadata: dict[str, Any]) -> None:
    """Raise InputError if the version or the yes/no question differs, or a file has changed."""
    if "facts_budget" in metadata:
        raise InputError(f"reward model {path} was saved by mmrlhf 0.1, whose format has changed: train it again")
    if metadata["review"] != YES_NO_QUESTION:
        raise InputError(f"reward model {path} was trained with another yes/no question: train it again with this version")
    if metadata["seal"] != _checksum(Path(path), metadata):
        raise InputError(f"reward model {path} has a file that changed since it was saved: copy it again, or train it again")


def _fits_base(path: str, metadata: dict[str, Any], vlm: VLM) -> bool:
    """Return whether `vlm` is the model's base; print a note if only the precision differs."""
    if metadata["base"] == "model" or vlm.fingerprint != metadata["base_fingerprint"]:
        return False
    if vlm.dtype != metadata["dtype"]:
        print(f"note: reward model {path} was calibrated in {metadata['dtype']}: it runs in that precision, on its own base")
        return False
    return True


def _load_own_base(path: str, metadata: dict[str, Any], moved_base: str | None, loading: Mapping[str, Any]) -> Adapters:
    """Load the base of a reward model; `loading` are further arguments of `models.loading.load`.

    Raises InputError if it is missing or has changed.
    """
    base = str(Path(path) / "model") if metadata["base"] == "model" else moved_base or metadata["base"]
    try:
        adapters = Adapters(load_vlm(base, metadata["dtype"], **loading))
    except LostProcessError:
        raise  # another process may have failed on the base, and says so
    except InputError as error:
        hint = ""
        if metadata["base"] != "model" and moved_base is None:
            hint = f"; if it has moved, give --base_model_name_or_path, or write its place as `base` in {path}/reward.json"
        raise InputError(f"reward model {path} needs the base it was trained on: {error}{hint}") from None
    if adapters.vlm.fingerprint != metadata["base_fingerprint"]:
        raise InputError(f"reward model {path} was trained on a different base from the one now in {base}: restore its base")
    return adapters


def _verify_reference_scores(model: RewardModel, path: str, metadata: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Raise InputError if a reference row now scores differently: then no score can be trusted."""
    if template_fingerprint(model.role.vlm) != metadata["template_fingerprint"]:
        raise InputError(
            f"reward model {path} was trained with a different chat template or image processor from those of "
            f"{model.role.vlm.name} now: restore them, give the min_pixels and max_pixels that reward was given, or train it again"
        )
    # The rows fitted when they were saved; a smaller max_length must not reject them now.
    unlimited_model = model.without_limit()
    new_scores = unlimited_model.score([_group_from_json(row) for row in rows])
    tolerance = MAX_SCORE_CHANGE[model.role.vlm.dtype]
    for row, scores in zip(rows, new_scores, strict=True):
        max_difference = max(abs(a - b) for a, b in zip(scores, row["scores"], strict=True))
        if not max_difference <= tolerance:  # `not <=` also catches NaN
            raise InputError(
                f"reward model {path} scores row {row['id']} of its reference.jsonl {max_difference:.2g} standard deviations "
                f"away from its saved score (tolerance {tolerance:g}): use the package versions and the precision it was "
                "trained with, or train it again"
            )


def _group_to_json(group: AnswerGroup, scores: Sequence[float]) -> dict[str, Any]:
    return {
        "id": group.id,
        "images": [{"base64": base64.b64encode(image.read()).decode()} for image in group.images],
        "prompt": [message.to_dict() for message in group.prompt],
        "answers": list(group.answers),
        "answer_images": [[[i.position, base64.b64encode(i.source.read()).decode()] for i in row] for row in group.answer_images],
        "facts": [asdict(fact) for fact in group.facts],
        "scores": list(scores),
    }


def _group_from_json(row: dict[str, Any]) -> AnswerGroup:
    facts = tuple(Fact(**(fact | {"box": fact["box"] and tuple(fact["box"])})) for fact in row["facts"])
    images = tuple(ImageSource(data=base64.b64decode(image["base64"])) for image in row["images"])
    prompt = tuple(Message(m["role"], m["content"], tuple(m.get("image_positions", ()))) for m in row["prompt"])
    answer_images = tuple(
        tuple(PlacedImage(position, ImageSource(data=base64.b64decode(data))) for position, data in placed)
        for placed in row.get("answer_images", ())
    )
    return AnswerGroup(images, prompt, tuple(row["answers"]), facts, row["id"], answer_images)


# ---- for those who score ------------------------------------------------------------------------


def print_facts_note(path: str, model: RewardModel, rows: Sequence[Example] | Sequence[Preference]) -> None:
    """Print a note if a model was trained with facts, and the rows that it scores have none."""
    if model.facts == "given" and not have_facts(rows):
        print(
            f"note: {path} was trained with facts, and these rows have none: "
            "give --facts_file, unless it is meant to score without them"
        )


# ---- for a further round of reward --------------------------------------------------------------


def check_continues(config: RewardConfig) -> bool:
    """Return whether `adapter_path` is a reward model, whose training then continues with its head.

    Raises InputError, before a model is loaded, if it has no adapter or other settings.
    """
    path = Path(config.adapter_path or "")
    if config.adapter_path is None or not (path / "reward.json").is_file():
        return False
    try:
        metadata = json.loads((path / "reward.json").read_text(encoding="utf-8"))
        saved = {name: metadata.get(name, False) for name in ("facts", "facts_position", "facts_template", "untrained_prior")}
        has_adapter = metadata["base"] != "model"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path / 'reward.json'} cannot be read as the reward stage wrote it: copy the model again") from None
    if not has_adapter or config.tuning == "full":
        raise InputError(
            f"adapter_path {path} is a reward model, which trains on with tuning lora or head only, and with its adapter: "
            "give one that was not trained with tuning full"
        )
    for name, value in saved.items():
        wanted = load_facts_template(config.facts_template) if name == "facts_template" else getattr(config, name)
        if wanted != value:
            raise InputError(
                f"adapter_path {path} is a reward model with another {name} than {json.dumps(getattr(config, name))}: give the "
                "one of its config.yaml"
            )
    return True


def load_to_continue(path: str, adapters: Adapters, config: RewardConfig) -> Role:
    """Return the role `reward` of a saved reward model on its base, with a trainable head.

    Raises InputError if the base is another one, and like `load_reward_model`.
    """
    metadata = json.loads((Path(path) / "reward.json").read_text(encoding="utf-8"))
    if adapters.vlm.fingerprint != metadata["base_fingerprint"] or adapters.vlm.dtype != metadata["dtype"]:
        raise InputError(
            f"adapter_path {path} is a reward model on {metadata['base']} in {metadata['dtype']}, and {adapters.vlm.name} in "
            f"{adapters.vlm.dtype} holds other weights: give that model and --dtype {metadata['dtype']}"
        )
    role = load_reward_model(path, adapters, config.max_length, engine=config, pixels=config).role
    assert role.head is not None
    role.head.requires_grad_(True)
    for parameter in adapters.parameters("reward").values():
        parameter.requires_grad_(True)
    return role
