"""Stages and recipes run on families with their published tokenizers and templates."""

import json
from pathlib import Path

import pytest

from mmrlhf.cli import main
from mmrlhf.files.bundled import folder
from mmrlhf.files.jsonl import read_jsonl
from tests.helpers.rows import write_jsonl
from tests.real.families import FAMILIES, NO_TEXT_ONLY

pytestmark = pytest.mark.real

SAMPLES = folder("data") / "samples"
RECIPES = {
    "llava_1_5": "llava-1.5-7b",
    "qwen2_5_vl": "qwen2.5-vl-3b",
    "qwen3_vl": "qwen3-vl-4b",
    "gemma3": "gemma-3-4b",
    "smolvlm": "smolvlm-256m",
}
"""The folder of `configs/` with a family's recipes."""
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "lora_r": 4,
    "lora_alpha": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
}
SMALL_PPO = {
    "num_generations": 2,
    "response_length": 4,
    "num_mini_batches": 1,
    "num_ppo_epochs": 1,
    "min_probe_detection_rate": 0,
    "num_sample_generations": 0,
}
IMAGE_TOKENS = 4096
"""More than the longest prompt has, with its image."""


def run(stage: str, recipe: str | None, output_dir: Path, model: Path, **settings) -> list[dict]:
    """Run a stage with a recipe, in its precision, at a test's size; return its metrics by step."""
    arguments = {**SMALL, **settings, "model_name_or_path": model, "output_dir": output_dir}
    flags = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    config = ["--config", f"{recipe}/{stage}"] if recipe else ["--max_length", str(IMAGE_TOKENS)]
    assert main([stage, *config, *flags]) == 0
    return [row for row in read_jsonl(output_dir / "metrics.jsonl") if "grad_norm" in row]


def check_metrics(rows: list[dict], steps: int) -> None:
    assert len(rows) == steps
    assert all(row["grad_norm"] > 0 for row in rows), rows


def test_every_recipe_has_a_family():
    others = {"llava-rlhf", "demo", "1x24gb", "1x80gb", "8x80gb", "2x8x80gb"}
    assert {path.name for path in folder("configs").iterdir() if path.is_dir()} == {*RECIPES.values(), *others}


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_run_with_the_familys_recipes(name, checkpoint, tmp_path, capsys):
    recipe, twin = RECIPES.get(name), checkpoint(name)
    steps = 2 if recipe else 1
    if recipe:
        for stage in ("sft", "reward", "ppo"):
            assert main(["plan", stage, "--config", f"{recipe}/{stage}", "--model_name_or_path", str(twin)]) == 0
        assert "total" in capsys.readouterr().out
    rows = [row for row in read_jsonl(SAMPLES / "sft.jsonl") if row["images"] or name not in NO_TEXT_ONLY]
    examples = write_jsonl(tmp_path, *rows[:2], rows[-1])
    pairs = write_jsonl(tmp_path, *read_jsonl(SAMPLES / "trl_preference.jsonl")[:2], name="pairs.jsonl")
    images, facts = {"image_folder": SAMPLES, "max_steps": steps}, {"facts_file": SAMPLES / "facts.jsonl"}
    check_metrics(run("sft", recipe, tmp_path / "sft", twin, dataset_name=examples, **images), steps)
    base = tmp_path / "sft" / "model"
    check_metrics(run("reward", recipe, tmp_path / "reward", base, dataset_name=pairs, **images, **facts), steps)
    settings = {**SMALL_PPO, "reward_model_path": tmp_path / "reward", **facts}
    rows = run("ppo", recipe, tmp_path / "ppo", base, dataset_name=examples, **images, **settings)
    check_metrics(rows, steps)
    row = rows[0]
    assert abs(row["objective/kl"]) < 1e-3 and abs(row["val/ratio_first"] - 1) < 1e-3


def test_llava_rlhf_trains_on_its_own_rows(checkpoint, tmp_path):
    """Its recipes, on rows in its own form: pairs with captions, and prompts with captions."""
    pytest.importorskip("bitsandbytes")
    twin = checkpoint("llava_1_5")
    for stage in ("reward", "ppo"):
        assert main(["plan", stage, "--config", f"llava-rlhf/{stage}", "--model_name_or_path", str(twin)]) == 0
    captions = {"facts_file": SAMPLES / "image_to_caption.json"}
    pairs = SAMPLES / "llava_rlhf_preference.json"
    check_metrics(run("reward", "llava-rlhf", tmp_path / "reward", twin, dataset_name=pairs, **captions), 2)
    settings = {**SMALL_PPO, "reward_model_path": tmp_path / "reward", **captions}
    prompts = SAMPLES / "llava_rlhf_ppo.json"
    check_metrics(run("ppo", "llava-rlhf", tmp_path / "ppo", twin, dataset_name=prompts, **settings), 2)
    config = json.loads((tmp_path / "reward" / "reward.json").read_text())
    assert config["facts_position"] == "after"


LEARNT = ["A 🐈 cat — on  a chair.", "一只猫。\n\n- two dogs"]


@pytest.mark.parametrize("name", ["llava_1_5", "llava_1_6_mistral", "smolvlm"])
def test_model_says_what_it_learnt_and_stops(name, checkpoint, tmp_path):
    """Both turns of a conversation: after the first one, LLaVA-1.5's template writes no end."""
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": LEARNT[0]}]
    turns += [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": LEARNT[1]}]
    rows = write_jsonl(tmp_path, {"images": [], "messages": turns})
    settings = {"tuning": "full", "max_steps": 40, "learning_rate": 1e-2, "per_device_train_batch_size": 1}
    run("sft", None, tmp_path / "sft", checkpoint(name), dataset_name=rows, lr_scheduler_type="constant", **settings)
    prompts = write_jsonl(tmp_path, *({"images": [], "messages": turns[:n]} for n in (1, 3)), name="prompts.jsonl")
    flags = ["--model_name_or_path", str(tmp_path / "sft" / "model"), "--dataset_name", prompts, "--response_length", "40"]
    assert main(["generate", *flags, "--output_file", str(tmp_path / "answers.jsonl")]) == 0
    assert [row["answer"] for row in read_jsonl(tmp_path / "answers.jsonl")] == LEARNT
