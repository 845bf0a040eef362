"""The run directory: the files that a stage writes, and how it resumes after a kill.

    config.yaml      the resolved configuration; a run with other settings is refused
    inputs.json      hashes of the run's inputs; a run with other inputs is refused
    changes.jsonl    settings changed during the run by `--allow_change`
    .lock            process and host of the command that is writing
    metrics.jsonl    one line per step
    samples.jsonl    answers with their scores, at logging steps
    ledger.jsonl     the value of each reward function, for every answer that ppo sampled
    warnings.jsonl   warnings for the user, if there are any
    eval.jsonl       metrics of benchmarks with intervals, if a stage evaluates during training
    trackers.json    the run's id in the trackers of report_to, if there are any
    report.html      curves, fixed prompts, warnings and settings, refreshed at logging steps
    engine/          the policy's adapter, while another engine than the trainer samples from it
    images/          pictures of samples that are not files
    best/            the best policy by metric_for_best_model, as of the newest checkpoint
    checkpoints/     the newest save_total_limit, step-000123/{state.safetensors,state.json,sha256}
    finished.json    the result; it exists if and only if the stage is finished

Only the lock is written before the first step is done, so a run that fails on its input leaves
nothing behind. A file appears complete or not at all: it is written under a temporary name, synced
and renamed. A checkpoint is a directory that appears the same way. The .jsonl files are only
appended to; on resume, the lines after the checkpoint are cut off, so a killed run ends with the
same lines as an uninterrupted one. Nothing is pickled: tensors are stored as safetensors,
everything else as JSON or YAML.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from safetensors import SafetensorError
from torch import Tensor

from mmrlhf.datasets import Records
from mmrlhf.files import lock, stop_signals
from mmrlhf.files.atomic import fsync, recover_folders, refuse_unwritable, write_atomic
from mmrlhf.files.inputs import rows_digest
from mmrlhf.files.jsonl import read_jsonl, to_jsonable
from mmrlhf.files.writing import full_disk_message, is_disk_full
from mmrlhf.models.processes import gather_object, wait_for_everyone
from mmrlhf.records import Example, ImageSource, InputError, Preference
from mmrlhf.report.live_page import LivePage
from mmrlhf.report.progress import ProgressBar, progress
from mmrlhf.report.step_lines import StepTable, metrics_line, sample_lines
from mmrlhf.report.thumbnails import thumbnail
from mmrlhf.training import checkpoint_files
from mmrlhf.training.run_inputs import RunInputs
from mmrlhf.training.trackers import Trackers, parse_report_to

LOG_FILES = ("metrics.jsonl", "samples.jsonl", "ledger.jsonl", "warnings.jsonl", "eval.jsonl")
"""Files that have rows by step."""


class Run:
    """One stage's run directory.

    Call `claim_rows` first, then check `is_finished`, then call `resume`, then log.

    Every method can be called on every process: all of them read the same, and only the main
    process writes and prints. Raises InputError if the directory cannot be used, is being written
    by another command, or holds a run with other settings or inputs.
    """

    def __init__(self, output_dir: str, config: Any, *, main_process: bool = True, num_processes: int = 1) -> None:
        """Open the directory. `config` is a dataclass, written to config.yaml as resolved."""
        self.path = Path(output_dir)
        self.main_process = main_process
        self.console = Console(quiet=not main_process)
        self._config = config
        self._num_processes = num_processes
        self._started = False
        self._table = StepTable(self.console)
        self._pending_lines: list[tuple[str, str]] = []  # (file name, lines) of step 0
        self._pending_files: list[tuple[str, str | bytes]] = []  # (file name, content)
        self._image_files: set[str] = set()
        self._page = LivePage(self.path)
        self._trackers = Trackers(
            parse_report_to(getattr(config, "report_to", None)) if main_process else (), self.path, dataclasses.asdict(config)
        )
        self._stopping, self._is_last_step = 0, True  # the signal that this step is saved for
        if main_process:
            refuse_unwritable(self.path, "output_dir")
            lock.acquire(self.path / ".lock", self.path, "output_dir")
        self._inputs = RunInputs(self.path, config, num_processes)
        self._print_notes()

    def begin(self) -> None:
        """Create the directory with its configuration, or remove leftovers of a killed run.

        All methods that write call it.
        """
        if self._started or not self.main_process:
            return
        lock.acquire(self.path / ".lock", self.path, "output_dir")
        self._started = True
        self._remove_leftovers()
        self._inputs.write()
        if self.finished is not None:  # killed between writing the result and exiting
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        for name, content in self._pending_files:
            write_atomic(self.path / name, content)
        for name, lines in self._pending_lines:
            self._append_lines(name, lines)

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of a killed run; put back a folder that it was replacing."""
        for leftover_file in self.path.glob(".*.*"):
            # write_atomic and save_config end temporary names in a process id.
            if leftover_file.suffix[1:].isdecimal() and leftover_file.is_file():
                leftover_file.unlink()
        for parent in (self.path, self.path / "checkpoints"):
            recover_folders(parent)

    def image_file(self, image: ImageSource) -> str:
        """Return an image's path for pages; an image in memory is written to the run's folder."""
        if image.path is not None:
            return image.path
        name = f"images/{image.key[:16]}.jpg"
        if self.main_process and name not in self._image_files and (content := thumbnail(image)):
            self.add_file(name, content)
        self._image_files.add(name)
        return name

    def add_file(self, name: str, content: str | bytes) -> None:
        """Write a file once the first step is done, like rows of step 0.

        Processes other than the first write none.
        """
        if self._started and self.main_process:
            write_atomic(self.path / name, content)
        elif self.main_process:
            self._pending_files.append((name, content))

    @property
    def inputs(self) -> dict[str, Any]:
        """The run's inputs, by name."""
        return self._inputs.current

    @property
    def changed_settings(self) -> set[str]:
        """Settings and inputs that this start changes, as `--allow_change` permits."""
        return self._inputs.changed

    def claim_rows(self, rows: Sequence[Example] | Sequence[Preference], kind: str = "") -> None:
        """Record the images of the rows, and rows that are not from a file, or compare them.

        `kind` ("eval") distinguishes several sets of rows.

        Raises InputError if the run in this directory had others. A finished run does not build
        rows that are built on demand.
        """
        from_file = isinstance(rows, Records)
        if self.is_finished and not from_file and not isinstance(rows, list | tuple):
            return
        name = f"{kind} {'images' if from_file else 'rows'}".strip()
        self.claim_inputs({name: {"path": "", "sha256": rows_digest(rows, images_only=from_file)}})

    def claim_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Record further inputs of the run, or raise InputError if it began with others."""
        self._inputs.add(inputs, write=self._started and self.main_process)
        self._print_notes()

    def _print_notes(self) -> None:
        for note in self._inputs.notes:
            self.print(note)
        self._inputs.notes.clear()

    # ---- resuming --------------------------------------------------------------------------------

    @property
    def finished(self) -> dict[str, Any] | None:
        """The result of a finished run, or None. Raises InputError if it cannot be read."""
        result_file = self.path / "finished.json"
        if not result_file.exists():
            return None
        try:
            return dict(json.loads(result_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            raise InputError(
                f"{result_file} is damaged, so it is unknown whether the run is finished: remove {self.path}, or give "
                "another --output_dir"
            ) from None

    @property
    def is_finished(self) -> bool:
        return self.finished is not None

    def print_finished(self, result: Path) -> None:
        """Report that the run is finished, and where the result is."""
        self.print(f"{self.path} is finished, nothing to do: the result is {result}")
        if self.main_process:
            self.begin()
            lock.release(self.path / ".lock")

    def resume(self, num_steps: int | None = None) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest complete checkpoint as (step, tensors on the CPU, state), or None.

        Cut the .jsonl files back to that step. Must not be called on a finished run. Raises
        InputError if the checkpoint has more steps than the `num_steps` of the settings.
        """
        assert not self.is_finished, f"{self.path} is finished: there is nothing to resume"
        if self.main_process:
            self._remove_leftovers()  # settings are written with the first step: the stage may still refuse them
        if self._num_processes > 1:
            wait_for_everyone()  # a checkpoint may have been put back
        checkpoint = next(
            (
                loaded
                for path in checkpoint_files.newest_first(self.path / "checkpoints")
                if (loaded := self._load_checkpoint(path))
            ),
            None,
        )
        if checkpoint and num_steps is not None and checkpoint[0] > num_steps:
            raise InputError(
                f"{self.path} has a checkpoint after step {checkpoint[0]}, and these settings end after step {num_steps}: "
                "give a larger --max_steps or --num_train_epochs"
            )
        if checkpoint:
            changed = self._inputs.changed_versions()
            versions = f", which began with other versions: {', '.join(changed)}" if changed else ""
            self.print(f"resuming {self.path} after step {checkpoint[0]}{versions}")
        if self.main_process:
            self._trackers.resumed_step = checkpoint[0] if checkpoint else -1
            for name in LOG_FILES:
                if (self.path / name).exists():
                    _truncate_after(self.path / name, last_step=checkpoint[0] if checkpoint else -1)
        return checkpoint

    def _load_checkpoint(self, path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        try:
            return checkpoint_files.step_of(path), *checkpoint_files.load(path)
        except (OSError, ValueError, SafetensorError) as error:
            self.console.print(Text(f"warning: {path} does not load ({error}); trying an older checkpoint", "yellow"))
            return None

    def end_step(self, step: int, *, is_last: bool) -> bool:
        """End a step; return whether a checkpoint is due, after `step` steps.

        Processes agree on whether a signal asks the command to stop, and from here on a signal
        waits until the next checkpoint. One is due every save_steps, for a signal, and after the
        last step, because what follows may fail or take long. Call it on every process after every
        step.
        """
        stop_signals.defer(True)
        pending = stop_signals.pending()
        self._stopping = max(gather_object([pending])) if self._num_processes > 1 else pending
        self._is_last_step = is_last
        return bool(is_last or self._stopping or step % self._config.save_steps == 0)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint after `step` steps and delete all but the newest save_total_limit.

        `tensors` may have any shape and type but must not share memory. `state` must be JSON.
        Raises `Stopped` afterwards if a signal asked to stop, and InputError if the disk is full.
        """
        if self.main_process:
            self.begin()
            self._check_output()
            for name in LOG_FILES:
                if (self.path / name).exists():
                    fsync(self.path / name)
            try:
                checkpoint_files.save(self.path / "checkpoints", step, tensors, state, self._config.save_total_limit)
            except Exception as error:
                if not is_disk_full(error):
                    raise
                newest = next(iter(checkpoint_files.newest_first(self.path / "checkpoints")), None)
                kept = f"the checkpoint after step {checkpoint_files.step_of(newest)}" if newest else "the first step"
                message = full_disk_message(self.path, kept)
                raise InputError(f"the checkpoint after step {step} is not saved: {message}") from None
        if self._num_processes == 1:
            self._stopping = stop_signals.pending()  # it may have come while the checkpoint was written
        if self._stopping:
            self.print(f"saved after step {step}, because of {signal.Signals(self._stopping).name}")
            if self._num_processes > 1:
                wait_for_everyone()  # the first process that leaves ends the others
            raise stop_signals.Stopped(self._stopping)
        # Nothing is unsaved now. But several processes stop together, after a step.
        stop_signals.defer(self._num_processes > 1 and not self._is_last_step)

    def _check_output(self) -> None:
        """Raise InputError if the run's directory was removed or replaced."""
        lock.check(self.path / ".lock", self.path, "output_dir")

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result and delete the checkpoints."""
        if self.main_process:
            self.begin()
            self._check_output()
            write_atomic(self.path / "finished.json", json.dumps(to_jsonable(result), indent=2, allow_nan=False) + "\n")
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
            self.refresh_report(is_final=True)
            self._trackers.finish()
            lock.release(self.path / ".lock")

    # ---- logging ---------------------------------------------------------------------------------

    def log(self, step: int, metrics: Mapping[str, float], *, show: bool = False) -> None:
        """Append a step's metrics to metrics.jsonl; with `show`, print those that fit on a line."""
        if not self.main_process:
            return
        metrics = to_jsonable(metrics)
        self._append_rows("metrics.jsonl", step, [{"step": step, "time": round(time.time(), 3), **metrics}])
        self._trackers.log(step, metrics)
        if show:
            self.console.print(metrics_line(step, metrics, self.console.width), soft_wrap=True)

    def print_row(self, step: int, values: Mapping[str, float | None]) -> None:
        """Print a row of the table of metrics (`report.step_lines.StepTable`)."""
        self._table.print_row(step, values)

    def log_samples(self, step: int, rows: Sequence[Mapping[str, Any]], *, show: bool = True) -> None:
        """Append rows to samples.jsonl; with `show`, print them: a short line per text, numbers."""
        if not self.main_process:
            return
        json_rows = [{"step": step, **to_jsonable(row)} for row in rows]
        self._append_rows("samples.jsonl", step, json_rows)
        self._trackers.log_samples(step, json_rows)
        for row in json_rows if show else ():
            self.console.print(sample_lines(step, row, self.console.is_terminal), soft_wrap=True)

    def log_ledger(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to ledger.jsonl."""
        if self.main_process:
            self._append_rows("ledger.jsonl", step, [{"step": step, **to_jsonable(row)} for row in rows])

    def log_evaluations(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to eval.jsonl."""
        if self.main_process and rows:
            self._append_rows("eval.jsonl", step, [{"step": step, **to_jsonable(row)} for row in rows])

    def print(self, text: str) -> None:
        """Print a line on the main process."""
        self.console.print(Text(text), soft_wrap=True)

    def warn(self, step: int, name: str, text: str) -> None:
        """Print a warning by its name, and append it to warnings.jsonl."""
        if self.main_process:
            self._append_rows("warnings.jsonl", step, [{"step": step, "name": name, "warning": text}])
        self.console.print(Text(f"warning: step {step}: {name}: {text}", "yellow"), soft_wrap=True)

    def refresh_report(self, *, is_final: bool = False) -> None:
        """Write report.html again, if enough time has passed since the last time or `is_final`."""
        if self.main_process and (problem := self._page.refresh(is_final=is_final)):
            self.print(f"note: {self.path / 'report.html'} is not refreshed: {problem}")

    @contextmanager
    def progress(self, total: int, start: int, description: str) -> Iterator[ProgressBar]:
        """Show a progress bar from `start` to `total` with elapsed and remaining time."""
        with progress(total, description, start=start, console=self.console, visible=self.main_process) as progress_bar:
            yield progress_bar

    def _append_rows(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to a file.

        Rows of step 0 wait until the first step is done: if the input proves unusable before that,
        nothing is left behind.
        """
        lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        if step > 0:
            self.begin()
        if self._started:
            self._append_lines(name, lines)
        else:
            self._pending_lines.append((name, lines))

    def _append_lines(self, name: str, lines: str) -> None:
        """Append lines in a single write, so other writers' lines cannot interleave."""
        self._check_output()
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(lines)


# ---- files ---------------------------------------------------------------------------------------


def _truncate_after(path: Path, last_step: int) -> None:
    """Keep only the lines of steps up to `last_step`. Raises InputError for a line without step."""
    rows = read_jsonl(path)
    before = path.read_bytes()
    without_step = next((number for number, row in enumerate(rows, 1) if type(row.get("step")) is not int), None)
    if without_step is not None:
        raise InputError(f"{path} row {without_step} has no `step`, so the run cannot continue it: remove the row")
    kept_rows = [row for row in rows if row["step"] <= last_step]
    after = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept_rows).encode()
    if after != before:
        write_atomic(path, after)
