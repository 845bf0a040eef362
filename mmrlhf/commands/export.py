"""`mmrlhf export`: write a trained model that other programs can load, and publish it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from mmrlhf.commands.hub import check_repo_id, push_folder
from mmrlhf.commands.model_card import AdapterFacts, CardFacts, Kind, model_card
from mmrlhf.commands.training_record import (
    Evaluation,
    TrainingRecord,
    policy_evaluations,
    read_lineage,
    result_evaluation,
    reward_model_evaluations,
    run_of,
)
from mmrlhf.config import ExportConfig
from mmrlhf.evaluation.results import Result, read_results
from mmrlhf.files.atomic import atomic_folder, refuse_unwritable, write_atomic
from mmrlhf.files.hub_names import is_hub_id
from mmrlhf.files.inputs import content_digest
from mmrlhf.files.writing import is_disk_full
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.export import merge, save_checkpoint, save_policy
from mmrlhf.models.loading import load
from mmrlhf.models.lora_layers import LANGUAGE_MODEL
from mmrlhf.models.policy import check_is_adapter, check_same_base
from mmrlhf.records import InputError
from mmrlhf.rewards.checkpoint import copy_reward_model, load_reward_model

KINDS: Mapping[Kind, str] = {
    "model": "a whole model",
    "adapter": "an adapter with its processor",
    "reward model": "a reward model",
}


def export(config: ExportConfig) -> Path:
    """Write a whole model, an adapter or a reward model, each with a model card; return the folder.

    Raises InputError if the folder has content, or the model, the adapter or a result of eval
    cannot be used; also if the Hub refuses the finished folder, which is kept.
    """
    output_dir, adapter_dir = Path(config.output_dir), Path(config.adapter_path) if config.adapter_path else None
    kind = _kind_of(config)
    _check_output(config)
    _check_hub_settings(config, kind)
    if adapter_dir is not None and kind != "reward model":
        check_is_adapter(adapter_dir)
    records = read_lineage(config.model_name_or_path, adapter_dir)
    evaluations = _evaluations(config, kind, records)
    try:
        with atomic_folder(output_dir) as folder:
            write = _write_reward_model if kind == "reward model" else _write_policy
            adapter = write(config, folder)
            model = config.model_name_or_path
            facts = CardFacts(kind, config.output_dir, config.hub_model_id, model, records, evaluations, adapter)
            write_atomic(folder / "README.md", model_card(facts))
    except Exception as error:
        if is_disk_full(error):
            raise InputError(f"{output_dir} is on a full disk: make room, nothing is written") from None
        raise
    if config.hub_model_id:
        print("note: the model card names no licence, which is yours to choose: add `license: NAME` to its head")
    print(f"{output_dir} holds {KINDS[kind]}; {output_dir / 'README.md'} says how to load it")
    if config.push_to_hub and config.hub_model_id:
        print(f"pushed to {push_folder(output_dir, config.hub_model_id, config.hub_private_repo)}")
    return output_dir


def _kind_of(config: ExportConfig) -> Kind:
    """Return the kind of output. Raises InputError for settings that contradict each other."""
    if (Path(config.model_name_or_path) / "reward.json").is_file():
        raise InputError(
            f"model {config.model_name_or_path} is a reward model: give it as --adapter_path, and its base as --model_name_or_path"
        )
    if config.adapter_path is None:
        if config.merge:
            raise InputError("--merge needs an adapter: give --adapter_path, or leave --merge out to write the model as it is")
        return "model"
    if not (Path(config.adapter_path) / "reward.json").is_file():
        return "model" if config.merge else "adapter"
    if config.merge or config.dtype:
        setting = "--merge" if config.merge else "--dtype"
        raise InputError(
            f"adapter {config.adapter_path} is a reward model, which is written as it was trained, with its head: leave {setting} out"
        )
    return "reward model"


def _check_output(config: ExportConfig) -> None:
    output_dir = Path(config.output_dir)
    if output_dir.resolve() == Path.cwd():
        raise InputError(f"output_dir {output_dir} is the folder that you are in: name a new one")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"output_dir {output_dir} is not empty: give another --output_dir or remove it")
    refuse_unwritable(output_dir, "output_dir")


def _check_hub_settings(config: ExportConfig, kind: Kind) -> None:
    """Raise InputError, before a model is loaded, for a model that others could not load."""
    if config.hub_model_id is not None:
        check_repo_id(config.hub_model_id)
    if not config.push_to_hub:
        return
    if config.hub_model_id is None:
        raise InputError("push_to_hub needs a place: give --hub_model_id OWNER/NAME")
    is_whole = kind == "model" or _is_whole_reward_model(Path(config.adapter_path or ""))
    if not is_whole and not is_hub_id(config.model_name_or_path):
        merged = ", or give --merge" if kind == "adapter" else ""
        raise InputError(
            f"push_to_hub: the adapter needs its base {config.model_name_or_path}, which others do not have: push the base first "
            f"and give its Hub id as --model_name_or_path{merged}"
        )
    if kind == "reward model" and config.hub_private_repo is None:
        raise InputError(
            "push_to_hub: a reward model holds a few rows of its data with their images (reference.jsonl): give "
            "--hub_private_repo true, or false if everybody may see them"
        )


# ---- writing -------------------------------------------------------------------------------------


def _write_policy(config: ExportConfig, folder: Path) -> AdapterFacts | None:
    """Write a whole model or an adapter; return an adapter's properties for the card."""
    vlm = load(config.model_name_or_path, config.dtype or _stored_dtype(config.model_name_or_path), "cpu")
    if config.adapter_path is None:
        save_checkpoint(vlm, folder)
        return None
    adapter_dir, adapters = Path(config.adapter_path), Adapters(vlm)
    check_same_base(adapter_dir, vlm)
    adapters.load("policy", adapter_dir, trainable=False)
    if config.merge:
        merge(adapters, "policy")
        save_checkpoint(vlm, folder)
        return None
    save_policy(adapters, "policy", folder, final_directory=Path(config.output_dir))
    return _adapter_facts(adapters, "policy", folder)


