"""The route from pairs to a policy that README and quickstart give, on a tiny model."""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from mmrlhf.cli import main
from mmrlhf.config import PPOConfig
from mmrlhf.evaluation.policy_benchmarks import best_metric, open_benchmarks
from tests.helpers.rows import write_jsonl
from tests.helpers.tiny_models import build_checkpoint
from tests.test_docs_commands import FENCE, ROOT, commands_in

TINY_RUN = "--lora_r 4 --per_device_train_batch_size 2 --max_steps 1 --save_steps 1 --dtype float32 --micro_batch_tokens 2048"
TINY_FLAGS = {
    "data split": "--held_out 2",
    "sft": f"--model tiny {TINY_RUN} --response_length 4",
    "plan": "--model tiny",
    "reward": TINY_RUN,
    "reward-eval": "--probes 4",
    "ppo": f"{TINY_RUN} --num_generations 2 --num_mini_batches 1 --response_length 4 --min_probe_detection_rate 0",
    "dpo": f"{TINY_RUN} --response_length 4",
    "eval": "--response_length 2",
}
"""Flags that make a command small enough for a test. The others run as they are written."""
OUTPUTS = [
    "train.jsonl", "held_out.jsonl", "sft.jsonl", "prompts.jsonl", "facts.jsonl", "runs/sft/model/config.json",
    "runs/reward/reward.json", "runs/reward-eval/result.json", "runs/ppo/policy/adapter_model.safetensors", "runs/report.html",
    "runs/facts_base/result.json", "runs/facts_sft/result.json", "runs/facts_ppo/result.json", "runs/compare/compare.html",
    "runs/export/config.json", "runs/pope_sft/result.json", "runs/pope_ppo/result.json", "runs/compare_pope/compare.html",
    "runs/dpo/policy/adapter_model.safetensors", "runs/compare_dpo/compare.html",
]  # fmt: skip


def section(path, title):
    """Return the text of a document's section, without the sections after it."""
    return path.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def route_commands():
    """Return the commands of the README's route with PPO and of that with DPO, without comments."""
    ppo, dpo = FENCE.findall(section(ROOT / "README.md", "On your own model and data"))[:2]
    return commands_in(ppo), commands_in(dpo)


def test_quickstart_and_readme_give_the_same_route():
    quickstart = section(ROOT / "docs" / "quickstart.md", "On your own pairs").split("\n### ")[0]
    assert commands_in("\n".join(FENCE.findall(quickstart))) == route_commands()[0]


def coco_files(folder, rows):
    """Write COCO's instances and captions of the images of some rows: a star in each."""
    images = [{"id": n, "file_name": Path(row["images"][0]).name, "width": 64, "height": 64} for n, row in enumerate(rows)]
    boxes = [{"image_id": image["id"], "category_id": 1, "bbox": [1, 1, 9, 9]} for image in images]
    captions = [{"image_id": n, "caption": row["chosen"][0]["content"]} for n, row in enumerate(rows)]
    instances = {"images": images, "categories": [{"id": 1, "name": "star"}], "annotations": boxes}
    (folder / "instances_train2017.json").write_text(json.dumps(instances))
    (folder / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": captions}))


@pytest.fixture
def pairs_folder(tmp_path, monkeypatch):
    """The current directory, with pairs, images, COCO's annotations and POPE's three files."""
    assert main(["data", "scenes", "--output_dir", str(tmp_path / "scenes"), "--rows", "6"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "scenes" / "pairs.jsonl").read_text().splitlines()]
    folder = tmp_path / "mine"
    shutil.copytree(tmp_path / "scenes" / "images", folder / "images")
    write_jsonl(
        folder, *({key: row[key] for key in ("id", "images", "prompt", "chosen", "rejected")} for row in rows), name="pairs.jsonl"
    )
    coco_files(folder, rows)
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
    for command in itertools.chain(*route_commands()):
        argv = shlex.split(command.replace("llava-hf/llava-1.5-7b-hf", "tiny"))
        flags = TINY_FLAGS.get(argv[0]) or TINY_FLAGS.get(" ".join(argv[:2]), "")
        arguments = [*argv, *shlex.split(flags)]
        assert main(arguments) == 0, f"{command}\n{capsys.readouterr().err}"
    assert not [name for name in OUTPUTS if not (pairs_folder / name).is_file()]
    assert len((pairs_folder / "held_out.jsonl").read_text().splitlines()) == 2
    facts = [json.loads(line) for line in (pairs_folder / "facts.jsonl").read_text().splitlines()]
    assert len(facts) == 6 and {fact["kind"] for row in facts for fact in row["facts"]} == {"object", "count", "caption"}
    # The quickstart's suite for choosing a policy along the way, on rows that are not trained on.
    (suite,) = re.findall(r"```yaml\n(.*?)```", section(ROOT / "docs" / "quickstart.md", "On your own pairs"), re.S)
    (pairs_folder / "selection.yaml").write_text(suite)
    shutil.copy("held_out.jsonl", "selection.jsonl")
    config = PPOConfig(
        model_name_or_path="tiny",
        dataset_name="prompts.jsonl",
        output_dir="runs/ppo_best",
        eval_benchmarks="selection.yaml",
        metric_for_best_model="facts/claim_f1",
    )
    (benchmark,) = open_benchmarks(config)
    assert len(benchmark.task.examples) == 2 and best_metric(config, [benchmark], False, {}) == ("facts/claim_f1", True)
