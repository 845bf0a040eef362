"""The vision-language model as a verifier: its log-odds match a naive forward pass."""

import numpy as np
import pytest
import torch

from mmrlhf import scenes
from mmrlhf.claims import load_lexicon
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load
from mmrlhf.records import Claim, InputError, Message
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import PlattScaling
from mmrlhf.verifiers.vlm import IMAGE_PROMPT, IMAGE_REPLY, VLMVerifier

LEXICON = load_lexicon()


@pytest.fixture
def vlm_verifier(vlm):
    return VLMVerifier(Role(Adapters(vlm), None), LEXICON)


def test_vlm_verifier_log_odds_match_naive_forward(vlm_verifier, examples):
    vlm = vlm_verifier.role.vlm
    claims = [Claim("object", "ring"), Claim("attribute", "star", "blue", negated=True), Claim("count", "moon", "2")]
    questions = ["Is there a ring", "Is there a blue star", "Are there exactly two moons"]
    answers = [
        AnswerClaims(examples[0].images, (), tuple(claims)),
        AnswerClaims((), (), (claims[0],)),
        AnswerClaims(examples[1].images, (), (claims[0],)),
    ]
    log_odds = vlm_verifier.log_odds(answers)
    assert [len(row) for row in log_odds] == [3, 0, 1]

    def naive_log_odds(images, question):
        turns = [Message("user", IMAGE_PROMPT), Message("assistant", IMAGE_REPLY), Message("user", f"{question} in the picture?")]
        text = vlm.apply_chat_template(turns, 1, generation_prompt=True)
        inputs = vlm.processor(text=text, images=[open_image(images[0])], return_tensors="pt")
        with torch.no_grad():
            logits = vlm.model(**inputs).logits[0, -1]
        yes, no = (vlm.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
        return float(logits[yes] - logits[no])

    assert log_odds[0] == pytest.approx([naive_log_odds(examples[0].images, q) for q in questions], abs=1e-3)
    assert log_odds[2] == pytest.approx([naive_log_odds(examples[1].images, questions[0])], abs=1e-3)


def test_vlm_verifier_disables_adapters(vlm_verifier, examples):
    answers = [AnswerClaims(examples[0].images, (), (Claim("object", "ring"),))]
    before = vlm_verifier.log_odds(answers)
    adapters = vlm_verifier.role.adapters
    adapters.add("policy", 4, 8, seed=0)
    with torch.no_grad():
        for parameter in adapters.parameters("policy").values():
            parameter.add_(0.1)
    with adapters.use("policy"):
        assert vlm_verifier.log_odds(answers)[0] == pytest.approx(before[0], abs=1e-5)


def test_vlm_verifier_calibrates_and_flips_negated_claims(vlm_verifier, examples):
    ring, no_ring = Claim("object", "ring"), Claim("object", "ring", negated=True)
    two_rings = Claim("count", "ring", "2")
    vlm_verifier.calibration = PlattScaling({"object": (2.0, 1.0)}, 0.4, 0.6)
    answers = [AnswerClaims(examples[0].images, (), (ring, no_ring, two_rings)), AnswerClaims((), (), (ring,))]
    ((is_ring, is_no_ring, uncalibrated), (without_image,)) = vlm_verifier(answers)
    log_odds = vlm_verifier.log_odds(answers)[0][0]
    assert is_ring.probability == pytest.approx(1 / (1 + np.exp(-2 * log_odds - 1)), abs=1e-6)
    assert is_no_ring.probability == pytest.approx(1 - is_ring.probability)
    assert {is_ring.value, is_no_ring.value} == {"supported", "contradicted"}
    assert ("yes" if log_odds > 0 else "no") in is_ring.evidence
    assert "'Is there a ring in the picture?'" in is_no_ring.evidence
    assert uncalibrated.value == "unknown"
    assert (without_image.value, without_image.evidence) == ("unknown", "there is no image")


def test_vlm_verifier_shipped_base_judges_claims_better_than_chance(bundled_vlm_path):
    vlm_verifier = VLMVerifier(Role(Adapters(load(bundled_vlm_path)), None), LEXICON)
    answers = []
    for index in range(40):
        scene = scenes.generate_scene("selection", index, 0)
        scene_object, shapes = scene.objects[0], {o.shape for o in scene.objects}
        colours = {o.colour for o in scene.objects if o.shape == scene_object.shape}
        # Start at another shape each time, so that absent shapes vary.
        candidates = scenes.vocabulary.SHAPES[index % 5 :] + scenes.vocabulary.SHAPES
        absent_shape = next(shape for shape in candidates if shape not in shapes)
        other_colour = next(colour for colour in scenes.vocabulary.COLOURS if colour not in colours)
        claims = (
            Claim("object", scene_object.shape),
            Claim("object", absent_shape),
            Claim("attribute", scene_object.shape, scene_object.colour),
            Claim("attribute", scene_object.shape, other_colour),
        )
        answers.append(AnswerClaims((scene.image_source(),), (), claims))
    is_correct = (np.array(vlm_verifier.log_odds(answers)) > 0) == np.array([True, False, True, False])
    # It never learnt at scale to check claims against pictures: .71 and .86 measured, .5 is chance.
    assert is_correct[:, :2].mean() > 0.6 and is_correct[:, 2:].mean() > 0.75


def test_vlm_verifier_respects_token_budget_and_max_length(vlm_verifier, examples):
    counts = tuple(Claim("count", "ring", str(n)) for n in range(1, 6))
    answers = [AnswerClaims(e.images, (), counts) for e in examples[:3]]
    expected = vlm_verifier.log_odds(answers)
    vlm_verifier.role.vlm.budget.tokens = 64
    for row, expected_row in zip(vlm_verifier.log_odds(answers), expected, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-4)
    vlm_verifier.max_length = 60
    long_claim = Claim("object", " ".join(["very"] * 60) + " ring")
    ((fitting, too_long),) = vlm_verifier([AnswerClaims(examples[0].images, (), (counts[0], long_claim))])
    assert fitting.probability is not None
    assert (too_long.value, too_long.probability) == ("unknown", None)
    assert too_long.evidence == "the question is longer than max_length 60"
    vlm_verifier.max_length = 5
    with pytest.raises(InputError, match="more than the 5 that max_length leaves it"):
        vlm_verifier.log_odds(answers)
