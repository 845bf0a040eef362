"""Adapters in projector and vision tower: gradients, features by role, stages, files."""

import copy
import dataclasses
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmrlhf.config import SFTConfig
from mmrlhf.dpo import dpo
from mmrlhf.engine.prefill import prefill
from mmrlhf.engine.rollout import prompts_from_examples
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.export import save_checkpoint, save_policy
from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.models.lora_layers import PROJECTOR, VISION_TOWER, layers_by_part
from mmrlhf.models.policy import load_policy
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, InputError, Message
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.sft import sft
from mmrlhf.training.memory import estimate_memory
from mmrlhf.training.reward_model.measured_rows import to_answer_group
from tests.helpers.family_setup import FamilySetup, engine_run
from tests.helpers.runs import stopped_after
from tests.helpers.stages import dpo_config, ppo_config, reward_config
from tests.helpers.tiny_models import build_checkpoint

EVERYTHING = "all-linear,projector,vision_tower"
TARGETS = "q_proj,projector,vision_tower"


@pytest.fixture(params=["llava", "qwen2_5_vl", "idefics3", "qwen3_vl", "mllama"])
def family(request, tmp_path) -> FamilySetup:
    """A family with an adapter in all of its linear layers, which changes its outputs."""
    return FamilySetup(request.param, tmp_path / "checkpoint", target_modules=EVERYTHING)


def vision_parameters(adapters, name):
    layers = {layer for part in (PROJECTOR, VISION_TOWER) for layer in layers_by_part(adapters.vlm.model)[part]}
    return {k: p for k, p in adapters.parameters(name).items() if k.partition(".lora_")[0] in layers}


def peft_gradients(f: FamilySetup, directory) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Return log-probs and gradients as `engine_run` does, in plain transformers and PEFT."""
    f.adapters.save("policy", directory)
    base = AutoModelForImageTextToText.from_pretrained(f.directory, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(directory), is_trainable=True).eval().base_model.model
    plain = copy.copy(f)
    plain.vlm = dataclasses.replace(f.vlm, model=model)
    completions = f.completions()
    logps = [
        plain.naive_logps_and_values(int(p), token_ids[mask.bool()])[0]
        for p, token_ids, mask in zip(completions.prompt_index_N, completions.token_ids_NT, completions.mask_NT, strict=True)
    ]
    (sum(answer_logps.sum() for answer_logps in logps) / completions.mask_NT.sum()).backward()
    gradients = {k.replace(".default.", ".policy."): p.grad for k, p in model.named_parameters() if p.grad is not None}
    return [answer_logps.detach() for answer_logps in logps], gradients


# ---- gradients ---------------------------------------------------------------------------------


def test_gradients_are_those_of_plain_transformers_and_peft(family, tmp_path):
    """In one micro-batch and answer by answer; LLaVA's features skip its tower's last layer."""
    expected_logps, expected = peft_gradients(family, tmp_path / "adapter")
    for max_tokens in (100_000, 1):
        logps_NT, _, gradients = engine_run(family, max_tokens)
        for logps, row in zip(expected_logps, logps_NT, strict=True):
            assert torch.allclose(row[: len(logps)], logps, atol=1e-5)
        assert set(gradients) == set(expected)
        for name, gradient in expected.items():
            assert (gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    trained = {k for k in vision_parameters(family.adapters, "policy") if k in expected and expected[k].abs().max() > 0}
    assert {k.partition(".lora_")[2] for k in trained} == {"A.policy.weight", "B.policy.weight"}
    assert {part for part, layers in layers_by_part(family.vlm.model).items() if any(k.partition(".lora_")[0] in layers for k in trained)} == {PROJECTOR, VISION_TOWER}  # fmt: skip
    assert all(p.grad is None for p in family.vlm.model.parameters())
    assert family.vlm.engine.share_prefix == "on"


def test_gradient_is_the_slope_of_the_loss(tmp_path):
    """A small step along the gradient raises the mean log-prob by the gradient's norm."""
    f = FamilySetup("llava", tmp_path / "checkpoint", target_modules=EVERYTHING)
    parameters = vision_parameters(f.adapters, "policy")
    _, _, gradients = engine_run(f, 100_000)
    norm = torch.sqrt(sum(gradients[k].square().sum() for k in parameters if k in gradients))
    num_tokens, means, step = f.completions().mask_NT.sum(), [], 3e-3
    for sign in (1, -2):  # to one side, then to the other
        with torch.no_grad():
            for k in parameters.keys() & gradients.keys():
                parameters[k].add_(sign * step * gradients[k] / norm)
        means.append(float(engine_run(f, 100_000)[0].double().sum() / num_tokens))
    assert (means[0] - means[1]) / (2 * step) == pytest.approx(float(norm), rel=0.02)


