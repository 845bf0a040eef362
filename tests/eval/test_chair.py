"""CHAIR on captions that a reader can count."""

import json

import pytest

from mmrlhf.cli import main
from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.records import InputError
from mmrlhf.text import coco_objects, lemmatize


def evaluate_chair(tmp_path, captions, objects, lineage="portable", **settings):
    """Evaluate captions of images 1, 2, ... (or by id) against the objects in each image."""
    rows = captions.items() if isinstance(captions, dict) else enumerate(captions, 1)
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps({"image_id": i, "caption": c}) for i, c in rows))
    (tmp_path / "there.json").write_text(json.dumps(objects))
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    config = EvalConfig(
        answers=str(tmp_path / "captions.jsonl"), data=str(tmp_path / "there.json"), output_dir=str(out), **settings
    )
    return evaluate("chair", config, {"lineage": lineage})


def metric_value(result, name, mode="official"):
    return result["metrics"][mode][name]["value"]


def test_chair_metrics_match_hand_computation(tmp_path):
    # a dog and an absent cat; two cars: 1 of 2 captions, 1 of 3 mentions, 2 of 4 objects named
    result = evaluate_chair(tmp_path, ["A dog and a cat.", "Two cars"], {"1": ["dog", "person"], "2": ["car", "bus"]})
    for mode in ("official", "robust"):
        assert metric_value(result, "chair_s", mode) == 50 and metric_value(result, "chair_i", mode) == pytest.approx(100 / 3)
        assert metric_value(result, "recall", mode) == 50 and metric_value(result, "length", mode) == 3.5
    rows = [json.loads(line) for line in (tmp_path / "out2" / "scores.jsonl").read_text().splitlines()]
    assert rows[0]["robust"]["false"] == [["cat", "cat"]] and rows[1]["robust"]["hit"] == ["car"]
    assert result["counts"]["missing"] == 0 and result["options"]["lineage"] == "portable"


def test_chair_object_map_accepts_synonyms(tmp_path):
    # bicycle and person are there as bike and man, the dog with a capital; only the cat's caption
    # of three is wrong, 1 of 4 mentions
    objects = {"1": ["bike", "man"], "2": ["Dog"], "3": []}
    result = evaluate_chair(tmp_path, ["A man on a bicycle.", "A puppy.", "A cat."], objects)
    assert (
        metric_value(result, "chair_s") == pytest.approx(100 / 3)
        and metric_value(result, "chair_i") == 25
        and metric_value(result, "recall") == 100
    )
    assert result["metrics"]["official"]["recall"]["low"] < 50  # two of two images with objects
    with pytest.raises(InputError, match="must map image ids to lists of objects"):
        evaluate_chair(tmp_path, ["A dog."], {"1": [18]})


@pytest.mark.parametrize("image", [42, "000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"])
@pytest.mark.parametrize("name", ["COCO_val2014_000000000042.jpg", "000000000042.jpg", "COCO_train2014_000000000042"])
def test_chair_finds_images_of_a_map_by_name_in_rows_by_id(tmp_path, name, image):
    result = evaluate_chair(tmp_path, {image: "A dog and a cat."}, {name: ["dog"], "7": ["cat"]})
    assert (result["n"], metric_value(result, "chair_i", "robust")) == (1, 50)


def test_chair_reports_missing_captions(tmp_path, capsys):
    result = evaluate_chair(tmp_path, ["A dog.", "A cat."], {"1": ["dog"], "2": ["cat"], "3": [], "4": []})
    assert (result["n"], result["examples"], result["counts"]["missing"]) == (2, 4, 0)
    assert "chair: 2 of 4 answered" in capsys.readouterr().out


CAPTIONS = {11: "A dog and a cat.", 12: "Two cups."}  # the cat is not there: 1 of 2 captions, 1 of 3 mentions


@pytest.mark.parametrize(
    "make_rows",
    [
        lambda: [{"image_id": i, "question": "Describe.", "answer": c} for i, c in CAPTIONS.items()],
        lambda: [{"image_id": i, "response": c} for i, c in CAPTIONS.items()],
        lambda: [{"image_id": i, "text": c} for i, c in CAPTIONS.items()],
        lambda: [
            {"question_id": n, "image": f"COCO_val2014_{i:012d}.jpg", "text": c} for n, (i, c) in enumerate(CAPTIONS.items())
        ],
        lambda: [{"image": f"val2014/{i:012d}.jpg", "output": c} for i, c in CAPTIONS.items()],
        lambda: [
            {"doc_id": n, "target": "x", "filtered_resps": [c], "coco_cap_chair_i": {"image_id": i, "caption": c}}
            for n, (i, c) in enumerate(CAPTIONS.items())
        ],
        lambda: {str(i): c for i, c in CAPTIONS.items()},
        lambda: {
            "overall": {},
            "imgToEval": {str(n): {"image_id": i, "caption": c} for n, (i, c) in enumerate(CAPTIONS.items())},
        },
    ],
)
def test_chair_reads_the_usual_names_of_captions(tmp_path, make_rows):
    (tmp_path / "there.json").write_text(json.dumps({"11": ["dog"], "12": ["cup"]}))
    (tmp_path / "a.json").write_text(json.dumps(make_rows()))
    config = EvalConfig(answers=str(tmp_path / "a.json"), data=str(tmp_path / "there.json"), output_dir=str(tmp_path / "out"))
    result = evaluate("chair", config, {"lineage": "portable"})
    assert (
        result["n"] == 2 and metric_value(result, "chair_s") == 50 and metric_value(result, "chair_i") == pytest.approx(100 / 3)
    )


