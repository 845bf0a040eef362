"""Questions that share an image's prefill get the same answers as alone."""

import pytest

from mmrlhf.engine import shared_prefix
from mmrlhf.engine.rollout import generate_batches, prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.loading import load
from mmrlhf.records import Example, Message
from tests.helpers.tiny_models import FAMILIES, build_checkpoint

QUESTIONS = ("Is there a star?", "Is there a ring in the image, or a square?", "What is it?")
SUPPORTS_SHARING = set(FAMILIES) - {"gemma3", "gemma4", "qwen3_5", "mllama", "paligemma"}
"""Families with full causal attention in every layer: PaliGemma's prompts are bidirectional."""
GREEDY = SamplingParams(4, 0.0)


@pytest.fixture(autouse=True)
def share_small_prefixes(monkeypatch):
    """Share even these models' images, which have only a dozen tokens."""
    monkeypatch.setattr(shared_prefix, "MAX_PACK_RATIO", 100)


def make_questions(examples, num_images=3):
    """Build three questions about each of `num_images` images, and one about another image."""
    questions = [
        Example(f"{e.id}-{i}", e.images, (Message("user", question),))
        for e in examples[:num_images]
        for i, question in enumerate(QUESTIONS)
    ]
    return [*questions, Example("alone", examples[num_images].images, (Message("user", QUESTIONS[0]),))]


def answers_in_batches(vlm, questions, params):
    return [text for _, (text,) in generate_batches(vlm, questions, params, batch_size=100)]


@pytest.mark.parametrize("use_cuda_graphs", [False, True])
@pytest.mark.parametrize("params", [SamplingParams(6, 0.0), SamplingParams(6, 1.0, seed=3), SamplingParams(1, 0.0)])
def test_shared_prefix_answers_match_full_prompts(vlm, examples, params, use_cuda_graphs):
    """Runs with and without the fixed shapes that a GPU captures."""
    questions = make_questions(examples)
    expected = sample_completions(vlm, prompts_from_examples(vlm, questions), 1, params).texts
    vlm.engine.use_cuda_graphs = use_cuda_graphs
    assert answers_in_batches(vlm, questions, params) == expected
    assert len(set(expected)) > 2


def test_shared_prefix_prefills_each_prefix_once(vlm, examples, monkeypatch):
    questions = make_questions(examples)
    answers_in_batches(vlm, questions, GREEDY)
    assert vlm.engine.share_prefix_across_prompts == "on"
    input_shapes, forward = [], vlm.model.base_model.forward

    def record_shape(*args, **kwargs):
        input_shapes.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    monkeypatch.setattr(vlm.model.base_model, "forward", record_shape)
    answers_in_batches(vlm, questions, GREEDY)
    # Three images with three questions each, and one with one.
    assert [shape[0] for shape in input_shapes] == [4] * len(input_shapes)
    assert len(input_shapes) <= 1 + 1 + 3  # prefixes, suffixes, and a step per further token


def test_group_by_prefix_groups_by_image_where_it_pays(vlm, examples):
    prompts = prompts_from_examples(vlm, make_questions(examples))
    assert shared_prefix.group_by_prefix(vlm, prompts, GREEDY) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    # Long answers outweigh the image.
    long_groups = shared_prefix.group_by_prefix(vlm, prompts, SamplingParams(2000, 0.0))
    assert all(len(group) == 1 for group in long_groups)
    text_only = [Example("a", (), (Message("user", "Hello?"),)), Example("b", (), (Message("user", "Hello!"),))]
    assert shared_prefix.group_by_prefix(vlm, prompts_from_examples(vlm, text_only), GREEDY) == [[0], [1]]


def test_shared_prefix_falls_back_when_logps_differ(vlm, examples, monkeypatch, capsys):
    monkeypatch.setattr(shared_prefix, "max_logp_gap", lambda *_: 0.5)
    questions = make_questions(examples)
    expected = sample_completions(vlm, prompts_from_examples(vlm, questions), 1, GREEDY).texts
    assert answers_in_batches(vlm, questions, GREEDY) == expected
    assert vlm.engine.share_prefix_across_prompts == "off"
    assert "each runs with its image" in capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefix_matches_full_prompts_for_every_family(family, examples, tmp_path):
    build_checkpoint(family, tmp_path)
    vlm = load(str(tmp_path))
    questions, params = make_questions(examples, 2), SamplingParams(3, 0.0)
    expected = sample_completions(vlm, prompts_from_examples(vlm, questions), 1, params)
    assert answers_in_batches(vlm, questions, params) == expected.texts
    assert (vlm.engine.share_prefix_across_prompts == "on") == (family in SUPPORTS_SHARING)
    if family in SUPPORTS_SHARING:
        assert shared_prefix.max_logp_gap(vlm, expected.prompts[:2]) < 1e-4
