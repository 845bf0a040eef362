"""Requests to a server of `mmrlhf serve`, in a test's own process."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from mmrlhf.config import ServeConfig
from mmrlhf.records import Example
from mmrlhf.serve import address_of
from mmrlhf.serving.http import Server


def config_of(**settings: Any) -> ServeConfig:
    """Return the configuration of a server on a free port, with short answers."""
    return ServeConfig(**{"model_name_or_path": "tiny", "port": 0, "response_length": 24, **settings})


def request(
    server: Server,
    path: str,
    body: Any = None,
    headers: Iterable[tuple[str, str]] | dict[str, str] = (),
    data: bytes | None = None,
) -> tuple[int, Any]:
    """Return the status and the JSON of a response."""
    data = data if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **dict(headers)}
    try:
        with urllib.request.urlopen(urllib.request.Request(address_of(server) + path, data, headers), timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def messages_of(example: Example) -> list[dict[str, Any]]:
    """Return an example's prompt in OpenAI's form, its picture as a data URL."""
    url = "data:image/png;base64," + base64.b64encode(example.images[0].read()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": example.prompt[0].content}]
    return [{"role": "user", "content": parts}]


def facts_of(example: Example) -> list[dict[str, Any]]:
    """Return the field `facts` of a request to score."""
    return [{"kind": fact.kind, "text": fact.text, "source": fact.source} for fact in example.facts]
