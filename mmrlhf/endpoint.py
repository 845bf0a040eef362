"""A model behind an OpenAI-compatible address: one question, one reply, whatever the server does. No torch.

A failure is a reply without text that says what went wrong; it is tried again a bounded number of times where that may help. Keys come from an
environment variable, go into one header and nowhere else.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import islice
from typing import Any, Literal

import httpx2

from mmrlhf.config import EvalConfig
from mmrlhf.records import Example, ImageSource, InputError, Message

Status = Literal["ok", "unreachable", "timeout", "cut", "http", "malformed", "empty", "other_model", "unanswered"]
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses that may be gone a moment later."""
LARGEST = 8 << 20
"""Bytes of a reply that are read."""
FUTILE = 8
"""So many failures before the first success end a run: the server or the settings are wrong, not the question."""
SHOWN = 120
"""Characters of a strange reply that a reason quotes."""
_DATED = r"(?:-\d{4}(?:-?\d\d){0,2}(?:-preview)?|[:@].*)"
"""What a server adds to a model's name: -0613, -2024-08-06, -20240620, -1106-preview, :latest."""


@dataclass(frozen=True)
class Reply:
    """What came back. `text` is None unless `status` is ok or other_model; `model` as the server names it; `reason` for a failure."""

    text: str | None
    status: Status
    reason: str = ""
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    attempts: int = 1
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return (self.input_tokens or 0) + (self.output_tokens or 0)


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and how patiently. `timeout` in seconds for a whole reply; `back_off` seconds before the first retry, twice as long
    before each further one; `key_variable` names the environment variable that holds the key, if there is one."""

    base_url: str
    model: str
    timeout: float = 120.0
    retries: int = 4
    back_off: float = 1.0
    concurrency: int = 4
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        url = httpx2.URL(self.base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(f"{self.base_url} is no address of a server: write http://HOST:PORT/v1")

    @property
    def shown(self) -> str:
        """Its address without a password."""
        return str(httpx2.URL(self.base_url).copy_with(username=None, password=None))

    @property
    def local(self) -> bool:
        """Whether it is on this machine, where no proxy stands in between."""
        host = httpx2.URL(self.base_url).host
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False


def is_address(name: str) -> bool:
    """Whether a model's name is where it is served."""
    return name.startswith(("http://", "https://"))


def endpoint_of(address: str, model: str | None, config: EvalConfig) -> Endpoint:
    """An address with a configuration's patience."""
    return Endpoint(
        address, model or "", config.endpoint_timeout, config.endpoint_retries, concurrency=config.endpoint_concurrency
    )


def named(endpoint: Endpoint) -> Endpoint:
    """The same, with the name of the one model that the server has where none was given. Raises InputError for several, or none."""
    if endpoint.model:
        return endpoint
    try:
        with _client(endpoint) as client:
            found = client.get(f"{endpoint.base_url.rstrip('/')}/models").json()["data"]
        models = [str(entry["id"]) for entry in found]
    except httpx2.ConnectError as error:
        raise InputError(f"{endpoint.shown} cannot be reached ({error}): start the server or correct the address") from None
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        models = []
    if len(models) != 1:
        raise InputError(f"{endpoint.shown} serves {', '.join(models[:8]) or 'no models that it names'}: say which by its name")
    return replace(endpoint, model=models[0])


