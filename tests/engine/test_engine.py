"""The fast path against the naive one: prefill once and cached features equal the plain forward with pixels."""

from dataclasses import replace

import pytest
import torch

from mmrlhf.engine.completions import pad_right
from mmrlhf.engine.prefill import prefill
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions, sampling_noise
from mmrlhf.engine.sampling import SamplingParams, sample, step_seed
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.images import open_image
from mmrlhf.records import InputError, Message


@pytest.fixture
def perturbed_adapters(vlm):
    """The model with two adapters that do something."""
    adapters = Adapters(vlm)
    for seed, name in enumerate(("policy", "value")):
        adapters.add(name, 4, 8, seed)
        torch.manual_seed(seed)
        for p in adapters.parameters(name).values():
            with torch.no_grad():
                p.add_(torch.randn_like(p) * 0.05)
    return adapters


def naive_logps(vlm, example, ids):
    """One row: the processor on pixels, the whole sequence, no cache, the model's own positions."""
    text = vlm.apply_chat_template(example.prompt, 1, generation_prompt=True)
    batch = dict(vlm.processor(text=[text], images=[[open_image(example.images[0])]], return_tensors="pt"))
    length = batch["input_ids"].shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], ids[None]], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    logits = vlm.model(**batch).logits[0, length - 1 : -1].float()
    logits[:, vlm.suppressed_tokens] = float("-inf")
    return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]


def fast_logps(vlm, examples, answers, rows):
    prompts = vlm.build_prompts([(e.prompt, e.images) for e in examples])
    ids, mask = pad_right(answers, 1, vlm.device)
    hidden = prefill(vlm, prompts).extend(torch.tensor(rows), ids[:, :-1], mask[:, :-1])
    return vlm.token_logps(hidden, ids, mask), mask


def test_prefill_logps_and_lora_gradients_match_naive_forward(perturbed_adapters, examples):
    vlm, rows = perturbed_adapters.vlm, [0, 0, 1, 1]
    answers = [
        vlm.answer_token_ids(examples[r].prompt, a, 1)
        for r, a in zip(rows, ["A star.", examples[0].answer, "There is a ring.", "No."], strict=True)
    ]
    with perturbed_adapters.use("policy"):
        fast, mask = fast_logps(vlm, examples[:2], answers, rows)
        fast.sum().backward()
        gradients = {k: p.grad.clone() for k, p in perturbed_adapters.parameters("policy").items()}
        vlm.model.zero_grad()
        slow = [naive_logps(vlm, examples[r], a) for r, a in zip(rows, answers, strict=True)]
        sum(s.sum() for s in slow).backward()
    for i, s in enumerate(slow):
        assert torch.allclose(fast[i][mask[i].bool()], s, atol=1e-4)
    for k, p in perturbed_adapters.parameters("policy").items():
        assert torch.allclose(gradients[k], p.grad, atol=1e-3 * float(p.grad.abs().max()) + 1e-6), k
    assert all(p.grad is None for p in perturbed_adapters.parameters("value").values())


def test_prompts_encode_each_image_once(vlm, examples):
    for _ in range(3):
        vlm.build_prompts([(e.prompt, e.images) for e in examples])
    assert vlm.image_encodes == len(examples)


def test_sample_greedy_matches_hf_generate(vlm, examples):
    said = sample(
        vlm, vlm.build_prompts([(e.prompt, e.images) for e in examples]), list(range(len(examples))), SamplingParams(40, 0.0)
    )
    ids, mask = said.token_ids_NT, said.mask_NT
    for i, example in enumerate(examples[:4]):
        text = vlm.apply_chat_template(example.prompt, 1, generation_prompt=True)
        batch = vlm.processor(text=[text], images=[[open_image(example.images[0])]], return_tensors="pt")
        theirs = vlm.model.generate(**batch, max_new_tokens=40, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert ids[i][mask[i].bool()].tolist() == theirs.tolist()


def test_sample_completions_do_not_depend_on_batch(vlm, examples):
    prompts, params = prompts_from_examples(vlm, examples[:5]), SamplingParams(24, seed=3)
    together, alone = sample_completions(vlm, prompts, 2, params), sample_completions(vlm, prompts[3:4], 2, params)
    assert together.texts[6:8] == alone.texts
    assert len(set(together.texts)) > 5
    assert sample_completions(vlm, prompts[:2], 2, replace(params, seed=4)).texts != together.texts[:4]


def test_sampling_noise_differs_by_row_answer_step_and_seed():
    draws = sampling_noise(["a", "b"], 2, 3, seed=0)
    assert len({tuple(r) for r in draws.tolist()}) == 4
    assert not torch.equal(draws, sampling_noise(["a", "b"], 2, 3, seed=step_seed(0, 1)))
    assert not torch.equal(draws, sampling_noise(["a", "b"], 2, 3, seed=1))


def test_sample_follows_the_distribution(vlm, examples):
    """The first token's frequencies over many draws against its probabilities."""
    prompts = vlm.build_prompts([(examples[0].prompt, examples[0].images)])
    expected = vlm.log_softmax(prefill(vlm, prompts).last_hidden_PD).exp()[0]
    ids = sample(
        vlm, prompts, [0] * 4000, SamplingParams(1), torch.rand(4000, 1, generator=torch.Generator().manual_seed(0))
    ).token_ids_NT
    counts = torch.bincount(ids[:, 0], minlength=len(expected)) / 4000
    assert (counts - expected).abs().max() < 0.03


def test_log_softmax_suppresses_placeholder_tokens(vlm):
    image = vlm.model.config.image_token_id
    assert image in vlm.suppressed_tokens.tolist() and not set(vlm.eos) & set(vlm.suppressed_tokens.tolist())
    assert vlm.log_softmax(torch.randn(1, vlm.hidden_size))[0, image] == float("-inf")


def test_prompts_over_max_length_are_named_and_refused(vlm, examples):
    with pytest.raises(InputError, match=r"prompt 2 of this batch, on image <\d+ bytes>, has .* never cut"):
        short = examples[0]
        vlm.build_prompts([(short.prompt, short.images), ((Message("user", "word " * 60),), short.images)], max_length=60)
    with pytest.raises(
        InputError, match=r"the prompt of row second, on .* more than the 60 that max_length leaves it: .* never cut"
    ):
        prompts = [(short.prompt, short.images), ((Message("user", "word " * 60),), short.images)]
        vlm.build_prompts(prompts, max_length=60, row_ids=["first", "second"])


def test_load_missing_model_is_one_sentence(tmp_path):
    from mmrlhf.models.loading import load

    with pytest.raises(InputError, match="no such directory"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load(str(tmp_path))


def test_sample_handles_single_token_and_extreme_noise(vlm, examples):
    prompts = vlm.build_prompts([(examples[0].prompt, examples[0].images)])
    edge = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    said = sample(vlm, prompts, [0, 0], SamplingParams(1), edge)
    ids, mask = said.token_ids_NT, said.mask_NT
    assert not set(ids.flatten().tolist()) & set(vlm.suppressed_tokens.tolist())
    hidden = prefill(vlm, prompts).extend(torch.tensor([0, 0]), ids[:, :-1], mask[:, :-1])
    assert vlm.token_logps(hidden, ids, mask).isfinite().all()


def test_full_feature_cache_evicts_and_reencodes(vlm, examples):
    vlm.encoder.cache.tiers[0].max_bytes = 1
    rows = [(e.prompt, e.images) for e in examples[:4]]
    assert all(p.image_features for p in vlm.build_prompts(rows)) and all(p.image_features for p in vlm.build_prompts(rows[::-1]))
    assert vlm.image_encodes > 4
