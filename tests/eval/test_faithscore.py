"""FaithScore's labels on two answers of our own in its form, counted by hand."""

import importlib
import json
from pathlib import Path

import pytest

from mmrlhf.claims import load_lexicon
from mmrlhf.records import InputError
from tests.helpers.fake_data import write_jsonl

STUDIES = Path(__file__).parents[2] / "eval" / "studies"
ROWS = [
    {
        "id": "000000000001",
        "answer": "Two dogs sit on a red sofa, which suggests a happy home with a cat.",
        "stage 1": {"Two dogs sit on a red sofa": 1, " which suggests a happy home with a cat.": 0},
        "stage 2": {"There are two dogs.": 1, "There is a sofa.": 1, "The sofa is red.": 0, "Dogs sit on a sofa.": 1},
    },
    {
        "id": "000000000001",
        "answer": "A lamp.",
        "stage 1": {"A lamp.": 1},
        "stage 2": {"There is a bird.": 0, "It is nice.": 1},
    },
]
CONTEXT = {
    "image": "000000000001.jpg",
    "captions": ["Dogs on a blue couch."],
    "instances": [{"category": "dog", "bbox": [0, 0, 1, 1]}] * 2 + [{"category": "couch", "bbox": [0, 0, 1, 1]}],
}


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("faithscore")


@pytest.fixture
def answers(study, tmp_path):
    return study.read_annotations(write_jsonl(tmp_path / "annotation.jsonl", ROWS))


def test_measure_extraction_counts_facts_and_claims(study, answers):
    """The bird is in no answer, "It is nice" holds no claim, and the cat is in a guess."""
    result = study.measure_extraction(answers, load_lexicon())
    assert result["recall"] == {"object": [1, 2], "count": [1, 1], "attribute": [1, 1], "relation": [1, 1], "action": [0, 0]}
    assert result["unread"] == 1 and result["elsewhere"] >= 1
    # dog and sofa are labelled, the lamp is not
    assert result["precision"]["object"] == [2, 3] and result["precision"]["count"] == [1, 1]


@pytest.mark.parametrize("with_absent", [False, True])
def test_measure_verdicts_by_label(study, answers, tmp_path, with_absent):
    context = study.read_context(write_jsonl(tmp_path / "context.jsonl", [CONTEXT]), with_absent)
    verdicts = study.measure_verdicts(answers, context, load_lexicon())
    assert verdicts["count"]["true"] == {"supported": 1, "contradicted": 0, "unknown": 0}
    assert verdicts["attribute"]["false"] == {"supported": 0, "contradicted": 1, "unknown": 0}  # the couch is blue
    assert verdicts["object"]["true"]["supported"] == 1
    assert verdicts["object"]["false"]["contradicted" if with_absent else "unknown"] == 1  # the bird
    text = study.report(study.measure_extraction(answers, load_lexicon()), verdicts)
    assert "| attribute | false | 0 | 1 | 0 |" in text and "1 facts hold no claim" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage 2": {"A dog.": 2}}, "`stage 2` must map texts to 0 or 1"),
        ({"stage 1": []}, "`stage 1` must map"),
        ({"answer": 3}, "answer"),
    ],
)
def test_read_annotations_refuses_rows_in_another_form(study, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        study.read_annotations(write_jsonl(tmp_path / "a.jsonl", [ROWS[0] | fields]))


def test_main_prints_json_last(study, tmp_path, capsys, monkeypatch):
    paths = [write_jsonl(tmp_path / "a.jsonl", ROWS), write_jsonl(tmp_path / "c.jsonl", [CONTEXT])]
    monkeypatch.setattr("sys.argv", ["faithscore.py", str(paths[0]), "--context", str(paths[1])])
    study.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["verdicts"]["count"]["true"]["supported"] == 1
