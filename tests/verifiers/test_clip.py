"""The open_clip verifier: its margins by hand, what it encodes, and the checkpoints it refuses."""

import json
import math
import shutil

import open_clip
import pytest
import torch

from mmrlhf.claims import load_lexicon
from mmrlhf.records import Claim, InputError
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import PlattScaling, save_calibration
from mmrlhf.verifiers.clip import load_clip, tokenize
from mmrlhf.verifiers.verbalize import DistractorPool
from tests.helpers.tiny_clip import CONFIG, random_image, save_tiny_clip

LEXICON = load_lexicon()
DOG = Claim("object", "dog")


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def clip_verifier(clip_checkpoint):
    verifier = load_clip(str(clip_checkpoint), LEXICON)
    verifier.calibration = PlattScaling({"object": (1.0, 0.0), "attribute": (1.0, 0.0)})
    return verifier


@pytest.fixture
def verifier_with_known_features(clip_verifier):
    """A verifier with features to multiply by hand. A logit is ten times the similarity."""
    clip_verifier.distractor_pool = DistractorPool(("dog", "cat"), (frozenset({"red", "blue", "green"}),))
    with torch.no_grad():
        clip_verifier.model.logit_scale.fill_(math.log(10))
    features = {
        "a dog": [1.0, 0.0],
        "a cat": [0.0, 1.0],
        "a red dog": [1.0, 0.0],
        "a blue dog": [0.0, 1.0],
        "a green dog": [-0.6, 0.8],
        "two dogs": [1.0, 0.0],
        "no dogs": [0.0, 1.0],
        "one dog": [0.0, 1.0],
        "three dogs": [0.0, 1.0],
        "four dogs": [0.0, 1.0],
    }
    clip_verifier._text_features = {f"a photo of {phrase}": torch.tensor(vector) for phrase, vector in features.items()}
    clip_verifier._image_features = {
        random_image(0).key: torch.tensor([0.8, 0.6]),
        random_image(1).key: torch.tensor([0.6, 0.8]),
    }
    return clip_verifier


def test_clip_verifier_margins_match_hand_computation(verifier_with_known_features):
    no_dog, red_dog = Claim("object", "dog", negated=True), Claim("attribute", "dog", "red")
    ((is_dog, is_no_dog, is_red),) = verifier_with_known_features([AnswerClaims((random_image(0),), (), (DOG, no_dog, red_dog))])
    assert is_dog.probability == pytest.approx(1 / (1 + math.exp(-2))) and is_dog.value == "supported"  # 10 x (.8 - .6)
    assert is_no_dog.probability == pytest.approx(1 / (1 + math.exp(2))) and is_no_dog.value == "contradicted"
    # 8 against log(e^6 + e^0): .8 x -.6 + .6 x .8 = 0
    assert is_red.probability == pytest.approx(1 / (1 + math.exp(math.log(math.exp(6) + 1) - 8)))
    assert is_dog.evidence == "open_clip: 'a photo of a dog' by +2.0 against 'a photo of a cat'"
    ((other,), (both,)) = verifier_with_known_features(
        [AnswerClaims((random_image(1),), (), (DOG,)), AnswerClaims((random_image(1), random_image(0)), (), (DOG,))]
    )
    assert other.value == "contradicted"
    assert both.probability == pytest.approx(is_dog.probability)  # of two images, the one that shows a dog counts


def test_clip_verifier_unverifiable_claims_are_unknown(verifier_with_known_features):
    happy_dog, two_dogs = Claim("attribute", "dog", "happy"), Claim("count", "dog", "2")
    ((happy, two), (without_image,)) = verifier_with_known_features(
        [AnswerClaims((random_image(0),), (), (happy_dog, two_dogs)), AnswerClaims((), (), (DOG,))]
    )
    no_distractor = "there is no distractor to compare it with"
    assert (happy.value, happy.probability, happy.evidence) == ("unknown", None, no_distractor)
    assert (two.value, two.probability) == ("unknown", None) and "not calibrated" in two.evidence
    assert (without_image.value, without_image.evidence) == ("unknown", "there is no image")
    assert (
        verifier_with_known_features([AnswerClaims((random_image(0),), (), ())]) == [[]]
        and verifier_with_known_features([]) == []
    )


def test_clip_verifier_truncated_claim_is_unknown(clip_verifier):
    long_claim = Claim("object", " ".join(["very"] * 20) + " dog")
    ((verdict,),) = clip_verifier([AnswerClaims((random_image(0),), (), (long_claim,))])
    assert verdict.value == "unknown" and "reads 16 tokens, too few for 'a photo of a very" in verdict.evidence


def test_tokenize_reports_truncated_texts(clip_verifier):
    fits, cut = "a " * 14, "a " * 15  # 16 and 17 tokens with the start and end tokens
    assert tokenize(clip_verifier.tokenizer, ["", fits, cut, cut + "a a"])[1].tolist() == [False, False, True, True]


