"""POPE as its official script prints it, on answers made for this purpose."""

import json
import re

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.text.answer_parsing import pope_official

METRIC_NAMES = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1 score": "f1", "Yes ratio": "yes_ratio"}


@pytest.mark.parametrize("case", ["adversarial_clean", "adversarial_odd", "degenerate_all_no", "degenerate_shorter_than_labels"])
def test_pope_matches_official_output(shared_data, tmp_path, case):
    split = "popular" if case.startswith("degenerate") else "adversarial"
    case_dir = shared_data / "parity" / "POPE" / case
    data = shared_data / "benchdata" / "POPE" / f"coco_pope_{split}.json"
    result = evaluate("pope", EvalConfig(answers=str(case_dir / "input.jsonl"), data=str(data), output_dir=str(tmp_path)))
    printed = dict(re.findall(r"^([\w ]+): ([\d.]+)$", (case_dir / "official_output.txt").read_text(), re.M))
    for label, name in METRIC_NAMES.items():
        metric = result["metrics"]["official"][name]
        assert (metric is None and label not in printed) if not printed else str(metric["value"]) == printed[label]
    if (case_dir / "official_parsed.txt").exists():
        rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
        assert [r["official"] for r in rows] == (case_dir / "official_parsed.txt").read_text().split()


def test_pope_official_matches_parse_table(shared_data):
    rows = [json.loads(line) for line in (shared_data / "parity" / "POPE" / "parse_table.jsonl").read_text().splitlines()]
    assert len(rows) == 60 and all(pope_official(r["text"]) == r["official"] for r in rows)


@pytest.mark.parametrize("name", ["POPE/coco_pope_random_2910_e3e3926.json", "RePOPE/coco_repope_popular.json", "POPE/popev2_annotations.json",
                                  "POPE/seem/gqa_pope_seem_random.json"])  # fmt: skip
def test_pope_reads_every_version_of_the_questions(shared_data, tmp_path, capsys, name):
    data = shared_data / "benchdata" / name
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "answer": "Yes"}')
    result = evaluate("pope", EvalConfig(answers=str(tmp_path / "a.jsonl"), data=str(data), output_dir=str(tmp_path / "out")))
    version = next(iter(result["data_version"].values()))
    count = {"random_2910": 2910, "repope": 2727, "popev2": 1000, "seem": 3000}
    assert result["counts"]["missing"] + result["n"] == next(n for part, n in count.items() if part in name) and version
    assert "is not a known version" not in capsys.readouterr().err
