"""The studies import, their settings are valid, and their claims and tables are right."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmrlhf import scenes
from mmrlhf.metrics.intervals import wilson

STUDIES = Path(__file__).parents[2] / "eval" / "studies"
PARTS = (
    "common", "labelled_claims", "facts_map_curves", "facts_map_analysis", "facts_map_judges", "facts_map_plots",
    "facts_map_slopes", "facts_map_coefficients", "algorithms_training", "algorithms_measure", "algorithms_report", "algorithms_figures",
    "annotator_corrections",
)  # fmt: skip
"""Modules of several studies, which are no commands."""


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.py")))
def test_study_imports_and_documents_its_command(load_study, name):
    module = load_study(name)
    if name not in PARTS:
        assert f"python eval/studies/{name}.py" in module.__doc__ and callable(module.main)


def test_experiment_settings_are_fields_of_the_demo_configuration(load_study, tmp_path):
    common = load_study("common")
    config = common.Experiment(tmp_path, 3, "harder", fact_recall=0.5).data_config
    assert (config.seed, config.occluded_share, config.fact_recall) == (3, common.DIFFICULTIES["harder"], 0.5)


def test_cached_result_is_computed_once(load_study, tmp_path):
    cached_result, calls = load_study("common").cached_result, []
    for _ in range(2):
        result = cached_result(tmp_path, "cell", lambda: calls.append("computed") or {"accuracy": 0.5})
        assert result["accuracy"] == 0.5
    assert calls == ["computed"]


@pytest.mark.parametrize(
    ("values", "text"),
    [([], "-"), ([0.5], "0.50"), ([1.0, 3.0], "2.00 ± 12.71"), ([2.0, 2.0, 2.0], "2.00 ± 0.00")],
)
def test_format_mean(load_study, values, text):
    assert load_study("common").format_mean(values) == text  # 12.71: t of one degree of freedom, times 1


@pytest.mark.parametrize(
    ("deviation", "confidence", "seeds"), [(1.0, 0.95, 10), (2.0, 0.95, 34), (1.0, 0.975, 13), (1e-3, 0.95, 2)]
)
def test_seeds_needed_are_those_of_a_paired_t_test(load_study, deviation, confidence, seeds):
    """Cohen's tables for 80% power: 10 pairs for an effect of one deviation, 34 for a half."""
    assert load_study("common").seeds_needed(deviation, 1.0, confidence) == seeds


def test_sample_labelled_claims_are_labelled_as_the_scene_graph_decides(load_study):
    module = load_study("labelled_claims")
    for index in range(50):
        scene = scenes.generate_scene("held_out", index, 0)
        labelled = module.sample_labelled_claims(scene, np.random.default_rng(index))
        assert labelled and sum(c.is_true for c in labelled) == len(labelled) / 2
        assert all(module.is_claim_true(scene, c.claim) == c.is_true for c in labelled)
    assert len(module.sample_claims(scene, [0], num_claims=5)) == 5


def test_probe_sentences_are_a_false_and_a_true_claim(load_study):
    module = load_study("reward_accuracy")
    scene = scenes.generate_scene("held_out", 0, 0)
    names, count = {o.name for o in scene.objects}, len(scene.objects)
    false_text, true_text = module.probe_sentences(scene, "object", np.random.default_rng(0))
    assert any(name in true_text for name in names) and not any(name in false_text for name in names)
    false_text, true_text = module.probe_sentences(scene, "count", np.random.default_rng(0))
    assert scenes.count_phrase(count, "object") in true_text and false_text != true_text


def test_reward_recipes_are_valid_and_leave_out_what_needs_facts(load_study, tmp_path):
    module = load_study("reward_recipes")
    for recipe in module.RECIPES.values():
        paths = {"model_name_or_path": "m", "eval_dataset_name": "e"}
        module.stage_config(module.RewardConfig, 0, tmp_path, **paths, **recipe.settings)
        assert all(name in module.RECIPES for name in recipe.ensemble)
    cells = module.select_cells(["untrained", "plain", "injected", "claims"], [250, 1000], ["annotator", "none"])
    assert [cell.name for cell in cells] == [
        "untrained-0-annotator", "untrained-0-none",
        "plain-250-annotator", "plain-1000-annotator", "plain-250-none", "plain-1000-none",
        "injected-250-annotator", "injected-1000-annotator", "claims-0-annotator",
    ]  # fmt: skip
    with pytest.raises(module.InputError, match="there is no recipe magic: use untrained, plain"):
        module.select_cells(["magic"], [250], ["none"])


