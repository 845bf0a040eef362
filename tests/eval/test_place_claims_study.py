"""The study of place claims: what it counts in an answer."""

import math

import pytest

from mmrlhf import scenes
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.records import InputError
from mmrlhf.scenes.vocabulary import CELL_NAMES


@pytest.fixture
def place_claims(load_study):
    return load_study("place_claims")


def test_places_are_counted_by_the_scene_graph(place_claims):
    (row,) = place_claims.evaluation_rows("held_out", 7, 1)
    scene = scenes.generate_scene("held_out", row.meta["index"], load_benchmark("scenes").module.SEED)
    obj, absent = scene.objects[0], next(s for s in scenes.vocabulary.SHAPES if s not in {o.shape for o in scene.objects})
    taken = {o.cell for o in scene.objects if o.shape == obj.shape}
    wrong = CELL_NAMES[next(cell for cell in range(9) if cell not in taken)]
    right_text = f"There is a {obj.shape} at the {CELL_NAMES[obj.cell]}."
    wrong_text = f"There is a {obj.shape} at the {wrong} and a {absent}."
    counts = place_claims.count_places([row], {row.id: [right_text, wrong_text]})
    assert counts == {"places": 1.0, "wrong_places": 0.5, "wrong_share": 0.5, "false_others": 0.5}
    assert math.isnan(place_claims.count_places([row], {row.id: [f"A {obj.shape}."]})["wrong_share"])


def test_a_policy_that_was_not_trained_is_named(place_claims, tmp_path):
    with pytest.raises(InputError, match=r"has no claims-sum-places: train it with claims\.py --only claims-sum-places"):
        place_claims.measure(place_claims.Experiment(tmp_path, 7), "claims-sum-places", 0.3, 10)
