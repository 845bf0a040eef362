"""Live models: pairs are answered ahead of the voters who will see them.

Both models of a pair are asked at the same time, and the pair is shown only once both have
answered. Voters never wait for one side, so time reveals nothing about a model. A model that fails,
or takes too long, makes the vote void, which is recorded with the reason and counts for nobody.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmrlhf.arena.kept_answers import Answers, Contestant, draw_order, make_task, parse_words, why_unfit
from mmrlhf.arena.ledger import Ledger, Void, changed_model, pair_of, question_key
from mmrlhf.background import run_in_background
from mmrlhf.config import ArenaConfig, ServeConfig
from mmrlhf.evaluation.openai_client import Endpoint, chat_messages, is_url, request_replies, resolve_model_name
from mmrlhf.files.inputs import file_sha256
from mmrlhf.labeling.database import StorageError
from mmrlhf.labeling.store import Store
from mmrlhf.records import Example, InputError
from mmrlhf.text.printable import printable

Ask = Callable[[Example], str]
"""Returns a model's answer to a question. Raises InputError, or whatever a failing model raises."""


@dataclass(frozen=True)
class LiveModel:
    """A model that answers.

    `identity` is a hash of its weights, for a server its address and model, "" for a file, whose
    answers are compared.
    """

    ask: Ask
    identity: str = ""


MAX_VOIDS = 3
"""Number of void votes after which a pair is not tried again."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds for which a failed model is not asked; they double with each failure."""
IDLE_SECONDS = 0.3


class NoAnswerError(Exception):
    """A model gave no answer; the message gives the reason."""


class MissingRowError(NoAnswerError):
    """A file of answers lacks a row, which is not the model's fault."""