def _write_reward_model(config: ExportConfig, folder: Path) -> AdapterFacts | None:
    """Write a reward model that scores as in training; return its adapter's entries of the card."""
    path = str(config.adapter_path)
    model = load_reward_model(path, device="cpu", base_model_name_or_path=config.model_name_or_path)
    copy_reward_model(model, Path(path), folder)
    role = model.role
    return _adapter_facts(role.adapters, role.adapter, folder) if role.adapter else None


def _is_whole_reward_model(path: Path) -> bool:
    return (path / "model" / "config.json").is_file()


def _adapter_facts(adapters: Adapters, name: str, folder: Path) -> AdapterFacts:
    """Return the rank of an adapter's layers, and whether vLLM applies it: vLLM ignores layers
    outside the language model, and does not support DoRA."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
    num_beside = sum(n for part, n in adapters.count_weights(name).items() if part != LANGUAGE_MODEL)
    return AdapterFacts(rank, not num_beside and not settings.get("use_dora"))


def _stored_dtype(name: str) -> str:
    """Return the precision of a checkpoint's weights, in which merging rounds only once."""
    try:
        dtype = getattr(AutoConfig.from_pretrained(name), "dtype", None)
    except (OSError, ValueError, KeyError):  # loading reports it
        dtype = None
    return str(dtype).removeprefix("torch.") if dtype in (torch.bfloat16, torch.float16) else "float32"


# ---- figures -------------------------------------------------------------------------------------


def _evaluations(config: ExportConfig, kind: Kind, records: Sequence[TrainingRecord]) -> list[Evaluation]:
    """Return the figures of the given results, and those of the run itself.

    Raises InputError for a result of another model.
    """
    paths = [path.strip() for path in (config.eval_results or "").split(",") if path.strip()]
    results = [result for path in paths for result in read_results(path)]
    for result in results:
        _check_measured(result, config, kind)
    folder = Path(config.adapter_path or config.model_name_or_path)
    run = run_of(folder)
    own = []
    if kind == "reward model":
        metadata = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
        own = reward_model_evaluations(folder, metadata)
    elif run is not None:
        own = [evaluation for record in records if record.path == run for evaluation in policy_evaluations(record, folder)]
    return [*map(result_evaluation, results), *own]


def _check_measured(result: Result, config: ExportConfig, kind: Kind) -> None:
    """Raise InputError if a result belongs to another model; print a note if it names none."""
    try:
        key: Any = json.loads((result.folder / "run_key.json").read_text(encoding="utf-8"))
        measured = {name: key.get(name) for name in ("model_name_or_path", "adapter_path", "reward_model_path")}
    except (OSError, ValueError, AttributeError, RecursionError):
        measured = {}
    written: dict[str, str | None] = {"model_name_or_path": config.model_name_or_path, "adapter_path": config.adapter_path}
    if kind == "reward model":
        written = {"reward_model_path": config.adapter_path}
    if not any(measured.values()):
        print(f"note: {result.folder} scores answers of a file, which does not say which model wrote them: it is taken on trust")
        return
    for name, path in written.items():
        digest = content_digest(path) if path else None
        there = measured.get(name)
        is_same = there.get("sha256") == digest if isinstance(there, dict) and digest else there == path
        if not is_same:
            place = there.get("path") if isinstance(there, dict) else there or "none"
            raise InputError(
                f"eval_results {result.folder} measured another model than is exported ({name} {place}, not {path or 'none'}): "
                "run eval on this one"
            )
