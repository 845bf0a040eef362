"""CHAIR as its two official scripts print it."""

import json
import re

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.text import lemmatize

METRIC_NAMES = {"CHAIRs": "chair_s", "CHAIRi": "chair_i", "Recall": "recall", "Len": "length"}


@pytest.fixture(autouse=True)
def nltk_data(shared_data, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data"), *nltk.data.path])
    lemmatize._nltk.cache_clear()


@pytest.mark.parametrize(("lineage", "suffix"), [("a", ""), ("b", ""), ("a", "_unknown_image")])
def test_chair_matches_official_output(shared_data, tmp_path, lineage, suffix):
    case = shared_data / "parity" / "CHAIR" / "synthetic"
    config = EvalConfig(answers=str(case / f"input{suffix}.jsonl"), data=str(case / "annotations"), output_dir=str(tmp_path))
    official = evaluate("chair", config, {"lineage": lineage})["metrics"]["official"]
    printed = dict(
        re.findall(r"^(\w+) *: ([\d.]+)$", (case / f"official_{lineage.upper()}{suffix}_output.txt").read_text(), re.M)
    )
    assert {name: f"{official[METRIC_NAMES[name]]['value']:.1f}" for name in printed} == printed and len(printed) >= 3
    if not suffix:
        sentences = json.loads((case / f"official_{lineage.upper()}_sentences.json").read_text())["sentences"]
        rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
        for theirs, row in zip(sentences, rows, strict=True):
            ours = row["official"]
            assert ours["false"] == theirs["mscoco_hallucinated_words"] and ours["said"] == len(theirs["mscoco_generated_words"])
            assert (ours["there"], ours["length"]) == (len(theirs["mscoco_gt_words"]), len(theirs["words"]))


@pytest.mark.parametrize(
    ("lineage", "captions", "figures"),
    [
        ("a", "opera_captions/minigpt4_greedy", (29.0, 9.2)), ("b", "opera_captions/minigpt4_greedy", (31.8, 9.9)),
        ("a", "opera_captions/instructblip_greedy", (57.2, 22.7)), ("b", "opera_captions/llava-1.5_greedy", (45.0, 12.7)),
        ("b", "lessismore_captions/r1-llava1.5-7b", (50.4, None)),
    ],
)  # fmt: skip
def test_chair_matches_published_results_of_real_models(shared_data, tmp_path, lineage, captions, figures):
    case = shared_data / "benchdata" / "CHAIR"
    data = case / "coco_gt_objects_opera_lessismore.json"
    config = EvalConfig(answers=str(case / f"{captions}.jsonl"), data=str(data), output_dir=str(tmp_path))
    official = evaluate("chair", config, {"lineage": lineage})["metrics"]["official"]
    assert round(official["chair_s"]["value"], 1) == figures[0]
    assert figures[1] is None or round(official["chair_i"]["value"], 1) == figures[1]
