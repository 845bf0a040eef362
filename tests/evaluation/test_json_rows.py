"""Rows of JSON objects, and texts of answers, in the forms of other programs."""

import pytest

from mmrlhf.evaluation.json_rows import answer_text, rows_of_object

ROWS = [{"id": "1", "caption": "A dog."}, {"id": "2", "caption": "A cat."}]


@pytest.mark.parametrize(
    "value",
    [
        {"id": ["1", "2"], "caption": ["A dog.", "A cat."]},
        {"id": {"0": "1", "1": "2"}, "caption": {"0": "A dog.", "1": "A cat."}},  # pandas' to_json
        {"columns": ["id", "caption"], "index": [0, 1], "data": [["1", "A dog."], ["2", "A cat."]]},
        {"model": "m", "answers": ROWS},
        {"images": [{"width": 1}], "annotations": ROWS},
        {"results": {"mmhal": ROWS}},
        {"config": {"seed": 0}, "generations": ROWS},
        {"imgToEval": {"8": ROWS[0], "9": ROWS[1]}},
        {"1": {"caption": "A dog."}, "2": {"caption": "A cat."}},
        {"overall": {}, "imgToEval": {"1": {"caption": "A dog."}, "2": {"caption": "A cat."}}},
    ],
)
def test_rows_of_object_finds_the_rows(value):
    assert rows_of_object(value, {"id", "image"}, ["id"]) == ROWS


@pytest.mark.parametrize(
    "value",
    [
        {"id": "1", "answers": ["A dog.", "A cat."]},
        {"image": "1.jpg", "data": [{"id": "2"}]},
        {"caption": ["A dog."], "images": [{"path": "1.jpg"}]},
        {"columns": 1, "index": 2, "data": 3},
        {"reply": 3},
        {},
    ],
)
def test_rows_of_object_keeps_a_single_row(value):
    assert rows_of_object(value, {"id", "image", "images"}, ["id"]) == [value]


def test_rows_of_object_reads_a_map_of_texts():
    assert rows_of_object({"1": "Yes", "2": ["No"]}, {"id"}, ["id"]) == [
        {"id": "1", "answer": "Yes"},
        {"id": "2", "answer": ["No"]},
    ]
    assert rows_of_object({"1": "Yes"}, {"image"}, ["image", "id"]) == [{"image": "1", "answer": "Yes"}]


TURNS = [{"role": "user", "content": "A dog?"}, {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}]


@pytest.mark.parametrize(
    "value",
    [
        "Yes",
        ["Yes"],
        TURNS,
        [{"from": "human", "value": "A dog?"}, {"from": "gpt", "value": "Yes"}],
        {"role": "assistant", "content": "Yes"},
        [{"text": "Yes", "logprobs": None}],
        {"status_code": 200, "body": {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes"}}]}},
    ],
)
def test_answer_text_finds_the_text(value):
    assert answer_text(value) == "Yes"


@pytest.mark.parametrize("value", [None, 3, ["Yes", "No"], TURNS[:1] * 2, {"score": 1}, [], {}])
def test_answer_text_leaves_other_values_alone(value):
    assert answer_text(value) == value
