"""The open_clip verifier: its margins by hand, what it encodes, and what it says of checkpoints that are none."""

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
def clip_verifier(directory):
    found = load_clip(str(directory), LEXICON)
    found.calibration = PlattScaling({"object": (1.0, 0.0), "attribute": (1.0, 0.0)})
    return found


def with_known_features(clip):
    """Features that a pencil can multiply; ten logits to a unit of likeness."""
    clip.distractor_pool = DistractorPool(("dog", "cat"), (frozenset({"red", "blue", "green"}),))
    with torch.no_grad():
        clip.model.logit_scale.fill_(math.log(10))
    clip._text_features = {f"a photo of {k}": torch.tensor(v) for k, v in {
        "two dogs": [1.0, 0.0], "no dogs": [0.0, 1.0], "one dog": [0.0, 1.0], "three dogs": [0.0, 1.0], "four dogs": [0.0, 1.0],
        "a dog": [1.0, 0.0], "a cat": [0.0, 1.0], "a red dog": [1.0, 0.0], "a blue dog": [0.0, 1.0], "a green dog": [-0.6, 0.8],
    }.items()}  # fmt: skip
    clip._image_features = {random_image(0).key: torch.tensor([0.8, 0.6]), random_image(1).key: torch.tensor([0.6, 0.8])}
    return clip


def test_clip_verifier_margins_match_hand_computation(clip):
    clip = with_known_features(clip)
    no_dog, red = Claim("object", "dog", negated=True), Claim("attribute", "dog", "red")
    ((dog, none, colour),) = clip([AnswerClaims((random_image(0),), (), (DOG, no_dog, red))])
    assert dog.probability == pytest.approx(1 / (1 + math.exp(-2))) and dog.value == "supported"  # 10 x (.8 - .6)
    assert none.probability == pytest.approx(1 / (1 + math.exp(2))) and none.value == "contradicted"
    # 8 against log(e^6 + e^0): .8 x -.6 + .6 x .8 = 0
    assert colour.probability == pytest.approx(1 / (1 + math.exp(math.log(math.exp(6) + 1) - 8)))
    assert dog.evidence == "open_clip: 'a photo of a dog' by +2.0 against 'a photo of a cat'"
    ((other,), (either,)) = clip(
        [AnswerClaims((random_image(1),), (), (DOG,)), AnswerClaims((random_image(1), random_image(0)), (), (DOG,))]
    )
    assert other.value == "contradicted" and either.probability == pytest.approx(dog.probability)  # of two the one that shows it


def test_clip_verifier_unverifiable_claims_are_unknown(clip):
    clip = with_known_features(clip)
    happy, two = Claim("attribute", "dog", "happy"), Claim("count", "dog", "2")
    ((a, b), (c,)) = clip([AnswerClaims((random_image(0),), (), (happy, two)), AnswerClaims((), (), (DOG,))])
    assert (a.value, a.probability, a.evidence) == ("unknown", None, "nothing is known to be its contrary")
    assert (b.value, b.probability) == ("unknown", None) and "not calibrated" in b.evidence
    assert (c.value, c.evidence) == ("unknown", "there is no picture")
    assert clip([AnswerClaims((random_image(0),), (), ())]) == [[]] and clip([]) == []


def test_clip_verifier_truncated_claim_is_unknown(clip):
    long = Claim("object", " ".join(["very"] * 20) + " dog")
    (((verdict),),) = clip([AnswerClaims((random_image(0),), (), (long,))])
    assert verdict.value == "unknown" and "reads 16 tokens, too few for 'a photo of a very" in verdict.evidence
    fits, cut = "a " * 14, "a " * 15  # with the two ends 16 and 17 tokens
    assert tokenize(clip.tokenizer, ["", fits, cut, cut + "a a"])[1].tolist() == [False, False, True, True]


