"""The demo's rows: the bias changes captions only, and pairs are ranked by utility."""

import json

import numpy as np
import pytest

from mmrlhf import scenes
from mmrlhf.config import ScenesConfig
from mmrlhf.demo import data
from mmrlhf.records import InputError


@pytest.fixture(scope="module")
def config():
    return ScenesConfig(sft_rows=40, rl_scenes=20, pair_scenes=40, held_out_pairs=10)


def test_lazy_rows_are_built_once_and_only_when_used():
    calls = []
    rows = data.LazyRows(lambda: calls.append("built") or [1, 2, 3])
    assert calls == []
    assert len(rows) == 3 and rows[1] == 2 and list(rows) == [1, 2, 3] and rows[1:] == [2, 3]
    assert calls == ["built"]


def test_build_sft_rows_bias_changes_only_the_answers(config):
    biased, clean = (data.build_sft_rows(config, bias) for bias in (1.0, 0.0))
    assert [(e.id, e.images, e.prompt) for e in biased] == [(e.id, e.images, e.prompt) for e in clean]
    errors = [scenes.verify_answer(data.training_scene("sft", i, config), e.answer) for i, e in enumerate(biased)]
    assert any(v.cooccurrence_errors for v in errors)
    for i, example in enumerate(clean):
        assert not scenes.verify_answer(data.training_scene("sft", i, config), example.answer).false_claims


def test_build_rl_prompts_have_facts_and_no_answer(config):
    prompts = data.build_rl_prompts(config)
    assert len(prompts) == 20 and all(e.answer is None and e.images for e in prompts)
    assert sum(bool(e.facts) for e in prompts) > 15


@pytest.fixture
def answers_file(tmp_path, config):
    """Sampled answers of each scene, with more and more faults."""
    lines = []
    for index in range(config.pair_scenes):
        scene, rng = data.training_scene("pairs", index, config), np.random.default_rng(index)
        answers = [scenes.caption(scene, rng, num_faults=num_faults) for num_faults in (0, 1, 2, 4)]
        lines.append(json.dumps({"id": scene.id, "answers": answers}) + "\n")
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(lines))
    return path


def test_build_preference_pairs_split_no_scene_between_training_and_held_out(config, answers_file):
    training, held_out = data.build_preference_pairs(config, "no model is loaded", answers_file)
    assert len(held_out) >= config.held_out_pairs and len(training) > 20
    assert not {p.images for p in training} & {p.images for p in held_out}
    ids = [p.id for p in (*held_out, *training)]
    assert len(set(ids)) == len(ids)


def test_build_preference_pairs_need_some_to_train_on(answers_file):
    config = ScenesConfig(pair_scenes=40, held_out_pairs=500)
    with pytest.raises(InputError, match="pairs of 40 scenes leave none beside 500 held-out ones: raise pair_scenes"):
        data.build_preference_pairs(config, "no model is loaded", answers_file)


def test_build_preference_pairs_rank_by_utility_without_annotator_errors(answers_file):
    config = ScenesConfig(pair_scenes=40, held_out_pairs=10, annotator_error=0.0)
    training, held_out = data.build_preference_pairs(config, "no model is loaded", answers_file)
    for pair in (*training, *held_out):
        scene = data.training_scene("pairs", int(pair.id.split("-")[1]), config)
        chosen, rejected = (scenes.utility(scene, text, config.false_claim_penalty) for text in pair.answers)
        assert chosen - rejected >= config.min_utility_gap


def test_build_preference_pairs_flip_a_share_of_labels(answers_file):
    right, flipped = (
        data.build_preference_pairs(ScenesConfig(pair_scenes=40, held_out_pairs=10, annotator_error=rate), "", answers_file)
        for rate in (0.0, 1.0)
    )
    for pair, opposite in zip((*right[1], *right[0]), (*flipped[1], *flipped[0]), strict=True):
        assert pair.answers == opposite.answers[::-1]


def test_benchmark_rows_get_facts_on_request(config):
    rows = data.benchmark_rows("held_out", 3)
    with_facts = data.benchmark_rows("held_out", 3, facts_config=config)
    assert [e.id for e in rows] == [e.id for e in with_facts] and not any(e.facts for e in rows)
    scene = scenes.generate_scene("held_out", 1, 0)
    facts = next(e.facts for e in with_facts if e.id == f"{scene.id}-describe")
    assert facts == data.evaluation_facts(config, scene, 1)
