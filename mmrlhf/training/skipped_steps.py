"""Skip a training step with non-finite numbers: save it for replay, count it, or stop.

One bad row or one overflow should not end a week of training, nor go unnoticed. The weights stay
unchanged (in ppo, the updates before the failing minibatch are kept), which is safe: AdamW divides
each gradient by its own size, so a step with finite gradients moves a weight by a few learning
rates at most, and cannot make it infinite.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from mmrlhf.engine.vllm_requests import EngineError
from mmrlhf.models.adapters import Role
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.lost_process import LostProcessError
from mmrlhf.models.processes import gather_object
from mmrlhf.records import Example, InputError, Preference
from mmrlhf.training.replay_file import SavedStep
from mmrlhf.training.run import Run

MAX_IN_A_ROW = 3
"""Number of consecutive skipped steps that stops the run; in a shorter run, all of its steps."""


@dataclass
class Attempt:
    """A step while it is computed: what its file for replay needs, filled in as it becomes known.

    `numbers` and `batch` are those of this process, as `replay_file.SavedStep` has them.
    `is_cause`: whether the non-finite number was computed here, not in another process.
    """

    step: int
    rows: Sequence[Example] | Sequence[Preference]
    numbers: dict[str, float] = field(default_factory=dict)
    batch: dict[str, Tensor] = field(default_factory=dict)
    is_skipped: bool = False
    is_cause: bool = False


class SkippedSteps:
    """The steps that a run skipped. All processes count the same; each saves its own share.

    `roles` are the trained roles, and copies of them that a loss uses.
    """

    def __init__(
        self, run: Run, stage: str, config: Any, accelerator: Accelerator, roles: Sequence[Role], num_steps: int
    ) -> None:
        self.folder = run.path / "skipped"
        self._max_in_a_row = min(MAX_IN_A_ROW, num_steps)
        self.total = 0
        self.in_a_row = 0
        self._has_begun = False
        self._run, self._stage, self._config, self._accelerator, self._roles = run, stage, config, accelerator, roles

    @contextlib.contextmanager
    def attempt(self, step: int, rows: Sequence[Example] | Sequence[Preference]) -> Iterator[Attempt]:
        """Run a step in a `with` block, which ends early if a number is not finite.

        All processes must then leave the block (`raise_on_all_processes`). Raises InputError after
        the third such step in a row, or if a shorter run has no other.
        """
        attempt, problem = Attempt(step, rows), ""
        if not self._has_begun:
            self._remove_files_from(step)
            self._has_begun = True
        try:
            yield attempt
        except NotFiniteError as error:
            problem = str(error)
        attempt.is_skipped = bool(problem)
        if problem:
            self._skip(attempt, problem)
        else:
            self.in_a_row = 0

    def _skip(self, attempt: Attempt, problem: str) -> None:
        self.total += 1
        self.in_a_row += 1
        num_processes, rank = self._accelerator.num_processes, self._accelerator.process_index
        is_cause = attempt.is_cause or not math.isfinite(attempt.numbers.get("loss", 0.0))
        causes = [number for number, is_cause in enumerate(gather_object([is_cause])) if is_cause]
        causes = causes or list(range(num_processes))  # such as for the gradient, which they share
        saved_step = SavedStep(
            stage=self._stage,
            step=attempt.step,
            problem=problem,
            config=dataclasses.asdict(self._config),
            base_fingerprint=self._roles[0].vlm.fingerprint,
            rows=attempt.rows,
            numbers=attempt.numbers,
            weights={name: tensor for role in self._roles for name, tensor in role.state_dict().items()},
            batch=attempt.batch,
            is_cause=rank in causes,
        )
        self._run.begin()
        self._accelerator.wait_for_everyone()
        saved_step.write(self._file(attempt.step, rank))
        self._accelerator.wait_for_everyone()  # the first to stop may end the others
        path = self._file(attempt.step, causes[0])
        if self.in_a_row >= self._max_in_a_row:
            advice = "start over with a lower learning_rate or without that row"
            if self._stage == "ppo":
                advice += ", or go on with a corrected reward function and --allow_change reward_terms"
            raise InputError(
                f"{_skipped_steps(attempt.step - self.in_a_row + 1, attempt.step)} because {problem}: "
                f"see what is not finite with `mmrlhf replay {path}`, and {advice}"
            )
        others = ", beside the other processes' shares" if num_processes > 1 else ""
        self._run.warn(
            attempt.step,
            "skipped_step",
            f"{problem}: the step is skipped, and kept in {path}{others} (`mmrlhf replay` computes it again)",
        )

    def _file(self, step: int, rank: int) -> Path:
        """Return the file of a process's share of a step."""
        suffix = f"-rank{rank}" if self._accelerator.num_processes > 1 else ""
        return self.folder / f"step-{step:06d}{suffix}.safetensors"

    @property
    def may_stop(self) -> bool:
        """Return whether skipping the next step too would stop the run: save before it."""
        return self.in_a_row == self._max_in_a_row - 1

    def metrics(self) -> dict[str, float]:
        """Return the number of skipped steps so far, or nothing if there are none."""
        return {"skipped_steps": float(self.total)} if self.total else {}

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint needs to continue, as JSON."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Continue from what `state_dict` returned; an empty mapping, as checkpoints of earlier
        versions have, changes nothing."""
        if state_dict:
            self.total, self.in_a_row = int(state_dict["total"]), int(state_dict["in_a_row"])

    def _remove_files_from(self, step: int) -> None:
        """Remove files that a killed run wrote after its checkpoint: those steps are repeated."""
        if self._accelerator.is_main_process:
            for path in self.folder.glob("*step-*.safetensors*"):
                if path.name.startswith(".") or _step_of(path) >= step:
                    path.unlink()


def _skipped_steps(first: int, last: int) -> str:
    return f"step {last} was skipped" if first == last else f"steps {first} to {last} were skipped in a row, the last"


def _step_of(path: Path) -> int:
    return int(re.findall(r"\d+", path.name)[0])


@contextlib.contextmanager
def raise_on_all_processes(attempt: Attempt | None = None) -> Iterator[None]:
    """Raise an InputError of one process on all of them, so that none waits.

    The most serious error of all processes is raised: a NotFiniteError, which only skips the step,
    if there is no other. `attempt` learns whether this process is its cause. The block must not
    exchange anything between processes.
    """
    own = None
    try:
        yield
    except LostProcessError:
        raise  # nothing can be exchanged any more
    except InputError as error:
        is_not_finite = isinstance(error, NotFiniteError)
        if attempt is not None:
            attempt.is_cause = is_not_finite
        gravity = 0 if is_not_finite else 2 if isinstance(error, EngineError) else 1
        own = (gravity, str(error))  # not the exception, which may take other arguments
    problems = [other for other in gather_object([own]) if other is not None]
    if problems:
        gravity, text = max(problems, key=lambda other: other[0])
        raise (NotFiniteError, InputError, EngineError)[gravity](text)
