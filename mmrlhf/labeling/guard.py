"""Conditions on every request before it reaches the app, and the headers of every response."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrlhf.text.addresses import is_local_url

MAX_BODY_BYTES = 16 << 20
"""The largest form: an answer of a million characters, percent-encoded."""
MAX_SIGNED_OUT_BYTES = 64 << 10
"""The largest form of somebody who is not signed in: the form for signing in."""
TOO_LARGE_SIGNED_OUT = (
    "you are not signed in here any more, and the form is large: open the page in another tab, come in again, and save again"
)
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    # Under no-referrer a browser would send forms with the origin `null`.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class BodyTooLargeError(Exception):
    """The body of a request is too large; raised while the body is read."""


class Guard:
    """Refuses requests under another machine's name, from other sites, and with large bodies.

    loopback_only: whether the server is for this machine alone. No page in a browser can then reach
    it under another host name (DNS rebinding). is_annotator: whether cookies, by name, are those of
    a signed-in annotator.
    """

    def __init__(self, app: ASGIApp, loopback_only: bool, is_annotator: Callable[[Mapping[str, str]], bool]) -> None:
        self._app, self._loopback_only, self._is_annotator = app, loopback_only, is_annotator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no web sockets
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._is_annotator(cookie_parser(headers.get("cookie", ""))):
            max_bytes, too_large = MAX_BODY_BYTES, f"the form is larger than {MAX_BODY_BYTES >> 20} MiB: shorten it"
        else:
            max_bytes, too_large = MAX_SIGNED_OUT_BYTES, TOO_LARGE_SIGNED_OUT
        status, problem = self._refusal(scope["method"], headers)
        if not problem and _length(headers) > max_bytes:
            status, problem = 413, too_large

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in HEADERS.items()),
                    *([] if b"cache-control" in names else [(b"cache-control", b"no-store")]),
                ]
            await send(message)

        num_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                raise BodyTooLargeError(too_large)
            return message

        app = self._app
        if problem:
            app = JSONResponse({"error": problem}, status) if wants_json(headers) else PlainTextResponse(problem, status)
        await app(scope, receive_bounded, send_guarded)

    def _refusal(self, method: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """Return a status and a sentence for a request that is refused, else 0 and ""."""
        host = headers.get("host", "")
        if self._loopback_only and not is_local_url(f"//{host}"):
            return 403, "this server answers requests to localhost only"
        if method not in ("GET", "HEAD", "POST"):
            return 405, "this server takes GET and POST requests"
        if method == "POST":
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            is_own = origin is None or origin in (f"http://{host}", f"https://{host}")
            if not is_own or site not in (None, "same-origin", "none"):
                return 403, "a page of another site sent this form: open the labelling page itself"
        return 0, ""


def wants_json(headers: Mapping[str, str]) -> bool:
    """Return whether a request came from the page's script, by its headers in lower case."""
    return headers.get("accept", "").startswith("application/json")


def _length(headers: Mapping[str, str]) -> float:
    length = headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else math.inf
