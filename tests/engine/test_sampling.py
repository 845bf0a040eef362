"""Which tokens are sampled, and when an answer ends."""

import pytest
import torch

from mmrlhf.engine import sampling
from mmrlhf.engine.prefill import prefill
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams, _filter_top_k_top_p, sample
from mmrlhf.models.images import open_image


def test_filter_top_k_top_p_matches_hand_computation():
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert torch.equal(_filter_top_k_top_p(p, 2, 1.0), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    # 0.4 does not reach 0.5, 0.7 does.
    assert torch.equal(_filter_top_k_top_p(p, 0, 0.5), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    assert torch.equal(_filter_top_k_top_p(p, 0, 0.4), torch.tensor([[0.0, 0.4, 0.0, 0.0]]))
    # Top-k leaves a mass of 0.9. top_p is then 0.9 * 0.9 = 0.81, which 0.7 does not reach.
    assert torch.equal(_filter_top_k_top_p(p, 3, 0.9), torch.tensor([[0.0, 0.4, 0.2, 0.3]]))


def test_is_full_distribution_is_false_when_truncated_or_greedy():
    assert SamplingParams(8).is_full_distribution
    others = (SamplingParams(8, 0.0), SamplingParams(8, top_p=0.9), SamplingParams(8, top_k=5))
    assert not any(params.is_full_distribution for params in others)


def test_sample_with_top_k_one_is_greedy(vlm, examples):
    prompts = prompts_from_examples(vlm, examples[:4])
    noise = torch.rand(4, 12, generator=torch.Generator().manual_seed(0))
    greedy = sample(vlm, prompts, range(4), SamplingParams(12, 0.0))
    top_one = sample(vlm, prompts, range(4), SamplingParams(12, 1.0, top_k=1), noise)
    assert torch.equal(greedy.token_ids_NT, top_one.token_ids_NT)
    # Log-probs are of the full distribution, not of what top-k left.
    assert torch.allclose(top_one.logps_NT, greedy.logps_NT, atol=1e-5)


def test_sample_greedy_matches_hf_generate(vlm, examples):
    sampled = sample(vlm, prompts_from_examples(vlm, examples), range(len(examples)), SamplingParams(40, 0.0))
    for i, example in enumerate(examples[:4]):
        text = vlm.apply_chat_template(example.prompt, 1, generation_prompt=True)
        batch = vlm.processor(text=[text], images=[[open_image(example.images[0])]], return_tensors="pt")
        generated = vlm.model.generate(**batch, max_new_tokens=40, do_sample=False)
        expected = generated[0, batch["input_ids"].shape[1] :]
        assert sampled.token_ids_NT[i][sampled.mask_NT[i].bool()].tolist() == expected.tolist()


def test_sample_follows_the_distribution(vlm, examples):
    """The first token's frequencies over many samples match its probabilities."""
    prompts = prompts_from_examples(vlm, examples[:1])
    expected = vlm.log_softmax(prefill(vlm, prompts).last_hidden_PD).exp()[0]
    noise = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0))
    token_ids = sample(vlm, prompts, [0] * 4000, SamplingParams(1), noise).token_ids_NT
    frequencies = torch.bincount(token_ids[:, 0], minlength=len(expected)) / 4000
    assert (frequencies - expected).abs().max() < 0.03


@pytest.mark.parametrize("use_cuda_graphs", [False, True])
@pytest.mark.parametrize("num_answers", [2, 40])  # packed, and too many to pack
def test_sample_is_the_same_if_it_rarely_looks_what_has_finished(vlm, examples, monkeypatch, use_cuda_graphs, num_answers):
    prompts = prompts_from_examples(vlm, examples[:2])
    indices = [p for p in range(2) for _ in range(num_answers)]
    noise = torch.rand(len(indices), 20, generator=torch.Generator().manual_seed(3))
    expected = sample(vlm, prompts, indices, SamplingParams(20), noise)
    assert len(set(expected.mask_NT.sum(1).tolist())) > 1  # some end before others
    monkeypatch.setattr(sampling, "check_interval", lambda device: 8)
    vlm.engine.use_cuda_graphs = use_cuda_graphs
    actual = sample(vlm, prompts, indices, SamplingParams(20), noise)
    assert torch.equal(actual.token_ids_NT, expected.token_ids_NT) and torch.equal(actual.mask_NT, expected.mask_NT)
    assert torch.allclose(actual.logps_NT, expected.logps_NT, atol=1e-5)
    assert torch.allclose(actual.entropy_NT, expected.entropy_NT, atol=1e-5)
    assert torch.equal(actual.finished_N, expected.finished_N)


