"""What keeps a ppo run on course: skipped steps, limits, mixed-in rows, reference, prompts."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.cli import main
from mmrlhf.engine.completions import SampledCompletions, replace_prompts
from mmrlhf.engine.rollout import LocalEngine
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError
from mmrlhf.replay import replay
from mmrlhf.rewards.aggregation import build_aggregation
from mmrlhf.rewards.ledger import RewardBreakdown
from mmrlhf.rewards.reward_clip import RewardClip, parse_reward_clip
from mmrlhf.training.ppo import policy_losses
from mmrlhf.training.ppo.prompt_order import PromptOrder
from mmrlhf.training.ppo.rollout import groups_alike
from mmrlhf.training.ppo.settings import check_settings
from mmrlhf.training.replay_file import read_step
from tests.helpers.runs import stopped_after
from tests.helpers.stages import ppo_config

NORMALIZED = {"multi_objective_aggregation": "normalize_then_sum"}


def longer(samples):
    """Reward long answers; answers to a prompt differ in length, or at least in their letters."""
    return [len(s.answer) + sum(map(ord, s.answer)) / 1e4 for s in samples]


def write_rows(path, examples):
    """Write examples with their answers, and their pictures beside them."""
    rows = []
    for example in examples:
        image = path.parent / f"{example.id}.png"
        image.write_bytes(example.images[0].read())
        rows.append({"id": example.id, "images": [str(image)], "prompt": example.prompt[0].content, "completion": example.answer})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(model, output_dir, **settings):
    """Return two steps of GRPO, with one optimiser step each."""
    defaults = {
        "advantage_estimator": "grpo", "reward_terms": "longer=1", "max_steps": 2, "num_ppo_epochs": 1, "num_mini_batches": 1,
        "lr_scheduler_type": "constant", "num_sample_generations": 0, "save_steps": 1,
    }  # fmt: skip
    return ppo_config(model, None, output_dir, **{**defaults, **settings})


def train(config, examples, function=longer):
    """Run ppo; return the rows of metrics.jsonl after step 0."""
    ppo(config, examples, extra_reward_functions={"longer": function} if "longer" in config.reward_terms else None)
    return [row for row in read_jsonl(f"{config.output_dir}/metrics.jsonl") if row["step"]]


def policy_of(config):
    return load_file(f"{config.output_dir}/policy/adapter_model.safetensors")


def assert_same_policy(first, second):
    first, second = policy_of(first), policy_of(second)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_resumes_exactly(config, examples, step, function=longer):
    """Compare an unbroken run with one that was killed after a step."""
    whole, killed = (replace(config, output_dir=f"{config.output_dir}/{name}") for name in ("whole", "killed"))
    rows = train(whole, examples, function)
    with stopped_after(step):
        train(killed, examples, function)
    train(killed, examples, function)
    assert_same_policy(whole, killed)
    changing = ("time", "eps", "memory/peak_gib", "image_encodes", "image_reencodes")
    metrics = [read_jsonl(f"{c.output_dir}/metrics.jsonl") for c in (whole, killed)]
    assert [{k: v for k, v in row.items() if k not in changing} for row in metrics[0]] == [
        {k: v for k, v in row.items() if k not in changing} for row in metrics[1]
    ]
    assert read_jsonl(f"{whole.output_dir}/ledger.jsonl") == read_jsonl(f"{killed.output_dir}/ledger.jsonl")
    results = [json.loads(Path(c.output_dir, "finished.json").read_text()) for c in (whole, killed)]
    assert results[0] == results[1]
    return rows, results[0]


# ---- steps that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("value, text", [("float('nan')", "nan"), ("1e300", "1e+300, which is beyond float32,")])
def test_a_step_with_a_reward_that_is_not_finite_is_skipped(tiny_vlm_path, examples, tmp_path, capsys, value, text):
    """The function's file is all that a replay needs besides the base."""
    taken = PromptOrder(examples, 0)
    bad_id = (taken.take(3), taken.take(3))[1][0].id
    function_file = tmp_path / "rewards.py"
    function_file.write_text(
        f"def mine(samples):\n    return [{value} if s.id == {bad_id!r} else float(len(s.answer)) for s in samples]\n"
    )
    config = config_of(tiny_vlm_path, tmp_path / "run", reward_terms=f"{function_file}:mine=1", max_steps=3, logging_steps=1)
    rows = train(config, examples)
    assert [row.get("skipped_steps") for row in rows] == [None, 1.0, 1.0] and "objective/kl" not in rows[1]
    assert {row["step"] for row in read_jsonl(tmp_path / "run" / "ledger.jsonl")} == {1, 3}
    out = capsys.readouterr().out
    assert f"step 2: skipped_step: reward function {function_file}:mine returned {text}" in out and "\n     2  skipped\n" in out
    assert main(["replay", str(tmp_path / "run" / "skipped" / "step-000002.safetensors")]) == 0
    assert capsys.readouterr().out.rstrip().endswith("correct the function, as in the run")


