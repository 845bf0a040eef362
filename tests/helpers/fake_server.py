"""Local servers for tests: a scripted one, and `transformers serve` with the tiny VLM."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

FAKE_MODEL = "stub"


def chat_completion(text, model=FAKE_MODEL, **extra):
    return {
        "model": model,
        "choices": [{"message": {"content": text}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
        **extra,
    }


class ScriptedHandler(BaseHTTPRequestHandler):
    """Answers each request with the next entry of `server.script`, repeating the last one.

    An entry is (status, body, headers), a function of the request that returns one, or the name of
    a fault: `cut` breaks the connection, `slow` never answers.
    """

    def do_GET(self):
        self._send(*(self.server.models_response or (200, {"data": [{"id": name} for name in self.server.models]})))

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append({**request, "authorization": self.headers.get("authorization")})
            script = self.server.script
            entry = script.pop(0) if len(script) > 1 else script[0]
        if callable(entry):
            entry = entry(request)
        if entry == "cut":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices"')
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        elif entry == "slow":
            self.server.closing.wait()
        else:
            self._send(*entry)

    def _send(self, status, body, headers=()):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def scripted_server(*script, models=(FAKE_MODEL,)) -> Iterator[ThreadingHTTPServer]:
    """Start a server at `.url` that answers from `script` and records its `.requests`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedHandler)
    server.daemon_threads = True
    server.script, server.requests, server.models, server.lock = list(script), [], models, threading.Lock()
    server.closing, server.models_response = threading.Event(), None
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def transformers_serve(model: str, log_path: Path, timeout_s: float = 300) -> Iterator[str]:
    """Start `transformers serve` and yield its URL; skip the test if a package is missing."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason="transformers serve needs it")
    port = free_port()
    command = [
        Path(sys.executable).with_name("transformers"),
        "serve",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with log_path.open("wb") as log_file:
        server = subprocess.Popen(command, stdout=log_file, stderr=log_file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            deadline = time.monotonic() + timeout_s
            while True:
                assert server.poll() is None, log_path.read_text()
                try:
                    if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=1, trust_env=False).status_code == 200:
                        break
                except httpx2.HTTPError:
                    assert time.monotonic() < deadline, log_path.read_text()
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)
