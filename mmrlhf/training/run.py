"""The run directory: what a stage writes while it works, and how it goes on after it was killed.

    config.yaml     the resolved configuration; a run of another one does not get in
    metrics.jsonl   one line a step
    samples.jsonl   answers with their scores, now and then
    ledger.jsonl    of every answer that ppo sampled, what each term of the reward gave it
    warnings.jsonl    what a person should look at, if anything
    checkpoints/    the newest two, step-000123/{state.safetensors,state.json}
    finished.json       the result; it is there when, and only when, the stage is finished

Nothing is written before the first step is done, so that a run which fails on its input leaves nothing behind. A file
appears whole or not at all: written beside its place, synced, renamed. A checkpoint is a directory that appears the same
way. Lines are only ever added; what was logged after the checkpoint that a run resumes from is cut off, so
that a killed run ends with the lines of one that was not. No pickle: tensors are safetensors, all else is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrlhf import config_loader
from mmrlhf.config import EngineConfig
from mmrlhf.files.atomic import fsync, refuse_unwritable, write_atomic
from mmrlhf.files.jsonl import read_jsonl, to_jsonable
from mmrlhf.records import InputError
from mmrlhf.report.progress import ProgressBar, _format_number, _format_numbers, progress

RESUMABLE_CHANGES = ("logging_steps", "save_steps", "max_length", "output_dir", *EngineConfig.__dataclass_fields__)
"""Settings that change nothing that is learnt: a row over max_length is refused, never cut; how a model is run (smaller micro-batches after
a GPU was out of memory, say) changes the last bits at most. The directory is the run wherever it was moved, whatever names it."""
MAX_CHECKPOINTS = 2
MAX_PRINTED_CHARACTERS = 300
"""So much of a sample's text is printed; samples.jsonl has all of it."""


