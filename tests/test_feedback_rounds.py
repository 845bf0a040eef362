"""Feedback in rounds: what each learns, people's pairs beside its own, and kills."""

import dataclasses
import functools
import json

import pytest
import yaml

from mmrlhf import feedback as stage
from mmrlhf import scenes
from mmrlhf.cli import main
from mmrlhf.datasets import read_preferences
from mmrlhf.engine.rollout import sample_completions
from mmrlhf.feedback import feedback
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.records import InputError
from mmrlhf.report.closing import closing_text
from mmrlhf.report.live_page import LivePage
from mmrlhf.training import answer_batches
from mmrlhf.training.answer_batches import NOT_FINITE
from mmrlhf.training.feedback.recipes import dpo_config
from mmrlhf.training.feedback.round_files import human_lines
from mmrlhf.training.run import Run
from tests.helpers.feedback_runs import LEXICON, feedback_config, true_utility, write_recipe
from tests.helpers.runs import killed_at
from tests.helpers.stages import save_start_adapter

ROUND_FILES = ("answers.jsonl", "verdicts.jsonl", "scores.jsonl", "pairs.jsonl", "dropped.jsonl", "labels.json", "report.html")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def recipe(tmp_path):
    """Return a function that writes a recipe of tiny training."""

    return functools.partial(write_recipe, tmp_path)


class Utility:
    """An evaluation of policies that prefers the trained ones, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, vlm):
        self.calls += 1
        return {"utility": float(self.calls)}


# ---- rounds --------------------------------------------------------------------------------------


def rounds_config(model, output_dir, recipe_path, **settings):
    return feedback_config(
        model,
        output_dir,
        **{"algorithm": "dpo", "num_rounds": 2, "dpo_config": recipe_path, "metric_for_best_model": "utility"} | settings,
    )


def trained_weights(vlm):
    """Prefer a policy that has moved from where it started, whatever was killed before."""
    weights = [p for name, p in vlm.model.named_parameters() if "lora_B" in name]
    return {"utility": sum(float(p.detach().abs().sum()) for p in weights)}


def run_two_rounds(model, rows, output_dir, recipe_path, evaluate=trained_weights):
    return feedback(rounds_config(model, output_dir, recipe_path, batch_size=1), rows[:2], true_utility, evaluate)


@pytest.fixture(scope="module")
def whole_run(tiny_vlm_path, examples, tmp_path_factory):
    """A folder with a run of two rounds, and when it measured a policy and wrote its page."""
    folder, events = tmp_path_factory.mktemp("whole"), []

    def evaluate(vlm):
        events.append("policy")
        return trained_weights(vlm)

    def refresh(page, *, is_final=False):
        if page.folder == folder / "run":
            events.append("last page" if is_final else "page")
        return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LivePage, "refresh", refresh)
        run_two_rounds(tiny_vlm_path, examples, folder / "run", write_recipe(folder, "dpo"), evaluate)
    return folder, events


def test_each_round_starts_from_the_best_policy_of_the_last(whole_run):
    run = whole_run[0] / "run"
    second = yaml.safe_load((run / "round_2/dpo/config.yaml").read_text())
    assert second["adapter_path"] == str(run / "round_1/dpo/policy") and second["load_best_model_at_end"]
    assert second["dataset_name"] == str(run / "round_2/pairs.jsonl") and second["lora_r"] == 4
    sampled_by = json.loads((run / "round_2/.answers.jsonl.inputs.json").read_text())["inputs"]["policy"]["path"]
    assert sampled_by == str(run / "round_1/dpo/policy")
    first, last = ((run / f"round_{number}/dpo/policy" / WEIGHTS).read_bytes() for number in (1, 2))
    assert (run / "policy" / WEIGHTS).read_bytes() == last != first
    metrics = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert 0 < metrics[0]["eval/utility"] < metrics[1]["eval/utility"]


def test_the_page_is_refreshed_after_each_round_and_listed_in_the_last_lines(whole_run, tmp_path):
    """Each round measures its policy at steps 0 and 1."""
    assert whole_run[1] == ["policy", "policy", "page", "policy", "policy", "page", "last page"]
    (tmp_path / "report.html").touch()
    assert f"{tmp_path}/report.html" in closing_text("feedback", feedback_config("m", tmp_path))


def test_a_worse_policy_is_not_gone_on_from(tiny_vlm_path, examples, tmp_path, recipe):
    """Step 0 of a round is the last round's best policy, which stays if training makes it worse."""
    falling = Utility()
    config = rounds_config(tiny_vlm_path, tmp_path / "run", recipe("dpo"), greater_is_better=False)
    save_start_adapter(tiny_vlm_path, tmp_path / "start")
    policy = feedback(dataclasses.replace(config, adapter_path=str(tmp_path / "start")), examples[:2], None, falling)
    assert (policy / WEIGHTS).read_bytes() == (tmp_path / "start" / WEIGHTS).read_bytes()


