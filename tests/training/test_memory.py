"""Memory estimates, checked by hand and, for the recipes' real models, on the meta device."""

import dataclasses
import json
import re

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from mmrlhf.cli import main
from mmrlhf.commands.plan import print_memory_estimate
from mmrlhf.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig, loader
from mmrlhf.dpo import check_recipe
from mmrlhf.files.bundled import folder
from mmrlhf.reward_model import check_config as check_reward_config
from mmrlhf.training.memory import NF4_BYTES_PER_WEIGHT, build_meta_model, estimate_memory, num_image_tokens
from mmrlhf.training.ppo.settings import check_settings
from tests.helpers.tiny_models import build_checkpoint

CONFIGS = folder("configs")
MODELS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "demo")
SHARDS = {"8x80gb": 8, "2x8x80gb": 16}
"""Processes that split the base, by recipe."""
QWEN = {
    "qwen2.5-vl-3b": (2048, 11008, 36, 16, 2, 151936, 3420, 3.75e9),
    "1x24gb": (3584, 18944, 28, 28, 4, 152064, 3420, 8.29e9),
    "1x80gb": (3584, 18944, 28, 28, 4, 152064, 3420, 8.29e9),
    "8x80gb": (5120, 27648, 64, 40, 8, 152064, 3456, 33.5e9),
    "2x8x80gb": (8192, 29568, 80, 64, 8, 152064, 3456, 73.4e9),
}
"""Sizes of Qwen2.5-VL by recipe: width, MLP width, layers, heads, KV heads, vocabulary, MLP width
of the vision tower, and weights."""
RECIPES = sorted((name, path.stem) for name in MODELS for path in (CONFIGS / name).glob("*.yaml"))
STAGES = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig, "ddpo": DPOConfig, "ppo": PPOConfig, "grpo": PPOConfig}
CHECKS = {RewardConfig: check_reward_config, DPOConfig: check_recipe, PPOConfig: check_settings}
"""What a stage itself refuses in its settings, before it loads anything."""


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory):
    """A LLaVA of width 64: 4 layers, MLP width 128, 2 KV heads of 16, 16 image tokens."""
    path = tmp_path_factory.mktemp("plan") / "llava"
    build_checkpoint("llava", path)
    return str(path)


def ppo_config(model, **settings):
    return PPOConfig(model_name_or_path=model, dataset_name="-", output_dir="-", reward_model_path="-", **settings)


def estimated_bytes(config, model):
    return {item.name: item.num_bytes for item in estimate_memory(config, model)}


def test_estimate_memory_terms_match_hand_computation(tiny_llava):
    model = build_meta_model(tiny_llava)
    estimate = estimated_bytes(
        ppo_config(
            tiny_llava,
            lora_r=4,
            lora_target_modules="q_proj",
            num_generations=4,
            response_length=10,
            per_device_train_batch_size=2,
        ),
        model,
    )
    real = hf.AutoModelForImageTextToText.from_pretrained(tiny_llava)
    assert estimate["base weights"] == 4 * sum(p.numel() for p in real.parameters())
    # q_proj is 64 -> 64 in 4 layers: (64 + 64) x rank 4 x 4 layers = 2,048 weights per adapter.
    # Three adapters in float32, two of them train.
    assert estimate["adapters"] == 2048 * 4 * 3 and estimate["gradients and AdamW"] == 2048 * 2 * 12
    # Two prompts with an image of 16 tokens of 64 float32 values each.
    assert num_image_tokens(model) == 16 and estimate["image features of a step"] == 2 * 16 * 64 * 4
    # Keys and values: 2 x 4 layers x 2 heads x 16 x 4 bytes = 1,024 per token; two prompts of
    # 16 + 128 tokens, eight answers of 10 with a copy of their prompt's.
    assert estimate["keys and values"] == (2 * 144 + 8 * 154) * 1024
    # 2 x 144 + 8 x 10 = 368 tokens, 4 layers, 8 x 64 + 2 x 32 + 4 x 128 = 1,088 values.
    assert estimate["activations"] == 368 * 4 * 1088 * 4


