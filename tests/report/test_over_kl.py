"""Metrics over the square root of the KL: whose KL a metric has, and the page that draws them."""

import json

import pytest

from mmrlhf.report.over_kl import points_over_kl
from mmrlhf.report.runs import eval_label, read_run, write_runs_page
from tests.report.test_page import ParsedPage

ROWS = [
    {"step": 0, "eval/b/f1": 0.5},
    {"step": 1, "objective/kl": -1e-7, "objective/scores": 1.0},
    {"step": 2, "objective/kl": 1.0, "objective/scores": 2.0, "eval/b/f1": 0.7},
    {"step": 3, "objective/kl": 4.0, "objective/scores": 3.0},
    {"step": 4, "objective/kl": 9.0, "objective/scores": 4.0, "eval/b/f1": 0.6},
]


def test_points_over_kl_take_the_kl_of_the_policy_that_was_measured():
    # A reward is of the policy before the step, which sampled; an evaluation of the one after it.
    assert points_over_kl(ROWS, "objective/scores") == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    assert points_over_kl(ROWS, "eval/b/f1") == [(0.0, 0.5), (2.0, 0.7), (3.0, 0.6)]
    assert points_over_kl(ROWS[:1], "eval/b/f1") == [] == points_over_kl(ROWS, "eval/other")


@pytest.mark.parametrize("finished", [True, False])
def test_write_runs_page_draws_evaluations_and_names_the_best_policy(tmp_path, finished):
    """A run that goes on says in best.json which policy is the best so far."""
    run = tmp_path / "ppo"
    (run / "best").mkdir(parents=True)
    (run / "config.yaml").write_text("reward_terms: fact_rm=1\n")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (run / "eval.jsonl").write_text(json.dumps({"step": 2, "benchmark": "b", "headline": "f1", "direction": "higher"}) + "\n")
    best = {"metric": "b/f1", "value": 0.7, "step": 2, "greater_is_better": True}
    (run / "finished.json" if finished else run / "best/best.json").write_text(json.dumps({"best": best} if finished else best))
    source = write_runs_page([str(run)]).read_text(encoding="utf-8")
    parsed = ParsedPage(source)
    assert "Reward beside truth" in parsed.text and "b/f1 best at step 2 (0.7)" in parsed.text
    for alternative in (
        "b f1, higher is better, against steps.",
        "Reward over the square root of the KL.",
        "b f1 over the square",
    ):
        assert f'aria-label="{alternative}' in source
    assert read_run(run, "ppo").eval_keys == {"eval/b/f1": "higher"}


def test_eval_label_has_the_titles_of_known_metrics():
    assert eval_label("eval/scenes/selection/claim_f1", "higher") == ("scenes selection claim F1", "higher is better")
    assert eval_label("eval/mine/x", "") == ("mine x", "")