def test_an_update_that_is_not_finite_is_skipped_and_replayed(tiny_vlm_path, examples, tmp_path, monkeypatch, capsys):
    """With a critic, rows mixed in and two minibatches; the replay is without the fault."""
    data = write_rows(tmp_path / "sft.jsonl", examples[:4])
    settings = {"ptx_coef": 0.5, "ptx_dataset_name": str(data), "per_device_train_batch_size": 4, "num_mini_batches": 2}
    config = config_of(tiny_vlm_path, tmp_path / "run", advantage_estimator="gae", **settings)
    losses, real = [], policy_losses.ppo_value

    def spoilt(*args, **kwargs):
        loss, metrics = real(*args, **kwargs)
        losses.append(metrics["loss/value_avg"])
        factor = math.nan if len(losses) == 4 else 1.0
        return loss * factor, {**metrics, "loss/value_avg": metrics["loss/value_avg"] * factor}

    monkeypatch.setattr(policy_losses, "ppo_value", spoilt)
    rows = train(config, examples)
    assert len(losses) == 4 and [row.get("skipped_steps") for row in rows] == [None, 1.0]
    file = tmp_path / "run" / "skipped" / "step-000002.safetensors"
    saved = read_step(file)
    assert len(saved.batch["minibatch"]) == 2 and len(saved.rows) == 4 + 2  # prompts, and rows mixed in
    monkeypatch.undo()
    capsys.readouterr()
    assert not replay(str(file))
    printed = capsys.readouterr().out
    loss = float(printed.split("computed again: the loss is ")[1].split(",")[0])
    assert math.isfinite(loss) and "which is not as in the run" in printed
    # A step with that loss is one that the replay reproduces.
    saved.numbers["loss"] = loss
    saved.write(file)
    assert replay(str(file))


# ---- limits --------------------------------------------------------------------------------------


def test_max_kl_stops_before_the_step_is_trained_on(bundled_vlm_path, examples, tmp_path, capsys):
    """The run ends with the policy of the step before, also if it is killed right then."""
    config = config_of(bundled_vlm_path, tmp_path, max_steps=5, max_kl=1e-3, kl_coef=0.0)
    rows, result = assert_resumes_exactly(config, examples, step=3)
    assert [row["objective/kl"] > 1e-3 for row in rows] == [False, False, True]
    assert ["loss/policy_avg" in row for row in rows] == [True, True, False]
    assert result["steps"] == 3 and result["stopped"].startswith("stopped at step 3: its answers have a KL to the reference of ")
    assert "above max_kl 0.001; it was not trained on" in capsys.readouterr().out
    two_steps = config_of(bundled_vlm_path, tmp_path / "two", max_steps=2, kl_coef=0.0)
    train(two_steps, examples)
    assert_same_policy(two_steps, replace(config, output_dir=f"{config.output_dir}/whole"))


def test_rewards_are_clipped_and_the_ledger_says_by_how_much(tiny_vlm_path, examples, tmp_path):
    def far(samples):
        return [(-7.0, 0.5, 30.0)[i % 3] for i in range(len(samples))]

    config = config_of(tiny_vlm_path, tmp_path, max_steps=1, reward_clip_range="-5,5", kl_penalty="reward", kl_coef=0.0)
    rows = train(config, examples, far)
    ledger = read_jsonl(tmp_path / "ledger.jsonl")
    assert [row["total"] for row in ledger] == [-5.0, 0.5, 5.0] * 2
    assert [row["terms"] for row in ledger] == [
        {"longer": value, "reward_clip": clipped - value} for value, clipped in [(-7.0, -5.0), (0.5, 0.5), (30.0, 5.0)] * 2
    ]
    assert rows[0]["reward_clip/clipped"] == pytest.approx(2 / 3) and rows[0]["rewards/reward_clip/mean"] == pytest.approx(
        -23 / 3
    )


