"""Pairs from kept answers: files of `mmrlhf generate`, one for each model, joined by row id."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.arena.ledger import Pair, pair_of
from mmrlhf.datasets import parse_example, row_context
from mmrlhf.files.tables import read_rows
from mmrlhf.labeling.tasks import Task
from mmrlhf.models.images import read_image_size
from mmrlhf.records import Example, InputError

ANSWER_FILES = (".jsonl", ".json", ".parquet")
LATIN = "A-Za-z\u00c0-\u024f"
"""Letters that belong to the word beside them. Other scripts have no spaces, or add endings to a
name: 我是Qwen, Qwen는."""
Answers = Mapping[str, Example]
"""A model's answers by row id."""


@dataclass(frozen=True)
class Contestant:
    """A model by its name in the arena, and where its answers come from."""

    name: str
    source: str

    @property
    def is_kept(self) -> bool:
        """Whether the source is a file of answers, not a model."""
        return self.source.endswith(ANSWER_FILES) or Path(self.source).is_file()


def parse_contestants(models: str) -> list[Contestant]:
    """Read `NAME=SOURCE,NAME=SOURCE`; the default name is that of the file or folder.

    Raises InputError for fewer than two, or two of one name.
    """
    contestants = []
    for text in filter(None, map(str.strip, models.split(","))):
        name, equals, source = text.partition("=")
        if not equals or "/" in name:  # a path or a URL may hold an equals sign
            name, source = _default_name(text), text
        if not (name and source):
            raise InputError(f"{text} names no model: give NAME=SOURCE, or URL#MODEL")
        contestants.append(Contestant(name, source))
    if len(contestants) < 2:
        raise InputError("an arena compares two models or more: give the answers or the models themselves, NAME=SOURCE each")
    for name, count in Counter(contestant.name for contestant in contestants).items():
        if count > 1:
            raise InputError(f"{count} models are called {name}: give each a name, as in first={name} second={name}")
    return contestants


def _default_name(source: str) -> str:
    """Return the name of a file without its ending, that of a folder, or a server's model."""
    if "://" in source:
        return source.partition("#")[2]
    path = Path(source.rstrip("/"))
    return path.stem if path.suffix in ANSWER_FILES else path.name


def read_answers_by_id(path: str, image_folder: str | None, split: str) -> dict[str, Example]:
    """Return the answers of a file by row id; if a row has several, the first.

    Raises InputError.
    """
    context = row_context(path, image_folder)
    answers: dict[str, Example] = {}
    num_more, num_empty = 0, 0
    for raw_row in read_rows(path, split):
        row = raw_row.parse()
        if isinstance(row.fields.get("answer"), str) and not row.fields["answer"].strip():
            num_empty += 1
            continue
        example = parse_example(row, context, require_answer=True)
        row.require_text(example.meta.get("category", ""), "category")
        if example.id in answers:
            num_more += 1
            continue
        for image in example.images:
            read_image_size(image)
        answers[example.id] = example
    if num_more:
        print(f"note: {path}: of several answers to a row the first is taken; {num_more} are left out")
    if num_empty:
        print(f"note: {path}: {num_empty} empty answers are left out")
    return answers


def read_categories(path: str) -> dict[str, str]:
    """Return the categories of rows with `id` and `category`. Raises InputError."""
    categories = {}
    for raw_row in read_rows(path):
        row = raw_row.parse()
        categories[str(row.require("id"))] = row.require_text(row.require("category"), "category")
    return categories


def make_pairs(
    answers_by_model: Mapping[str, Answers], categories: Mapping[str, str], identity_words: Sequence[str], rng: random.Random
) -> tuple[list[Task], list[Pair]]:
    """Return a task and a pair for every two models and every question that both answered.

    They are in the order of `draw_order`. Pairs of equal answers are left out, as are pairs in
    which an answer contains an identity word. Raises InputError if models answered different
    questions under one id, or nothing is left.
    """
    questions = _questions(answers_by_model)
    models = list(answers_by_model)
    tasks, pairs, left_out = [], [], Counter[str]()
    for id_, (i, j) in draw_order(list(questions), len(models), rng):
        first, second = (answers_by_model[models[index]].get(id_) for index in (i, j))
        if first is None or second is None:
            left_out["which only one of the models answered"] += 1
            continue
        task = make_task(
            questions[id_], (models[i], models[j]), (first.answer or "", second.answer or ""), f"{id_}-{i + 1}-{j + 1}"
        )
        reason = why_unfit(task, identity_words)
        if reason:
            left_out[reason] += 1
            continue
        tasks.append(task)
        pairs.append(pair_of(task, categories.get(id_, str(questions[id_].meta.get("category", "")))))
    for reason, count in left_out.items():
        print(f"note: {count} pairs left out {reason}")
    if not tasks:
        raise InputError(f"{', '.join(models)} have no two different answers to one row: give answers to the same rows")
    return tasks, pairs


def make_task(question: Example, models: tuple[str, str], answers: tuple[str, str], name: str) -> Task:
    """Return the task that shows two models' answers."""
    return Task("pairwise", name, question.images, question.prompt, answers, models, facts=question.facts)


def parse_words(text: str | None) -> list[str]:
    """Return the words of `--identity_words`."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def why_unfit(task: Task, identity_words: Sequence[str]) -> str:
    """Return why a pair cannot be voted on, "" if it can."""
    if task.answers[0] == task.answers[1]:
        return "of equal answers"
    if any(_contains_word(answer, word) for word in identity_words for answer in task.answers):
        return "in which an answer says who wrote it (--identity_words)"
    return ""


def _contains_word(text: str, word: str) -> bool:
    """Return whether a text has a word, in any case: "gpt" is in GPT-4, "yi" not in lying."""
    return re.search(rf"(?<![{LATIN}]){re.escape(word)}(?![{LATIN}])", text, re.IGNORECASE) is not None


def draw_order(question_ids: Sequence[str], num_models: int, rng: random.Random) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each question with every two models, questions and models evenly spread.

    All questions occur once before any is repeated, and among P consecutive questions each of the P
    pairs of models occurs once. Without a seed (`random.SystemRandom`) the order is unpredictable.
    """
    ids = list(question_ids)
    rng.shuffle(ids)
    pairs = list(itertools.combinations(range(num_models), 2))
    # A Latin square for each P questions, its rows and columns shuffled.
    squares = [(rng.sample(pairs, len(pairs)), rng.sample(range(len(pairs)), len(pairs))) for _ in range(0, len(ids), len(pairs))]
    for turn in range(len(pairs)):
        for number, id_ in enumerate(ids):
            order, shifts = squares[number // len(pairs)]
            yield id_, order[(number + shifts[turn]) % len(pairs)]


def _questions(answers_by_model: Mapping[str, Answers]) -> dict[str, Example]:
    """Return each row's question. Raises InputError if models answered different questions."""
    questions: dict[str, Example] = {}
    asked_by: dict[str, str] = {}
    for model, answers in answers_by_model.items():
        for id_, example in answers.items():
            known = questions.setdefault(id_, example)
            other = asked_by.setdefault(id_, model)
            if known.prompt != example.prompt or [i.key for i in known.images] != [i.key for i in example.images]:
                raise InputError(
                    f"row {id_} has another prompt or other images in the answers of {model} than in those of {other}: "
                    "give answers to the same rows"
                )
    return questions
