"""AMBER's yes/no metrics as inference.py prints them, and its nouns."""

import re
from collections import Counter

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.files import rows
from mmrlhf.text import lemmatize

SECTION_PREFIXES = {
    "Descriminative Task": "",
    "Exsitence": "existence_",
    "Attribute": "attribute_",
    "State": "state_",
    "Number": "number_",
    "Action": "action_",
    "Relation": "relation_",
}
"""Prefixes of our metrics by the script's titles, as it spells them."""


def test_amber_discriminative_matches_official_output(shared_data, tmp_path, monkeypatch):
    num_reads = Counter()
    read_json = rows.read_json
    monkeypatch.setattr(rows, "read_json", lambda path: num_reads.update([path.name]) or read_json(path))
    case = shared_data / "parity" / "AMBER" / "discriminative_exact"
    data = shared_data / "benchdata" / "AMBER"
    result = evaluate("amber", EvalConfig(answers=str(case / "input.json"), data=str(data), output_dir=str(tmp_path)))
    assert result["n"] == 14216 and result["counts"]["missing"] == 0
    # Each file is read once or twice, not once for each question.
    assert {"annotations.json", "relation.json"} <= num_reads.keys() and max(num_reads.values()) <= 2
    official, num_compared = result["metrics"]["official"], 0
    for part in ("d", "da", "de", "dr"):
        printed = (case / f"official_output_{part}.txt").read_text()
        for title, lines in re.findall(r"^([\w ]+):\n((?:\w+:\s+[\d.]+ *\n?)+)", printed, re.M):
            for name, value in re.findall(r"(\w+):\s+([\d.]+)", lines):
                metric = official[SECTION_PREFIXES[title] + name.lower()]
                assert str(round(metric["value"], 1)) == value, (title, name)
                num_compared += 1
    assert num_compared == 4 * 13
    assert official["chair"] is None and "generative" in result["reasons"]["official"]["chair"]


@pytest.mark.parametrize(
    ("text", "nouns"),
    [
        ("Two men stand near a dog's bowls.", ["men", "dog", "bowl"]),
        ("GRASS and Sky. Leaves", ["GRASS", "Sky", "Leaves"]),
        ("", []),
    ],
)
def test_nouns_match_hand_labels(shared_data, monkeypatch, text, nouns):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data"), *nltk.data.path])
    lemmatize._nltk.cache_clear()
    assert lemmatize.nouns(text) == nouns
