"""The settings and inputs of a run, compared with those of the run that it resumes.

config.yaml      settings
inputs.json      hashes of data, images, weights and reward functions, the number of processes,
                 and versions of packages
changes.jsonl    changes by `--allow_change` during the run, and after which step
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrlhf.config import EngineConfig, loader
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.inputs import changed_names, content_inputs, describe_change, package_versions
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.records import InputError
from mmrlhf.training import checkpoint_files

RESUMABLE_CHANGES = (
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "allow_change",
    "stop_on_warning",
    "report_to",
    "output_dir",
    "base_model_name_or_path",
    "vllm_server_timeout",
    "vllm_gpu_memory_utilization",
    *EngineConfig.__dataclass_fields__,
)
"""Settings that may differ between a run and its resumption, because they do not affect training:
engine settings (say, smaller micro-batches after a GPU ran out of memory) change the last bits at
most. A run directory may be moved or renamed, and so may a reward model's base, whose fingerprint
is compared."""
ROWS, WEIGHTS = "determines the rows of a step", "determines the weights of a checkpoint"
FIXED_SETTINGS = {
    **dict.fromkeys(
        ("dataset_name", "dataset_train_split", "image_folder", "max_length", "overlong", "balance_lengths", "seed",
         "num_processes", "per_device_train_batch_size"),
        ROWS,
    ),
    **dict.fromkeys(
        ("model_name_or_path", "adapter_path", "reward_model_path", "dtype", "tuning", "lora_r", "lora_alpha",
         "lora_target_modules", "head_init", "untrained_prior", "advantage_estimator", "use_critic", "async_steps",
         "sync_ref_model"),
        WEIGHTS,
    ),
}  # fmt: skip
"""Settings that cannot change during a run, and why. Others may with `--allow_change`."""
LATER_SETTINGS = {"async_steps": 0, "load_best_model_at_end": False, "mask_truncated_completions": False}
"""Settings that runs of version 0.3.0 may lack, with the values that describe those runs."""
GLOBAL_BATCH = ("num_processes", "per_device_train_batch_size")
"""They may change together if their product, the rows of a step, stays the same."""


class RunInputs:
    """The inputs of a run, compared with those that the run in its directory began with.

    current: values by name, as files/inputs.py has them. `add` adds to them.
    """

    def __init__(self, folder: Path, config: Any, num_processes: int) -> None:
        """Compare with the run in `folder`, if there is one.

        Raises InputError if it has other settings or inputs that `allow_change` does not name, and
        for held-out rows that are the training rows.
        """
        self.folder, self._config = folder, config
        self.current: dict[str, Any] = {**content_inputs(config), "num_processes": num_processes}
        self._refuse_training_data()
        self.notes: list[str] = []
        """Lines to print."""
        self.changed: set[str] = set()
        """Settings and inputs that differ from those of that run, as `allow_change` permits."""
        self._allowed = _allowed_changes(config)
        self._saved: dict[str, Any] | None = None
        self._saved_versions: dict[str, str] = {}
        self._changes: list[dict[str, Any]] = []
        self._global_batches = (0, 0)
        """Rows of a step, in that run and in this one."""
        if (folder / "config.yaml").exists():
            self._read()
            saved = loader.current_names(loader.read_yaml(folder / "config.yaml"))
            self._compare_settings(saved, dataclasses.asdict(config))

    def _refuse_training_data(self) -> None:
        held_out, data = (self.current.get(name) for name in ("eval_dataset_name", "dataset_name"))
        if held_out and data and held_out["sha256"] and held_out["sha256"] == data["sha256"]:
            raise InputError(
                f"eval_dataset_name {held_out['path']} has the rows that are trained on, and accuracy on those says nothing about "
                "others: give held-out rows"
            )

    def _read(self) -> None:
        """Read inputs.json, which runs of earlier versions lack."""
        path = self.folder / "inputs.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            self._saved, self._saved_versions = dict(saved["inputs"]), dict(saved["versions"])
        except FileNotFoundError:
            self.notes.append(
                f"note: {self.folder} does not say what its run was made from (no inputs.json): only settings are compared"
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path} is damaged: remove it to compare only settings") from None

    def write(self) -> None:
        """Write settings and inputs, the latter as at the beginning of the run."""
        self._write_changes()
        loader.save_config(self._config, self.folder / "config.yaml")
        self._write_inputs()

    def add(self, inputs: Mapping[str, Any], *, write: bool) -> None:
        """Add inputs, and write them if the run has begun.

        Raises InputError if the run began with others.
        """
        self.current |= inputs
        self._refuse_changes("inputs", self._saved or {}, {k: v for k, v in inputs.items() if k in (self._saved or {})})
        if write:
            self._write_changes()
            self._write_inputs()

    def changed_versions(self) -> list[str]:
        """Return the packages that had another version when the run began, with both versions."""
        versions = package_versions() if self._saved_versions else {}
        return [describe_change(self._saved_versions, versions, name) for name in changed_names(self._saved_versions, versions)]

    # ---- comparing -------------------------------------------------------------------------------

    def _compare_settings(self, saved: Mapping[Any, Any], requested: Mapping[str, Any]) -> None:
        """Raise InputError if settings or inputs differ. Where contents are known, paths may."""
        if loader.stage_of(saved) != loader.stage_of(requested):
            raise InputError(
                f"{self.folder} holds a run of {loader.stage_of(saved)}: give another --output_dir, or remove this one"
            )
        saved = {**{name: value for name, value in LATER_SETTINGS.items() if name in requested}, **saved}
        saved_inputs = self._saved or {}
        known = {name for name in self.current if name in saved_inputs}
        if "images" in saved_inputs:
            known.add("image_folder")  # the images themselves are compared
        ignored = {*RESUMABLE_CHANGES, *known}
        settings = [{str(name): value for name, value in values.items() if name not in ignored} for values in (saved, requested)]
        self._global_batches = (_global_batch(saved, saved_inputs), _global_batch(requested, self.current))
        self._refuse_changes("settings", *settings)
        self._refuse_changes("inputs", saved_inputs, {name: self.current[name] for name in known if name in self.current})

    def _refuse_changes(self, what: str, saved: Mapping[str, Any], requested: Mapping[str, Any]) -> None:
        """Raise InputError if values differ, unless all of them may, and remember what changes.

        Of inputs, `saved` may have more than are compared.
        """
        if what == "inputs":
            saved = {name: value for name, value in saved.items() if name in requested}
        changed = changed_names(saved, requested)
        if not changed:
            return
        texts = [describe_change(saved, requested, name) for name in changed]
        is_finished = (self.folder / "finished.json").exists()
        if is_finished or not all(self._may_change(name) for name in changed):
            advice = "give another --output_dir or remove this one"
            raise InputError(
                f"{self.folder} holds a run with other {what}, {', '.join(texts)}: {advice}"
                + ("" if is_finished else self._allowing(changed))
            )
        for name, text in zip(changed, texts, strict=True):
            self.changed.add(name)
            self._changes.append({"name": name, "there": saved.get(name), "now": requested.get(name)})
            self.notes.append(f"note: {text} (--allow_change)")
        if what == "inputs" and self._saved is not None:
            for name in changed:
                del self._saved[name]

    def _may_change(self, name: str) -> bool:
        return setting_of(name) in self._allowed and self._fixed_reason(name) is None

    def _fixed_reason(self, name: str) -> str | None:
        """Return why an input or a setting cannot change, or None if it can."""
        if name in GLOBAL_BATCH and self._global_batches[0] == self._global_batches[1]:
            return None
        return FIXED_SETTINGS.get(setting_of(name))

    def _allowing(self, changed: list[str]) -> str:
        """Return the end of the error message: how to continue anyway, or why one cannot."""
        if not hasattr(self._config, "allow_change"):
            return ""
        names = list(dict.fromkeys(map(setting_of, changed)))
        fixed = {name: reason for name in changed if (reason := self._fixed_reason(name))}
        if not fixed:
            both = GLOBAL_BATCH if set(GLOBAL_BATCH) & set(names) else ()
            return f", or continue it with --allow_change {','.join(dict.fromkeys([*names, *both]))}"
        reasons = [f"{name} {reason} and cannot change along the way" for name, reason in fixed.items()]
        there, now = self._global_batches
        if set(fixed) & set(GLOBAL_BATCH):
            reasons.append(
                f"a step had {there} rows and would have {now}: choose a per_device_train_batch_size that gives {there} again"
            )
        return f" ({'; '.join(reasons)})"

    # ---- files -----------------------------------------------------------------------------------

    def _write_inputs(self) -> None:
        inputs = {**self.current, **(self._saved or {})}
        versions = self._saved_versions or package_versions()
        content = json.dumps({"inputs": inputs, "versions": versions}, indent=1, ensure_ascii=False)
        write_atomic(self.folder / "inputs.json", content + "\n")

    def _write_changes(self) -> None:
        """Record changes with the newest checkpoint's step, before the settings are overwritten."""
        checkpoints = checkpoint_files.newest_first(self.folder / "checkpoints")
        if not self._changes or not checkpoints:  # without a checkpoint, the run starts over
            return
        path, step = self.folder / "changes.jsonl", checkpoint_files.step_of(checkpoints[0])
        rows = read_jsonl(path) if path.exists() else []
        new_rows = [{"step": step, **change} for change in self._changes]
        rows += [row for row in new_rows if row not in rows]  # a killed run may have written them
        write_atomic(path, "".join(map(json_line, rows)))
        self._changes.clear()