def test_sample_handles_single_token_and_extreme_noise(vlm, examples):
    prompts = prompts_from_examples(vlm, examples[:1])
    noise = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    sampled = sample(vlm, prompts, [0, 0], SamplingParams(1), noise)
    token_ids, mask = sampled.token_ids_NT, sampled.mask_NT
    assert not set(token_ids.flatten().tolist()) & set(vlm.suppressed_tokens.tolist())
    hidden = prefill(vlm, prompts).extend(torch.tensor([0, 0]), token_ids[:, :-1], mask[:, :-1])
    assert vlm.token_logps(hidden, token_ids, mask).isfinite().all()


def test_sample_entropy_matches_the_distribution(vlm, examples):
    prompts = prompts_from_examples(vlm, examples[:2])
    logits = vlm.logits(prefill(vlm, prompts).last_hidden_PD)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    sampled = sample(vlm, prompts, range(2), SamplingParams(1, 0.0))
    assert torch.allclose(sampled.entropy_NT[:, 0], expected, atol=1e-4)


def test_sample_respects_min_tokens_in_logps(vlm, examples):
    prompts = prompts_from_examples(vlm, examples[:6])
    sampled = sample_completions(vlm, prompts, 2, SamplingParams(40, 1.0, min_tokens=20))
    assert int(sampled.mask_NT.sum(1).min()) >= 20 and bool(sampled.finished_N.any())
    assert not torch.isin(sampled.token_ids_NT[:, :19], torch.tensor(vlm.eos)).any()
    token_ids, mask = sampled.token_ids_NT, sampled.mask_NT
    with torch.no_grad():
        hidden = prefill(vlm, prompts).extend(sampled.prompt_index_N, token_ids[:, :-1], mask[:, :-1])
        with_minimum = vlm.token_logps(hidden, token_ids, mask, min_tokens=20)
        without_minimum = vlm.token_logps(hidden, token_ids, mask)
    assert torch.allclose(with_minimum, sampled.logps_NT, atol=1e-4)
    assert not torch.allclose(without_minimum, sampled.logps_NT, atol=1e-4)


def test_sample_ends_at_stop_string(vlm, examples):
    prompts = prompts_from_examples(vlm, examples[:3])
    full_texts = sample_completions(vlm, prompts, 1, SamplingParams(60, 0.0)).texts
    word = full_texts[0].split()[3]
    stopped = sample_completions(vlm, prompts, 1, SamplingParams(60, 0.0, stop=(word,)))
    for full_text, text in zip(full_texts, stopped.texts, strict=True):
        assert text == full_text.split(word)[0].strip()
    assert bool(stopped.finished_N[0]) and stopped.mask_NT.sum() < 3 * 60


def test_sample_stops_at_spaces_and_multi_token_characters(vlm, examples, monkeypatch):
    """Force the answer token by token, and stop at two spaces or a character of three bytes."""
    for text, stop in (
        ("one two  three four", "  "),
        ("one \N{CJK UNIFIED IDEOGRAPH-4E2D} two", "\N{CJK UNIFIED IDEOGRAPH-4E2D}"),
    ):
        token_ids = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
        forced = iter(token_ids)
        monkeypatch.setattr(
            "mmrlhf.engine.sampling.DecodeState._choose_tokens",
            lambda *_, forced=forced: torch.tensor([next(forced)]),
        )
        params = SamplingParams(len(token_ids), 0.0, stop=(stop,))
        sampled = sample_completions(vlm, prompts_from_examples(vlm, examples[:1]), 1, params)
        assert bool(sampled.finished_N[0]) and int(sampled.mask_NT.sum()) < len(token_ids)
        assert sampled.texts[0] in ("one two", "one")
