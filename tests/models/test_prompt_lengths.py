"""Prompt lengths from image sizes equal the lengths of prompts that are built."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmrlhf.models.images import open_image, read_image_size
from mmrlhf.models.loading import load
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import ImageSource, InputError, Message
from tests.helpers.family_setup import IMAGE_REQUIRED
from tests.helpers.rows import png_bytes
from tests.helpers.tiny_models import FAMILIES, build_checkpoint

SIZES = ((56, 56), (120, 80), (64, 300), (301, 90), (37, 41), (640, 481), (112, 113), (57, 56))


def blank(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "green").save(file, "PNG")
    return ImageSource(data=file.getvalue())


@pytest.mark.parametrize("family", FAMILIES)
def test_lengths_equal_those_of_built_prompts(family, tmp_path: Path):
    build_checkpoint(family, tmp_path)
    vlm = load(str(tmp_path))
    images = [blank(*size) for size in SIZES]
    rows = [([Message("user", f"what colour is the {i * 'red '}circle?")], (image,)) for i, image in enumerate(images)]
    rows += [([Message("user", "\nbefore and after")], (images[1], images[4])), ([Message("user", "three")], tuple(images[:3]))]
    earlier = [Message("user", "Describe."), Message("assistant", "A square.")]
    rows += [([*earlier, Message("user", "Which one?")], (images[5],))]
    if family not in IMAGE_REQUIRED:
        rows.append(([Message("user", "no image")], ()))
    lengths = PromptLengths(vlm)
    counted = [lengths.count(*row) for row in rows]
    assert vlm.image_encodes == 0
    assert counted == [len(prompt.token_ids) for prompt in vlm.build_prompts(rows)]


def test_a_prompt_without_the_image_that_a_processor_needs_is_refused(tmp_path: Path):
    build_checkpoint("paligemma", tmp_path)
    with pytest.raises(InputError, match="its processor refuses a prompt with 0 images"):
        PromptLengths(load(str(tmp_path))).count([Message("user", "no image")], ())


def test_refused_images_are_found_without_the_model_seeing_them(tmp_path: Path):
    build_checkpoint("qwen2_5_vl", tmp_path)
    lengths = PromptLengths(load(str(tmp_path)))
    with pytest.raises(
        InputError, match=r"\(2000 x 3\) is refused by the model's processor \(.*aspect ratio.*\): change its size"
    ):
        lengths.count([Message("user", "?")], (blank(2000, 3),))
    with pytest.raises(InputError, match="is damaged"):
        lengths.count([Message("user", "?")], (ImageSource(data=b"no image"),))


def test_an_image_that_only_the_tower_refuses_is_found(tmp_path: Path):
    build_checkpoint("mistral3", tmp_path)
    lengths = PromptLengths(load(str(tmp_path)))
    with pytest.raises(InputError, match=r"\(28 x 28\) is refused by the model's vision tower"):
        lengths.count([Message("user", "?")], (blank(28, 28),))


def test_a_device_without_room_is_not_the_images_fault(tmp_path: Path, monkeypatch):
    build_checkpoint("mistral3", tmp_path)
    vlm = load(str(tmp_path))

    def fail(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(vlm.encoder, "run_tower", fail)
    with pytest.raises(torch.OutOfMemoryError):
        PromptLengths(vlm).count([Message("user", "?")], (blank(28, 28),))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_in_a_header_is_that_of_the_opened_image(file_format, orientation):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(file, file_format, exif=exif)
    source = ImageSource(data=file.getvalue())
    assert read_image_size(source) == open_image(source).size == ((20, 40) if orientation in (6, 8) else (40, 20))


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_in_a_header_is_that_of_an_opened_image_with_xmp(orientation):
    file, chunks = io.BytesIO(), PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", f'<rdf:Description tiff:Orientation="{orientation}"/>')
    Image.new("RGB", (40, 20)).save(file, "PNG", pnginfo=chunks)
    source = ImageSource(data=file.getvalue())
    assert read_image_size(source) == open_image(source).size == ((20, 40) if orientation == 6 else (40, 20))


def test_a_header_is_enough():
    assert read_image_size(ImageSource(data=png_bytes()[:45])) == (4, 3)
