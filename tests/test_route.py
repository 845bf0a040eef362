"""The route from pairs to a policy that README and quickstart give, on a tiny model."""

import json
import shlex
import shutil

import pytest

from mmrlhf.cli import main
from tests.helpers.tiny_models import build_checkpoint
from tests.test_docs_commands import FENCE, ROOT, commands_in

TINY_RUN = "--lora_r 4 --per_device_train_batch_size 2 --max_steps 1 --save_steps 1 --dtype float32 --micro_batch_tokens 2048"
TINY_FLAGS = {
    "data split": "--held_out 2",
    "sft": f"--model tiny {TINY_RUN}",
    "plan": "--model tiny",
    "reward": TINY_RUN,
    "reward-eval": "--probes 4",
    "ppo": f"{TINY_RUN} --num_generations 2 --num_mini_batches 1 --response_length 4 --min_probe_detection_rate 0",
    "generate": "--response_length 4",
    "eval": "--response_length 2",
}
"""Flags that make a command small enough for a test. The others run as they are written."""
OUTPUTS = [
    "train.jsonl", "held_out.jsonl", "sft.jsonl", "prompts.jsonl", "facts.jsonl", "runs/sft/model/config.json",
    "runs/reward/reward.json", "runs/reward-eval/result.json", "runs/ppo/policy/adapter_model.safetensors", "runs/report.html",
    "answers_sft.jsonl", "answers_ppo.jsonl", "scores.jsonl", "claims.jsonl", "runs/pope_sft/result.json",
    "runs/pope_ppo/result.json", "runs/compare/compare.html", "runs/export/config.json",
]  # fmt: skip


def section(path, title):
    """Return the text of a document's section, without the sections after it."""
    return path.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def route_commands():
    """Return the commands of the README's first block of its section, without their comments."""
    return commands_in(FENCE.findall(section(ROOT / "README.md", "On your own model and data"))[0])


def test_quickstart_and_readme_give_the_same_route():
    quickstart = section(ROOT / "docs" / "quickstart.md", "On your own pairs").split("\n### ")[0]
    assert commands_in("\n".join(FENCE.findall(quickstart))) == route_commands()


@pytest.fixture
def pairs_folder(tmp_path, monkeypatch):
    """A folder with pairs, images, captions and POPE's three files, and the current directory."""
    assert main(["data", "scenes", "--output_dir", str(tmp_path / "scenes"), "--rows", "6"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "scenes" / "pairs.jsonl").read_text().splitlines()]
    folder = tmp_path / "mine"
    shutil.copytree(tmp_path / "scenes" / "images", folder / "images")
    with (folder / "pairs.jsonl").open("w") as pairs, (folder / "captions.jsonl").open("w") as captions:
        for row in rows:
            pairs.write(json.dumps({key: row[key] for key in ("id", "images", "prompt", "chosen", "rejected")}) + "\n")
            captions.write(json.dumps({"image": row["images"][0], "caption": row["chosen"][0]["content"]}) + "\n")
    (folder / "POPE").mkdir()
    questions = [
        {"question_id": n, "image": row["images"][0], "text": f"Is there a {noun} in the image?", "label": label}
        for n, (row, noun, label) in enumerate(zip(rows, ("star", "moon") * 3, ("yes", "no") * 3, strict=True), 1)
    ]
    for split in ("random", "popular", "adversarial"):
        (folder / "POPE" / f"coco_pope_{split}.json").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (folder / "val2014").symlink_to(folder)
    build_checkpoint("llava", folder / "tiny")
    monkeypatch.chdir(folder)
    return folder


def test_route_runs_on_a_tiny_model(pairs_folder, capsys):
    for command in route_commands():
        argv = shlex.split(command)
        flags = TINY_FLAGS.get(argv[0]) or TINY_FLAGS.get(" ".join(argv[:2]), "")
        arguments = [*argv, *shlex.split(flags)]
        assert main(arguments) == 0, f"{command}\n{capsys.readouterr().err}"
    assert not [name for name in OUTPUTS if not (pairs_folder / name).is_file()]
    assert len((pairs_folder / "held_out.jsonl").read_text().splitlines()) == 2
