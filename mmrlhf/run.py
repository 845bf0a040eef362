"""The run directory: what a stage writes while it works, and how it goes on after it was killed.

    config.yaml     the resolved configuration; a run of another one does not get in
    metrics.jsonl   one line a step
    samples.jsonl   answers with their scores, now and then
    ledger.jsonl    of every answer that ppo sampled, what each term of the reward gave it
    alarms.jsonl    what a person should look at, if anything
    checkpoints/    the newest two, step-000123/{state.safetensors,state.json}
    done.json       the result; it is there when, and only when, the stage is finished

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmrlhf import settings
from mmrlhf.config import EngineConfig
from mmrlhf.files import refuse_unwritable, sync, write_whole
from mmrlhf.lines import json_line as json_line
from mmrlhf.lines import plain
from mmrlhf.lines import read_jsonl as read_jsonl
from mmrlhf.records import InputError

MAY_DIFFER = ("logging_steps", "save_steps", "max_length", "output_dir", *EngineConfig.__dataclass_fields__)
"""Settings that change nothing that is learnt: a row over max_length is refused, never cut; how a model is run (smaller micro-batches after
a GPU was out of memory, say) changes the last bits at most. The directory is the run wherever it was moved, whatever names it."""
CHECKPOINTS_KEPT = 2
SHOWN_CHARACTERS = 300
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
        self._begun = False
        self._waiting: list[tuple[str, str]] = []  # lines of step 0, each with its file
        if main_process:
            refuse_unwritable(self.path, "output_dir")
        file = self.path / "config.yaml"
        if file.exists():
            self._refuse_other(settings.read_yaml(file), dataclasses.asdict(config))
            self.begin()

    def begin(self) -> None:
        """Make the directory, with the configuration in it, or tidy up what a killed run left. What is written calls it."""
        if self._begun or not self.main_process:
            return
        self._begun = True
        self.path.mkdir(parents=True, exist_ok=True)
        for file_left in self.path.glob(".*.*"):
            if file_left.suffix[1:].isdecimal() and file_left.is_file():  # as write_whole and settings.save name them
                file_left.unlink()
        for checkpoint_left in self.path.glob("checkpoints/.step-*"):
            shutil.rmtree(checkpoint_left)
        settings.save(self._config, self.path / "config.yaml")
        if self.finished is not None:  # killed between the result and the end
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        for name, lines in self._waiting:
            self._add(name, lines)

    def _refuse_other(self, there: Mapping[Any, Any], given: Mapping[str, Any]) -> None:
        def shown(values: Mapping[Any, Any], name: str) -> str:
            return "not set" if name not in values else "none" if values[name] is None else str(values[name])

        names = [*given, *(str(name) for name in there if name not in given)]
        differing = [name for name in names if name not in MAY_DIFFER and shown(there, name) != shown(given, name)]
        if differing:
            first = [f"{name} (there {shown(there, name)}, now {shown(given, name)})" for name in differing[:3]]
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise InputError(
                f"{self.path} holds a run with other settings, {', '.join(first)}{more}: "
                "give another --output_dir or remove this one"
            )

    # ---- going on ----------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> dict[str, Any] | None:
        """The result of a finished run, None if it is not."""
        file = self.path / "done.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def resume(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest complete checkpoint as (step, tensors on the CPU, state), or None: start from the beginning.

        Cuts the files of lines back to that step. Not for a finished run, whose lines are all wanted.
        """
        assert self.finished is None, f"{self.path} is finished: there is nothing to resume"
        found = next((loaded for path in self._checkpoints() if (loaded := self._load(path))), None)
        if self.main_process:
            for name in ("metrics.jsonl", "samples.jsonl", "ledger.jsonl", "alarms.jsonl"):
                if (self.path / name).exists():
                    _cut(self.path / name, last=found[0] if found else -1)
        return found

    def _checkpoints(self) -> list[Path]:
        """Newest first."""
        return sorted(self.path.glob("checkpoints/step-*"), key=_step, reverse=True)

    def _load(self, path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        try:
            tensors = load_file(path / "state.safetensors")
            return _step(path), tensors, json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            self.console.print(Text(f"warning: {path} does not load ({error}); an older checkpoint is taken", "yellow"))
            return None

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint from which `resume` goes on after `step` steps; keeps the newest two.

        tensors: any shapes and types, none sharing memory with another. state: what JSON can hold.
        """
        if not self.main_process:
            return
        self.begin()
        final = self.path / "checkpoints" / f"step-{step:06d}"
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for path in (temporary / "state.safetensors", temporary / "state.json", temporary):
            sync(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(final.parent)
        # A later step can only be one that did not load, or it would have been resumed from.
        earlier = [path for path in self._checkpoints() if _step(path) <= step][:CHECKPOINTS_KEPT]
        for path in self._checkpoints():
            if path not in earlier:
                shutil.rmtree(path)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result; the checkpoints have served."""
        if self.main_process:
            self.begin()
            write_whole(self.path / "done.json", json.dumps(plain(result), indent=2, allow_nan=False) + "\n")
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    # ---- saying ------------------------------------------------------------------------------------------------------

    def log(self, step: int, metrics: Mapping[str, float], *, show: bool = False) -> None:
        """Add a step's metrics to metrics.jsonl; `show` prints as many of them as fit on a line, in their order."""
        if not self.main_process:
            return
        metrics = plain(metrics)
        self._append("metrics.jsonl", step, [{"step": step, "time": round(time.time(), 3), **metrics}])
        if show:
            line = Text.assemble((f"step {step}", "bold"))
            for name, value in metrics.items():
                word = f"  {name} {_number(value)}"
                if len(line) + len(word) > max(self.console.width, 80):
                    break
                line.append(f"  {name} ", "dim").append(_number(value))
            self.console.print(line, soft_wrap=True)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to samples.jsonl and print them: texts one a line and cut short, then the numbers."""
        if not self.main_process:
            return
        shown = [{"step": step, **plain(row)} for row in rows]
        self._append("samples.jsonl", step, shown)
        for row in shown:
            texts = Text()
            for name, value in row.items():
                if isinstance(value, str):
                    texts.append(f"{name}: ", "dim").append(f"{_printable(value)}\n")
            texts.append("  ".join(_numbers({name: value for name, value in row.items() if name != "step"})))
            texts.rstrip()
            if self.console.is_terminal:
                self.console.print(Panel(texts, title=f"step {step}", title_align="left", border_style="dim"))
            else:
                self.console.print(Text(f"sample at step {step}\n").append_text(texts), soft_wrap=True)

    def ledger(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to ledger.jsonl."""
        if self.main_process:
            self._append("ledger.jsonl", step, [{"step": step, **plain(row)} for row in rows])

    def say(self, text: str) -> None:
        """A line on the screen, of the main process."""
        self.console.print(Text(text), soft_wrap=True)

    def alarm(self, step: int, text: str) -> None:
        """Something that a person should look at; kept in alarms.jsonl."""
        if self.main_process:
            self._append("alarms.jsonl", step, [{"step": step, "alarm": text}])
        self.console.print(Text(f"warning: step {step}: {text}", "yellow"), soft_wrap=True)

    @contextmanager
    def progress(self, total: int, start: int, description: str) -> Iterator[Steps]:
        """A bar from `start` to `total` steps with the time gone and left; `advance` moves it."""
        with progress(total, description, start=start, console=self.console, shown=self.main_process) as steps:
            yield steps

    def _append(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """What is known before the first step waits for it: until then the input may still prove unusable."""
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        if step > 0:
            self.begin()
        if self._begun:
            self._add(name, lines)
        else:
            self._waiting.append((name, lines))

    def _add(self, name: str, lines: str) -> None:
        """In one write, so that no other line gets in between."""
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(lines)


class Steps:
    """What `Run.progress` hands out."""

    def __init__(self, done: int, show: Callable[[int, str], None]) -> None:
        self.done = done
        self._show = show

    def advance(self, n: int = 1, **fields: Any) -> None:
        """`n` steps on; fields are said beside the bar (`advance(loss=0.3)`)."""
        self.done += n
        self._show(self.done, "  ".join(_numbers(plain(fields))))


@contextmanager
def progress(
    total: int, description: str, *, start: int = 0, console: Console | None = None, shown: bool = True
) -> Iterator[Steps]:
    """A progress bar; without a terminal it is a line for each tenth of the way."""
    console = console or Console(highlight=False, quiet=not shown)
    if shown and console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[said]}"),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total, completed=start, said="")
            yield Steps(start, lambda done, said: bar.update(task, completed=done, said=said))
    else:
        yield Steps(start, _line_each_tenth(console, total, start, description))


def _line_each_tenth(console: Console, total: int, start: int, description: str) -> Callable[[int, str], None]:
    began, tenth = time.monotonic(), 10 * start // max(total, 1)

    def show(done: int, said: str) -> None:
        nonlocal tenth
        if 10 * done // max(total, 1) > tenth:
            tenth = 10 * done // max(total, 1)
            gone = time.monotonic() - began
            left = gone / max(done - start, 1) * max(total - done, 0)
            line = f"{description} {done}/{total}  {_clock(gone)} gone, {_clock(left)} left  {said}"
            console.print(Text(line.rstrip()), soft_wrap=True)

    return show


# ---- optimisers ------------------------------------------------------------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `optim.{parameter}.{name}` (AdamW: exp_avg, exp_avg_sq, step), parameters in order.

    Learning rates and the like are not in it: they follow from the configuration and the step.
    """
    state = optimizer.state_dict()["state"]
    return {f"optim.{i}.{name}": tensor for i, entry in state.items() for name, tensor in entry.items()}


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
                ours = tuple(parameters[int(i)].shape)
                raise ValueError(f"{key} has the shape {tuple(tensor.shape)}, and its parameter {ours}")
            # A copy: the optimiser writes in place, and what was handed in stays as it is.
            state.setdefault(int(i), {})[name] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# ---- files -----------------------------------------------------------------------------------------------------------


def _cut(path: Path, last: int) -> None:
    """Keep the lines of steps up to `last`."""
    before = path.read_bytes()
    kept = [row for row in read_jsonl(path) if row["step"] <= last]
    after = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode()
    if after != before:
        write_whole(path, after)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


# ---- values ----------------------------------------------------------------------------------------------------------


def _numbers(row: Mapping[str, Any]) -> list[str]:
    """ "name 0.123" for each number of a row and of the mappings in it."""
    found = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            found += _numbers({f"{name}.{inner}": v for inner, v in value.items()})
        elif not isinstance(value, str | list):
            found.append(f"{name} {_number(value)}")
    return found


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def _printable(text: str) -> str:
    """On one line and short; what a model wrote must not reach the terminal as control codes."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
