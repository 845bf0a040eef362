"""Every model family: the engine against a forward that shares nothing with it.

Naive means here: the processor on pixels, prompt and answer of one row in one sequence, no cache, the model's own positions. Each family is a
tiny random checkpoint with its real processor (`families.py`). Rows are mixed: one picture, two, none, of different sizes.

    python -m tests.models.test_families                                     # the table of docs/families.md
    python -m tests.models.test_families --device cuda --dtype bfloat16      # the same elsewhere; fails beyond TOLERANCE
"""

import argparse
import dataclasses
import io
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrlhf.config import EngineConfig, PPOConfig, RewardConfig, SFTConfig
from mmrlhf.engine import naive
from mmrlhf.engine.completions import Completions, pad_right
from mmrlhf.engine.prefill import Prefix, max_logp_gap, prefill, two_stage_backward
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams, sample
from mmrlhf.engine.scoring import hidden_states, in_micro_batches, logps
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head, yes_no_head
from mmrlhf.models.loading import load
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, ImageSource, InputError, Message, Preference
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model, save_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.sft import sft
from tests.helpers.tiny_models import FAMILIES, build_checkpoint

IMAGE_REQUIRED = {"paligemma"}
"""Their processors take no prompt without a picture."""


TOLERANCE = {"float32": (1e-4, 1e-4, 1e-3), "bfloat16": (0.1, 0.1, 0.15)}
"""The most by which the engine may differ: log-probs in nats, values in standard deviations, gradients in shares of a tensor's largest."""
SUPPORTS_PACKING = set(FAMILIES) - {"gemma3", "gemma4", "qwen3_5", "mllama"}
"""Every layer attends to everything, so that a prompt's answers may share a sequence behind a mask."""


def random_image(width: int, height: int, seed: int) -> ImageSource:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return ImageSource(data=file.getvalue())


IMAGE_A, IMAGE_B, IMAGE_C = random_image(56, 56, 0), random_image(120, 80, 1), random_image(60, 112, 2)
ANSWERS = ("A red circle.", "There is a blue square in the top left, and a red circle.", "No.", "Yes, a blue circle is there.")


def family_examples(family: str) -> list[Example]:
    """Prompts of different lengths on one picture, another, two, and none."""
    asked = [("Describe the image.", (IMAGE_A,)), ("what colour is the red circle in the top left and the blue square", (IMAGE_B,)),
             ("Describe the image in detail.", (IMAGE_C, IMAGE_A)), ("what colour is a square", ())]  # fmt: skip
    return [
        Example(f"row-{i}", images, (Message("user", text),), answer)
        for i, ((text, images), answer) in enumerate(zip(asked, ANSWERS, strict=True))
        if images or family not in IMAGE_REQUIRED
    ]


