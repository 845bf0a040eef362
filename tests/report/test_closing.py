"""The last lines of a command name what exists, and a next command that parses."""

import shlex

import pytest

from mmrlhf.cli.app import COMMANDS
from mmrlhf.cli.parser import make_config_parser
from mmrlhf.config import (
    DPOConfig,
    FeedbackConfig,
    GenerateConfig,
    PPOConfig,
    RewardConfig,
    RewardEvalConfig,
    RFTConfig,
    ScoreConfig,
    SFTConfig,
)
from mmrlhf.report.closing import CLOSINGS, closing_text

CLASSES = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
    "rft": RFTConfig,
    "feedback": FeedbackConfig,
    "generate": GenerateConfig,
    "score": ScoreConfig,
    "reward-eval": RewardEvalConfig,
}


@pytest.mark.parametrize("command", CLOSINGS)
def test_closing_text_names_what_was_written_and_a_valid_next_command(command, tmp_path):
    run = tmp_path / "my runs"
    values = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": str(run), "reward_model_path": str(run)}
    values |= {"output_file": str(run / "out.jsonl"), "image_folder": "it's"}
    fields = CLASSES[command].__dataclass_fields__
    config = CLASSES[command](**{name: value for name, value in values.items() if name in fields})
    (run / "model").mkdir(parents=True)
    for name in ("metrics.jsonl", "out.jsonl", "result.json"):
        (run / name).touch()
    wrote, *lines = closing_text(command, config).splitlines()
    paths = [line for line in lines if line.startswith("  ")]
    assert wrote == "wrote" and paths and all(str(run) in line for line in paths)
    assert "policy" not in "".join(paths)  # it does not exist
    for line in lines[len(paths) :]:
        program, name, *arguments = shlex.split(line.removeprefix("next: "))
        assert program == "mmrlhf" and name in COMMANDS
        if name in CLASSES:
            given = make_config_parser(CLASSES[name], COMMANDS[name]).parse(arguments)
            assert {
                n for n, f in CLASSES[name].__dataclass_fields__.items() if f.default.__class__.__name__ == "_MISSING_TYPE"
            } <= given.keys()
    assert closing_text("plan", config) == ""


def test_the_next_command_names_the_folder_of_images_if_there_is_one(tmp_path):
    answers, rows = tmp_path / "answers.jsonl", tmp_path / "data" / "rows.jsonl"
    rows.parent.mkdir()
    for path in (answers, rows):
        path.touch()
    for dataset, folder in ((str(rows), rows.parent), (str(rows.parent), rows.parent), ("owner/name", None)):
        config = GenerateConfig(model_name_or_path="m", dataset_name=dataset, output_file=str(answers))
        flag = f"--image_folder {folder} " if folder else ""
        assert f"--data {answers} {flag}--out scores.jsonl" in closing_text("generate", config)


@pytest.mark.parametrize(
    ("settings", "reward"),
    [
        ({"reward_model_path": "runs/a"}, {"reward_model_path": "runs/a", "output_dir": "runs/ppo"}),
        (
            {
                "reward_model_path": "runs/a, runs/b",
                "reward_terms": "fact_rm=1, hallucination=-1",
                "unknown_claim_costs": "object=0.1",
                "uncertainty_penalty": 1.0,
            },
            {
                "reward_model_path": "runs/a, runs/b",
                "reward_terms": "fact_rm=1, hallucination=-1",
                "unknown_claim_costs": "object=0.1",
                "uncertainty_penalty": "1.0",
                "output_dir": "runs/ppo",
            },
        ),
        ({"reward_model_path": " , ", "reward_terms": "coverage=1"}, {"reward_terms": "coverage=1"}),
    ],
)
def test_ppo_after_reward_eval_trains_against_the_reward_that_was_measured(tmp_path, settings, reward):
    (tmp_path / "result.json").touch()
    text = closing_text("reward-eval", RewardEvalConfig(output_dir=str(tmp_path), **settings))
    _, name, *arguments = shlex.split(text.splitlines()[-1].removeprefix("next: "))
    given = make_config_parser(PPOConfig, COMMANDS[name]).parse(arguments)
    expected = {"model_name_or_path": "MODEL", "dataset_name": "PROMPTS", "output_dir": str(tmp_path.parent / "ppo")} | reward
    assert name == "ppo" and given == expected
