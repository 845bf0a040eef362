"""User errors on the command line: one sentence with the location, exit code 2, nothing written."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from mmrlhf.cli import main
from mmrlhf.files.bundled import folder
from mmrlhf.models.loading import load
from mmrlhf.records import InputError

SAMPLES = folder("data") / "samples"
STAGES = ("sft", "reward", "ppo", "generate", "score")
SHORT_RUN = ("--max_steps", "1", "--per_device_train_batch_size", "2", "--lora_r", "4")


def make_row(stage: str, **changed: object) -> dict[str, object]:
    """Return a valid row for a stage, with some fields changed; None removes a field."""
    answer_fields = {
        "sft": {"completion": "A bowl."},
        "reward": {"chosen": "A bowl.", "rejected": "A cat."},
        "score": {"answer": "A bowl."},
    }.get(stage, {})
    fields = {"images": ["good.png"], "prompt": "What is it?", **answer_fields, **changed}
    return {name: value for name, value in fields.items() if value is not None}


@pytest.fixture(scope="module")
def trained_runs(tiny_vlm_path, tmp_path_factory) -> Path:
    """Train a reward model and a policy for one step; return the folder of both runs."""
    runs = tmp_path_factory.mktemp("trained")
    common = ["--model_name_or_path", tiny_vlm_path, *SHORT_RUN]
    pairs, prompts = str(SAMPLES / "trl_preference.jsonl"), str(SAMPLES / "llava_rlhf_ppo.json")
    assert main(["reward", *common, "--dataset_name", pairs, "--output_dir", f"{runs}/reward"]) == 0
    ppo = ["ppo", *common, "--dataset_name", prompts, "--reward_model_path", f"{runs}/reward", "--output_dir", f"{runs}/ppo"]
    assert main([*ppo, "--num_generations", "2", "--response_length", "4"]) == 0
    return runs


@pytest.fixture
def refusal_of(tiny_vlm_path, trained_runs, tmp_path, capsys):
    """Return a function that runs a stage on rows, or on a file, and returns its error message."""
    folder_of_rows = tmp_path / "data"
    folder_of_rows.mkdir()
    shutil.copy(SAMPLES / "images" / "apples.png", folder_of_rows / "good.png")
    before = set(tmp_path.iterdir())

    def run(stage: str, *rows: object, model: object = tiny_vlm_path, extra: tuple[object, ...] = ()) -> str:
        if isinstance(rows[0], Path):
            data = rows[0]
        else:
            data = folder_of_rows / "rows.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / "out"
        line: list[object] = [stage, "--dataset_name", data]
        if stage == "score":
            line += ["--reward_model_path", trained_runs / "reward", "--output_file", out / "scores.jsonl"]
        elif stage == "generate":
            line += ["--model_name_or_path", model, "--output_file", out / "answers.jsonl", "--response_length", "4"]
        else:
            line += ["--model_name_or_path", model, "--output_dir", out / "run", *SHORT_RUN]
        if stage == "ppo":
            line += ["--reward_model_path", trained_runs / "reward", "--num_generations", "2", "--response_length", "4"]
        capsys.readouterr()
        assert main([str(word) for word in [*line, *extra]]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and set(tmp_path.iterdir()) == before
        return error

    return run


def broken_image(kind: str) -> bytes:
    """Return an image file with one fault."""
    good = (SAMPLES / "images" / "apples.png").read_bytes()
    if kind == "animated":
        file, frames = io.BytesIO(), [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
        return file.getvalue()
    if kind == "bomb":  # 400 million pixels in 50 kB
        parts = [
            (b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)),
            (b"IDAT", zlib.compress(bytes(2501 * 20_000))),
        ]
        chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in [*parts, (b"IEND", b"")])
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return {"text": b"not an image", "empty": b"", "truncated": good[: len(good) // 2]}[kind]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "is damaged, or not a JPEG, PNG"),
        ("empty", "is empty (0 bytes): replace the file or drop the row"),
        ("truncated", "is truncated or damaged (image file is truncated): replace the file or drop the row"),
        ("bomb", "has far more than 40,000,000 pixels: scale it down"),
        ("animated", "has 3 frames or pages: save the one that is meant"),
    ],
)
def test_stages_refuse_unreadable_image(refusal_of, stage, kind, message, tmp_path):
    (tmp_path / "data" / "bad.png").write_bytes(broken_image(kind))
    error = refusal_of(stage, make_row(stage), make_row(stage, images=["bad.png"]))
    location = f"{tmp_path / 'data' / 'bad.png'} ({tmp_path / 'data' / 'rows.jsonl'}, line 2, `images[1]`)"
    assert location in error and message in error


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": ["none.png"]}, "`images[1]` does not exist in "),
        ({"images": ["../trained.png"]}, "`images[1]` is outside the image folder "),
        ({"images": "good.png"}, "`images` must be a list, not text"),
        ({"images": None, "imagse": ["good.png"]}, "`images` is missing: rename `imagse` to it"),
        (
            {"prompt": "<image><image>What is it?"},
            "the prompt has placeholders for 2 images and the row has 1: make the numbers equal",
        ),
        ({"prompt": " "}, "turn 1 of the prompt is empty: fill it in or drop the row"),
    ],
)
def test_stages_refuse_unreadable_row(refusal_of, stage, changed, message, tmp_path):
    error = refusal_of(stage, make_row(stage), make_row(stage, **changed))
    assert f"{tmp_path / 'data' / 'rows.jsonl'}, line 2: " in error and message in error


LLAVA_ROW = {
    "image": "good.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}],
    "output_1": {"from": "gpt", "value": "A bowl."},
    "output_2": {"from": "gpt", "value": "A cat."},
    "preference": 1,
}


@pytest.mark.parametrize(
    ("stage", "bad_row", "message"),
    [
        ("sft", make_row("sft", completion=""), "`completion` is empty: fill it in or drop the row"),
        ("score", make_row("score", answer=""), "`answer` is empty: fill it in or drop the row"),
        ("reward", make_row("reward", rejected=""), "`rejected` is empty: fill it in or drop the row"),
        ("reward", make_row("reward", rejected="A bowl."), "the chosen and the rejected answer are the same"),
        ("reward", {**LLAVA_ROW, "preference": 3}, "`preference` must be 1 or 2, the number of the better output, not 3"),
        ("sft", make_row("generate"), "the row has no answer: "),
        ("reward", make_row("generate"), "`chosen` is missing: add it"),
    ],
)
def test_stages_refuse_unusable_answers(refusal_of, stage, bad_row, message):
    error = refusal_of(stage, make_row(stage), bad_row)
    assert "rows.jsonl, line 2: " in error and message in error


@pytest.mark.parametrize("stage", STAGES)
def test_stages_refuse_prompt_over_max_length(refusal_of, stage):
    error = refusal_of(stage, make_row(stage), make_row(stage, prompt="word " * 300), extra=("--max_length", "200"))
    assert "rows.jsonl: 1 of 2 rows are too long (line 2; the longest has " in error
    advice = "drop these rows" if stage == "score" else "leave these rows out with --overlong drop"
    assert f"raise max_length, or {advice}" in error


def test_generate_refuses_broken_image_in_table(refusal_of, tmp_path):
    import datasets

    rows = [{"images": [{"bytes": broken_image("truncated"), "path": "a.png"}], "prompt": "What is it?"}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / "rows.parquet"))
    assert "rows.parquet, row 1, `images[1]`) is truncated" in refusal_of("generate", tmp_path / "data" / "rows.parquet")


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "generate"])
def test_stages_refuse_missing_checkpoint(refusal_of, stage):
    error = refusal_of(stage, make_row(stage), model="/no/such")
    assert "model_name_or_path /no/such does not exist: give the directory or the Hub id of a model" in error
    with pytest.raises(InputError, match="model /no/such: no such directory; give a checkpoint directory or"):
        load("/no/such")  # from Python


def test_generate_missing_relative_checkpoint_may_be_hub_id(refusal_of):
    error = refusal_of("generate", make_row("generate"), model="owner/sft")
    assert "model owner/sft cannot be loaded (no such directory, and as a Hub id: " in error


def test_generate_refuses_run_folder_as_model(refusal_of, tiny_vlm_path, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / "model").symlink_to(tiny_vlm_path)
    assert f"the directory holds no config.json; give {run / 'model'}" in refusal_of("generate", make_row("generate"), model=run)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "cannot be loaded ("),
        ("other sizes", "lacks 18 of its weights or has them in another shape"),
        ("one less", "lacks 1 of its weights"),
        ("no template", "has no chat template: put a chat_template.jinja next to its config.json"),
        ("text only", "give the directory or Hub id of an image-text-to-text model"),
    ],
)
def test_generate_refuses_incomplete_checkpoint(refusal_of, bundled_vlm_path, fault, message, tmp_path_factory):
    model = tmp_path_factory.mktemp("models") / "broken"
    shutil.copytree(bundled_vlm_path, model)
    weights, config = model / "model.safetensors", json.loads((model / "config.json").read_text())
    if fault == "cut":
        os.truncate(weights, weights.stat().st_size // 2)
    elif fault == "other sizes":
        config["text_config"]["intermediate_size"] *= 2
    elif fault == "one less":
        tensors = load_file(weights)
        tensors.pop(next(name for name in tensors if "layers.0" in name))
        save_file(tensors, weights, metadata={"format": "pt"})
    elif fault == "no template":
        (model / "chat_template.jinja").unlink()
    else:
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    error = refusal_of("generate", make_row("generate"), model=model)
    assert f"model {model} " in error and message in error


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nothing", "adapter_path /no/such does not exist"),
        ("ppo", "holds no adapter_model.safetensors: give "),
        ("reward", "is a reward model, which scores answers but cannot write them"),
        ("no config", "adapter_config.json cannot be read (No such file or directory)"),
        ("cut", "cannot be loaded ("),
        ("bad base.json", "base.json cannot be read as the ppo stage wrote it"),
        ("other base", "holds other weights: give that model"),
    ],
)
def test_generate_refuses_foreign_adapter(refusal_of, tiny_vlm_path, trained_runs, fault, message, tmp_path_factory):
    copy = tmp_path_factory.mktemp("adapter") / "policy"
    shutil.copytree(trained_runs / "ppo" / "policy", copy)
    adapter = {"nothing": Path("/no/such"), "ppo": trained_runs / "ppo", "reward": trained_runs / "reward"}.get(fault, copy)
    if fault == "no config":
        (copy / "adapter_config.json").unlink()
    elif fault == "cut":
        os.truncate(copy / "adapter_model.safetensors", 1000)
    elif fault == "bad base.json":
        (copy / "base.json").write_text("{")
    elif fault == "other base":  # with weights of the same shapes
        metadata = json.loads((copy / "base.json").read_text())
        (copy / "base.json").write_text(json.dumps({**metadata, "base_fingerprint": "0" * 16}))
    assert message in refusal_of("generate", make_row("generate"), extra=("--adapter_path", adapter))


@pytest.mark.parametrize(
    ("reward_terms", "message"),
    [
        ("clip=1", "reward_terms: `clip` was renamed: use `verifier_score`"),
        ("fact_rm=1, clip@vlm=0.5", "reward_terms: `clip@vlm` was renamed: use `verifier_score@vlm`"),
    ],
)
def test_ppo_refuses_old_reward_function_with_the_new_one(refusal_of, reward_terms, message):
    assert message in refusal_of("ppo", make_row("ppo"), extra=("--reward_terms", reward_terms))


def test_stages_refuse_missing_reward_model(refusal_of):
    assert "reward_model_path /no/such does not exist" in refusal_of(
        "ppo", make_row("ppo"), extra=("--reward_model_path", "/no/such")
    )
    assert "reward_model_path /no/such does not exist" in refusal_of(
        "score", make_row("score"), extra=("--reward_model_path", "/no/such")
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_name_or_path", "/no/such"], "model_name_or_path /no/such does not exist"),
        (["--adapter_path", "/no/such"], "adapter_path /no/such does not exist"),
        (["--data", "held"], "--data held is not a split"),
    ],
)
def test_eval_refuses_missing_model_adapter_or_split(tiny_vlm_path, flags, message, tmp_path, capsys):
    model = [] if "--model_name_or_path" in flags else ["--model", tiny_vlm_path]
    assert main(["eval", "scenes", *model, "--out", str(tmp_path / "out"), "--limit", "1", *flags]) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


# ---- what is accepted ----------------------------------------------------------------------------


def test_generate_loads_hub_id_like_local_path(tiny_vlm_path, tmp_path):
    """The model is in a cache that is laid out like the Hub client's, and the network is off."""
    hub = tmp_path / "home" / "hub" / "models--owner--tiny"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("c0ffee")
    (hub / "snapshots").mkdir()
    (hub / "snapshots" / "c0ffee").symlink_to(tiny_vlm_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"images": [], "prompt": "What is it?"}))
    arguments = "generate --model_name_or_path owner/tiny --dataset_name rows.jsonl --response_length 4 --output_file "
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    env.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-m", "mmrlhf", *arguments.split()]
    finished = subprocess.run([*command, "hub.jsonl"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    arguments = arguments.replace("owner/tiny", tiny_vlm_path).replace("rows.jsonl", f"{tmp_path}/rows.jsonl")
    assert main([*arguments.split(), f"{tmp_path}/own.jsonl"]) == 0
    assert (tmp_path / "hub.jsonl").read_text() == (tmp_path / "own.jsonl").read_text()
