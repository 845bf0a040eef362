"""vLLM itself, in the trainer's process and as a server on this machine (`make test-engine`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm", reason="needs vLLM: `make test-engine` installs it in an environment of its own")

from scipy import stats

from mmrlhf.engine.vllm_http import VLLMServers
from mmrlhf.engine.vllm_server import Server
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.loading import load
from mmrlhf.scenes import export_dataset
from tests.helpers.vllm_models import NO_TOWER, vllm_server
from tests.with_vllm import checks

pytestmark = pytest.mark.engine
MAX_DIFFERENCE = 1e-4
"""Nats between the log-probs of a sampled token; measured are differences up to 1e-5."""
SERVED = {"llava": NO_TOWER, "qwen2_5_vl": NO_TOWER, "qwen3_vl": ()}
"""Families whose features a server takes, with its options: Qwen3-VL needs its tower."""
SEEDS, STEPS = 5, 30
FSDP2_ON_A_CPU = {"ACCELERATE_USE_CPU": "1", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets, and that the processes use gloo."""


def in_process(*arguments: str | Path) -> object:
    """Run `tests.with_vllm.in_process`, and return what it prints."""
    command = [sys.executable, "-m", "tests.with_vllm.in_process", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


def check(rows: dict[str, float], capsys: pytest.CaptureFixture[str], title: str) -> None:
    with capsys.disabled():
        print(f"\n{title}: " + ", ".join(f"{name} {value:.1e}" for name, value in rows.items() if "greedy" not in name))
    assert {value for name, value in rows.items() if "greedy" in name} == {1.0}
    assert max(value for name, value in rows.items() if "greedy" not in name) < MAX_DIFFERENCE


@pytest.mark.parametrize("family", SERVED)
def test_server_samples_what_the_trainer_computes(family, tmp_path, capsys):
    policy, examples = checks.prepare(family, tmp_path)
    with vllm_server(str(tmp_path / family), tmp_path / "log", *SERVED[family]) as url:
        Server(url, 0).check(512)
        engine = VLLMServers(policy.vlm, [Server(url, 5)], "policy")
        rows = checks.compare(engine, policy, examples, tmp_path)
        assert engine._pixel_reasons == {url: ""}
        engine._pixel_reasons[url] = "of this test"
        if not SERVED[family]:
            check(checks.compare(engine, policy, examples, tmp_path), capsys, f"server, {family}, pixels")
        engine.close()
    check(rows, capsys, f"server, {family}, features")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_vllm_in_process_samples_what_the_trainer_computes(family, tmp_path, capsys):
    check(in_process("compare", family, tmp_path), capsys, f"in process, {family}")


@pytest.fixture(scope="module")
def local_runs(tmp_path_factory):
    return checks.train("local", "grpo", SEEDS, STEPS, tmp_path_factory.mktemp("local"))


def same_rewards(
    runs: list[dict[str, float]], local: list[dict[str, float]], capsys: pytest.CaptureFixture[str], title: str
) -> None:
    """Check that the rewards at the end do not differ: the 95% interval of paired differences."""
    differences = [run["last"] - other["last"] for run, other in zip(runs, local, strict=True)]
    half = stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / len(differences) ** 0.5
    low, high = np.mean(differences) - half, np.mean(differences) + half
    with capsys.disabled():
        means = {name: float(np.mean([run[name] for run in group])) for name, group in (("first", local), ("last", local))}
        print(
            f"\n{title}: reward of `local` from {means['first']:.2f} to {means['last']:.2f}; difference {low:+.3f} to {high:+.3f}"
        )
    assert low <= 0 <= high
    assert max(run["difference"] for run in runs) < MAX_DIFFERENCE


def test_runs_on_a_server_earn_the_rewards_of_local_runs(local_runs, bundled_vlm_path, tmp_path, capsys):
    with vllm_server(bundled_vlm_path, tmp_path / "log", *NO_TOWER) as url:
        runs = checks.train(url, "grpo", SEEDS, STEPS, tmp_path)
        same_rewards(runs, local_runs, capsys, "server, grpo")
        (run,) = checks.train(url, "gae", 1, 3, tmp_path)
        assert run["difference"] < MAX_DIFFERENCE


def test_two_processes_with_a_base_in_shards_train_on_a_server(tmp_path):
    """The command line with FSDP2 on gloo: PPO with a critic, in step with its server and ahead."""
    export_dataset(str(tmp_path / "data"), 16)
    with vllm_server(checks.BASE, tmp_path / "log", *NO_TOWER) as url:
        for async_steps, versions in (("0", [0, 1, 2, 3]), ("1", [0, 0, 1, 2])):
            out = tmp_path / async_steps
            launched = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "mmrlhf", "ppo",
                 "--model_name_or_path", checks.BASE, "--dataset_name", str(tmp_path / "data" / "prompts.jsonl"),
                 "--output_dir", str(out), "--rollout_engine", url, "--async_steps", async_steps, "--max_length", "512",
                 "--reward_terms", "hallucination=1, coverage=1", "--response_length", "24", "--num_generations", "2",
                 "--per_device_train_batch_size", "2", "--max_steps", "4", "--lora_r", "8", "--num_sample_generations", "0"],
                capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2],
                env=os.environ | FSDP2_ON_A_CPU | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
            assert launched.returncode == 0, launched.stdout[-2000:] + launched.stderr[-3000:]
            rows = [row for row in read_jsonl(out / "metrics.jsonl") if row["step"]]
            assert [row["sampling/policy_version"] for row in rows] == versions
            assert max(row["sampling/logp_difference/max"] for row in rows) < MAX_DIFFERENCE
            assert abs(rows[-1]["objective/kl"]) > 1e-5 and rows[-1]["loss/value_avg"] > 0
            adapters = Adapters(load(checks.BASE))
            adapters.load("policy", out / "policy", trainable=False)


def test_runs_in_process_earn_the_rewards_of_local_runs(local_runs, tmp_path, capsys):
    same_rewards(in_process("train", "grpo", SEEDS, STEPS, tmp_path / "grpo"), local_runs, capsys, "in process, grpo")
    (run,) = in_process("train", "gae", 1, 3, tmp_path / "gae")
    assert run["difference"] < MAX_DIFFERENCE
