"""PPO and GRPO on the answers of a server: versions, differences, servers that are gone."""

import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

import mmrlhf.ppo as ppo_stage
from mmrlhf.engine.vllm_http import VLLMServers
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.ppo import ppo
from mmrlhf.records import ImageSource, InputError
from mmrlhf.training.ppo.engine import check_engine
from tests.helpers.fake_vllm import fake_vllm
from tests.helpers.runs import stopped_after
from tests.helpers.stages import ppo_config

CLOCKS = ("time", "eps", "memory/peak_gib", "image_encodes")


def longer(samples):
    return [len(s.answer) + sum(map(ord, s.answer)) / 1e4 for s in samples]


def config_of(model, output_dir, url, **settings):
    defaults = {
        "advantage_estimator": "grpo", "reward_terms": "longer=1", "max_steps": 2, "num_ppo_epochs": 1, "num_mini_batches": 1,
        "num_sample_generations": 0, "logging_steps": 1, "rollout_engine": url, "vllm_server_timeout": 0.2,
    }  # fmt: skip
    return ppo_config(model, None, output_dir, **{**defaults, **settings})


def train(config, examples, function=longer):
    ppo(config, examples, extra_reward_functions={"longer": function})
    return [row for row in read_jsonl(f"{config.output_dir}/metrics.jsonl") if row["step"]]


def test_every_step_samples_from_its_own_version(tiny_vlm_path, examples, tmp_path, vllm_fake):
    rows = train(config_of(tiny_vlm_path, tmp_path, vllm_fake.url, advantage_estimator="gae", max_steps=3), examples)
    names = [body["model"].rpartition("-v") for body in vllm_fake.generated]
    assert [version for _, _, version in names] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3 and len({name for name, _, _ in names}) == 1
    assert not vllm_fake.loaded  # the last one, too, is unloaded
    for row in rows:
        assert row["sampling/policy_version"] == row["step"] - 1
        assert row["sampling/logp_difference/mean"] <= row["sampling/logp_difference/max"] < 1e-5
        assert row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-5)
        assert row["val/ratio_first"] == pytest.approx(1, abs=1e-5) and row["policy/entropy_avg"] > 0
    assert rows[1]["objective/kl"] != 0
    assert not (tmp_path / "engine").exists() and not (tmp_path / "warnings.jsonl").read_text().count("logp_difference")


def test_old_logps_are_the_trainers_and_the_difference_warns(tiny_vlm_path, examples, tmp_path, vllm_fake):
    vllm_fake.logp_shift = 0.3  # the engine thinks every token likelier than the trainer does: ratios of exp(-0.3)
    (row,) = train(config_of(tiny_vlm_path, tmp_path, vllm_fake.url, max_steps=1), examples)
    assert row["objective/kl"] == pytest.approx(0, abs=1e-5) and row["val/ratio_first"] == pytest.approx(1, abs=1e-5)
    assert row["sampling/logp_difference/mean"] == pytest.approx(0.3, abs=1e-5)
    assert row["sampling/importance_sampling_ratio/max"] == pytest.approx(0.7408, abs=1e-4)
    (warning,) = [row for row in read_jsonl(tmp_path / "warnings.jsonl") if row["name"] == "logp_difference"]
    assert "differ from the trainer's by 0.3 nats per token" in warning["warning"]


def test_correction_weighs_the_loss_and_can_be_turned_off(tiny_vlm_path, examples, tmp_path, vllm_fake):
    """The gradient of one step is multiplied by the ratio, exp(-0.3), or by the cap."""
    vllm_fake.logp_shift = 0.3
    settings = {"max_steps": 1, "kl_coef": 0.0}
    (on,) = train(config_of(tiny_vlm_path, tmp_path / "on", vllm_fake.url, **settings), examples)
    off = train(
        config_of(tiny_vlm_path, tmp_path / "off", vllm_fake.url, vllm_importance_sampling_correction=False, **settings), examples
    )
    capped = train(
        config_of(tiny_vlm_path, tmp_path / "cap", vllm_fake.url, vllm_importance_sampling_cap=0.5, **settings), examples
    )
    assert on["grad_norm"] / off[0]["grad_norm"] == pytest.approx(0.7408, rel=1e-3)
    assert capped[0]["grad_norm"] / off[0]["grad_norm"] == pytest.approx(0.5, rel=1e-3)


