"""Roles on one base: switching changes only outputs, and gradients reach only active roles."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mmrlhf.engine.prefill import prefill
from mmrlhf.engine.rollout import prompts_from_examples
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.records import InputError


@pytest.fixture
def adapters(vlm):
    """Three adapters that change the base's outputs, each in a different way."""
    adapters = Adapters(vlm)
    for seed, name in enumerate(("policy", "value", "reward")):
        adapters.add(name, 4, 8, seed)
        with torch.no_grad():
            for parameter in adapters.parameters(name).values():
                parameter.add_(0.02 * (seed + 1))
    return adapters


def prompt_hidden_states(vlm, examples):
    return prefill(vlm, prompts_from_examples(vlm, examples[:2])).last_hidden_PD


def test_adapters_use_restores_base_and_touches_no_flag(adapters, examples, tiny_vlm_path):
    expected = prompt_hidden_states(load(tiny_vlm_path), examples)
    flags = {k: p.requires_grad for k, p in adapters.vlm.model.named_parameters()}
    outputs = {}
    for name in ("policy", "value", None):
        with adapters.use(name):
            outputs[name] = prompt_hidden_states(adapters.vlm, examples)
    assert flags == {k: p.requires_grad for k, p in adapters.vlm.model.named_parameters()}
    assert torch.equal(outputs[None], expected)
    assert not torch.allclose(outputs["policy"], expected, atol=1e-3)
    assert not torch.allclose(outputs["policy"], outputs["value"], atol=1e-3)


def test_adapters_are_in_the_language_model_only(adapters):
    names = [k for k, _ in adapters.vlm.model.named_parameters() if "lora_" in k]
    assert names and not [k for k in names if "vision" in k or "projector" in k]
    assert "vision" not in adapters.target_pattern()


def test_adapters_gradients_reach_only_active_roles(adapters, examples):
    policy, value = Role(adapters, "policy"), Role(adapters, "value", scalar_head(torch.ones(adapters.vlm.hidden_size)))
    with policy.active():
        policy_loss = prompt_hidden_states(adapters.vlm, examples).square().sum()
    with value.active():
        value_loss = value.head(prompt_hidden_states(adapters.vlm, examples)).sum()
    (policy_loss + value_loss).backward()
    trained = {k for k, p in adapters.vlm.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(".policy." in k for k in trained) and any(".value." in k for k in trained)
    assert all(".policy." in k or ".value." in k for k in trained)


def test_adapters_compute_in_the_bases_precision_and_train_in_float32(tiny_vlm_path, examples):
    vlm = load(tiny_vlm_path, "bfloat16")
    adapters = Adapters(vlm)
    adapters.add("policy", 4, 8, 0)
    saved_types = []

    def record(tensor):
        saved_types.append(tensor.dtype)
        return tensor

    layer = vlm.model.base_model.get_decoder().layers[0].self_attn.q_proj
    inputs = torch.randn(3, layer.in_features, dtype=torch.bfloat16)
    with adapters.use("policy"), torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        layer(inputs).sum().backward()
    assert saved_types and torch.float32 not in saved_types  # PEFT's own forward keeps float32 copies of the inputs
    parameters = adapters.parameters("policy").values()
    assert {p.dtype for p in parameters} == {torch.float32}
    assert {p.grad.dtype for p in parameters if p.grad is not None} == {torch.float32}


def test_adapters_save_writes_peft_format(adapters, examples, tmp_path, tiny_vlm_path):
    with adapters.use("policy"):
        expected = prompt_hidden_states(adapters.vlm, examples)
    adapters.save("policy", tmp_path)
    peft_model = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(tiny_vlm_path, dtype=torch.float32), str(tmp_path)
    ).eval()
    texts = [adapters.vlm.apply_chat_template(e.prompt, 1, generation_prompt=True) for e in examples[:2]]
    batch = adapters.vlm.processor(
        text=texts,
        images=[[open_image(e.images[0])] for e in examples[:2]],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    actual = peft_model.base_model.model.model(**batch).last_hidden_state[:, -1]
    assert torch.allclose(actual, expected, atol=1e-3)


def test_adapters_load_copies_reward_adapter_to_critic(adapters, examples, tmp_path):
    adapters.save("reward", tmp_path)
    adapters.load("critic", tmp_path, trainable=True)
    with adapters.use("reward"):
        expected = prompt_hidden_states(adapters.vlm, examples)
    with adapters.use("critic"):
        assert torch.equal(expected, prompt_hidden_states(adapters.vlm, examples))


def test_adapters_add_targets_the_named_layers(vlm, tmp_path):
    adapters = Adapters(vlm)
    adapters.add("policy", 4, 8, 0, "q_proj, v_proj")
    assert {k.split(".lora_")[0].rsplit(".", 1)[-1] for k in adapters.parameters("policy")} == {"q_proj", "v_proj"}
    adapters.add("all", 4, 8, 0)
    assert len(adapters.parameters("all")) > len(adapters.parameters("policy"))
    adapters.save("policy", tmp_path)
    adapters.load("again", tmp_path, trainable=False)
    assert len(adapters.parameters("again")) == len(adapters.parameters("policy"))
    with pytest.raises(InputError, match=r"lora_target_modules names q_prog: .* has down_proj, .*q_proj"):
        adapters.add("wrong", 4, 8, 0, "q_prog")


def test_adapters_load_refuses_another_shape(adapters, tmp_path, tiny_vlm_path):
    adapters.save("policy", tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({k: v for k, v in list(load_file(path).items())[1:]}, path)
    with pytest.raises(InputError, match="another base"):
        adapters.load("again", tmp_path, trainable=False)
    with pytest.raises(InputError, match="does not exist"):
        adapters.load("again2", tmp_path / "nothing", trainable=False)


def test_role_refuses_a_checkpoint_of_other_weights(adapters):
    role = Role(adapters, "policy")
    state = {name: tensor.clone() for name, tensor in role.state_dict().items()}
    first = next(iter(state))
    with pytest.raises(
        InputError, match=r"not of the weights that this run trains, .* is missing: remove the checkpoints folder"
    ):
        role.load_state_dict({name: tensor for name, tensor in state.items() if name != first})
    with pytest.raises(InputError, match=r"has the shape \(1,\)"):
        role.load_state_dict(state | {first: torch.zeros(1)})
    assert torch.equal(role.state_dict()[first], state[first])
