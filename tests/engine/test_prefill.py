"""Shared prefill against the naive forward pass, choosing a path, and the two-stage backward."""

import math

import pytest
import torch

from mmrlhf.config import EngineConfig
from mmrlhf.engine import prefill as prefill_module
from mmrlhf.engine.completions import pad_right
from mmrlhf.engine.prefill import NaivePrefix, Prefix, max_logp_difference, prefill, two_stage_backward
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.records import Message
from tests.helpers.family_setup import random_image
from tests.helpers.tiny_models import build_checkpoint


@pytest.fixture
def perturbed_adapters(vlm):
    """Two adapters that change the base's outputs."""
    adapters = Adapters(vlm)
    for seed, name in enumerate(("policy", "value")):
        adapters.add(name, 4, 8, seed)
        torch.manual_seed(seed)
        for parameter in adapters.parameters(name).values():
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapters


def naive_logps(vlm, example, token_ids):
    """Run one row naively: pixels, the full sequence, no cache, the model's own positions."""
    text = vlm.apply_chat_template(example.prompt, 1, generation_prompt=True)
    batch = dict(vlm.processor(text=[text], images=[[open_image(example.images[0])]], return_tensors="pt"))
    prompt_length = batch["input_ids"].shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], token_ids[None]], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    logits = vlm.model(**batch).logits[0, prompt_length - 1 : -1].float()
    logits[:, vlm.suppressed_tokens] = float("-inf")
    return logits.log_softmax(-1).gather(1, token_ids[:, None])[:, 0]


def fast_logps(vlm, examples, answers, prompt_indices):
    token_ids, mask = pad_right(answers, 1, vlm.device)
    prefix = prefill(vlm, prompts_from_examples(vlm, examples))
    hidden = prefix.extend(torch.tensor(prompt_indices), token_ids[:, :-1], mask[:, :-1])
    return vlm.token_logps(hidden, token_ids, mask), mask