def test_a_run_without_its_server_saves_stops_and_goes_on(tiny_vlm_path, examples, tmp_path, vllm_fake):
    settings = {"max_steps": 4, "save_steps": 100, "dynamic_sampling": True}
    expected = train(config_of(tiny_vlm_path, tmp_path / "whole", vllm_fake.url, **settings), examples)
    vllm_fake.is_gone_after = len(vllm_fake.generated) + 7  # in the third step, after one of its three prompts
    config = config_of(tiny_vlm_path, tmp_path / "cut", vllm_fake.url, **settings)
    with pytest.raises(InputError, match=r"did not answer for 0.2 seconds \(it is gone\).*is saved after step 2, and the same"):
        train(config, examples)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-000002"]
    assert not (tmp_path / "cut" / "engine").exists()
    vllm_fake.is_gone_after = None
    rows = train(config, examples)
    for row, other in zip(rows, expected, strict=True):
        assert {k: v for k, v in row.items() if k not in CLOCKS} == {k: v for k, v in other.items() if k not in CLOCKS}
    weights = [load_file(tmp_path / name / "policy" / "adapter_model.safetensors") for name in ("whole", "cut")]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


def test_what_a_server_cannot_do_stops_the_run_before_it_begins(tiny_vlm_path, examples, tmp_path, vllm_fake):
    config = config_of(tiny_vlm_path, tmp_path / "run", vllm_fake.url)
    vllm_fake.sees_adapters = False
    with pytest.raises(InputError, match=r"finds no adapter at .*/run/engine/v0: give an --output_dir that the server sees"):
        train(config, examples)
    vllm_fake.max_model_len = 100
    with pytest.raises(InputError, match="takes 100 tokens, and max_length is 2048"):
        train(config, examples)
    assert not any(path for path in (tmp_path / "run").glob("*"))
    assert not vllm_fake.generated


def test_vllm_in_process_needs_the_package_and_one_process(tiny_vlm_path, examples, tmp_path):
    config = config_of(tiny_vlm_path, tmp_path / "run", "vllm", vllm_server_timeout=240.0)
    with pytest.raises(InputError, match="rollout_engine vllm is for one process: start a vLLM server for several"):
        check_engine(config, 2)
    if find_spec("vllm") is None:
        with pytest.raises(InputError, match="vLLM is not installed here: install it, or start a server elsewhere"):
            train(config, examples)
        assert not any((tmp_path / "run").glob("*"))


def test_a_server_may_be_replaced_along_the_way(tiny_vlm_path, examples, tmp_path, vllm_fake):
    vllm_fake.is_gone_after = 3
    with pytest.raises(InputError, match="is saved after step 1"):
        train(config_of(tiny_vlm_path, tmp_path, vllm_fake.url), examples)
    with fake_vllm(tiny_vlm_path, examples) as other:
        config = config_of(tiny_vlm_path, tmp_path, other.url, allow_change="rollout_engine")
        assert len(train(config, examples)) == 2
    assert json.loads((tmp_path / "changes.jsonl").read_text())["name"] == "rollout_engine"


# ---- sampling ahead of training ------------------------------------------------------------------


def test_sampling_ahead_is_from_the_policy_a_step_before(tiny_vlm_path, examples, tmp_path, vllm_fake):
    """Ratios are to the version that sampled: the engine's log-probs are those of the sampler."""
    rows = train(config_of(tiny_vlm_path, tmp_path, vllm_fake.url, async_steps=1, max_steps=4), examples)
    assert [row["sampling/policy_version"] for row in rows] == [0, 0, 1, 2]
    versions = [body["model"].rpartition("-v")[2] for body in vllm_fake.generated]
    assert versions == ["0"] * 6 + ["1"] * 3 + ["2"] * 3  # and none for a fifth step
    for row in rows:
        assert row["sampling/logp_difference/max"] < 1e-5
        assert row["sampling/importance_sampling_ratio/max"] == pytest.approx(1, abs=1e-5)
    assert [abs(row["objective/kl"]) > 1e-4 for row in rows] == [False, False, True, True]
    assert [abs(row["val/ratio_first"] - 1) > 1e-5 for row in rows] == [False, True, True, True]
    assert len({row["id"] for row in read_jsonl(tmp_path / "ledger.jsonl")}) == min(12, len(examples))  # the order of prompts
    assert not vllm_fake.loaded and not (tmp_path / "engine").exists()