def test_chair_reads_the_fields_that_options_name(tmp_path, capsys):
    (tmp_path / "there.json").write_text(json.dumps({"11": ["dog"], "12": ["cup"]}))
    rows = [{"pic": f"{i}.jpg", "caption": "A truck.", "mine": c} for i, c in CAPTIONS.items()]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        "eval",
        "chair",
        "--answers",
        str(tmp_path / "a.jsonl"),
        "--data",
        str(tmp_path / "there.json"),
        "--lineage",
        "portable",
    ]
    command += ["--out", str(tmp_path / "out"), "--image_id_key", "pic", "--caption_key"]
    assert main([*command, "mine"]) == 0
    assert metric_value(json.loads((tmp_path / "out" / "result.json").read_text()), "chair_s") == 50
    assert main([*command, "yours"]) == 2
    assert (
        "a.jsonl row 1: --caption_key names `yours`, which the row does not have (it has pic, caption, mine)"
        in capsys.readouterr().err
    )


def test_chair_says_that_captions_of_one_image_all_count(tmp_path, capsys):
    result = evaluate_chair(tmp_path, {1: "A dog.", "1.jpg": "A cat.", 9: "A cat."}, {"1": ["dog"]})
    assert metric_value(result, "chair_s", "robust") == 50
    error = capsys.readouterr().err
    assert (
        "1 answers are to a question that an earlier row answers; all of its answers count" in error
        and "1 answers have ids that --data lacks" in error
    )


def test_chair_unknown_image_is_empty_in_official_and_skipped_in_robust(tmp_path):
    result = evaluate_chair(
        tmp_path, {1: "a dog", "COCO_val2014_000000000002.jpg": "a dog", 9: "a dog"}, {"1": ["dog"], "2": ["dog"]}
    )
    assert metric_value(result, "chair_s") == pytest.approx(100 / 3) and metric_value(result, "chair_s", "robust") == 0
    assert result["counts"]["unknown_ids"] == 1 and result["n"] == 2


def test_chair_official_is_null_where_script_fails(tmp_path):
    result = evaluate_chair(tmp_path, ["nothing here"], {"1": ["dog"]})
    assert result["metrics"]["official"]["chair_s"] is None and "ZeroDivisionError" in result["reasons"]["official"]["chair_s"]
    assert metric_value(result, "chair_s", "robust") == 0 and metric_value(result, "recall", "robust") == 0
    result = evaluate_chair(tmp_path, ["a dog", None], {"1": ["dog"], "2": []})
    assert "null" in result["reasons"]["official"]["recall"] and metric_value(result, "recall", "robust") == 100


def test_chair_reads_coco_annotations_and_captions(tmp_path):
    (tmp_path / "coco").mkdir()
    image = {"images": [{"id": 7, "file_name": "x.jpg"}]}
    instances = image | {"categories": [{"id": 3, "name": "hair drier"}], "annotations": [{"image_id": 7, "category_id": 3}]}
    (tmp_path / "coco" / "instances_val2014.json").write_text(json.dumps(instances))
    with pytest.raises(InputError, match=r"has no captions_\*\.json"):
        evaluate(
            "chair", EvalConfig(answers="x", data=str(tmp_path / "coco"), output_dir=str(tmp_path / "o")), {"lineage": "portable"}
        )
    captions = image | {"annotations": [{"image_id": 7, "caption": "Women and their puppies."}]}
    (tmp_path / "coco" / "captions_val2014.json").write_text(json.dumps(captions))
    (tmp_path / "a.json").write_text(json.dumps([{"image_id": 7, "caption": "A hairdryer, a man, a dog, a cat"}]))
    config = EvalConfig(answers=str(tmp_path / "a.json"), data=str(tmp_path / "coco"), output_dir=str(tmp_path / "out"))
    result = evaluate("chair", config, {"lineage": "portable"})
    assert metric_value(result, "chair_i") == 25 and metric_value(result, "recall") == 100
    instances["annotations"][0]["category_id"] = 4
    (tmp_path / "coco" / "instances_val2014.json").write_text(json.dumps(instances))
    with pytest.raises(InputError, match=r"instances_val2014\.json: not an annotation file of COCO's \(4 is"):
        evaluate("chair", config, {"lineage": "portable"})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Two men, three buses, a bus and some knives", ["person", "bus", "bus", "knife"]),
        ("A stove top oven by the motor bike; cheesecakes.", ["oven", "motorcycle", "cake"]),
        ("A baby bird on a train track, a passenger train", ["bird", "train"]),
        ("no cats, without any dog, not a bear, but a mouse", ["mouse"]),
        ("The toilet seat is up. The seat of the toilet", ["toilet", "toilet"]),
        ("Wine glasses and a bow tie; TVs, an iPhone; skis", ["wine glass", "tie", "tv", "cell phone", "skis"]),
        ("A hot-dog. hot. dog", ["hot dog", "dog"]),
        ("Tennis rackets, cookies, canoes, calves, policewomen", ["tennis racket", "boat", "cow"]),
        ("", []),
    ],
)
def test_find_objects_matches_hand_labels(text, names):
    assert [node for _, node in coco_objects.find_objects(text)] == names


