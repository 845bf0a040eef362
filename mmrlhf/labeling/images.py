"""Images of tasks in formats that browsers can show."""

from __future__ import annotations

import io

from PIL import Image

from mmrlhf.models.images import IMAGE_SIGNATURES, open_image, read_image_bytes, read_image_size
from mmrlhf.records import ImageSource

BROWSER_TYPES = ("png", "jpeg", "gif", "webp")


def displayable(source: ImageSource) -> tuple[bytes, str]:
    """Return an image's bytes and media type, converted to PNG if browsers do not show its format.

    Raises InputError if the image is missing, damaged or too large, or has changed.
    """
    data = read_image_bytes(source)
    read_image_size(ImageSource(data=data))
    image_type = next((name for signature, name in IMAGE_SIGNATURES.items() if data.startswith(signature)), "")
    if image_type in BROWSER_TYPES:
        return data, f"image/{image_type}"
    buffer = io.BytesIO()
    image: Image.Image = open_image(source, data=data)
    image.save(buffer, "PNG")
    return buffer.getvalue(), "image/png"
