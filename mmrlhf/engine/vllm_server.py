"""Communicate with one vLLM server over HTTP: retries, refusals, and the adapters that it loads."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import getproxies

import httpx2

from mmrlhf.engine.vllm_requests import EngineError
from mmrlhf.text.addresses import is_local_url
from mmrlhf.text.printable import printable

API_KEY_ENV = "VLLM_API_KEY"
"""Environment variable that may hold the servers' API key."""
UNAVAILABLE_STATUS = {408, 429, 502, 503, 504}
"""HTTP statuses of a server that may answer later."""
MAX_SERVER_ERRORS = 3
"""Number of answers with status 500 after which a request is not repeated: a stopping server sends
one to each pending request, a faulty server sends them for ever."""
MALFORMED_STATUS = {400, 422}
"""HTTP statuses of a request that the server does not understand."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds before the first retry, and at most; each pause is twice the previous one."""
CONNECT_TIMEOUT, PROBE_TIMEOUT, LOAD_TIMEOUT, ANSWER_TIMEOUT = 10.0, 30.0, 300.0, 3600.0
"""Seconds to wait for a connection, for immediate answers, for loading an adapter, and for the
answers to a prompt, which may queue for long."""
PROBE_INTERVAL = 15.0
"""Seconds between two health checks of a server that is working on answers."""
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value)
      for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)) if hasattr(socket, name)),
]  # fmt: skip
"""Ends a connection to a machine that died silently within 90 seconds."""
REQUESTS_PER_SERVER = 64
"""Requests in flight at once; a server batches them."""
CLOSE_TIMEOUT = 5.0
"""Seconds to wait when a run ends and unloads its adapter."""
MAX_QUOTED_CHARS = 200
START_AGAIN = "start it as docs/engines.md shows"

T = TypeVar("T")


class RefusedError(EngineError):
    """A server's answer to a request that it does not accept, with its `reason` in full."""

    def __init__(self, status: int, url: str, reason: str) -> None:
        self.status, self.url, self.reason, self.quoted_reason = status, url, reason, _quoted(reason)
        super().__init__(f"rollout_engine: {url} refuses a request (HTTP {status}: {self.quoted_reason}): {START_AGAIN}")