class FamilySetup:
    """A family's checkpoint, loaded, with two adapters that do something."""

    def __init__(self, family: str, directory: Path, dtype: str = "float32", device: str = "cpu"):
        self.family, self.directory = family, directory
        build_checkpoint(family, directory)
        self.vlm = load(str(directory), dtype, device)
        self.examples = family_examples(family)
        self.adapters = Adapters(self.vlm)
        for seed, name in enumerate(("policy", "value")):
            self.adapters.add(name, 4, 16, seed)
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in self.adapters.parameters(name).values():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        draws = torch.randn(self.vlm.hidden_size, generator=torch.Generator().manual_seed(3))
        self.head = scalar_head(
            draws.to(self.vlm.device) / self.vlm.hidden_size**0.5
        )  # values of size 1, as those of a new critic

    def prompts(self):
        return prompts_from_examples(self.vlm, self.examples)

    def completions(self) -> Completions:
        """Two answers to each prompt."""
        numbers = [r for r in range(len(self.examples)) for _ in range(2)]
        ids = [
            self.vlm.answer_token_ids(self.examples[r].prompt, ANSWERS[i % 4], len(self.examples[r].images))
            for i, r in enumerate(numbers)
        ]
        return Completions(self.prompts(), torch.tensor(numbers, device=self.vlm.device), *pad_right(ids, 1, self.vlm.device))

    def naive_logps_and_values(self, row: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and values [T] of one answer."""
        vlm, example = self.vlm, self.examples[row]
        batch = naive.processor_inputs(vlm, vlm.build_prompts([(example.prompt, example.images)]))
        length = batch["input_ids"].shape[1]
        batch["input_ids"] = torch.cat([batch["input_ids"], ids[None]], 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in batch:
                batch[name] = torch.cat([batch[name], torch.full_like(ids[None], int(self.family == "paligemma"))], 1)
        if "cross_attention_mask" in batch:
            seen = batch["cross_attention_mask"]
            batch["cross_attention_mask"] = torch.cat([seen, seen[:, -1:].expand(-1, len(ids), -1, -1)], 1)
        out = vlm.model(**batch, use_cache=False, output_hidden_states=True)
        logits = out.logits[0, length - 1 : -1].float()
        logits[:, vlm.suppressed_tokens] = float("-inf")
        hidden = vlm.model.base_model(**batch, use_cache=False).last_hidden_state[0, length - 1 : -1]
        return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0], self.head(hidden.float())[:, 0]

    def pop_gradients(self, name: str = "policy") -> dict[str, torch.Tensor]:
        found = {k: p.grad.clone() for k, p in self.adapters.parameters(name).items()}
        self.vlm.model.zero_grad()
        return found


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> FamilySetup:
    return FamilySetup(request.param, tmp_path_factory.mktemp(request.param) / "checkpoint")


def naive_run(f: FamilySetup) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]:
    """Log-probs and values of every answer, and the policy's gradients of their mean log-prob."""
    given = f.completions()
    with f.adapters.use("policy"):
        found = [
            f.naive_logps_and_values(int(r), ids[m.bool()])
            for r, ids, m in zip(given.prompt_index_N, given.token_ids_NT, given.mask_NT, strict=True)
        ]
        (sum(lp.sum() for lp, _ in found) / given.mask_NT.sum()).backward()
    return [lp.detach() for lp, _ in found], [v.detach() for _, v in found], f.pop_gradients()


def engine_run(f: FamilySetup, tokens: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The same by the engine, so many tokens at a time."""
    given = f.completions()
    found, values = (torch.zeros(given.token_ids_NT.shape, device=f.vlm.device) for _ in range(2))
    f.vlm.budget.max_tokens = tokens
    for at, hidden in hidden_states(Role(f.adapters, "policy"), given):
        ids, mask = given.token_ids_NT[at, : hidden.shape[1]], given.mask_NT[at, : hidden.shape[1]]
        lp = f.vlm.token_logps(hidden, ids, mask)
        (lp.sum() / given.mask_NT.sum()).backward()
        found[at, : hidden.shape[1]], values[at, : hidden.shape[1]] = lp.detach(), f.head(hidden.float())[..., 0].detach()
    f.vlm.budget.max_tokens = EngineConfig().micro_batch_tokens
    return found, values, f.pop_gradients()


def max_differences(f: FamilySetup, fast, naive) -> tuple[float, float, float]:
    """Largest differences of log-probs (nats), values, and gradients (of the largest entry of each tensor)."""
    mask = f.completions().mask_NT.bool()
    lp = max(float((fast[0][i][mask[i]] - n).abs().max()) for i, n in enumerate(naive[0]))
    v = max(float((fast[1][i][mask[i]] - n).abs().max()) for i, n in enumerate(naive[1]))
    assert set(fast[2]) == set(naive[2])
    g = max(float((fast[2][k] - naive[2][k]).abs().max() / naive[2][k].abs().max().clamp(min=1e-12)) for k in naive[2])
    return lp, v, g


def test_engine_matches_naive_forward(family):
    """Log-probs, values and LoRA gradients; all at once, and answer by answer with the backward in two stages."""
    naive = naive_run(family)
    for tokens in (100_000, 1):
        lp, v, g = max_differences(family, engine_run(family, tokens), naive)
        assert all(gap < most for gap, most in zip((lp, v, g), TOLERANCE["float32"], strict=True)), (tokens, lp, v, g)
    assert family.vlm.engine.share_prefix == "on"


def test_packed_answers_match_separate_rows(family, monkeypatch):
    """One sequence for all answers to a prompt, or a row for each: log-probs, gradients, and what is sampled (with answers that end)."""
    how, each = SamplingParams(24), 5
    found = {}
    monkeypatch.setattr(family.vlm, "eos", (3, *range(40, 80)))  # an untrained model seldom comes to its end
    for packed in (True, False):
        monkeypatch.setattr(
            Prefix, "should_pack", lambda self, answers, tokens, packed=packed: packed and self.vlm.engine.supports_packing
        )
        fast = engine_run(family, 100_000)
        with family.adapters.use("policy"):
            found[packed] = *fast, sample_completions(family.vlm, family.prompts(), each, how)
    one, other = found[True], found[False]
    assert torch.allclose(one[0], other[0], atol=1e-4)
    assert all(torch.allclose(one[2][k], other[2][k], atol=1e-3 * float(other[2][k].abs().max())) for k in other[2])
    assert torch.equal(one[3].token_ids_NT, other[3].token_ids_NT) and torch.allclose(
        one[3].logps_NT, other[3].logps_NT, atol=1e-4
    )
    assert bool(one[3].finished_N.any()) and len(set(one[3].mask_NT.sum(1).tolist())) > 1
    assert family.vlm.engine.supports_packing == (family.family in SUPPORTS_PACKING)
    if family.vlm.engine.supports_packing:  # in fixed shapes, as they are captured on a GPU
        monkeypatch.setattr(family.vlm.engine, "use_cuda_graphs", True)
        for packed in (True, False):
            monkeypatch.setattr(Prefix, "should_pack", lambda self, answers, tokens, packed=packed: packed)
            with family.adapters.use("policy"):
                fixed = sample_completions(family.vlm, family.prompts(), each, how)
            assert torch.equal(fixed.token_ids_NT, one[3].token_ids_NT) and torch.allclose(
                fixed.logps_NT, one[3].logps_NT, atol=1e-4
            )


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
    before = engine_run(family, 100_000)
    other = FamilySetup.__new__(FamilySetup)
    other.__dict__ |= family.__dict__
    other.vlm = load(str(family.directory), engine=EngineConfig(activation_checkpointing=True))
    other.adapters = Adapters(other.vlm)
    for seed, name in enumerate(("policy", "value")):
        other.adapters.add(name, 4, 16, seed)
        with torch.no_grad():
            ours = family.adapters.parameters(name)
            for key, parameter in other.adapters.parameters(name).items():
                parameter.copy_(ours[key])
    after = engine_run(other, 150)
    assert torch.allclose(before[0], after[0], atol=1e-4)
    assert all(torch.allclose(before[2][k], after[2][k], atol=1e-3 * float(before[2][k].abs().max())) for k in before[2])


def test_control_tokens_in_text_are_refused(family):
    vlm, message = family.vlm, "which the model takes for a control token: remove it from"
    tokens = [getattr(vlm.processor, name, None) for name in ("image_token", "video_token", "boi_token")]
    for token in filter(None, tokens):
        with pytest.raises(InputError, match=re.escape(f"row r: an answer or what follows it holds {token}")):
            vlm.answer_token_ids([Message("user", "?")], f"A {token} circle.", 0, row_id="r")
        assert (
            token not in (said := vlm.escape_control_tokens(f"A {token} circle."))
            and vlm.answer_token_ids([Message("user", "?")], said, 0) is not None
        )
        with pytest.raises(InputError, match=rf"{message} its text|would show the model"):
            vlm.build_prompts([((Message("user", f"What is {token}?"),), family.examples[0].images)])
    vlm.answer_token_ids([Message("user", "?")], "An <s>old</s> <b>one</b>.", 0)  # marks that texts have, too


def test_sample_logps_match_recomputed_logps(family):
    role = Role(family.adapters, "policy")
    with role.active():
        out = sample_completions(family.vlm, family.prompts(), 3, SamplingParams(20))
    assert not set(out.token_ids_NT[out.mask_NT.bool()].tolist()) & set(family.vlm.suppressed_tokens.tolist())
    with torch.no_grad():
        for at, hidden in hidden_states(role, out):
            again = family.vlm.token_logps(hidden, out.token_ids_NT[at], out.mask_NT[at])
            assert torch.allclose(again, out.logps_NT[at], atol=1e-4)


def test_naive_prefix_samples_and_scores_alike(family):
    how, draws = SamplingParams(8), torch.rand(len(family.examples), 8, generator=torch.Generator().manual_seed(1))
    numbers = list(range(len(family.examples)))
    with family.adapters.use("policy"):
        fast = sample(family.vlm, family.prompts(), numbers, how, draws)
        family.vlm.engine.share_prefix = "off"
        slow = sample(family.vlm, family.prompts(), numbers, how, draws)
        hidden = prefill(family.vlm, family.prompts()).last_hidden_PD
        family.vlm.engine.share_prefix = "on"
        assert torch.allclose(prefill(family.vlm, family.prompts()).last_hidden_PD, hidden, atol=1e-4)
    assert torch.equal(fast.token_ids_NT, slow.token_ids_NT) and torch.allclose(fast.logps_NT, slow.logps_NT, atol=1e-4)


def test_sample_greedy_matches_hf_generate(family):
    said = sample(family.vlm, family.prompts(), list(range(len(family.examples))), SamplingParams(6, 0.0))
    for i, prompt in enumerate(family.prompts()):
        batch = naive.processor_inputs(family.vlm, [prompt])
        ban = [[i] for i in family.vlm.suppressed_tokens.tolist()]
        theirs = family.vlm.model.generate(**batch, max_new_tokens=6, do_sample=False, bad_words_ids=ban)[
            0, batch["input_ids"].shape[1] :
        ]
        assert said.token_ids_NT[i][said.mask_NT[i].bool()].tolist() == theirs.tolist()


def test_prompts_encode_images_once_in_any_order(family):
    vlm = load(str(family.directory))
    vlm.engine.share_prefix = "on"
    first = [(e.prompt, e.images) for e in family.examples]
    with torch.no_grad():
        together = prefill(vlm, vlm.build_prompts(first)).last_hidden_PD
        alone = torch.cat([prefill(vlm, vlm.build_prompts([row])).last_hidden_PD for row in first])
        back = prefill(vlm, vlm.build_prompts(first[::-1])).last_hidden_PD.flip(0)
    assert torch.allclose(together, alone, atol=1e-4) and torch.allclose(together, back, atol=1e-4)
    # LLaVA-OneVision sees a picture that is one of several otherwise than one that stands alone.
    assert vlm.image_encodes == (4 if family.family == "llava_onevision" else 3)


def test_feature_cache_reloads_from_disk(family, tmp_path):
    engine = EngineConfig(feature_cache_dir=str(tmp_path))
    asked = [(e.prompt, e.images) for e in family.examples]
    found = []
    for _ in range(2):
        vlm = load(str(family.directory), engine=engine)
        with torch.no_grad():
            found.append(prefill(vlm, vlm.build_prompts(asked)).last_hidden_PD)
    assert torch.equal(*found) and vlm.image_encodes == 0 and vlm.encoder.cache.counters.disk_hits >= 3


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
    again = torch.tensor(load_reward_model(str(tmp_path)).score(groups))
    assert torch.allclose(again, fast, atol=1e-5 * float(fast.abs().max()))


def test_stages_run_one_step(family, tmp_path):
    """sft -> reward -> ppo, by the stages' own functions, on rows with one picture, two and none."""
    common = {"dataset_name": "rows", "per_device_train_batch_size": 4, "max_steps": 1, "lora_r": 4, "save_steps": 100}
    model = sft(SFTConfig(model_name_or_path=str(family.directory), output_dir=str(tmp_path / "sft"), **common), family.examples)
    config = RewardConfig(model_name_or_path=str(model), output_dir=str(tmp_path / "reward"), facts="none", **common)
    artefact = train_reward_model(config, preference_pairs(family.family))
    config = PPOConfig(model_name_or_path=str(model), reward_model_path=str(artefact), output_dir=str(tmp_path / "ppo"),
                       num_generations=2, response_length=8, min_probe_detection_rate=0, **common)  # fmt: skip
    ppo(config, [dataclasses.replace(e, answer=None) for e in family.examples])
    log = read_jsonl(tmp_path / "ppo" / "metrics.jsonl")[-1]
    assert abs(log["objective/kl"]) < 1e-3 and abs(log["val/ratio_first"] - 1) < 1e-3 and log["grad_norm"] > 0


def test_max_logp_gap_is_small(family):
    assert max_logp_gap(family.vlm, family.prompts()[0]) < 1e-4


def test_nf4_base_runs_and_learns(tmp_path):
    """bitsandbytes on the CPU: the same engine, another precision; the reward model remembers it."""
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
    again = load_reward_model(str(tmp_path / "reward"))
    assert again.role.vlm.dtype == "nf4" and torch.allclose(
        torch.tensor(again.score(groups)), torch.tensor(model.score(groups)), atol=1e-2
    )


def bfloat16_logp_gap(f: FamilySetup) -> float:
    """Log-probs of sampled tokens, as they were drawn against the update's own, in nats."""
    vlm = load(str(f.directory), "bfloat16", f.vlm.device)
    out = sample_completions(vlm, prompts_from_examples(vlm, f.examples), 3, SamplingParams(20))
    again = in_micro_batches(logps, Role(Adapters(vlm), None), out)
    return float(((again - out.logps_NT) * out.mask_NT).abs().max())


def family_table(dtype: str = "float32", device: str = "cpu") -> tuple[str, list[str]]:
    """One row a family, measured now; and the families beyond TOLERANCE."""
    beyond = []
    lines = [
        "| family | log-probs | values | LoRA gradients | bfloat16 | answers to a prompt | prompt written by | rows without a picture |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            f = FamilySetup(name, Path(folder) / "checkpoint", dtype, device)
            lp, v, g = max_differences(f, engine_run(f, 1), naive_run(f))
            if not all(gap < most for gap, most in zip((lp, v, g), TOLERANCE[dtype], strict=True)):
                beyond.append(name)
            together = "side by side" if f.vlm.engine.supports_packing else "a row each"
            way = "tokenizer" if f.vlm._extras_by_token_id is not None else "processor"
            text = "refused by its processor" if name in IMAGE_REQUIRED else "yes"
            lines.append(f"| {name} | {lp:.0e} | {v:.0e} | {g:.0e} | {bfloat16_logp_gap(f):.2f} | {together} | {way} | {text} |")
    return "\n".join(lines), beyond


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    given = parser.parse_args()
    text, beyond = family_table(given.dtype, given.device)
    sys.stdout.write(text + "\n")
    if beyond:
        sys.exit(f"beyond {TOLERANCE[given.dtype]}: {', '.join(beyond)}")
