"""What RUN of `mmrlhf serve RUN` may be, and which models it stands for."""

import json
import shutil

import pytest

from mmrlhf.cli import main
from mmrlhf.commands.score import score
from mmrlhf.config import FeedbackConfig, GenerateConfig, ScoreConfig, SFTConfig
from mmrlhf.config.loader import save_config
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.generate import generate
from mmrlhf.records import InputError
from mmrlhf.serve import CHAT_PATH, SCORE_PATH, load_models, resolve_run, serving
from tests.helpers.serving import config_of, facts_of, messages_of, request
from tests.helpers.stages import ppo_config, save_start_adapter
from tests.helpers.tiny_models import build_checkpoint


def test_a_reward_model_is_served_alone(reward_dir, examples):
    models = load_models(config_of(model_name_or_path=str(reward_dir)))
    with serving(config_of(model_name_or_path=str(reward_dir)), models) as server:
        assert request(server, SCORE_PATH, {"messages": messages_of(examples[0]), "answers": ["A cup."]})[0] == 200
        status, reply = request(server, CHAT_PATH, {"messages": messages_of(examples[0])})
        assert status == 404 and "this server has no policy" in reply["error"]["message"]


def test_a_policy_and_a_reward_model_on_one_base_answer_as_generate_and_score(tmp_path, tiny_vlm_path, reward_dir, examples):
    """`serve runs/ppo --reward_model_path runs/reward`: each request under its own adapter."""
    run, row, files = tmp_path / "ppo", examples[0], [str(tmp_path / name) for name in ("answers.jsonl", "scores.jsonl")]
    run.mkdir()
    save_config(ppo_config(tiny_vlm_path, reward_dir, run), run / "config.yaml")
    (run / "finished.json").write_text("{}")
    save_start_adapter(tiny_vlm_path, run / "policy")
    generate(
        GenerateConfig(
            model_name_or_path=tiny_vlm_path, adapter_path=str(run / "policy"), dataset_name="scenes", output_file=files[0],
            temperature=0.0, response_length=24,
        ),
        [row],
    )  # fmt: skip
    score(ScoreConfig(reward_model_path=str(reward_dir), dataset_name=files[0], output_file=files[1]))
    (answer,), (expected_score,) = (
        [line[key] for line in read_jsonl(f)] for f, key in zip(files, ("answer", "score"), strict=True)
    )

    config = config_of(model_name_or_path=str(run), reward_model_path=str(reward_dir))
    models = load_models(config)
    with serving(config, models) as server:
        for _ in range(2):  # the adapters in turn
            _, reply = request(server, CHAT_PATH, {"messages": messages_of(row), "temperature": 0})
            assert reply["choices"][0]["message"]["content"] == answer
            body = {"messages": messages_of(row), "answers": [answer], "facts": facts_of(row)}
            assert request(server, SCORE_PATH, body)[1]["scores"] == pytest.approx([expected_score], abs=1e-4)
    assert models.reward_model.role.adapters is models.policy.adapters  # one copy of the base
    with models.policy.adapters.use(None):
        ((_, base_answers),) = generate_batches(models.policy.vlm, [row], SamplingParams(24, 0.0), batch_size=1)
    assert base_answers != [answer]


def test_a_run_is_served_with_the_pixel_limits_that_it_was_trained_with(tmp_path):
    build_checkpoint("qwen2_5_vl", tmp_path / "model")
    limits = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 6}
    config = SFTConfig(model_name_or_path="base", dataset_name="x", output_dir=str(tmp_path), **limits)
    save_config(config, tmp_path / "config.yaml")
    (tmp_path / "finished.json").write_text("{}")
    for given, expected in (({}, (784, 4704)), ({"max_pixels": 7840}, (784, 7840))):
        models = load_models(config_of(model_name_or_path=str(tmp_path), **given))
        size = models.policy.vlm.processor.image_processor.size
        assert (size["shortest_edge"], size["longest_edge"]) == expected


def test_runs_stand_for_their_models(tmp_path, reward_dir):
    assert resolve_run("owner/model") == ("owner/model", None, None)
    assert resolve_run(str(reward_dir)) == (None, None, str(reward_dir))
    run = tmp_path / "ppo"
    run.mkdir()
    save_config(ppo_config("base", None, run), run / "config.yaml")
    with pytest.raises(InputError, match="is a run of ppo that has not finished"):
        resolve_run(str(run))
    (run / "finished.json").write_text("{}")
    assert resolve_run(str(run)) == ("base", str(run / "policy"), None)
    (run / "policy").mkdir()
    for base, expected in ((tmp_path, tmp_path), ("owner/model", "owner/model"), (tmp_path / "moved", "base")):
        (run / "policy" / "base.json").write_text(json.dumps({"base": str(base), "base_fingerprint": "x"}))
        assert resolve_run(str(run)) == (str(expected), str(run / "policy"), None)
    (run / "policy" / "base.json").write_text("{")
    assert resolve_run(str(run)) == ("base", str(run / "policy"), None)
    shutil.rmtree(run / "policy")
    (run / "config.yaml").unlink()
    save_config(FeedbackConfig(model_name_or_path="base", dataset_name="x", output_dir=str(run)), run / "config.yaml")
    with pytest.raises(InputError, match="is a run of feedback, which has no model to serve"):
        resolve_run(str(run))
    (run / "policy").mkdir()
    assert resolve_run(str(run)) == ("base", str(run / "policy"), None)


def test_the_command_refuses_what_does_not_exist(capsys):
    assert main(["serve", "runs/nothing/here"]) == 2
    assert "model_name_or_path runs/nothing/here does not exist" in capsys.readouterr().err
    assert main(["serve"]) == 2 and "model_name_or_path" in capsys.readouterr().err
