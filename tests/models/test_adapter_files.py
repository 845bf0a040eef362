"""Adapters that others made: outputs are those of PEFT, or the setting is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mmrlhf.models.adapters import Adapters
from mmrlhf.models.loading import load
from mmrlhf.models.policy import load_policy
from mmrlhf.records import InputError
from tests.helpers.tiny_models import build_checkpoint

TOKEN_IDS = torch.tensor([[5, 9, 12, 30, 7, 21, 40, 11]])
LANGUAGE = r"model\.language_model\..*\."


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny LLaVA, whose vision tower has layers of the same names as its language model."""
    path = tmp_path_factory.mktemp("base")
    build_checkpoint("llava", path)
    return path


def plain_model(base: Path) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)


def save_foreign(base: Path, directory: Path, **settings: object) -> None:
    """Save an adapter with random weights as a PEFT script would."""
    settings = {"target_modules": LANGUAGE + "(q_proj|v_proj|down_proj)", "r": 4, "lora_alpha": 16, **settings}
    torch.manual_seed(1)
    model = get_peft_model(plain_model(base), LoraConfig(init_lora_weights=False, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1.3)
    model.save_pretrained(directory)


def peft_logits(base: Path, directory: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(plain_model(base), directory).eval()
    with torch.no_grad():
        return model(input_ids=TOKEN_IDS).logits


def own_logits(base: Path, directory: Path) -> torch.Tensor:
    with load_policy(str(base), str(directory)) as vlm, torch.no_grad():
        return vlm.model(input_ids=TOKEN_IDS).logits


def edit_config(directory: Path, **settings: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rename_tensors(directory: Path, old: str, new: str) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    assert any(old in key for key in tensors)
    save_file({key.replace(old, new): tensor for key, tensor in tensors.items()}, path)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 64, r"layers\.1\.mlp\.down_proj": 2}},
        {"alpha_pattern": {r".*\.layers\.\d+\.self_attn\.(?:q_proj|v_proj)": 64, "^model.*(0|1)[.]mlp.down_proj$": 2}},
        {"rank_pattern": {"v_proj": 2, r"model.language_model.layers.0.self_attn.q_proj": 7}},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 1}, "use_rslora": True},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 2}},
        {"lora_bias": True},
        {"lora_dropout": 0.5},
        {"bias": "lora_only"},  # the adapted layers have none
        {"layers_to_transform": [0, 2], "layers_pattern": "layers", "target_modules": ["o_proj", "up_proj"]},
        {"exclude_modules": r".*layers\.1\..*"},
        {"lora_alpha": 0.5},
    ],
    ids=lambda settings: ",".join(settings) or "plain",
)
def test_foreign_adapter_has_the_logits_of_peft(base, tmp_path, settings):
    if isinstance(settings.get("target_modules"), list):  # PEFT would take the vision tower's layers too
        settings = settings | {"exclude_modules": ".*vision.*"}
    save_foreign(base, tmp_path / "adapter", **settings)
    expected = peft_logits(base, tmp_path / "adapter")
    with torch.no_grad():
        assert (expected - plain_model(base).eval()(input_ids=TOKEN_IDS).logits).abs().max() > 0.05  # it does something
    assert (own_logits(base, tmp_path / "adapter") - expected).abs().max() < 1e-5
    # Saved again, it is still the same adapter, to PEFT and to transformers.
    vlm = load(str(base))
    adapters = Adapters(vlm)
    adapters.load("policy", tmp_path / "adapter", trainable=True)
    adapters.save("policy", tmp_path / "again")
    assert (peft_logits(base, tmp_path / "again") - expected).abs().max() < 1e-5
    with torch.no_grad():
        assert (plain_model(tmp_path / "again").eval()(input_ids=TOKEN_IDS).logits - expected).abs().max() < 1e-5
    if settings.get("lora_bias"):  # PEFT merges it into layers with a bias only
        return
    assert adapters.peft_model is not None
    with torch.no_grad():
        merged = adapters.peft_model.merge_and_unload()(input_ids=TOKEN_IDS).logits
    assert (merged - expected).abs().max() < 1e-4


