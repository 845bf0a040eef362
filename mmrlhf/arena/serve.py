"""`mmrlhf arena serve` and `judge`: people or a judge vote on pairs of models' answers.

Voters use the labelling page (`mmrlhf.label`), and everything is in one file of its kind.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmrlhf.arena.judge import check_judge, judge_pairs
from mmrlhf.arena.kept_answers import (
    Answers,
    Contestant,
    make_pairs,
    parse_contestants,
    parse_words,
    read_answers_by_id,
    read_categories,
)
from mmrlhf.arena.ledger import Ledger, Pair
from mmrlhf.arena.live import Producer, check_same_models, open_models
from mmrlhf.config import ArenaConfig, ArenaJudgeConfig, LabelConfig, PairsConfig
from mmrlhf.datasets import read_examples
from mmrlhf.files import lock
from mmrlhf.files.atomic import refuse_output_file
from mmrlhf.files.rows import preview
from mmrlhf.files.tables import split_of
from mmrlhf.label import RunningServer, lock_labels, read_guidelines, serving_labels, wait_for_end
from mmrlhf.labeling.database import StorageError
from mmrlhf.labeling.store import Store
from mmrlhf.labeling.tasks import Task
from mmrlhf.models.images import read_image_size
from mmrlhf.records import Example, InputError


def serve_arena(config: ArenaConfig) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises InputError if models or address cannot be used."""
    with serving_arena(config) as running, contextlib.suppress(KeyboardInterrupt):
        print(f"voting at {running.url} (Ctrl-C stops; the same command continues)", flush=True)
        if running.access_token is not None:
            print(f"token: {running.access_token} (voters open {running.url}/?token={running.access_token})", flush=True)
        wait_for_end(running)


@contextlib.contextmanager
def serving_arena(config: ArenaConfig) -> Iterator[RunningServer]:
    """Serve in the background while the block runs. Raises InputError as `serve_arena` does."""
    contestants = parse_contestants(config.models) if config.models is not None else []
    is_live = not all(contestant.is_kept for contestant in contestants)
    output = Path(config.output_file)
    refuse_output_file(output)
    read_guidelines(config.guidelines_file)  # refused before models load
    if not contestants and not output.is_file():
        raise InputError(
            f"{output} has no pairs: give models, `mmrlhf arena serve NAME=SOURCE NAME=SOURCE --output_file {output}`"
        )
    questions = read_questions(config) if is_live else {}
    answers = read_kept_answers(contestants, config)
    kept = ([], []) if is_live or not contestants else kept_pairs(answers, config)
    label_config = LabelConfig(
        output_file=config.output_file, overlap=config.overlap, gold_every=0, title=config.title, guidelines_file=config.guidelines_file,
        consent=config.consent, host=config.host, port=config.port,
    )  # fmt: skip
    with lock.released_after(), contextlib.ExitStack() as stack:
        lock_labels(output)  # before another server's file gets a pair
        models = stack.enter_context(open_models(contestants, answers, config)) if is_live else {}
        store, ledger = stack.enter_context(open_votes(output, create=True))
        ledger.check_same_answers(answers)
        if contestants and not is_live:
            print(f"{output}: {ledger.add_pairs(store, *kept)} new pairs")
        if is_live:
            check_same_models(store, ledger, models)
            producer = Producer(store, ledger, questions, {name: model.ask for name, model in models.items()}, config)
            stack.callback(producer.close)
            producer.wait_for_a_pair()
        yield stack.enter_context(serving_labels(label_config))


def read_questions(config: ArenaConfig) -> dict[str, Example]:
    """Return the questions for live models by id. Raises InputError."""
    if config.dataset_name is None:
        raise InputError("live models need questions: give rows with a prompt and images as --dataset_name")
    categories = read_categories(config.categories_file) if config.categories_file is not None else {}
    questions: dict[str, Example] = {}
    for example in read_examples(config.dataset_name, config.dataset_train_split, config.image_folder):
        for image in example.images:
            read_image_size(image)
        category = categories.get(example.id, example.meta.get("category", ""))
        if not isinstance(category, str) or not category.isprintable():
            raise InputError(f"row {preview(example.id)}: `category` must be text, not {preview(category)}")
        meta = {**example.meta, "category": category}
        questions.setdefault(example.id, Example(example.id, example.images, example.prompt, None, example.facts, meta))
    return questions


def read_kept_answers(contestants: Sequence[Contestant], config: PairsConfig) -> dict[str, Answers]:
    """Return the answers of those contestants that are files. Raises InputError."""
    split = config.dataset_train_split
    return {
        c.name: read_answers_by_id(c.source, config.image_folder, split_of(c.source, split)) for c in contestants if c.is_kept
    }


def kept_pairs(answers: Mapping[str, Answers], config: PairsConfig) -> tuple[list[Task], list[Pair]]:
    """Return the pairs of files of answers. Raises InputError."""
    categories = read_categories(config.categories_file) if config.categories_file is not None else {}
    return make_pairs(answers, categories, parse_words(config.identity_words), random.SystemRandom())


def judge_arena(config: ArenaJudgeConfig) -> None:
    """Have a judge vote on the pairs of a file, to which those of `config.models` are added.

    Raises InputError if a file or the server cannot be used.
    """
    contestants = parse_contestants(config.models) if config.models is not None else []
    live = next((contestant for contestant in contestants if not contestant.is_kept), None)
    if live is not None:
        raise InputError(
            f"{live.source} is no file of answers: write them with `mmrlhf generate`, since a judge needs no live models"
        )
    output = Path(config.output_file)
    refuse_output_file(output)
    check_judge(config)  # before anything is written
    answers = read_kept_answers(contestants, config)
    kept = kept_pairs(answers, config) if contestants else ([], [])
    with open_votes(output, create=bool(contestants)) as (store, ledger):
        ledger.check_same_answers(answers)
        print(f"{config.output_file}: {ledger.add_pairs(store, *kept)} new pairs")
        judge_pairs(store, ledger, config)


@contextlib.contextmanager
def open_votes(path: Path, *, create: bool = False) -> Iterator[tuple[Store, Ledger]]:
    """Yield the tables of a file of votes. Raises InputError if it cannot be opened or written."""
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.is_file():
        raise InputError(f"{path} does not exist: give the file that `mmrlhf arena serve` writes")
    try:
        with contextlib.closing(Store(path, create=create)) as store, contextlib.closing(Ledger(path)) as ledger:
            yield store, ledger
    except StorageError as error:
        raise InputError(f"{error}: {error.advice}, or give another --output_file") from None