@pytest.mark.parametrize("share_prefix", ["auto", "off"])
def test_projector_alone_trains_and_rows_without_images_do_not(tiny_vlm_path, examples, tmp_path, share_prefix):
    rows = [*examples[:2], *(Example(f"text-{i}", (), (Message("user", "Name a colour."),), "Red.") for i in range(2))]
    config = SFTConfig(
        model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path / "run"), learning_rate=1e-2, max_steps=4,
        per_device_train_batch_size=1, lora_target_modules="projector", lora_r=4, share_prefix=share_prefix,
    )  # fmt: skip
    trained = AutoModelForImageTextToText.from_pretrained(sft(config, rows))
    base = AutoModelForImageTextToText.from_pretrained(tiny_vlm_path)
    changed = {k for k, p in trained.named_parameters() if not torch.equal(p, dict(base.named_parameters())[k])}
    projector = {f"{name}.weight" for name in layers_by_part(base)[PROJECTOR]}
    assert changed == projector and projector
    norms = sorted(row["grad_norm"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "grad_norm" in row)
    assert norms[:2] == [0, 0] and norms[2] > 0


# ---- features by role --------------------------------------------------------------------------


def hidden_under(adapters, name, examples):
    with adapters.use(name), torch.no_grad():
        return prefill(adapters.vlm, prompts_from_examples(adapters.vlm, examples)).last_hidden_PD


def test_roles_have_features_of_their_own(vlm, tiny_vlm_path, examples):
    adapters, rows = Adapters(vlm), examples[:3]
    expected = hidden_under(Adapters(load(tiny_vlm_path)), None, rows)
    adapters.add("policy", 4, 8, 0, "projector,vision_tower")
    adapters.add("reward", 4, 8, 0)
    assert torch.equal(hidden_under(adapters, None, rows), expected)
    num_encodes = vlm.image_encodes
    assert torch.allclose(hidden_under(adapters, "policy", rows), expected, atol=1e-4)  # it starts as the base
    for parameter in vision_parameters(adapters, "policy").values():
        parameter.data += 0.05
    policy = hidden_under(adapters, "policy", rows)
    assert not torch.allclose(policy, expected, atol=1e-3)
    for parameter in vision_parameters(adapters, "policy").values():
        parameter.data += 0.05
    assert not torch.allclose(hidden_under(adapters, "policy", rows), policy, atol=1e-3)  # nothing of it is kept
    num_active = vlm.image_encodes - num_encodes
    assert num_active == 3 * len(rows)
    for name in ("reward", None):  # from the cache
        assert torch.allclose(hidden_under(adapters, name, rows), expected, atol=1e-4)
    assert vlm.image_encodes == num_encodes + num_active
    vlm.engine.share_prefix = "off"  # the naive path runs the tower on pixels
    with adapters.use("policy"):
        naive = prefill(vlm, prompts_from_examples(vlm, rows)).last_hidden_PD
    vlm.engine.share_prefix = "on"
    assert torch.allclose(hidden_under(adapters, "policy", rows), naive, atol=1e-4)


def test_an_image_is_encoded_once_in_a_micro_batch_and_its_pixels_are_kept(vlm, examples, monkeypatch):
    adapters, opened = Adapters(vlm), []
    adapters.add("policy", 4, 8, 0, "projector")
    vlm.engine.share_prefix = "on"
    monkeypatch.setattr("mmrlhf.models.vision_encoder.open_image", lambda source: opened.append(source) or open_image(source))
    for _ in range(2):
        hidden_under(adapters, "policy", [examples[0]] * 3 + [examples[1]])
    assert vlm.image_encodes == 4 and len(opened) == 2


# ---- stages ------------------------------------------------------------------------------------


def sft_config(model, output_dir, **settings):
    defaults = {"learning_rate": 1e-3, "lora_r": 4, "per_device_train_batch_size": 4, "max_steps": 3, "save_steps": 1}
    return SFTConfig(model_name_or_path=model, dataset_name="x", output_dir=str(output_dir), **{**defaults, **settings})


def save_checkpoint_of(path, directory):
    """Write a model's weights under the names that `sft` writes; return the file."""
    save_checkpoint(load(path), directory)
    return directory / "model.safetensors"


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "ppo"])
def test_stage_learns_and_resumes_bit_for_bit(stage, tiny_vlm_path, examples, pairs, tmp_path, capsys):
    """ppo also checks that the policy starts as the reference, and its first ratios."""

    def train(folder):
        common = {"lora_target_modules": TARGETS, "save_steps": 1, "max_steps": 3}
        if stage == "sft":
            return sft(sft_config(tiny_vlm_path, folder, **common), examples)
        if stage == "dpo":
            return dpo(dpo_config(tiny_vlm_path, folder, **common), pairs)
        if stage == "reward":
            settings = common | {"per_device_train_batch_size": 2}
            return train_reward_model(reward_config(tiny_vlm_path, folder, **settings), pairs[:4], pairs[:4])
        config = ppo_config(tiny_vlm_path, None, folder, reward_terms="length=1, question_mark=1", **common)
        return ppo(config, examples)

    whole = train(tmp_path / "whole")
    assert "projector" in capsys.readouterr().out
    with stopped_after(2):
        train(tmp_path / "stopped")
    resumed = train(tmp_path / "stopped")
    (whole_file,), (resumed_file,) = (sorted(folder.glob("*model.safetensors")) for folder in (whole, resumed))
    tensors, resumed_tensors = load_file(whole_file), load_file(resumed_file)
    assert all(torch.equal(tensor, resumed_tensors[k]) for k, tensor in tensors.items())
    if stage == "sft":
        base = load_file(save_checkpoint_of(tiny_vlm_path, tmp_path / "base"))
        changed = {k for k, tensor in tensors.items() if not torch.equal(tensor, base[k].float())}
    else:
        changed = {k for k, tensor in tensors.items() if "lora_B" in k and tensor.abs().max() > 0}
    assert {part for part in ("q_proj", "multi_modal_projector", "vision") if any(part in k for k in changed)} == {
        "q_proj", "multi_modal_projector", "vision",
    }  # fmt: skip


