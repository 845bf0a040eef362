"""What the tests share: the small model that ships, scenes as examples, and where other test data may lie."""

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # tests run on the CPU, also where there is a GPU


@pytest.fixture(scope="session")
def tiny_vlm_path() -> str:
    """The world's small vision-language model."""
    from mmrlhf.files.bundled import folder

    return str(folder("data") / "tiny_vlm")


@pytest.fixture
def vlm(tiny_vlm_path):
    from mmrlhf.models.loading import load

    return load(tiny_vlm_path)


@pytest.fixture(scope="session")
def examples():
    """Twelve described scenes with facts."""
    from mmrlhf import scenes
    from mmrlhf.records import Example, Message

    rows = []
    for i in range(12):
        scene, rng = scenes.generate_scene("selection", i, 0), np.random.default_rng(i)
        question = scenes.description_question(scene, rng)
        prompt = (Message("user", question.text),)
        rows.append(Example(scene.id, (scene.image_source(),), prompt, question.answer, scenes.annotator_facts(scene, rng)))
    return rows


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Test data that is not part of the project: MMRLHF_SHARED, or `shared` beside the repository."""
    path = Path(os.environ.get("MMRLHF_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip("needs the shared test data (MMRLHF_SHARED), which a clone does not have")
    return path