def test_estimate_memory_each_field_moves_its_term(tiny_llava):
    model, base = build_meta_model(tiny_llava), ppo_config(tiny_llava, num_generations=4, response_length=64)
    before = estimated_bytes(base, model)

    def after(**changed):
        return estimated_bytes(dataclasses.replace(base, **changed), model)

    assert after(dtype="bfloat16")["base weights"] == before["base weights"] / 2
    assert after(lora_r=32)["adapters"] == 2 * before["adapters"]
    assert after(advantage_estimator="grpo")["gradients and AdamW"] == before["gradients and AdamW"] / 2
    assert after(activation_checkpointing=True)["activations"] < before["activations"]
    assert after(micro_batch_tokens=500)["activations"] < before["activations"]
    assert after(response_length=128)["keys and values"] > before["keys and values"]
    assert after(feature_memory_gib=1e-6)["image features of a step"] < before["image features of a step"]
    linear = sum(m.weight.numel() for m in model.base_model.get_decoder().modules() if isinstance(m, torch.nn.Linear))
    assert after(dtype="nf4")["base weights"] == pytest.approx(
        before["base weights"] / 2 - linear * (2 - NF4_BYTES_PER_WEIGHT), abs=1
    )
    full = SFTConfig(model_name_or_path=tiny_llava, dataset_name="-", output_dir="-", tuning="full")
    assert (
        "adapters" not in estimated_bytes(full, model)
        and estimated_bytes(full, model)["gradients and AdamW"] > before["gradients and AdamW"]
    )


@pytest.mark.parametrize("config_class", [SFTConfig, RewardConfig])
def test_estimate_memory_with_full_tuning_trains_the_language_model(tiny_llava, config_class):
    model = build_meta_model(tiny_llava)
    config = config_class(model_name_or_path=tiny_llava, dataset_name="-", output_dir="-", tuning="full")
    estimate = estimated_bytes(config, model)
    trained = {*model.base_model.get_decoder().parameters(), *model.get_output_embeddings().parameters()}
    assert "adapters" not in estimate
    assert estimate["gradients and AdamW"] == 12 * sum(p.numel() for p in trained)


def test_estimate_memory_command_prints_a_table(tiny_llava, capsys):
    assert main(["plan", "ppo", "--model_name_or_path", tiny_llava]) == 0
    printed = capsys.readouterr().out
    assert "base weights" in printed and "total" in printed and "fits: main memory" in printed


def test_estimate_memory_command_takes_stage_from_recipe(tiny_llava, tmp_path, capsys):
    (tmp_path / "ppo.yaml").write_text(f"model_name_or_path: {tiny_llava}\nnum_generations: 2\n")
    assert main(["plan", str(tmp_path / "ppo.yaml")]) == 0
    assert "policy, value, reward" in " ".join(capsys.readouterr().out.split())
    assert main(["plan", "llava-1.5-7b/ppo", "--model_name_or_path", tiny_llava]) == 0


def test_estimate_memory_counts_every_reward_model(tiny_llava, tmp_path):
    """Reward models on the policy's base are adapters; a separate base is counted in full."""
    one = estimated_bytes(ppo_config(tiny_llava), build_meta_model(tiny_llava))
    two = estimated_bytes(dataclasses.replace(ppo_config(tiny_llava), reward_model_path="a, b"), build_meta_model(tiny_llava))
    assert two["adapters"] == one["adapters"] / 3 * 4
    build_checkpoint("qwen2_5_vl", tmp_path / "base")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "reward.json").write_text(json.dumps({"base": str(tmp_path / "base"), "dtype": "float32"}))
    other = estimated_bytes(
        dataclasses.replace(ppo_config(tiny_llava), reward_model_path=str(tmp_path / "r")), build_meta_model(tiny_llava)
    )
    weights = sum(p.numel() for p in hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "base").parameters())
    assert other[f"base of {tmp_path / 'r'}"] == 4 * weights and other["adapters"] == one["adapters"] / 3 * 2


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "internvl"])
def test_num_image_tokens_are_those_of_the_most_tiles(tmp_path, family):
    build_checkpoint(family, tmp_path)
    processor = hf.AutoProcessor.from_pretrained(tmp_path)
    processor.image_processor.max_patches = 12  # internvl's default
    sides = range(20, 400, 20)
    counts = processor._get_num_multimodal_tokens([[h, w] for h in sides for w in sides])["num_image_tokens"]
    assert 0 <= num_image_tokens(build_meta_model(str(tmp_path))) - (max(counts) - (2 if family == "internvl" else 0)) <= 4


