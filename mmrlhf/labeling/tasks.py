"""Tasks for annotators: a prompt about images, with the answers to label."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mmrlhf.datasets import is_preference, parse_example, parse_preference, row_context
from mmrlhf.datasets.examples import LABEL_FIELDS
from mmrlhf.datasets.image_fields import RowContext
from mmrlhf.datasets.write import facts_field
from mmrlhf.files.rows import Row, preview, type_name
from mmrlhf.files.tables import read_rows, split_of
from mmrlhf.labeling.gold import comparable, known_label
from mmrlhf.labeling.label_studio_argilla import numbered_answers, unpack_other_export
from mmrlhf.labeling.uncertainty import UncertaintyOf, number_field
from mmrlhf.models.images import read_image_size
from mmrlhf.records import Fact, ImageSource, InputError, Message

Mode = Literal["pairwise", "ranking", "claims", "facts"]
MODES: tuple[Mode, ...] = get_args(Mode)
MODE_BY_ANSWERS: tuple[Mode, ...] = ("facts", "claims", "pairwise", "ranking")
"""The default mode of a row with 0, 1, 2, and more answers."""
MAX_ANSWERS = 9
"""Maximum number of answers of a ranking: one digit of the keyboard each."""
MAX_TEXT = 1_000_000
"""Maximum number of characters of a task's texts. A percent-encoded form with a corrected answer of
that length is smaller than `guard.MAX_BODY_BYTES`."""


@dataclass(frozen=True)
class Task:
    """A task for an annotator: images, a prompt and answers, in the order of the row.

    `name` is the row's id. `models` has the source of each answer ("" if unknown); annotators never
    see them. `gold` has the known label of a gold question, and is empty for an ordinary task:
    `ranks` of the answers, 1 for the best, `spans` [start, end] that are wrong in the answer, or
    `facts` [kind, text] to state. `facts` are the row's; they are exported with the labels, but not
    shown. A higher `uncertainty` makes a task more urgent.
    """

    mode: Mode
    name: str
    images: tuple[ImageSource, ...]
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    models: tuple[str, ...] = ()
    gold: Mapping[str, Any] = field(default_factory=dict)
    facts: tuple[Fact, ...] = ()
    uncertainty: float | None = None

    @property
    def digest(self) -> str:
        """Return a hash of the question, so that a row that is added again is the same task."""
        content: list[Any] = [self.mode, [image.key for image in self.images], [turn.to_dict() for turn in self.prompt]]
        content += [sorted(self.answers), bool(self.gold)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the task for the store; images by their hashes."""
        return {
            "name": self.name,
            "images": [image.key for image in self.images],
            "prompt": [turn.to_dict() for turn in self.prompt],
            "answers": list(self.answers),
            "models": list(self.models),
            "gold": dict(self.gold),
            "facts": facts_field(self.facts) or [],
        }

    @classmethod
    def from_dict(cls, mode: Mode, fields: Mapping[str, Any], images: Sequence[ImageSource], uncertainty: float | None) -> Task:
        """Build a task as the store keeps it."""
        prompt = tuple(Message(t["role"], t["content"], tuple(t.get("image_positions", ()))) for t in fields["prompt"])
        answers, models, gold = tuple(fields["answers"]), tuple(fields["models"]), fields["gold"]
        if isinstance(gold, list):  # ranks alone, as files from before the other modes have them
            gold = {"ranks": gold} if gold else {}
        facts = tuple(Fact(**{**fact, "box": fact["box"] and tuple(fact["box"])}) for fact in fields["facts"])
        return cls(mode, fields["name"], tuple(images), prompt, answers, models, gold, facts, uncertainty)


# ---- rows ----------------------------------------------------------------------------------------