@pytest.mark.parametrize("setting", ["5", "5,-5", "1,1", "a,b", "0,inf", "nan,1", "1,2,3", ""])
def test_reward_clip_range_is_two_numbers(setting):
    with pytest.raises(InputError, match="write the lowest and the highest reward, such as -5,5"):
        parse_reward_clip(setting)
    assert parse_reward_clip("-1, 2.5") == RewardClip(-1.0, 2.5) and parse_reward_clip(None) is None


# ---- rows mixed in, and the reference ------------------------------------------------------------


def test_ptx_mixes_in_the_loss_of_sft(tiny_vlm_path, examples, tmp_path):
    """If all rewards are equal nothing else is learnt: the gradient grows with the coefficient."""
    data = write_rows(tmp_path / "sft.jsonl", examples[:2])
    rows = {}
    for coefficient in (0.0, 1.0, 2.0):
        settings = {"ptx_coef": coefficient, "ptx_dataset_name": str(data)} if coefficient else {}
        config = config_of(tiny_vlm_path, tmp_path / str(coefficient), kl_coef=0.0, max_grad_norm=1e9, **settings)
        rows[coefficient] = train(config, examples, lambda samples: [1.0] * len(samples))
    assert rows[0.0][0]["grad_norm"] == 0 and "loss/ptx_avg" not in rows[0.0][0]
    assert rows[2.0][0]["grad_norm"] == pytest.approx(2 * rows[1.0][0]["grad_norm"], rel=1e-5)
    assert rows[1.0][0]["loss/ptx_avg"] == rows[2.0][0]["loss/ptx_avg"] > rows[1.0][1]["loss/ptx_avg"] > 0


def test_reference_becomes_the_policy_every_few_steps(tiny_vlm_path, examples, tmp_path):
    config = config_of(tiny_vlm_path, tmp_path, max_steps=5, sync_ref_model=True, ref_model_sync_steps=2, kl_coef=0.0)
    kl = [row["objective/kl"] for row in train(config, examples)]
    assert [abs(value) < 1e-5 for value in kl] == [True, False, True, False, True], kl


# ---- dynamic sampling ----------------------------------------------------------------------------


def dull(ids):
    """Return a reward that is the same for all answers to some prompts."""
    return lambda samples: [0.0 if s.id in ids else value for s, value in zip(samples, longer(samples), strict=True)]


def test_prompts_whose_answers_score_alike_are_replaced(tiny_vlm_path, examples, tmp_path):
    order = [example.id for example in PromptOrder(examples, 0).take(12)]
    # Of the first three, two are dull; of those that come instead, one; and the next is not.
    function = dull({order[0], order[2], order[3]})
    config = config_of(tiny_vlm_path, tmp_path, max_steps=1, dynamic_sampling=True)
    rows = train(config, examples, function)
    ids = [row["id"] for row in read_jsonl(tmp_path / "ledger.jsonl")]
    assert ids == [i for i in (order[5], order[1], order[4]) for _ in range(2)]
    assert [rows[0][f"dynamic_sampling/{name}"] for name in ("rollouts", "replaced", "still_alike")] == [3, 3, 0]


def test_dynamic_sampling_ends_at_its_limit(tiny_vlm_path, examples, tmp_path, capsys):
    order = [example.id for example in PromptOrder(examples, 0).take(12)]
    config = config_of(tiny_vlm_path, tmp_path / "some", max_steps=1, dynamic_sampling=True, max_num_gen_batches=2)
    rows = train(config, examples, dull({order[0], order[3]}))
    assert [rows[0][f"dynamic_sampling/{name}"] for name in ("rollouts", "replaced", "still_alike")] == [2, 1, 1]
    with pytest.raises(InputError, match="in step 1, after 2 rounds of sampling, all 6 prompts had answers with equal rewards"):
        train(replace(config, output_dir=str(tmp_path / "all")), examples, dull(set(order)))