@pytest.mark.parametrize(("name", "side"), [("qwen2.5-vl-3b", 28), ("qwen3-vl-4b", 32)])
def test_num_image_tokens_follow_max_pixels_where_an_image_is_not_resized_to_one_size(name, side):
    """A token is 2 x 2 patches of 14 or 16 pixels: 28 x 28 = 784 pixels, or 32 x 32 = 1,024."""
    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(published_architecture(name)[0])
    assert num_image_tokens(model, 1280 * side**2) == num_image_tokens(model, 1281 * side**2 - 1) == 1280
    assert num_image_tokens(model) == 1024
    config = DPOConfig(model_name_or_path="-", dataset_name="-", output_dir="-", max_pixels=1280 * side**2)
    width = model.config.get_text_config().hidden_size
    batch_size = config.per_device_train_batch_size
    assert estimated_bytes(config, model)["image features of a step"] == batch_size * 1280 * width * 4


def test_estimate_memory_counts_the_adapters_that_a_run_loads(tiny_llava, tmp_path):
    """An adapter at adapter_path has its own rank, and stays as the reference."""
    model = build_meta_model(tiny_llava)
    base = ppo_config(tiny_llava, lora_r=4, lora_target_modules="q_proj")
    (tmp_path / "adapter").mkdir()
    save_file({"A": torch.zeros(8, 64), "B": torch.zeros(64, 8)}, tmp_path / "adapter" / "adapter_model.safetensors")

    def adapters(config, **changed):
        return estimated_bytes(dataclasses.replace(config, **changed), model)["adapters"] // 4

    new, loaded, path = 2048, 1024, str(tmp_path / "adapter")
    assert adapters(base) == 3 * new  # policy, value and reward
    assert adapters(base, reward_terms="length=1") == 2 * new
    assert adapters(base, adapter_path=path) == 2 * loaded + 2 * new  # and reference
    assert adapters(base, reward_model_path=path) == new + 2 * loaded
    dpo = DPOConfig(model_name_or_path=tiny_llava, dataset_name="-", output_dir="-", lora_r=4, lora_target_modules="q_proj")
    assert adapters(dpo) == new and adapters(dpo, adapter_path=path) == 2 * loaded


def test_estimate_memory_counts_a_separate_base_in_4_bits_like_the_policys(tiny_llava, tmp_path):
    (tmp_path / "reward.json").write_text(json.dumps({"base": tiny_llava, "dtype": "nf4"}))
    config = ppo_config(tiny_llava, dtype="nf4")
    own = estimated_bytes(config, build_meta_model(tiny_llava))["base weights"]
    separate = dataclasses.replace(config, dtype="bfloat16", reward_model_path=str(tmp_path))
    assert estimated_bytes(separate, build_meta_model(tiny_llava))[f"base of {tmp_path}"] == own


def test_estimate_memory_counts_the_logits_of_many_answers(tiny_llava):
    """All answers of a step of sampling have float32 logits, and three tensors of that size."""
    model = build_meta_model(tiny_llava)
    model.config.get_text_config().vocab_size = 1 << 20
    config = ppo_config(tiny_llava, num_generations=64, response_length=8, per_device_train_batch_size=2, micro_batch_tokens=9999)
    assert estimated_bytes(config, model)["logits"] == 4 * 4 * 128 << 20


def test_estimate_memory_command_refuses_what_cannot_be_planned(tmp_path, capsys):
    assert main(["plan", "ppo", "--model_name_or_path", str(tmp_path)]) == 2
    assert "its architecture cannot be read" in capsys.readouterr().err
    assert main(["plan", "pppo"]) == 2 and "needs a stage (sft, reward, dpo, ppo) or a recipe" in capsys.readouterr().err


# ---- recipes -------------------------------------------------------------------------------------