def read_tasks(
    dataset_names: Sequence[str],
    mode: Mode | None,
    image_folder: str | None,
    split: str,
    uncertainty_of: UncertaintyOf | None = None,
    is_gold: bool = False,
) -> list[Task]:
    """Return the tasks of files, each distinct one once.

    Rows with one answer to the same prompt about the same images, as `mmrlhf generate` writes them,
    are grouped. Without a `mode`, the number of answers decides: none is facts, one claims, two
    pairwise, more a ranking. A row's own uncertainty has precedence over `uncertainty_of`. Raises
    InputError if a row cannot be used, if there is no task, if two rows of a gold question have
    different right answers, or if `uncertainty_of` knows none of the tasks.
    """
    groups: dict[tuple[Any, ...], Task] = {}
    for dataset_name in dataset_names:
        context = row_context(dataset_name, image_folder)
        is_secondary = is_gold or len(dataset_names) > 1
        for raw_row in read_rows(dataset_name, split_of(dataset_name, split) if is_secondary else split):
            row = unpack_other_export(raw_row.parse())
            _check_mode(row)
            asked_mode = mode or row.fields.get("mode")
            task = _parse_task(row, context, Path(dataset_name).stem, asked_mode, is_gold)
            if not task.answers and asked_mode != "facts":
                _refuse_unread_answers(row)
            asked = task.prompt, tuple(image.key for image in task.images), row.fields.get("mode")
            # Answers that a row compares are a separate task; single answers are grouped.
            key = (*asked, len(groups)) if len(task.answers) > 1 or is_gold else asked
            groups[key] = _merge(groups[key], task) if key in groups else task
    skipped = Counter[str]()
    tasks: dict[str, Task] = {}
    for key, group in groups.items():
        for task in _split(group, mode or key[2], skipped):
            known = tasks.setdefault(task.digest, task)
            if comparable(task.answers, task.gold) != comparable(known.answers, known.gold):
                raise InputError(
                    f"{', '.join(dataset_names)}: rows {known.name} and {task.name} are the same gold question with different right "
                    "answers: keep the right one"
                )
    if uncertainty_of is not None:
        tasks = _with_uncertainty(tasks, uncertainty_of)
    for reason, count in skipped.items():
        print(f"note: {count} {reason}")
    if not tasks:
        raise InputError(f"{', '.join(dataset_names)}: no row gives a task: rows need images, a prompt, and answers to label")
    return list(tasks.values())


def _check_mode(row: Row) -> None:
    if "mode" in row.fields and row.fields["mode"] not in MODES:
        row.fail(f"`mode` must be one of {', '.join(MODES)}, not {preview(row.fields['mode'])}")


def _refuse_unread_answers(row: Row) -> None:
    """Refuse a row whose answers would be dropped: they are in fields that nothing reads."""
    names = numbered_answers(row.fields)
    if names and "answers" not in row.fields:
        look, them = ("looks like an answer", "it") if len(names) == 1 else ("look like answers", "them")
        row.fail(
            f"{', '.join(f'`{name}`' for name in names)} {look} to label: "
            f"put {them} into one list, `answers`, or give --mode facts to leave {them} out"
        )


def _parse_task(row: Row, context: RowContext, file_stem: str, mode: str | None, is_gold: bool) -> Task:
    uncertainty = number_field(row, "uncertainty")
    if is_preference(row) and not (is_gold and mode in ("claims", "facts")):
        preference = parse_preference(row, context)
        if any(preference.answer_images):
            row.fail("its answers contain images, which the page does not show: drop the row")
        margins = [abs(a - b) for a, b in itertools.combinations(_scores_of(row), 2)]
        texts, gold = preference.answers, {"ranks": list(preference.ranks)} if is_gold else {}
        task = Task(
            "pairwise", preference.id, preference.images, preference.prompt, texts, ("",) * len(texts), gold, preference.facts
        )
        uncertainty = -min(margins) if uncertainty is None and margins else uncertainty
    else:
        # An answer to avoid (KTO) is one to label like any other.
        unlabelled = replace(row, fields={name: value for name, value in row.fields.items() if name not in LABEL_FIELDS})
        example = parse_example(unlabelled, context, require_answer=False)
        answers = _candidate_answers(row) if "answers" in row.fields else []
        if not answers and example.answer is not None:
            answers = [(example.answer, str(row.fields.get("model", file_stem)))]
        models: dict[str, str] = {}
        for text, model in answers:  # two policies may give the same answer, which is one to judge
            models.setdefault(text, model)
        texts, names = tuple(models), tuple(models.values())
        gold = known_label(row, mode, texts, example.facts) if is_gold else {}
        task = Task("facts", example.id, example.images, example.prompt, texts, names, gold, example.facts)
    if sum(map(len, (*task.answers, *(turn.content for turn in task.prompt)))) > MAX_TEXT:
        row.fail(f"prompt and answers have more than {MAX_TEXT:,} characters: shorten them or drop the row")
    for image in task.images:
        read_image_size(image)  # what a browser could not show is refused here
    return replace(task, uncertainty=uncertainty)


