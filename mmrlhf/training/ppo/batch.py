"""The answers of one PPO step, with everything that its updates need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmrlhf.config import PPOConfig
from mmrlhf.engine.completions import SampledCompletions, select_prompts
from mmrlhf.engine.rollout import prompts_from_examples
from mmrlhf.engine.sampling import SamplingParams, step_seed
from mmrlhf.models.vlm import Prompt
from mmrlhf.records import Example
from mmrlhf.rewards.ledger import RewardBreakdown
from mmrlhf.rewards.types import Sample
from mmrlhf.training.ppo.roles import PPORoles, critic_prompts_with_facts
from mmrlhf.training.sampled_answers import build_samples

COMPLETION_TENSORS = ("token_ids_NT", "mask_NT", "logps_NT", "entropy_NT", "finished_N")
BATCH_TENSORS = ("old_logps_NT", "ref_logps_NT", "rewards_NT", "advantages_NT", "values_NT", "returns_NT")


@dataclass(frozen=True)
class PPOBatch:
    """Sampled answers [N, T], their rewards, and the inputs of the losses.

    `samples` are the answers as passed to reward functions, `breakdowns` each function's value and
    its contribution to the reward. `old_logps_NT` are log-probs under the policy that sampled the
    answers, `ref_logps_NT` under the reference. `rewards_NT` holds the reward of each token, before
    whitening. `values_NT` is zero without a critic, `returns_NT` with every advantage_estimator but
    gae. `critic_prompts` are the prompts that the critic reads. `kl_coef` is the weight of the KL
    in this step, and `value_clip` how far a value may move, in units of the returns.
    """

    samples: list[Sample]
    breakdowns: list[RewardBreakdown]
    completions: SampledCompletions
    critic_prompts: list[Prompt]
    old_logps_NT: Tensor
    ref_logps_NT: Tensor
    rewards_NT: Tensor
    advantages_NT: Tensor
    values_NT: Tensor
    returns_NT: Tensor
    kl_coef: float
    value_clip: float

    @property
    def scores(self) -> list[float]:
        """The weighted sum of each answer's values, before they are normalised."""
        return [sum(breakdown.weighted_values.values()) for breakdown in self.breakdowns]

    @property
    def mask_NT(self) -> Tensor:
        """1.0 on the tokens of answers, 0.0 on padding."""
        return self.completions.mask_NT.float()

    @property
    def critic_completions(self) -> SampledCompletions:
        """The same answers after the critic's prompts."""
        return replace(self.completions, prompts=self.critic_prompts)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the batch by name, for a file (`replay_file`)."""
        of_completions = {name: getattr(self.completions, name) for name in COMPLETION_TENSORS}
        return of_completions | {name: getattr(self, name) for name in BATCH_TENSORS}

    def select(self, prompt_indices: Sequence[int]) -> PPOBatch:
        """Return the answers to some prompts, in the order of the batch."""
        completions, answer_indices = select_prompts(self.completions, prompt_indices)
        return PPOBatch(
            samples=[self.samples[i] for i in answer_indices.tolist()],
            breakdowns=[self.breakdowns[i] for i in answer_indices.tolist()],
            completions=completions,
            critic_prompts=[self.critic_prompts[p] for p in sorted(prompt_indices)],
            kl_coef=self.kl_coef,
            value_clip=self.value_clip,
            **{name: getattr(self, name)[answer_indices] for name in BATCH_TENSORS},
        )


def sampling_params(config: PPOConfig, step: int) -> SamplingParams:
    """Return how the answers of a step are sampled."""
    seed = step_seed(config.seed, step)
    return SamplingParams(config.response_length, config.temperature, min_tokens=config.min_new_tokens, seed=seed)


def batch_from_tensors(
    config: PPOConfig, roles: PPORoles, rows: Sequence[Example], tensors: Mapping[str, Tensor], numbers: Mapping[str, float]
) -> PPOBatch:
    """Return a step's batch from its rows and `PPOBatch.tensors`, without texts and rewards."""
    vlm, num_answers = roles.vlm, len(tensors["mask_NT"])
    max_prompt_length = config.max_length - config.response_length
    prompts = prompts_from_examples(vlm, rows, max_prompt_length)
    on_device = {name: tensor.to(vlm.device) for name, tensor in tensors.items()}
    completions = SampledCompletions(
        prompts=prompts,
        prompt_index_N=torch.arange(len(rows), device=vlm.device).repeat_interleave(config.num_generations),
        **{name: on_device[name] for name in COMPLETION_TENSORS},
        texts=[""] * num_answers,
        sampling_params=sampling_params(config, step=0),
    )
    critic_prompts = prompts
    if config.critic_sees_facts:
        critic_prompts = critic_prompts_with_facts(vlm, rows, max_prompt_length, roles.reward_models)
    samples = build_samples(rows, completions, config.num_generations, config.response_length)
    return PPOBatch(
        samples=samples,
        breakdowns=[RewardBreakdown({}, {}, {}, {})] * num_answers,
        completions=completions,
        critic_prompts=critic_prompts,
        **{name: on_device[name] for name in BATCH_TENSORS},
        kl_coef=numbers["kl_coef"],
        value_clip=numbers["value_clip"],
    )


MAX_FIRST_KL = {"float32": 1e-3, "bfloat16": 0.2, "nf4": 0.2}
"""Nats per token by which policy and reference may differ before the first step."""


def check_policy_is_reference(kl_NT: Tensor, dtype: str) -> None:
    """Raise RuntimeError if a policy that has not been trained yet differs from the reference."""
    max_kl = float(kl_NT.abs().max())
    if not max_kl <= MAX_FIRST_KL[dtype]:  # `not <=` also catches NaN
        raise RuntimeError(
            f"before the first step policy and reference differ by {max_kl:.2g} nats: the base is not the reference"
        )


def check_first_ratio(ratio: float) -> None:
    """Raise RuntimeError if the mean ratio of a rollout's first minibatch is not 1."""
    if not abs(ratio - 1) < 1e-3:  # `not <` also catches NaN
        raise RuntimeError(f"the first ratio is {ratio:.4f}, not 1: sampling and scoring disagree about log-probs")
