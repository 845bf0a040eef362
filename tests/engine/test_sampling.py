"""What is drawn, and when an answer ends."""

import pytest
import torch

from mmrlhf.engine.prefill import prefill
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams, _filter_top_k_top_p, sample


def test_truncated_matches_hand_computation():
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert torch.equal(_filter_top_k_top_p(p, 2, 1.0), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    assert torch.equal(_filter_top_k_top_p(p, 0, 0.5), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))  # 0.4 does not reach 0.5, 0.7 does
    assert torch.equal(_filter_top_k_top_p(p, 0, 0.4), torch.tensor([[0.0, 0.4, 0.0, 0.0]]))
    assert torch.equal(_filter_top_k_top_p(p, 3, 0.9), torch.tensor([[0.0, 0.4, 0.2, 0.3]]))  # 0.7 of 0.9 is not 0.9 of 0.9


def encode_prompts(vlm, examples):
    return vlm.build_prompts([(e.prompt, e.images) for e in examples])


def test_sample_with_top_k_one_is_greedy(vlm, examples):
    draws = torch.rand(4, 12, generator=torch.Generator().manual_seed(0))
    greedy = sample(vlm, encode_prompts(vlm, examples[:4]), range(4), SamplingParams(12, 0.0))
    narrow = sample(vlm, encode_prompts(vlm, examples[:4]), range(4), SamplingParams(12, 1.0, top_k=1), draws)
    assert torch.equal(greedy.token_ids_NT, narrow.token_ids_NT)
    assert torch.allclose(narrow.logps_NT, greedy.logps_NT, atol=1e-5)  # of the whole distribution, not of what was left of it


def test_is_full_distribution_is_false_when_truncated_or_greedy():
    assert SamplingParams(8).is_full_distribution
    assert not any(
        how.is_full_distribution for how in (SamplingParams(8, 0.0), SamplingParams(8, top_p=0.9), SamplingParams(8, top_k=5))
    )


def test_sample_completions_respect_min_tokens_in_logps(vlm, examples):
    out = sample_completions(vlm, prompts_from_examples(vlm, examples[:6]), 2, SamplingParams(40, 1.0, min_tokens=20))
    assert int(out.mask_NT.sum(1).min()) >= 20 and bool(out.finished_N.any())
    assert not torch.isin(out.token_ids_NT[:, :19], torch.tensor(vlm.eos)).any()
    with torch.no_grad():
        hidden = prefill(vlm, out.prompts).extend(out.prompt_index_N, out.token_ids_NT[:, :-1], out.mask_NT[:, :-1])
        again = vlm.token_logps(hidden, out.token_ids_NT, out.mask_NT, min_tokens=20)
        without = vlm.token_logps(hidden, out.token_ids_NT, out.mask_NT)
    assert torch.allclose(again, out.logps_NT, atol=1e-4) and not torch.allclose(without, out.logps_NT, atol=1e-4)


def test_sample_completions_cut_at_stop_string(vlm, examples):
    whole = sample_completions(vlm, prompts_from_examples(vlm, examples[:3]), 1, SamplingParams(60, 0.0)).texts
    word = whole[0].split()[3]
    cut = sample_completions(vlm, prompts_from_examples(vlm, examples[:3]), 1, SamplingParams(60, 0.0, stop=(word,)))
    for before, after in zip(whole, cut.texts, strict=True):
        assert after == before.split(word)[0].strip()
    assert bool(cut.finished_N[0]) and cut.mask_NT.sum() < 3 * 60


def test_sample_completions_stop_at_spaces_and_multi_token_characters(vlm, examples, monkeypatch):
    """A draw is forced, token by token: two spaces, and a character of three bytes."""
    for text, stop in (
        ("one two  three four", "  "),
        ("one \N{CJK UNIFIED IDEOGRAPH-4E2D} two", "\N{CJK UNIFIED IDEOGRAPH-4E2D}"),
    ):
        ids = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
        forced = iter(ids)
        monkeypatch.setattr(
            "mmrlhf.engine.sampling.DecodeState._choose_tokens", lambda *_, forced=forced: torch.tensor([next(forced)])
        )
        out = sample_completions(vlm, prompts_from_examples(vlm, examples[:1]), 1, SamplingParams(len(ids), 0.0, stop=(stop,)))
        assert bool(out.finished_N[0]) and int(out.mask_NT.sum()) < len(ids) and out.texts[0] in ("one two", "one")


def test_sample_completions_repeated_example_is_sampled_independently(vlm, examples):
    twice = sample_completions(vlm, prompts_from_examples(vlm, [examples[0], examples[0]]), 1, SamplingParams(20, 1.5))
    assert twice.texts[0] != twice.texts[1]
    assert (
        sample_completions(vlm, prompts_from_examples(vlm, [examples[0]]), 1, SamplingParams(20, 1.5)).texts[0] == twice.texts[0]
    )


def test_sample_entropy_matches_the_distribution(vlm, examples):
    first = prefill(vlm, encode_prompts(vlm, examples[:2])).last_hidden_PD
    expected = torch.distributions.Categorical(logits=vlm.logits(first)).entropy()
    said = sample(vlm, encode_prompts(vlm, examples[:2]), range(2), SamplingParams(1, 0.0))
    assert torch.allclose(said.entropy_NT[:, 0], expected, atol=1e-4)


def test_sample_completions_do_not_depend_on_token_budget(vlm, examples):
    together = sample_completions(vlm, prompts_from_examples(vlm, examples[:5]), 3, SamplingParams(20, seed=1))
    vlm.budget.max_tokens = 70
    apart = sample_completions(vlm, prompts_from_examples(vlm, examples[:5]), 3, SamplingParams(20, seed=1))
    assert together.texts == apart.texts and torch.allclose(together.logps_NT, apart.logps_NT, atol=1e-4)


def test_token_logps_chunking_changes_no_value_and_no_gradient(vlm, examples, monkeypatch):
    out = sample_completions(vlm, prompts_from_examples(vlm, examples[:4]), 1, SamplingParams(20))
    hidden = torch.randn(*out.token_ids_NT.shape, vlm.hidden_size, generator=torch.Generator().manual_seed(0))
    found = []
    for most in (1 << 24, 3 * vlm.model.get_output_embeddings().weight.shape[0]):
        monkeypatch.setattr("mmrlhf.models.vlm.MAX_LOGITS", most)
        leaf = hidden.clone().requires_grad_()
        logps = vlm.token_logps(leaf, out.token_ids_NT, out.mask_NT)
        logps.sum().backward()
        found.append((logps.detach(), leaf.grad))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5) and torch.allclose(found[0][1], found[1][1], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_token_logps_include_temperature(vlm, examples, temperature):
    out = sample_completions(vlm, prompts_from_examples(vlm, examples[:3]), 1, SamplingParams(12, temperature))
    with torch.no_grad():
        hidden = prefill(vlm, out.prompts).extend(out.prompt_index_N, out.token_ids_NT[:, :-1], out.mask_NT[:, :-1])
    assert torch.allclose(vlm.token_logps(hidden, out.token_ids_NT, out.mask_NT, temperature), out.logps_NT, atol=1e-4)
