"""docs/metrics.md explains every metric that is written."""

import re
from pathlib import Path

from mmrlhf.evaluation.benchmark import load_benchmark

ROOT = Path(__file__).parents[1]
GLOSSARY = set(re.findall(r"`([\w/]+)`", (ROOT / "docs" / "metrics.md").read_text()))


def test_glossary_explains_every_scenes_metric():
    row = {
        "split": "held_out",
        "index": 0,
        "kind": "describe",
        "false_by_type": [[0] * 4],
        "claims_by_type": [[1] * 4],
        "length": [2, 2],
    }
    row |= {
        "answers": ["a ring", "a star"],
        "true": [1, 1],
        "cooccurrence_errors": [0, 0],
        "perception_errors": [0, 0],
        "covered": [1, 1],
        "expected": [2, 2],
    }
    yes_no_row = {"split": "held_out", "index": 0, "kind": "yes_no", "truth": "yes", "said": ["yes"]}
    metrics = {name.removesuffix("_ci") for name in load_benchmark("scenes").module.by_split([row, yes_no_row])["held_out"]}
    assert {"ead_within", "yes_rate"} <= metrics
    assert metrics - GLOSSARY == set()


def test_glossary_explains_every_training_metric():
    package = ROOT / "mmrlhf"
    source = "".join(path.read_text() for path in (package / "ppo.py", *sorted((package / "training").rglob("*.py"))))
    logged = set(re.findall(r'"((?:objective|policy|value|critic|completions|val|loss)/\w+)"', source))
    assert len(logged) > 14
    assert logged - GLOSSARY == set()