def test_prefill_does_not_take_a_device_that_failed_for_a_path_that_differs(vlm, examples, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(prefill_module, "max_logp_gap", fail)
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_ALLOC_FAILED"):
        prefill(vlm, prompts_from_examples(vlm, examples[:1]))


def test_prefill_logps_and_lora_gradients_match_naive_forward(perturbed_adapters, examples):
    vlm, prompt_indices = perturbed_adapters.vlm, [0, 0, 1, 1]
    texts = ["A star.", examples[0].answer, "There is a ring.", "No."]
    answers = [vlm.answer_token_ids(examples[p].prompt, text, 1) for p, text in zip(prompt_indices, texts, strict=True)]
    with perturbed_adapters.use("policy"):
        fast, mask = fast_logps(vlm, examples[:2], answers, prompt_indices)
        fast.sum().backward()
        gradients = {k: p.grad.clone() for k, p in perturbed_adapters.parameters("policy").items()}
        vlm.model.zero_grad()
        naive = [naive_logps(vlm, examples[p], ids) for p, ids in zip(prompt_indices, answers, strict=True)]
        sum(logps.sum() for logps in naive).backward()
    for i, logps in enumerate(naive):
        assert torch.allclose(fast[i][mask[i].bool()], logps, atol=1e-4)
    for k, p in perturbed_adapters.parameters("policy").items():
        assert torch.allclose(gradients[k], p.grad, atol=1e-3 * float(p.grad.abs().max()) + 1e-6), k
    assert all(p.grad is None for p in perturbed_adapters.parameters("value").values())


# ---- choosing a path ---------------------------------------------------------------------------


def test_prefill_falls_back_when_logps_differ(vlm, examples, monkeypatch, capsys):
    """The engine gets this model's positions wrong."""
    params = SamplingParams(12)
    expected = sample_completions(vlm, prompts_from_examples(vlm, examples[:3]), 1, params).texts
    real = prefill_module._prompt_position_ids

    def wrong_start(vlm, inputs):
        position_ids, start_position = real(vlm, inputs)
        return position_ids, start_position + 7

    other = load(vlm.name)
    monkeypatch.setattr(prefill_module, "_prompt_position_ids", wrong_start)
    actual = sample_completions(other, prompts_from_examples(other, examples[:3]), 1, params).texts
    assert other.engine.share_prefix == "off" and actual == expected
    printed = capsys.readouterr().out
    assert "each answer runs with its whole prompt (max log-prob difference" in printed


def test_prefill_falls_back_when_left_padding_breaks_the_model(vlm, examples, monkeypatch, capsys):
    """A kernel may return NaN where a row of the mask is empty, as left padding makes them."""
    real = prefill_module.run_prefill

    def nan_when_padded(vlm, prompts):
        prefix = real(vlm, prompts)
        prefix.last_hidden_PD[prefix.mask_PL[:, 0] == 0] = torch.nan
        return prefix

    monkeypatch.setattr(prefill_module, "run_prefill", nan_when_padded)
    assert isinstance(prefill(vlm, prompts_from_examples(vlm, examples[:1])), NaivePrefix)
    assert "max log-prob difference nan nats" in capsys.readouterr().out


def test_max_logp_difference_ignores_unlikely_tokens_but_not_nan():
    # Token 1 is below e^-10 on both sides and suppressed token 2 is -inf; token 3 only on one.
    reference = torch.tensor([-0.5, -14.0, -torch.inf, -11.0])
    assert max_logp_difference(reference, torch.tensor([-0.625, -15.0, -torch.inf, -10.5])) == 0.125
    assert max_logp_difference(reference, torch.tensor([-0.5, -14.0, -torch.inf, -9.0])) == 2.0
    assert math.isnan(max_logp_difference(reference, torch.tensor([-0.5, torch.nan, -torch.inf, -11.0])))


def test_max_logp_difference_compares_the_likeliest_tokens_of_a_flat_distribution():
    """The log-probs of 32,000 equally likely tokens are -10.37, and e^-10 is 1 in 22,026."""
    flat = torch.full((2, 32_000), -math.log(32_000))
    assert max_logp_difference(flat, flat) == 0
    other = flat.clone()
    other[1, 7] -= 0.5
    assert max_logp_difference(flat, other) == 0.5


def test_prefill_falls_back_when_the_model_fails(vlm, examples, monkeypatch, capsys):
    def fail(model):
        raise NotImplementedError("no such cache")

    monkeypatch.setattr("mmrlhf.models.kv_cache.new_cache", fail)
    prefix = prefill(vlm, prompts_from_examples(vlm, examples[:3]))
    assert isinstance(prefix, NaivePrefix) and vlm.engine.share_prefix == "off"
    assert "NotImplementedError: no such cache" in capsys.readouterr().out


def test_prefill_off_skips_the_self_check(tiny_vlm_path, examples):
    vlm = load(tiny_vlm_path, engine=EngineConfig(share_prefix="off"))
    prefix = prefill(vlm, prompts_from_examples(vlm, examples[:3]))
    assert isinstance(prefix, NaivePrefix) and vlm.image_encodes == 3


def test_prefill_text_only_prompt_does_not_settle_the_self_check(vlm, examples):
    (text_only,) = vlm.build_prompts([(examples[0].prompt, ())])
    assert isinstance(prefill(vlm, [text_only]), Prefix) and vlm.engine.share_prefix == "auto"
    prefill(vlm, prompts_from_examples(vlm, examples[:3]))
    assert vlm.engine.share_prefix == "on"


def test_prefill_raises_when_the_model_drops_its_cache(vlm, examples):
    vlm.engine.share_prefix = "on"
    vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
    vlm.model.train()
    with pytest.raises(RuntimeError, match="the model dropped its cache"):
        prefill(vlm, prompts_from_examples(vlm, examples[:3]))


# ---- training ----------------------------------------------------------------------------------


def test_two_stage_backward_matches_single_backward(vlm, examples):
    """Two batches of answers call backward inside; the prompts' own runs once, on exit."""
    vlm.engine.share_prefix = "on"
    vlm.model.base_model.get_decoder().requires_grad_(True)
    weight = vlm.model.base_model.get_decoder().layers[0].self_attn.k_proj.weight
    token_ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    prompt_index, mask = torch.tensor([0, 1]), torch.ones_like(token_ids)
    prompts = prompts_from_examples(vlm, examples[:2])
    prefill(vlm, prompts).extend(prompt_index, token_ids, mask).square().sum().backward()
    single, weight.grad = weight.grad.clone(), None
    vlm.model.zero_grad()
    with two_stage_backward(prefill(vlm, prompts)) as prefix:
        for i in (0, 1):
            prefix.extend(prompt_index[i : i + 1], token_ids[i : i + 1], mask[i : i + 1]).square().sum().backward()
        gradient_inside = weight.grad.clone()
    tolerance = {"rtol": 1e-3, "atol": 1e-3 * float(single.abs().max())}
    assert torch.allclose(weight.grad, single, **tolerance)
    assert not torch.allclose(gradient_inside, single, **tolerance)


def test_prefill_pads_image_masks_to_longer_prompts_without_images(tmp_path):
    """Llama 3.2's template writes a system turn into prompts without images only."""
    build_checkpoint("mllama", tmp_path)
    vlm = load(str(tmp_path))
    with_image = ((Message("user", "What is it?"),), (random_image(56, 56, 0),))
    without = ((Message("user", "describe the image in detail " * 3),), ())
    with torch.no_grad():
        together = prefill(vlm, vlm.build_prompts([with_image, without])).last_hidden_PD
        alone = torch.cat([prefill(vlm, vlm.build_prompts([row])).last_hidden_PD for row in (with_image, without)])
    assert torch.allclose(together, alone, atol=1e-4)
