"""Verifiers by name."""

import pytest

from mmrlhf.claims import load_lexicon
from mmrlhf.config import PPOConfig
from mmrlhf.models.adapters import Adapters
from mmrlhf.records import Claim, Fact, InputError
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import PlattScaling, save_calibration
from mmrlhf.verifiers.build import VERIFIERS, validate_verifier
from tests.helpers.tiny_clip import save_tiny_clip


def test_validate_verifier_normalises_and_refuses():
    assert validate_verifier("facts", "here") == "facts" and validate_verifier(" facts + clip ", "here") == "facts+clip"
    for name, message in {"me": "here: there is no verifier 'me'", "": "no verifier ''", "vlm+vlm": "named twice"}.items():
        with pytest.raises(InputError, match=message):
            validate_verifier(name, "here")


def test_verifiers_are_built_from_settings_and_judge_claims(vlm, examples, tmp_path):
    save_calibration(PlattScaling({"object": (1.0, 0.0)}), save_tiny_clip(tmp_path / "clip") / "calibration.json")
    config = PPOConfig(
        model_name_or_path="x", dataset_name="x", output_dir=str(tmp_path / "out"), clip_model=str(tmp_path / "clip")
    )
    answer = AnswerClaims(examples[0].images, (Fact("object", "ring"),), (Claim("object", "ring"),))
    probabilities = {}
    for name, build in VERIFIERS.items():
        ((verdict,),) = build(config, Adapters(vlm), load_lexicon())([answer])
        probabilities[name] = verdict.probability
    assert probabilities["facts"] == 1.0
    assert all(0 <= probability <= 1 for probability in probabilities.values())
