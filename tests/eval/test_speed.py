"""Check that the speed benchmarks run at toy size, not what they measure."""

import gc
import json
import sys

import pytest

from mmrlhf import scenes
from mmrlhf.datasets import read_examples
from mmrlhf.files.bundled import folder
from tests.helpers.fake_vllm import fake_vllm
from tests.helpers.tiny_models import build_checkpoint

SPEED_DIR = folder("eval") / "speed"


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a script of eval/speed with arguments and return the JSON object that it prints last."""
    monkeypatch.syspath_prepend(str(SPEED_DIR))

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        __import__(name).main()
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    yield run
    for name in ("async_steps", "dpo_trl", "encode", "gpu_smoke", "growth", "host_memory", "phases", "pope", "rl_step", "serve_load",
                 "vision_adapters"):  # fmt: skip
        sys.modules.pop(name, None)


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_rl_step_runs_at_toy_size(run_script, tmp_path, algo):
    build_checkpoint("llava", tmp_path / "model")
    sizes = {"prompts": 1, "generations": 2, "tokens": 4, "iterations": 2, "rounds": 3, "size": 56}
    options = [word for name, size in sizes.items() for word in (f"--{name}", size)]
    results = run_script("rl_step", tmp_path / "model", "--algo", algo, *options)
    assert (results["who"], results["algo"], len(results["round_s"])) == ("mmrlhf", algo, 2)
    assert results["samples_per_s"] > 0 and results["peak_gib"] > 0


def test_vision_adapters_runs_at_toy_size(run_script, tmp_path):
    build_checkpoint("llava", tmp_path / "model")
    results = run_script("vision_adapters", tmp_path / "model", "--rows", 4, "--batch", 1, "--epochs", 2, "--turns", 1)
    assert results["also"] == "projector,vision_tower" and results["first_epoch_s"] > 0 and results["later_cpu_s"] > 0


def test_dpo_trl_runs_our_side_at_toy_size(run_script, tmp_path):
    build_checkpoint("llava", tmp_path / "model")
    sizes = ("--pairs", 1, "--tokens", 6, "--steps", 3, "--size", 56)
    results = run_script("dpo_trl", tmp_path / "model", "--variant", "ours, kept", *sizes)
    assert len(results["seconds"]) == len(results["cpu_seconds"]) == 2 and results["peak_gib"] > 0


def test_dpo_trl_limits_match_hand_computation(monkeypatch):
    monkeypatch.syspath_prepend(str(SPEED_DIR))
    limits = __import__("dpo_trl").limits
    # A prompt of 10 tokens and answers of 5: TRL runs 30 tokens a pair and we run 20, three times
    # (four with the reference). At a second a token, and 10 seconds an image:
    seconds = {
        "trl, reference in the loop": 4 * 30 + 4 * 10,
        "trl, kept": 3 * 30 + 2 * 10,
        "ours, kept": 70,
        "ours, kept, images cached": 60,
    }
    expected = {"reference in the loop": 160 / (80 + 10), "kept": 110 / (60 + 10), "kept, images cached": 110 / 60}
    assert limits(seconds, prompt=10, tokens=5, pairs=1) == pytest.approx(expected)


def test_encode_runs_at_toy_size(run_script, tmp_path):
    build_checkpoint("qwen2_5_vl", tmp_path / "model")
    results = run_script("encode", tmp_path / "model", "--images", 6, "--size", "80x60", "--rounds", 1)
    assert results["images_per_s"] > 0 and results["second_epoch"] > 1


@pytest.mark.slow
def test_serve_load_runs_at_toy_size(run_script, bundled_vlm_path):
    results = run_script("serve_load", bundled_vlm_path, "--clients", 2, "--seconds", 0.5, "--tokens", 4)
    assert results["answers"] >= 2 and results["lost"] == 0 and 0 < results["tokens_per_answer"] <= 4
    assert 0 < results["median_s"] <= results["p99_s"]


def test_host_memory_runs_at_toy_size(run_script):
    gc.freeze()  # the script collects garbage twenty times, over all that tests have imported
    results = run_script("host_memory", "--images", 10, "--answers", 2)
    assert len(results["images_mib"]) == len(results["answers_mib"]) == 10 and results["answers_mib"][-1] > 100
    assert sum(results["cache_mib"].values()) <= results["budget_mib"] == 51.2


def test_async_steps_runs_at_toy_size(run_script, bundled_vlm_path, tmp_path, monkeypatch):
    async_steps = __import__("async_steps")
    monkeypatch.setattr(async_steps, "NUM_SCENES", 4)
    scenes.export_dataset(str(tmp_path), 4)
    with fake_vllm(bundled_vlm_path, list(read_examples(str(tmp_path / "prompts.jsonl")))) as fake:
        results = run_script(
            "async_steps", fake.url, "--steps", 2, "--seeds", 1, "--prompts", 2, "--generations", 2, "--out", tmp_path
        )
    assert results["speed-up"] == pytest.approx(results["seconds"]["0"] / results["seconds"]["1"], abs=1e-3)
    assert [len(rewards) for rewards in results["reward"].values()] == [2, 2]
    assert json.loads((tmp_path / "async_steps.json").read_text()) == results and (tmp_path / "async_steps.png").is_file()


def test_growth_runs_at_toy_size(run_script, tmp_path, monkeypatch):
    build_checkpoint("llava", tmp_path / "model")
    growth = __import__("growth")
    monkeypatch.setattr(growth, "DEFAULT_SIZES", {"prompts": 1, "generations": 2, "tokens": 2, "pictures": 1, "size": 56})
    assert growth.median_seconds(str(tmp_path / "model"), "off", words=8, pictures=0) > 0
    # With 10 seconds, 2 more for each answer: a second answer costs 2 / 12 of the first.
    monkeypatch.setattr(growth, "median_seconds", lambda _, __, **sizes: 10 + 2 * sizes.get("generations", 8))
    results = run_script("growth", "model", "--out", tmp_path)
    assert results["one_more_answer_over_the_first"] == round(2 / 12, 3)
    assert list(results["seconds"]["generations"]["naive"]) == ["2", "4", "8"] and (tmp_path / "growth.png").is_file()


def test_phases_runs_at_toy_size(run_script, tmp_path):
    arguments = ("--prompts", 2, "--generations", 2, "--tokens", 4, "--images", 4, "--out", tmp_path)
    results = run_script("phases", "--shape", "toy", *arguments)
    assert results["difference"] < 1e-4 and results["ppo_step"]["whole"]["tflop"] > 0
    assert json.loads((tmp_path / "toy.json").read_text()) == results


def test_gpu_smoke_passes_on_a_cpu(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SPEED_DIR))
    __import__("gpu_smoke").main(["--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ok") for line in lines) == 16 and lines[-1] == "all checks passed"


def test_gpu_smoke_fails_if_the_update_has_other_log_probs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SPEED_DIR))
    gpu_smoke = __import__("gpu_smoke")
    in_micro_batches = gpu_smoke.in_micro_batches
    monkeypatch.setattr(gpu_smoke, "in_micro_batches", lambda *args: in_micro_batches(*args) * float("nan"))
    with pytest.raises(SystemExit, match="2 checks failed"):
        gpu_smoke.main(["--device", "cpu"])
    assert "FAILED float32: the update has decoding's log-probs (nan nats)" in capsys.readouterr().out


def test_pope_runs_at_toy_size(run_script, tmp_path):
    build_checkpoint("llava", tmp_path / "model")
    results = run_script(
        "pope", tmp_path / "model", "--images", 2, "--questions", 3, "--batches", "2", "--rounds", 1, "--size", "80x60"
    )
    assert results["questions"] == results["same_answers"] == 6 and results["questions_per_s"] > 0


def test_gpu_stages_compares_the_first_steps(monkeypatch):
    monkeypatch.syspath_prepend(str(SPEED_DIR))
    differences = __import__("gpu_stages").differences
    metrics = {"sft": "loss", "reward": "loss", "dpo": "grad_norm", "ppo": "objective/scores"}
    cpu = {("cpu", stage): {name: [2.0, 1.0]} for stage, name in metrics.items()}
    same = {("gpu", stage): {name: [2.001, 9.0]} for stage, name in metrics.items()}
    assert list(differences(cpu | same)) == []  # within 0.002, and later steps may differ
    for wrong in (2.003, 1.997, float("nan")):
        (sentence,) = differences(cpu | same | {("gpu", "sft"): {"loss": [wrong]}})
        assert sentence == f"sft: loss of the first step is 2 on the CPU and {wrong:.6g} on the GPU"
    assert list(differences(cpu | same | {("gpu", "dpo"): {}})) == ["dpo: grad_norm of the first step is missing"]
