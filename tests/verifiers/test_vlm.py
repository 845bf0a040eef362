"""The model asked about claims: what it reads, and that sharing a prompt changes nothing."""

import numpy as np
import pytest
import torch

from mmrlhf import scenes
from mmrlhf.claims import load_lexicon
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.images import open_image
from mmrlhf.records import Claim, InputError, Message
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import PlattScaling
from mmrlhf.verifiers.vlm import IMAGE_PROMPT, IMAGE_REPLY, VLMVerifier

LEXICON = load_lexicon()


@pytest.fixture
def vlm_verifier(vlm):
    return VLMVerifier(Role(Adapters(vlm), None), LEXICON)


def test_vlm_verifier_log_odds_match_naive_forward(asking, examples):
    vlm = asking.role.vlm
    claims = [Claim("object", "ring"), Claim("attribute", "star", "blue", negated=True), Claim("count", "moon", "2")]
    questions = ["Is there a ring", "Is there a blue star", "Are there exactly two moons"]
    said = [
        AnswerClaims(examples[0].images, (), tuple(claims)),
        AnswerClaims((), (), (claims[0],)),
        AnswerClaims(examples[1].images, (), (claims[0],)),
    ]
    found = asking.log_odds(said)
    assert [len(row) for row in found] == [3, 0, 1]

    def naive(images, question):
        turns = [Message("user", IMAGE_PROMPT), Message("assistant", IMAGE_REPLY), Message("user", f"{question} in the picture?")]
        text = vlm.apply_chat_template(turns, 1, generation_prompt=True)
        inputs = vlm.processor(text=text, images=[open_image(images[0])], return_tensors="pt")
        with torch.no_grad():
            logits = vlm.model(**inputs).logits[0, -1]
        yes, no = (vlm.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
        return float(logits[yes] - logits[no])

    assert found[0] == pytest.approx([naive(examples[0].images, q) for q in questions], abs=1e-3)
    assert found[2] == pytest.approx([naive(examples[1].images, questions[0])], abs=1e-3)


def test_vlm_verifier_disables_adapters(asking, examples):
    said = [AnswerClaims(examples[0].images, (), (Claim("object", "ring"),))]
    before = asking.log_odds(said)
    adapters = asking.role.adapters
    adapters.add("policy", 4, 8, seed=0)
    with torch.no_grad():
        for parameter in adapters.parameters("policy").values():
            parameter.add_(0.1)
    with adapters.use("policy"):
        assert asking.log_odds(said)[0] == pytest.approx(before[0], abs=1e-5)


def test_vlm_verifier_calibrates_and_flips_negated_claims(asking, examples):
    ring, none = Claim("object", "ring"), Claim("object", "ring", negated=True)
    asking.calibration = PlattScaling({"object": (2.0, 1.0)}, 0.4, 0.6)
    said = [AnswerClaims(examples[0].images, (), (ring, none, Claim("count", "ring", "2"))), AnswerClaims((), (), (ring,))]
    ((a, b, c), (d,)) = asking(said)
    x = asking.log_odds(said)[0][0]
    assert a.probability == pytest.approx(1 / (1 + np.exp(-2 * x - 1)), abs=1e-6) and b.probability == pytest.approx(
        1 - a.probability
    )
    assert {a.value, b.value} == {"supported", "contradicted"}
    assert ("yes" if x > 0 else "no") in a.evidence and "'Is there a ring in the picture?'" in b.evidence
    assert c.value == "unknown" and (d.value, d.evidence) == ("unknown", "there is no picture")


def test_vlm_verifier_shipped_base_knows_objects_and_colours(asking):
    said, true = [], []
    for index in range(40):
        scene = scenes.generate_scene("selection", index, 0)
        thing, shapes = scene.objects[0], {t.shape for t in scene.objects}
        colours = {t.colour for t in scene.objects if t.shape == thing.shape}
        absent = next(s for s in scenes.vocabulary.SHAPES[index % 5 :] + scenes.vocabulary.SHAPES if s not in shapes)
        other = next(c for c in scenes.vocabulary.COLOURS if c not in colours)
        said.append(AnswerClaims((scene.image_source(),), (), (
            Claim("object", thing.shape), Claim("object", absent),
            Claim("attribute", thing.shape, thing.colour), Claim("attribute", thing.shape, other),
        )))  # fmt: skip
        true.append([True, False, True, False])
    right = (np.array(asking.log_odds(said)) > 0) == np.array(true)
    assert right[:, :2].mean() > 0.9 and right[:, 2:].mean() > 0.8


def test_vlm_verifier_respects_token_budget_and_max_length(asking, examples):
    said = [AnswerClaims(e.images, (), tuple(Claim("count", "ring", str(n)) for n in range(1, 6))) for e in examples[:3]]
    expected = asking.log_odds(said)
    asking.role.vlm.budget.tokens = 64
    for row, again in zip(expected, asking.log_odds(said), strict=True):
        assert again == pytest.approx(row, abs=1e-4)
    asking.max_length = 60
    long = Claim("object", " ".join(["very"] * 60) + " ring")
    ((a, b),) = asking([AnswerClaims(examples[0].images, (), (said[0].claims[0], long))])
    assert a.probability is not None and (b.value, b.probability, b.evidence) == (
        "unknown", None, "the question is longer than max_length 60",
    )  # fmt: skip
    asking.max_length = 5
    with pytest.raises(InputError, match="more than the 5 that max_length leaves it"):
        asking.log_odds(said)
