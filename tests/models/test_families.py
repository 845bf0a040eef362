"""Every model family: compare the engine with a naive forward pass, which shares no code with it.

The naive pass runs one row at a time: pixels through the processor, prompt and answer in one
sequence, no cache, the model's own positions. Each family is a tiny random checkpoint with its real
processor (`tests/helpers/tiny_models.py`). Rows with one image, two and none are mixed, and images
of different sizes.

    python -m tests.models.test_families --device cpu
    python -m tests.models.test_families --device cuda --dtype bfloat16

The first prints the table of docs/supported_models.md. Both exit with 1 beyond TOLERANCE.
"""

import argparse
import dataclasses
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from mmrlhf.config import EngineConfig, PPOConfig, RewardConfig, SFTConfig
from mmrlhf.engine import naive
from mmrlhf.engine.completions import SampledCompletions
from mmrlhf.engine.prefill import Prefix, max_logp_gap, prefill, two_stage_backward
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams, sample
from mmrlhf.engine.scoring import hidden_states, in_micro_batches, logps
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import yes_no_head
from mmrlhf.models.loading import load
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError, Message, Preference
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model, save_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.sft import sft
from tests.helpers.family_setup import (
    ANSWERS,
    IMAGE_REQUIRED,
    TOLERANCE,
    FamilySetup,
    engine_run,
    family_examples,
    max_differences,
    naive_run,
)
from tests.helpers.tiny_models import FAMILIES, build_checkpoint

