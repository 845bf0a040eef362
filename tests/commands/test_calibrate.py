"""A verifier is calibrated: which claims are labels, what is fitted and measured by hand, and the command with small models."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrlhf import scenes
from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.cli import main
from mmrlhf.commands import calibrate as stage
from mmrlhf.commands.calibrate import (
    LabelledClaim,
    evaluate,
    fit_platt,
    group_by_image,
    label_claims,
    label_with_facts,
    negatives_for,
    train_test_split,
)
from mmrlhf.config import PPOConfig
from mmrlhf.models.adapters import Adapters
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
    return {(c.claim.kind, c.claim.subject, c.claim.value or c.claim.relation): c.is_true for c in labels}


# ---- labels ------------------------------------------------------------------------------------------------------------


def test_label_with_facts_strips_negation():
    text = "There is no dog. There might be a cat. A dog and a lamp. There are three cups, not two cups. No brown dog."
    found = label_with_facts(extract_claims(text, LEXICON), KNOWN_FACTS, LEXICON)
    assert truth_by_claim(found) == {
        ("object", "dog", ""): True,  # "no dog" is false
        ("object", "cat", ""): False,
        ("object", "cup", ""): True,
        ("count", "cup", "3"): False,
        ("count", "cup", "2"): True,
        ("attribute", "dog", "brown"): True,
    }  # of a lamp nobody knows
    assert not any(c.claim.negated or c.claim.hedged for c in found)
    (none,) = label_with_facts([Claim("count", "cat", "0")], KNOWN_FACTS, LEXICON)  # "zero cats" asks for a cat
    assert (none.claim, none.is_true) == (CAT, False)


def test_group_by_image_merges_rows_with_the_same_images(tmp_path):
    image, other = random_image(0), random_image(1)
    (tmp_path / "same.png").write_bytes(image.data)
    rows = [
        Preference.from_pair("a", (image,), (), "A dog.", "A cat.", KNOWN_FACTS[:1]),
        Example("b", (ImageSource(path=str(tmp_path / "same.png")),), (), "A dog.", KNOWN_FACTS),
        Example("c", (other,), (), "A dog.", KNOWN_FACTS),
        Example("d", (), (), "A dog.", KNOWN_FACTS),
    ]
    found = group_by_image(rows, "rows")
    assert [(p.first_row, tuple(p.facts), list(p.answers)) for p in found] == [
        (0, KNOWN_FACTS, ["A dog.", "A cat."]),
        (2, KNOWN_FACTS, ["A dog."]),
    ]
    assert [truth_by_claim(labels) for _, labels in label_claims(found, LEXICON, "answers", 0, "rows")] == [
        {("object", "dog", ""): True, ("object", "cat", ""): False},
        {("object", "dog", ""): True},
    ]


def test_label_claims_pairs_each_true_claim_with_a_false_one():
    (p,) = group_by_image([Example("a", (random_image(0),), (), None, KNOWN_FACTS)], "rows")
    ((_, labels),) = label_claims([p], LEXICON, "facts", 0, "rows")
    for kind in ("object", "attribute", "count", "relation"):
        mine = [c for c in labels if c.claim.kind == kind]
        assert 2 * sum(c.is_true for c in mine) == len(mine) > 0, kind
    found = truth_by_claim(labels)
    assert found["object", "cat", ""] is False and found["attribute", "dog", "brown"] and found["relation", "dog", "left of"]
    assert {s.is_true for s in label_with_facts((c.claim for c in labels), KNOWN_FACTS, LEXICON)} == {True, False}
    assert [c.is_true for c in label_with_facts((c.claim for c in labels), KNOWN_FACTS, LEXICON)] == [c.is_true for c in labels]
    assert labels == negatives_for(
        label_with_facts((c.claim for c in labels), KNOWN_FACTS, LEXICON), p, LEXICON, 0
    )  # drawn again, the same


def test_train_test_split_keeps_images_apart():
    def told(*numbers):
        found = group_by_image(
            [Example(str(n), tuple(random_image(i) for i in n), (), "A dog.", KNOWN_FACTS) for n in numbers], "rows"
        )
        return [(p, [LabelledClaim(DOG, True)]) for p in found]

    def keys(part):
        return [key for p, _ in part for key in p.keys]

    single = told(*((i,) for i in range(10)))
    ours, apart = train_test_split(single, 0.2, 0)
    assert len(apart) == 2 and len(ours) == 8 and not set(keys(ours)) & set(keys(apart))
    again = train_test_split(single[::-1], 0.2, 0)
    assert set(keys(again[1])) == set(keys(apart))
    assert any(set(keys(train_test_split(single, 0.2, seed)[1])) != set(keys(apart)) for seed in range(1, 5))
    assert len(train_test_split(single[:2], 0.01, 0)[1]) == 1  # one at least
    ours, apart = train_test_split(told((0, 1)), 0.5, 0)  # on both sides
    assert ours == apart == []


# ---- numbers by hand -------------------------------------------------------------------------------------------------


def logistic_labels(sign=1):
    """At x = 0 half of 100 are true, at x = 1 three quarters."""
    return [LabelledClaim(DOG, n < 50, 0.0) for n in range(100)] + [LabelledClaim(DOG, n < 75, float(sign)) for n in range(100)]


def test_fit_platt_matches_hand_computation():
    certainty, left_out = fit_platt(
        [*logistic_labels(), *(LabelledClaim(Claim("count", "dog", "2"), n < 19, float(n < 19)) for n in range(60))], 20
    )
    assert certainty.coefficients == {"object": pytest.approx((math.log(3), 0), abs=0.05)}
    assert left_out["count"] == "19 true and 41 false claims that it measures, 20 of each are needed"
    assert set(left_out) == {"attribute", "count", "relation"}
    certainty, left_out = fit_platt(logistic_labels(sign=-1), 20)  # the true ones have the lower numbers
    assert certainty.coefficients == {} and left_out["object"].startswith(
        "its numbers do not tell true from false claims, AUROC 0.37"
    )
    _, left_out = fit_platt([LabelledClaim(c.claim, c.is_true, None if c.is_true else c.score) for c in logistic_labels()], 20)
    assert left_out["object"].startswith("0 true and 75 false claims that it measures")


def test_evaluate_matches_hand_computation():
    certainty = PlattScaling({"object": (math.log(3), 0.0)})
    two = Claim("count", "dog", "2")
    rows = [*logistic_labels(), *[LabelledClaim(DOG, True)] * 50, LabelledClaim(two, True, 1.0), LabelledClaim(two, False, 0.0)]
    found = evaluate(rows, certainty, include_uncalibrated=True)
    dog, count = found["object"], found["count"]
    assert (dog["true"], dog["false"]) == (175, 75)
    # .6 of the true and a third of the false ones have x = 1: .6 x 2/3, and half of what is even
    assert dog["auroc"]["value"] == pytest.approx(0.4 + (0.2 + 0.4 * 2 / 3) / 2)
    assert dog["unknown"]["value"] == pytest.approx(150 / 250)  # at 0 it says 1/2; of 50 it has no number
    assert dog["right"]["value"] == 0.75 and dog["right"]["n"] == 100  # at 1 it says 3/4
    assert dog["ece"] == pytest.approx(0)
    assert dog["ece_as_said"] == pytest.approx((0.75 - 1 / (1 + math.exp(-1))) / 2)
    assert [(b["confidence"], b["accuracy"], b["n"]) for b in dog["bins"]] == [(0.5, 0.5, 100), (pytest.approx(0.75), 0.75, 100)]
    assert count["unknown"]["value"] == 1 and count["right"]["value"] is None and "ece" not in count  # not calibrated
    assert count["auroc"]["low"] < 0.5 < count["auroc"]["value"] == 1
    turned = evaluate(rows, PlattScaling({"object": (-math.log(3), 0.0)}), include_uncalibrated=False)["object"]
    assert turned["right"]["value"] == 0.25 and turned["ece"] == pytest.approx(0.25) and "ece_as_said" not in turned


# ---- the command -------------------------------------------------------------------------------------------------------


def write_rows(place, rows):
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place / "rows.jsonl")


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip_dataset(clip, tmp_path_factory):
    """Pictures that show what a random model sees in them: of ten things the five it is surest of, by its rank among all pictures."""
    place = tmp_path_factory.mktemp("seen")
    images = [random_image(n) for n in range(20)]
    wanted = tuple(Claim("object", noun) for noun in NOUNS)
    margins = np.array(
        [[x for x, _ in row] for row in load_clip(str(clip), LEXICON).margins([AnswerClaims((i,), (), wanted) for i in images])]
    )
    rows = []
    for n, (image, row) in enumerate(zip(images, margins > np.median(margins), strict=True)):
        (place / f"{n}.png").write_bytes(image.data)
        facts = [{"kind": "object" if there else "absent", "text": noun} for noun, there in zip(NOUNS, row, strict=True)]
        rows.append({"image": f"{n}.png", "prompt": "?", "answer": f"There is a {', a '.join(NOUNS)} here.", "facts": facts})
    return place, rows


def test_calibrate_clip_end_to_end(clip, seen, tmp_path, capsys):
    place, rows = seen
    out = tmp_path / "new" / "calibration.json"
    line = [
        "calibrate",
        "clip",
        "--clip_model",
        str(clip),
        "--data",
        write_rows(place, rows),
        "--out",
        str(out),
        "--batch_size",
        "7",
    ]
    assert main(line) == 0
    shown = capsys.readouterr().out
    kept = json.loads(out.read_text())
    assert kept["verifier"] == "clip" and kept["fitted_on"]["pictures"] == 16 and kept["measured_on"]["pictures"] == 4
    figures = kept["measured"]["object"]
    assert figures["true"] + figures["false"] == 40 and figures["auroc"]["value"] == 1 and figures["right"]["value"] > 0.9
    assert (
        "1.00 (" in shown and "count: left out of the calibration" in shown and "fitted on 160 claims about 16 pictures" in shown
    )
    assert np.asarray(Image.open(out.with_suffix(".png"))).std() > 10
    verifier = load_clip(str(clip), LEXICON, str(out))
    assert set(verifier.calibration.coefficients) == {"object"} and verifier.calibration.coefficients["object"][0] > 0
    truth = [[fact["kind"] == "object" for fact in row["facts"]] for row in rows]
    wanted = tuple(Claim("object", noun) for noun in NOUNS)
    verdicts = verifier([AnswerClaims((random_image(n),), (), wanted) for n in range(20)])
    given = [(v.value == "supported") == t for found, row in zip(verdicts, truth, strict=True) for v, t in zip(found, row, strict=True)
             if v.value != "unknown"]  # fmt: skip
    assert len(given) > 150 and np.mean(given) > 0.9
    first = out.read_bytes()
    assert main(line) == 0 and out.read_bytes() == first

    kinds = {"object": "absent", "absent": "object"}
    turned = [{**row, "facts": [{**fact, "kind": kinds[fact["kind"]]} for fact in row["facts"]]} for row in rows]
    assert main([*line[:5], write_rows(place, turned), "--out", str(tmp_path / "turned.json")]) == 2
    assert "object (its numbers do not tell true from false claims, AUROC 0.00" in capsys.readouterr().err
    assert not (tmp_path / "turned.json").exists()


def test_calibrate_clip_keeps_distractors_and_template(clip, seen, tmp_path):
    place, rows = seen
    before = {"certainty": {}, "unknown_between": [0.3, 0.7], "nouns": list(NOUNS), "groups": [["red", "blue"]], "template": "{}"}
    (tmp_path / "before.json").write_text(json.dumps(before))
    config = stage.CalibrateClipConfig(
        clip_model=str(clip), clip_calibration=str(tmp_path / "before.json"), dataset_name=write_rows(place, rows),
        output_file=str(tmp_path / "after.json"), min_labels=5,
    )  # fmt: skip
    stage.calibrate(config)
    found = load_clip(str(clip), LEXICON, str(tmp_path / "after.json"))
    assert (
        found.distractor_pool.nouns == NOUNS
        and found.distractor_pool.groups == (frozenset({"red", "blue"}),)
        and found.template == "{}"
    )


def test_calibrate_vlm_output_is_accepted_by_ppo(base, vlm, tmp_path, capsys):
    rows = []
    for index in range(16):
        scene = scenes.generate_scene("selection", index, 0)
        (tmp_path / f"{index}.png").write_bytes(scene.image_source().read())
        shapes = {t.shape for t in scene.objects}
        facts = [{"kind": "object" if s in shapes else "absent", "text": s} for s in scenes.vocabulary.SHAPES]
        rows.append({"image": f"{index}.png", "prompt": "?", "facts": facts})
    words, out = str(Path(scenes.__file__).parent / "lexicon.txt"), tmp_path / "vlm.json"
    line = ["calibrate", "vlm", "--model", base, "--data", write_rows(tmp_path, rows), "--out", str(out), "--lexicon_file", words]
    assert main([*line, "--claim_source", "facts", "--held_out", "0.4"]) == 0
    shown = capsys.readouterr().out
    kept = load_calibration(out)[1]
    figures = kept["measured"]["object"]
    assert figures["true"] == figures["false"] > 5 and figures["auroc"]["value"] > 0.8
    assert figures["ece_as_said"] > 0 and "as said" in shown
    how = {"reward_terms": "coverage@vlm=1", "vlm_calibration": str(out), "lexicon_file": words}
    judge = build_claim_scorer(PPOConfig(model_name_or_path=base, dataset_name="x", output_dir="x", **how), Adapters(vlm))
    thing = scenes.generate_scene("selection", 0, 0).objects[0]
    count = Claim("count", thing.shape, "1")
    ((there, number),) = judge.verifiers["vlm"](
        [AnswerClaims((ImageSource(path=str(tmp_path / "0.png")),), (), (Claim("object", thing.shape), count))]
    )
    assert there.value == "supported" and "not calibrated for claims of kind count" in number.evidence


FACTS = [{"kind": "object", "text": "dog"}, {"kind": "absent", "text": "cat"}]
ROW = {"prompt": "?", "answer": "There is a dog and a cat.", "facts": FACTS}


@pytest.mark.parametrize(
    ("changed", "flags", "told"),
    [
        ({"facts": None}, (), "rows.jsonl has no facts, which say what is true: add `facts` to its rows, or give --facts_file"),
        ({"image": None, "images": []}, (), "rows.jsonl has no pictures"),
        ({"answer": None}, (), "has no answers to read claims out of: give rows with `chosen` and `rejected`, `answer` or"),
        ({"answer": "A lamp."}, (), "its facts judge nothing that its answers claim"),
        ({"facts": FACTS[1:]}, ("--claim_source", "facts"), "its facts judge nothing that its facts claim"),
        ({"answer": "There is a dog."}, (), "too few claims that facts judge (object 4 true and 0 false, pictures kept apart"),
        ({}, ("--min_labels", "5"), "(object 4 true and 4 false, pictures kept apart not counted): 5 true and as many false"),
        ({}, ("--out", "OUT/calibration.txt"), "calibration.txt must end in .json"),
        ({}, ("--out", "OUT"), "is a directory: name a file in it"),
        ({}, ("--lexicon_file", "gone.txt"), "gone.txt does not exist"),
        ({}, ("--held_out", "1"), "--held_out must be a number above 0 and of at most 0.5, not '1'"),
        ({}, ("--data", "gone.jsonl"), "gone.jsonl"),
    ],
)
def test_calibrate_refuses_unusable_data_before_loading_model(changed, flags, told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stage, "load_clip", None)
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
    assert told in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("who", ["clip", "vlm"])
def test_calibrate_refuses_missing_checkpoint(who, seen, tmp_path, capsys):
    flag = {"clip": "--clip_model", "vlm": "--model"}[who]
    assert (
        main(["calibrate", who, flag, str(tmp_path / "gone"), "--data", write_rows(*seen), "--out", str(tmp_path / "c.json")])
        == 2
    )
    assert "gone" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_calibrate_counts_unscored_claims_as_unknown(clip, seen, tmp_path, monkeypatch):
    """A verifier that has none for what stands first in each answer."""
    place, rows = seen
    truth = {row["image"]: [fact["kind"] == "object" for fact in row["facts"]] for row in rows}

    def measure(asked):
        return [[None, *(float(t) for t in truth[Path(s.images[0].path).name][1:])] for s in asked]

    monkeypatch.setattr(stage, "_build_verifier", lambda config, words: (measure, {"verifier": "clip", "model": "none"}))
    config = stage.CalibrateClipConfig(clip_model="-", dataset_name=write_rows(place, rows), output_file=str(tmp_path / "c.json"))
    found = stage.calibrate(config)["measured"]["object"]
    assert found["unknown"]["value"] == pytest.approx(0.1) and found["right"]["n"] == 36 and found["right"]["value"] == 1
    monkeypatch.setattr(stage, "_build_verifier", lambda config, words: (lambda asked: [[None] * len(NOUNS) for _ in asked], {}))
    with pytest.raises(InputError, match=r"nothing can be calibrated: object \(0 true and 0 false claims that it measures"):
        stage.calibrate(config)