@pytest.mark.parametrize(
    ("settings", "alike"),
    [
        ({}, [True, True, False, False, False]),  # sums 3 3, 2 2, 2 1, 15 18, 0 1
        ({"reward_clip_range": "-5,5"}, [True, True, False, True, False]),
        # The second answer has nine tokens, too many to earn more than 0: 3 0, 2 0, 2 0, 15 0, 0 0.
        ({"length_bounds": "1,8"}, [False, False, False, False, True]),
        ({"length_bounds": "1,4"}, [True] * 5),  # so is the first, of five tokens
        ({"length_bounds": "auto"}, [True, True, False, False, False]),  # measured: 5 to 9
        # Each function has mean 0 and deviation 1, so that opposite ones cancel out.
        (NORMALIZED, [True, True, False, False, False]),
        ({**NORMALIZED, "term_statistics": "running"}, [False, True, False, False, False]),
    ],
)
def test_groups_alike_compares_what_is_trained_on(settings, alike):
    values = [(1, 2), (2, 1), (1, 1), (1, 1), (1, 1), (0, 1), (7, 8), (9, 9), (0, 0), (1, 0)]
    breakdowns = [RewardBreakdown({"a": a, "b": b}, {}, {"a": a, "b": b}, {"a": 1.0, "b": 1.0}) for a, b in values]
    samples = [SimpleNamespace(num_tokens=5 + 4 * (i % 2)) for i in range(len(values))]
    config = config_of("m", "o", **settings)
    roles = SimpleNamespace(aggregation=build_aggregation(config, list))
    before = roles.aggregation.state_dict()
    assert groups_alike(config, roles, SimpleNamespace(breakdowns=breakdowns, samples=samples)) == alike
    assert roles.aggregation.state_dict() == before  # the answers may still be replaced


def test_a_function_that_applies_to_one_answer_leaves_a_group_alike():
    config = config_of("m", "o", **NORMALIZED)
    roles = SimpleNamespace(aggregation=build_aggregation(config, list))
    breakdowns = [RewardBreakdown(dict(v), {}, dict(v), {"a": 1.0, "b": 1.0}) for v in ({"a": 1.0, "b": 9.0}, {"a": 1.0})]
    assert groups_alike(config, roles, SimpleNamespace(breakdowns=breakdowns, samples=[])) == [True]


def test_replace_prompts_puts_answers_in_their_place():
    def completions(ids, width):
        count = 2 * len(ids)
        tokens = torch.tensor([[10 * i + g] * width for i in ids for g in range(2)])
        ones, texts = torch.ones(count, width), [f"{i}{g}" for i in ids for g in range(2)]
        prompt_index = torch.arange(len(ids)).repeat_interleave(2)
        return SampledCompletions([*map(str, ids)], prompt_index, tokens, ones, ones * tokens, ones, tokens[:, 0] > 0, texts, SamplingParams(4, 1.0))  # fmt: skip

    merged = replace_prompts(completions([1, 2, 3], 2), [2, 0], completions([7, 8], 3), pad_token_id=99)
    assert merged.prompts == ["8", "2", "7"] and merged.texts == ["80", "81", "20", "21", "70", "71"]
    assert merged.token_ids_NT.tolist() == [[80] * 3, [81] * 3, [20, 20, 99], [21, 21, 99], [70] * 3, [71] * 3]
    assert merged.mask_NT.sum(1).tolist() == [3, 3, 2, 2, 3, 3] and merged.logps_NT[2].tolist() == [20, 20, 0]
    assert merged.prompt_index_N.tolist() == [0, 0, 1, 1, 2, 2]


# ---- all of it -----------------------------------------------------------------------------------


