"""Which path a model takes, and what stands between a prompt and its answers."""

import pytest
import torch

from mmrlhf.config import EngineConfig
from mmrlhf.engine import prefill as prefix_
from mmrlhf.engine.prefill import NaivePrefix, Prefix, prefill, two_stage_backward
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.loading import load


def encode_prompts(vlm, examples):
    return vlm.build_prompts([(e.prompt, e.images) for e in examples[:3]])


def test_prefill_falls_back_when_logps_differ(vlm, examples, monkeypatch, capsys):
    """As a model would be whose positions the engine gets wrong."""
    fast = sample_completions(vlm, prompts_from_examples(vlm, examples[:3]), 1, SamplingParams(12)).texts
    real = prefix_._prompt_position_ids

    def wrong(vlm, inputs):
        positions, start = real(vlm, inputs)
        return positions, start + 7

    other = load(vlm.name)
    monkeypatch.setattr(prefix_, "_prompt_position_ids", wrong)
    said = sample_completions(other, prompts_from_examples(other, examples[:3]), 1, SamplingParams(12)).texts
    assert other.engine.share_prefix == "off" and said == fast
    assert "runs on the naive path, each answer with its whole prompt (log-probs differ by" in capsys.readouterr().out


def test_prefill_falls_back_when_the_model_fails(vlm, examples, monkeypatch, capsys):
    def broken(model):
        raise NotImplementedError("no such cache")

    monkeypatch.setattr("mmrlhf.models.kv_cache.new_cache", broken)
    assert isinstance(prefill(vlm, encode_prompts(vlm, examples)), NaivePrefix) and vlm.engine.share_prefix == "off"
    assert "NotImplementedError: no such cache" in capsys.readouterr().out


def test_prefill_off_skips_the_self_check(tiny_vlm_path, examples):
    vlm = load(tiny_vlm_path, engine=EngineConfig(share_prefix="off"))
    assert isinstance(prefill(vlm, encode_prompts(vlm, examples)), NaivePrefix) and vlm.image_encodes == 3


def test_prefill_text_only_prompt_does_not_settle_the_self_check(vlm, examples):
    (text_only,) = vlm.build_prompts([(examples[0].prompt, ())])
    assert isinstance(prefill(vlm, [text_only]), Prefix) and vlm.engine.share_prefix == "auto"
    prefill(vlm, encode_prompts(vlm, examples))
    assert vlm.engine.share_prefix == "on"


def test_prefill_raises_when_the_model_drops_its_cache(vlm, examples):
    vlm.engine.share_prefix = "on"
    vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
    vlm.model.train()
    with pytest.raises(RuntimeError, match="the model dropped its cache"):
        prefill(vlm, encode_prompts(vlm, examples))


def test_two_stage_backward_matches_single_backward(vlm, examples):
    """Two batches of answers call backward inside; the prompt's own backward runs once, on leaving."""
    vlm.engine.share_prefix = "on"
    vlm.model.base_model.get_decoder().requires_grad_(True)
    weight = vlm.model.base_model.get_decoder().layers[0].self_attn.k_proj.weight
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    rows, mask = torch.tensor([0, 1]), torch.ones_like(ids)
    made = encode_prompts(vlm, examples)[:2]
    prefill(vlm, made).extend(rows, ids, mask).square().sum().backward()
    whole, weight.grad = weight.grad.clone(), None
    vlm.model.zero_grad()
    with two_stage_backward(prefill(vlm, made)) as cut:
        for i in (0, 1):
            cut.extend(rows[i : i + 1], ids[i : i + 1], mask[i : i + 1]).square().sum().backward()
        inside = weight.grad.clone()
    assert torch.allclose(weight.grad, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))
    assert not torch.allclose(inside, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))