def test_adapters_of_several_kinds_share_one_base(base, tmp_path):
    for name, settings in {"dora": {"use_dora": True}, "rslora": {"use_rslora": True, "r": 2}}.items():
        save_foreign(base, tmp_path / name, **settings)
    adapters = Adapters(load(str(base)))
    adapters.add("own", 3, 6, 0)
    for name in ("dora", "rslora"):
        adapters.load(name, tmp_path / name, trainable=False)
    for name in ("dora", "rslora"):
        with adapters.use(name), torch.no_grad():
            logits = adapters.vlm.model(input_ids=TOKEN_IDS).logits
        assert (logits - peft_logits(base, tmp_path / name)).abs().max() < 1e-5
    with adapters.use(None), torch.no_grad():
        assert torch.equal(adapters.vlm.model(input_ids=TOKEN_IDS).logits, load(str(base)).model(input_ids=TOKEN_IDS).logits)


@pytest.mark.parametrize("old_prefix", ["language_model.model.", "language_model.", "model."])
def test_adapter_with_names_of_earlier_transformers_is_the_same(base, tmp_path, old_prefix):
    save_foreign(base, tmp_path, alpha_pattern={"model.language_model.layers.0.self_attn.q_proj": 64})
    expected = own_logits(base, tmp_path)
    rename_tensors(tmp_path, "model.language_model.", old_prefix)
    edit_config(tmp_path, alpha_pattern={f"{old_prefix}layers.0.self_attn.q_proj": 64}, target_modules=["q_proj"])
    assert torch.equal(own_logits(base, tmp_path), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 10**9}, r"has rank 1000000000 and its tensors have 4"),
        ({"r": 0}, r"has r 0, which must be a rank"),
        ({"r": "8"}, r"has r 8, which must be a rank"),
        ({"rank_pattern": {"q_proj": -1}}, r"has r -1, which must be a rank"),
        ({"rank_pattern": [1]}, r"has a rank_pattern that is not an object"),
        ({"lora_alpha": float("nan")}, r"has lora_alpha nan, which must be a finite number"),
        ({"lora_alpha": float("inf")}, r"has lora_alpha inf, which must be a finite number"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, r"has lora_alpha nan, which must be a finite number"),
        ({"alpha_pattern": {"(": 2}}, r"has \( in alpha_pattern, which is not a usable expression: name the layers"),
        ({"rank_pattern": {r"(\w+)+!": 2}}, r"in rank_pattern, which is not a usable expression"),
        ({"rank_pattern": {"(?:[a-z]|[a-z_.0-9]|[a-z][a-z])+!": 2}}, r"in rank_pattern, which is not a usable expression"),
        ({"rank_pattern": {"(.|.)" * 40 + "!": 2}}, r"in rank_pattern, which is not a usable expression"),
        ({"rank_pattern": {"(m|m)(o|o)(d|d)(e|e)!": 2}}, r"in rank_pattern, which is not a usable expression"),
        ({"alpha_pattern": {".*.*.*.*.*!": 2}}, r"in alpha_pattern, which is not a usable expression"),
        ({"use_rslora": "yes"}, r"has use_rslora yes, which must be true or false"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save \['lm_head'\], which is not supported"),
        ({"trainable_token_indices": [1, 2]}, r"has trainable_token_indices \[1, 2\], which is not supported"),
        ({"layer_replication": [[0, 2]]}, r"has layer_replication"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, r"has target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, r"has init_lora_weights pissa_niter_4, which changes the base"),
        ({"a_setting_of_the_future": True}, r"has a_setting_of_the_future True, which is not supported"),
        ({"peft_type": "LOHA"}, r"has the peft_type LOHA: only LORA"),
        ({"peft_type": None}, r"has the peft_type None: only LORA"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_foreign_adapter_is_refused_by_the_setting(base, tmp_path, settings, message):
    save_foreign(base, tmp_path)
    edit_config(tmp_path, **settings)
    with pytest.raises(InputError, match=message) as error:
        own_logits(base, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"r": 8', "\x00", " " * 10_000_001], ids=range(6))
def test_foreign_adapter_with_damaged_configuration_gets_one_sentence(base, tmp_path, content):
    save_foreign(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match=r"adapter_config\.json cannot be read") as error:
        own_logits(base, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("lm_head|" + LANGUAGE + "q_proj", r"adapts lm_head\S*, and only linear layers inside the model"),
        (r".*embed_tokens", r"embed_tokens\S*, and only linear layers inside the model"),
    ],
    ids=["head", "embedding"],
)
def test_foreign_adapter_is_refused_by_the_layer(base, tmp_path, targets, message):
    save_foreign(base, tmp_path, target_modules=targets)
    with pytest.raises(InputError, match=message):
        own_logits(base, tmp_path)


def test_foreign_adapter_of_vision_layers_that_are_not_there_is_refused(base, tmp_path):
    save_foreign(base, tmp_path, target_modules=["q_proj"])
    rename_tensors(tmp_path, "vision_tower.encoder", "vision_tower.vision_model.encoder")
    with pytest.raises(
        InputError, match=r"adapts \S+vision_model\S+, and the vision tower and the projector of \S+ have no such"
    ):
        own_logits(base, tmp_path)


def test_foreign_adapter_of_another_kind_or_file_is_refused(base, tmp_path):
    save_foreign(base, tmp_path / "biases", bias="all")
    with pytest.raises(InputError, match="has bias all and biases of the base, which all roles share"):
        own_logits(base, tmp_path / "biases")
    ia3 = get_peft_model(plain_model(base), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    ia3.save_pretrained(tmp_path / "ia3")
    with pytest.raises(InputError, match="has the peft_type IA3"):
        own_logits(base, tmp_path / "ia3")
    save_foreign(base, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    save_file(tensors | {first: torch.full_like(tensors[first], float("nan"))}, weights)
    with pytest.raises(InputError, match="that are not finite"):
        own_logits(base, tmp_path / "adapter")
    save_file({"base_model.model.model.norm.weight": torch.ones(2)}, weights)
    with pytest.raises(InputError, match=r"holds model\.norm\.weight, which is no LoRA tensor"):
        own_logits(base, tmp_path / "adapter")
    save_file({}, weights)
    with pytest.raises(InputError, match="holds no LoRA tensors"):
        own_logits(base, tmp_path / "adapter")
    weights.write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be loaded"):
        own_logits(base, tmp_path / "adapter")
    weights.rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(InputError, match=r"is a pickle \(adapter_model.bin\)"):
        own_logits(base, tmp_path / "adapter")


@pytest.mark.parametrize(("old", "new"), [(".weight", ".default.weight"), ("lora_A", "lora_down")])
def test_foreign_adapter_with_tensors_of_other_names_is_refused_by_one_of_them(base, tmp_path, old, new):
    save_foreign(base, tmp_path)
    rename_tensors(tmp_path, old, new)
    with pytest.raises(InputError, match=rf"holds base_model\S*{new}\S* \(torch.float32\), which is not how PEFT writes it"):
        own_logits(base, tmp_path)


def test_foreign_adapter_of_whole_numbers_or_without_a_tensor_is_refused(base, tmp_path):
    save_foreign(base, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key: tensor.to(torch.int8) for key, tensor in tensors.items()}, weights)
    with pytest.raises(InputError, match=r"\(torch.int8\), which is not how PEFT writes it"):
        own_logits(base, tmp_path)
    lacking = sorted(key for key in tensors if "lora_B" in key)[0]
    save_file({key: tensor for key, tensor in tensors.items() if key != lacking}, weights)
    with pytest.raises(InputError, match=r"lacks 1 of its tensors, base_model\S*lora_B\.weight first: copy it again"):
        own_logits(base, tmp_path)
