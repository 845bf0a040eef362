"""Saved models load by themselves in plain transformers and PEFT, with the same logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from mmrlhf.cli import main
from mmrlhf.commands.export import export
from mmrlhf.config import ExportConfig
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.export import save_policy
from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.models.policy import load_policy
from mmrlhf.records import InputError
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup
from tests.helpers.fake_hub import fake_hub
from tests.helpers.stages import save_start_adapter
from tests.helpers.tiny_models import build_checkpoint


@pytest.fixture(scope="module")
def policy_dir(tiny_vlm_path, tmp_path_factory) -> Path:
    """A policy folder as ppo writes it, whose adapter changes the outputs."""
    adapters = Adapters(load(tiny_vlm_path))
    adapters.add("policy", 4, 8, seed=0)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters("policy").values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    directory = tmp_path_factory.mktemp("run") / "policy"
    save_policy(adapters, "policy", directory)
    return directory


@torch.no_grad()
def logits_of(model: torch.nn.Module, processor, example) -> torch.Tensor:
    """The logits of a prompt with an image, in plain transformers."""
    content = [{"type": "image"}, {"type": "text", "text": example.prompt[0].content}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = processor(text=[text], images=[[open_image(example.images[0])]], return_tensors="pt")
    return model.eval()(**batch).logits


@pytest.fixture(scope="module")
def expected(tiny_vlm_path, policy_dir, examples) -> torch.Tensor:
    """Our own logits under the adapter, on the base where it is."""
    with load_policy(tiny_vlm_path, str(policy_dir)) as vlm:
        logits = logits_of(vlm.model, vlm.processor, examples[0])
    base = load(tiny_vlm_path)
    assert (logits_of(base.model, base.processor, examples[0]) - logits).abs().max() > 0.1
    return logits


def test_policy_folder_loads_in_peft_without_naming_the_base(policy_dir, expected, examples):
    model = AutoPeftModel.from_pretrained(str(policy_dir), dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(str(policy_dir))
    assert (logits_of(model, processor, examples[0]) - expected).abs().max() < 1e-5


def test_policy_folder_loads_in_transformers_and_in_a_pipeline(policy_dir, expected, examples):
    model = AutoModelForImageTextToText.from_pretrained(str(policy_dir), dtype=torch.float32)
    assert (logits_of(model, AutoProcessor.from_pretrained(str(policy_dir)), examples[0]) - expected).abs().max() < 1e-5
    pipe = pipeline("image-text-to-text", model=str(policy_dir), dtype=torch.float32)
    assert (logits_of(pipe.model, pipe.processor, examples[0]) - expected).abs().max() < 1e-5
    content = [{"type": "image", "image": open_image(examples[0].images[0])}, {"type": "text", "text": "What is there?"}]
    (answer,) = pipe(text=[{"role": "user", "content": content}], max_new_tokens=4)
    assert answer["generated_text"][-1]["role"] == "assistant"


def test_policy_folder_says_what_it_is(policy_dir, tiny_vlm_path):
    config = json.loads((policy_dir / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path(tiny_vlm_path).resolve())
    card = (policy_dir / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and f'AutoPeftModel.from_pretrained("{policy_dir}"' in card


def test_export_merges_into_a_whole_model(tiny_vlm_path, policy_dir, expected, examples, tmp_path, capsys):
    config = ExportConfig(
        model_name_or_path=tiny_vlm_path,
        adapter_path=str(policy_dir),
        merge=True,
        output_dir=str(tmp_path / "out"),
        dtype="float32",
    )
    export(config)
    assert capsys.readouterr().out.endswith(f"out holds a whole model; {tmp_path}/out/README.md says how to load it\n")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert (logits_of(model, AutoProcessor.from_pretrained(tmp_path / "out"), examples[0]) - expected).abs().max() < 1e-4
    assert not any("lora" in name or "base_layer" in name for name, _ in model.named_parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with load_policy(str(tmp_path / "out"), None) as vlm:  # and it is a model for every stage
        assert (logits_of(vlm.model, vlm.processor, examples[0]) - expected).abs().max() < 1e-4
    with pytest.raises(InputError, match=r"output_dir .* is not empty"):
        export(config)


def test_export_without_merge_writes_the_adapter_with_what_belongs_to_it(tiny_vlm_path, policy_dir, expected, examples, tmp_path):
    bare = tmp_path / "bare"  # as an earlier version or another program wrote it
    bare.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (bare / name).write_bytes((policy_dir / name).read_bytes())
    export(ExportConfig(model_name_or_path=tiny_vlm_path, adapter_path=str(bare), output_dir=str(tmp_path / "out")))
    base = AutoModelForImageTextToText.from_pretrained(tiny_vlm_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    assert (logits_of(model, AutoProcessor.from_pretrained(tmp_path / "out"), examples[0]) - expected).abs().max() < 1e-5
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize(("family", "has_clip_names"), [("llava", True), ("gemma3", True), ("qwen2_5_vl", False)])
def test_exports_load_in_transformers_and_peft(family, has_clip_names, examples, tmp_path):
    """The same files are read by vLLM, which needs the names that published towers have."""
    base, whole, adapter, merged = (str(tmp_path / name) for name in ("base", "whole", "adapter", "merged"))
    build_checkpoint(family, Path(base))
    start = save_start_adapter(base, tmp_path / "start")
    export(ExportConfig(model_name_or_path=base, output_dir=whole))
    export(ExportConfig(model_name_or_path=base, output_dir=adapter, adapter_path=str(tmp_path / "start")))
    export(ExportConfig(model_name_or_path=base, output_dir=merged, adapter_path=str(tmp_path / "start"), merge=True))

    names = {path: set(load_file(f"{path}/model.safetensors")) for path in (base, whole, merged)}
    assert (
        names[whole] == names[merged]
        and len(names[whole]) == len(names[base])
        and (names[whole] != names[base]) == has_clip_names
    )
    towers = {name for name in names[whole] if name.startswith("vision_tower.")}
    assert all(name.startswith("vision_tower.vision_model.") for name in towers) and bool(towers) == has_clip_names

    processor = AutoProcessor.from_pretrained(whole)
    models = {path: AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32) for path in (base, whole, merged)}
    logits = {path: logits_of(model, processor, examples[0]) for path, model in models.items()}
    assert torch.equal(logits[base], logits[whole])
    with start.use("start"):
        adapted = logits_of(start.vlm.model, processor, examples[0])
    assert (adapted - logits[base]).abs().max() > 1e-3
    assert (logits[merged] - adapted).abs().max() < 1e-4
    peft_model = PeftModel.from_pretrained(models[base], adapter)
    assert (logits_of(peft_model, processor, examples[0]) - adapted).abs().max() < 1e-5


def test_a_reward_model_is_exported_with_its_head(tiny_vlm_path, reward_dir, pairs, tmp_path):
    out = tmp_path / "out"
    settings = {"model_name_or_path": tiny_vlm_path, "adapter_path": str(reward_dir)}
    export(ExportConfig(**settings, output_dir=str(out), hub_model_id="me/reward"))
    assert {path.name for path in out.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "head.safetensors", "reference.jsonl", "reward.json",
    }  # fmt: skip
    groups = [AnswerGroup(p.images, p.prompt, p.answers, p.facts, p.id) for p in pairs[:3]]
    scores = [load_reward_model(str(path)).score(groups) for path in (reward_dir, out)]
    assert scores[0] == scores[1]
    card = (out / "README.md").read_text()
    assert "A reward model on" in card and "| accuracy | " in card and str(tmp_path) not in card
    settings |= {"output_dir": str(tmp_path / "other")}
    with pytest.raises(
        InputError, match="is a reward model, which is written as it was trained, with its head: leave --merge out"
    ):
        export(ExportConfig(**settings, merge=True))
    with pytest.raises(InputError, match=r"holds a few rows of its data .* give --hub_private_repo true, or false"):
        export(ExportConfig(**settings | {"model_name_or_path": "me/base"}, push_to_hub=True, hub_model_id="me/reward"))


def test_export_pushes_the_folder_and_keeps_it(tiny_vlm_path, tmp_path, monkeypatch, capsys):
    settings = {"model_name_or_path": tiny_vlm_path, "push_to_hub": True, "hub_model_id": "me/mine", "hub_private_repo": True}
    with fake_hub(monkeypatch) as hub:
        out = export(ExportConfig(**settings, output_dir=str(tmp_path / "out")))
        assert capsys.readouterr().out.endswith(f"pushed to {hub.url}/me/mine\n")
        files = hub.repos["me/mine"]
        assert {name: files[name] for name in files if name != ".gitattributes"} == {
            p.name: p.read_bytes() for p in out.iterdir()
        }
        texts = b"".join(content for name, content in files.items() if not name.endswith(".safetensors"))
        assert b"me/mine" in files["README.md"] and str(tmp_path).encode() not in texts and tiny_vlm_path.encode() not in texts
        with pytest.raises(InputError, match=r"nothing is pushed to me/mine: it holds .* files already"):
            export(ExportConfig(**settings, output_dir=str(tmp_path / "again")))
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in out.iterdir()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"push_to_hub": True}, "give --hub_model_id OWNER/NAME"),
        ({"hub_model_id": "../x"}, "hub_model_id ../x is not a valid Hub repository id"),
        ({"push_to_hub": True, "hub_model_id": "me/x", "adapter_path": "POLICY"}, "needs its base .*push the base first"),
        ({"eval_results": "nowhere"}, "nowhere holds no result.json"),
        ({"eval_results": "EVAL"}, "measured another model than is exported"),
        ({"eval_results": "EVAL", "adapter_path": "POLICY"}, "measured another model than is exported"),
    ],
)
def test_export_refuses_before_it_loads_a_model(changes, message, tiny_vlm_path, policy_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("mmrlhf.commands.export.load", None)
    result = tmp_path / "eval"
    result.mkdir()
    summary = {"benchmark": "pope", "version": "1", "headline": "f1", "direction": "higher", "metrics": {}}
    (result / "result.json").write_text(json.dumps(summary))
    (result / "scores.jsonl").write_text("")
    (result / "run_key.json").write_text(
        json.dumps({"model_name_or_path": {"path": "other", "sha256": "0"}, "adapter_path": None})
    )
    places = {"POLICY": str(policy_dir), "EVAL": str(result)}
    changes = {name: places.get(value, value) for name, value in changes.items()}
    with pytest.raises(InputError, match=message):
        export(ExportConfig(model_name_or_path=tiny_vlm_path, output_dir=str(tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


def test_export_refuses_what_cannot_be_written(tiny_vlm_path, policy_dir, tmp_path):
    settings = {"model_name_or_path": tiny_vlm_path, "output_dir": str(tmp_path / "out")}
    with pytest.raises(InputError, match="--merge needs an adapter"):
        export(ExportConfig(**settings, merge=True))
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors: give .*policy"):
        export(ExportConfig(**settings, adapter_path=str(policy_dir.parent)))
    assert list(tmp_path.iterdir()) == []


def test_export_is_a_command(tiny_vlm_path, tmp_path):
    assert main(["export", "--model", tiny_vlm_path, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file() and (tmp_path / "out" / "chat_template.jinja").is_file()