class Producer:
    """Keeps pairs ready for voters, `ahead` of them, until it is closed."""

    def __init__(
        self, store: Store, ledger: Ledger, questions: Mapping[str, Example], asks: Mapping[str, Ask], config: ArenaConfig
    ) -> None:
        self._store, self._ledger, self._questions, self._asks, self._config = store, ledger, questions, asks, config
        self._identity_words = parse_words(config.identity_words)
        self._models = list(asks)
        # A model in this process answers one question at a time.
        self._slots = {model: threading.Semaphore(1) for model in asks}
        self._is_closed = threading.Event()
        self._failures = Counter[str]()
        self._resting_until: dict[str, float] = defaultdict(float)
        done = {(pair.question, *sorted((pair.lower, pair.upper))) for pairs in ledger.pairs().values() for pair in pairs}
        earlier_voids = ledger.voids()
        self._num_earlier_voids = len(earlier_voids)
        # Both models may have failed at the same time, in one void vote.
        attempts = {(void.question, *sorted((void.first, void.second)), void.time) for void in earlier_voids}
        voids = Counter(attempt[:-1] for attempt in attempts)
        self._keys = {id_: question_key(example.images, example.prompt) for id_, example in questions.items()}
        self._waiting: list[tuple[str, str, str, int]] = []
        for id_, first, second in self._all_pairs():
            pair = (self._keys[id_], *sorted((first, second)))
            if pair not in done and voids[pair] < MAX_VOIDS:
                self._waiting.append((id_, first, second, voids[pair]))
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _all_pairs(self) -> Iterator[tuple[str, str, str]]:
        for id_, (i, j) in draw_order(list(self._questions), len(self._models), random.SystemRandom()):
            yield id_, self._models[i], self._models[j]

    def wait_for_a_pair(self) -> None:
        """Return once there is a pair to show.

        Raises InputError if there will be none, or the first MAX_VOIDS votes are void.
        """
        while True:
            is_working = self._thread.is_alive()  # asked first: the last pair may come now
            if self._store.task_entries():
                return
            voids = self._ledger.voids()[self._num_earlier_voids :]
            if len({void.time for void in voids}) >= MAX_VOIDS or not is_working:
                reason = f"{voids[-1].failed} gave no answer ({voids[-1].reason})" if voids else "no pair of answers can be shown"
                raise InputError(f"{reason}: start the models, correct their names, or give more time with --answer_timeout")
            time.sleep(IDLE_SECONDS)

    def close(self) -> None:
        """Stop without waiting for servers that are still answering; their answers are dropped."""
        self._is_closed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_closed.is_set() and self._waiting:
            number = self._next()
            try:
                if number is None or self._ledger.fewest_left(self._config.overlap) >= self._config.ahead:
                    self._is_closed.wait(IDLE_SECONDS)
                    continue
                pair = self._waiting.pop(number)
                try:
                    self._produce(*pair)
                except StorageError:
                    self._waiting.append(pair)
                    raise
            except StorageError as error:
                with contextlib.suppress(OSError):  # the output may be a file on the same full disk
                    print(f"error: {error}: {error.advice}", file=sys.stderr, flush=True)
                self._is_closed.wait(LONGEST_PAUSE)

    def _next(self) -> int | None:
        """Return the next pair of models that are not paused after failures, None without one."""
        now = time.monotonic()
        return next(
            (n for n, (_, *models, _) in enumerate(self._waiting) if all(self._resting_until[model] <= now for model in models)),
            None,
        )

    def _produce(self, id_: str, first: str, second: str, num_voids: int) -> None:
        question = self._questions[id_]
        deadline = time.monotonic() + self._config.answer_timeout
        futures = {
            model: run_in_background(partial(self._asks[model], question), self._slots[model]) for model in (first, second)
        }
        answers = {model: self._answer(model, future, deadline) for model, future in futures.items()}
        if self._is_closed.is_set() or any(isinstance(answer, MissingRowError) for answer in answers.values()):
            return
        failed = [model for model, answer in answers.items() if isinstance(answer, NoAnswerError)]
        now = time.time()
        for model in failed:
            self._note_failure(model)
            reason = printable(str(answers[model]))
            self._ledger.add_void(Void(self._keys[id_], first, second, model, reason, now))
            print(f"note: void vote on {printable(id_)}: {model} gave no answer ({reason})", file=sys.stderr, flush=True)
        if failed:
            if num_voids + 1 < MAX_VOIDS:
                self._waiting.append((id_, first, second, num_voids + 1))  # again, after all others
            return
        self._failures[first] = self._failures[second] = 0
        i, j = self._models.index(first) + 1, self._models.index(second) + 1
        task = make_task(question, (first, second), (str(answers[first]), str(answers[second])), f"{id_}-{i}-{j}")
        # A pair that cannot be shown is also remembered, so that its models are not asked again.
        shown = [] if why_unfit(task, self._identity_words) else [task]
        self._ledger.add_pairs(self._store, shown, [pair_of(task, str(question.meta.get("category", "")))])

    def _answer(self, model: str, future: Future[str], deadline: float) -> str | NoAnswerError:
        while not future.done() and not self._is_closed.is_set() and (left := deadline - time.monotonic()) > 0:
            wait([future], min(left, IDLE_SECONDS))
        if not future.done():
            future.cancel()
            return NoAnswerError(f"no answer in {self._config.answer_timeout:g} s")
        try:
            answer = future.result()
        except NoAnswerError as error:
            return error
        except Exception as error:  # whatever happens to a model, the arena goes on
            return NoAnswerError(str(error) or type(error).__name__)
        return answer if answer.strip() else NoAnswerError("an empty answer")

    def _note_failure(self, model: str) -> None:
        self._failures[model] += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._failures[model] - 1))
        self._resting_until[model] = time.monotonic() + pause


