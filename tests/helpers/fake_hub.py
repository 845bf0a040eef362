"""A Hub on this machine that keeps repositories in memory, for tests of uploads."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import huggingface_hub.constants
import pytest

TOKEN = "hf_a_token_that_may_write"


class HubHandler(BaseHTTPRequestHandler):
    """Creates repositories, lists their files, and takes commits of whole files."""

    def do_GET(self):
        path = urlsplit(self.path).path.strip("/").split("/")
        if self._is_refused() or path[:2] != ["api", "models"]:
            return self._send(401 if self._is_refused() else 404, {"error": "no"})
        files = self.server.repos.get("/".join(path[2:4]))
        if files is None:
            return self._send(404, {"error": "no such repository"})
        if path[4:5] == ["tree"]:
            return self._send(200, [{"type": "file", "path": name, "oid": "0" * 40, "size": 1} for name in files])
        if len(path) == 4:
            name = "/".join(path[2:4])
            return self._send(200, {"id": name, "private": self.server.visibility.get(name) == "private", "tags": []})
        return self._send(404, {"error": f"{self.path} is not served"})

    def do_POST(self):
        path = urlsplit(self.path).path.strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self._is_refused():
            return self._send(401, {"error": f"{self.headers['authorization']} may not write"})
        if self.server.failure and path[-2:-1] == [self.server.failure]:
            return self._send(400, {"error": "a fault"})
        if path == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if path == ["api", "validate-yaml"]:
            return self._send(200, {"errors": [], "warnings": []})
        name = "/".join(path[2:4])
        if path[4] == "preupload":
            files = json.loads(body)["files"]
            return self._send(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if path[4] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            contents = {v["path"]: base64.b64decode(v["content"]) for v in (x["value"] for x in lines if x["key"] == "file")}
            self.server.repos[name] |= contents
            return self._send(200, {"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True})
        return self._send(404, {"error": f"{self.path} is not served"})

    def _create(self, body):
        name = f"{body['organization']}/{body['name']}"
        is_new = name not in self.server.repos
        if is_new:
            self.server.repos[name] = {".gitattributes": b""}
            self.server.visibility[name] = body.get("visibility")
        self._send(200 if is_new else 409, {"url": f"{self.server.url}/{name}"})

    def _is_refused(self):
        return self.headers.get("authorization") != f"Bearer {TOKEN}"

    def _send(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> Iterator[ThreadingHTTPServer]:
    """Start a Hub that the process then uses with `token`.

    `.repos` has the files' contents by name, by repository, `.visibility` what was asked for, and
    `.failure` may name a request to answer with a fault: `preupload` or `commit`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.daemon_threads = True
    server.repos, server.visibility, server.failure = {}, {}, None
    server.url = f"http://127.0.0.1:{server.server_port}"
    use_hub(monkeypatch, server.url, token)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, token: str | None) -> None:
    """Let the process use the Hub at an address, although tests are offline otherwise."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