def test_a_run_with_all_of_it_resumes_exactly(bundled_vlm_path, examples, tmp_path):
    """The kill comes after a skipped step, and between two refreshes of the reference."""
    order = [example.id for example in PromptOrder(examples, 0).take(12)]
    data = write_rows(tmp_path / "sft.jsonl", examples[:5])

    def function(samples):
        values = dull({order[1], order[6], order[7]})(samples)
        return [math.nan if s.id == order[4] else value for s, value in zip(samples, values, strict=True)]

    settings = {
        "max_steps": 5, "ptx_coef": 0.3, "ptx_dataset_name": str(data), "sync_ref_model": True, "ref_model_sync_steps": 2,
        "dynamic_sampling": True, "reward_clip_range": "-90,90", "kl_controller": "adaptive", "target_kl": 0.1, "max_kl": 50.0,
    }  # fmt: skip
    config = config_of(bundled_vlm_path, tmp_path, **settings)
    rows, result = assert_resumes_exactly(config, examples, step=3, function=function)
    assert result["skipped_steps"] == 1.0 and rows[1]["skipped_steps"] == 1.0
    assert any(row.get("dynamic_sampling/replaced") for row in rows[3:])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"ptx_coef": 1.0}, "ptx_coef weighs the loss on rows with answers: give them as ptx_dataset_name"),
        ({"ptx_dataset_name": "rows.jsonl"}, "ptx_dataset_name needs a weight above 0: give a ptx_coef"),
        ({"ref_model_sync_steps": 5}, "ref_model_sync_steps is for sync_ref_model, which is false; leave it out"),
        ({"max_num_gen_batches": 5}, "max_num_gen_batches is for dynamic_sampling, which is false; leave it out"),
        ({"dynamic_sampling": True, "num_generations": 1, "advantage_estimator": "gae"}, "dynamic_sampling compares the answers"),
        ({"max_kl": 1.0, "target_kl": 1.0, "kl_controller": "adaptive"}, "target_kl 1 is not below max_kl 1, at which"),
    ],
)
def test_settings_of_the_loop_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check_settings(config_of("model", "out", **settings))


# ---- rewards and answers that teach nothing ------------------------------------------------------


def test_a_constant_reward_is_warned_about(tiny_vlm_path, examples, tmp_path):
    """The policy cannot end an answer either, and nothing else happens."""
    config = config_of(tiny_vlm_path, tmp_path, logging_steps=2, min_new_tokens=10, kl_coef=0.0)
    rows = train(config, examples, lambda samples: [1.0] * len(samples))
    assert [row["frac_reward_zero_std"] for row in rows] == [row["completions/clipped_ratio"] for row in rows] == [1.0, 1.0]
    assert [row["grad_norm"] for row in rows] == [0.0, 0.0]
    (warning,) = [row for row in read_jsonl(tmp_path / "warnings.jsonl") if row["name"] == "constant_reward"]
    assert warning["step"] == 2 and warning["warning"].startswith("all answers to a prompt had the same reward")


def test_rewards_whose_squares_overflow_stop_the_run(tiny_vlm_path, examples, tmp_path):
    """1e30 fits in float32, and the squared error of a value does not."""
    config = config_of(tiny_vlm_path, tmp_path, advantage_estimator="gae", max_steps=5)
    with pytest.raises(InputError, match=r"^steps 1 to 3 were skipped in a row, the last because the loss is inf: see what is"):
        train(config, examples, lambda samples: [1e30 * (1 + i % 2) for i in range(len(samples))])
    assert [row["skipped_steps"] for row in read_jsonl(tmp_path / "metrics.jsonl") if row["step"]] == [1, 2]


def test_answers_without_tokens_are_trained_on(tiny_vlm_path, examples, tmp_path, monkeypatch):
    """An engine elsewhere may leave out the end of an answer; in step 2 all answers are empty."""
    real = LocalEngine.sample

    def sample(self, prompts, n, params):
        completions, num_steps = real(self, prompts, n, params), self.policy_version
        empty = slice(None) if num_steps else slice(1, 2)
        for tensor in (completions.mask_NT, completions.logps_NT, completions.entropy_NT):
            tensor[empty] = 0
        is_empty = completions.mask_NT.sum(1) == 0
        return replace(completions, texts=["" if e else t for e, t in zip(is_empty, completions.texts, strict=True)])

    monkeypatch.setattr(LocalEngine, "sample", sample)
    config = config_of(tiny_vlm_path, tmp_path, advantage_estimator="gae", reward_terms="longer=1, repetition=-1, missing_eos=-1")
    rows = train(config, examples)
    assert [row.get("skipped_steps") for row in rows] == [None, 1.0]
    answers = [row["answer"] for row in read_jsonl(tmp_path / "ledger.jsonl")]
    assert len(answers) == 6 and answers.count("") == 1
    warning = read_jsonl(tmp_path / "warnings.jsonl")[0]
    assert warning["name"] == "skipped_step" and warning["warning"].startswith("the answers have no tokens")


def test_an_empty_prompt_set_is_refused(tiny_vlm_path, tmp_path):
    with pytest.raises(InputError, match="has no rows"):
        train(config_of(tiny_vlm_path, tmp_path), [])