@pytest.mark.parametrize(
    ("many", "one"),
    [
        ("buses", "bus"), ("bus", "bu"), ("ties", "ty"), ("canoes", "cano"), ("cookies", "cookies"), ("collies", "collies"), ("men", "man"),
        ("tennis", "tenni"), ("glasses", "glass"), ("mice", "mouse"), ("knives", "knife"), ("wolves", "wolf"), ("dogs'", "dog's"), ("''", "'s's"),
        ("s", "s"), ("mothers-in-law", "mother-in-law"), ("bases", "basis"), ("lavatorys", "lavatory"), ("people", "person"), ("oxen", "ox"),
    ],
)  # fmt: skip
def test_pattern_singularize_matches_official_script(many, one):
    assert lemmatize.pattern_singularize(many) == one


def test_chair_mentions_match_official_scripts():
    assert coco_objects.chair_mentions(["a", "baby", "dog", "on", "a", "dining", "table"]) == (
        [("dog", "dog"), ("table", "dining table")],
        6,
    )
    assert coco_objects.chair_mentions(["motor", "bike", "cheesecake", "home", "plate"]) == ([], 3)
    assert coco_objects.chair_mentions(["the", "seat", "of", "the", "toilet"]) == ([("toilet", "toilet")], 5)
    assert coco_objects.chair_mentions(["wine", "glas"]) == ([("wine glass", "wine glass")], 1)


def test_lemmas_without_nltk_data_names_the_download_command(tmp_path, monkeypatch):
    import nltk

    lemmatize._nltk.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    try:
        with pytest.raises(
            InputError, match=r"lacks punkt_tab, averaged_perceptron_tagger_eng, wordnet: run `python -m nltk\.downloader"
        ):
            lemmatize.lemmas("dogs")
    finally:
        lemmatize._nltk.cache_clear()


def test_chair_portable_imports_neither_torch_nor_nltk(tmp_path):
    import subprocess
    import sys

    (tmp_path / "there.json").write_text('{"1": ["dog"]}')
    (tmp_path / "a.jsonl").write_text('{"image_id": 1, "caption": "a dog"}')
    line = [
        "eval",
        "chair",
        "--lineage",
        "portable",
        "--answers",
        str(tmp_path / "a.jsonl"),
        "--data",
        str(tmp_path / "there.json"),
    ]
    code = f"import sys\nfrom mmrlhf.cli import main\nassert main({[*line, '--out', str(tmp_path / 'o')]!r}) == 0\n"
    code += "assert not {'torch', 'nltk', 'transformers', 'PIL'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_chair_refuses_unknown_lineage(tmp_path, capsys):
    paths = ["--answers", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    assert main(["eval", "chair", "--lineage", "c", *paths]) == 2
    assert "--lineage must be a or b or portable, not 'c'" in capsys.readouterr().err
    (tmp_path / "there.json").write_text("[1]")
    paths = ["--answers", str(tmp_path), "--data", str(tmp_path / "there.json"), "--out", str(tmp_path / "o")]
    assert main(["eval", "chair", *paths]) == 2
    assert "must map image ids to lists of objects" in capsys.readouterr().err


def test_chair_takes_ids_of_any_length(tmp_path):
    """Python refuses to convert thousands of digits to a number."""
    image_id = "9" * 4400
    (tmp_path / "objects.json").write_text(json.dumps({image_id: ["dog"]}))
    (tmp_path / "answers.jsonl").write_text(json.dumps({"image_id": image_id, "caption": "A dog and a cat."}) + "\n")
    arguments = ["--answers", str(tmp_path / "answers.jsonl"), "--data", str(tmp_path / "objects.json"), "--lineage", "portable"]
    assert main(["eval", "chair", *arguments, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["robust"]["chair_i"]["value"] == 50  # the cat
