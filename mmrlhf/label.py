"""`mmrlhf label serve` and `add`: the annotators' page, and more tasks while they work.

Everything is in one SQLite file. Its events are only appended, so `serve` continues wherever it was
stopped, and `add`, `export` and `report` may run at the same time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import uvicorn

from mmrlhf.claims import Lexicon, load_lexicon
from mmrlhf.config.labeling import LabelConfig
from mmrlhf.files import lock
from mmrlhf.files.atomic import refuse_output_file
from mmrlhf.labeling.app import create_app
from mmrlhf.labeling.assignments import Assignments
from mmrlhf.labeling.database import StorageError
from mmrlhf.labeling.guard import Guard
from mmrlhf.labeling.pages import Pages
from mmrlhf.labeling.schedule import Schedule
from mmrlhf.labeling.sessions import Sessions
from mmrlhf.labeling.store import Store
from mmrlhf.labeling.tasks import Mode, Task, read_tasks
from mmrlhf.labeling.uncertainty import UncertaintyOf, uncertainty_of_claims, uncertainty_of_margins
from mmrlhf.records import InputError
from mmrlhf.text.addresses import is_loopback
from mmrlhf.text.plurals import pluralize

MAX_CONNECTIONS = 512
STOP_SECONDS = 5
"""How long pending requests may take once the server is stopped."""
LEXICON_SETTING = "lexicon_file"
"""Setting of a file of labels with the path of its lexicon."""


def serve_labels(config: LabelConfig) -> None:
    """Serve until Ctrl-C or SIGTERM. Acknowledged labels are on disk whenever it ends.

    Raises InputError if a row cannot be used, or the address or the output cannot.
    """
    with serving_labels(config) as running, contextlib.suppress(KeyboardInterrupt):
        print(f"labelling at {running.url} (Ctrl-C stops; the same command continues)", flush=True)
        if running.access_token is not None:
            print(f"token: {running.access_token} (annotators open {running.url}/?token={running.access_token})", flush=True)
        wait_for_end(running)


@dataclass(frozen=True)
class RunningServer:
    """A running server: its address, the annotators' access token, and whether it has ended."""

    url: str
    access_token: str | None
    has_ended: threading.Event
    store: Store


def wait_for_end(running: RunningServer) -> NoReturn:
    """Wait until the server ends by itself, and raise InputError. Ctrl-C interrupts the wait."""
    running.has_ended.wait()  # not `join`: once interrupted, it takes the thread for ended
    raise InputError("the server has ended by itself, as the lines above say: run the same command again to continue")


@contextlib.contextmanager
def serving_labels(config: LabelConfig) -> Iterator[RunningServer]:
    """Serve in the background while the block runs. Raises InputError as `serve_labels` does."""
    output = Path(config.output_file)
    guidelines = read_guidelines(config.guidelines_file)
    refuse_output_file(output)
    lexicon_file = config.lexicon_file and os.path.abspath(config.lexicon_file)
    if lexicon_file is None and _has_content(output):
        with contextlib.closing(Store(output)) as store, _storage_errors_explained():
            lexicon_file = store.setting(LEXICON_SETTING)
    lexicon = load_lexicon(lexicon_file or None)
    tasks = _read_tasks_of(config, lexicon)  # what cannot be used leaves nothing behind
    if not tasks and not _has_content(output):
        raise _no_tasks(output)
    if config.order == "uncertainty":
        _refuse_without_uncertainty(tasks, output)
    with lock.released_after(), contextlib.ExitStack() as opened:
        lock_labels(output)
        listener = opened.enter_context(_listen(config.host, config.port))
        store = opened.enter_context(contextlib.closing(Store(output, create=True)))
        with _storage_errors_explained():
            if tasks:
                print(f"{output}: {store.add_tasks(tasks)} new tasks")
            if not store.task_entries():
                raise _no_tasks(output)
            if lexicon_file:
                store.set_setting(LEXICON_SETTING, lexicon_file)
            app, access_token = _create_app(config, store, guidelines, lexicon)
            if store.modes() & {"claims", "facts"}:
                pluralize("dog")  # loads a package for seconds, in which everybody would wait for the first count
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,  # addresses may hold the token
                server_header=False,
                lifespan="off",
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        has_ended = threading.Event()

        def run() -> None:
            try:
                server.run(sockets=[listener])
            finally:
                has_ended.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield RunningServer(_address_of(listener), access_token, has_ended, store)
        finally:
            server.should_exit = True
            thread.join()


def lock_labels(output: Path) -> None:
    """Lock a file of labels for one server. Raises InputError if another one has it."""
    lock.acquire(output.with_name(f"{output.name}.lock"), output, "output_file")