def test_reward_model_on_a_policys_base_reads_features_of_its_own(tiny_vlm_path, pairs, examples, tmp_path):
    path = train_reward_model(reward_config(tiny_vlm_path, tmp_path / "reward", lora_target_modules=TARGETS), pairs, pairs)
    alone = load_reward_model(str(path))
    adapters = Adapters(load(tiny_vlm_path))
    beside = load_reward_model(str(path), adapters)
    assert beside.role.adapters is adapters
    adapters.add("policy", 4, 8, 0)
    groups = [to_answer_group(pair) for pair in pairs[:3]]
    assert torch.allclose(torch.tensor(beside.score(groups)), torch.tensor(alone.score(groups)), atol=1e-4)
    config = ppo_config(tiny_vlm_path, path, tmp_path / "ppo", max_steps=1)  # a policy without vision layers
    ppo(config, examples)
    last = read_jsonl(tmp_path / "ppo" / "metrics.jsonl")[-1]
    assert abs(last["objective/kl"]) < 1e-4 and abs(last["val/ratio_first"] - 1) < 1e-4


# ---- files -------------------------------------------------------------------------------------


@torch.no_grad()
def image_logits(model, vlm, example):
    text = vlm.apply_chat_template(example.prompt, 1, generation_prompt=True)
    batch = vlm.processor(text=[text], images=[[open_image(example.images[0])]], return_tensors="pt")
    return model.eval()(**batch).logits