def _candidate_answers(row: Row) -> list[tuple[str, str]]:
    """Return the texts of `answers`, each text or {text, model}, with their models."""
    values, candidates = row.fields["answers"], []
    if not isinstance(values, list):
        row.fail(f"`answers` must be a list, not {type_name(values)}")
    for number, value in enumerate(values, 1):
        name = f"answers[{number}]"
        text, model = (value.get("text"), value.get("model", "")) if isinstance(value, dict) else (value, "")
        if not row.require_text(text, name):
            row.fail(f"`{name}` is empty: fill it in or drop it")
        candidates.append((row.require_text(text, name), row.require_text(model, f"{name}.model")))
    return candidates


def _scores_of(row: Row) -> list[float]:
    names = [name for name in ("score_chosen", "score_rejected") if name in row.fields]
    return [score for name in names if (score := number_field(row, name)) is not None]


def _merge(task: Task, other: Task) -> Task:
    """Add the answers of another row about the same prompt and images."""
    new = [(text, model) for text, model in zip(other.answers, other.models, strict=True) if text not in task.answers]
    uncertainties = [value for value in (task.uncertainty, other.uncertainty) if value is not None]
    return replace(
        task,
        answers=(*task.answers, *(text for text, _ in new)),
        models=(*task.models, *(model for _, model in new)),
        uncertainty=max(uncertainties, default=None),
    )


def _split(group: Task, mode: Mode | None, skipped: Counter[str]) -> Iterator[Task]:
    """Yield the tasks of a group: every two answers, each answer's claims, or the group itself."""
    number = len(group.answers)
    mode = mode or MODE_BY_ANSWERS[min(number, 3)]
    group = replace(group, mode=mode)
    if mode == "facts":
        yield replace(group, answers=(), models=())
        return
    if number < (1 if mode == "claims" else 2):
        skipped[f"rows left out: {mode} needs {'an answer' if mode == 'claims' else 'two different answers'} to a prompt"] += 1
        return
    if mode == "ranking" and number > MAX_ANSWERS:
        raise InputError(
            f"row {group.name} has {number} answers: a ranking on the page takes {MAX_ANSWERS}; give --mode pairwise"
        )
    if mode == "ranking" or (mode == "pairwise" and number == 2):
        yield group
        return
    # Answers are in the order of the files, so the order of tasks would reveal their models.
    order = sorted(range(number), key=lambda i: hashlib.sha256(group.answers[i].encode()).digest())
    for chosen in itertools.combinations(order, 1 if mode == "claims" else 2):
        indices = sorted(chosen)
        texts, models = (tuple(values[i] for i in indices) for values in (group.answers, group.models))
        name = "-".join([group.name, *(str(i + 1) for i in indices)]) if number > 1 else group.name
        gold = {"ranks": [group.gold["ranks"][i] for i in indices]} if "ranks" in group.gold else group.gold
        yield replace(group, name=name, answers=texts, models=models, gold=gold)


def _with_uncertainty(tasks: Mapping[str, Task], uncertainty_of: UncertaintyOf) -> dict[str, Task]:
    known = {digest: uncertainty_of(task) for digest, task in tasks.items()}
    number = sum(value is not None for value in known.values())
    if tasks and not number:
        raise InputError(
            f"scores_file or reward_eval_file says nothing of these rows (the first is {preview(next(iter(tasks.values())).name)}): "
            "score the same rows, with the same ids, by each reward model, or give a report about the same kinds of claim"
        )
    print(f"uncertainty: {number} of {len(tasks)} tasks have one")
    return {
        digest: task if task.uncertainty is not None else replace(task, uncertainty=known[digest])
        for digest, task in tasks.items()
    }


def images_of(tasks: Iterable[Task]) -> dict[str, ImageSource]:
    """Return the images of tasks by their hashes."""
    return {image.key: image for task in tasks for image in task.images}
