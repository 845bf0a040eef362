"""Open images safely: a file's name and size do not show its content."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mmrlhf.records import ImageSource, InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow may try. Its other decoders are rarely used and not well hardened."""
MAX_BYTES_PER_PIXEL = 8
"""Maximum bytes per pixel of a file: four uncompressed channels of 16 bits."""
MAX_METADATA_BYTES = 16 << 20
"""Allowance for a file's metadata."""


def read_image_bytes(source: ImageSource, max_pixels: int = 40_000_000) -> bytes:
    """Return an image's encoded bytes. Raises InputError if it is missing or too large."""
    _refuse_large_file(source, max_pixels)
    return source.read()


def _refuse_large_file(source: ImageSource, max_pixels: int) -> None:
    """Raise InputError if a file is larger than any image of `max_pixels` could be."""
    if source.path is not None and os.path.isfile(source.path):
        size, max_bytes = os.path.getsize(source.path), MAX_BYTES_PER_PIXEL * max_pixels + MAX_METADATA_BYTES
        if size > max_bytes:
            raise InputError(
                f"image {source.name} is a file of {size:,} bytes, over {max_bytes:,}: replace the file or drop the row"
            )


def open_image(source: ImageSource, max_pixels: int = 40_000_000, data: bytes | None = None) -> Image.Image:
    """Return the image upright, in 8-bit RGB, with transparency on white.

    `data` holds its bytes if they have already been read. Raises InputError if the image is empty,
    damaged, animated, in another format, or larger than `max_pixels`.
    """
    data = read_image_bytes(source, max_pixels) if data is None else data
    with _readable(source.name, max_pixels):
        image = _open(io.BytesIO(data), source.name, max_pixels)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def _readable(name: str, max_pixels: int) -> Iterator[None]:
    """Turn every error of a decoder into InputError, and suppress its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images, which are checked, and odd metadata
            yield
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(_too_large_message(name, "far more than", max_pixels)) from None
    except Image.UnidentifiedImageError:
        raise InputError(
            f"image {name} is damaged, or not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file: replace the file or drop the row"
        ) from None
    except Exception as error:  # on broken bytes, decoders raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"image {name} is truncated or damaged ({reason}): replace the file or drop the row") from None


def _open(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    """Read an image's header. Raises InputError if it is empty or its header shows a problem."""
    if not file.read(1):
        raise InputError(f"image {name} is empty (0 bytes): replace the file or drop the row")
    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    _check_header(image, name, max_pixels)
    return image


def read_image_size(source: ImageSource, max_pixels: int = 40_000_000) -> tuple[int, int]:
    """Return the width and height that `open_image` would give, from the header alone.

    No pixel is decoded, so a file that is cut off after its header passes. Raises InputError for
    problems in the header: no image, another format, several frames, or more than `max_pixels`.
    """
    _refuse_large_file(source, max_pixels)
    with _readable(source.name, max_pixels), _open_file(source) as file:
        image = _open(file, source.name, max_pixels)
        width, height = image.size
        return (height, width) if _orientation(image) in SIDEWAYS_ORIENTATIONS else (width, height)


def _open_file(source: ImageSource) -> IO[bytes]:
    if source.path is None or not os.path.isfile(source.path):
        return io.BytesIO(source.read())
    return open(source.path, "rb")


SIDEWAYS_ORIENTATIONS = (5, 6, 7, 8)
"""Values of EXIF's orientation that swap width and height."""


def _orientation(image: Image.Image) -> int | None:
    """Return EXIF's or XMP's orientation. In a PNG, only the metadata before its pixels is read."""
    if image.format == "TIFF":
        return None  # Pillow has already swapped the sides
    # A PNG's own `getexif` would decode the image to read metadata after its pixels.
    exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
    orientation = exif.get(ExifTags.Base.Orientation)
    return orientation if isinstance(orientation, int) else None


def _check_header(image: Image.Image, name: str, max_pixels: int) -> None:
    """Check size and frames before any pixel is decoded. Raises InputError."""
    if image.width * image.height > max_pixels:
        raise InputError(_too_large_message(name, f"{image.width} x {image.height}, more than", max_pixels))
    # A phone's JPEG may carry a depth map or thumbnail as a second frame (MPO); the first counts.
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image.format != "MPO":
        raise InputError(f"image {name} has {num_frames} frames or pages: save the one that is meant as PNG, or drop the row")


def _too_large_message(name: str, size: str, max_pixels: int) -> str:
    return f"image {name} has {size} {max_pixels:,} pixels: scale it down, or drop the row"


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB. Raises ValueError for floats, whose range is unknown."""
    if image.mode == "F":
        raise ValueError("it holds floating-point samples; save it with 8 bits a channel")
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips them to 255, almost all white
        samples = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
        image = Image.fromarray(samples.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


IMAGE_SIGNATURES = {
    b"\x89PNG": "png",
    b"\xff\xd8": "jpeg",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"II*": "tiff",
    b"MM\0*": "tiff",
}
"""MIME subtypes by the first bytes of a file."""


def image_value(source: ImageSource, image_root: str | None, embed: bool) -> Any:
    """Return an image as a row's field: bytes if embedded, else its path, else a data URL."""
    if embed:
        return {"bytes": read_image_bytes(source), "path": os.path.basename(source.path) if source.path else None}
    if source.path is not None:
        return os.path.relpath(source.path, image_root)
    data = read_image_bytes(source)
    image_type = next((name for signature, name in IMAGE_SIGNATURES.items() if data.startswith(signature)), "x-unknown")
    return f"data:image/{image_type};base64,{base64.b64encode(data).decode()}"
