"""Sample from vLLM servers over HTTP, on this machine or others.

Prompts go to the servers in turn, as token ids, to `/inference/v1/generate`; answers come back as
token ids with log-probs. A version of the policy is a folder with its adapter, which every server
loads by path under a new name. A server that is gone is asked again for a while, and one that was
restarted gets the adapter again. docs/engines.md has the command that starts a server.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx2

from mmrlhf.engine import vllm_features, vllm_requests
from mmrlhf.engine.completions import SampledCompletions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.vllm_requests import EngineAnswer, EngineError
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import ImageSource
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
MAX_QUOTED_CHARS = 200
START_AGAIN = "start it as docs/engines.md shows"


class Refused(EngineError):
    """A server's answer to a request that it does not accept."""

    def __init__(self, status: int, url: str, reason: str) -> None:
        self.status, self.url, self.reason = status, url, reason
        super().__init__(f"rollout_engine: {url} refuses a request (HTTP {status}: {reason}): {START_AGAIN}")


class Server:
    """One vLLM server, or one replica of several. Methods may be called from several threads."""

    def __init__(self, url: str, patience: float) -> None:
        """Speak with the server at `url`; wait up to `patience` seconds for one that is gone.

        Raises EngineError for what is no address, and for a key that no header may hold.
        """
        self.url, self.patience = url, patience
        key = os.environ.get(API_KEY_ENV, "").strip()
        if not (key.isascii() and key.isprintable()):  # the client would quote it in its error
            raise EngineError(f"{API_KEY_ENV} holds characters that no key has: set it again")
        try:
            self._client = httpx2.Client(
                base_url=url,
                timeout=httpx2.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=httpx2.Limits(max_connections=REQUESTS_PER_SERVER),
                trust_env=not _is_local(url),
            )
        except httpx2.InvalidURL:
            raise EngineError(f"rollout_engine {url} is no address: give http://HOST:PORT") from None

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
            except Refused as refusal:
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
            raise EngineError(f"rollout_engine: {self.url} is no vLLM server, it lists no model: correct the address") from None

    def load(self, name: str, adapter: Path) -> None:
        """Load an adapter by its path, under a name that the server must not know yet."""
        try:
            self.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter)})
        except Refused as refusal:
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
        except Refused as refusal:
            if refusal.status != 404:
                raise

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON (or the text) of a server's answer.

        Raises Refused for a status that repeating does not change, and EngineError if the server
        cannot be reached, or is about to stop, for `patience` seconds.
        """
        deadline, pause = None, FIRST_PAUSE
        while True:
            try:
                response = self._client.request(method, path, json=body)
                if response.status_code == 200:
                    return _content(response)
                problem = _reason(response)
                if response.status_code not in UNAVAILABLE_STATUS and not _is_dying(problem):
                    raise Refused(response.status_code, self.url, problem)
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


@dataclass
class VLLMServers:
    """A `RolloutEngine` of vLLM servers.

    `name` begins the names of this run's adapters and is new in every process of a run: a server
    that knows a name keeps its weights. Process `rank` of `num_processes` samples its share of the
    prompts, and the first one loads the adapters for all: the others call `set_policy` after it.
    """

    vlm: VLM
    servers: list[Server]
    name: str
    rank: int = 0
    num_processes: int = 1
    policy_version: int = -1
    _model: str = ""
    """The name to ask for: of the adapter, or of the base."""
    _adapter: Path | None = None
    _sends_features: bool | None = field(default=None, repr=False)
    """Whether pictures go as features; None before the first one."""

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(REQUESTS_PER_SERVER * len(self.servers))

    def wake(self) -> None:
        """Do nothing: the servers keep their memory."""

    def free(self) -> None:
        """Do nothing."""

    def set_policy(self, version: int, adapter: Path | None = None) -> None:
        """Make the servers load a version, and unload the one before. Raises EngineError."""
        if version == self.policy_version:
            return
        new_adapter = adapter.resolve() if adapter is not None else None
        new_model = f"{self.name}-v{version}" if adapter is not None else self.servers[0].base_model()
        if self.rank == 0:
            for server in self.servers:
                if new_adapter is not None:
                    server.load(new_model, new_adapter)
                if self._adapter is not None:
                    server.unload(self._model)
        self._model, self._adapter, self.policy_version = new_model, new_adapter, version

    def sample(self, prompts: Sequence[Prompt], n: int, params: SamplingParams) -> SampledCompletions:
        """Sample `n` answers per prompt from the version of `set_policy`. Raises EngineError."""
        return self.start(prompts, n, params)()

    def start(self, prompts: Sequence[Prompt], n: int, params: SamplingParams) -> Callable[[], SampledCompletions]:
        """Begin to sample, and return a function that waits for the answers; it raises EngineError.

        It must be called before the next `set_policy`. Until then the requests run in threads of
        their own, which use neither model nor tokenizer. Raises EngineError if pictures go to the
        servers for the first time, and cannot.
        """
        seeds = vllm_requests.prompt_seeds(prompts, params.seed)

        def answers_to(index: int, token_ids: list[int]) -> list[EngineAnswer]:
            server = self.servers[(index * self.num_processes + self.rank) % len(self.servers)]
            return self._answers(server, prompts[index], token_ids, n, params, seeds[index])

        indices = list(range(len(prompts)))
        answers: dict[int, list[EngineAnswer]] = {}
        first_picture = next((i for i in indices if prompts[i].images), None)
        if self._sends_features is None and first_picture is not None:
            self._sends_features = vllm_features.takes_features(self.vlm)
            answers[first_picture] = self._try_features(
                lambda: answers_to(first_picture, self._token_ids(prompts[first_picture]))
            )
            indices.remove(first_picture)
        requests = {index: self._pool.submit(answers_to, index, self._token_ids(prompts[index])) for index in indices}

        def wait() -> SampledCompletions:
            try:
                received = answers | {index: request.result() for index, request in requests.items()}
            finally:
                for request in requests.values():  # after the first failure
                    request.cancel()
            return vllm_requests.build_completions(self.vlm, prompts, [received[i] for i in range(len(prompts))], params)

        return wait

    def _token_ids(self, prompt: Prompt) -> list[int]:
        """Return a prompt's token ids as they are sent: a server expands placeholders of pixels."""
        is_expanded = self._sends_features or not prompt.images
        return prompt.token_ids.tolist() if is_expanded else self.vlm.tokenize_expanded(prompt.text)

    def _try_features(self, ask: Callable[[], list[EngineAnswer]]) -> list[EngineAnswer]:
        """Return the answers to the first prompt with a picture; decide how pictures are sent."""
        reason = f"vLLM takes no features of {self.vlm.model.config.model_type}"
        if self._sends_features:
            try:
                answers = ask()
                self._note("pictures go to the servers as features, and their towers do not run")
                return answers
            except Refused as refusal:
                if refusal.status not in MALFORMED_STATUS:
                    raise
                reason = f"{refusal.url} takes no features: {refusal.reason}"
        self._sends_features = False
        try:
            answers = ask()
        except Refused as refusal:
            raise EngineError(f"{refusal}; before, {reason}") from None
        self._note(f"pictures go to the servers as pixels, which their towers encode again ({reason})")
        return answers

    def _note(self, text: str) -> None:
        if self.rank == 0:
            print(f"note: {text}")

    def _answers(
        self, server: Server, prompt: Prompt, token_ids: list[int], n: int, params: SamplingParams, seed: int
    ) -> list[EngineAnswer]:
        body = {
            "model": self._model,
            "sampling_params": vllm_requests.sampling_params(self.vlm, params, n, seed),
            "return_token_ids": True,
            "token_ids": token_ids,
            **self._picture_fields(prompt),
        }
        try:
            reply = server.request("POST", "/inference/v1/generate", body)
        except Refused as refusal:
            if refusal.status != 404 or self._adapter is None or self._model not in refusal.reason:
                raise
            server.load(self._model, self._adapter)  # it was restarted
            reply = server.request("POST", "/inference/v1/generate", body)
        return self._read(server, prompt, n, params, reply)

    def _picture_fields(self, prompt: Prompt) -> dict[str, Any]:
        """Return a prompt's pictures, as features or as pixels."""
        if not prompt.images:
            return {}
        if self._sends_features:
            return {"features": vllm_features.features_field(self.vlm, vllm_features.engine_pictures(self.vlm, prompt))}
        return {"content_parts": [{"type": "image_url", "url": _data_url(image), "uuid": image.key} for image in prompt.images]}

    def _read(self, server: Server, prompt: Prompt, n: int, params: SamplingParams, reply: Any) -> list[EngineAnswer]:
        """Return the answers in a reply. Raises EngineError for one that was not asked for."""
        try:
            model, prompt_ids, choices = reply["model"], reply["prompt_token_ids"], reply["choices"]
            answers = [_answer(choice) for choice in sorted(choices, key=lambda choice: choice["index"])]
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(f"rollout_engine: {server.url} sends no answers ({error!r}): {START_AGAIN}") from None
        if model != self._model:
            raise EngineError(
                f"rollout_engine: {server.url} was asked for {self._model} and answered as {printable(str(model))}: "
                "it must serve each version under its own name"
            )
        if prompt_ids != prompt.token_ids.tolist():
            raise EngineError(
                f"rollout_engine: {server.url} reads row {prompt.id} as {len(prompt_ids or ())} tokens, which are not the "
                f"{len(prompt.token_ids)} of the trainer: serve the same checkpoint, with the same pixel limits"
            )
        if len(answers) != n or any(not 0 < len(answer.token_ids) <= params.max_tokens for answer in answers):
            raise EngineError(f"rollout_engine: {server.url} sends other than {n} answers of up to {params.max_tokens} tokens")
        return answers

    def close(self) -> None:
        """Unload the adapter, if its server is there, and end the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)  # of a run that ends while its next answers are sampled
        for server in self.servers:
            server.patience = 0
            if self.rank == 0 and self._adapter is not None:
                with contextlib.suppress(EngineError):
                    server.unload(self._model)
            server.close()


def _answer(choice: Mapping[str, Any]) -> EngineAnswer:
    token_ids, content = list(choice["token_ids"]), choice["logprobs"]["content"]
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"an answer ended by {choice['finish_reason']}")
    if [entry["token_id"] for entry in content] != token_ids:
        raise ValueError("log-probs of other tokens")
    return EngineAnswer(token_ids, [float(entry["logprob"]) for entry in content], choice["finish_reason"] == "stop")


def _data_url(image: ImageSource) -> str:
    return f"data:image;base64,{base64.b64encode(image.read()).decode()}"


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


def _is_local(url: str) -> bool:
    """Return whether a server is on this machine, so that no proxy may be used."""
    host = httpx2.URL(url).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
