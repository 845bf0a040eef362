"""`load` refuses paths without a checkpoint; tests/test_refusals.py covers damaged checkpoints."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models import loading
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.finite import check_finite
from mmrlhf.models.loading import load
from mmrlhf.records import InputError, Message
from mmrlhf.rewards.checkpoint import template_fingerprint


def test_load_missing_model_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load(str(tmp_path))


def test_several_processes_load_a_base_in_turns(tiny_vlm_path, monkeypatch):
    turns = []

    def turn(name, dtype):
        turns.append(dtype)
        return contextlib.nullcontext()

    monkeypatch.setattr(loading, "loading_turn", turn)
    load(tiny_vlm_path, in_turns=True)
    assert turns == []  # there is one process
    monkeypatch.setattr(loading, "PartialState", lambda: SimpleNamespace(num_processes=2))
    load(tiny_vlm_path)  # one process, for itself
    load(tiny_vlm_path, "bfloat16", in_turns=True)
    assert turns == [torch.bfloat16]


def copy_model(tiny_vlm_path, directory):
    shutil.copytree(tiny_vlm_path, directory)
    return directory


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(tiny_vlm_path, tmp_path, value):
    model = copy_model(tiny_vlm_path, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    name = next(k for k in tensors if k.endswith("down_proj.weight"))
    tensors[name][1, 2] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model .* has values in .*down_proj\.weight that are not finite"):
        load(str(model))


def test_check_finite_accepts_a_sum_that_overflows():
    check_finite([("large", torch.full((4,), 3e38)), ("ids", torch.tensor([1]))], "it")
    with pytest.raises(InputError, match=r"^it has values in bad that are not finite"):
        check_finite([("bad", torch.tensor([3e38, 3e38, float("nan")]))], "it")


def test_adapter_that_is_not_finite_is_refused(vlm, tmp_path):
    adapters = Adapters(vlm)
    adapters.add("policy", 4, 16, 0)
    adapters.save("policy", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"adapter .* that are not finite"):
        adapters.load("again", tmp_path, trainable=False)


def test_logits_that_are_not_finite_are_refused(vlm, examples):
    with torch.no_grad():
        vlm.model.get_output_embeddings().weight[5] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(InputError, match="gives logits that are not finite"):
            sample_completions(vlm, prompts_from_examples(vlm, examples[:2]), 1, SamplingParams(4, temperature))


def test_template_in_the_tokenizers_settings_is_taken(tiny_vlm_path, tmp_path):
    model = copy_model(tiny_vlm_path, tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template"):
        load(str(model))
    settings = json.loads((model / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    vlm = load(str(model))
    assert vlm.apply_chat_template([Message("user", "Hi.")], 0, generation_prompt=True) == "User: Hi. Assistant:"
    assert template_fingerprint(vlm) == template_fingerprint(load(tiny_vlm_path))


@pytest.mark.parametrize("settings", ["[]", '{"processor_class": 7}', "{", '{"processor_class": "NoSuchProcessor"}'])
def test_broken_processor_settings_are_one_sentence(tiny_vlm_path, tmp_path, settings):
    model = copy_model(tiny_vlm_path, tmp_path / "model")
    (model / "processor_config.json").write_text(settings)
    with pytest.raises(InputError, match=r"^model "):
        load(str(model))


def test_pickled_weights_are_refused_with_the_way_out(tiny_vlm_path, tmp_path):
    copy_model(tiny_vlm_path, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"is a pickle \(pytorch_model.bin\), .* save it with save_pretrained"):
        load(str(tmp_path / "model"))


def test_named_templates_without_a_default_are_refused_by_their_names(tiny_vlm_path, tmp_path):
    copy_model(tiny_vlm_path, tmp_path / "model")
    template = (tmp_path / "model" / "chat_template.jinja").read_text()
    (tmp_path / "model" / "chat_template.jinja").unlink()
    path = tmp_path / "model" / "tokenizer_config.json"
    templates = [{"name": name, "template": template} for name in ("rag", "tool_use")]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": templates}))
    with pytest.raises(InputError, match=r"has chat templates for rag, tool_use and none named default: put a"):
        load(str(tmp_path / "model"))


def test_processor_without_a_patch_size_is_refused(tiny_vlm_path, tmp_path):
    copy_model(tiny_vlm_path, tmp_path / "model")
    path = tmp_path / "model" / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "patch_size": None}))
    with pytest.raises(InputError, match=r"its processor has no patch_size: add it to processor_config\.json"):
        load(str(tmp_path / "model"))