# ---- allow_change --------------------------------------------------------------------------------


def setting_of(name: str) -> str:
    """Return the setting that determines an input: reward_terms for a reward function's file."""
    if name.startswith("reward function file "):
        return "reward_terms"
    if name in ("images", "rows"):
        return "dataset_name"
    if name in ("eval images", "eval rows"):
        return "eval_dataset_name"
    if name in ("ptx images", "ptx rows"):
        return "ptx_dataset_name"
    return "eval_benchmarks" if name.startswith(("eval ", "version of eval ")) else name


def _global_batch(settings: Mapping[Any, Any], inputs: Mapping[str, Any]) -> int:
    """Return the number of rows of a step over all processes."""
    return int(settings.get("per_device_train_batch_size", 1)) * int(inputs.get("num_processes", 1))


def _allowed_changes(config: Any) -> set[str]:
    """Return the settings named in `allow_change`. Raises InputError for other names."""
    names = {name.strip() for name in (getattr(config, "allow_change", None) or "").split(",")} - {""}
    known = {field.name for field in dataclasses.fields(config)} | {"num_processes"}
    for name in sorted(names):
        if new_name := loader.renamed_field(name, known):
            raise InputError(f"allow_change: {loader.renamed(name, new_name)}")
        if name not in known:
            raise InputError(f"allow_change {name} is not a setting: {loader.suggestion(name, known)}")
        if name in FIXED_SETTINGS and name not in GLOBAL_BATCH:
            raise InputError(
                f"allow_change {name}: it {FIXED_SETTINGS[name]}, so it cannot change along the way: start a new run"
            )
    return names
