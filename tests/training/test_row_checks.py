"""Rows that the model cannot read are known before the first step: all of them, by cause."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mmrlhf.config import GenerateConfig, RewardConfig, SFTConfig
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.generate import generate
from mmrlhf.records import InputError
from mmrlhf.reward_model import train_reward_model
from mmrlhf.sft import sft
from mmrlhf.training import row_checks
from tests.helpers.rows import make_data_dir, write_jsonl
from tests.helpers.runs import stopped_after

LONG = "a red circle " * 60


@pytest.fixture
def folder(tmp_path):
    """Create a folder with an image, `a.png`."""
    return make_data_dir(tmp_path)


def sft_row(index, answer="A red circle."):
    return {"id": f"r{index}", "image": "a.png", "prompt": f"What is in picture {index}?", "completion": answer}


def sft_config(model, path, out, **settings):
    defaults = {
        "max_length": 120, "response_length": 8, "max_steps": 4, "per_device_train_batch_size": 3, "lora_r": 4, "save_steps": 1,
    }  # fmt: skip
    return SFTConfig(model_name_or_path=model, dataset_name=path, output_dir=str(out), **{**defaults, **settings})


def losses(out):
    return [row["loss"] for row in read_jsonl(Path(out) / "metrics.jsonl")]


def test_overlong_rows_are_counted_before_the_first_step(tiny_vlm_path, folder, tmp_path):
    path = write_jsonl(folder, *[sft_row(i, LONG if i in (2, 5) else "A red circle.") for i in range(8)])
    with pytest.raises(
        InputError, match=r"2 of 8 rows are too long \(line 3, line 6; the longest has \d+ tokens .*limit is 120\)"
    ):
        sft(sft_config(tiny_vlm_path, path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_dropping_rows_trains_as_on_a_file_without_them(tiny_vlm_path, folder, tmp_path, capsys):
    rows = [sft_row(i, LONG if i in (2, 5) else "A red circle." if i % 2 else "Two blue squares.") for i in range(8)]
    path = write_jsonl(folder, *rows)
    clean = write_jsonl(folder, *[row for row in rows if row["completion"] != LONG], name="clean.jsonl")
    sft(sft_config(tiny_vlm_path, path, tmp_path / "run", overlong="drop"))
    assert "2 of 8 rows are too long (line 3, line 6;" in capsys.readouterr().out.replace("\n", " ")
    sft(sft_config(tiny_vlm_path, clean, tmp_path / "clean"))
    assert losses(tmp_path / "run") == losses(tmp_path / "clean")


def test_nothing_is_left_if_all_rows_are_too_long_to_keep(examples):
    """Each row has 12 tokens of 10: `drop` cannot leave all of them out."""
    lengths = SimpleNamespace(shrunk_images=set())
    config = sft_config("model", "x", "out", overlong="drop", max_length=10)
    with pytest.raises(InputError, match=r"^x: 2 of 2 rows are too long \(row .*has 12 .*the limit is 10\): raise max_length$"):
        row_checks.usable_indices(
            examples[:2], config, "x", lambda row: [row_checks.Length(12, 10)], lengths, Console(quiet=True)
        )


def test_a_resumed_run_checks_nothing_again_and_keeps_its_rows(tiny_vlm_path, folder, tmp_path, monkeypatch):
    path = write_jsonl(folder, *[sft_row(i, LONG if i == 2 else "A red circle.") for i in range(8)])
    config = sft_config(tiny_vlm_path, path, tmp_path / "whole", overlong="drop")
    sft(config)
    killed = sft_config(tiny_vlm_path, path, tmp_path / "killed", overlong="drop")
    with stopped_after(step=2):
        sft(killed)
    with pytest.raises(InputError, match="max_length determines the rows of a step and cannot change along the way"):
        sft(sft_config(tiny_vlm_path, path, tmp_path / "killed", overlong="drop", max_length=400))
    rows_file = tmp_path / "killed" / "rows.json"
    kept = json.loads(rows_file.read_text())
    rows_file.write_text(json.dumps({"signature": "another", "checks": kept["checks"] | {"overlong": []}}))
    with pytest.raises(InputError, match="was started without 0 overlong rows, and now 1 would be left out: continue it with"):
        sft(killed)  # say, under another transformers
    rows_file.write_text(json.dumps(kept))
    with monkeypatch.context() as patch:
        patch.setattr(row_checks, "check_rows", None)  # a call would fail
        sft(killed)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_refused_rows_are_named_by_cause(tiny_vlm_path, folder, tmp_path):
    rows = [sft_row(i) for i in range(9)]
    for i in (1, 4, 6):
        rows[i]["prompt"] = [{"role": "user", "content": f"In HTML, {i}, <image><image>?"}]
        rows[i]["images"] = ["a.png", "a.png"]
        del rows[i]["image"]
    rows[3]["prompt"] = "What <|user|> is it?"
    (folder / "cut.png").write_bytes(b"\x89PNG")
    rows[7]["image"] = "cut.png"
    rows[8]["completion"] = LONG
    with pytest.raises(InputError) as error:
        sft(sft_config(tiny_vlm_path, write_jsonl(folder, *rows), tmp_path / "run"))
    assert re.search(r"the model refuses \d of 9 rows: .*\(line 8\)", str(error.value)), error.value
    assert "; also, 1 of 9 rows are too long (line 9; " in str(error.value)
    assert "\n" not in str(error.value)


def test_generate_leaves_overlong_prompts_out(tiny_vlm_path, folder, tmp_path, capsys):
    rows = [{"id": f"r{i}", "image": "a.png", "prompt": LONG if i == 1 else "What is it?"} for i in range(4)]
    settings = {"model_name_or_path": tiny_vlm_path, "dataset_name": write_jsonl(folder, *rows), "response_length": 4}
    out = tmp_path / "answers.jsonl"
    with pytest.raises(InputError, match=r"1 of 4 rows are too long \(line 2;"):
        generate(GenerateConfig(**settings, output_file=str(out), max_length=120))
    assert list(tmp_path.glob("*answers*")) == []
    generate(GenerateConfig(**settings, output_file=str(out), max_length=120, overlong="drop"))
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["r0", "r2", "r3"]
    assert [path.name for path in tmp_path.glob(".*")] == [".answers.jsonl.inputs.json"]


def test_facts_that_noise_makes_too_long_are_left_as_they_are(tiny_vlm_path, pairs, tmp_path):
    config = RewardConfig(
        model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path), max_length=1, lora_r=4, max_steps=2,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"6 of 6 rows are too long .* the longest has (\d+) tokens") as error:
        train_reward_model(config, pairs[:6])
    longest = int(re.search(r"the longest has (\d+)", str(error.value))[1])
    settings = {"max_length": longest, "fact_noise": 1.0, "injected_claim_rate": 0.5, "lora_r": 4, "max_steps": 2}
    train_reward_model(
        RewardConfig(model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path), **settings), pairs[:6]
    )


def test_shrunk_images_are_counted_once(tmp_path, capsys):
    from tests.helpers.tiny_models import build_checkpoint
    from tests.models.test_prompt_lengths import blank

    build_checkpoint("qwen2_5_vl", tmp_path / "model")
    folder = make_data_dir(tmp_path)
    (folder / "large.png").write_bytes(blank(400, 300).data)
    turns = [{"role": role, "content": "a circle"} for role in ("user", "assistant") * 2]
    rows = [{"image": image, "messages": turns} for image in ("large.png", "a.png", "large.png")]
    config = sft_config(str(tmp_path / "model"), write_jsonl(folder, *rows), tmp_path / "run", max_pixels=10_000, max_steps=1)
    sft(config)
    assert "1 images have more pixels than max_pixels, and are shrunk" in capsys.readouterr().out.replace("\n", " ")