def test_policy_folder_loads_in_plain_peft_with_equal_logits(tiny_vlm_path, examples, tmp_path):
    adapters = Adapters(load(tiny_vlm_path))
    adapters.add("policy", 4, 8, 0, TARGETS)
    for parameter in adapters.parameters("policy").values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    save_policy(adapters, "policy", tmp_path / "policy")
    with adapters.use("policy"):
        expected = image_logits(adapters.vlm.model, adapters.vlm, examples[0])
    with adapters.use(None):
        assert (image_logits(adapters.vlm.model, adapters.vlm, examples[0]) - expected).abs().max() > 0.05
    base = AutoModelForImageTextToText.from_pretrained(tiny_vlm_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(tmp_path / "policy"))
    assert {k for k, _ in model.named_parameters() if ".lora_" in k} == {
        "base_model.model." + k.replace(".policy.", ".default.") for k in adapters.parameters("policy")
    }
    assert (image_logits(model, adapters.vlm, examples[0]) - expected).abs().max() < 1e-5
    # The engine's own features under the loaded adapter, and the pattern in its configuration
    hidden = hidden_under(adapters, "policy", examples[:2])
    with load_policy(tiny_vlm_path, str(tmp_path / "policy")) as vlm:
        again = prefill(vlm, prompts_from_examples(vlm, examples[:2])).last_hidden_PD
    assert torch.allclose(hidden, again, atol=1e-5)
    assert r"\d+" in json.loads((tmp_path / "policy" / "adapter_config.json").read_text())["target_modules"]


def test_foreign_adapter_of_the_tower_has_the_logits_of_peft(tmp_path, examples):
    """PEFT's suffixes `q_proj` and `linear_1` also name layers of LLaVA's tower and projector."""
    build_checkpoint("llava", tmp_path / "base")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype=torch.float32)
    torch.manual_seed(1)
    foreign = get_peft_model(base, LoraConfig(init_lora_weights=False, r=4, target_modules=["q_proj", "linear_1"]))
    foreign.save_pretrained(tmp_path / "adapter")
    with load_policy(str(tmp_path / "base"), str(tmp_path / "adapter")) as vlm:
        assert {k for k, _ in vlm.model.named_parameters() if "vision_tower" in k and "lora_" in k}
        expected, own = (image_logits(model, vlm, examples[0]) for model in (foreign, vlm.model))
        assert (own - expected).abs().max() < 1e-5
        (prompt,) = prompts_from_examples(vlm, examples[:1])
        engine = vlm.model.get_output_embeddings()(prefill(vlm, [prompt]).last_hidden_PD)
    assert (engine - expected[:, -1]).abs().max() < 1e-4


def test_words_of_lora_target_modules(tmp_path):
    build_checkpoint("gemma3", tmp_path / "gemma3")  # its projector is a matrix outside a linear layer
    adapters = Adapters(load(str(tmp_path / "gemma3")))
    with pytest.raises(InputError, match=r"lora_target_modules names projector, and that of \S+ has no linear layer"):
        adapters.add("policy", 4, 8, 0, "all-linear,projector")
    with pytest.raises(InputError, match=r"names fc1: \S+ has down_proj, .*all-linear, projector, vision_tower"):
        adapters.add("policy", 4, 8, 0, "fc1")
    adapters.add("policy", 4, 8, 0, "vision_tower")
    assert all("vision_tower" in k for k in adapters.parameters("policy"))


def test_plan_counts_adapters_and_activations_of_the_tower(tmp_path):
    """LLaVA's tower: 2 layers of width 32 with 4 layers of 32 x 32 and 2 of 32 x 64; 16 patches."""
    build_checkpoint("llava", tmp_path / "llava")
    model = load(str(tmp_path / "llava")).model

    def items(targets):
        config = sft_config(str(tmp_path / "llava"), "-", lora_target_modules=targets, per_device_train_batch_size=3)
        return {item.name: item.num_bytes for item in estimate_memory(config, model)}

    without, with_tower = items("q_proj"), items("q_proj,vision_tower")
    per_layer = 4 * (32 + 32) + 2 * (32 + 64)
    assert with_tower["adapters"] - without["adapters"] == 2 * per_layer * 4 * 4
    assert with_tower["vision activations"] == 3 * 16 * 2 * per_layer * 4 and "vision activations" not in without
