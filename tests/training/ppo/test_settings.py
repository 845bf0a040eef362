"""Settings of the algorithm that contradict each other are refused, each with its reason."""

import pytest

from mmrlhf.config import PPOConfig
from mmrlhf.config.loader import load_config
from mmrlhf.records import InputError
from mmrlhf.training.ppo.settings import check_minibatches, check_settings
from tests.helpers.stages import ppo_config

GRPO, RLOO, REINFORCE = ({"advantage_estimator": name} for name in ("grpo", "rloo", "reinforce_plus_plus"))
ADAPTIVE = {"kl_controller": "adaptive", "target_kl": 2.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GRPO, "use_critic": True}, "use_critic: advantage_estimator grpo does not use a critic; leave one of them out"),
        ({**RLOO, "vf_coef": 0.1}, "vf_coef is for a critic, which advantage_estimator rloo does not use; leave it out"),
        ({**REINFORCE, "cliprange_value": 0.4}, "cliprange_value is for a critic, which advantage_estimator reinforce_plus_plus"),
        ({**GRPO, "critic_sees_facts": True}, "critic_sees_facts is for a critic"),
        ({**GRPO, "critic_learning_rate": 1e-3}, "critic_learning_rate is for a critic"),
        ({"use_critic": False, "lam": 0.9}, "lam below 1 needs a critic, which use_critic false turns off; leave it out"),
        ({"use_critic": False, "vf_coef": 1.0}, "vf_coef needs a critic, which use_critic false turns off; leave it out"),
        ({**GRPO, "lam": 1.0}, "lam is for advantage_estimator gae, and this is grpo; leave it out"),
        ({**RLOO, "gamma": 0.9}, "gamma discounts rewards of tokens, and advantage_estimator rloo rewards full answers"),
        ({**RLOO, "num_generations": 1}, "advantage_estimator rloo compares the answers to a prompt, and num_generations is 1"),
        ({**GRPO, "num_generations": 1}, "advantage_estimator grpo compares the answers to a prompt, and num_generations is 1"),
        ({**GRPO, "whiten_rewards": True}, "whiten_rewards shifts the rewards of tokens, so that equal answers of other lengths"),
        ({**GRPO, "normalize_advantages": True}, "normalize_advantages is not for advantage_estimator grpo: set scale_rewards"),
        (
            {**RLOO, "scale_rewards": "batch"},
            "scale_rewards is for advantage_estimator grpo, and this is rloo: set normalize_adv",
        ),
        (
            {**GRPO, "scale_rewards": "none", "multi_objective_aggregation": "normalize_then_sum"},
            "scale_rewards has no effect with multi_objective_aggregation normalize_then_sum",
        ),
        ({"delta": 1.2}, "delta 1.2 must be above 1 [+] cliprange, 1.2: below it"),
        ({"delta": 1.25, "epsilon_high": 0.28}, "delta 1.25 must be above 1 [+] epsilon_high, 1.28"),
        ({**GRPO, "kl_estimator": "k1"}, "kl_estimator k1 has a gradient of 0 on average if it is in the loss"),
        ({"kl_penalty": "loss", "kl_estimator": "k1"}, "use k2 or k3, or kl_penalty reward"),
        ({"target_kl": 2.0}, "target_kl is for kl_controller adaptive, and this is fixed; leave it out"),
        ({"kl_horizon": 10.0}, "kl_horizon is for kl_controller adaptive"),
        ({"kl_controller": "adaptive"}, "kl_controller adaptive needs a target: give target_kl, in nats per answer"),
        ({**ADAPTIVE, "kl_coef": 0.0}, "kl_controller adaptive multiplies kl_coef, which is 0 and would stay 0"),
        ({"rollout_engine": "sglang"}, "rollout_engine 'sglang' is no engine: use local, vllm, or the addresses of servers"),
        ({"rollout_engine": "http://a:1,b:1"}, "'http://a:1,b:1' is no engine"),
        ({"rollout_engine": "http://a:1, http://a:1/"}, "names a server twice: list each replica once"),
        ({"rollout_engine": "http://a:1", "vllm_gpu_memory_utilization": 0.5}, "is for vLLM in this process"),
        (
            {"rollout_engine": "vllm", "vllm_server_timeout": 5.0},
            "vllm_server_timeout is for servers, and rollout_engine is vllm",
        ),
        ({"async_steps": 1}, "async_steps is for servers, and rollout_engine is local; leave it out"),
        (
            {"rollout_engine": "http://a:1", "async_steps": 1, "dynamic_sampling": True},
            "dynamic_sampling samples more when their rewards are known: leave one of them out",
        ),
        (
            {"vllm_importance_sampling_correction": True},
            "corrects for an engine that is not the trainer's, and rollout_engine is",
        ),
        ({"vllm_importance_sampling_cap": 3.0}, "vllm_importance_sampling_cap corrects for an engine that is not the trainer's"),
        (
            {"rollout_engine": "vllm", "vllm_importance_sampling_correction": False, "vllm_importance_sampling_cap": 3.0},
            "vllm_importance_sampling_cap needs vllm_importance_sampling_correction, which is false",
        ),
        (
            {"rollout_engine": "vllm", "dtype": "nf4"},
            "dtype nf4: vLLM in this process would .* or servers with --quantization bitsandbytes",
        ),
        (
            {"rollout_engine": "vllm", "lora_target_modules": "all-linear, projector"},
            r"lora_target_modules names projector, and vLLM \(rollout_engine vllm\) applies adapters to the language model only",
        ),
        (
            {"rollout_engine": "http://a:1", "lora_target_modules": "q_proj,vision_tower,projector"},
            "lora_target_modules names projector, vision_tower, and vLLM",
        ),
    ],
)
def test_contradictions_are_refused_with_their_reason(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        check_settings(ppo_config("m", None, tmp_path, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_critic": False, "lam": 1.0, "gamma": 0.9},
        {**REINFORCE, "num_generations": 1, "gamma": 0.9, "normalize_advantages": False, "whiten_rewards": True},
        {**RLOO, "normalize_advantages": True, "kl_penalty": "loss", "kl_estimator": "k2"},
        {**GRPO, "scale_rewards": "batch", "kl_penalty": "reward", "kl_estimator": "k1"},
        {"epsilon_high": 0.1, "delta": 1.11, "cliprange": 0.3},
        {"lora_target_modules": "all-linear,projector,vision_tower"},
        {"rollout_engine": "http://a:1", "lora_target_modules": "q_proj,v_proj", "dtype": "nf4"},
        {**ADAPTIVE, "kl_horizon": 1000, "importance_sampling_level": "sequence", "loss_type": "dr_grpo"},
    ],
)
def test_combinations_that_make_sense_pass(tmp_path, settings):
    check_settings(ppo_config("m", None, tmp_path, **settings))


def test_none_on_the_command_line_is_a_choice_of_scale_rewards():
    """Not the absence of a setting, which `none` means for settings that may be absent."""
    flags = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "scale_rewards": "none", **GRPO}
    config = load_config(PPOConfig, None, flags)
    assert config.scale_rewards == "none" and config.advantage_scaling == "none"


def test_prompts_of_a_step_are_split_evenly_over_all_processes(tmp_path):
    config = ppo_config("m", None, tmp_path, per_device_train_batch_size=3, num_mini_batches=2)
    with pytest.raises(InputError, match=r"num_mini_batches 2 does not divide the 3 prompts of a step \(.*batch_size 3\): "):
        check_minibatches(config, 1)
    check_minibatches(config, 2)  # 6 prompts
    with pytest.raises(InputError, match=r"the 9 prompts of a step \(per_device_train_batch_size 3 x 3 processes\)"):
        check_minibatches(config, 3)
