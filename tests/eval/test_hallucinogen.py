"""HALLUCINOGEN on rows of our own in the release's form: what counts as a no, and the figures."""

import json

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.records import InputError
from tests.helpers import fake_data
from tests.helpers.fake_server import chat_completion, scripted_server


def run(tmp_path, rows, options=None, data="", **settings):
    """Score rows of answers to the fake release."""
    (tmp_path / "data").mkdir(exist_ok=True)
    fake_data.hallucinogen(tmp_path / "data")
    answers = fake_data.write_jsonl(tmp_path / "answers.jsonl", rows)
    config = EvalConfig(answers=str(answers), data=str(tmp_path / "data" / data), output_dir=str(tmp_path / "out"), **settings)
    return evaluate("hallucinogen", config, options)


def value(result, name):
    metric = result["metrics"]["robust"]
    *parts, last = name.rsplit("/", 1)
    return (metric[parts[0]] if parts else metric)[last]["value"]


def test_hallucinogen_metrics_match_hand_computation(tmp_path):
    """The cat is absent and the star is there; one query is asked about each."""
    rows = [
        {"id": "id/adversarial/1/1", "answer": "Yes, it can."},  # wrong, hallucinated
        {"id": "id/random/1/1", "answer": "Yes"},
        {"id": "loc/adversarial/1/1", "answer": "There is no cat in the image."},
        {"id": "loc/random/1/1", "answer": "There is no star."},  # wrong
    ]
    result = run(tmp_path, rows, {"queries": 1}, judge="rules")
    assert (value(result, "accuracy"), value(result, "hallucinated")) == (50, 50)
    assert (value(result, "id/accuracy"), value(result, "id/hallucinated")) == (50, 100)
    low = 100 / (1 + 3.8415)  # Wilson: n / (n + z²) for one image
    assert result["metrics"]["robust"]["id"]["hallucinated"]["low"] == pytest.approx(low, abs=1e-2)
    assert (value(result, "loc/adversarial/accuracy"), value(result, "loc/random/accuracy")) == (100, 0)
    assert result["metrics"]["robust"]["loc/random"]["hallucinated"] is None  # no object of theirs is absent
    assert result["counts"]["missing"] == 0 and result["metrics"]["official"] == {}


def test_hallucinogen_asks_a_judge_about_implicit_answers_alone(tmp_path):
    rows = [{"id": f"{kind}/adversarial/1/1", "answer": "It sits on the left."} for kind in ("id", "loc")]
    with scripted_server((200, chat_completion("**Yes.**"), {})) as server:
        result = run(tmp_path, rows, {"queries": 1}, judge=server.url)
    (request,) = server.requests
    prompt = request["messages"][0]["content"]
    assert "1: Where is the cat?" in str(prompt) and "It sits on the left." in str(prompt) and "there is a cat" in str(prompt)
    assert value(result, "loc/hallucinated") == 100
    assert result["counts"]["unparsed"] == 1  # the answer to id says neither yes nor no


def test_hallucinogen_without_a_judge_has_no_figure_of_implicit_answers(tmp_path, capsys):
    result = run(tmp_path, [{"id": "loc/adversarial/1/1", "answer": "Here."}], {"task": "loc", "queries": 1})
    assert result["metrics"]["robust"]["accuracy"] is None and "1 answers have no judgment" in capsys.readouterr().err


def test_hallucinogen_joins_rows_by_query_and_image(tmp_path, capsys):
    rows = [
        {"question_id": 77, "image": "0.png", "query": "2: Where is the cat?", "response": "There is no cat."},
        {"question_id": 78, "image": "0.png", "query": "3: Where is the cat?", "response": "On the left."},
    ]
    result = run(tmp_path, rows, {"task": "loc"}, judge="rules")
    assert result["n"] == 2 and value(result, "loc/adversarial/accuracy") == 50
    assert "joined by their question" in capsys.readouterr().err


def test_hallucinogen_reads_what_the_authors_scripts_write(tmp_path, capsys):
    cat = fake_data.hallucinogen_rows("loc") | {"output_1": "There is no cat.", "output_2": "On the left."}
    cat["query_2"] += " Provide a concise answer"
    other = fake_data.hallucinogen_rows("loc", noun="dog") | {"output_1": "Here."}
    result = run(tmp_path, [cat, other], {"queries": 2}, data="loc/loc_POPE_adv.json", judge="rules")
    assert result["n"] == 2 and value(result, "accuracy") == 50 and result["counts"]["unknown_ids"] == 1
    assert "1 answers of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Where is it?"}, "`text` must ask"),
        ({"label": "maybe"}, "`label` be yes or no"),
        ({"query_3": None}, "query_3"),
    ],
)
def test_hallucinogen_refuses_bad_rows(tmp_path, row, message):
    path = tmp_path / "loc_POPE_adv.json"
    fields = {name: field for name, field in (fake_data.hallucinogen_rows("loc") | row).items() if field is not None}
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=message):
        evaluate("hallucinogen", EvalConfig(answers=str(path), data=str(path), output_dir=str(tmp_path / "out")))


def test_hallucinogen_needs_the_names_of_the_release(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    for data in (tmp_path, tmp_path / "mine.json"):
        with pytest.raises(InputError, match="give the release's folder `data`"):
            evaluate("hallucinogen", EvalConfig(answers="x", data=str(data), output_dir=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("answer", "name", "expected"),
    [
        ("There is no car in the image.", "car", True),
        ("The car is parked on the left.", "car", False),
        ("There would be no car in the scene.", "car", False),
        ("If the car were invisible, the street would be empty.", "car", False),
        ("No, there is no dining table.", "dining table", True),
        ("The image does not show a car.", "car", True),
        ("I cannot see any car in the image.", "car", True),
        ("The car is not near the tree; it is on the road.", "car", False),
        ("There are no cars in this image.", "car", True),
        ("The image contains no visible car.", "car", True),
        ("The question mentions a car, but a car is not present in the image.", "car", True),
        ("There isn't a car here.", "car", True),
        ("The car does not appear in the image.", "car", True),
        ("The scene would not change since there is no car in the picture.", "car", True),
        ("No car is visible.", "car", True),
        ("The car has no driver.", "car", False),
        ("There is no person next to the car.", "car", False),
        ("A backpack is absent from the image.", "backpack", True),
        ("The snowboard is missing.", "snowboard", True),
        ("The car isn't visible in the image.", "car", True),
        ("There are no people or cars.", "car", True),
        ("There is no person in the car.", "car", False),
        ("There are no people near the dining table", "dining table", False),
        ("I do not see a red car.", "car", True),
        ("I do not see the driver of the car.", "car", False),
        ("The car is parked near a house. No one is inside it.", "car", False),
        ("No people sit in the car.", "car", False),
        ("No sign of a car.", "car", True),
        ("No cars or trucks.", "car", True),
        ("No people are in the image.", "person", True),
        ("No one is visible.", "person", True),
        ("No knives are visible.", "knife", True),
        ("No visible signs of a dog.", "dog", True),
        ("No such object is present.", "dog", True),
        ("No its not there.", "dog", True),
        ("No", "car", True),
        ("The scene would be incomplete without the car, as there is nothing else.", "car", False),
    ],
)
def test_denies_reads_denials_of_the_object_alone(answer, name, expected):
    assert load_benchmark("hallucinogen").module.denies(answer, name) == expected