def _has_content(output: Path) -> bool:
    """Return whether there is a file with content: an empty one counts as none."""
    return output.exists() and output.stat().st_size > 0


def _create_app(config: LabelConfig, store: Store, guidelines: str, lexicon: Lexicon) -> tuple[Guard, str | None]:
    access_token = None
    if not is_loopback(config.host):
        # It stays the same from one start to the next, so that sent links stay valid.
        access_token = store.setting("access_token") or secrets.token_urlsafe(18)
        store.set_setting("access_token", access_token)
    schedule = Schedule(config.overlap, config.gold_every, config.order, config.seed, store.setting("secret"))
    sessions = Sessions(store, access_token, config.consent)
    pages = Pages(config.title, guidelines, config.consent, lexicon)
    return create_app(Assignments(store, schedule), sessions, pages), access_token


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256)
    except OSError as error:
        raise InputError(f"cannot listen on {host}, port {port} ({error.strerror}): give another --host or --port") from None


def _address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # all of this machine's addresses, and none that others could open
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read_guidelines(path: str | None) -> str:
    """Return the text of a file of guidelines, "" without one. Raises InputError."""
    if path is None:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"guidelines_file {path} cannot be read as text ({error}): correct the path") from None


@contextlib.contextmanager
def _storage_errors_explained() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise InputError(f"{error}: {error.advice}, or give another --output_file") from None


# ---- tasks ---------------------------------------------------------------------------------------


def _read_tasks_of(config: LabelConfig, lexicon: Lexicon) -> list[Task]:
    tasks: list[Task] = []
    if config.dataset_name is not None:
        uncertainty_of = _read_uncertainty(config.scores_file, config.reward_eval_file, lexicon)
        names = _names(config.dataset_name)
        tasks += read_tasks(names, config.mode, config.image_folder, config.dataset_train_split, uncertainty_of)
    if config.gold_file is not None:
        gold_files = _names(config.gold_file)
        tasks += read_tasks(gold_files, config.mode, config.image_folder, config.dataset_train_split, is_gold=True)
    return tasks


def _read_uncertainty(scores_file: str | None, reward_eval_file: str | None, lexicon: Lexicon | None) -> UncertaintyOf | None:
    if scores_file and reward_eval_file:
        raise InputError("scores_file and reward_eval_file rank the same tasks: leave one of them out")
    if reward_eval_file:
        return uncertainty_of_claims(reward_eval_file, lexicon)
    return uncertainty_of_margins(_names(scores_file)) if scores_file else None


def _refuse_without_uncertainty(tasks: Sequence[Task], output: Path) -> None:
    """Refuse an order by a property that no task has: it would be the order of the file."""
    if any(task.uncertainty is not None and not task.gold for task in tasks):
        return
    if _has_content(output):
        with contextlib.closing(Store(output)) as store, _storage_errors_explained():
            if any(entry.uncertainty is not None and not entry.is_gold for entry in store.task_entries()):
                return
    raise InputError(
        "order uncertainty has nothing to go by, since no task has an uncertainty: "
        "give scores_file or reward_eval_file, fill in the rows' `uncertainty`, or leave out order"
    )


def _names(value: str) -> list[str]:
    """Return names that are separated by commas."""
    return [name.strip() for name in value.split(",")]


def _no_tasks(output: Path) -> InputError:
    return InputError(f"{output} has no tasks: give rows, `mmrlhf label serve ROWS --output_file {output}`")


def add_tasks(
    dataset_names: Sequence[str], output_file: str, mode: Mode | None = None, image_folder: str | None = None,
    split: str = "train", gold_file: str | None = None, scores_file: str | None = None, reward_eval_file: str | None = None,
) -> None:  # fmt: skip
    """Add new tasks and gold questions of files to a store, also while it is served.

    Raises InputError if a row cannot be used; then nothing is added.
    """
    if not dataset_names and gold_file is None:
        raise InputError("there is nothing to add: give rows to label, or --gold_file")
    with contextlib.closing(Store(output_file)) as store, _storage_errors_explained():
        names = [name for value in dataset_names for name in _names(value)]
        lexicon = load_lexicon(store.setting(LEXICON_SETTING) or None) if reward_eval_file else None  # that of the page
        uncertainty_of = _read_uncertainty(scores_file, reward_eval_file, lexicon)
        tasks = read_tasks(names, mode, image_folder, split, uncertainty_of) if names else []
        if gold_file is not None:
            tasks += read_tasks(_names(gold_file), mode, image_folder, split, is_gold=True)
        added = store.add_tasks(tasks)
    print(f"{output_file}: {added} new tasks")
