"""A small server with vLLM's protocol, as far as rollouts use it, on the tiny model itself.

It loads adapters by path and samples under them, so that its log-probs are the trainer's. It knows
the prompts of some rows, by their token ids and the keys of their pictures.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.loading import load
from mmrlhf.records import Example

BASE = "base"


class FakeVLLM:
    """The state of a server, and faults that a test sets."""

    def __init__(self, model: str, examples: Sequence[Example]) -> None:
        self.vlm = load(model)
        self.adapters = Adapters(self.vlm)
        self.prompts = {}
        for prompt in prompts_from_examples(self.vlm, examples):
            pictures = [self.vlm.encoder.feature_key(image, len(prompt.images)) for image in prompt.images]
            self.prompts[tuple(prompt.token_ids.tolist()), tuple(pictures)] = prompt
            unexpanded = self.vlm.tokenize_expanded(prompt.text)
            self.prompts[tuple(unexpanded), tuple(image.key for image in prompt.images)] = prompt
        self.loaded: dict[str, Path] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.url = ""
        # Faults
        self.statuses: list[int] = []
        """Statuses of the next answers to `generate`; 0 breaks the connection."""
        self.is_gone_after: int | None = None
        """Answers to `generate` before it is gone for good."""
        self.num_aborted = 0
        """Next answers to `generate` that are cut off, as by a server that stops."""
        self.takes_features = True
        self.sees_adapters = True
        self.allows_adapters = True
        self.max_model_len = 4096
        self.answers_as: str | None = None
        self.logp_shift = 0.0
        self.gate: threading.Event | None = None
        """What answers to `generate` wait for."""

    @property
    def generated(self) -> list[dict[str, Any]]:
        """The requests to `generate` so far."""
        return [body for path, body in self.requests if path == "/inference/v1/generate" and body]

    def restart(self) -> None:
        """Forget all adapters, as a server that was started again."""
        self.loaded.clear()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return the status and the content of a reply; a status of 0 breaks the connection."""
        if self.gate is not None and path == "/inference/v1/generate" and body:
            self.gate.wait()
        with self.lock:
            self.requests.append((path, body))
            if path == "/v1/models":
                models = [{"id": BASE, "parent": None, "max_model_len": self.max_model_len}]
                return 200, {"data": models + [{"id": name, "parent": BASE} for name in self.loaded]}
            if path == "/v1/load_lora_adapter" and self.allows_adapters:
                return self._load(body)
            if path == "/v1/unload_lora_adapter" and self.allows_adapters:
                return self._unload(body)
            if path == "/inference/v1/generate":
                return self._generate(body)
            return 404, {"detail": "Not Found"}

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.loaded:
            return 400, _error(f"The lora adapter '{name}' has already been loaded.")
        if not self.sees_adapters or not (path / "adapter_config.json").is_file():
            return 404, _error(f"Loading lora {name} failed: No adapter found for {path}")
        known = self.adapters.peft_model.peft_config if self.adapters.peft_model is not None else ()
        if name not in known:  # as vLLM: what was once loaded under a name stays
            self.adapters.load(name, path, trainable=False)
        self.loaded[name] = path
        return 200, "Success"

    def _unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if "lora_name" not in body:
            return 400, _error("lora_name: Field required")
        if self.loaded.pop(body["lora_name"], None) is None:
            return 404, _error(f"The lora adapter '{body['lora_name']}' cannot be found.")
        return 200, "Success"

    def _generate(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not body:
            return 400, _error("token_ids: Field required")
        if self.is_gone_after is not None and len(self.generated) > self.is_gone_after:
            return 503, _error("it is gone")
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            return status, _error(f"fault {status}")
        if "features" in body and not self.takes_features:
            return 400, _error("You must set `--enable-mm-embeds`")
        if body["model"] not in (BASE, *self.loaded):
            return 404, _error(f"The model `{body['model']}` does not exist.")
        pictures = body.get("features", {}).get("mm_hashes", {}).get("image", [])
        pictures = pictures or [part["uuid"] for part in body.get("content_parts", ())]
        prompt = self.prompts[tuple(body["token_ids"]), tuple(pictures)]
        asked = body["sampling_params"]
        params = SamplingParams(
            asked["max_tokens"], asked["temperature"], min_tokens=asked["min_tokens"], seed=asked["seed"] >> 32
        )
        with self.adapters.use(None if body["model"] == BASE else body["model"]):
            sampled = sample_completions(self.vlm, [prompt], asked["n"], params)
        choices = []
        for i in range(asked["n"]):
            is_token = sampled.mask_NT[i].bool()
            ids, logps = sampled.token_ids_NT[i][is_token].tolist(), sampled.logps_NT[i][is_token].tolist()
            content = [{"token_id": t, "logprob": p + self.logp_shift} for t, p in zip(ids, logps, strict=True)]
            finish_reason = "stop" if sampled.finished_N[i] else "length"
            choices.append({"index": i, "token_ids": ids, "logprobs": {"content": content}, "finish_reason": finish_reason})
        if self.num_aborted:
            self.num_aborted -= 1
            for choice in choices:
                choice |= {"token_ids": [], "logprobs": {"content": []}, "finish_reason": "abort"}
        model = self.answers_as or body["model"]
        return 200, {"model": model, "prompt_token_ids": prompt.token_ids.tolist(), "choices": choices[::-1]}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        status, content = self.server.fake.reply(self.path, body)  # type: ignore[attr-defined]
        if status == 0:
            self.connection.close()
            return
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def fake_vllm(model: str, examples: Sequence[Example]) -> Iterator[FakeVLLM]:
    """Start a server at `.url`."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.daemon_threads = True
    fake = http.fake = FakeVLLM(model, examples)  # type: ignore[attr-defined]
    fake.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)
