"""The roles of a PPO run: policy, reference, critic and reward models, on one base if possible."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from mmrlhf.config import PPOConfig
from mmrlhf.facts import render_facts
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.policy import add_frozen_copy, add_reference, add_trained_adapter
from mmrlhf.models.processes import gather_object
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import Example, Message
from mmrlhf.rewards.aggregation import RewardAggregation, build_aggregation
from mmrlhf.rewards.build import build_rewards
from mmrlhf.rewards.claim_rewards import ClaimScorer
from mmrlhf.rewards.fact_rm import reward_model_paths
from mmrlhf.rewards.reward_model import RewardModel, prompt_with_facts
from mmrlhf.rewards.reward_terms import WeightedReward
from mmrlhf.rewards.types import RewardFunction


@dataclass(frozen=True)
class PPORoles:
    """The models and reward functions of a PPO run.

    `policy` and `critic` train; the critic is None if the advantages need no values. `reference` is
    the base without an adapter, or with the one that the policy starts from; with `syncs_reference`
    it is an adapter that becomes a copy of the policy's. `sampler` is the policy that samples: the
    policy itself or, with sampling ahead, a copy from one step before. `weighted_rewards` are the
    terms of the reward, which `aggregation` adds up. `claim_scorer` extracts claims and gets
    verdicts on them, for the reward and for the metrics.
    """

    adapters: Adapters
    policy: Role
    reference: Role
    sampler: Role
    critic: Role | None
    reward_models: list[RewardModel]
    weighted_rewards: list[WeightedReward]
    aggregation: RewardAggregation
    claim_scorer: ClaimScorer | None
    syncs_reference: bool = False

    @property
    def vlm(self) -> VLM:
        return self.adapters.vlm

    @property
    def trained(self) -> list[Role]:
        """The roles that the optimiser trains."""
        return [self.policy] if self.critic is None else [self.policy, self.critic]

    @property
    def changing(self) -> list[Role]:
        """The roles whose weights change during the run, so that a checkpoint has them."""
        copies = [*([self.reference] if self.syncs_reference else []), *([self.sampler] if self.has_sampler_copy else [])]
        return [*self.trained, *copies]

    @property
    def has_sampler_copy(self) -> bool:
        """Whether the sampler is a copy of the policy with its own weights."""
        return self.sampler is not self.policy

    def sync_reference(self) -> None:
        """Copy the sampler's weights into the reference: the next answers have a KL of 0."""
        assert self.syncs_reference
        _copy_weights(self.sampler, self.reference)

    def sync_sampler(self) -> None:
        """Copy the policy's weights into the sampler, if that is not the policy itself."""
        if self.has_sampler_copy:
            _copy_weights(self.policy, self.sampler)


@torch.no_grad()
def _copy_weights(source: Role, target: Role) -> None:
    for own, other in zip(target.parameters(), source.parameters(), strict=True):
        own.copy_(other)


def load_roles(
    config: PPOConfig,
    vlm: VLM,
    accelerator: Accelerator,
    extra_reward_functions: Mapping[str, RewardFunction] | None,
) -> PPORoles:
    """Load reward models and add the adapters of policy and critic to the base.

    Raises InputError if a reward function does not exist or a reward model cannot be used.
    """
    adapters = Adapters(vlm)
    rewards = build_rewards(config, adapters, accelerator, extra_reward_functions)
    add_trained_adapter(adapters, "policy", config)
    reference = add_reference(adapters, config, has_adapter=config.sync_ref_model)
    critic = _add_critic(config, adapters, rewards.reward_models) if config.has_critic else None
    policy = Role(adapters, "policy")
    return PPORoles(
        adapters=adapters,
        policy=policy,
        reference=reference,
        sampler=add_frozen_copy(adapters, "sampler", config) if config.async_steps else policy,
        critic=critic,
        reward_models=rewards.reward_models,
        weighted_rewards=rewards.weighted_rewards,
        aggregation=build_aggregation(config, gather_object),
        claim_scorer=rewards.claim_scorer,
        syncs_reference=config.sync_ref_model,
    )


def _add_critic(config: PPOConfig, adapters: Adapters, reward_models: Sequence[RewardModel]) -> Role:
    """Add the value role with a zero head, as a copy of the reward adapter if it fits this base."""
    if reward_models and reward_models[0].role.adapters is adapters:
        adapters.load("value", Path(reward_model_paths(config)[0]), trainable=True)
    else:
        adapters.add("value", config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
    head = scalar_head(torch.zeros(adapters.vlm.hidden_size, device=adapters.vlm.device))
    return Role(adapters, "value", head)


def critic_prompts_with_facts(
    vlm: VLM, rows: Sequence[Example], max_length: int, reward_models: Sequence[RewardModel]
) -> list[Prompt]:
    """Build the prompts of a critic that reads facts."""
    conversations = [(critic_messages(row, reward_models), row.images) for row in rows]
    return vlm.build_prompts(conversations, max_length, [row.id for row in rows])


def critic_messages(row: Example, reward_models: Sequence[RewardModel]) -> tuple[Message, ...]:
    """Return a row's prompt with its facts.

    They are formatted as for the first reward model that reads them, or else by `render_facts`.
    """
    reader = next((model for model in reward_models if model.facts == "given"), None)
    if reader is not None:
        facts_text = reader.facts_text(row.prompt, row.facts)
    else:
        facts_text = render_facts(row.facts, zlib.crc32(repr((row.prompt, row.facts)).encode()))
    return prompt_with_facts(row.prompt, facts_text)