def test_the_command_goes_on_from_the_policy_that_held_out_scenes_choose(tiny_vlm_path, tmp_path, recipe, capsys):
    scenes.export_dataset(str(tmp_path / "scenes"), num_rows=2)
    run = tmp_path / "run"
    command = ["feedback", "--model", tiny_vlm_path, "--data", str(tmp_path / "scenes/prompts.jsonl"), "--out", str(run)]
    labels = ["--num_generations", "3", "--response_length", "60", "--no-balance_lengths", "--lexicon_file", LEXICON]
    rounds = ["--algorithm", "dpo", "--num_rounds", "2", "--dpo_config", recipe("dpo", learning_rate=0.02)]
    chosen_by = ["--eval_benchmarks", "scenes", "--eval_limit", "1", "--metric_for_best_model", "scenes/mean_length"]
    assert main([*command, *labels, *rounds, *chosen_by, "--greater_is_better", "true"]) == 0
    num_decided = 0
    for row in read_jsonl(run / "metrics.jsonl"):
        folder = run / f"round_{row['step']}" / "dpo"
        measured = {e["step"]: e["metrics"]["mean_length"]["value"] for e in read_jsonl(folder / "eval.jsonl")}
        assert sorted(measured) == [0, 1] and row["eval/scenes/mean_length"] == max(measured.values())
        finished = json.loads((folder / "finished.json").read_text())
        assert finished["policy_step"] == max(measured, key=measured.__getitem__)  # the first of equal ones
        num_decided += measured[0] != measured[1]
    assert num_decided > 0  # else any choice would pass
    assert (run / "policy" / WEIGHTS).read_bytes() == (folder / "policy" / WEIGHTS).read_bytes()
    assert f"--adapter_path {run}/policy" in capsys.readouterr().out


# ---- kills ---------------------------------------------------------------------------------------

KILLS = [
    (ResumableWriter, "append", 2),  # among the first round's answers
    (ResumableWriter, "append", 4),  # among its verdicts: a batch of answers, `finish`, a batch of verdicts
    (stage, "write_round", 2),
    (stage, "dpo", 2),
    (Run, "finish", 2),  # the second round's dpo has finished
]
"""Each is counted from where the one before left the run."""


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(tiny_vlm_path, examples, tmp_path, whole_run):
    whole = whole_run[0]
    arguments = tiny_vlm_path, examples, tmp_path / "run", str(whole / "dpo.yaml")
    for kill in KILLS:
        with killed_at(*kill):
            run_two_rounds(*arguments)
    run_two_rounds(*arguments)
    names = [f"round_{number}/{file}" for number in (1, 2) for file in ROUND_FILES]
    policies = [f"{name}/{WEIGHTS}" for name in ("policy", "round_1/dpo/policy", "round_2/dpo/policy")]
    for path in (*policies, *names):
        assert (tmp_path / "run" / path).read_bytes() == (whole / "run" / path).read_bytes(), path
    without_time = [[{**row, "time": 0} for row in read_jsonl(p / "run/metrics.jsonl")] for p in (tmp_path, whole)]
    assert without_time[0] == without_time[1]


@pytest.mark.slow
def test_a_killed_round_of_ppo_learns_from_human_pairs_as_one_that_was_not(tiny_vlm_path, tmp_path, recipe):
    for name in ("scenes", "people"):
        scenes.export_dataset(str(tmp_path / name), num_rows=2)
    ppo = recipe(
        "ppo",
        num_generations=2,
        response_length=10,
        num_mini_batches=1,
        min_probe_detection_rate=0,
        allow_worse_reward_model=True,
    )
    config = feedback_config(
        tiny_vlm_path, tmp_path / "run", dataset_name=str(tmp_path / "scenes/prompts.jsonl"), algorithm="ppo",
        reward_config=recipe("reward"), ppo_config=ppo, human_dataset_name=str(tmp_path / "people/pairs.jsonl"), human_weight=2.0,
    )  # fmt: skip
    for call in (1, 2):  # the reward model is trained; the reward model is there, and the policy is trained
        with killed_at(Run, "finish", call):
            feedback(config)
    policy = feedback(config)
    whole = feedback(dataclasses.replace(config, output_dir=str(tmp_path / "whole")))
    for path in (WEIGHTS, "../round_1/train.jsonl", "../round_1/labels.json", "../round_1/reward/adapter_model.safetensors"):
        assert (policy / path).read_bytes() == (whole / path).read_bytes(), path

    folder = tmp_path / "run" / "round_1"
    learnt = read_preferences(str(folder / "train.jsonl"), image_folder=str(tmp_path / "scenes"))
    assert len(learnt) == len(read_jsonl(folder / "pairs.jsonl")) + 4
    assert json.loads((folder / "labels.json").read_text())["human_pairs"] == 4
    saved = {name: yaml.safe_load((folder / name / "config.yaml").read_text()) for name in ("reward", "ppo")}
    assert saved["reward"]["dataset_name"] == str(folder / "train.jsonl")
    assert saved["ppo"]["reward_model_path"] == str(folder / "reward") and saved["ppo"]["response_length"] == 60
    assert dpo_config(config, folder, None).dataset_name == str(folder / "train.jsonl")


