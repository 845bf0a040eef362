"""What every request must satisfy before the app sees it, and the headers of every response."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrlhf.serving.http import names_this_machine

MAX_BODY_BYTES = 16 << 20
"""The largest form: an answer of a megabyte, percent-encoded."""
TOO_LARGE = f"the form is larger than {MAX_BODY_BYTES >> 20} MiB: shorten it"
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
    """The body of a request is larger than MAX_BODY_BYTES: raised to who reads it."""


class Guard:
    """Refuses requests under another machine's name, from other sites, and with large bodies.

    loopback_only: whether the server is for this machine alone. No page in a browser can then reach
    it under a name of its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, loopback_only: bool) -> None:
        self._app, self._loopback_only = app, loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no web sockets
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, problem = self._refusal(scope["method"], headers)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in HEADERS.items()),
                    *([] if b"cache-control" in own else [(b"cache-control", b"no-store")]),
                ]
            await send(message)

        num_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > MAX_BODY_BYTES:
                raise BodyTooLargeError
            return message

        app = PlainTextResponse(problem, status) if problem else self._app
        await app(scope, receive_bounded, send_guarded)

    def _refusal(self, method: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """Return a status and a sentence for a request that is refused, else 0 and ""."""
        host = headers.get("host", "")
        if self._loopback_only and not names_this_machine(host):
            return 403, "this server answers requests to localhost only"
        if method not in ("GET", "HEAD", "POST"):
            return 405, "this server takes GET and POST requests"
        if method == "POST":
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            if (origin is not None and urlsplit(origin).netloc != host) or site not in (None, "same-origin", "none"):
                return 403, "a page of another site sent this form: open the labelling page itself"
            length = headers.get("content-length", "0")
            if not (length.isascii() and length.isdecimal()) or int(length) > MAX_BODY_BYTES:
                return 413, TOO_LARGE
        return 0, ""