def _client(endpoint: Endpoint) -> httpx2.Client:
    key = os.environ.get(endpoint.key_variable, "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.Client(timeout=endpoint.timeout, headers=headers, trust_env=not endpoint.local)


def message(text: str, images: Sequence[ImageSource] = (), role: str = "user") -> dict[str, Any]:
    """A chat message; pictures stand before its text, as base64."""
    if not images:
        return {"role": role, "content": text}
    urls = [f"data:{_kind(data := image.read())};base64,{base64.b64encode(data).decode()}" for image in images]
    return {
        "role": role,
        "content": [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": text}],
    }


def messages(prompt: Sequence[Message], images: Sequence[ImageSource]) -> list[dict[str, Any]]:
    """A conversation as an endpoint takes it: pictures stand in its first user turn."""
    first = next((i for i, turn in enumerate(prompt) if turn.role == "user"), None)
    return [message(turn.content, images if i == first else (), turn.role) for i, turn in enumerate(prompt)]


def _kind(data: bytes) -> str:
    if data[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    return "image/webp" if data[8:12] == b"WEBP" else "image/gif" if data[:3] == b"GIF" else "image/png"


def ask(endpoint: Endpoint, chat: Sequence[Mapping[str, Any]], sampling: Mapping[str, Any], client: httpx2.Client) -> Reply:
    """One reply to one conversation, after at most `retries` further tries. `sampling`: temperature, max_tokens and what else goes along."""
    body = {"model": endpoint.model, "messages": list(chat), **sampling}
    started = time.monotonic()
    for attempt in range(endpoint.retries + 1):
        reply, again, pause = _once(endpoint, body, client)
        if not again or attempt == endpoint.retries:
            break
        time.sleep(min(60.0, max(pause, endpoint.back_off * 2**attempt)))
    return Reply(**{**vars(reply), "attempts": attempt + 1, "seconds": round(time.monotonic() - started, 3)})


def _once(endpoint: Endpoint, body: Mapping[str, Any], client: httpx2.Client) -> tuple[Reply, bool, float]:
    """A reply, whether to try again, and how many seconds the server asks to wait for."""
    deadline, content = time.monotonic() + endpoint.timeout, bytearray()
    try:
        with client.stream("POST", f"{endpoint.base_url.rstrip('/')}/chat/completions", json=body) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("")
                if len(content) > LARGEST:
                    return Reply(None, "malformed", f"the reply is longer than {LARGEST >> 20} MiB"), False, 0.0
    except httpx2.TimeoutException as error:
        if isinstance(error, httpx2.ConnectTimeout):
            return Reply(None, "unreachable", "it takes no connection in time"), True, 0.0
        return Reply(None, "timeout", f"no whole reply in {endpoint.timeout:g} s"), True, 0.0
    except httpx2.ConnectError as error:
        return Reply(None, "unreachable", str(error) or "no connection"), True, 0.0
    except httpx2.HTTPError as error:
        return Reply(None, "cut", f"the connection broke ({type(error).__name__})"), True, 0.0
    if response.status_code != 200:
        said = f"HTTP {response.status_code}: {_shown(content)}"
        return Reply(None, "http", said), response.status_code in AGAIN, _pause(response.headers.get("retry-after"))
    reply = _read(bytes(content), endpoint.model)
    return reply, reply.status in ("malformed", "empty"), 0.0


def _pause(header: str | None) -> float:
    try:
        return float(header or 0)
    except ValueError:  # a date
        return 0.0


def _read(content: bytes, requested: str) -> Reply:
    """What a reply of status 200 holds."""
    try:
        found = json.loads(content)
        choices, usage = found["choices"], found.get("usage") or {}
        said = choices[0]["message"]["content"] if choices else None
        model = found.get("model")
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return Reply(None, "malformed", f"the reply is no chat completion: {_shown(content)}")
    if not isinstance(said, str) or not said.strip():
        return Reply(None, "empty", "the reply holds no text")
    read, wrote = (count if isinstance(count, int) else None for count in counts)
    if isinstance(model, str) and not _same(model, requested):
        reason = f"asked for {requested}, {model} answered"
        return Reply(said, "other_model", reason, model, read, wrote)
    return Reply(said, "ok", "", model if isinstance(model, str) else None, read, wrote)


def _same(returned: str, requested: str) -> bool:
    """Whether a server speaks of the model that was asked for: by its name, or by a dated or tagged form of it."""
    return returned == requested or re.fullmatch(re.escape(requested) + _DATED, returned) is not None


def _shown(content: bytes | bytearray) -> str:
    text = " ".join(bytes(content[: 4 * SHOWN]).decode("utf-8", "replace").split())
    return text[:SHOWN] + ("…" if len(text) > SHOWN else "") if text else "nothing"


def ask_all(
    endpoint: Endpoint, chats: Sequence[tuple[str, Callable[[], list[dict[str, Any]]]]], sampling: Mapping[str, Any],
    *, most_tokens: int | None = None,
) -> Iterator[tuple[str, Reply]]:  # fmt: skip
    """Replies by the key of each conversation, as they come, several under way at a time; a conversation is made when its turn comes.

    Stops asking once replies have used `most_tokens`; what is under way then is still given, what is left is not. Raises InputError for a server
    that cannot be reached or refuses the key, and after `FUTILE` failures without a success.
    """
    waiting, spent, failed, succeeded = iter(chats), 0, 0, False
    client = _client(endpoint)
    pool = ThreadPoolExecutor(endpoint.concurrency)
    under_way: dict[Future[Reply], str] = {}
    try:
        while True:
            if most_tokens is None or spent < most_tokens:
                for name, chat in islice(waiting, endpoint.concurrency - len(under_way)):
                    under_way[pool.submit(ask, endpoint, chat(), sampling, client)] = name
            if not under_way:
                return
            for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                name, reply = under_way.pop(done), done.result()
                spent += reply.tokens
                succeeded = succeeded or reply.status == "ok"
                failed += reply.status != "ok"
                yield name, reply  # whoever asked has it before the run ends
                _refuse_useless(endpoint, reply, futile=not succeeded and failed >= FUTILE)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        client.close()


def _refuse_useless(endpoint: Endpoint, reply: Reply, futile: bool) -> None:
    where = f"{endpoint.model} at {endpoint.shown}"
    if reply.status == "unreachable":
        raise InputError(
            f"{where} cannot be reached ({reply.reason}): start the server or correct the address, and give the same command again; what has been answered is kept"
        )
    if reply.status == "http" and reply.reason.startswith(("HTTP 401", "HTTP 403")):
        raise InputError(f"{where} refuses the key ({reply.reason}): set the environment variable {endpoint.key_variable}")
    if futile:
        raise InputError(
            f"{where}: the first {FUTILE} replies all failed (the last: {reply.reason}): correct the server or the model's name"
        )


def answers_of(
    endpoint: Endpoint, examples: Sequence[Example], sampling: Mapping[str, Any], num_generations: int, seed: int
) -> Iterator[tuple[Example, list[str]]]:
    """Examples with their answers, each as soon as it has all of them; one that has failed is left out. Raises InputError as `ask_all` does."""
    by_key = {f"{number}/{g}": example for number, example in enumerate(examples) for g in range(num_generations)}
    chats = [(key, lambda e=example: messages(e.prompt, e.images)) for key, example in by_key.items()]
    how = {**sampling, "seed": seed} if sampling.get("temperature") else dict(sampling)
    found: dict[str, list[str]] = {}
    for key, reply in ask_all(endpoint, chats, how):
        if reply.status != "ok" or reply.text is None:
            print(f"note: {by_key[key].id} got no answer ({reply.reason}); the same command asks again", file=sys.stderr)
            continue
        so_far = found.setdefault(key.partition("/")[0], [])
        so_far.append(reply.text)
        if len(so_far) == num_generations:
            yield by_key[key], so_far
