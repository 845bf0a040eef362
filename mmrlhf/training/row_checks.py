"""Check every row against the model before the first step, for refused and overlong rows.

Only the headers of images are read. A run saves the result in its directory, with a signature of
everything that it depends on, so a resumed run does not check again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import transformers
from rich.console import Console
from rich.text import Text

from mmrlhf.config import RewardedConfig
from mmrlhf.datasets import Records
from mmrlhf.files.inputs import inputs_of
from mmrlhf.files.row_errors import MAX_ROWS_NAMED, RowErrors
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, InputError, Preference
from mmrlhf.report.progress import progress
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel

Record = TypeVar("Record", Example, Preference)
IRRELEVANT_SETTINGS = ("output_dir", "output_file", "logging_steps", "save_steps", "save_total_limit", "allow_change")
"""Settings that do not affect the checks."""
MIN_ROWS_FOR_BAR = 1000


@dataclass(frozen=True)
class Length:
    """The number of tokens that the model reads for a row, and its limit."""

    num_tokens: int
    limit: int

    @property
    def is_over(self) -> bool:
        return self.num_tokens > self.limit


LengthsOf = Callable[[Any], Iterable[Length]]
"""Return the lengths of a row. Raises InputError if the model refuses the row."""


def group_length(model: RewardModel, lengths: PromptLengths, group: AnswerGroup) -> Length:
    """Return the tokens of a group's prompt with its longest answer and the question after it."""
    if group.answer_images:
        texts = model.last_texts(group)
        num_tokens = max(lengths.count_rendered(text.before, images) + len(text.token_ids) for text, images in texts)
        return Length(num_tokens, lengths.limit(model.max_length))
    prompt_messages, answer_ids = model.tokenize_group(group)
    num_tokens = lengths.count(prompt_messages, group.images) + max(map(len, answer_ids), default=0)
    return Length(num_tokens, lengths.limit(model.max_length))


def rewarded_lengths(
    config: RewardedConfig, vlm: VLM, lengths: PromptLengths, reward_models: Sequence[RewardModel]
) -> Callable[[Example], Iterator[Length]]:
    """Return a function of a row: the lengths of its prompt with the longest answer, by model."""
    lengths_by_base = {id(vlm): lengths}

    def lengths_of(example: Example) -> Iterator[Length]:
        num_tokens = lengths.count(example.prompt, example.images) + config.response_length
        yield Length(num_tokens, lengths.limit(config.max_length))
        for model in reward_models:
            base_lengths = lengths_by_base.setdefault(id(model.role.vlm), PromptLengths(model.role.vlm))
            empty_answer = AnswerGroup(example.images, example.prompt, ("",), example.facts, example.id)
            length = group_length(model, base_lengths, empty_answer)
            yield replace(length, num_tokens=length.num_tokens + config.response_length)

    return lengths_of


@dataclass(frozen=True)
class RowChecks:
    """The results of checking a dataset's rows."""

    num_rows: int
    overlong: list[int] = field(default_factory=list)
    """Indices of the rows with more tokens than allowed."""
    first_overlong: list[str] = field(default_factory=list)
    """Names of the first of these rows."""
    longest: int = 0
    """Most tokens of any row."""
    limit: int = 0
    """Tokens that the longest row may have."""
    num_shrunk: int = 0
    """Distinct images with more than max_pixels, which the processor shrinks."""

    @property
    def overlong_text(self) -> str:
        """Return the number and names of the overlong rows as text."""
        names = ", ".join(self.first_overlong) + (", ..." if len(self.overlong) > len(self.first_overlong) else "")
        return (
            f"{len(self.overlong)} of {self.num_rows} rows are too long ({names}; "
            f"the longest has {self.longest} tokens with its images; the limit is {self.limit})"
        )