def test_the_next_answers_are_asked_for_before_the_update(tiny_vlm_path, examples, tmp_path, vllm_fake, monkeypatch):
    events = []

    def noted(owner, name, event):
        real = getattr(owner, name)

        def run(*args, **kwargs):
            events.append(event)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, run)

    noted(VLLMServers, "start_sampling", "ask")
    noted(ppo_stage, "update_roles", "update")
    noted(ppo_stage, "build_batch", "score")
    train(config_of(tiny_vlm_path, tmp_path, vllm_fake.url, async_steps=1, max_steps=3), examples)
    assert events == ["ask", "score", "ask", "update", "score", "ask", "update", "score", "update"]


@pytest.mark.parametrize("stop", ["kill", "server"])
def test_a_run_ahead_resumes_exactly(tiny_vlm_path, examples, tmp_path, vllm_fake, stop):
    """The answers of step 4 are of version 2, which only the checkpoint after step 3 still has."""
    settings = {"max_steps": 5, "save_steps": 3, "async_steps": 1, "advantage_estimator": "gae"}
    expected = train(config_of(tiny_vlm_path, tmp_path / "whole", vllm_fake.url, **settings), examples)
    config = config_of(tiny_vlm_path, tmp_path / "cut", vllm_fake.url, **settings)
    if stop == "kill":
        with stopped_after(3):
            train(config, examples)
    else:
        vllm_fake.is_gone_after = len(vllm_fake.generated) + 10  # one of three answers of the fourth step
        with pytest.raises(InputError, match="is saved after step 3, and the same command goes on"):
            train(config, examples)
        vllm_fake.is_gone_after = None
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-000003"]
    rows = train(config, examples)
    for row, other in zip(rows, expected, strict=True):
        assert {k: v for k, v in row.items() if k not in CLOCKS} == {k: v for k, v in other.items() if k not in CLOCKS}
    weights = [load_file(tmp_path / name / "policy" / "adapter_model.safetensors") for name in ("whole", "cut")]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])
    assert all(".policy." not in key and "sampler" not in key for key in weights[0])


