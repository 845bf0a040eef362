"""Sample from vLLM servers over HTTP, on this machine or others.

Prompts go to the servers in turn, as token ids, to `/inference/v1/generate`; answers come back as
token ids with log-probs. A version of the policy is a folder with its adapter, which every server
loads by path under a new name. If a server is down, requests are repeated for a while; a restarted
server gets the adapter again. docs/engines.md has the command that starts a server.
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmrlhf.background import run_in_background
from mmrlhf.engine import vllm_features, vllm_requests
from mmrlhf.engine.completions import SampledCompletions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.vllm_requests import EngineAnswer, EngineError
from mmrlhf.engine.vllm_server import (
    ANSWER_TIMEOUT,
    CLOSE_TIMEOUT,
    MALFORMED_STATUS,
    REQUESTS_PER_SERVER,
    START_AGAIN,
    RefusedError,
    Server,
)
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import ImageSource
from mmrlhf.text.printable import printable


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt in the form of a request, with no tensors left to pack.

    `sent_ids` are the token ids to send, in which a server expands placeholders of pixels;
    `token_ids` is the result that it must reach. `features` is the request's field, None for
    pixels and for a prompt without images.
    """

    prompt: Prompt
    seed: int
    token_ids: list[int]
    sent_ids: list[int]
    features: dict[str, Any] | None


