"""The glossary keeps up with what is written."""

import re
from pathlib import Path

from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.training import losses

ROOT = Path(__file__).parents[1]
GLOSSARY = set(re.findall(r"`([\w/]+)`", (ROOT / "docs" / "metrics.md").read_text()))


def test_glossary_explains_every_scenes_metric():
    row = {"split": "held_out", "kind": "describe", "false_by_type": [[0] * 4], "claims_by_type": [[1] * 4], "length": [2, 2]}
    row |= {
        "answers": ["a ring", "a star"],
        "true": [1, 1],
        "cooccurrence_errors": [0, 0],
        "perception_errors": [0, 0],
        "covered": [1, 1],
        "owed": [2, 2],
    }
    asked = {"split": "held_out", "kind": "yes_no", "truth": "yes", "said": ["yes"]}
    figures = {name.removesuffix("_ci") for name in load_benchmark("scenes").by_split([row, asked])["held_out"]}
    assert {"ead_within", "yes_rate"} <= figures
    assert figures - GLOSSARY == set()


def test_glossary_explains_every_training_metric():
    source = "".join(Path(path).read_text() for path in (losses.__file__, ROOT / "mmrlhf" / "ppo.py"))
    logged = set(re.findall(r'"((?:objective|policy|value|critic|completions|val|loss)/\w+)"', source))
    assert len(logged) > 14
    assert logged - GLOSSARY == set()
