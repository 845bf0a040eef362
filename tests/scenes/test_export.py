"""Exported scenes are files that the stages read."""

import json

from mmrlhf import scenes
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