# ---- models --------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_models(
    contestants: Sequence[Contestant], kept: Mapping[str, Answers], config: ArenaConfig
) -> Iterator[dict[str, LiveModel]]:
    """Yield the contestants as models to ask; `kept` has the answers of those that are files.

    Raises InputError if one is unusable.
    """
    with contextlib.ExitStack() as stack:
        models: dict[str, LiveModel] = {}
        for number, contestant in enumerate(contestants):
            if contestant.is_kept:
                models[contestant.name] = LiveModel(_ask_file(contestant.source, kept[contestant.name]))
            elif is_url(contestant.source):
                models[contestant.name] = _server(contestant, config)
            else:
                models[contestant.name] = stack.enter_context(_policy(contestant, config, config.seed + number))
        yield models


def check_same_models(store: Store, ledger: Ledger, models: Mapping[str, LiveModel]) -> None:
    """Record what models are; raise InputError for a name that has pairs and used to refer to other
    weights, or to another server or model.

    Votes are counted by name, and must not be about two models.
    """
    # A name without pairs is free: a wrong address, whose models never answered, can be corrected.
    answered = {name for pairs in ledger.pairs().values() for pair in pairs for name in (pair.lower, pair.upper)}
    for name, model in models.items():
        if not model.identity:
            continue
        known = store.setting(f"weights of {name}")
        if known and known != model.identity and name in answered:
            raise changed_model(name, _change(known, model.identity))
        store.set_setting(f"weights of {name}", model.identity)


def _change(known: str, identity: str) -> str:
    """Return how a model differs from the one known by its name."""
    was_server, is_server = is_url(known), is_url(identity)
    if not was_server and not is_server:
        return "has other weights"
    model = identity if is_server else "a model in this process"
    return f"is {model}, another {'server or model' if was_server and is_server else 'source'}"


def _ask_file(source: str, answers: Answers) -> Ask:
    def ask(question: Example) -> str:
        kept = answers.get(question.id)
        if kept is None or question_key(kept.images, kept.prompt) != question_key(question.images, question.prompt):
            raise MissingRowError(f"{source} has no answer to this row")
        return kept.answer or ""

    return ask


def _server(contestant: Contestant, config: ArenaConfig) -> LiveModel:
    url, _, model = contestant.source.partition("#")
    endpoint = resolve_model_name(Endpoint(url, model, timeout=config.answer_timeout, max_retries=0, concurrency=1))
    params = {"temperature": config.temperature, "max_tokens": config.response_length}

    def ask(question: Example) -> str:
        replies = request_replies(endpoint, [(question.id, lambda: chat_messages(question.prompt, question.images))], params)
        _, reply = next(replies)
        replies.close()  # type: ignore[attr-defined]
        if reply.status != "ok" or reply.text is None:
            raise NoAnswerError(reply.reason or reply.status)
        return reply.text

    return LiveModel(ask, f"{endpoint.display_url.rstrip('/')}#{endpoint.model}")


@contextlib.contextmanager
def _policy(contestant: Contestant, config: ArenaConfig, seed: int) -> Iterator[LiveModel]:
    from mmrlhf.engine.rollout import generate_batches
    from mmrlhf.engine.sampling import SamplingParams
    from mmrlhf.models.policy import load_policy
    from mmrlhf.serve import resolve_run, with_pixels_of_run

    base, adapter_path, _ = resolve_run(contestant.source)
    if base is None:
        raise InputError(f"{contestant.source} is a reward model, which answers nothing: give a policy")
    params = SamplingParams(config.response_length, config.temperature, seed=seed)
    settings = with_pixels_of_run(ServeConfig(model_name_or_path=contestant.source))
    computing = threading.Lock()
    with load_policy(base, adapter_path, config.dtype, settings, settings) as vlm:

        def ask(question: Example) -> str:
            with computing:
                ((_, texts),) = generate_batches(vlm, [question], params, batch_size=1)
            return texts[0]

        adapter = Path(adapter_path, "adapter_model.safetensors") if adapter_path is not None else None
        try:
            yield LiveModel(ask, vlm.fingerprint + (file_sha256(adapter) if adapter else ""))
        finally:  # kept: torch aborts a process that ends while another thread computes
            computing.acquire()
