"""Fixtures that all tests share: the tiny model, synthetic scenes, data outside the repository."""

import gc
import os
import signal
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # tests run on the CPU even if there is a GPU
# `nohup` and shells ignore signals for what they start in the background, and tests send signals.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine must fail no test: an example may take any time. Examples are the same in each run,
# so that a change is never blamed for an old fault; `--hypothesis-profile=search` draws new ones.
hypothesis.settings.register_profile("search", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("repeat", hypothesis.settings.get_profile("search"), derandomize=True)
hypothesis.settings.load_profile("repeat")


LONGEST = ("test_stages.py", "test_ppo_engine.py", "test_crash_study.py")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Keep what the tests import out of collections of garbage, which take a second with it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no process waits for another one's at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def bundled_vlm_path() -> str:
    """The checkpoint of the bundled tiny vision-language model, for tests of what it knows."""
    from mmrlhf.files.bundled import folder

    return str(folder("data") / "tiny_vlm")


@pytest.fixture(scope="session")
def tiny_vlm_path(tmp_path_factory) -> str:
    """The bundled model with two of its six layers, which a run takes half the time with."""
    from tests.helpers.shallow_vlm import save_shallow_vlm

    path = tmp_path_factory.mktemp("shallow") / "tiny_vlm"
    save_shallow_vlm(path)
    return str(path)


@pytest.fixture
def vlm(tiny_vlm_path):
    """The tiny model, loaded again for each test."""
    from mmrlhf.models.loading import load

    return load(tiny_vlm_path)


@pytest.fixture(scope="session")
def examples():
    """Twelve synthetic scenes with a description and facts."""
    from tests.helpers.scene_rows import scene_examples

    return scene_examples()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of test data outside the repository: MMRLHF_SHARED, or `shared` next to it."""
    path = Path(os.environ.get("MMRLHF_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip("needs test data that is not in the repository: set MMRLHF_SHARED to its folder")
    return path


@pytest.fixture(scope="session")
def pairs(examples):
    """Preferences for each scene's description over one with two false claims."""
    from mmrlhf.records import Preference

    rejected = "There is a pink ring. That makes nine objects."
    return [Preference.from_pair(e.id, e.images, e.prompt, e.answer, rejected, e.facts) for e in examples]


@pytest.fixture(scope="session")
def reward_dir(tiny_vlm_path, pairs, tmp_path_factory):
    """A reward model trained on the pairs."""
    from mmrlhf.reward_model import train_reward_model
    from tests.helpers.stages import reward_config

    return train_reward_model(reward_config(tiny_vlm_path, tmp_path_factory.mktemp("reward")), pairs, pairs)


@pytest.fixture
def vllm_fake(tiny_vlm_path, examples, monkeypatch):
    """A server with vLLM's protocol that knows `examples`; who is refused asks again at once."""
    from mmrlhf.engine import vllm_server
    from tests.helpers.fake_vllm import fake_vllm

    monkeypatch.setattr(vllm_server, "FIRST_PAUSE", 0.01)
    with fake_vllm(tiny_vlm_path, examples) as server:
        yield server


@pytest.fixture
def live_pages():
    """Let runs write report.html, which most tests do without, because drawing takes time."""


@pytest.fixture(autouse=True)
def _no_live_pages(request, monkeypatch):
    if "live_pages" not in request.fixturenames:
        monkeypatch.setattr("mmrlhf.report.live_page.LivePage.refresh", lambda self, *, is_final=False: "")