def spoil_logits(monkeypatch, bad_ids):
    """Let a batch with one of these prompts find logits that are not finite."""

    def sampled(vlm, prompts, *args):
        if bad := [prompt.id for prompt in prompts if prompt.id in bad_ids]:
            raise NotFiniteError(f"{bad[0]} gives NaN")
        return sample_completions(vlm, prompts, *args)

    monkeypatch.setattr(answer_batches, "sample_completions", sampled)


def test_a_batch_that_is_not_finite_is_left_out_also_after_a_kill(tiny_vlm_path, examples, tmp_path, monkeypatch, capsys):
    """The second of three batches is; the killed run has written it before it is killed."""
    spoil_logits(monkeypatch, {examples[1].id})
    for name in ("whole", "killed"):
        config = feedback_config(tiny_vlm_path, tmp_path / name, batch_size=1)
        if name == "killed":
            with killed_at(ResumableWriter, "append", 3):
                feedback(config, examples[:3])
        feedback(config, examples[:3])
    files = ("warnings.jsonl", *(f"round_1/{file}" for file in ROUND_FILES))
    whole, killed = ([(tmp_path / name / file).read_bytes() for file in files] for name in ("whole", "killed"))
    assert whole == killed and capsys.readouterr().out.count(f"left out: {examples[1].id} gives NaN") == 2
    warning, = read_jsonl(tmp_path / "whole/warnings.jsonl")  # fmt: skip
    assert warning["warning"] == f"4 answers are left out, {NOT_FINITE}: round_1/answers.jsonl has their rows"
    answers = read_jsonl(tmp_path / "whole/round_1/answers.jsonl")
    assert [row["row"] for row in answers if row["unusable"] == NOT_FINITE] == [1] * 4 and len(answers) == 12
    assert json.loads((tmp_path / "whole/round_1/labels.json").read_text())["answers"]["unusable"][NOT_FINITE] == 4


def test_a_round_without_a_finite_batch_stops(tiny_vlm_path, examples, tmp_path, monkeypatch):
    spoil_logits(monkeypatch, {example.id for example in examples[:2]})
    stopped = f"round 1: 2 batches in a row are not finite, the last because {examples[1].id} gives NaN. Start over with dtype"
    for _ in range(2):  # the second call knows the batch that the first one left out
        with pytest.raises(InputError, match=stopped):
            feedback(feedback_config(tiny_vlm_path, tmp_path, batch_size=1), examples[:2])
    assert not (tmp_path / "round_1/answers.jsonl").exists()


# ---- labels of people ----------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "lines"), [(1.0, 12), (3.0, 36), (0.001, 0)])
def test_human_pairs_count_by_their_weight(pairs, tmp_path, weight, lines):
    config = feedback_config("m", tmp_path, algorithm="dpo", human_dataset_name="h", human_weight=weight)
    assert len(human_lines(config, pairs, 1)) == lines


def test_a_fraction_of_a_weight_draws_other_human_pairs_in_each_round(pairs, tmp_path):
    config = feedback_config("m", tmp_path, algorithm="dpo", human_dataset_name="h", human_weight=0.5)
    rounds = [human_lines(config, pairs * 5, number) for number in (1, 1, 2)]
    assert rounds[0] == rounds[1] != rounds[2]
    assert all(18 <= len(lines) <= 42 for lines in rounds)  # 30 of 60 are expected
    ties = [dataclasses.replace(pair, ranks=(1, 1)) for pair in pairs]
    assert not human_lines(config, ties, 1)