SUPPORTS_PACKING = set(FAMILIES) - {"gemma3", "gemma4", "qwen3_5", "mllama"}
"""Families with full attention in every layer: a prompt's answers may share a masked sequence."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> FamilySetup:
    return FamilySetup(request.param, tmp_path_factory.mktemp(request.param) / "checkpoint")


def sample_as_policy(f: FamilySetup, n: int, params: SamplingParams) -> SampledCompletions:
    with f.adapters.use("policy"):
        return sample_completions(f.vlm, f.prompts(), n, params)


# ---- the engine --------------------------------------------------------------------------------


def test_engine_matches_naive_forward(family):
    """Log-probs, values and LoRA gradients; all at once, and answer by answer in two stages."""
    expected = naive_run(family)
    for max_tokens in (100_000, 1):
        gaps = max_differences(family, engine_run(family, max_tokens), expected)
        limits = TOLERANCE["float32"]
        assert all(gap < limit for gap, limit in zip(gaps, limits, strict=True)), (max_tokens, gaps)
    assert family.vlm.engine.share_prefix == "on"


def test_max_logp_gap_is_small(family):
    assert max_logp_gap(family.vlm, family.prompts()[0]) < 1e-4


def test_packed_answers_match_separate_rows(family, monkeypatch):
    """Score, train and sample (with answers that end) in one sequence per prompt or per answer."""
    params, num_generations = SamplingParams(24), 5
    monkeypatch.setattr(family.vlm, "eos", (3, *range(40, 80)))  # an untrained model seldom ends
    runs = {}
    for packed in (True, False):
        monkeypatch.setattr(Prefix, "should_pack", lambda self, *_, packed=packed: packed and self.vlm.engine.supports_packing)
        runs[packed] = engine_run(family, 100_000), sample_as_policy(family, num_generations, params)
    (packed_logps, _, packed_grads), packed_sample = runs[True]
    (row_logps, _, row_grads), row_sample = runs[False]
    assert torch.allclose(packed_logps, row_logps, atol=1e-4)
    for name, expected in row_grads.items():
        assert torch.allclose(packed_grads[name], expected, atol=1e-3 * float(expected.abs().max())), name
    assert torch.equal(packed_sample.token_ids_NT, row_sample.token_ids_NT)
    assert torch.allclose(packed_sample.logps_NT, row_sample.logps_NT, atol=1e-4)
    assert bool(packed_sample.finished_N.any()) and len(set(packed_sample.mask_NT.sum(1).tolist())) > 1
    assert family.vlm.engine.supports_packing == (family.family in SUPPORTS_PACKING)
    if not family.vlm.engine.supports_packing:
        return
    monkeypatch.setattr(family.vlm.engine, "use_cuda_graphs", True)  # fixed shapes, as a GPU captures them
    for packed in (True, False):
        monkeypatch.setattr(Prefix, "should_pack", lambda *_, packed=packed: packed)
        static_sample = sample_as_policy(family, num_generations, params)
        assert torch.equal(static_sample.token_ids_NT, packed_sample.token_ids_NT)
        assert torch.allclose(static_sample.logps_NT, packed_sample.logps_NT, atol=1e-4)


def test_gradients_reach_only_the_active_role(family):
    flags = {k: p.requires_grad for k, p in family.vlm.model.named_parameters()}
    engine_run(family, 100_000)
    with family.adapters.use("policy"), two_stage_backward(prefill(family.vlm, family.prompts()[:1])) as prefix:
        prefix.last_hidden_PD.sum().backward()
    assert all(p.grad is None for k, p in family.vlm.model.named_parameters() if ".policy." not in k)
    assert all(p.grad is not None for p in family.adapters.parameters("policy").values())
    family.vlm.model.zero_grad()
    assert flags == {k: p.requires_grad for k, p in family.vlm.model.named_parameters()}


def test_activation_checkpointing_changes_nothing(family):
    expected_logps, _, expected_grads = engine_run(family, 100_000)
    other = FamilySetup.__new__(FamilySetup)  # the same setup on another copy of the model
    other.__dict__ |= family.__dict__
    other.vlm = load(str(family.directory), engine=EngineConfig(activation_checkpointing=True))
    other.adapters = Adapters(other.vlm)
    for seed, name in enumerate(("policy", "value")):
        other.adapters.add(name, 4, 16, seed)
        with torch.no_grad():
            weights = family.adapters.parameters(name)
            for key, parameter in other.adapters.parameters(name).items():
                parameter.copy_(weights[key])
    actual_logps, _, actual_grads = engine_run(other, 150)
    assert torch.allclose(expected_logps, actual_logps, atol=1e-4)
    for name, expected in expected_grads.items():
        assert torch.allclose(expected, actual_grads[name], atol=1e-3 * float(expected.abs().max())), name


def test_sample_logps_match_recomputed_logps(family):
    role = Role(family.adapters, "policy")
    sampled = sample_as_policy(family, 3, SamplingParams(20))
    sampled_ids = set(sampled.token_ids_NT[sampled.mask_NT.bool()].tolist())
    assert not sampled_ids & set(family.vlm.suppressed_tokens.tolist())
    with torch.no_grad():
        for indices, hidden in hidden_states(role, sampled):
            recomputed = family.vlm.token_logps(hidden, sampled.token_ids_NT[indices], sampled.mask_NT[indices])
            assert torch.allclose(recomputed, sampled.logps_NT[indices], atol=1e-4)


def test_naive_prefix_samples_and_scores_the_same(family):
    prompts, indices, params = family.prompts(), list(range(len(family.examples))), SamplingParams(8)
    noise = torch.rand(len(prompts), 8, generator=torch.Generator().manual_seed(1))
    with family.adapters.use("policy"):
        fast = sample(family.vlm, prompts, indices, params, noise)
        family.vlm.engine.share_prefix = "off"
        naive_sample = sample(family.vlm, prompts, indices, params, noise)
        naive_hidden = prefill(family.vlm, prompts).last_hidden_PD
        family.vlm.engine.share_prefix = "on"
        assert torch.allclose(prefill(family.vlm, prompts).last_hidden_PD, naive_hidden, atol=1e-4)
    assert torch.equal(fast.token_ids_NT, naive_sample.token_ids_NT)
    assert torch.allclose(fast.logps_NT, naive_sample.logps_NT, atol=1e-4)


def test_sample_greedy_matches_hf_generate(family):
    prompts = family.prompts()
    sampled = sample(family.vlm, prompts, list(range(len(prompts))), SamplingParams(6, 0.0))
    bad_words_ids = [[i] for i in family.vlm.suppressed_tokens.tolist()]
    for i, prompt in enumerate(prompts):
        batch = naive.processor_inputs(family.vlm, [prompt])
        generated = family.vlm.model.generate(**batch, max_new_tokens=6, do_sample=False, bad_words_ids=bad_words_ids)
        expected = generated[0, batch["input_ids"].shape[1] :]
        assert sampled.token_ids_NT[i][sampled.mask_NT[i].bool()].tolist() == expected.tolist()


# ---- prompts and features ----------------------------------------------------------------------


def test_control_tokens_in_text_are_refused(family):
    vlm, question = family.vlm, [Message("user", "?")]
    message = "which the model takes for a control token: remove it from"
    tokens = [getattr(vlm.processor, name, None) for name in ("image_token", "video_token", "boi_token")]
    for token in filter(None, tokens):
        with pytest.raises(InputError, match=re.escape(f"row r: an answer or what follows it holds {token}")):
            vlm.answer_token_ids(question, f"A {token} circle.", 0, row_id="r")
        escaped = vlm.escape_control_tokens(f"A {token} circle.")
        assert token not in escaped and vlm.answer_token_ids(question, escaped, 0) is not None
        with pytest.raises(InputError, match=rf"{message} its text|would show the model"):
            vlm.build_prompts([((Message("user", f"What is {token}?"),), family.examples[0].images)])
    vlm.answer_token_ids(question, "An <s>old</s> <b>one</b>.", 0)  # tags that ordinary text also has


def test_markup_in_texts_is_read_as_text(family):
    """Or refused, where the naive path's processor cannot; the self-check then finds nothing."""
    message = Message("user", "An <s>old</s> circle, and what is it?")
    try:
        (prompt,) = family.vlm.build_prompts([((message,), family.examples[0].images)])
        assert max_logp_gap(family.vlm, prompt) < 1e-4
    except InputError as error:
        assert family.family in {"paligemma", "idefics3", "smolvlm", "internvl"}, str(error)
        assert "<s> in a text" in str(error)
        return
    shown = family.vlm.tokenizer.decode(prompt.token_ids.tolist())
    assert "<s>old</s> circle" in shown
    assert family.vlm.tokenizer.eos_token_id not in prompt.token_ids.tolist()


