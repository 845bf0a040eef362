"""vLLM in the trainer's process, with a stand-in for the package: what it is asked for, and when.

`make test-engine` runs vLLM itself.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mmrlhf.engine import vllm_features
from mmrlhf.engine.rollout import prompts_from_examples
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.vllm_local import VLLMEngine
from mmrlhf.engine.vllm_requests import EngineError
from mmrlhf.records import InputError
from mmrlhf.training.ppo.engine import _start
from tests.helpers.stages import ppo_config


class FakeLLM:
    """Records what it is asked for, and answers every prompt with tokens 7 and 3."""

    def __init__(self, **options):
        self.options, self.calls, self.loaded = options, [], {}
        self.llm_engine = SimpleNamespace(add_lora=self._add, remove_lora=lambda number: self.loaded.pop(number))
        self.prompt_ids = None

    def _add(self, request):
        assert request.lora_int_id not in self.loaded and request.lora_name not in self.loaded.values()
        self.loaded[request.lora_int_id] = request.lora_name

    def generate(self, inputs, options, lora_request, use_tqdm):
        self.calls.append(("generate", inputs, options, lora_request))
        logprobs = [{7: SimpleNamespace(logprob=-0.5)}, {3: SimpleNamespace(logprob=-1.0)}]
        answer = SimpleNamespace(token_ids=[7, 3], logprobs=logprobs, finish_reason="stop")
        return [
            SimpleNamespace(prompt_token_ids=ids, outputs=[answer] * option.n)
            for ids, option in zip(self.prompt_ids, options, strict=True)
        ]

    def sleep(self, level):
        self.calls.append(("sleep", level))

    def wake_up(self):
        self.calls.append(("wake_up",))


@pytest.fixture
def engine(vlm, monkeypatch):
    """An engine on the stand-in."""
    package, lora = ModuleType("vllm"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = FakeLLM, SimpleNamespace
    lora.LoRARequest = lambda name, number, path: SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=path)
    for name, module in (("vllm", package), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", lora)):
        monkeypatch.setitem(sys.modules, name, module)
    return VLLMEngine.start(vlm, "policy-x", max_length=300, lora_rank=9, gpu_memory_utilization=0.2)


def test_it_starts_without_the_tower_of_a_family_that_needs_none(engine, vlm, monkeypatch, capsys):
    options = engine.llm.options
    assert options["limit_mm_per_prompt"] == {"image": 0} and options["enable_mm_embeds"]
    assert options["max_lora_rank"] == 16 and options["max_model_len"] == 300 and options["dtype"] == "float32"
    assert options["logprobs_mode"] == "processed_logprobs"
    monkeypatch.setattr(vllm_features, "NEEDS_TOWER", ("llava",))
    settings = {"max_length": 300, "lora_rank": 4, "gpu_memory_utilization": 0.2}
    assert "limit_mm_per_prompt" not in VLLMEngine.start(vlm, "p", **settings).llm.options
    monkeypatch.setattr(vllm_features, "FEATURE_LAYOUTS", {})
    assert "enable_mm_embeds" not in VLLMEngine.start(vlm, "p", **settings).llm.options
    assert "note: vLLM encodes pictures again, because it takes no features of llava" in capsys.readouterr().out


def test_it_gets_the_pixel_limits_of_the_trainer(engine, vlm, monkeypatch):
    """Without them, vLLM would make other tokens of a large picture than the trainer."""
    lora = {"layers.0.q_proj.lora_A.weight": torch.zeros(4, 32)}
    roles = SimpleNamespace(vlm=vlm, policy=SimpleNamespace(state_dict=lambda: lora))

    def options(**limits):
        return _start(ppo_config("m", None, Path("run"), rollout_engine="vllm", **limits), None, roles).llm.options

    assert "mm_processor_kwargs" not in options(max_pixels=7840)  # LLaVA's pictures have one size
    monkeypatch.setattr(vlm.model.config, "model_type", "qwen2_5_vl")
    assert options(min_pixels=784, max_pixels=7840)["mm_processor_kwargs"] == {"min_pixels": 784, "max_pixels": 7840}
    assert options(max_pixels=7840)["mm_processor_kwargs"] == {"max_pixels": 7840}
    assert "mm_processor_kwargs" not in options()


def test_a_version_has_a_new_name_and_id_and_the_old_one_is_removed(engine, vlm, examples, tmp_path):
    prompts = prompts_from_examples(vlm, examples[:2])
    engine.llm.prompt_ids = [prompt.token_ids.tolist() for prompt in prompts]
    for version in (0, 0, 1, 5):
        engine.set_policy(version, tmp_path / str(version))
        assert engine.llm.loaded == {version + 1: f"policy-x-v{version}"}
    sampled = engine.sample(prompts, 2, SamplingParams(4, seed=1))
    _, inputs, options, lora = engine.llm.calls[-1]
    assert lora.lora_name == "policy-x-v5" and lora.lora_path == str(tmp_path / "5")
    assert len({option.seed for option in options}) == 2 and all(type(token) is int for token in options[0].logit_bias)
    assert inputs[0]["multi_modal_uuids"] == {"image": [vlm.encoder.feature_key(prompts[0].images[0], 1)]}
    assert torch.equal(inputs[0]["multi_modal_data"]["image"][0], prompts[0].image_features[0].levels[0][0])
    assert inputs[0]["prompt_token_ids"].count(vlm.model.config.image_token_id) == 1  # vLLM expands it
    assert sampled.logps_NT.tolist() == [[-0.5, -1.0]] * 4 and sampled.entropy_NT.tolist() == [[0.5, 1.0]] * 4
    assert sampled.token_ids_NT.tolist() == [[7, 3]] * 4 and sampled.finished_N.all()
    engine.set_policy(6)
    engine.sample(prompts, 1, SamplingParams(4))
    assert engine.llm.calls[-1][3] is None and not engine.llm.loaded


def test_prompts_that_vllm_reads_otherwise_are_refused(engine, vlm, examples):
    prompts = prompts_from_examples(vlm, examples[:1])
    engine.llm.prompt_ids = [[1, 2, 3]]
    with pytest.raises(EngineError, match=f"vLLM reads row {prompts[0].id} as 3 tokens, which are not the"):
        engine.sample(prompts, 1, SamplingParams(4))


def test_memory_is_given_back_between_rollouts_on_a_gpu_only(engine, monkeypatch):
    engine.free()
    engine.wake()
    assert engine.llm.calls == []
    monkeypatch.setattr(type(engine.vlm), "device", torch.device("cuda"))
    engine.free()
    engine.wake()
    engine.wake()
    assert engine.llm.calls == [("sleep", 1), ("wake_up",)]


def test_a_missing_vllm_is_one_sentence(vlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"^rollout_engine vllm: vLLM does not load \(.*\): install it beside mmrlhf"):
        VLLMEngine.start(vlm, "p", max_length=300, lora_rank=4, gpu_memory_utilization=0.2)


def test_a_vllm_that_does_not_start_is_one_sentence(engine, vlm, monkeypatch):
    def start(**_):
        raise ValueError("Free memory on device (1.2/24 GiB) on startup is less than desired GPU memory utilization\nmore")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", start)
    with pytest.raises(EngineError, match=r"vLLM does not start \(ValueError: Free memory .* utilization\): change vllm_gpu_mem"):
        VLLMEngine.start(vlm, "p", max_length=300, lora_rank=4, gpu_memory_utilization=0.2)
