"""CHAIR's matching, against the official scripts."""

import json

from mmrlhf.claims import load_synonyms
from mmrlhf.text.coco_objects import match_objects


def test_match_objects_matches_official_chair_scripts(shared_data):
    table = load_synonyms(shared_data / "benchdata/CHAIR/synonyms.txt")
    official = shared_data / "parity/CHAIR/synthetic"
    for lineage in "AB":  # the two singularisation rules in use
        for row in json.loads((official / f"official_{lineage}_sentences.json").read_text())["sentences"]:
            assert [node for *_, node in match_objects(row["words"], table)] == row["mscoco_generated_words"], row["caption"]