def published_architecture(name):
    """Return the configuration of a recipe's model, as in its config.json, and its size."""
    vicuna = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32064,
    }
    clip = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    }
    siglip = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896,
              "patch_size": 14, "vision_use_head": False}  # fmt: skip
    if name in ("llava-1.5-7b", "llava-rlhf"):
        return hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**clip), text_config=hf.LlamaConfig(**vicuna), image_seq_length=576
        ), 7.06e9
    if name in QWEN:
        width, mlp_width, layers, heads, kv_heads, vocabulary, vision_mlp_width, weights = QWEN[name]
        is_tied = name == "qwen2.5-vl-3b"
        text = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": mlp_width, "num_hidden_layers": layers,
                "num_attention_heads": heads, "num_key_value_heads": kv_heads, "tie_word_embeddings": is_tied}  # fmt: skip
        vision = {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": vision_mlp_width,
            "num_heads": 16,
            "out_hidden_size": width,
        }
        return hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=is_tied), weights
    if name == "qwen3-vl-4b":
        text = {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}  # fmt: skip
        vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
                  "deepstack_visual_indexes": [5, 11, 17]}  # fmt: skip
        return hf.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True), 4.44e9
    if name == "smolvlm-256m":
        text = {"vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3, "head_dim": 64}  # fmt: skip
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512,
                  "patch_size": 16}  # fmt: skip
        return hf.Idefics3Config(text_config=hf.LlamaConfig(**text), vision_config=vision, scale_factor=4), 256e6
    text = {"vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256}  # fmt: skip
    return hf.Gemma3Config(text_config=hf.Gemma3TextConfig(**text), vision_config=siglip, mm_tokens_per_image=256), 4.3e9


@pytest.mark.parametrize("name", MODELS)
def test_recipe_model_has_the_published_size(name):
    settings, weights = published_architecture(name)
    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(settings)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(weights, rel=0.03)


@pytest.mark.parametrize(("name", "stage"), RECIPES)
def test_recipe_loads_and_its_model_can_be_planned(name, stage):
    settings, weights = published_architecture(name)
    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(settings)
    cls = STAGES[stage]
    dummies = {n: "-" for n, f in loader.config_fields(cls).items() if f.is_required and n != "model_name_or_path"}
    config = loader.load_config(cls, CONFIGS / name / f"{stage}.yaml", dummies)
    if check := CHECKS.get(cls):
        check(config)
    estimate = estimated_bytes(config, model)
    decoder = model.base_model.get_decoder()
    linear = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, torch.nn.Linear))
    expected = 2 * weights - (linear * (2 - NF4_BYTES_PER_WEIGHT) if config.dtype == "nf4" else 0)
    assert estimate["base weights"] == pytest.approx(expected, rel=0.03) and min(estimate.values()) > 0
    text = (CONFIGS / name / f"{stage}.yaml").read_text()
    assert f"--config {name}/{stage}" in text
    if (claimed := re.search(r"not measured: ([\d.]+) GiB", text)) is not None:
        items = estimate_memory(config, model, num_shards=SHARDS.get(name, 1))
        assert sum(item.num_bytes for item in items) / 2**30 == pytest.approx(float(claimed[1]), abs=0.51)
    if name in SHARDS:
        assert f"--num_shards {SHARDS[name]}" in text and float(claimed[1]) < int(re.search(r"of (\d+) GB", text)[1])


def test_estimate_memory_of_shards_by_hand(tiny_llava):
    """Two processes: half of each of the 4 layers, all of the rest, and one layer that is whole."""
    model = build_meta_model(tiny_llava)
    whole = estimated_bytes(ppo_config(tiny_llava), model)
    half = {item.name: item.num_bytes for item in estimate_memory(ppo_config(tiny_llava), model, num_shards=2)}
    # q and o: 64 x 64, k and v: 64 x 32, three of the MLP: 64 x 128, two norms of 64.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert half["gathered layer"] == 4 * layer
    assert half["base weights"] == whole["base weights"] - 4 * (4 * layer) / 2
    assert {**half, "base weights": 0} == {**whole, "base weights": 0, "gathered layer": 4 * layer}


def test_estimate_memory_command_plans_for_another_machine(tiny_llava, capsys):
    assert main(["plan", "ppo", "--model_name_or_path", tiny_llava, "--num_shards", "2", "--gpu_memory_gib", "24"]) == 0
    printed = capsys.readouterr().out
    assert "each of 2 processes" in printed and "fits: the GPU has 24.0 GiB" in printed
    assert main(["plan", "sft", "--model_name_or_path", tiny_llava, "--num_shards", "2", "--tuning", "full"]) == 2
    assert "only a frozen one can be sharded" in capsys.readouterr().err


def test_estimate_memory_command_counts_vllm_in_the_trainers_process(tiny_llava, monkeypatch):
    """A quarter of 24 GiB is 6 GiB; without a GPU, the base once more and 1 GiB of cache."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = ppo_config(tiny_llava, rollout_engine="vllm", vllm_gpu_memory_utilization=0.25)
    items = print_memory_estimate(config, gpu_memory_gib=24)
    assert (items[-1].name, items[-1].num_bytes) == ("vLLM", 6 << 30)
    items = print_memory_estimate(config)
    assert items[-1].num_bytes == items[0].num_bytes + (1 << 30) and items[0].name == "base weights"
    others = print_memory_estimate(ppo_config(tiny_llava, rollout_engine="http://127.0.0.1:8000"), gpu_memory_gib=24)
    assert others == items[:-1]
