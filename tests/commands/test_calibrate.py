"""Claims are labelled and fitted as computed by hand, and calibrate works end to end."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrlhf import scenes
from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.cli import main
from mmrlhf.commands import calibrate as calibrate_module
from mmrlhf.commands.calibrate import evaluate, fit_platt
from mmrlhf.commands.claim_labels import (
    LabelledClaim,
    group_by_image,
    label_claims,
    label_with_facts,
    negatives_for,
    train_test_split,
)
from mmrlhf.config import CalibrateClipConfig, PPOConfig
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.loading import load
from mmrlhf.records import Claim, Example, Fact, ImageSource, InputError, Preference
from mmrlhf.rewards.claim_rewards import build_claim_scorer
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import PlattScaling, load_calibration
from mmrlhf.verifiers.clip import load_clip
from tests.helpers.tiny_clip import random_image, save_tiny_clip

LEXICON = load_lexicon()
DOG, CAT = Claim("object", "dog"), Claim("object", "cat")
NOUNS = ("dog", "cat", "car", "chair", "bus", "clock", "horse", "pizza", "boat", "bear")
KNOWN_FACTS = (
    Fact("object", "brown dog"),
    Fact("count", "two cups"),
    Fact("absent", "cat"),
    Fact("relation", "the dog is left of the bus"),
)


def truth_by_claim(labels):
    return {(label.claim.kind, label.claim.subject, label.claim.value or label.claim.relation): label.is_true for label in labels}


# ---- labels --------------------------------------------------------------------------------------


def test_label_with_facts_strips_negation():
    text = "There is no dog. There might be a cat. A dog and a lamp. There are three cups, not two cups. No brown dog."
    labels = label_with_facts(extract_claims(text, LEXICON), KNOWN_FACTS, LEXICON)
    assert truth_by_claim(labels) == {
        ("object", "dog", ""): True,  # "no dog" is false
        ("object", "cat", ""): False,
        ("object", "cup", ""): True,
        ("count", "cup", "3"): False,
        ("count", "cup", "2"): True,
        ("attribute", "dog", "brown"): True,
    }  # the facts do not mention a lamp
    assert not any(label.claim.negated or label.claim.hedged for label in labels)
    (no_cats,) = label_with_facts([Claim("count", "cat", "0")], KNOWN_FACTS, LEXICON)  # the positive form is "a cat"
    assert (no_cats.claim, no_cats.is_true) == (CAT, False)


def test_group_by_image_merges_rows_with_the_same_images(tmp_path):
    image, other = random_image(0), random_image(1)
    (tmp_path / "same.png").write_bytes(image.data)
    rows = [
        Preference.from_pair("a", (image,), (), "A dog.", "A cat.", KNOWN_FACTS[:1]),
        Example("b", (ImageSource(path=str(tmp_path / "same.png")),), (), "A dog.", KNOWN_FACTS),
        Example("c", (other,), (), "A dog.", KNOWN_FACTS),
        Example("d", (), (), "A dog.", KNOWN_FACTS),
    ]
    groups = group_by_image(rows, "rows")
    assert [(group.first_row, tuple(group.facts), list(group.answers)) for group in groups] == [
        (0, KNOWN_FACTS, ["A dog.", "A cat."]),
        (2, KNOWN_FACTS, ["A dog."]),
    ]
    assert [truth_by_claim(labels) for _, labels in label_claims(groups, LEXICON, "answers", 0, "rows")] == [
        {("object", "dog", ""): True, ("object", "cat", ""): False},
        {("object", "dog", ""): True},
    ]


def test_label_claims_pairs_each_true_claim_with_a_false_one():
    (group,) = group_by_image([Example("a", (random_image(0),), (), None, KNOWN_FACTS)], "rows")
    ((_, labels),) = label_claims([group], LEXICON, "facts", 0, "rows")
    for kind in ("object", "attribute", "count", "relation"):
        kind_labels = [label for label in labels if label.claim.kind == kind]
        assert 2 * sum(label.is_true for label in kind_labels) == len(kind_labels) > 0, kind
    truth = truth_by_claim(labels)
    assert truth["object", "cat", ""] is False and truth["attribute", "dog", "brown"] and truth["relation", "dog", "left of"]
    relabelled = label_with_facts((label.claim for label in labels), KNOWN_FACTS, LEXICON)
    assert {label.is_true for label in relabelled} == {True, False}
    assert [label.is_true for label in relabelled] == [label.is_true for label in labels]
    assert labels == negatives_for(relabelled, group, LEXICON, 0)  # drawn from the seed, so the same


def test_train_test_split_keeps_images_apart():
    def labelled_images(*image_indices):
        rows = [
            Example(str(indices), tuple(random_image(i) for i in indices), (), "A dog.", KNOWN_FACTS) for indices in image_indices
        ]
        return [(group, [LabelledClaim(DOG, True)]) for group in group_by_image(rows, "rows")]

    def keys(labelled):
        return {key for group, _ in labelled for key in group.keys}

    single = labelled_images(*((i,) for i in range(10)))
    train, test = train_test_split(single, 0.2, 0)
    assert len(test) == 2 and len(train) == 8 and not keys(train) & keys(test)
    assert keys(train_test_split(single[::-1], 0.2, 0)[1]) == keys(test)
    assert any(keys(train_test_split(single, 0.2, seed)[1]) != keys(test) for seed in range(1, 5))
    assert len(train_test_split(single[:2], 0.01, 0)[1]) == 1  # at least one
    train, test = train_test_split(labelled_images((0, 1)), 0.5, 0)  # one row with images of both sides
    assert train == test == []


# ---- numbers by hand -----------------------------------------------------------------------------


def logistic_labels(sign=1):
    """Return 100 labels at score 0, half of them true, and 100 at score 1, three quarters true."""
    return [LabelledClaim(DOG, n < 50, 0.0) for n in range(100)] + [LabelledClaim(DOG, n < 75, float(sign)) for n in range(100)]


def test_fit_platt_matches_hand_computation():
    counts = [LabelledClaim(Claim("count", "dog", "2"), n < 19, float(n < 19)) for n in range(60)]
    calibration, left_out = fit_platt([*logistic_labels(), *counts], 20)
    assert calibration.coefficients == {"object": pytest.approx((math.log(3), 0), abs=0.05)}
    assert left_out["count"] == "19 true and 41 false claims with a score, 20 of each are needed"
    assert set(left_out) == {"attribute", "count", "relation", "action"}
    calibration, left_out = fit_platt(logistic_labels(sign=-1), 20)  # true claims have the lower scores
    assert calibration.coefficients == {} and left_out["object"].startswith(
        "its scores do not separate true from false claims, AUROC 0.37"
    )
    without_true = [
        LabelledClaim(label.claim, label.is_true, None if label.is_true else label.score) for label in logistic_labels()
    ]
    _, left_out = fit_platt(without_true, 20)
    assert left_out["object"].startswith("0 true and 75 false claims with a score")


def test_evaluate_matches_hand_computation():
    calibration = PlattScaling({"object": (math.log(3), 0.0)})
    two = Claim("count", "dog", "2")
    labels = [*logistic_labels(), *[LabelledClaim(DOG, True)] * 50, LabelledClaim(two, True, 1.0), LabelledClaim(two, False, 0.0)]
    metrics = evaluate(labels, calibration, include_uncalibrated=True)
    dog, count = metrics["object"], metrics["count"]
    assert (dog["true"], dog["false"]) == (175, 75)
    # Of the true claims 0.6 have score 1, of the false ones a third: 0.6 x 2/3, plus half the ties.
    assert dog["auroc"]["value"] == pytest.approx(0.4 + (0.2 + 0.4 * 2 / 3) / 2)
    assert dog["unknown"]["value"] == pytest.approx(150 / 250)  # at score 0 the probability is 1/2; 50 have no score
    assert dog["right"]["value"] == 0.75 and dog["right"]["n"] == 100  # at score 1 the probability is 3/4
    assert dog["ece"] == pytest.approx(0)
    assert dog["ece_uncalibrated"] == pytest.approx((0.75 - 1 / (1 + math.exp(-1))) / 2)
    assert [(b["confidence"], b["accuracy"], b["n"]) for b in dog["bins"]] == [(0.5, 0.5, 100), (pytest.approx(0.75), 0.75, 100)]
    assert count["unknown"]["value"] == 1 and count["right"]["value"] is None and "ece" not in count  # not calibrated
    assert count["auroc"]["low"] < 0.5 < count["auroc"]["value"] == 1
    # Of two images with 50 scored claims each, one is always right: as if it were two claims.
    images = [LabelledClaim(DOG, n < 50, 1.0, image=n // 50) for n in range(100)]
    right = evaluate(images, calibration, include_uncalibrated=False)["object"]["right"]
    assert right == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 100}
    inverted = evaluate(labels, PlattScaling({"object": (-math.log(3), 0.0)}), include_uncalibrated=False)["object"]
    assert inverted["right"]["value"] == 0.25 and inverted["ece"] == pytest.approx(0.25) and "ece_uncalibrated" not in inverted


# ---- the command ---------------------------------------------------------------------------------


def write_rows(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip_dataset(clip_checkpoint, tmp_path_factory):
    """Write images; return their folder, and rows with facts that agree with a random model.

    An object is present if the model's margin for it is above the median, so the model's scores
    separate true claims from false ones.
    """
    folder = tmp_path_factory.mktemp("clip_dataset")
    images = [random_image(n) for n in range(20)]
    claims = tuple(Claim("object", noun) for noun in NOUNS)
    verifier = load_clip(str(clip_checkpoint), LEXICON)
    margins_with_evidence = verifier.margins([AnswerClaims((image,), (), claims) for image in images])
    margins = np.array([[margin for margin, _ in row] for row in margins_with_evidence])
    rows = []
    for n, (image, is_present) in enumerate(zip(images, margins > np.median(margins), strict=True)):
        (folder / f"{n}.png").write_bytes(image.data)
        facts = [{"kind": "object" if there else "absent", "text": noun} for noun, there in zip(NOUNS, is_present, strict=True)]
        rows.append({"image": f"{n}.png", "prompt": "?", "answer": f"There is a {', a '.join(NOUNS)} here.", "facts": facts})
    return folder, rows


def test_calibrate_clip_end_to_end(clip_checkpoint, clip_dataset, tmp_path, capsys):
    folder, rows = clip_dataset
    out = tmp_path / "new" / "calibration.json"
    command = ["calibrate", "clip", "--clip_model", str(clip_checkpoint)]
    line = [*command, "--data", write_rows(folder, rows), "--out", str(out), "--batch_size", "7"]
    assert main(line) == 0
    output = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["verifier"] == "clip" and report["fitted_on"]["images"] == 16 and report["measured_on"]["images"] == 4
    metrics = report["measured"]["object"]
    assert metrics["true"] + metrics["false"] == 40 and metrics["auroc"]["value"] == 1 and metrics["right"]["value"] > 0.9
    assert "1.00 (" in output and "count: left out of the calibration" in output
    assert "fitted on 160 claims about 16 images" in output
    assert np.asarray(Image.open(out.with_suffix(".png"))).std() > 10
    verifier = load_clip(str(clip_checkpoint), LEXICON, str(out))
    assert set(verifier.calibration.coefficients) == {"object"} and verifier.calibration.coefficients["object"][0] > 0
    truth = [[fact["kind"] == "object" for fact in row["facts"]] for row in rows]
    claims = tuple(Claim("object", noun) for noun in NOUNS)
    verdicts_by_image = verifier([AnswerClaims((random_image(n),), (), claims) for n in range(20)])
    is_right = [
        (verdict.value == "supported") == is_true
        for verdicts, row_truth in zip(verdicts_by_image, truth, strict=True)
        for verdict, is_true in zip(verdicts, row_truth, strict=True)
        if verdict.value != "unknown"
    ]
    assert len(is_right) > 150 and np.mean(is_right) > 0.9
    first_bytes = out.read_bytes()
    assert main(line) == 0 and out.read_bytes() == first_bytes

    opposite = {"object": "absent", "absent": "object"}
    flipped = [{**row, "facts": [{**fact, "kind": opposite[fact["kind"]]} for fact in row["facts"]]} for row in rows]
    assert main([*command, "--data", write_rows(folder, flipped), "--out", str(tmp_path / "flipped.json")]) == 2
    assert "object (its scores do not separate true from false claims, AUROC 0.00" in capsys.readouterr().err
    assert not (tmp_path / "flipped.json").exists()


def test_calibrate_clip_keeps_distractors_and_template(clip_checkpoint, clip_dataset, tmp_path):
    folder, rows = clip_dataset
    before = {"certainty": {}, "unknown_between": [0.3, 0.7], "nouns": list(NOUNS), "groups": [["red", "blue"]], "template": "{}"}
    (tmp_path / "before.json").write_text(json.dumps(before))
    config = CalibrateClipConfig(
        clip_model=str(clip_checkpoint),
        clip_calibration=str(tmp_path / "before.json"),
        dataset_name=write_rows(folder, rows),
        output_file=str(tmp_path / "after.json"),
        min_labels=5,
    )
    calibrate_module.calibrate(config)
    verifier = load_clip(str(clip_checkpoint), LEXICON, str(tmp_path / "after.json"))
    assert verifier.distractor_pool.nouns == NOUNS and verifier.template == "{}"
    assert verifier.distractor_pool.groups == (frozenset({"red", "blue"}),)


def test_calibrate_vlm_output_is_accepted_by_ppo(bundled_vlm_path, tmp_path, capsys):
    rows = []
    for index in range(16):
        scene = scenes.generate_scene("selection", index, 0)
        (tmp_path / f"{index}.png").write_bytes(scene.image_source().read())
        shapes = {scene_object.shape for scene_object in scene.objects}
        facts = [{"kind": "object" if shape in shapes else "absent", "text": shape} for shape in scenes.vocabulary.SHAPES]
        rows.append({"image": f"{index}.png", "prompt": "?", "facts": facts})
    lexicon_file, out = str(Path(scenes.__file__).parent / "lexicon.txt"), tmp_path / "vlm.json"
    files = ["--data", write_rows(tmp_path, rows), "--out", str(out), "--lexicon_file", lexicon_file]
    assert main(["calibrate", "vlm", "--model", bundled_vlm_path, *files, "--claim_source", "facts", "--held_out", "0.4"]) == 0
    output = capsys.readouterr().out
    metrics = load_calibration(out)[1]["measured"]["object"]
    assert metrics["true"] == metrics["false"] > 5 and metrics["auroc"]["value"] > 0.7
    assert metrics["ece_uncalibrated"] > 0 and "as is" in output
    ppo_config = PPOConfig(
        model_name_or_path=bundled_vlm_path,
        dataset_name="x",
        output_dir="x",
        reward_terms="coverage@vlm=1",
        vlm_calibration=str(out),
        lexicon_file=lexicon_file,
    )
    claim_scorer = build_claim_scorer(ppo_config, Adapters(load(bundled_vlm_path)))
    answers = []
    for index in range(16):
        shape = scenes.generate_scene("selection", index, 0).objects[0].shape
        claims = (Claim("object", shape), Claim("count", shape, "1"))
        answers.append(AnswerClaims((ImageSource(path=str(tmp_path / f"{index}.png")),), (), claims))
    verdicts = claim_scorer.verifiers["vlm"](answers)
    values = [object_verdict.value for object_verdict, _ in verdicts]
    assert values.count("supported") > values.count("contradicted")
    assert all("not calibrated for claims of kind count" in count_verdict.evidence for _, count_verdict in verdicts)


FACTS = [{"kind": "object", "text": "dog"}, {"kind": "absent", "text": "cat"}]
ROW = {"prompt": "?", "answer": "There is a dog and a cat.", "facts": FACTS}


@pytest.mark.parametrize(
    ("changed", "flags", "message"),
    [
        ({"facts": None}, (), "rows.jsonl has no facts to label claims with: add `facts` to its rows, or give --facts_file"),
        ({"image": None, "images": []}, (), "rows.jsonl has no images"),
        ({"answer": None}, (), "has no answers to extract claims from: give rows with `chosen` and `rejected`, `answer` or"),
        ({"answer": "A lamp."}, (), "rows.jsonl verify none of the claims of its answers"),
        ({"facts": FACTS[1:]}, ("--claim_source", "facts"), "rows.jsonl verify none of the claims of its facts"),
        ({"answer": "There is a dog."}, (), "too few claims that facts label (object 4 true and 0 false, without held-out"),
        (
            {},
            ("--min_labels", "5"),
            "(object 4 true and 4 false, without held-out images): one kind needs 5 true and 5 false claims",
        ),
        ({}, ("--out", "OUT/calibration.txt"), "calibration.txt must end in .json"),
        ({}, ("--out", "OUT"), "is a directory: name a file in it"),
        ({}, ("--lexicon_file", "gone.txt"), "gone.txt does not exist"),
        ({}, ("--held_out", "1"), "--held_out must be a number above 0 and of at most 0.5, not '1'"),
        ({}, ("--data", "gone.jsonl"), "gone.jsonl"),
    ],
)
def test_calibrate_refuses_unusable_data_before_loading_model(changed, flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibrate_module, "load_clip", None)
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir(), out.mkdir()
    rows = []
    for n in range(5):
        (data / f"{n}.png").write_bytes(random_image(n).data)
        fields = {**ROW, "image": f"{n}.png", **changed}
        rows.append({name: value for name, value in fields.items() if value is not None})
    line = ["calibrate", "clip", "--clip_model", "any", "--data", write_rows(data, rows), "--out", str(out / "c.json")]
    assert main([*line, *(flag.replace("OUT", str(out)) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("verifier", ["clip", "vlm"])
def test_calibrate_refuses_missing_checkpoint(verifier, clip_dataset, tmp_path, capsys):
    flag = {"clip": "--clip_model", "vlm": "--model"}[verifier]
    files = ["--data", write_rows(*clip_dataset), "--out", str(tmp_path / "c.json")]
    assert main(["calibrate", verifier, flag, str(tmp_path / "gone"), *files]) == 2
    assert "gone" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_calibrate_counts_unscored_claims_as_unknown(clip_checkpoint, clip_dataset, tmp_path, monkeypatch):
    """The verifier has no score for the first claim of each answer."""
    folder, rows = clip_dataset
    truth = {row["image"]: [fact["kind"] == "object" for fact in row["facts"]] for row in rows}

    def score_all_but_first(answers):
        return [[None, *map(float, truth[Path(answer.images[0].path).name][1:])] for answer in answers]

    def score_none(answers):
        return [[None] * len(NOUNS) for _ in answers]

    verifier_info = {"verifier": "clip", "model": "none"}
    monkeypatch.setattr(calibrate_module, "_build_verifier", lambda config, lexicon: (score_all_but_first, verifier_info))
    config = CalibrateClipConfig(clip_model="-", dataset_name=write_rows(folder, rows), output_file=str(tmp_path / "c.json"))
    metrics = calibrate_module.calibrate(config)["measured"]["object"]
    assert metrics["unknown"]["value"] == pytest.approx(0.1) and metrics["right"]["n"] == 36 and metrics["right"]["value"] == 1
    monkeypatch.setattr(calibrate_module, "_build_verifier", lambda config, lexicon: (score_none, {}))
    with pytest.raises(InputError, match=r"nothing can be calibrated: object \(0 true and 0 false claims with a score"):
        calibrate_module.calibrate(config)
