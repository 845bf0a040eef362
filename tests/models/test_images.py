"""`open_image` returns an upright RGB image, or raises one sentence that says why not."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrlhf.models.images import open_image
from mmrlhf.records import ImageSource, InputError


def encode_image(image: Image.Image, kind: str, **options: object) -> ImageSource:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return ImageSource(data=file.getvalue())


def open_error(source: ImageSource, **options: int) -> str:
    with pytest.raises(InputError) as caught:
        open_image(source, **options)
    assert "\n" not in str(caught.value) and source.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_open_image_reads_every_format_under_any_name(tmp_path, kind):
    path = tmp_path / "image.txt"
    path.write_bytes(encode_image(Image.new("RGB", (6, 4), (200, 30, 40)), kind).read())
    image = open_image(ImageSource(str(path)))
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 40)).max() < 8


def test_open_image_refuses_unsupported_format():
    assert "is damaged, or not a JPEG, PNG, WEBP, BMP, GIF, TIFF or PPM file" in open_error(
        encode_image(Image.new("RGB", (8, 8)), "ICO")
    )


def test_open_image_applies_exif_orientation():
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera's right-hand side is the top: rotate clockwise
    upright = open_image(encode_image(image, "PNG", exif=exif))
    assert upright.size == (2, 4) and upright.getpixel((1, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), (255, 204, 204)),  # a fifth of red on white
        (Image.new("LA", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("P", (2, 2), 0), (0, 0, 0)),
        (Image.fromarray(np.full((2, 2), 257 * 100, np.uint16)), (100, 100, 100)),  # Pillow itself gives 255
    ],
)
def test_open_image_converts_every_mode_to_rgb(image, pixel):
    assert open_image(encode_image(image, "PNG")).getpixel((1, 1)) == pixel


def test_open_image_puts_transparent_palette_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    opened = open_image(encode_image(image, "PNG", transparency=1))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_open_image_converts_cmyk():
    red = open_image(encode_image(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))
    assert red[0] > 245 and max(red[1:]) < 10


def test_open_image_refuses_floating_point_samples():
    assert "save it with 8 bits a channel" in open_error(encode_image(Image.new("F", (2, 2), 0.5), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_open_image_refuses_several_frames(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    source = encode_image(frames[0], kind, save_all=True, append_images=frames[1:])
    assert "has 3 frames or pages: save the one that is meant" in open_error(source)


def test_open_image_takes_first_frame_of_mpo():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    opened = open_image(encode_image(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert opened.getpixel((8, 8))[0] > 245


def test_open_image_refuses_empty_and_missing_files(tmp_path):
    assert "is empty (0 bytes): replace the file or drop the row" in open_error(ImageSource(data=b""))
    assert "does not exist" in open_error(ImageSource(str(tmp_path / "none.png")))
    assert "cannot be read" in open_error(ImageSource(str(tmp_path)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP"])
def test_open_image_refuses_truncated_file(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encode_image(noise, kind).read()
    assert "damaged" in open_error(ImageSource(data=data[: len(data) // 2]))


def test_open_image_checks_size_before_decoding(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    source = encode_image(Image.new("1", (300, 200)), "PNG")
    assert "has 300 x 200, more than 59,999 pixels: scale it down" in open_error(source, max_pixels=59_999)


def test_open_image_refuses_decompression_bomb():
    header = b"BM" + b"\0" * 8 + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    size = (60_000).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + b"\0" * 24
    assert "more than 40,000,000 pixels: scale it down" in open_error(ImageSource(data=header + size))


def test_open_image_refuses_oversized_file_unread(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode_image(Image.new("1", (8, 8)), "PNG").read())
    with path.open("ab") as file:
        file.truncate(8 * 64 + (16 << 20))  # sparse: it takes no room on the disk
    assert open_image(ImageSource(str(path)), max_pixels=64).size == (8, 8)
    monkeypatch.setattr(ImageSource, "read", lambda self: pytest.fail("read"))
    assert "is a file of 16,777,728 bytes, over 16,777,720: replace the file" in open_error(ImageSource(str(path)), max_pixels=63)


def test_open_image_accepts_exactly_max_pixels():
    source = encode_image(Image.new("1", (300, 200)), "PNG")
    assert open_image(source, max_pixels=60_000).size == (300, 200)


VALID_FILES = [
    encode_image(Image.new("RGB", (5, 7), "teal"), kind).read() for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP")
]


@settings(max_examples=150)
@given(st.binary(max_size=200), st.sampled_from([b"", *VALID_FILES]), st.integers(0, 200), st.booleans())
def test_open_image_accepts_or_refuses_any_bytes(noise, start, at, cut):
    data = start[:at] + noise + (b"" if cut else start[at + len(noise) :])
    try:
        assert open_image(ImageSource(data=data), max_pixels=10_000).mode == "RGB"
    except InputError as error:
        assert "\n" not in str(error)
