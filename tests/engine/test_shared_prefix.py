"""Questions that share a picture get the answers that they get alone."""

import pytest

from mmrlhf.engine import shared_prefix
from mmrlhf.engine.rollout import generate_batches, prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.loading import load
from mmrlhf.records import Example, Message
from tests.helpers.tiny_models import FAMILIES, build_checkpoint

QUESTIONS = ("Is there a star?", "Is there a ring in the image, or a square?", "What is it?")
SUPPORTS_SHARING = set(FAMILIES) - {"gemma3", "gemma4", "qwen3_5", "mllama", "paligemma"}
"""Layers that attend to everything, one way: PaliGemma looks both ways in its prompt."""


@pytest.fixture(autouse=True)
def share_small_prefixes(monkeypatch):
    """The pictures of these models are of a dozen tokens, which alone would not be worth
    sharing."""
    monkeypatch.setattr(shared_prefix, "MAX_PACK_RATIO", 100)


def make_questions(examples, count=3):
    """Questions about pictures, one picture after another, and one that is asked alone."""
    rows = [Example(f"{e.id}-{i}", e.images, (Message("user", q),)) for e in examples[:count] for i, q in enumerate(QUESTIONS)]
    return [*rows, Example("alone", examples[count].images, (Message("user", QUESTIONS[0]),))]


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("how", [SamplingParams(6, 0.0), SamplingParams(6, 1.0, seed=3), SamplingParams(1, 0.0)])
def test_shared_prefix_answers_match_full_prompts(vlm, examples, how, captures):
    """Also in the fixed shapes that a GPU captures."""
    rows = make_questions(examples)
    whole = sample_completions(vlm, prompts_from_examples(vlm, rows), 1, how).texts
    vlm.engine.use_cuda_graphs = captures
    assert [texts for _, texts in generate_batches(vlm, rows, how, batch_size=100)] == [[t] for t in whole]
    assert len(set(whole)) > 2


def test_shared_prefix_prefills_each_prefix_once(vlm, examples, monkeypatch):
    rows = make_questions(examples)
    list(generate_batches(vlm, rows, SamplingParams(4, 0.0), batch_size=100))
    assert vlm.engine.share_prefix_across_prompts == "on"
    ran, forward = [], vlm.model.base_model.forward
    monkeypatch.setattr(vlm.model.base_model, "forward", lambda *a, **k: ran.append(k["input_ids"].shape) or forward(*a, **k))
    list(generate_batches(vlm, rows, SamplingParams(4, 0.0), batch_size=100))
    assert [shape[0] for shape in ran] == [4] * len(ran)  # three pictures with three questions each, and one with one
    assert len(ran) <= 1 + 1 + 3  # stems, questions, and a token at a time


def test_group_by_prefix_groups_by_image_where_it_pays(vlm, examples):
    rows = make_questions(examples)
    prompts = vlm.build_prompts([(e.prompt, e.images) for e in rows])
    assert shared_prefix.group_by_prefix(vlm, prompts, SamplingParams(4, 0.0)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert all(
        len(g) == 1 for g in shared_prefix.group_by_prefix(vlm, prompts, SamplingParams(2000, 0.0))
    )  # answers would outweigh the picture
    without = [Example("a", (), (Message("user", "Hello?"),)), Example("b", (), (Message("user", "Hello!"),))]
    prompts = vlm.build_prompts([(e.prompt, e.images) for e in without])
    assert shared_prefix.group_by_prefix(vlm, prompts, SamplingParams(4, 0.0)) == [[0], [1]]


def test_shared_prefix_falls_back_when_logps_differ(vlm, examples, monkeypatch, capsys):
    monkeypatch.setattr(shared_prefix, "max_logp_gap", lambda *_: 0.5)
    rows = make_questions(examples)
    whole = sample_completions(vlm, prompts_from_examples(vlm, rows), 1, SamplingParams(4, 0.0)).texts
    assert [t for _, (t,) in generate_batches(vlm, rows, SamplingParams(4, 0.0), batch_size=100)] == whole
    assert vlm.engine.share_prefix_across_prompts == "off" and "prefills every question with its image" in capsys.readouterr().out


@pytest.mark.parametrize("family", [pytest.param(f, id=f) for f in FAMILIES])
def test_shared_prefix_matches_full_prompts_for_every_family(family, examples, tmp_path):
    build_checkpoint(family, tmp_path)
    vlm = load(str(tmp_path))
    rows = make_questions(examples, 2)
    how = SamplingParams(3, 0.0)
    whole = sample_completions(vlm, prompts_from_examples(vlm, rows), 1, how)
    shared = [t for _, (t,) in generate_batches(vlm, rows, how, batch_size=100)]
    assert shared == whole.texts
    assert (vlm.engine.share_prefix_across_prompts == "on") == (family in SUPPORTS_SHARING)
    if family in SUPPORTS_SHARING:
        assert shared_prefix.max_logp_gap(vlm, whole.prompts[:2]) < 1e-4