def test_reward_recipes_compare_with_the_untrained_review_within_a_seed(load_study):
    module = load_study("reward_recipes")

    def result(slope):
        return {
            "accuracy": 0.6,
            "slopes": {
                "all": {"false": {"value": slope}, "true": {"value": 0.1}},
                "object": {"false": {"value": -0.2}, "true": None},
            },
            "detection": {"all": {"J": {"value": 0.3}}},
        }

    untrained = {4: result(-0.5), 5: result(-0.7)}
    results = {
        module.Cell("untrained", 0, "none"): untrained,
        module.Cell("prior", 250, "none"): {4: result(-0.6), 5: result(-0.8)},
        module.Cell("prior", 250, "annotator"): {4: result(-0.9)},
    }
    lines = module.judge_table(results, "none").splitlines()
    assert len(lines) == 4 and lines[2].startswith(
        "| prior | 250 | +2.90 ± 5.08 | +0.40 ± 0.00 | -0.70 ± 1.27 | -0.20 ± 0.00 |"
    )  # the best first; 0.1 true claims and 4 times 0.6 and 0.8 false ones
    assert lines[3].startswith("| untrained | 0 | +2.50 ± 5.08 | +0.00 ± 0.00 |")
    assert np.isnan(module.value_of(result(-0.5), "true", "object")) and np.isnan(module.value_of(result(-0.5), "J", "count"))


class LengthReward:
    """A reward model that gives 50 minus the number of letters."""

    def score(self, groups):
        return [[50.0 - len(answer) for answer in group.answers] for group in groups]


def test_base_review_gives_each_share_its_interval(load_study):
    module = load_study("base_review")
    shares = module.review_shares(LengthReward(), None, 12)
    for by_kind in shares.values():
        assert sum(by_kind[kind]["n"] for kind in scenes.CLAIM_KINDS) == by_kind["any"]["n"] <= 12
        low, high = wilson(by_kind["any"]["value"] * by_kind["any"]["n"], by_kind["any"]["n"])
        assert (by_kind["any"]["low"], by_kind["any"]["high"]) == pytest.approx((low, high))
    full, empty = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 9}, {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    columns = dict.fromkeys((*scenes.CLAIM_KINDS, *module.COLOUR_FAULTS, "any", "false caught", "true passed"), full)
    row = module.table({"demo": {"all": columns | {"count": empty}}}).splitlines()[-1]
    assert row.count("| 50.0 (25 to 75) |") >= 1 and "| - |" in row


def test_observations_list_objects_as_an_annotator_does(load_study):
    module = load_study("critique")
    text = "I can see a large striped red ring, an orange star and a moon. The star is above the moon. There are three objects."
    facts = module.observed_facts(text, module.load_lexicon(module.LEXICON_FILE))
    assert [(fact.kind, fact.text) for fact in facts] == [
        ("scope", "incomplete"),
        ("object", "large striped red ring"), ("object", "orange star"), ("object", "moon"),
        ("relation", "star above moon"), ("count", "three objects"),
    ]  # fmt: skip


def test_gradient_measures_leave_out_the_noise_of_a_batch(load_study):
    study = load_study("reward_gradients")
    # two batches: the expected product is that of different batches, 1 * 3 + 0 * 1
    truth = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert study.product_of_means(truth, truth) == pytest.approx(3)
    own = study.gradient_measures(truth, truth)
    # mean square of a batch: (1 + 10) / 2
    assert own == pytest.approx({"limit": 1, "signal": 3 / 5.5})
    assert study.step_of_batches(own, 1) == pytest.approx((3 / 5.5) ** 0.5)
    opposite = study.gradient_measures(-2 * truth, truth)
    assert opposite == pytest.approx({"limit": -1, "signal": 3 / 5.5})
    assert study.step_of_batches(opposite, 1) == pytest.approx(-((3 / 5.5) ** 0.5))
    # of three batches 3 * 6 / (3 * 6 + 5) of the mean square is signal
    assert study.step_of_batches(own, 3) == pytest.approx((18 / 23) ** 0.5)
    only_noise = study.gradient_measures(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), truth)
    assert all(np.isnan(value) for value in only_noise.values())


def test_advantages_are_relative_to_a_prompts_other_answers(load_study):
    advantages = load_study("reward_gradients").centre(np.array([[1.0, 2.0, 6.0]]))
    np.testing.assert_allclose(advantages, [[1 - 4, 2 - 3.5, 6 - 1.5]])
