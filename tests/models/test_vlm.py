"""Prompts and their limits, suppressed tokens, and log-probs of tokens."""

import pytest
import torch

from mmrlhf.engine.prefill import prefill
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.records import InputError, Message


def test_build_prompts_encodes_each_image_once(vlm, examples):
    for _ in range(3):
        prompts_from_examples(vlm, examples)
    assert vlm.image_encodes == len(examples)


def test_build_prompts_keeps_row_ids(vlm, examples):
    assert [p.id for p in prompts_from_examples(vlm, examples[:2])] == [e.id for e in examples[:2]]
    assert vlm.build_prompts([(examples[0].prompt, examples[0].images)])[0].id == ""


def test_build_prompts_over_max_length_are_named_and_refused(vlm, examples):
    images = examples[0].images
    conversations = [(examples[0].prompt, images), ((Message("user", "word " * 60),), images)]
    with pytest.raises(InputError, match=r"prompt 2 of this batch, on image <\d+ bytes>, has .* never cut"):
        vlm.build_prompts(conversations, max_length=60)
    message = r"the prompt of row second, on .* more than the 60 that max_length leaves it: .* never cut"
    with pytest.raises(InputError, match=message):
        vlm.build_prompts(conversations, max_length=60, row_ids=["first", "second"])


def test_log_softmax_suppresses_placeholder_tokens(vlm):
    image_token_id = vlm.model.config.image_token_id
    suppressed = set(vlm.suppressed_tokens.tolist())
    assert image_token_id in suppressed and not set(vlm.eos) & suppressed
    assert vlm.log_softmax(torch.randn(1, vlm.hidden_size))[0, image_token_id] == float("-inf")


def test_token_logps_chunking_changes_no_value_and_no_gradient(vlm, examples, monkeypatch):
    sampled = sample_completions(vlm, prompts_from_examples(vlm, examples[:4]), 1, SamplingParams(20))
    shape = (*sampled.token_ids_NT.shape, vlm.hidden_size)
    hidden = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    three_tokens = 3 * vlm.model.get_output_embeddings().weight.shape[0]
    results = []
    for max_logits in (1 << 24, three_tokens):
        monkeypatch.setattr("mmrlhf.models.vlm.MAX_LOGITS", max_logits)
        leaf = hidden.clone().requires_grad_()
        logps = vlm.token_logps(leaf, sampled.token_ids_NT, sampled.mask_NT)
        logps.sum().backward()
        results.append((logps.detach(), leaf.grad))
    (one_chunk_logps, one_chunk_grad), (chunked_logps, chunked_grad) = results
    assert torch.allclose(one_chunk_logps, chunked_logps, atol=1e-5)
    assert torch.allclose(one_chunk_grad, chunked_grad, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_token_logps_include_temperature(vlm, examples, temperature):
    prompts = prompts_from_examples(vlm, examples[:3])
    sampled = sample_completions(vlm, prompts, 1, SamplingParams(12, temperature))
    token_ids, mask = sampled.token_ids_NT, sampled.mask_NT
    with torch.no_grad():
        hidden = prefill(vlm, prompts).extend(sampled.prompt_index_N, token_ids[:, :-1], mask[:, :-1])
    assert torch.allclose(vlm.token_logps(hidden, token_ids, mask, temperature), sampled.logps_NT, atol=1e-4)
