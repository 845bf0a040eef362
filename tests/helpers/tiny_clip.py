"""A tiny open_clip checkpoint with random weights, and random images."""

import io
import logging

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image

from mmrlhf.records import ImageSource
from mmrlhf.verifiers.clip import save_clip

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_tiny_clip(directory, **overrides):
    """Write a checkpoint of `CONFIG` with `overrides` to `directory`, and return it."""
    logging.getLogger().setLevel(logging.ERROR)
    torch.manual_seed(0)
    config = {**CONFIG, **overrides}
    model = open_clip.CLIP(**config)
    model.visual.preprocess_cfg = vars(PreprocessCfg(size=32))
    save_clip(directory, model, config)
    return directory


def random_image(seed=0, size=40):
    """Return a square PNG of noise, the same for the same seed."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return ImageSource(data=buffer.getvalue())
