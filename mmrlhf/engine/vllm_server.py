"""Speak with one vLLM server over HTTP: retries, refusals, and the adapters that it loads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from mmrlhf.engine.vllm_requests import EngineError
from mmrlhf.text.addresses import is_local_url
from mmrlhf.text.printable import printable

API_KEY_ENV = "VLLM_API_KEY"
"""Environment variable that may hold the servers' API key."""
UNAVAILABLE_STATUS = {408, 429, 502, 503, 504}
"""HTTP statuses of a server that may answer later."""
MALFORMED_STATUS = {400, 422}
"""HTTP statuses of a request that the server does not understand."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
"""Seconds before the first retry, and at most; each pause is twice the one before."""
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 10.0, 3600.0
"""Seconds to wait for a connection, and for the answers to a prompt, which may queue for long."""
REQUESTS_PER_SERVER = 64
"""Requests in flight at a time; a server batches them."""
CLOSE_TIMEOUT = 5.0
"""Seconds to wait when a run ends and unloads its adapter."""
MAX_QUOTED_CHARS = 200
START_AGAIN = "start it as docs/engines.md shows"


class RefusedError(EngineError):
    """A server's answer to a request that it does not accept."""

    def __init__(self, status: int, url: str, reason: str) -> None:
        self.status, self.url, self.reason = status, url, reason
        super().__init__(f"rollout_engine: {url} refuses a request (HTTP {status}: {reason}): {START_AGAIN}")


class Server:
    """One vLLM server, or one replica of several. Methods may be called from several threads."""

    def __init__(self, url: str, patience: float, timeout: float = ANSWER_TIMEOUT) -> None:
        """Speak with the server at `url`; wait up to `patience` seconds for one that is gone, and
        `timeout` for the answer to a request.

        Raises EngineError for what is not an address, and for a key that no header may hold.
        """
        self.url, self.patience = url, patience
        key = os.environ.get(API_KEY_ENV, "").strip()
        if not (key.isascii() and key.isprintable()):  # the client would quote it in its error
            raise EngineError(f"{API_KEY_ENV} holds characters that no key has: set it again")
        try:
            self._client = httpx2.Client(
                base_url=url,
                timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=httpx2.Limits(max_connections=REQUESTS_PER_SERVER),
                trust_env=not is_local_url(url),  # no proxy leads to this machine
            )
        except httpx2.InvalidURL:
            raise EngineError(f"rollout_engine {url} is not an address: give http://HOST:PORT") from None

    def check(self, max_length: int) -> None:
        """Raise EngineError if the server lacks what sampling needs, up to `max_length` tokens."""
        limit = self._base_model().get("max_model_len") or max_length
        if limit < max_length:
            raise EngineError(
                f"rollout_engine: {self.url} takes {limit} tokens, and max_length is {max_length}: start it with --max-model-len "
                f"{max_length}, or lower max_length"
            )
        # Neither request is valid: a server that has the path says so.
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
        """Load an adapter by its path, under a name that the server must not know yet."""
        try:
            self.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter)})
        except RefusedError as refusal:
            if "already been loaded" in refusal.reason:
                return  # by a request whose answer was lost
            if refusal.status == 404 and str(adapter) in refusal.reason:
                raise EngineError(
                    f"rollout_engine: {self.url} finds no adapter at {adapter}: give an --output_dir that the server sees "
                    "under the same path"
                ) from None
            raise EngineError(
                f"rollout_engine: {self.url} loads no adapter (HTTP {refusal.status}: {refusal.reason}): start it with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and a large enough --max-lora-rank (docs/engines.md)"
            ) from None

    def unload(self, name: str) -> None:
        """Unload an adapter. A server that does not know it has been restarted."""
        try:
            self.request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except RefusedError as refusal:
            if refusal.status != 404:
                raise

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON (or the text) of a server's answer.

        Raises RefusedError for a status that repeating does not change, and EngineError if the
        server cannot be reached, or is about to stop, for `patience` seconds.
        """
        deadline, pause = None, FIRST_PAUSE
        while True:
            try:
                response = self._client.request(method, path, json=body)
                if response.status_code == 200:
                    return _content(response)
                problem = _reason(response)
                if response.status_code not in UNAVAILABLE_STATUS and not _is_dying(problem):
                    raise RefusedError(response.status_code, self.url, problem)
            except httpx2.HTTPError as error:
                problem = str(error) or type(error).__name__
            now = time.monotonic()
            deadline = now + self.patience if deadline is None else deadline  # from the first failure on
            if now + pause > deadline:
                if not self.patience:
                    raise EngineError(
                        f"rollout_engine: {self.url} cannot be reached ({problem}): start the server, or correct the address"
                    )
                raise EngineError(
                    f"rollout_engine: {self.url} did not answer for {self.patience:g} seconds ({problem}): start it again"
                )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def close(self) -> None:
        self._client.close()


def _content(response: httpx2.Response) -> Any:
    try:
        return json.loads(response.content)
    except ValueError:
        return response.text


def _reason(response: httpx2.Response) -> str:
    """Return what a server says about a failure."""
    content = _content(response)
    error = content.get("error", content) if isinstance(content, dict) else content
    text = error.get("message") or error.get("detail") or str(error) if isinstance(error, dict) else str(error)
    text = printable(" ".join(str(text).split())) or f"HTTP {response.status_code}"
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}…"


def _is_dying(reason: str) -> bool:
    """Return whether a server says that its engine has died, after which it stops."""
    return "EngineDead" in reason or "EngineCore encountered" in reason
