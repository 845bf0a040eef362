"""Log-probs of given answers: against the naive path, by hand, and with gradients in the loop."""

import pytest
import torch

from mmrlhf.engine import naive
from mmrlhf.engine.completions import Completions, pad_right
from mmrlhf.engine.prefill import prefill
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.scoring import hidden_states, in_micro_batches, logps, sequence_logps, token_logps
from mmrlhf.models.adapters import Adapters, Role

ANSWERS = ("A star.", "There is a red ring in the image.", "No.", "Yes, a square.")


@pytest.fixture
def role(vlm):
    return Role(Adapters(vlm), None)


@pytest.fixture
def completions(vlm, examples):
    """Two answers to the first prompt, one each to the next two."""
    prompts, prompt_index = prompts_from_examples(vlm, examples[:3]), [0, 0, 1, 2]
    ids = [vlm.answer_token_ids(examples[p].prompt, answer, 1) for p, answer in zip(prompt_index, ANSWERS, strict=True)]
    return Completions(prompts, torch.tensor(prompt_index), *pad_right(ids, int(vlm.tokenizer.pad_token_id), vlm.device))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("max_tokens", [100_000, 1])
def test_sequence_logps_match_naive_forward(role, completions, temperature, max_tokens):
    """Answers run all at once, and one by one."""
    role.vlm.budget.max_tokens = max_tokens
    actual = sequence_logps(role, completions, temperature)
    rows = completions.prompt_index_N.tolist()
    with torch.no_grad():
        hidden = naive.hidden_states(role.vlm, completions.prompts, rows, completions.token_ids_NT, completions.mask_NT)
    logits = role.vlm.logits(hidden[:, :-1]) / temperature
    token_logps_NT = logits.log_softmax(-1).gather(-1, completions.token_ids_NT[..., None])[..., 0]
    expected = torch.stack([row[mask.bool()].sum() for row, mask in zip(token_logps_NT, completions.mask_NT, strict=True)])
    assert not actual.requires_grad and torch.allclose(actual, expected, atol=1e-4)


def test_sequence_logps_of_one_token_by_hand(role, examples):
    """Log softmax at temperature 2: the token's logit minus the log of the summed exponentials."""
    vlm = role.vlm
    prompts = prompts_from_examples(vlm, examples[:1])
    token_id = int(vlm.tokenizer("A", add_special_tokens=False)["input_ids"][0])
    completions = Completions(prompts, torch.tensor([0]), torch.tensor([[token_id]]), torch.tensor([[1]]))
    with torch.no_grad():
        logits = vlm.model.get_output_embeddings()(prefill(vlm, prompts).last_hidden_PD)[0].double() / 2
    allowed = [i for i in range(len(logits)) if i not in set(vlm.suppressed_tokens.tolist())]
    expected = float(logits[token_id] - logits[allowed].exp().sum().log())
    assert float(sequence_logps(role, completions, 2.0)) == pytest.approx(expected, abs=1e-5)


def test_logps_of_sampled_answers_are_token_logps_at_their_parameters(role, examples):
    vlm = role.vlm
    params = SamplingParams(12, 0.7, min_tokens=4)
    sampled = sample_completions(vlm, prompts_from_examples(vlm, examples[:3]), 2, params)
    recomputed = in_micro_batches(logps, role, sampled)
    assert torch.allclose(recomputed, sampled.logps_NT, atol=1e-4)
    # No answer could end before token 4. Without that minimum, the tokens are less likely.
    assert bool((sequence_logps(role, sampled, 0.7) < recomputed.sum(1)).all())


def test_logps_refuse_a_truncated_distribution(role, examples):
    sampled = sample_completions(role.vlm, prompts_from_examples(role.vlm, examples[:1]), 1, SamplingParams(4, top_p=0.9))
    with pytest.raises(ValueError, match="have no log-probs to learn from"):
        in_micro_batches(logps, role, sampled)


def test_coefficients_inside_the_loop_give_the_gradient_of_a_coupled_loss(vlm, completions):
    """In DPO, -log sigmoid(a - b) has the gradient of c * (a - b), where c = -sigmoid(b - a)."""
    adapters = Adapters(vlm)
    adapters.add("policy", 4, 8, 0)
    policy = Role(adapters, "policy")
    first, second = sequence_logps(policy, completions)[:2]
    coefficient = -torch.sigmoid(second - first)
    coefficients = torch.stack([coefficient, -coefficient, *torch.zeros(2)])
    vlm.budget.max_tokens = 1
    for indices, hidden in hidden_states(policy, completions):
        (coefficients[indices] * token_logps(policy, completions, hidden, indices).sum(1)).sum().backward()
    actual = {name: parameter.grad.clone() for name, parameter in adapters.parameters("policy").items()}
    vlm.model.zero_grad()
    with policy.active():
        hidden = prefill(vlm, completions.prompts).extend(
            completions.prompt_index_N, completions.token_ids_NT[:, :-1], completions.mask_NT[:, :-1]
        )
        totals = vlm.token_logps(hidden, completions.token_ids_NT, completions.mask_NT).sum(1)
        (-torch.nn.functional.logsigmoid(totals[0] - totals[1])).backward()
    for name, parameter in adapters.parameters("policy").items():
        assert torch.allclose(actual[name], parameter.grad, atol=1e-3 * float(parameter.grad.abs().max()) + 1e-8), name
