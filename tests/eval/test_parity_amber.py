"""AMBER's yes/no part as inference.py prints it, and its nouns."""

import re
import time

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.text import lemmatize

SECTION_PREFIXES = {"Descriminative Task": "", "Exsitence": "existence_", "Attribute": "attribute_", "State": "state_", "Number": "number_",
          "Action": "action_", "Relation": "relation_"}  # fmt: skip


def test_amber_discriminative_matches_official_output(shared_data, tmp_path):
    place = shared_data / "parity" / "AMBER" / "discriminative_exact"
    began = time.process_time()
    config = EvalConfig(
        answers=str(place / "input.json"), data=str(shared_data / "benchdata" / "AMBER"), output_dir=str(tmp_path)
    )
    result = evaluate("amber", config)
    assert time.process_time() - began < 15 and result["n"] == 14216 and result["counts"]["missing"] == 0
    official, compared = result["metrics"]["official"], 0
    for part in ("d", "da", "de", "dr"):
        printed = (place / f"official_output_{part}.txt").read_text()
        for title, figures in re.findall(r"^([\w ]+):\n((?:\w+:\s+[\d.]+ *\n?)+)", printed, re.M):
            for name, figure in re.findall(r"(\w+):\s+([\d.]+)", figures):
                compared += 1
                assert str(round(official[SECTION_PREFIXES[title] + name.lower()]["value"], 1)) == figure, (title, name)
    assert compared == 4 * 13
    assert official["chair"] is None and "generative" in result["reasons"]["official"]["chair"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Two men stand near a dog's bowls.", ["men", "dog", "bowl"]),
        ("GRASS and Sky. Leaves", ["GRASS", "Sky", "Leaves"]),
        ("", []),
    ],
)
def test_nouns_match_hand_labels(shared_data, monkeypatch, text, found):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data"), *nltk.data.path])
    lemmatize._nltk.cache_clear()
    assert lemmatize.nouns(text) == found
