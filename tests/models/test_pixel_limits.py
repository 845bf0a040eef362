"""--max_pixels shrinks images by a family's own settings, and is refused where there are none."""

from pathlib import Path

import pytest

from mmrlhf.config import EncodeConfig
from mmrlhf.models.loading import load
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import InputError, Message
from tests.helpers.tiny_models import build_checkpoint
from tests.models.test_prompt_lengths import blank

PROMPT = [Message("user", "What is it?")]


def load_limited(directory, **limits):
    config = EncodeConfig(model_name_or_path="-", dataset_name="-", feature_cache_dir=str(Path(directory) / "features"), **limits)
    return load(str(directory), engine=config, pixels=config)


@pytest.mark.parametrize(
    ("family", "max_pixels"),
    [
        ("qwen2_5_vl", 28 * 28 * 6),
        ("qwen3_vl", 32 * 32 * 6),
        ("mistral3", 57 * 57),
        ("idefics3", 56 * 56),
        ("smolvlm", 60 * 60),
        ("llava_next", 56 * 112),
        ("llava_onevision", 56 * 112),
        ("internvl", 56 * 56 * 2),
    ],
)
def test_large_images_take_fewer_tokens_and_are_counted(family, max_pixels, tmp_path: Path):
    build_checkpoint(family, tmp_path)
    images = (blank(400, 300),), (blank(50, 50),)
    before = [len(prompt.token_ids) for prompt in load(str(tmp_path)).build_prompts([(PROMPT, row) for row in images])]
    vlm = load_limited(tmp_path, max_pixels=max_pixels)
    lengths = PromptLengths(vlm, max_pixels)
    counted = [lengths.count(PROMPT, row) for row in images]
    assert counted == [len(prompt.token_ids) for prompt in vlm.build_prompts([(PROMPT, row) for row in images])]
    assert counted[0] < before[0] and len(lengths.shrunk_images) == 1


def test_the_limit_is_saved_with_the_processor(tmp_path: Path):
    build_checkpoint("qwen2_5_vl", tmp_path / "model")
    vlm = load_limited(tmp_path / "model", min_pixels=28 * 28 * 3, max_pixels=28 * 28 * 6)
    assert PromptLengths(vlm).count(PROMPT, (blank(400, 300),)) - PromptLengths(vlm).count(PROMPT, (blank(28, 28),)) <= 3
    vlm.processor.save_pretrained(tmp_path / "model")
    assert dict(load(str(tmp_path / "model")).processor.image_processor.size)["longest_edge"] == 28 * 28 * 6


@pytest.mark.parametrize(
    ("family", "limits", "message"),
    [
        ("llava", {"max_pixels": 10_000}, "has no limit to lower, only a fixed size: leave it out"),
        ("mllama", {"max_pixels": 10_000}, "has no limit to lower, only a fixed size: leave it out"),
        ("llava_next", {"max_pixels": 100}, "shows an image with at least 56 x 112: raise it"),
        ("idefics3", {"max_pixels": 100}, "shows an image with at least 56 x 56: raise it"),
        ("internvl", {"min_pixels": 100}, "has no minimum number of pixels: leave it out"),
        ("qwen2_5_vl", {"min_pixels": 10**9}, "is over max_pixels"),
    ],
)
def test_limits_that_a_processor_lacks_are_refused(family, limits, message, tmp_path: Path):
    build_checkpoint(family, tmp_path)
    with pytest.raises(InputError, match=message):
        load_limited(tmp_path, **limits)
