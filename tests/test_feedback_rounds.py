"""Feedback in rounds: what each learns, people's pairs beside its own, and kills."""

import dataclasses
import functools
import json

import pytest
import yaml

from mmrlhf import feedback as stage
from mmrlhf import scenes
from mmrlhf.datasets import read_preferences
from mmrlhf.feedback import feedback
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.training.feedback.round_files import human_lines
from mmrlhf.training.run import Run
from tests.helpers.feedback_runs import feedback_config, true_utility, write_recipe
from tests.helpers.runs import killed_at
from tests.helpers.stages import save_start_adapter

ROUND_FILES = ("answers.jsonl", "verdicts.jsonl", "scores.jsonl", "pairs.jsonl", "dropped.jsonl", "labels.json", "report.html")


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


def test_each_round_starts_from_the_best_policy_of_the_last(tiny_vlm_path, examples, tmp_path, recipe):
    config = rounds_config(tiny_vlm_path, tmp_path / "run", recipe("dpo"))
    policy = feedback(config, examples[:3], None, Utility())
    assert policy == tmp_path / "run" / "policy"
    second = yaml.safe_load((tmp_path / "run/round_2/dpo/config.yaml").read_text())
    assert second["adapter_path"] == str(tmp_path / "run/round_1/dpo/policy") and second["load_best_model_at_end"]
    assert second["dataset_name"] == str(tmp_path / "run/round_2/pairs.jsonl") and second["lora_r"] == 4
    sampled_by = json.loads((tmp_path / "run/round_2/.answers.jsonl.inputs.json").read_text())["inputs"]["policy"]["path"]
    assert sampled_by == str(tmp_path / "run/round_1/dpo/policy")
    weights = "adapter_model.safetensors"
    assert (policy / weights).read_bytes() == (tmp_path / "run/round_2/dpo/policy" / weights).read_bytes()
    assert (policy / weights).read_bytes() != (tmp_path / "run/round_1/dpo/policy" / weights).read_bytes()
    metrics = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2] and [row["eval/utility"] for row in metrics] == [2.0, 4.0]


def test_a_worse_policy_is_not_gone_on_from(tiny_vlm_path, examples, tmp_path, recipe):
    """Step 0 of a round is the last round's best policy, which stays if training makes it worse."""
    falling = Utility()
    config = rounds_config(tiny_vlm_path, tmp_path / "run", recipe("dpo"), greater_is_better=False)
    save_start_adapter(tiny_vlm_path, tmp_path / "start")
    policy = feedback(dataclasses.replace(config, adapter_path=str(tmp_path / "start")), examples[:3], None, falling)
    assert (policy / "adapter_model.safetensors").read_bytes() == (tmp_path / "start" / "adapter_model.safetensors").read_bytes()


def test_a_round_may_train_a_reward_model_and_then_the_policy(tiny_vlm_path, examples, tmp_path, recipe):
    ppo = recipe(
        "ppo", num_generations=2, response_length=10, num_mini_batches=1, min_probe_detection_rate=0, allow_worse_judge=True
    )
    config = feedback_config(tiny_vlm_path, tmp_path / "run", algorithm="ppo", reward_config=recipe("reward"), ppo_config=ppo)
    policy = feedback(config, examples[:3])
    assert (policy / "adapter_model.safetensors").is_file() and (tmp_path / "run/round_1/reward/reward.json").is_file()
    saved = yaml.safe_load((tmp_path / "run/round_1/ppo/config.yaml").read_text())
    assert saved["reward_model_path"] == str(tmp_path / "run/round_1/reward") and saved["response_length"] == 60


def trained_weights(vlm):
    """Prefer a policy that has moved from where it started, whatever was killed before."""
    weights = [p for name, p in vlm.model.named_parameters() if "lora_B" in name]
    return {"utility": sum(float(p.detach().abs().sum()) for p in weights)}


def run_two_rounds(model, rows, output_dir, recipe_path):
    feedback(rounds_config(model, output_dir, recipe_path, batch_size=1), rows[:2], true_utility, trained_weights)


@pytest.fixture(scope="module")
def whole_run(tiny_vlm_path, examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_two_rounds(tiny_vlm_path, examples, folder / "run", write_recipe(folder, "dpo"))
    return folder


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (ResumableWriter, "append", 2),  # among the first round's answers
        (ResumableWriter, "append", 5),  # among its verdicts: two batches of answers, and `finish`
        (stage, "write_round", 2),
        (stage, "dpo", 2),
        (Run, "finish", 3),  # the two of dpo, and its own
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(tiny_vlm_path, examples, tmp_path, whole_run, owner, name, call):
    arguments = tiny_vlm_path, examples, tmp_path / "run", str(whole_run / "dpo.yaml")
    with killed_at(owner, name, call):
        run_two_rounds(*arguments)
    run_two_rounds(*arguments)
    names = [f"round_{number}/{file}" for number in (1, 2) for file in ROUND_FILES]
    for path in ("policy/adapter_model.safetensors", *names):
        assert (tmp_path / "run" / path).read_bytes() == (whole_run / "run" / path).read_bytes(), path
    policies = [
        (tmp_path / "run" / name / "policy/adapter_model.safetensors").read_bytes() for name in ("round_1/dpo", "round_2/dpo")
    ]
    assert policies[0] != policies[1]
    without_time = [[{**row, "time": 0} for row in read_jsonl(p / "run/metrics.jsonl")] for p in (tmp_path, whole_run)]
    assert without_time[0] == without_time[1]


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


def test_human_pairs_are_learnt_beside_the_rounds_own(tiny_vlm_path, tmp_path, recipe):
    for name in ("scenes", "people"):
        scenes.export_dataset(str(tmp_path / name), num_rows=4)
    config = feedback_config(
        tiny_vlm_path, tmp_path / "run", dataset_name=str(tmp_path / "scenes/prompts.jsonl"), algorithm="dpo",
        dpo_config=recipe("dpo"), human_dataset_name=str(tmp_path / "people/pairs.jsonl"), human_weight=2.0,
    )  # fmt: skip
    feedback(config)
    own = read_jsonl(tmp_path / "run" / "round_1" / "pairs.jsonl")
    learnt = read_preferences(str(tmp_path / "run" / "round_1" / "train.jsonl"), image_folder=str(tmp_path / "scenes"))
    assert len(learnt) == len(own) + 8
    assert json.loads((tmp_path / "run" / "round_1" / "labels.json").read_text())["human_pairs"] == 8
    saved = yaml.safe_load((tmp_path / "run/round_1/dpo/config.yaml").read_text())
    assert saved["dataset_name"].endswith("round_1/train.jsonl")
