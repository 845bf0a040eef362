"""The HTTP side of `mmrlhf serve`: routes, access, limits, and errors in OpenAI's form."""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mmrlhf.files.rows import parse_json
from mmrlhf.records import InputError
from mmrlhf.serving.batches import BusyError
from mmrlhf.text.addresses import is_local_url
from mmrlhf.text.printable import printable

MAX_BODY_BYTES = 64 << 20
MAX_LENGTH_DIGITS = 18
"""Python refuses to parse numbers of thousands of digits."""
MAX_QUOTED_CHARS = 200
MAX_CONNECTIONS = 256
"""Open connections, each with a thread; further ones are closed with status 503."""
READ_TIMEOUT = 60.0
"""Seconds without a byte after which a client is dropped."""
LINGER_SECONDS = 10.0
"""Seconds for reading the rest of a refused request, so that the reply arrives."""

Answer = Callable[[Any], dict[str, Any]]
"""Maps the JSON of a request to that of its response, while the client waits."""


@dataclass(frozen=True)
class Service:
    """A server's functions by path, and its description.

    Without a `token`, only requests that name this machine as their host are answered, so that no
    page in a browser can reach the server under another host name.
    """

    post: Mapping[str, Answer]
    get: Mapping[str, Callable[[], dict[str, Any]]]
    absent: Mapping[str, str]
    """Paths that this server does not offer, and why."""
    token: str | None


class RequestError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Server(ThreadingHTTPServer):
    """A thread per connection. `server_close` waits for the responses that are being written."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, service: Service) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.service = service
        self._free_connections = threading.Semaphore(MAX_CONNECTIONS)
        self._free_refusals = threading.Semaphore(MAX_CONNECTIONS)
        self._open_connections: set[socket.socket] = set()
        self.is_closing = False
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread of its own, or refuse it if there are too many."""
        if self._free_connections.acquire(blocking=False):
            self._open_connections.add(request)
            return super().process_request(request, client_address)
        if self._free_refusals.acquire(blocking=False):
            return threading.Thread(target=self._refuse, args=(request,), daemon=True).start()
        self.close_request(request)  # a flood may not take threads without end

    def _refuse(self, request: socket.socket) -> None:
        """Send a surplus connection status 503."""
        try:
            with contextlib.suppress(OSError):
                request.settimeout(LINGER_SECONDS)
                request.sendall(_TOO_MANY_CONNECTIONS)
            self.shutdown_request(request)
        finally:
            self._free_refusals.release()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer the requests of a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open_connections.discard(request)
            self._free_connections.release()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection once the client has ended it, or after LINGER_SECONDS.

        A connection that is closed with unread bytes is reset, and the client, which may still send
        its body, loses the reply.
        """
        deadline = time.monotonic() + LINGER_SECONDS
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            while (seconds := deadline - time.monotonic()) > 0:
                request.settimeout(seconds)
                if not request.recv(1 << 16):
                    break
        self.close_request(request)

    def server_close(self) -> None:
        """Read no more requests, and return once the responses are written."""
        self.is_closing = True
        for connection in list(self._open_connections):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                connection.shutdown(socket.SHUT_RD)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the client has gone."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mmrlhf", ""
    timeout = READ_TIMEOUT

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer requests that the base class refuses (other methods, invalid requests) in JSON."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            return self._respond(self._refuse_method)
        self.request_version = self.protocol_version  # a reply to HTTP/0.9 would have no status
        reason = (message or HTTPStatus(code).phrase)[:MAX_QUOTED_CHARS]
        self._send(code, _error(code, f"the request cannot be read ({reason}): send HTTP/1.1 with headers of at most 64 KiB"))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests may contain keys and pictures of people."""

    def _get(self) -> dict[str, Any]:
        self._check_access()
        return self._function(self.server.service.get)()

    def _post(self) -> dict[str, Any]:
        self._check_access()
        function = self._function(self.server.service.post)
        # A form on another site cannot send this type without a preflight request.
        if self.headers.get_content_type() != "application/json":
            raise RequestError(415, "the body must be JSON: send the header Content-Type: application/json")
        return function(parse_json(self._body(), "request"))

    def _refuse_method(self) -> dict[str, Any]:
        self._check_access()
        return self._function({})  # which raises RequestError for every path

    def _check_access(self) -> None:
        """Raises RequestError without the token, or, if there is none, for another host's name."""
        token = self.server.service.token
        if token is None:
            if not is_local_url("//" + self.headers.get("Host", "")):
                raise RequestError(403, "this server answers requests to localhost only")
        elif not hmac.compare_digest((self.headers.get("Authorization") or "").encode(), f"Bearer {token}".encode()):
            raise RequestError(
                401, "the header Authorization: Bearer TOKEN is missing or has another token than the server printed"
            )

    def _function(self, functions: Mapping[str, Any]) -> Any:
        path = self.path.partition("?")[0]
        service = self.server.service
        if path in functions:
            return functions[path]
        if path in service.absent:
            raise RequestError(404, service.absent[path])
        if path in service.post or path in service.get:
            raise RequestError(405, f"{path} takes {'POST' if path in service.post else 'GET'} requests")
        raise RequestError(404, f"there is no such path: this server has {', '.join([*service.post, *service.get])}")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise RequestError(411, "the length of the body is missing: send the header Content-Length")
        length = length.lstrip("0") or "0"
        if len(length) > MAX_LENGTH_DIGITS or int(length) > MAX_BODY_BYTES:
            raise RequestError(413, f"the body is too large: send at most {MAX_BODY_BYTES:,} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length) and self.server.is_closing:
            raise BusyError("the server is shutting down")
        if len(body) < int(length):
            raise RequestError(400, "the body is shorter than its Content-Length")
        return body

    def _respond(self, answer: Callable[[], dict[str, Any]]) -> None:
        try:
            status, content = 200, answer()
        except RequestError as error:
            status, content = error.status, _error(error.status, error.message)
        except InputError as error:
            status, content = 400, _error(400, str(error))
        except BusyError as error:
            status, content = 503, _error(503, str(error))
        except TimeoutError:
            status, content = 408, _error(408, "the body did not arrive in time")
        except Exception as error:  # a bug, or a device that failed: the server goes on
            print(f"error: {self.path}: {printable(f'{type(error).__name__}: {error}')}", file=sys.stderr, flush=True)
            status, content = 500, _error(500, f"the server failed ({type(error).__name__}): see its output")
        self._send(status, content)

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "1")
        if status >= 400:  # an unread body would be taken for the next request
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _error(status: int, message: str) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": printable(message), "type": kind, "param": None, "code": status}}


_BODY = json.dumps(_error(503, "the server has too many connections: close some, or try again later")).encode()
_TOO_MANY_CONNECTIONS = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


def new_completion(model: str, texts: list[tuple[str, bool]], prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Return a chat completion in OpenAI's form; `texts` are answers with whether each ended."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": "stop" if is_finished else "length",
        }
        for index, (text, is_finished) in enumerate(texts)
    ]
    usage = {
        "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens,
    }  # fmt: skip
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage,
    }
