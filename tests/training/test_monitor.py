"""Named warnings: thresholds by hand, the window in a checkpoint, and what stops a run."""

import json
from types import SimpleNamespace

import pytest

from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import InputError
from mmrlhf.training.monitor import (
    ANSWER_WARNINGS,
    DIVERGENCE,
    LOGP_DIFFERENCE,
    LOSS,
    REWARD,
    ROLLOUT_WARNINGS,
    WARNINGS,
    HeldOut,
    Monitor,
    parse_stop_on_warning,
)
from tests.helpers.runs import open_run

ONE_PROCESS = SimpleNamespace(num_processes=1)


def watched(folder, monitor, points, low_high=0.01, higher=True, start=0):
    """Feed a monitor evaluations as (proxy, held-out value), the first before step 1; return the
    steps at which it warned."""
    run, steps = open_run(folder), []
    for step, (proxy, value) in enumerate(points, start):
        bounds = (None, None) if low_high is None else (value - low_high, value + low_high)
        monitor.add_evaluation(step, {"pope/f1": HeldOut(value, *bounds, higher)})
        if step > 0:
            monitor.after_step(run, ONE_PROCESS, step, {monitor.proxy.key: proxy}, True)
    file = folder / "warnings.jsonl"
    return [row["step"] for row in read_jsonl(file)] if file.exists() else steps


def test_proxy_divergence_needs_two_worse_evaluations_in_a_row(tmp_path):
    """Best at step 1, 0.8; worse beyond both intervals from step 2 on."""
    falling = [(None, 0.7), (1.0, 0.8), (2.0, 0.7), (3.0, 0.6)]
    assert watched(tmp_path / "a", Monitor(REWARD), falling) == [3]
    (row,) = read_jsonl(tmp_path / "a/warnings.jsonl")
    assert row["name"] == DIVERGENCE
    assert row["warning"].startswith("the reward rose from 1 to 3 while pope/f1, held out, got worse, from 0.8 to 0.6")
    back_up = [(None, 0.7), (1.0, 0.8), (2.0, 0.7), (3.0, 0.85), (4.0, 0.7)]
    assert watched(tmp_path / "b", Monitor(REWARD), back_up) == []
    # the half-widths of both, 0.08, give 0.113, which is more than the fall of 0.1
    assert watched(tmp_path / "c", Monitor(REWARD), [*falling[:3], (3.0, 0.7)], low_high=0.08) == []
    assert watched(tmp_path / "d", Monitor(REWARD), [*falling[:3], (3.0, 0.7)], low_high=0.07) == [3]


def test_proxy_divergence_needs_a_better_proxy(tmp_path):
    both_fall = [(None, 0.7), (3.0, 0.8), (2.0, 0.7), (1.0, 0.6)]
    assert watched(tmp_path / "reward", Monitor(REWARD), both_fall) == []
    assert watched(tmp_path / "loss", Monitor(LOSS), both_fall) == [3]  # of a loss, less is better
    assert watched(tmp_path / "lower", Monitor(LOSS), both_fall, higher=False) == []  # and less was wanted
    # the untrained model is the best one: its proxy is that of the first step
    assert watched(tmp_path / "first", Monitor(REWARD), [(None, 0.9), (1.0, 0.7), (2.0, 0.6), (3.0, 0.5)]) == [3]


def test_proxy_divergence_waits_longer_without_intervals(tmp_path):
    falling = [(None, 0.7), (1.0, 0.8), (2.0, 0.79), (3.0, 0.78), (4.0, 0.77)]
    assert watched(tmp_path, Monitor(REWARD), falling, low_high=None) == [4]


def test_monitor_continues_from_its_state(tmp_path):
    """The warning at step 3 needs the evaluations before the checkpoint."""
    points = [(None, 0.7), (1.0, 0.8), (2.0, 0.7), (3.0, 0.6)]
    first, second = Monitor(REWARD), Monitor(REWARD)
    assert watched(tmp_path / "a", first, points[:3]) == []
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert watched(tmp_path / "b", second, points[3:], start=3) == [3]
    second.load_state_dict({})  # a checkpoint of an earlier version


def test_warnings_are_about_the_window_since_the_last_logging_step(tmp_path):
    run, monitor = open_run(tmp_path), Monitor(REWARD)
    for step, (correlation, entropy) in enumerate(((0.9, 2.0), (0.5, 2.0), (0.9, 0.1), (0.9, 0.25)), 1):
        metrics = {REWARD.key: 0.0, "hacking/length_reward_correlation": correlation, "policy/entropy_avg": entropy}
        monitor.after_step(run, ONE_PROCESS, step, metrics, step % 2 == 0)
    # steps 1 and 2: a mean of 0.7; steps 3 and 4: 0.9, and an entropy of 0.175 < 2.0 / 10
    rows = [(row["step"], row["name"]) for row in read_jsonl(tmp_path / "warnings.jsonl")]
    assert rows == [(4, "entropy_collapse"), (4, "length_reward_correlation")]


