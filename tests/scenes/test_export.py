"""Exported scenes are files that the stages read."""

import json

import pytest

from mmrlhf import scenes
from mmrlhf.records import InputError
from mmrlhf.scenes.scene_graph import generate_scene


def test_export_dataset_pairs_a_true_caption_with_a_false_one(tmp_path):
    scenes.export_dataset(str(tmp_path), num_rows=5)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("sft", "pairs", "prompts")
    }
    assert all(len(split_rows) == 5 for split_rows in rows.values())
    assert all((tmp_path / row["images"][0]).is_file() for split_rows in rows.values() for row in split_rows)
    for index, row in enumerate(rows["pairs"]):
        scene = generate_scene("pairs", index, 0)
        assert not scenes.verify_answer(scene, row["chosen"][0]["content"]).false_claims
        assert scenes.verify_answer(scene, row["rejected"][0]["content"]).false_claims
    assert all(row["facts"] for row in rows["prompts"]) and all(row["completion"] for row in rows["sft"])


def test_export_dataset_refuses_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output_dir .*file cannot be written"):
        scenes.export_dataset(str(tmp_path / "file"), num_rows=1)