def test_prompts_encode_images_once_in_any_order(family):
    vlm = load(str(family.directory))
    vlm.engine.share_prefix = "on"
    conversations = [(e.prompt, e.images) for e in family.examples]
    with torch.no_grad():
        together = prefill(vlm, vlm.build_prompts(conversations)).last_hidden_PD
        alone = torch.cat([prefill(vlm, vlm.build_prompts([row])).last_hidden_PD for row in conversations])
        reversed_order = prefill(vlm, vlm.build_prompts(conversations[::-1])).last_hidden_PD.flip(0)
    assert torch.allclose(together, alone, atol=1e-4) and torch.allclose(together, reversed_order, atol=1e-4)
    # LLaVA-OneVision preprocesses an image differently if it is one of several.
    assert vlm.image_encodes == (4 if family.family == "llava_onevision" else 3)


def test_feature_cache_reloads_from_disk(family, tmp_path):
    engine = EngineConfig(feature_cache_dir=str(tmp_path))
    hidden = []
    for _ in range(2):
        vlm = load(str(family.directory), engine=engine)
        with torch.no_grad():
            hidden.append(prefill(vlm, prompts_from_examples(vlm, family.examples)).last_hidden_PD)
    assert torch.equal(*hidden) and vlm.image_encodes == 0 and vlm.encoder.cache.counters.disk_hits >= 3


# ---- stages ------------------------------------------------------------------------------------


def preference_pairs(family: str) -> list[Preference]:
    return [Preference.from_pair(e.id, e.images, e.prompt, ANSWERS[1], ANSWERS[2]) for e in family_examples(family)]


def test_reward_model_matches_naive_path_and_survives_saving(family, tmp_path):
    adapters = Adapters(load(str(family.directory)))
    adapters.add("reward", 4, 16, 0)
    with torch.no_grad():
        for parameter in adapters.parameters("reward").values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model = RewardModel(Role(adapters, "reward", yes_no_head(adapters.vlm)), "none", "before")
    groups = [AnswerGroup(p.images, p.prompt, (p.chosen, p.rejected)) for p in preference_pairs(family.family)]
    fast = torch.tensor(model.score(groups))
    adapters.vlm.engine.share_prefix = "off"
    assert torch.allclose(torch.tensor(model.score(groups)), fast, atol=1e-4 * float(fast.abs().max()))
    save_reward_model(model, tmp_path, groups)
    reloaded = torch.tensor(load_reward_model(str(tmp_path)).score(groups))
    assert torch.allclose(reloaded, fast, atol=1e-5 * float(fast.abs().max()))


