"""The answers of a ppo step with their rewards; sampling ahead, and dynamic sampling of prompts.

With `async_steps`, servers sample the answers of a step while the step before it trains. The
answers are then sampled from the policy before that update. The role `sampler` keeps its weights:
ratios are to its log-probs, and checkpoints contain it, so that a resumed run samples the same
answers again.

If all answers to a prompt score alike, none is better than another, and they teach nothing.
Dynamic sampling (Yu et al. 2025, DAPO, section 3.2) replaces such prompts by the next ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator

from mmrlhf.config import PPOConfig
from mmrlhf.engine.completions import SampledCompletions, replace_prompts
from mmrlhf.engine.rollout import RolloutEngine, prompts_from_examples
from mmrlhf.engine.vllm_http import VLLMServers
from mmrlhf.models.lost_process import LostProcessError
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import Example, InputError
from mmrlhf.rewards.ledger import RewardBreakdown, score_samples
from mmrlhf.rewards.types import Sample
from mmrlhf.training.ppo.batch import sampling_params
from mmrlhf.training.ppo.engine import publish_sampler
from mmrlhf.training.ppo.prompt_order import NumberedRow, PromptOrder, StepPrompts
from mmrlhf.training.ppo.roles import PPORoles
from mmrlhf.training.sampled_answers import build_samples
from mmrlhf.training.skipped_steps import Attempt, raise_on_all_processes


@dataclass(frozen=True)
class Rollout:
    """This process's prompts, the answers to each (adjacent), and their rewards.

    `policy_version` is the version of the policy that sampled: the number of steps it was trained
    for. `metrics` count the prompts that dynamic sampling replaced, over all processes.
    """

    rows: list[Example]
    completions: SampledCompletions
    samples: list[Sample]
    breakdowns: list[RewardBreakdown]
    policy_version: int
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def numbered_rows(self) -> list[Example]:
        """The rows with their ids in the step, which determine the samples."""
        return [replace(row, id=prompt.id) for row, prompt in zip(self.rows, self.completions.prompts, strict=True)]


@dataclass(frozen=True)
class StartedRollout:
    """This process's prompts of a step, whose answers an engine is sampling.

    `position` is that of the prompt order before them.
    """

    position: int
    numbered: list[NumberedRow]
    wait: Callable[[], SampledCompletions]
    policy_version: int


def start_rollout(
    config: PPOConfig,
    accelerator: Accelerator,
    roles: PPORoles,
    engine: RolloutEngine,
    prompt_order: PromptOrder,
    run_dir: Path,
    step: int,
) -> StartedRollout:
    """Make servers start to sample the answers of a step, from the current sampler.

    If a server is down, or a picture cannot be used, `wait` raises the InputError in the step that
    needs the answers, so the steps before it are saved.
    """
    assert isinstance(engine, VLLMServers)  # as check_settings has checked
    position = prompt_order.position
    numbered = list(StepPrompts(config, accelerator, prompt_order).take_all().values())
    try:
        publish_sampler(config, accelerator, roles, engine, run_dir, step - 1)
        wait = engine.start_sampling(_prompts(config, roles, numbered), config.num_generations, sampling_params(config, step))
    except LostProcessError:
        raise  # nothing can be exchanged any more
    except InputError as error:
        wait = partial(_fail, error)
    return StartedRollout(position, numbered, wait, step - 1)


def _fail(error: InputError) -> NoReturn:
    raise error


def finish_rollout(config: PPOConfig, roles: PPORoles, started: StartedRollout, attempt: Attempt, failure_file: Path) -> Rollout:
    """Wait for answers that are being sampled, and reward them. Raises like `collect_rollout`."""
    attempt.rows = [replace(row, id=row_id) for row, row_id in started.numbered]
    with raise_on_all_processes(attempt):
        return _score(config, roles, started.numbered, started.wait(), failure_file, started.policy_version)


def collect_rollout(
    config: PPOConfig,
    accelerator: Accelerator,
    roles: PPORoles,
    engine: RolloutEngine,
    prompt_order: PromptOrder,
    step: int,
    attempt: Attempt,
    failure_file: Path,
) -> Rollout:
    """Sample answers to this process's share of a step's prompts, and reward them.

    `failure_file` records the input on which a reward function fails. Raises, on all processes,
    NotFiniteError if something was not finite, EngineError if the engine failed, and InputError if
    a reward function fails or dynamic sampling finds no prompt whose answers have different
    rewards.
    """
    prompts = StepPrompts(config, accelerator, prompt_order)

    def answer(own: Sequence[NumberedRow]) -> Rollout | None:
        attempt.rows = [replace(row, id=row_id) for row, row_id in own] or attempt.rows
        with raise_on_all_processes(attempt):
            return sample_and_score(config, roles, engine, own, step, failure_file) if own else None

    rollout = answer(list(prompts.take_all().values()))
    assert rollout is not None
    if not config.dynamic_sampling:
        return rollout

    num_rollouts, num_replaced = 1, 0
    slots = prompts.slots_of(groups_alike(config, roles, rollout))
    while slots and num_rollouts < config.max_num_gen_batches:
        own = prompts.take(slots)
        replacement = answer(list(own.values()))
        if replacement is not None:
            rollout = _replace(rollout, list(own), replacement, roles.vlm)
        num_rollouts, num_replaced = num_rollouts + 1, num_replaced + len(slots)
        slots = prompts.slots_of(groups_alike(config, roles, rollout))
    if len(slots) == prompts.num_prompts:
        raise InputError(
            f"dynamic_sampling: in step {step + 1}, after {num_rollouts} rounds of sampling, all {len(prompts.taken)} prompts had "
            "answers with equal rewards, from which nothing can be learnt: change reward_terms, raise temperature or "
            "num_generations, or give other prompts"
        )
    counts = {"rollouts": num_rollouts, "replaced": num_replaced, "still_alike": len(slots)}
    return replace(rollout, metrics={f"dynamic_sampling/{name}": float(count) for name, count in counts.items()})


def sample_and_score(
    config: PPOConfig, roles: PPORoles, engine: RolloutEngine, numbered: Sequence[NumberedRow], step: int, failure_file: Path
) -> Rollout:
    """Sample answers to some rows, and call the reward functions on them.

    Raises NotFiniteError for logits or rewards that are not finite.
    """
    engine.wake()
    completions = engine.sample(_prompts(config, roles, numbered), config.num_generations, sampling_params(config, step))
    engine.free()
    return _score(config, roles, numbered, completions, failure_file, engine.policy_version)


def _prompts(config: PPOConfig, roles: PPORoles, numbered: Sequence[NumberedRow]) -> list[Prompt]:
    """Build the prompts of rows, with their ids in the step."""
    rows, ids = zip(*numbered, strict=True)
    return prompts_from_examples(roles.vlm, rows, config.max_length - config.response_length, ids)


def _score(
    config: PPOConfig,
    roles: PPORoles,
    numbered: Sequence[NumberedRow],
    completions: SampledCompletions,
    failure_file: Path,
    policy_version: int,
) -> Rollout:
    rows = [row for row, _ in numbered]
    samples = build_samples(rows, completions, config.num_generations, config.response_length)
    breakdowns = score_samples(roles.weighted_rewards, samples, failure_file)
    return Rollout(rows, completions, samples, breakdowns, policy_version)


def groups_alike(config: PPOConfig, roles: PPORoles, rollout: Rollout) -> list[bool]:
    """Return, for each prompt, whether all of its answers have the same reward.

    It is the reward that is trained on: normalised, bounded by length and clipped, as configured,
    and in the precision of training. Call it on all processes.
    """
    totals = [breakdown.total for breakdown in roles.aggregation.preview(rollout.breakdowns, rollout.samples)]
    totals_PG = torch.tensor(totals).view(-1, config.num_generations)
    return (totals_PG == totals_PG[:, :1]).all(1).tolist()


def _replace(rollout: Rollout, indices: list[int], replacement: Rollout, vlm: VLM) -> Rollout:
    """Return a rollout in which some prompts, with their answers, are those of another."""
    rows, samples, breakdowns = list(rollout.rows), list(rollout.samples), list(rollout.breakdowns)
    size = len(samples) // len(rows)
    for number, index in enumerate(indices):
        old, new = slice(index * size, (index + 1) * size), slice(number * size, (number + 1) * size)
        rows[index] = replacement.rows[number]
        samples[old], breakdowns[old] = replacement.samples[new], replacement.breakdowns[new]
    pad_token_id = int(vlm.tokenizer.pad_token_id)
    completions = replace_prompts(rollout.completions, indices, replacement.completions, pad_token_id)
    return Rollout(rows, completions, samples, breakdowns, rollout.policy_version)
