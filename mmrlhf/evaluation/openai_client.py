"""A client of OpenAI-compatible servers: one reply to each question, even if the server misbehaves.

No torch.

A failure is a reply without text and with a reason. Failures that may be temporary are retried a
bounded number of times. The API key comes from an environment variable and goes into one header.
If a server repeats it, or the password of its URL, it is replaced before anything is saved.
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
from itertools import islice
from typing import Any, Literal

import httpx2

from mmrlhf.config import ArenaJudgeConfig, EvalConfig
from mmrlhf.records import Example, ImageSource, InputError, Message, place_images
from mmrlhf.text.addresses import is_local_url
from mmrlhf.text.printable import printable

ReplyStatus = Literal["ok", "unreachable", "timeout", "cut", "http", "malformed", "refused", "empty", "other_model"]
RETRY_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses after which a retry may help."""
REFUSED = tuple(f"HTTP {status}:" for status in (400, 413, 415, 422, 451))
"""Beginning of the reason if the same server will refuse the request again."""
NAMES_A_MODEL = "--served_model (a judge's with --judge_model, an arena's as URL#MODEL)"
MAX_REPLY_BYTES = 8 << 20
"""Largest reply that is read, in bytes."""
MAX_INITIAL_FAILURES = 8
"""Failures before a first success that end a run: then the server or the settings are wrong."""
MAX_QUOTED_CHARS = 120
"""Maximum number of characters of an unusable reply that a reason quotes."""
MIN_SECRET_CHARS = 4
"""Shorter keys and passwords are not searched for in replies: they occur in ordinary text."""
_VERSION_SUFFIX = r"(?:-\d{4}(?:-?\d\d){0,2}(?:-preview)?|[:@].*)"
"""Suffixes that servers add to a model's name: -0613, -2024-08-06, -20240620, -1106-preview,
:latest."""


@dataclass(frozen=True)
class Reply:
    """A server's reply to one request.

    `text` is None unless `status` is ok or other_model (the server answered with a model that was
    not asked for). `model` is the server's name of its model. `reason` describes a failure.
    `seconds` covers all attempts.
    """

    text: str | None
    status: ReplyStatus
    reason: str = ""
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    attempts: int = 1
    seconds: float = 0.0

    @property
    def is_refused(self) -> bool:
        """Whether this request is refused, such as by an image filter, maybe without a reason."""
        return self.status in ("refused", "empty") or (self.status == "http" and self.reason.startswith(REFUSED))

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and reply that the server counted."""
        return (self.input_tokens or 0) + (self.output_tokens or 0)


@dataclass(frozen=True)
class Endpoint:
    """A server and its model, with timeout and retries.

    `timeout` is in seconds for a whole reply. The first retry waits `initial_backoff` seconds, each
    further one twice as long as the previous one. `api_key_env` names the environment variable that
    may hold an API key.
    """

    base_url: str
    model: str
    timeout: float = 120.0
    max_retries: int = 4
    initial_backoff: float = 1.0
    concurrency: int = 4
    api_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        url = httpx2.URL(self.base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(f"{self.base_url} is not a server URL: use http://HOST:PORT/v1")
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InputError(f"{self.api_key_env} holds a curly quote or another character that no key has: set it to the key")

    @property
    def display_url(self) -> str:
        """The URL without user name and password."""
        return str(httpx2.URL(self.base_url).copy_with(username=None, password=None))

    @property
    def api_key(self) -> str:
        """The API key, empty without one."""
        return os.environ.get(self.api_key_env, "")

    def redact(self, text: str) -> str:
        """Replace the API key, and the URL's user name and password, in a text.

        Lone surrogates, which JSON can escape but no file can hold, are replaced too.
        """
        url = httpx2.URL(self.base_url)
        credentials = f"{url.username}:{url.password}" if url.password else ""
        encoded = base64.b64encode(credentials.encode()).decode()
        for secret in (self.api_key, credentials, encoded, url.password):
            if len(secret) >= MIN_SECRET_CHARS:
                text = text.replace(secret, "[redacted]")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, so that no proxy may be used."""
        return is_local_url(self.base_url)


def is_url(name: str) -> bool:
    """Return whether a model's name is a server URL."""
    return name.startswith(("http://", "https://"))