def test_stages_run_one_step(family, tmp_path):
    """sft -> reward -> ppo, by the stages' own functions, on rows with one image, two and none."""
    common = {"dataset_name": "rows", "per_device_train_batch_size": 4, "max_steps": 1, "lora_r": 4, "save_steps": 100}
    sft_config = SFTConfig(
        model_name_or_path=str(family.directory), output_dir=str(tmp_path / "sft"), response_length=8, **common
    )
    base = str(sft(sft_config, family.examples))
    reward_config = RewardConfig(model_name_or_path=base, output_dir=str(tmp_path / "reward"), facts="none", **common)
    reward_path = train_reward_model(reward_config, preference_pairs(family.family))
    ppo_config = PPOConfig(
        model_name_or_path=base,
        reward_model_path=str(reward_path),
        output_dir=str(tmp_path / "ppo"),
        num_generations=2,
        response_length=8,
        min_probe_detection_rate=0,
        **common,
    )
    ppo(ppo_config, [dataclasses.replace(e, answer=None) for e in family.examples])
    metrics = read_jsonl(tmp_path / "ppo" / "metrics.jsonl")[-1]
    assert abs(metrics["objective/kl"]) < 1e-3 and abs(metrics["val/ratio_first"] - 1) < 1e-3 and metrics["grad_norm"] > 0


def test_nf4_without_its_package_says_what_to_install(tiny_vlm_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs bitsandbytes, which is not installed: `pip install 'bitsandbytes>="):
        load(tiny_vlm_path, "nf4")


def test_nf4_base_runs_and_learns(tmp_path):
    """Run bitsandbytes on the CPU; the saved reward model records its precision."""
    pytest.importorskip("bitsandbytes")
    build_checkpoint("llava", tmp_path / "base")
    vlm = load(str(tmp_path / "base"), "nf4")
    layer = vlm.model.base_model.get_decoder().layers[0].self_attn.q_proj
    assert type(layer).__name__ == "Linear4bit" and vlm.encoder.dtype == torch.bfloat16
    adapters = Adapters(vlm)
    adapters.add("reward", 4, 8, 0)
    model = RewardModel(Role(adapters, "reward", yes_no_head(vlm)), "none", "before")
    groups = [AnswerGroup(e.images, e.prompt, ("A red circle.", "No.")) for e in family_examples("llava")]
    for _, scores in model.raw_scores(groups):
        scores.sum().backward()
    assert all(p.grad is not None for p in adapters.parameters("reward").values())
    save_reward_model(model, tmp_path / "reward", groups)
    reloaded = load_reward_model(str(tmp_path / "reward"))
    assert reloaded.role.vlm.dtype == "nf4"
    assert torch.allclose(torch.tensor(reloaded.score(groups)), torch.tensor(model.score(groups)), atol=1e-2)


# ---- the table ---------------------------------------------------------------------------------


def bfloat16_logp_gap(f: FamilySetup) -> float:
    """Return the largest difference between log-probs of decoding and of the update, in nats."""
    vlm = load(str(f.directory), "bfloat16", f.vlm.device)
    sampled = sample_completions(vlm, prompts_from_examples(vlm, f.examples), 3, SamplingParams(20))
    recomputed = in_micro_batches(logps, Role(Adapters(vlm), None), sampled)
    return float(((recomputed - sampled.logps_NT) * sampled.mask_NT).abs().max())


def family_table(dtype: str = "float32", device: str = "cpu") -> tuple[str, list[str]]:
    """Measure every family; return a table of them, and the families beyond TOLERANCE."""
    beyond = []
    lines = [
        "| family | log-probs | values | LoRA gradients | bfloat16 | answers to a prompt | prompt tokenized by "
        "| rows without an image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            f = FamilySetup(name, Path(folder) / "checkpoint", dtype, device)
            gaps = max_differences(f, engine_run(f, 1), naive_run(f))
            if not all(gap < limit for gap, limit in zip(gaps, TOLERANCE[dtype], strict=True)):
                beyond.append(name)
            logp_gap, value_gap, gradient_gap = gaps
            packing = "packed" if f.vlm.engine.supports_packing else "a row each"
            writer = "tokenizer" if f.vlm._extras_by_token_id is not None else "processor"
            text_only = "refused by its processor" if name in IMAGE_REQUIRED else "yes"
            lines.append(
                f"| {name} | {logp_gap:.0e} | {value_gap:.0e} | {gradient_gap:.0e} | {bfloat16_logp_gap(f):.2f} "
                f"| {packing} | {writer} | {text_only} |"
            )
    return "\n".join(lines), beyond


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    args = parser.parse_args()
    table, beyond_tolerance = family_table(args.dtype, args.device)
    sys.stdout.write(table + "\n")
    if beyond_tolerance:
        sys.exit(f"beyond {TOLERANCE[args.dtype]}: {', '.join(beyond_tolerance)}")