def test_stop_on_warning_stops_at_the_named_ones_only(tmp_path):
    run = open_run(tmp_path)
    metrics = {REWARD.key: 0.0, "hacking/refusal_rate": 0.5}
    assert Monitor(REWARD, ("yes_rate",)).after_step(run, ONE_PROCESS, 1, metrics, True) is None
    monitor = Monitor(REWARD, ("refusal_rate",))
    assert monitor.after_step(run, ONE_PROCESS, 1, metrics, False) is None  # between logging steps
    sentence = monitor.after_step(run, ONE_PROCESS, 2, metrics, True)
    assert "stopped after step 2 at the warning refusal_rate" in sentence and "50% of answers refuse" in sentence
    assert sentence.endswith("the same command goes on, to the next warning")


def test_a_warning_ends_a_run_that_writes_its_best_weights(tmp_path):
    run, metrics = open_run(tmp_path), {REWARD.key: 0.0, "hacking/refusal_rate": 0.5}
    at_the_end = Monitor(REWARD, ("refusal_rate",), ends_run=True)
    assert at_the_end.after_step(run, ONE_PROCESS, 1, metrics, True, is_last=True) is None and not at_the_end.ended
    monitor = Monitor(REWARD, ("refusal_rate",), ends_run=True)
    assert monitor.after_step(run, ONE_PROCESS, 2, metrics, True) is None
    assert monitor.ended.startswith("ended after step 2 at the warning refusal_rate (stop_on_warning): 50% of answers refuse")
    resumed = Monitor(REWARD, ("refusal_rate",), ends_run=True)
    resumed.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert resumed.ended == monitor.ended


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("frac_reward_zero_std", 1.0, "constant_reward"),
        ("frac_reward_zero_std", 0.9, None),
        ("completions/clipped_ratio", 0.95, "unfinished_answers"),
        ("completions/clipped_ratio", 0.9, None),
    ],
)
def test_warnings_about_answers(key, value, name, tmp_path):
    Monitor(REWARD).after_step(open_run(tmp_path), ONE_PROCESS, 1, {REWARD.key: 0.0, key: value}, True)
    file = tmp_path / "warnings.jsonl"
    assert [row["name"] for row in read_jsonl(file)] == [name] if name else not file.exists()


def warned_of_silence(folder, rates, resumed_after=None, **metrics):
    """Return the steps at which a run with these shares of silent answers warned."""
    run, monitor = open_run(folder), Monitor(REWARD)
    for step, rate in enumerate(rates, 1):
        monitor.after_step(run, ONE_PROCESS, step, {REWARD.key: 0.0, "hacking/zero_claim_rate": rate, **metrics}, True)
        if step == resumed_after:
            state, monitor = json.loads(json.dumps(monitor.state_dict())), Monitor(REWARD)
            monitor.load_state_dict(state)
    file = folder / "warnings.jsonl"
    return [row["step"] for row in read_jsonl(file)] if file.exists() else []


def test_answers_that_never_claimed_anything_are_no_sign_of_a_reward_for_silence(tmp_path):
    """Questions for a word have such answers. Where claims are verified, they say too little."""
    assert warned_of_silence(tmp_path / "a", [0.4, 0.6]) == [2]
    assert warned_of_silence(tmp_path / "b", [0.6, 0.9], resumed_after=1) == []
    assert warned_of_silence(tmp_path / "c", [0.6, 0.9], **{"claims/supported@facts": 0.1}) == [1, 2]


def test_parse_stop_on_warning():
    assert parse_stop_on_warning(None, WARNINGS) == ()
    assert parse_stop_on_warning("refusal_rate, yes_rate", WARNINGS) == ("refusal_rate", "yes_rate")
    assert parse_stop_on_warning("any", ROLLOUT_WARNINGS) == ROLLOUT_WARNINGS
    for value, possible, sentence in (
        ("refusal_rat", WARNINGS, "'refusal_rat' is no warning: did you mean refusal_rate"),
        ("refusal_rate,", WARNINGS, "'' is no warning"),
        ("refusal_rate", (DIVERGENCE,), "this stage samples none"),
        ("entropy_collapse", ANSWER_WARNINGS, "of a policy that samples at every step"),
        ("zero_claim_rate", ROLLOUT_WARNINGS[:2], "add monitor_verifiers"),
        (DIVERGENCE, ROLLOUT_WARNINGS, "add eval_benchmarks"),
        (LOGP_DIFFERENCE, ROLLOUT_WARNINGS, "it compares the trainer with another engine: give ppo a rollout_engine"),
        ("any", (), "this run raises no warnings"),
    ):
        with pytest.raises(InputError, match=sentence):
            parse_stop_on_warning(value, possible)