class Server:
    """One vLLM server, or one replica of several. Methods may be called from several threads."""

    def __init__(self, url: str, patience: float) -> None:
        """Connect to the server at `url`; wait up to `patience` seconds while it is down.

        Raises EngineError for an invalid address, and for a key that is not valid in a header.
        """
        self.url, self.patience = url, patience
        key = os.environ.get(API_KEY_ENV, "").strip()
        if not (key.isascii() and key.isprintable()):  # the client would quote it in its error
            raise EngineError(f"{API_KEY_ENV} holds characters that no key has: set it again")
        trust_env = not is_local_url(url)  # no proxy leads to this machine
        # As many connections as the caller has requests, and one for health checks.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=REQUESTS_PER_SERVER)
        has_proxy = trust_env and bool(getproxies().keys() - {"no"})  # a transport of one's own goes round it
        try:
            self._client = httpx2.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=limits,
                trust_env=trust_env,
                transport=None if has_proxy else httpx2.HTTPTransport(limits=limits, socket_options=KEEPALIVE),
            )
        except httpx2.InvalidURL:
            raise EngineError(f"rollout_engine {url} is not an address: give http://HOST:PORT") from None

    def check(self, max_length: int) -> None:
        """Raise EngineError if the server cannot sample as needed, up to `max_length` tokens."""
        limit = self._base_model().get("max_model_len") or max_length
        if limit < max_length:
            raise EngineError(
                f"rollout_engine: {self.url} takes {limit} tokens, and max_length is {max_length}: start it with --max-model-len "
                f"{max_length}, or lower max_length"
            )
        # Neither request is valid, so a server that has the path reports an invalid request.
        for path, advice in (
            ("/inference/v1/generate", "--enable-scale-out"),
            ("/v1/unload_lora_adapter", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"),
        ):
            try:
                self.request("POST", path, {})
            except RefusedError as refusal:
                if refusal.reason == "Not Found":
                    raise EngineError(
                        f"rollout_engine: {self.url} has no {path}: start it with {advice} (docs/engines.md)"
                    ) from None

    def base_model(self) -> str:
        """Return the name of the model that the server serves without an adapter."""
        return str(self._base_model()["id"])

    def _base_model(self) -> dict[str, Any]:
        try:
            models = self.request("GET", "/v1/models")["data"]
            return next(model for model in models if not model.get("parent"))
        except (KeyError, TypeError, AttributeError, StopIteration):
            raise EngineError(
                f"rollout_engine: {self.url} is not a vLLM server, because it lists no models: correct the address"
            ) from None

    def load(self, name: str, adapter: Path) -> None:
        """Load an adapter by its path, under a name that is new to the server."""
        try:
            self.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter)}, LOAD_TIMEOUT)
        except RefusedError as refusal:
            if "already been loaded" in refusal.reason:
                return  # by a request whose answer was lost
            if refusal.status == 404 and str(adapter) in refusal.reason:
                raise EngineError(
                    f"rollout_engine: {self.url} finds no adapter at {adapter}: give an --output_dir that the server sees "
                    "under the same path"
                ) from None
            raise EngineError(
                f"rollout_engine: {self.url} loads no adapter (HTTP {refusal.status}: {refusal.quoted_reason}): start it with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and a large enough --max-lora-rank (docs/engines.md)"
            ) from None

    def unload(self, name: str, timeout: float = LOAD_TIMEOUT) -> None:
        """Unload an adapter. If the server does not know it, the server was restarted."""
        try:
            self.request("POST", "/v1/unload_lora_adapter", {"lora_name": name}, timeout)
        except RefusedError as refusal:
            if refusal.status != 404:
                raise

    def wait_for(self, reply: Future[T]) -> T:
        """Return the result of a request that runs in another thread.

        Raises EngineError if health checks fail meanwhile for `patience` seconds: the server hangs,
        and the request itself would wait for ANSWER_TIMEOUT.
        """
        silent_since = None
        while not futures.wait([reply], timeout=PROBE_INTERVAL).done:
            start = time.monotonic()
            try:
                self._client.get("/health", timeout=_timeout(PROBE_TIMEOUT))  # any status is a sign of life
                silent_since = None
            except httpx2.HTTPError as error:
                silent_since = start if silent_since is None else silent_since
                if time.monotonic() - silent_since >= self.patience:
                    raise self._gone(_problem(error)) from None
        return reply.result()

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """Return the JSON (or the text) of a server's answer, which may take `timeout` seconds.

        Raises RefusedError for a status that a retry would not change, and EngineError if the
        server cannot be reached, or is stopping, for `patience` seconds. The timeout starts again
        after an answer that took longer than that, because the server was working.
        """
        deadline, pause, num_errors = None, FIRST_PAUSE, 0
        while True:
            start = time.monotonic()
            try:
                response = self._client.request(method, path, json=body, timeout=_timeout(timeout or PROBE_TIMEOUT))
                if response.status_code == 200 and not _is_aborted(content := _content(response)):
                    return content
                problem = "it aborts requests" if response.status_code == 200 else _reason(response)
                num_errors += response.status_code == 500
                is_away = response.status_code in {200, *UNAVAILABLE_STATUS} or _is_dying(problem)
                may_recover = response.status_code == 500 and self.patience and num_errors < MAX_SERVER_ERRORS
                if not is_away and not may_recover:
                    raise RefusedError(response.status_code, self.url, problem)
                # A proxy sends 504 for a server that hangs.
                if response.status_code != 504 and time.monotonic() - start > self.patience:
                    deadline, pause = None, FIRST_PAUSE
            except httpx2.HTTPError as error:
                problem = _problem(error)
            now = time.monotonic()
            deadline = now + self.patience if deadline is None else deadline  # from the first failure on
            if now + pause > deadline:
                raise self._gone(_quoted(problem))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _gone(self, problem: str) -> EngineError:
        if not self.patience:
            return EngineError(
                f"rollout_engine: {self.url} cannot be reached ({problem}): start the server, or correct the address"
            )
        return EngineError(f"rollout_engine: {self.url} did not answer for {self.patience:g} seconds ({problem}): start it again")

    def close(self) -> None:
        self._client.close()


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT))


def _problem(error: httpx2.HTTPError) -> str:
    return str(error) or type(error).__name__


def _content(response: httpx2.Response) -> Any:
    try:
        return json.loads(response.content)
    except ValueError:
        return response.text


def _reason(response: httpx2.Response) -> str:
    """Return a server's full message about a failure."""
    content = _content(response)
    error = content.get("error", content) if isinstance(content, dict) else content
    text = error.get("message") or error.get("detail") or str(error) if isinstance(error, dict) else str(error)
    return printable(" ".join(str(text).split())) or f"HTTP {response.status_code}"


def _quoted(reason: str) -> str:
    return reason if len(reason) <= MAX_QUOTED_CHARS else f"{reason[:MAX_QUOTED_CHARS]}…"


def _is_aborted(content: Any) -> bool:
    """Return whether an answer was aborted, for example by a stopping server."""
    choices = content.get("choices") if isinstance(content, dict) else None
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") == "abort" for choice in choices
    )


def _is_dying(reason: str) -> bool:
    """Return whether a server says that its engine has died, after which it stops."""
    return "EngineDead" in reason or "EngineCore encountered" in reason