def test_clip_verifier_encodes_images_and_phrases_once(clip, monkeypatch):
    seen = {"image": 0, "text": 0}
    for name in seen:
        real = getattr(clip.model, f"encode_{name}")

        def counted(batch, normalize, name=name, real=real):
            seen[name] += len(batch)
            return real(batch, normalize=normalize)

        monkeypatch.setattr(clip.model, f"encode_{name}", counted)
    said = [
        AnswerClaims((random_image(0),), (), (DOG,)),
        AnswerClaims((random_image(0), random_image(1)), (), (DOG, Claim("object", "cat"))),
    ]
    first = clip(said)
    assert seen["image"] == 2 and seen["text"] == 80  # COCO's classes are each other's foils
    assert clip(said) == first and seen == {"image": 2, "text": 80}
    alone = load_clip(clip.name, LEXICON)  # nobody else's company changes a margin
    assert alone.margins([said[1]])[0][0][0] == pytest.approx(clip.margins(said)[1][0][0], abs=1e-4)


def test_load_clip_reads_calibration_beside_checkpoint(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "clip")
    save_calibration(
        PlattScaling({"object": (3.0, 1.0)}),
        tmp_path / "clip/calibration.json",
        nouns=["ring"],
        groups=[["red", "cyan"]],
        template="{}",
    )
    found = load_clip(str(tmp_path / "clip"), LEXICON)
    assert (
        found.calibration.coefficients == {"object": (3.0, 1.0)}
        and found.distractor_pool.nouns == ("ring",)
        and found.template == "{}"
    )
    save_calibration(PlattScaling({"count": (1.0, 0.0)}), tmp_path / "other.json")
    assert set(load_clip(str(tmp_path / "clip"), LEXICON, str(tmp_path / "other.json")).calibration.coefficients) == {"count"}
    assert (
        load_clip(str(directory), LEXICON)([AnswerClaims((random_image(0),), (), (DOG,))])[0][0].value == "unknown"
    )  # without one nobody knows
    save_calibration(PlattScaling({}), tmp_path / "other.json", template="a photo")
    with pytest.raises(InputError, match="template"):
        load_clip(str(directory), LEXICON, str(tmp_path / "other.json"))


def test_load_clip_refuses_invalid_checkpoints(directory, tmp_path):
    def refused(name, sentence):
        with pytest.raises(InputError, match=sentence) as caught:
            load_clip(str(name), LEXICON)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400

    def copy(name):
        shutil.copytree(directory, tmp_path / name)
        return tmp_path / name

    other = copy("other")
    config = {"model_cfg": {**CONFIG, "embed_dim": 24}, "preprocess_cfg": {}}
    (other / "open_clip_config.json").write_text(json.dumps(config))
    refused(other, r"other cannot be loaded .*must be those of the architecture")
    (other / "open_clip_config.json").write_text("{")
    refused(other, "is not JSON")
    (other / "open_clip_config.json").write_text("{}")
    refused(other, "cannot be loaded")
    code = {"model_cfg": {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}}}
    (other / "open_clip_config.json").write_text(json.dumps(code))
    refused(other, "asks for code of its own")
    (other / "open_clip_config.json").unlink()
    refused(other, "holds no open_clip_config.json")
    pickled = copy("pickled")
    (pickled / "open_clip_model.safetensors").rename(pickled / "open_clip_pytorch_model.bin")
    refused(pickled, "no file of weights in safetensors.*pickles are never loaded")
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


def test_load_clip_accepts_named_architecture_with_weights_file(directory, tmp_path, monkeypatch):
    """One of open_clip's own names, here a tiny one that is told to it."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny": CONFIG, "other": {**CONFIG, "embed_dim": 24}})
    weights = directory / "open_clip_model.safetensors"
    assert load_clip(f"tiny:{weights}", LEXICON).model.visual.image_size == (32, 32)
    with pytest.raises(InputError, match=r"other:.* cannot be loaded"):
        load_clip(f"other:{weights}", LEXICON)
