"""Servers for tests, on loopback: one that does as it is told, whatever that is, and `transformers serve` with the small model."""

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
    """Does what `server.script` says, one entry a request, the last one for ever: (status, body, headers), a callable of the request, or a fault
    by name (`cut`, `slow`)."""

    def do_GET(self):
        self._send(200, {"data": [{"id": name} for name in self.server.reward_models]})

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
            time.sleep(0.6)
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
    """A server whose `.url` can be asked; `.requests` are what it was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedHandler)
    server.daemon_threads = True
    server.script, server.requests, server.reward_models, server.lock = list(script), [], models, threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def transformers_serve(model: str, log_path: Path, timeout_s: float = 300) -> Iterator[str]:
    """The address of `transformers serve`, which is gone afterwards; skips where its packages are not installed."""
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