def test_clip_verifier_encodes_images_and_phrases_once(clip_verifier, monkeypatch):
    num_encoded = {"image": 0, "text": 0}
    for name in num_encoded:
        encode = getattr(clip_verifier.model, f"encode_{name}")

        def counting_encode(batch, normalize, name=name, encode=encode):
            num_encoded[name] += len(batch)
            return encode(batch, normalize=normalize)

        monkeypatch.setattr(clip_verifier.model, f"encode_{name}", counting_encode)
    answers = [
        AnswerClaims((random_image(0),), (), (DOG,)),
        AnswerClaims((random_image(0), random_image(1)), (), (DOG, Claim("object", "cat"))),
    ]
    verdicts = clip_verifier(answers)
    assert num_encoded == {"image": 2, "text": 80}  # COCO's classes are each other's distractors
    assert clip_verifier(answers) == verdicts and num_encoded == {"image": 2, "text": 80}
    fresh_verifier = load_clip(clip_verifier.name, LEXICON)  # other answers in the batch do not change a margin
    margin = fresh_verifier.margins([answers[1]])[0][0][0]
    assert margin == pytest.approx(clip_verifier.margins(answers)[1][0][0], abs=1e-4)


def test_load_clip_reads_calibration_beside_checkpoint(clip_checkpoint, tmp_path):
    shutil.copytree(clip_checkpoint, tmp_path / "clip")
    save_calibration(
        PlattScaling({"object": (3.0, 1.0)}),
        tmp_path / "clip/calibration.json",
        nouns=["ring"],
        groups=[["red", "cyan"]],
        template="{}",
    )
    verifier = load_clip(str(tmp_path / "clip"), LEXICON)
    assert verifier.calibration.coefficients == {"object": (3.0, 1.0)}
    assert verifier.distractor_pool.nouns == ("ring",) and verifier.template == "{}"
    save_calibration(PlattScaling({"count": (1.0, 0.0)}), tmp_path / "other.json")
    verifier = load_clip(str(tmp_path / "clip"), LEXICON, str(tmp_path / "other.json"))
    assert set(verifier.calibration.coefficients) == {"count"}
    uncalibrated_verifier = load_clip(str(clip_checkpoint), LEXICON)
    assert uncalibrated_verifier([AnswerClaims((random_image(0),), (), (DOG,))])[0][0].value == "unknown"
    save_calibration(PlattScaling({}), tmp_path / "other.json", template="a photo")
    with pytest.raises(InputError, match="template"):
        load_clip(str(clip_checkpoint), LEXICON, str(tmp_path / "other.json"))


def test_load_clip_refuses_invalid_checkpoints(clip_checkpoint, tmp_path):
    def refused(name, message):
        with pytest.raises(InputError, match=message) as caught:
            load_clip(str(name), LEXICON)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400

    def copy(name):
        shutil.copytree(clip_checkpoint, tmp_path / name)
        return tmp_path / name

    mismatched = copy("other")
    config = {"model_cfg": {**CONFIG, "embed_dim": 24}, "preprocess_cfg": {}}
    (mismatched / "open_clip_config.json").write_text(json.dumps(config))
    refused(mismatched, r"other cannot be loaded .*must fit the architecture")
    (mismatched / "open_clip_config.json").write_text("{")
    refused(mismatched, "is not JSON")
    (mismatched / "open_clip_config.json").write_text("{}")
    refused(mismatched, "cannot be loaded")
    code = {"model_cfg": {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}}}
    (mismatched / "open_clip_config.json").write_text(json.dumps(code))
    refused(mismatched, "asks to run its own code")
    (mismatched / "open_clip_config.json").unlink()
    refused(mismatched, "has no open_clip_config.json")
    pickled = copy("pickled")
    (pickled / "open_clip_model.safetensors").rename(pickled / "open_clip_pytorch_model.bin")
    refused(pickled, "has no file of weights in safetensors.*pickles are never loaded")
    torn = copy("torn")
    (torn / "open_clip_model.safetensors").write_bytes((torn / "open_clip_model.safetensors").read_bytes()[:1000])
    refused(torn, "torn cannot be loaded")
    refused("ViT-Q-99:x", "open_clip has no model ViT-Q-99")
    refused("ViT-B-32", "write ViT-B-32:TAG")
    refused("ViT-B-32:mine", "has no tag mine.*its tags are .*laion2b_s34b_b79k")
    refused(f"ViT-B-32:{pickled / 'open_clip_pytorch_model.bin'}", "pickles are never loaded")


def test_load_clip_refuses_tag_that_cannot_be_fetched(monkeypatch):
    def no_network(entry):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("open_clip.download_pretrained", no_network)
    with pytest.raises(InputError, match=r"is not on this machine and cannot be fetched \(no\)"):
        load_clip("ViT-B-32:laion2b_s34b_b79k", LEXICON)


def test_load_clip_accepts_named_architecture_with_weights_file(clip_checkpoint, tmp_path, monkeypatch):
    """An architecture that open_clip knows by name, here a tiny one that the test registers."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny": CONFIG, "other": {**CONFIG, "embed_dim": 24}})
    weights = clip_checkpoint / "open_clip_model.safetensors"
    assert load_clip(f"tiny:{weights}", LEXICON).model.visual.image_size == (32, 32)
    with pytest.raises(InputError, match=r"other:.* cannot be loaded"):
        load_clip(f"other:{weights}", LEXICON)