def test_a_picture_of_the_next_step_that_cannot_be_used_leaves_the_steps_before_it(tiny_vlm_path, examples, tmp_path, vllm_fake):
    steps = []

    def function(samples):
        steps.append([sample.images[0].key for sample in samples])
        return longer(samples)

    train(config_of(tiny_vlm_path, tmp_path / "healthy", vllm_fake.url, async_steps=1), examples, function)
    number = next(i for i, example in enumerate(examples) if example.images[0].key in steps[1])
    assert examples[number].images[0].key not in steps[0]
    picture = examples[number].images[0].read()
    cut_off = replace(examples[number], images=(ImageSource(data=picture[: len(picture) // 2]),))  # its header is whole
    rows = [*examples[:number], cut_off, *examples[number + 1 :]]
    config = config_of(tiny_vlm_path, tmp_path / "run", vllm_fake.url, async_steps=1)
    for _ in range(2):  # the same command says so again
        with pytest.raises(InputError, match=r"truncated or damaged.*; .* is saved after step 1, and the same command"):
            train(config, rows)


def test_a_step_after_skipped_rewards_is_not_ahead(tiny_vlm_path, examples, tmp_path, vllm_fake):
    """Step 2 has no finite reward: step 3 samples when it begins, from the policy as it is."""
    calls = []

    def function(samples):
        calls.append(1)
        return [math.nan if len(calls) == 2 else value for value in longer(samples)]

    rows = train(config_of(tiny_vlm_path, tmp_path, vllm_fake.url, async_steps=1, max_steps=4), examples, function)
    assert [row.get("sampling/policy_version") for row in rows] == [0, None, 2, 2]
    assert rows[2]["val/ratio_first"] == pytest.approx(1, abs=1e-5) != rows[3]["val/ratio_first"]


def test_a_step_after_a_skipped_update_is_ahead_and_resumes_exactly(tiny_vlm_path, examples, tmp_path, vllm_fake, monkeypatch):
    """The update of step 2 fails: step 3 trains on answers that were sampled meanwhile."""
    real = ppo_stage.update_roles

    def update(config, accelerator, optimizer, roles, rollout, batch, ptx_rows, step, attempt):
        if step == 1:
            raise NotFiniteError("the loss is nan")
        return real(config, accelerator, optimizer, roles, rollout, batch, ptx_rows, step, attempt)

    monkeypatch.setattr(ppo_stage, "update_roles", update)
    settings = {"async_steps": 1, "max_steps": 4, "save_steps": 2}
    rows = train(config_of(tiny_vlm_path, tmp_path / "whole", vllm_fake.url, **settings), examples)
    assert [row.get("sampling/policy_version") for row in rows] == [0, None, 1, 2]
    config = config_of(tiny_vlm_path, tmp_path / "cut", vllm_fake.url, **settings)
    with stopped_after(2):
        train(config, examples)
    for row, other in zip(train(config, examples), rows, strict=True):
        assert {k: v for k, v in row.items() if k not in CLOCKS} == {k: v for k, v in other.items() if k not in CLOCKS}


def test_a_reference_that_follows_is_a_copy_of_the_sampler(tiny_vlm_path, examples, tmp_path, vllm_fake):
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": 5, "max_kl": 50.0}
    rows = train(config_of(tiny_vlm_path, tmp_path, vllm_fake.url, async_steps=1, **settings), examples)
    assert [abs(row["objective/kl"]) < 1e-5 for row in rows] == [True, True, True, False, True], [r["objective/kl"] for r in rows]


def test_a_run_of_the_last_version_goes_on(tiny_vlm_path, examples, tmp_path, vllm_fake):
    """Its settings do not say async_steps."""
    config = config_of(tiny_vlm_path, tmp_path, vllm_fake.url)
    with stopped_after(1):
        train(replace(config, save_steps=1), examples)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("async_steps: 0\n", ""))
    assert len(train(config, examples)) == 2
    with pytest.raises(InputError, match="async_steps"):
        train(replace(config, async_steps=1), examples)


EXIT_SCRIPT = """
import sys
from mmrlhf.engine.rollout import prompts_from_examples
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.vllm_http import VLLMServers
from mmrlhf.engine.vllm_server import Server
from mmrlhf.models.loading import load
from tests.helpers.scene_rows import scene_examples
vlm = load(sys.argv[1])
engine = VLLMServers(vlm, [Server(sys.argv[2], 60)], "policy")
engine._pixel_reasons[sys.argv[2]] = ""
engine.set_policy(0)
engine.start_sampling(prompts_from_examples(vlm, scene_examples()), 2, SamplingParams(8))
engine.close()
print("closed")
"""


@pytest.mark.slow
def test_a_process_ends_while_servers_still_sample(tiny_vlm_path, examples, tmp_path, vllm_fake):
    vllm_fake.gate = threading.Event()  # no answer before the test ends
    try:
        done = subprocess.run(
            [sys.executable, "-c", EXIT_SCRIPT, tiny_vlm_path, vllm_fake.url], capture_output=True, text=True, timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout.endswith("closed\n"), done.stderr[-3000:]
    finally:
        vllm_fake.gate.set()


# ---- several processes ---------------------------------------------------------------------------


TWO_PROCESSES_SCRIPT = """
import sys
from mmrlhf.ppo import ppo
from tests.helpers.scene_rows import scene_examples
from tests.test_ppo_engine import longer, two_processes_config
ppo(two_processes_config(*sys.argv[1:], 2), scene_examples(), extra_reward_functions={"longer": longer})
"""


def two_processes_config(model, output_dir, url, prompts_per_process):
    return config_of(
        model, output_dir, url, per_device_train_batch_size=prompts_per_process, num_mini_batches=1, max_steps=3, save_steps=100
    )


@pytest.mark.slow
def test_two_processes_share_the_servers_and_stop_together(tiny_vlm_path, examples, tmp_path, vllm_fake):
    (tmp_path / "run.py").write_text(TWO_PROCESSES_SCRIPT)
    vllm_fake.is_gone_after = 10  # in the third step, of four prompts each
    stopped = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(tmp_path / "run.py"),
         tiny_vlm_path, str(tmp_path / "two"), vllm_fake.url],
        capture_output=True, text=True, timeout=300,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert stopped.returncode and "is saved after step 2, and the same command goes on" in stopped.stderr, stopped.stderr[-3000:]
    assert [path.name for path in (tmp_path / "two" / "checkpoints").iterdir()] == ["step-000002"]
    loads = [body["lora_name"].rpartition("-v")[2] for path, body in vllm_fake.requests if path == "/v1/load_lora_adapter"]
    assert loads == ["0", "1", "2"]  # once for both processes
    vllm_fake.is_gone_after = None
    one = train(two_processes_config(tiny_vlm_path, tmp_path / "one", vllm_fake.url, 4), examples)
    for row, other in zip(one, [row for row in read_jsonl(tmp_path / "two" / "metrics.jsonl") if row["step"]], strict=False):
        for name in ("objective/scores", "objective/kl", "sampling/logp_difference/max", "loss/policy_avg"):
            assert row[name] == pytest.approx(other[name], abs=1e-5), (row["step"], name)
