"""Images on pages: small copies, embedded as data URLs."""

from __future__ import annotations

import base64
import io

from mmrlhf.models.images import open_image
from mmrlhf.records import ImageSource, InputError

SIZE = 320
"""Pixels of a thumbnail's longer side."""


def thumbnail_url(source: ImageSource | None) -> str:
    """Return an image as a small data URL, or "" if there is none or it cannot be opened."""
    content = thumbnail(source) if source is not None else b""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}" if content else ""


def thumbnail(source: ImageSource) -> bytes:
    """Return an image as a small JPEG, or b"" if it cannot be opened."""
    try:
        image = open_image(source)
    except InputError:
        return b""
    image.thumbnail((SIZE, SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