@dataclass
class VLLMServers:
    """A `RolloutEngine` of vLLM servers.

    `name` begins the names of this run's adapters and is new in every process of a run: a server
    keeps the weights first loaded under a name. Process `rank` of `num_processes` samples its share
    of the prompts, and the first one loads the adapters for all: the others call `set_policy` after
    it.
    """

    vlm: VLM
    servers: list[Server]
    name: str
    rank: int = 0
    num_processes: int = 1
    policy_version: int = -1
    _model: str = ""
    """The model name in requests: of the adapter, or of the base."""
    _adapter: Path | None = None
    _pixel_reasons: dict[str, str] = field(default_factory=dict, repr=False)
    """Why pictures are sent to a server as pixels, empty if they are sent as features; by URL,
    after the first picture."""

    def __post_init__(self) -> None:
        self._slots = threading.Semaphore(REQUESTS_PER_SERVER * len(self.servers))

    def wake(self) -> None:
        """Do nothing: the servers keep their memory."""

    def free(self) -> None:
        """Do nothing."""

    def set_policy(self, version: int, adapter: Path | None = None) -> None:
        """Make the servers load a version, and unload the previous one. Raises EngineError."""
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
        return self.start_sampling(prompts, n, params)()

    def start_sampling(self, prompts: Sequence[Prompt], n: int, params: SamplingParams) -> Callable[[], SampledCompletions]:
        """Begin to sample, and return a function that waits for the answers; it raises EngineError.

        It must be called before the next `set_policy`. Until then the requests run in separate
        threads, which use neither model nor tokenizer nor tensors. Raises EngineError if the
        servers do not accept their first pictures.
        """
        seeds = vllm_requests.prompt_seeds(prompts, params.seed)
        sampling_params = vllm_requests.sampling_params(self.vlm, params, n)

        def server_of(index: int) -> Server:
            return self.servers[(index * self.num_processes + self.rank) % len(self.servers)]

        def ask(index: int) -> Future[list[EngineAnswer]]:
            server = server_of(index)
            prepared = self._prepare(prompts[index], seeds[index], not self._pixel_reasons.get(server.url))
            return run_in_background(partial(self._answers, server, prepared, sampling_params), self._slots)

        firsts = {server_of(i).url: i for i in reversed(range(len(prompts))) if prompts[i].images}
        requests: dict[int, Future[list[EngineAnswer]]] = {}
        known_reasons = set(self._pixel_reasons.values())  # before the threads that add to them
        for index in [i for url, i in firsts.items() if url not in self._pixel_reasons]:
            features = self._prepare(prompts[index], seeds[index], True) if vllm_features.takes_features(self.vlm) else None
            pixels = self._prepare(prompts[index], seeds[index], False)
            work = partial(self._ask_first, server_of(index), features, pixels, sampling_params)
            requests[index] = run_in_background(work, self._slots)
        for index, request in requests.items():
            server_of(index).wait_for(request)
        for reason in sorted(set(self._pixel_reasons.values()) - known_reasons):
            self._note_form(reason)
        requests |= {index: ask(index) for index in range(len(prompts)) if index not in requests}

        def wait() -> SampledCompletions:
            try:
                answers = [server_of(index).wait_for(requests[index]) for index in range(len(prompts))]
            finally:
                for request in requests.values():  # after the first failure
                    request.cancel()
            return vllm_requests.build_completions(self.vlm, prompts, answers, params)

        return wait

    def _prepare(self, prompt: Prompt, seed: int, as_features: bool) -> PreparedPrompt:
        token_ids = prompt.token_ids.tolist()
        if not prompt.images:
            return PreparedPrompt(prompt, seed, token_ids, token_ids, None)
        if not as_features:
            return PreparedPrompt(prompt, seed, token_ids, self.vlm.tokenize_expanded(prompt.text), None)
        # Not in the request's thread: torch aborts a process that ends while a thread computes.
        pictures = vllm_features.engine_pictures(self.vlm, prompt)
        return PreparedPrompt(prompt, seed, token_ids, token_ids, vllm_features.features_field(self.vlm, pictures))

    def _ask_first(
        self,
        server: Server,
        features: PreparedPrompt | None,
        pixels: PreparedPrompt,
        sampling_params: Mapping[str, Any],
    ) -> list[EngineAnswer]:
        """Return the answers to a server's first picture, and find out which form it accepts."""
        reason = f"vLLM takes no features of {self.vlm.model.config.model_type}"
        if features is not None:
            try:
                answers = self._answers(server, features, sampling_params)
                self._pixel_reasons[server.url] = ""
                return answers
            except RefusedError as refusal:
                if refusal.status not in MALFORMED_STATUS:
                    raise
                reason = f"{refusal.url} takes no features: {refusal.quoted_reason}"
        try:
            answers = self._answers(server, pixels, sampling_params)
        except RefusedError as refusal:
            raise EngineError(f"{refusal}; before, {reason}") from None
        self._pixel_reasons[server.url] = reason
        return answers

    def _note_form(self, pixel_reason: str) -> None:
        is_of_one_server = pixel_reason and vllm_features.takes_features(self.vlm)
        if self.rank != 0 and not is_of_one_server:  # which rank 0 may never ask
            return
        if pixel_reason:
            print(f"note: pictures go to the servers as pixels, which their towers encode again ({pixel_reason})")
        else:
            print("note: pictures go to the servers as features, and their towers do not run")

    def _answers(self, server: Server, prepared: PreparedPrompt, sampling_params: Mapping[str, Any]) -> list[EngineAnswer]:
        body = {
            "model": self._model,
            "sampling_params": {**sampling_params, "seed": prepared.seed},
            "return_token_ids": True,
            "token_ids": prepared.sent_ids,
            **self._picture_fields(prepared),
        }
        try:
            reply = server.request("POST", "/inference/v1/generate", body, ANSWER_TIMEOUT)
        except RefusedError as refusal:
            adapter = self._adapter  # None once the engine is closed
            if refusal.status != 404 or adapter is None or self._model not in refusal.reason:
                raise
            server.load(self._model, adapter)  # it was restarted
            reply = server.request("POST", "/inference/v1/generate", body, ANSWER_TIMEOUT)
        return self._read(server, prepared, sampling_params, reply)

    def _picture_fields(self, prepared: PreparedPrompt) -> dict[str, Any]:
        """Return a prompt's pictures, as features or as pixels."""
        images = prepared.prompt.images
        if not images:
            return {}
        if prepared.features is not None:
            return {"features": prepared.features}
        return {"content_parts": [{"type": "image_url", "url": _data_url(image), "uuid": image.key} for image in images]}

    def _read(
        self, server: Server, prepared: PreparedPrompt, sampling_params: Mapping[str, Any], reply: Any
    ) -> list[EngineAnswer]:
        """Return the answers in a reply. Raises EngineError if it does not match the request."""
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
        if prompt_ids != prepared.token_ids:
            raise EngineError(
                f"rollout_engine: {server.url} reads row {prepared.prompt.id} as {len(prompt_ids or ())} tokens, which are not the "
                f"{len(prepared.token_ids)} of the trainer: serve the same checkpoint, with the same pixel limits"
            )
        n, max_tokens = sampling_params["n"], sampling_params["max_tokens"]
        if len(answers) != n or any(not 0 < len(answer.token_ids) <= max_tokens for answer in answers):
            asked = f"{n} answer{'s' if n > 1 else ''} of at most {max_tokens} token{'s' if max_tokens > 1 else ''}"
            raise EngineError(f"rollout_engine: {server.url} did not return {asked}: {START_AGAIN}")
        return answers

    def close(self) -> None:
        """Unload the adapter from servers that answer within seconds, and end the connections.

        Pending requests, of a run that ends while it samples ahead, end with the process.
        """
        adapter, self._adapter = self._adapter, None
        for server in self.servers:
            if self.rank == 0 and adapter is not None:
                other = Server(server.url, patience=0)
                with contextlib.suppress(EngineError):
                    other.unload(self._model, CLOSE_TIMEOUT)
                other.close()
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
