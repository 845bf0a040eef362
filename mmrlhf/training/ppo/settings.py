"""Settings of the algorithm that contradict each other, refused before anything loads."""

from __future__ import annotations

from mmrlhf.config import PPOConfig
from mmrlhf.config.unread import refuse_unread
from mmrlhf.models.lora_layers import PROJECTOR, VISION_TOWER
from mmrlhf.records import InputError

CRITIC_SETTINGS = ("critic_sees_facts", "critic_learning_rate", "vf_coef", "cliprange_value", "cliprange_value_unit")
"""Settings that only a critic reads."""


def check_settings(config: PPOConfig) -> None:
    """Raise InputError for settings of the algorithm that contradict each other or are not used."""
    _check_estimator(config)
    _check_loss(config)
    _check_kl(config)
    _check_loop(config)
    _check_engine(config)


def check_minibatches(config: PPOConfig, num_processes: int) -> None:
    """Raise InputError if the prompts of a step cannot be split evenly into minibatches."""
    num_prompts = config.per_device_train_batch_size * num_processes
    if num_prompts % config.num_mini_batches:
        processes = f" x {num_processes} processes" if num_processes > 1 else ""
        raise InputError(
            f"num_mini_batches {config.num_mini_batches} does not divide the {num_prompts} prompts of a step "
            f"(per_device_train_batch_size {config.per_device_train_batch_size}{processes}): "
            "prompts of a smaller minibatch would count more than others; change one of the two"
        )


def _check_estimator(config: PPOConfig) -> None:
    estimator = config.advantage_estimator
    if estimator != "gae":
        if config.use_critic:
            raise InputError(f"use_critic: advantage_estimator {estimator} does not use a critic; leave one of them out")
        refuse_unread(config, CRITIC_SETTINGS, f"is for a critic, which advantage_estimator {estimator} does not use")
        refuse_unread(config, ("lam",), f"is for advantage_estimator gae, and this is {estimator}")
    elif not config.has_critic:
        refuse_unread(config, CRITIC_SETTINGS, "needs a critic, which use_critic false turns off")
        if config.lam != 1:  # without values, a smaller one hides the reward at the end from early tokens
            refuse_unread(config, ("lam",), "below 1 needs a critic, which use_critic false turns off")
    if estimator in ("rloo", "grpo"):
        if config.num_generations == 1:
            raise InputError(
                f"advantage_estimator {estimator} compares the answers to a prompt, and num_generations is 1: "
                "sample at least 2, or use gae or reinforce_plus_plus"
            )
        reason = "shifts the rewards of tokens, so that equal answers of other lengths would differ, and"
        refuse_unread(config, ("whiten_rewards",), f"{reason} advantage_estimator {estimator} compares answers")
        refuse_unread(
            config, ("gamma",), f"discounts rewards of tokens, and advantage_estimator {estimator} rewards full answers"
        )
    if estimator == "grpo":
        refuse_unread(config, ("normalize_advantages",), "is not for advantage_estimator grpo: set scale_rewards instead")
        if config.compares_terms_in_groups:
            reason = "has no effect with multi_objective_aggregation normalize_then_sum, which scales each reward function"
            refuse_unread(config, ("scale_rewards",), reason)
    else:
        refuse_unread(
            config, ("scale_rewards",), f"is for advantage_estimator grpo, and this is {estimator}: set normalize_advantages"
        )


def _check_loss(config: PPOConfig) -> None:
    upper = config.epsilon_high if config.epsilon_high is not None else config.cliprange
    if config.delta is not None and config.delta <= 1 + upper:
        name = "cliprange" if config.epsilon_high is None else "epsilon_high"
        raise InputError(
            f"delta {config.delta:g} must be above 1 + {name}, {1 + upper:g}: "
            "below it, it would cut off ratios that the clip range allows"
        )


def _check_kl(config: PPOConfig) -> None:
    if config.kl_in_loss and config.penalized_kl == "k1":
        raise InputError(
            "kl_estimator k1 has a gradient of 0 on average if it is in the loss, so it would not hold the policy back: "
            "use k2 or k3, or kl_penalty reward"
        )
    if config.kl_controller == "fixed":
        refuse_unread(config, ("target_kl", "kl_horizon"), "is for kl_controller adaptive, and this is fixed")
        return
    if config.target_kl is None:
        raise InputError("kl_controller adaptive needs a target: give target_kl, in nats per answer")
    if config.kl_coef == 0:
        raise InputError("kl_controller adaptive multiplies kl_coef, which is 0 and would stay 0: give a kl_coef to start from")


def _check_loop(config: PPOConfig) -> None:
    if config.max_kl is not None and config.target_kl is not None and config.target_kl >= config.max_kl:
        raise InputError(
            f"target_kl {config.target_kl:g} is not below max_kl {config.max_kl:g}, at which the run stops: raise max_kl"
        )
    if config.ptx_coef and config.ptx_dataset_name is None:
        raise InputError("ptx_coef weighs the loss on rows with answers: give them as ptx_dataset_name")
    if config.ptx_dataset_name is not None and not config.ptx_coef:
        raise InputError("ptx_dataset_name needs a weight above 0: give a ptx_coef")
    if not config.sync_ref_model:
        refuse_unread(config, ("ref_model_sync_steps",), "is for sync_ref_model, which is false")
    if not config.dynamic_sampling:
        refuse_unread(config, ("max_num_gen_batches",), "is for dynamic_sampling, which is false")
    elif config.num_generations == 1:
        raise InputError("dynamic_sampling compares the answers to a prompt, and num_generations is 1: sample at least 2")


def _check_engine(config: PPOConfig) -> None:
    engine = config.rollout_engine
    if engine not in ("local", "vllm") and not config.server_urls:
        raise InputError(
            f"rollout_engine {engine!r} is no engine: use local, vllm, or the addresses of servers, http://HOST:PORT, "
            "separated by commas"
        )
    if len(set(config.server_urls)) < len(config.server_urls):
        raise InputError(f"rollout_engine {engine} names a server twice: list each replica once")
    if not config.server_urls:
        refuse_unread(config, ("vllm_server_timeout", "async_steps"), f"is for servers, and rollout_engine is {engine}")
    if config.async_steps and config.dynamic_sampling:
        raise InputError(
            "async_steps 1 samples a step's answers before the step begins, and dynamic_sampling samples more when their rewards "
            "are known: leave one of them out"
        )
    if engine == "vllm" and config.dtype == "nf4":
        raise InputError(
            "dtype nf4: vLLM in this process would hold the base in bfloat16, too, and sample from those weights: use "
            "rollout_engine local, or servers with --quantization bitsandbytes (docs/engines.md)"
        )
    targets = {word.strip() for word in config.lora_target_modules.split(",")}
    if not config.samples_locally and (words := sorted(targets & {PROJECTOR, VISION_TOWER})):
        raise InputError(
            f"lora_target_modules names {', '.join(words)}, and vLLM (rollout_engine {engine}) applies adapters to the language "
            f"model only: leave out {' and '.join(words)}, or use rollout_engine local"
        )
    if engine != "vllm":
        refuse_unread(config, ("vllm_gpu_memory_utilization",), f"is for vLLM in this process, and rollout_engine is {engine}")
    if config.samples_locally:
        reason = "corrects for an engine that is not the trainer's, and rollout_engine is local"
        refuse_unread(config, ("vllm_importance_sampling_correction", "vllm_importance_sampling_cap"), reason)
    elif not config.corrects_importance:
        refuse_unread(config, ("vllm_importance_sampling_cap",), "needs vllm_importance_sampling_correction, which is false")