def check_rows(rows: Sequence[Record], name: str, lengths_of: LengthsOf, lengths: PromptLengths, console: Console) -> RowChecks:
    """Measure every row. Raises InputError with all rows that the model refuses, by cause."""
    errors, overlong, longest = RowErrors(), [], Length(0, 0)
    lengths.shrunk_images.clear()
    bar_console = console if len(rows) >= MIN_ROWS_FOR_BAR else Console(quiet=True)
    with progress(len(rows), f"check rows of {name}", console=bar_console) as progress_bar:
        for index, row in enumerate(rows):
            progress_bar.advance()
            try:
                measured = max(lengths_of(row), key=lambda length: length.num_tokens - length.limit)
            except InputError as error:
                errors.add(_name_row(rows, index), str(error), f"row {row.id}")
                continue
            longest = max(longest, measured, key=lambda length: length.num_tokens)
            if measured.is_over:
                overlong.append(index)
    names = [_name_row(rows, index) for index in overlong[:MAX_ROWS_NAMED]]
    checks = RowChecks(len(rows), overlong, names, longest.num_tokens, longest.limit, len(lengths.shrunk_images))
    if errors.count:
        overlong_text = f"; also, {checks.overlong_text}" if overlong else ""
        raise InputError(f"{name}: the model refuses {errors.count} of {len(rows)} rows: {errors.summary()}{overlong_text}")
    return checks


def _name_row(rows: Sequence[Record], index: int) -> str:
    return rows.name_row(index) if isinstance(rows, Records) else f"row {rows[index].id}"


class KeptChecks:
    """A file with a dataset's checks; `save` takes its name and text."""

    def __init__(self, path: Path, save: Callable[[str, str], None]) -> None:
        self.path, self._save = path, save

    def read(self) -> tuple[str, RowChecks] | None:
        """Return the signature and the checks, None if there are none or they cannot be read."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return str(content["signature"]), RowChecks(**content["checks"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, signature: str, checks: RowChecks) -> None:
        """Keep checks under a signature."""
        self._save(self.path.name, json.dumps({"signature": signature, "checks": asdict(checks)}) + "\n")


def signature_of(config: Any) -> str:
    """Return a hash of the settings and files that the checks of a dataset depend on."""
    inputs = [type(config).__name__, inputs_of(config, ignored=IRRELEVANT_SETTINGS), transformers.__version__]
    return hashlib.sha256(json.dumps(inputs, default=repr).encode()).hexdigest()[:12]


def usable_indices(
    rows: Sequence[Record],
    config: Any,
    name: str,
    lengths_of: LengthsOf,
    lengths: PromptLengths,
    console: Console,
    kept: KeptChecks | None = None,
) -> list[int]:
    """Return the indices of the rows that the model can read; print what is dropped or shrunk.

    `kept` holds the checks of an earlier call, which are valid for the same settings and files.
    Raises InputError for rows that the model refuses, for overlong rows unless the settings drop
    them, and if a run that dropped rows would now drop different ones.
    """
    if not len(rows):
        raise InputError(f"{name} has no rows: give at least one")
    signature, earlier = signature_of(config), kept.read() if kept else None
    is_known = earlier is not None and earlier[0] == signature
    checks = earlier[1] if is_known and earlier else check_rows(rows, name, lengths_of, lengths, console)
    if checks.overlong and config.overlong == "error":
        raise InputError(f"{name}: {checks.overlong_text}: raise max_length, or leave these rows out with --overlong drop")
    if kept and earlier and earlier[1].overlong != checks.overlong:
        raise InputError(
            f"{kept.path.parent} was started without {len(earlier[1].overlong)} overlong rows, and now {len(checks.overlong)} "
            "would be left out: continue it with the settings and the transformers that it was started with"
        )
    if kept and not is_known:
        kept.write(signature, checks)
    if len(checks.overlong) == len(rows):
        raise InputError(f"{name}: {checks.overlong_text}: raise max_length")
    if checks.overlong:
        console.print(Text(f"note: {name}: {checks.overlong_text}; they are left out"), soft_wrap=True)
    if checks.num_shrunk:
        note = f"note: {name}: {checks.num_shrunk} images have more pixels than max_pixels, and are shrunk"
        console.print(Text(note), soft_wrap=True)
    overlong = set(checks.overlong)
    return [index for index in range(len(rows)) if index not in overlong]


def refuse_unusable(
    model: RewardModel, rows: Sequence[Any], to_group: Callable[[Any], AnswerGroup], name: str, console: Console
) -> None:
    """Raise InputError, before anything is scored, for rows that a reward model cannot read."""
    lengths = PromptLengths(model.role.vlm)
    checks = check_rows(rows, name, lambda row: [group_length(model, lengths, to_group(row))], lengths, console)
    if checks.overlong:
        raise InputError(f"{name}: {checks.overlong_text}: raise max_length, or drop these rows")
