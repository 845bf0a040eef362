"""The study of algorithms: settings, corrections by an erring annotator, tables by a pencil."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrlhf import scenes
from mmrlhf.demo import data
from mmrlhf.files.bundled import folder
from mmrlhf.records import InputError, Preference
from mmrlhf.rewards.build import check_rewards
from mmrlhf.training.ppo.settings import check_minibatches, check_settings

STUDIES = Path(__file__).parents[2] / "eval" / "studies"
SIZES = {
    "sft_rows": 8, "pair_scenes": 8, "held_out_pairs": 2, "answers": 96, "prompts_per_step": 6, "selection_scenes": 2,
    "held_out_scenes": 2, "shift_scenes": 2, "kl_scenes": 2, "diversity_scenes": 2, "best_of_n": 2,
}  # fmt: skip


@pytest.fixture
def world(load_study, tmp_path):
    """A world whose SFT model and pairs exist already."""
    training = load_study("algorithms_training")
    made = training.make_world(tmp_path, 7, training.Sizes("hash", **SIZES))
    scene = data.training_scene("pairs", 1, made.experiment.data_config)
    pair = Preference.from_pair("pairs-000001-3", (scene.image_source(),), (), "There is a moon.", "There is a star.")
    made.experiment.__dict__.update(sft_path="sft", pairs=([pair] * 20, [pair]))
    return made


# ---- methods -------------------------------------------------------------------------------------


def test_every_method_is_trained_with_valid_settings_and_its_share_of_the_budget(load_study, world, monkeypatch):
    training, common, seen = load_study("algorithms_training"), load_study("common"), {}
    for module, stage in ((training, "sft"), (training, "dpo"), (training, "rft"), (common, "ppo")):
        monkeypatch.setattr(module, stage, lambda config, rows, *_, stage=stage: seen.setdefault(name, (stage, config, rows)))
    monkeypatch.setattr(training, "build_judge", lambda experiment, labels, arm: f"judge-{labels}-{arm}")
    for name, (setting, values) in training.STRENGTHS.items():
        policy = training.policy_of(world, name, 10, values[2])
        _, config, rows = seen[name]
        assert getattr(config, setting) == values[2] and len(values) == 3
        assert config.model_name_or_path == "sft" and f"{values[2]:g}" in config.output_dir
        assert (policy.adapter_path is None) == (name in ("rft", "rft3", "sft_chosen"))
        if name in ("rft", "rft3"):
            assert config.num_rounds * config.num_generations * len(rows) == world.sizes.answers
        elif name in training.ESTIMATORS:
            check_settings(config)
            check_minibatches(config, 1)
            assert config.max_steps * config.per_device_train_batch_size * config.num_generations == world.sizes.answers
        if name in training.JUDGED:
            check_rewards(config, ())
            assert config.reward_model_path == "judge-10-annotator" and all(row.facts for row in rows)
    assert set(training.METHODS) - set(training.STRENGTHS) == {"sft", "sft_t03", "sft_t07", "clean_sft", "best_of_n"}
    assert len(training.METHODS) == 13
    assert seen["ddpo"][1].changed_token_weight == 5 and seen["dpo"][1].changed_token_weight == 1
    assert "hallucination=-1" in seen["ppo_dense"][1].reward_terms
    assert [row.answer for row in seen["sft_chosen"][2]] == ["There is a moon."] * 10
    with pytest.raises(InputError, match="has 20 training pairs, not 21: raise --pair-scenes"):
        training.labelled_pairs(world, 21)


def test_adaptive_kl_is_trained_on_the_same_number_of_answers(load_study, world, monkeypatch):
    training, common, seen = load_study("algorithms_training"), load_study("common"), []
    monkeypatch.setattr(common, "ppo", lambda config, *_: seen.append(config))
    monkeypatch.setattr(training, "build_judge", lambda *_: "judge")
    monkeypatch.setattr(training, "read_jsonl", lambda path: [{"step": 0}, {"step": 1, "objective/kl": 1.0}])
    assert training.measure_adaptive_kl(world, 10) == {"held_share": None, "means": []}  # too short for a mean of ten
    (config,) = seen
    check_settings(config)
    check_minibatches(config, 1)
    assert config.max_steps * config.per_device_train_batch_size * config.num_generations == world.sizes.answers
    assert (config.kl_controller, config.target_kl, config.kl_coef) == ("adaptive", 1.0, 0.3)


def test_share_of_steps_whose_mean_is_near_the_target(load_study):
    """The first 10 of 30 steps are warm-up; the 21 means of ten that end after it count."""
    held_share = load_study("algorithms_training").held_share
    assert held_share([1.0] * 30, 1.0)["held_share"] == 1
    assert held_share([1.6] * 30, 1.0)["held_share"] == 0 == held_share([0.6] * 30, 1.0)["held_share"]
    # From step 21 on KL 2: the mean at step 20 + k is 1 + k / 10, within 1.5 up to k = 5.
    assert held_share([1.0] * 20 + [2.0] * 10, 1.0)["held_share"] == pytest.approx(16 / 21)


def test_the_value_that_is_best_on_the_tuning_seed(load_study):
    tuned_value = load_study("algorithms_measure").tuned_value
    assert tuned_value({0.1: 3.0, 0.03: 5.0, 0.01: 5.0}) == 0.01


# ---- corrections ---------------------------------------------------------------------------------


@pytest.fixture
def scene():
    objects = (scenes.SceneObject("ring", "red", "large", 0), scenes.SceneObject("star", "blue", "small", 4, "dotted"))
    return replace(scenes.generate_scene("pairs", 0, 0), objects=objects)


@pytest.mark.parametrize(
    ("answer", "corrected"),
    [
        ("There is a red ring and a blue star. That makes two objects.", None),
        ("I can see a green ring and a blue star.", "I can see a red ring and a blue star."),
        ("There is a red ring, a moon and a star. That makes three objects.", "There is a red ring and a star. That makes two objects."),
        ("There is a striped star at the top.", "There is a dotted star at the centre."),
        ("There is an orange moon. There is one object in total.", "There are two objects in total."),
        ("There is a ring. The red ring is right of the blue star.", "There is a ring."),
        ("There is a ring and a ring.", "There is a ring."),
        ("There is a star, a red star and a small star.", "There is a small star."),
        ("There is a striped object and a moon.", "There is an object."),  # nobody says `plain`
    ],
)  # fmt: skip
def test_corrections_change_what_the_view_contradicts_and_nothing_else(load_study, scene, answer, corrected):
    assert load_study("annotator_corrections").correct(scene, answer) == (corrected or answer)


def test_true_captions_stay_and_faulty_ones_become_true(load_study):
    correct = load_study("annotator_corrections").correct
    for index in range(40):
        scene, rng = scenes.generate_scene("pairs", index, 0), np.random.default_rng(index)
        clean = scenes.caption(scene, rng)
        assert correct(scene, clean) == clean
        faulty = scenes.caption(scene, rng, cooccurrence_bias=0.9, num_faults=2, location_rate=0.2)
        assert not scenes.verify_answer(scene, correct(scene, faulty)).false_claims


def test_an_annotators_view_errs_at_its_rate(load_study):
    annotator_view = load_study("annotator_corrections").annotator_view
    scene_list = [scenes.generate_scene("pairs", index, 0) for index in range(300)]
    assert annotator_view(scene_list[0], np.random.default_rng(0), 0.0) == scene_list[0]
    views = [annotator_view(scene, np.random.default_rng(i), 0.1) for i, scene in enumerate(scene_list)]
    kept = sum(o in view.objects for scene, view in zip(scene_list, views, strict=True) for o in scene.objects)
    assert kept / sum(len(scene.objects) for scene in scene_list) == pytest.approx(0.9, abs=0.03)
    imagined = [{o.cell for o in v.objects} - {o.cell for o in s.objects} for s, v in zip(scene_list, views, strict=True)]
    assert np.mean([bool(cells) for cells in imagined]) == pytest.approx(0.1, abs=0.05)


def test_corrections_come_from_one_answer_of_each_pair_by_the_view_of_its_scene(load_study, world):
    corrections, config = load_study("annotator_corrections"), world.experiment.data_config
    rows = []
    for index in range(30):
        scene = data.training_scene("pairs", index, config)
        faulty = scenes.caption(scene, np.random.default_rng(index), num_faults=3)
        pair = Preference.from_pair(f"{scene.id}-{index}", (scene.image_source(),), (), faulty, "There is nothing.")
        rows.append(replace(pair, answers=(faulty, faulty)))
    pairs = corrections.corrected_pairs(rows, config)
    assert 15 < len(pairs) <= 27  # nine of ten ask for a description
    for pair in pairs:
        assert pair.rejected in {row.chosen for row in rows} and pair.chosen != pair.rejected
        view_rng = np.random.default_rng([config.seed, 71, int(pair.id.split("-")[1])])
        scene = data.training_scene("pairs", int(pair.id.split("-")[1]), config)
        view = corrections.annotator_view(scene, view_rng, config.annotator_error)
        assert not scenes.verify_answer(view, pair.chosen).false_claims
    assert pairs == corrections.corrected_pairs(rows, config)


# ---- measurements --------------------------------------------------------------------------------


def test_kl_of_sft_to_itself_is_zero_and_that_of_a_low_temperature_is_not(load_study):
    measure, base = load_study("algorithms_measure"), str(folder("data") / "tiny_vlm")
    rows = measure.description_rows("held_out", 8)
    policy = measure.Policy(base)
    assert measure.kl_to_sft(policy, base, rows, 1.0, 0) == pytest.approx(0, abs=1e-4)
    assert measure.kl_to_sft(policy, base, rows, 0.3, 0) > 0.3
    assert measure.best_of_n_kl(16) == pytest.approx(math.log(16) - 15 / 16) and measure.best_of_n_kl(1) == 0


# ---- report --------------------------------------------------------------------------------------


def write_cell(out, name, content):
    (out / "cells").mkdir(exist_ok=True)
    (out / "cells" / f"{name}.json").write_text(json.dumps(content))


def write_method(out, method, labels, by_seed, **extra):
    """Write a method whose metrics are those of SFT, except the given ones."""
    for seed, change in by_seed.items():
        metrics = {
            "chair_s": 0.4, "coverage": 0.96, "claim_f1": 0.93, "u": 4.0, "habit": 0.3, "sight": 0.2, "ead": 0.8,
            "kl": 1.0, "chair_i": 0.1, "words": 19.0, **change,
        }  # fmt: skip
        by_split = {split: metrics for split in ("held_out", "ood_1", "ood_2", "ood_3")}
        by_split["ood_1"] = {**metrics, "claim_f1": metrics["claim_f1"] - 0.3}
        write_cell(out, f"measure-{seed}-{method}-{labels}", {"metrics": by_split, "core_seconds": 10.0, **extra})


@pytest.fixture
def measured(tmp_path):
    """Two seeds of SFT, PPO, which reaches all, and DPO, which reaches u in one seed only."""
    for seed in (4, 5):
        for stage, seconds in (("sft", 60.0), ("pairs", 50.0), ("judge_80", 100.0), ("judge_8", 20.0)):
            write_cell(tmp_path, f"prepare-{seed}-{stage}", {"core_seconds": seconds})
        write_cell(tmp_path, f"adaptive_kl-{seed}-80", {"held_share": 1.0 if seed == 4 else 0.5, "means": []})
        write_cell(
            tmp_path, f"diversity-{seed}-ppo-80", dict.fromkeys(("ead_within", "ead", "distinct_2_within", "distinct_2"), 0.5)
        )
    write_method(tmp_path, "sft", 0, {4: {}, 5: {"u": 4.1}})
    write_method(
        tmp_path, "ppo", 80, {4: {"u": 7.0, "habit": 0.02, "coverage": 0.95}, 5: {"u": 7.1, "habit": 0.04, "coverage": 0.95}}
    )
    write_method(tmp_path, "dpo", 80, {4: {"u": 9.0, "coverage": 0.9}, 5: {"u": 3.0, "coverage": 0.9}})
    write_method(tmp_path, "ppo", 8, {4: {"u": 5.0}})
    for value, u in ((0.1, 5.0), (0.3, 6.0), (1.0, 4.0)):
        write_cell(tmp_path, f"tune-3-ppo-80-{value:g}", {"u": u})
    return tmp_path


def test_report_has_each_method_with_intervals_and_says_what_is_reached(load_study, measured, capsys):
    result = load_study("algorithms_report").report(measured, [80, 8])
    assert list(result["methods"]) == ["sft", "dpo", "ppo"] and result["seeds"] == [4, 5]
    metrics = ["chair_s", "coverage", "claim_f1", "u", "habit", "sight", "ead", "kl", "seconds"]
    assert all(list(row) == metrics for row in result["methods"].values())
    u = result["methods"]["sft"]["u"]
    assert (u["mean"], u["low"], u["high"]) == pytest.approx((4.05, 4.05 - 0.6353, 4.05 + 0.6353), abs=1e-3)  # 12.706 x .05
    seconds = {method: row["seconds"]["mean"] for method, row in result["methods"].items()}
    assert seconds == {"sft": 70, "dpo": 120, "ppo": 220}  # 60 + 10; + 50 for the pairs; + 100 for the judge
    targets = result["targets"]
    assert targets["ppo"]["habit_share"] == pytest.approx(0.1) and targets["ppo"]["coverage_change"] == pytest.approx(-0.01)
    assert targets["ppo"]["above"] == ["sft"] and targets["ppo"]["worse_than_sft"] == []
    assert targets["dpo"] == {**targets["dpo"], "above": [], "worse_than_sft": [5], "reaches": False} and set(targets) == {
        "ppo",
        "dpo",
    }
    assert result["other_labels"]["8"]["methods"]["ppo"]["u"] == {"mean": 5.0, "low": None, "high": None}
    assert result["generalisation"]["ppo"]["claim_f1_lost"]["mean"] == pytest.approx(0.1)  # .3 on one shift of three
    assert result["adaptive_kl"]["held_share"] == {4: 1.0, 5: 0.5} and not result["adaptive_kl"]["holds_on_every_seed"]
    assert result["settings"]["tuning"]["80"]["ppo"] == {
        "setting": "kl_coef",
        "selection_u": {"0.1": 5.0, "0.3": 6.0, "1": 4.0},
    }
    printed = capsys.readouterr().out
    assert "| dpo | 1.00 | -6.0 | none | 5 | no |" in printed and "## held_out, 8 labels" in printed
    for name in ("truth_coverage.png", "hallucination_kl.svg"):
        assert (measured / "figures" / name).stat().st_size > 5000
    json.dumps(result, allow_nan=False)


def test_figures_leave_out_outliers_and_names_keep_their_distance(load_study):
    figures = load_study("algorithms_figures")
    assert figures.outliers({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "far": 12.0}) == ["far"]  # 9 from 3; 4 x 2 allowed
    assert figures.outliers({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 11.0}) == []
    assert figures.spread_apart([0.1, 0.12, 0.5], 0.1) == pytest.approx([0.1, 0.2, 0.5])
    assert figures.spread_apart([0.3, 0.95, 0.98], 0.1) == pytest.approx([0.3, 0.9, 1.0])


def test_feedback_scaling_reports_each_number_of_labels_beside_sft(load_study, measured, capsys):
    result = load_study("feedback_scaling").report(measured, [8, 80])
    assert {n: list(methods) for n, methods in result["labels"].items()} == {"8": ["ppo"], "80": ["dpo", "ppo"]}
    assert "| ppo | 80 | +3.00 ± 0.00 | +0.0 ± 0.0 | -0.27 ± 0.13 |" in capsys.readouterr().out  # 7.0 - 4.0 and 7.1 - 4.1


def test_reports_of_nothing_and_directories_of_other_sizes_are_refused(load_study, tmp_path, capsys):
    algorithms = load_study("algorithms")
    with pytest.raises(InputError, match="has no method that was measured with 8000 labels"):
        algorithms.report(tmp_path, [8000])
    with pytest.raises(InputError, match="has no method that was measured: run"):
        load_study("feedback_scaling").report(tmp_path, [8000])
    algorithms.directory_sizes(algorithms.parse_arguments(["--out", str(tmp_path)]))
    with pytest.raises(InputError, match="holds a study with another answers, best_of_n: give another --out"):
        algorithms.directory_sizes(algorithms.parse_arguments(["--out", str(tmp_path), "--answers", "96", "--best-of-n", "4"]))
    with pytest.raises(InputError, match="--answers 100 is not a multiple"):
        algorithms.directory_sizes(algorithms.parse_arguments(["--out", str(tmp_path), "--answers", "100"]))
    with pytest.raises(InputError, match=r"--base .*nowhere has no model.safetensors"):
        algorithms.directory_sizes(algorithms.parse_arguments(["--out", str(tmp_path), "--base", str(tmp_path / "nowhere")]))
    for arguments in (["--seeds", "0"], ["--tuning-seed", "5"], ["--methods", "ppo3"]):
        with pytest.raises(SystemExit):
            algorithms.parse_arguments(["--out", str(tmp_path), *arguments])
