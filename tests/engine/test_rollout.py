"""The engine that a trainer samples with, local or external, and the noise behind the samples."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrlhf.engine.rollout import (
    LocalEngine,
    RolloutEngine,
    generate_batches,
    numbered_ids,
    prompts_from_examples,
    sample_completions,
    sampling_noise,
)
from mmrlhf.engine.sampling import SamplingParams, step_seed
from mmrlhf.models.adapters import Adapters, Role


@pytest.fixture
def policy(vlm):
    """A policy with an adapter that changes the base's answers."""
    adapters = Adapters(vlm)
    adapters.add("policy", 4, 64, 0)
    with torch.no_grad():
        for parameter in adapters.parameters("policy").values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return Role(adapters, "policy")


def test_local_engine_matches_sample_completions_under_the_adapter(policy, examples):
    vlm = policy.vlm
    prompts, params = prompts_from_examples(vlm, examples[:3]), SamplingParams(16, seed=step_seed(1, 2))
    engine: RolloutEngine = LocalEngine(policy)
    engine.wake()
    engine.set_policy(2)
    sampled = engine.sample(prompts, 2, params)
    engine.free()
    engine.close()
    with policy.active():
        expected = sample_completions(vlm, prompts, 2, params)
    assert torch.equal(sampled.token_ids_NT, expected.token_ids_NT) and torch.equal(sampled.logps_NT, expected.logps_NT)
    with policy.adapters.use(None):
        base_completions = sample_completions(vlm, prompts, 2, params)
    assert sampled.texts == expected.texts != base_completions.texts
    assert sampled.prompt_index_N.tolist() == [0, 0, 1, 1, 2, 2] and sampled.sampling_params == params


def test_local_engine_records_the_version_and_refuses_an_adapter(policy):
    engine = LocalEngine(policy)
    assert engine.policy_version == -1  # as with every engine, before it has a policy
    engine.set_policy(7)
    assert engine.policy_version == 7
    with pytest.raises(ValueError, match="shares its weights with the trainer"):
        engine.set_policy(8, Path("adapter"))


def test_answers_are_finished_if_they_end_before_max_tokens(vlm, examples):
    prompts = prompts_from_examples(vlm, examples[:4])
    assert sample_completions(vlm, prompts, 1, SamplingParams(1)).finished_N.tolist() == [False] * 4
    sampled = sample_completions(vlm, prompts, 2, SamplingParams(60))
    ends = [int(ids[mask.bool()][-1]) in vlm.eos for ids, mask in zip(sampled.token_ids_NT, sampled.mask_NT, strict=True)]
    assert sampled.finished_N.tolist() == ends and any(ends)


@pytest.mark.parametrize("prompt_id", ["row", ""])
def test_prompts_with_equal_ids_get_independent_samples(vlm, examples, prompt_id):
    (prompt,) = prompts_from_examples(vlm, examples[:1])
    prompt = replace(prompt, id=prompt_id)
    params = SamplingParams(20, 1.5)
    twice = sample_completions(vlm, [prompt, prompt], 1, params)
    assert twice.texts[0] != twice.texts[1]
    assert sample_completions(vlm, [prompt], 1, params).texts[0] == twice.texts[0]


def test_repeated_ids_get_answers_of_their_own_in_any_batch_and_after_a_resume(vlm, examples):
    rows, params = [replace(examples[0], id="a")] * 5, SamplingParams(16, seed=step_seed(1, 2))
    answers = {
        (batch_size, num_done): [texts for _, texts in generate_batches(
            vlm, rows, params, batch_size=batch_size, num_generations=2, num_done=num_done
        )]
        for batch_size, num_done in ((5, 0), (2, 0), (2, 3))
    }  # fmt: skip
    assert len({text for texts in answers[5, 0] for text in texts}) == 10
    assert answers[2, 0] == answers[5, 0] and answers[2, 3] == answers[5, 0][3:]


def test_numbered_ids_are_unique_even_beside_ids_of_their_form():
    assert numbered_ids(["a", "b", "a", "a"]) == ["a", "b", "a#1", "a#2"]
    assert len(set(numbered_ids(["a", "a", "a#1", "a", "a#1"]))) == 5


def test_step_seed_differs_for_every_seed_and_step():
    assert step_seed(5, 0) == 5
    assert len({step_seed(seed, step) for seed in range(4) for step in range(4)}) == 16


def test_sample_completions_do_not_depend_on_batch(vlm, examples):
    prompts, params = prompts_from_examples(vlm, examples[:5]), SamplingParams(24, seed=3)
    together, alone = sample_completions(vlm, prompts, 2, params), sample_completions(vlm, prompts[3:4], 2, params)
    assert together.texts[6:8] == alone.texts
    assert len(set(together.texts)) > 5
    other_seed = sample_completions(vlm, prompts[:2], 2, replace(params, seed=4))
    assert other_seed.texts != together.texts[:4]


def test_sample_completions_do_not_depend_on_token_budget(vlm, examples):
    prompts, params = prompts_from_examples(vlm, examples[:5]), SamplingParams(20, seed=1)
    one_batch = sample_completions(vlm, prompts, 3, params)
    vlm.budget.max_tokens = 70
    micro_batches = sample_completions(vlm, prompts, 3, params)
    assert one_batch.texts == micro_batches.texts
    assert torch.allclose(one_batch.logps_NT, micro_batches.logps_NT, atol=1e-4)


def test_sampling_noise_differs_by_row_answer_step_and_seed():
    noise = sampling_noise(["a", "b"], 2, 3, seed=0)
    assert len({tuple(row) for row in noise.tolist()}) == 4
    assert not torch.equal(noise, sampling_noise(["a", "b"], 2, 3, seed=step_seed(0, 1)))
    assert not torch.equal(noise, sampling_noise(["a", "b"], 2, 3, seed=1))
