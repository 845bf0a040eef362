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
    if source is None:
        return ""
    try:
        image = open_image(source)
    except InputError:
        return ""
    image.thumbnail((SIZE, SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