class Run:
    """One stage's directory. Call `finished` first, then `resume`, and log only after that.

    On a process that is not the main one everything can be called, reads give the same, and nothing is written or
    printed. Raises InputError when the directory cannot be used or holds a run with other settings.
    """

    def __init__(self, output_dir: str, config: Any, *, main_process: bool = True) -> None:
        """config: a dataclass, written to config.yaml as it was resolved."""
        self.path = Path(output_dir)
        self.main_process = main_process
        self.console = Console(quiet=not main_process)
        self._config = config
        self._started = False
        self._pending_lines: list[tuple[str, str]] = []  # lines of step 0, each with its file
        if main_process:
            refuse_unwritable(self.path, "output_dir")
        config_file = self.path / "config.yaml"
        if config_file.exists():
            self._check_same_config(config_loader.read_yaml(config_file), dataclasses.asdict(config))
            self.begin()

    def begin(self) -> None:
        """Make the directory, with the configuration in it, or tidy up what a killed run left. What is written calls it."""
        if self._started or not self.main_process:
            return
        self._started = True
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover_file in self.path.glob(".*.*"):
            if leftover_file.suffix[1:].isdecimal() and leftover_file.is_file():  # as write_whole and settings.save name them
                leftover_file.unlink()
        for leftover_checkpoint in self.path.glob("checkpoints/.step-*"):
            shutil.rmtree(leftover_checkpoint)
        config_loader.save_config(self._config, self.path / "config.yaml")
        if self.finished is not None:  # killed between the result and the end
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        for name, lines in self._pending_lines:
            self._append_lines(name, lines)

    def _check_same_config(self, saved: Mapping[Any, Any], requested: Mapping[str, Any]) -> None:
        def display(values: Mapping[Any, Any], name: str) -> str:
            return "not set" if name not in values else "none" if values[name] is None else str(values[name])

        names = [*requested, *(str(name) for name in saved if name not in requested)]
        differing = [name for name in names if name not in RESUMABLE_CHANGES and display(saved, name) != display(requested, name)]
        if differing:
            differences = [f"{name} (there {display(saved, name)}, now {display(requested, name)})" for name in differing[:3]]
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise InputError(
                f"{self.path} holds a run with other settings, {', '.join(differences)}{more}: "
                "give another --output_dir or remove this one"
            )

    # ---- going on ----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> dict[str, Any] | None:
        """The result of a finished run, None if it is not."""
        result_file = self.path / "finished.json"
        return json.loads(result_file.read_text(encoding="utf-8")) if result_file.exists() else None

    def resume(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest complete checkpoint as (step, tensors on the CPU, state), or None: start from the beginning.

        Cuts the files of lines back to that step. Not for a finished run, whose lines are all wanted.
        """
        assert self.finished is None, f"{self.path} is finished: there is nothing to resume"
        checkpoint = next((loaded for path in self._checkpoints() if (loaded := self._load_checkpoint(path))), None)
        if self.main_process:
            for name in ("metrics.jsonl", "samples.jsonl", "ledger.jsonl", "warnings.jsonl"):
                if (self.path / name).exists():
                    _truncate_after(self.path / name, last_step=checkpoint[0] if checkpoint else -1)
        return checkpoint

    def _checkpoints(self) -> list[Path]:
        """Newest first."""
        return sorted(self.path.glob("checkpoints/step-*"), key=_checkpoint_step, reverse=True)

    def _load_checkpoint(self, path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        try:
            tensors = load_file(path / "state.safetensors")
            return _checkpoint_step(path), tensors, json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            self.console.print(Text(f"warning: {path} does not load ({error}); an older checkpoint is taken", "yellow"))
            return None

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint from which `resume` goes on after `step` steps; keeps the newest two.

        tensors: any shapes and types, none sharing memory with another. state: what JSON can hold.
        """
        if not self.main_process:
            return
        self.begin()
        checkpoint_dir = self.path / "checkpoints" / f"step-{step:06d}"
        temporary_dir = checkpoint_dir.with_name(f".{checkpoint_dir.name}.{os.getpid()}")
        shutil.rmtree(temporary_dir, ignore_errors=True)
        temporary_dir.mkdir(parents=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary_dir / "state.safetensors")
        (temporary_dir / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in (temporary_dir / "state.safetensors", temporary_dir / "state.json", temporary_dir):
            fsync(path)
        if checkpoint_dir.exists():
            shutil.rmtree(checkpoint_dir)
        temporary_dir.rename(checkpoint_dir)
        fsync(checkpoint_dir.parent)
        # A later step can only be one that did not load, or it would have been resumed from.
        kept_checkpoints = [path for path in self._checkpoints() if _checkpoint_step(path) <= step][:MAX_CHECKPOINTS]
        for path in self._checkpoints():
            if path not in kept_checkpoints:
                shutil.rmtree(path)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result; the checkpoints have served."""
        if self.main_process:
            self.begin()
            write_atomic(self.path / "finished.json", json.dumps(to_jsonable(result), indent=2, allow_nan=False) + "\n")
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    # ---- saying ------------------------------------------------------------------------------------------------------

    def log(self, step: int, metrics: Mapping[str, float], *, show: bool = False) -> None:
        """Add a step's metrics to metrics.jsonl; `show` prints as many of them as fit on a line, in their order."""
        if not self.main_process:
            return
        metrics = to_jsonable(metrics)
        self._append_rows("metrics.jsonl", step, [{"step": step, "time": round(time.time(), 3), **metrics}])
        if show:
            line = Text.assemble((f"step {step}", "bold"))
            for name, value in metrics.items():
                entry = f"  {name} {_format_number(value)}"
                if len(line) + len(entry) > max(self.console.width, 80):
                    break
                line.append(f"  {name} ", "dim").append(_format_number(value))
            self.console.print(line, soft_wrap=True)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to samples.jsonl and print them: texts one a line and cut short, then the numbers."""
        if not self.main_process:
            return
        json_rows = [{"step": step, **to_jsonable(row)} for row in rows]
        self._append_rows("samples.jsonl", step, json_rows)
        for row in json_rows:
            sample_text = Text()
            for name, value in row.items():
                if isinstance(value, str):
                    sample_text.append(f"{name}: ", "dim").append(f"{_printable_line(value)}\n")
            sample_text.append("  ".join(_format_numbers({name: value for name, value in row.items() if name != "step"})))
            sample_text.rstrip()
            if self.console.is_terminal:
                self.console.print(Panel(sample_text, title=f"step {step}", title_align="left", border_style="dim"))
            else:
                self.console.print(Text(f"sample at step {step}\n").append_text(sample_text), soft_wrap=True)

    def log_ledger(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to ledger.jsonl."""
        if self.main_process:
            self._append_rows("ledger.jsonl", step, [{"step": step, **to_jsonable(row)} for row in rows])

    def print(self, text: str) -> None:
        """A line on the screen, of the main process."""
        self.console.print(Text(text), soft_wrap=True)

    def warn(self, step: int, text: str) -> None:
        """Something that a person should look at; kept in warnings.jsonl."""
        if self.main_process:
            self._append_rows("warnings.jsonl", step, [{"step": step, "warning": text}])
        self.console.print(Text(f"warning: step {step}: {text}", "yellow"), soft_wrap=True)

    @contextmanager
    def progress(self, total: int, start: int, description: str) -> Iterator[ProgressBar]:
        """A bar from `start` to `total` steps with the time gone and left; `advance` moves it."""
        with progress(total, description, start=start, console=self.console, visible=self.main_process) as progress_bar:
            yield progress_bar

    def _append_rows(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """What is known before the first step waits for it: until then the input may still prove unusable."""
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        if step > 0:
            self.begin()
        if self._started:
            self._append_lines(name, lines)
        else:
            self._pending_lines.append((name, lines))

    def _append_lines(self, name: str, lines: str) -> None:
        """In one write, so that no other line gets in between."""
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(lines)


# ---- optimisers ------------------------------------------------------------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `optim.{parameter}.{name}` (AdamW: exp_avg, exp_avg_sq, step), parameters in order.

    Learning rates and the like are not in it: they follow from the configuration and the step.
    """
    state = optimizer.state_dict()["state"]
    return {f"optim.{i}.{name}": tensor for i, parameter_state in state.items() for name, tensor in parameter_state.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; other names in `tensors` are left alone.

    Raises ValueError when the state is of other parameters: another number of them, or other shapes.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optim."):
            _, i, name = key.split(".")
            if int(i) >= len(parameters):
                raise ValueError(f"the checkpoint has {key}, and the optimiser {len(parameters)} parameters")
            if tensor.dim() and tensor.shape != parameters[int(i)].shape:
                parameter_shape = tuple(parameters[int(i)].shape)
                raise ValueError(f"{key} has the shape {tuple(tensor.shape)}, and its parameter {parameter_shape}")
            # A copy: the optimiser writes in place, and what was handed in stays as it is.
            state.setdefault(int(i), {})[name] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# ---- files -----------------------------------------------------------------------------------------------------------


def _truncate_after(path: Path, last_step: int) -> None:
    """Keep the lines of steps up to `last`."""
    before = path.read_bytes()
    kept_rows = [row for row in read_jsonl(path) if row["step"] <= last_step]
    after = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept_rows).encode()
    if after != before:
        write_atomic(path, after)


def _checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


# ---- values ----------------------------------------------------------------------------------------------------------


def _printable_line(text: str) -> str:
    """On one line and short; what a model wrote must not reach the terminal as control codes."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= MAX_PRINTED_CHARACTERS else line[: MAX_PRINTED_CHARACTERS - 1] + "…"