def display_name(name: str | None) -> str | None:
    """Return a model's name for files: a URL without user name and password."""
    return Endpoint(name, "").display_url if name is not None and is_url(name) else name


def make_endpoint(base_url: str, model: str | None, config: EvalConfig | ArenaJudgeConfig) -> Endpoint:
    """Return an endpoint with the timeout, retries and concurrency of a configuration."""
    return Endpoint(
        base_url, model or "", config.endpoint_timeout, config.endpoint_retries, concurrency=config.endpoint_concurrency
    )


def resolve_model_name(endpoint: Endpoint) -> Endpoint:
    """Return the endpoint with a model: its own, or else the only one that the server lists.

    Raises InputError if the server cannot be reached, or lists several models or none.
    """
    if endpoint.model:
        return endpoint
    try:
        with _http_client(endpoint) as client, client.stream("GET", f"{endpoint.base_url.rstrip('/')}/models") as response:
            content = _read_body(response, endpoint.timeout)
        models = [endpoint.redact(str(entry["id"])) for entry in json.loads(content)["data"]]
    except httpx2.ConnectError as error:
        reason = endpoint.redact(str(error))
        raise InputError(f"{endpoint.display_url} cannot be reached ({reason}): start the server or correct the URL") from None
    except (httpx2.HTTPError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"HTTP {response.status_code}, and no list" if not isinstance(error, httpx2.HTTPError) else type(error).__name__
        raise InputError(
            f"{endpoint.display_url}/models lists no models ({reason}): correct the URL, or name the model with {NAMES_A_MODEL}"
        ) from None
    if len(models) != 1:
        listed = ", ".join(printable(model[:MAX_QUOTED_CHARS]) for model in models[:8]) or "no model"
        raise InputError(f"{endpoint.display_url} serves {listed}: name one with {NAMES_A_MODEL}")
    return replace(endpoint, model=models[0])


class _ReplyTooLong(ValueError):
    """A response is longer than MAX_REPLY_BYTES."""


def _read_body(response: httpx2.Response, timeout: float) -> bytes:
    """Return a response's body, decompressed.

    Raises ReadTimeout if it takes longer than `timeout` seconds in all, since httpx limits only the
    time between two chunks, and _ReplyTooLong.
    """
    deadline, content = time.monotonic() + timeout, bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if time.monotonic() > deadline:
            raise httpx2.ReadTimeout("")
        if len(content) > MAX_REPLY_BYTES:
            raise _ReplyTooLong
    return bytes(content)


def _http_client(endpoint: Endpoint) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    return httpx2.Client(timeout=endpoint.timeout, headers=headers, trust_env=not endpoint.is_local)


def chat_message(text: str, images: Sequence[ImageSource] = ()) -> dict[str, Any]:
    """Return a user's message, with images before its text, in base64."""
    return _message_dict(Message("user", text, (0,) * len(images)), images)


def chat_messages(prompt: Sequence[Message], images: Sequence[ImageSource]) -> list[dict[str, Any]]:
    """Return a conversation in the API's format, with its images in their places."""
    remaining = iter(images)
    return [_message_dict(turn, list(islice(remaining, len(turn.image_positions)))) for turn in place_images(prompt, len(images))]


def _message_dict(message: Message, images: Sequence[ImageSource]) -> dict[str, Any]:
    if not images:
        return {"role": message.role, "content": message.content}
    urls = map(_data_url, images)
    parts = [
        {"type": "image_url", "image_url": {"url": next(urls)}} if part["type"] == "image" else part for part in message.parts()
    ]
    return {"role": message.role, "content": parts}


def _data_url(image: ImageSource) -> str:
    data = image.read()
    return f"data:{_mime_type(data)};base64,{base64.b64encode(data).decode()}"


def _mime_type(data: bytes) -> str:
    if data[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    if data[8:12] == b"WEBP":
        return "image/webp"
    return "image/gif" if data[:3] == b"GIF" else "image/png"


def request_reply(
    endpoint: Endpoint, chat: Sequence[Mapping[str, Any]], sampling_params: Mapping[str, Any], client: httpx2.Client
) -> Reply:
    """Return the reply to one conversation, after at most `max_retries` retries.

    sampling_params: further fields of the request, such as temperature and max_tokens.
    """
    body = {"model": endpoint.model, "messages": list(chat), **sampling_params}
    start_time = time.monotonic()
    for attempt in range(endpoint.max_retries + 1):
        reply, should_retry, retry_after = _try_request(endpoint, body, client)
        if not should_retry or attempt == endpoint.max_retries:
            break
        time.sleep(min(60.0, max(retry_after, endpoint.initial_backoff * 2**attempt)))
    return Reply(**{**vars(reply), "attempts": attempt + 1, "seconds": round(time.monotonic() - start_time, 3)})


def _try_request(endpoint: Endpoint, body: Mapping[str, Any], client: httpx2.Client) -> tuple[Reply, bool, float]:
    """Return a reply, whether a retry may help, and the seconds to wait before it."""
    try:
        with client.stream("POST", f"{endpoint.base_url.rstrip('/')}/chat/completions", json=body) as response:
            content = _read_body(response, endpoint.timeout)
    except _ReplyTooLong:
        return Reply(None, "malformed", f"the reply is longer than {MAX_REPLY_BYTES >> 20} MiB"), False, 0.0
    except httpx2.TimeoutException as error:
        if isinstance(error, httpx2.ConnectTimeout):
            return Reply(None, "unreachable", "it did not accept a connection in time"), True, 0.0
        return Reply(None, "timeout", f"no whole reply in {endpoint.timeout:g} s"), True, 0.0
    except httpx2.ConnectError as error:
        return Reply(None, "unreachable", endpoint.redact(str(error)) or "no connection"), True, 0.0
    except httpx2.HTTPError as error:
        return Reply(None, "cut", f"the connection broke ({type(error).__name__})"), True, 0.0
    if response.status_code != 200:
        reason = f"HTTP {response.status_code}: {_quote(content, endpoint)}"
        retry_after = _retry_after_seconds(response.headers.get("retry-after"))
        return Reply(None, "http", reason), response.status_code in RETRY_STATUS, retry_after
    reply = _parse_completion(content, endpoint)
    return reply, reply.status in ("malformed", "empty"), 0.0


def _retry_after_seconds(header: str | None) -> float:
    try:
        return float(header or 0)
    except ValueError:  # the header may also be a date
        return 0.0


def _parse_completion(content: bytes, endpoint: Endpoint) -> Reply:
    """Return the reply in a response of status 200."""
    try:
        body = json.loads(content)
        choice = (body["choices"] or [{"message": {}}])[0]
        message, usage, model = choice["message"], body.get("usage") or {}, body.get("model")
        is_filtered = choice.get("finish_reason") == "content_filter"
        text, refusal = message.get("content"), message.get("refusal") or (is_filtered and "content_filter")
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return Reply(None, "malformed", f"the reply is not a chat completion: {_quote(content, endpoint)}")
    if not isinstance(text, str) or not text.strip():
        if refusal:
            return Reply(None, "refused", f"it refuses: {_quote(str(refusal).encode('utf-8', 'replace'), endpoint)}")
        return Reply(None, "empty", "the reply holds no text")
    text, model = endpoint.redact(text), endpoint.redact(model) if isinstance(model, str) else None
    input_tokens, output_tokens = (count if isinstance(count, int) else None for count in counts)
    if model is not None and not _is_same_model(model, endpoint.model):
        reason = f"asked for {endpoint.model}, {printable(model[:MAX_QUOTED_CHARS])} answered"
        return Reply(text, "other_model", reason, model, input_tokens, output_tokens)
    return Reply(text, "ok", "", model, input_tokens, output_tokens)


def _is_same_model(returned: str, requested: str) -> bool:
    """Return whether a server names the requested model, possibly with a date or tag."""
    return returned == requested or re.fullmatch(re.escape(requested) + _VERSION_SUFFIX, returned) is not None


def _quote(content: bytes, endpoint: Endpoint) -> str:
    """Return the beginning of a reply for a message, without secrets and control codes."""
    # Redact before cutting: the cut could leave the first half of a key.
    text = printable(" ".join(endpoint.redact(content.decode("utf-8", "replace")).split()))
    return (text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}…") or "nothing"


def request_replies(
    endpoint: Endpoint,
    chats: Sequence[tuple[str, Callable[[], list[dict[str, Any]]]]],
    sampling_params: Mapping[str, Any],
    *,
    max_total_tokens: int | None = None,
    seed_of: Callable[[str], int] | None = None,
) -> Iterator[tuple[str, Reply]]:
    """Yield replies by the key of their conversation, in the order in which they arrive.

    `seed_of` gives the sampling seed for a key; without it, requests carry no seed.

    Several requests are in flight at a time, and a conversation is built only when it is sent. No
    more requests are sent once replies have used `max_total_tokens`; pending ones are still
    yielded. Raises InputError if the server cannot be reached or refuses the key, and after
    `MAX_INITIAL_FAILURES` failures without a success.
    """
    pending_chats, tokens_used, num_failed, has_succeeded = iter(chats), 0, 0, False
    client = _http_client(endpoint)
    pool = ThreadPoolExecutor(endpoint.concurrency)
    in_flight: dict[Future[Reply], str] = {}
    try:
        while True:
            if max_total_tokens is None or tokens_used < max_total_tokens:
                for key, chat in islice(pending_chats, endpoint.concurrency - len(in_flight)):
                    params = {**sampling_params, "seed": seed_of(key)} if seed_of else sampling_params
                    in_flight[pool.submit(request_reply, endpoint, chat(), params, client)] = key
            if not in_flight:
                return
            for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                key, reply = in_flight.pop(future), future.result()
                tokens_used += reply.total_tokens
                has_succeeded = has_succeeded or reply.status == "ok"
                num_failed += reply.status != "ok"
                yield key, reply  # before an error ends the run, so that it can be saved
                _raise_if_unusable(endpoint, reply, too_many_failures=not has_succeeded and num_failed >= MAX_INITIAL_FAILURES)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        client.close()


def _raise_if_unusable(endpoint: Endpoint, reply: Reply, too_many_failures: bool) -> None:
    server = f"{endpoint.model} at {endpoint.display_url}"
    if reply.status == "unreachable":
        raise InputError(
            f"{server} cannot be reached ({reply.reason}): start the server or correct the URL, "
            "and run the same command again; what has been answered is kept"
        )
    if reply.status == "http" and reply.reason.startswith(("HTTP 401", "HTTP 403")):
        raise InputError(f"{server} refuses the key ({reply.reason}): set the environment variable {endpoint.api_key_env}")
    if too_many_failures:
        raise InputError(
            f"{server}: the first {MAX_INITIAL_FAILURES} replies all failed (the last: {reply.reason}): "
            "correct the server or the model's name"
        )


def endpoint_answers(
    endpoint: Endpoint, examples: Sequence[Example], sampling_params: Mapping[str, Any], num_generations: int, seed: int
) -> Iterator[tuple[Example, list[str]]]:
    """Yield each example with its answers, in the order of their seeds, as soon as it has all of
    them, leaving out examples with a failed answer.

    Raises InputError as `request_replies` does.
    """
    examples_by_key = {
        f"{number}/{sample}": example for number, example in enumerate(examples) for sample in range(num_generations)
    }
    chats = [(key, lambda e=example: chat_messages(e.prompt, e.images)) for key, example in examples_by_key.items()]

    def seed_of(key: str) -> int:
        """Return a seed per answer of an example: equal seeds would give equal answers."""
        return seed + int(key.partition("/")[2])

    is_sampled = bool(sampling_params.get("temperature"))
    answers_by_example: dict[str, dict[int, str]] = {}
    for key, reply in request_replies(endpoint, chats, sampling_params, seed_of=seed_of if is_sampled else None):
        if reply.status != "ok" or reply.text is None:
            row_id = printable(examples_by_key[key].id)
            print(f"note: {row_id} got no answer ({reply.reason}); the same command asks again", file=sys.stderr)
            continue
        number, _, sample = key.partition("/")
        answers = answers_by_example.setdefault(number, {})
        answers[int(sample)] = reply.text
        if len(answers) == num_generations:
            yield examples_by_key[key], [answers[index] for index in range(num_generations)]
