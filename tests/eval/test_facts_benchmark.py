"""The benchmark of a user's own images and facts, by hand."""

import json

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import Task, data_hashes, load_benchmark, parse_options
from mmrlhf.records import InputError

ROWS = [
    {"id": "a", "image": "a.png", "prompt": "What is it?", "facts": [
        {"kind": "object", "text": "red cup"}, {"kind": "object", "text": "man"}, {"kind": "absent", "text": "dog"}]},
    {"id": "b", "image": "b.png", "prompt": "What is it?", "facts": [{"kind": "count", "text": "two cats"}, {"kind": "object", "text": "cat"}]},
    {"id": "c", "image": "c.png", "prompt": "What is it?"},
]  # fmt: skip
ANSWERS = {"a": "There is a red cup, a dog and a tree.", "b": "There are two cats. There may be a dog."}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    for row in ROWS:
        (tmp_path / row["image"]).write_bytes(b"not read")
    return write_lines(tmp_path / "rows.jsonl", ROWS)


def intervals(tmp_path, data, answers, **options):
    path = write_lines(tmp_path / "answers.jsonl", [{"id": id_, "answer": text} for id_, text in answers.items()])
    result = evaluate("facts", EvalConfig(answers=path, data=data, output_dir=str(tmp_path / "out")), options)
    return result["metrics"]["official"]


def run(tmp_path, data, answers, **options):
    return {name: metric and metric["value"] for name, metric in intervals(tmp_path, data, answers, **options).items()}


def test_claims_are_counted_by_the_verdict_of_the_facts(tmp_path, data):
    metrics = run(tmp_path, data, ANSWERS)
    # a: cup and red are true, the dog is false, the tree unknown; b: cat and two are true, and the
    # hedged dog does not count. The row without facts is left out.
    assert metrics["chair_s"] == 1 / 2 and metrics["chair_i"] == pytest.approx(1 / 5)
    assert metrics["unknown_rate"] == pytest.approx(1 / 6) and metrics["claims"] == 3
    assert metrics["recall"] == pytest.approx(2 / 3)  # cup and cat of cup, man and cat
    assert metrics["claim_f1"] == pytest.approx(2 * 0.8 * (2 / 3) / (0.8 + 2 / 3))
    assert metrics["false_object"] == 1 / 2 and metrics["false_count"] == 0


def test_more_special_names_count_as_naming_and_denials_do_not(tmp_path, data):
    metrics = run(tmp_path, data, {"a": "There is a man. There is no dog.", "b": "There is no cat."})
    assert metrics["recall"] == pytest.approx(1 / 3) and metrics["chair_i"] == pytest.approx(1 / 2)  # the cats are denied


def test_length_is_in_words_and_in_characters_of_chinese(tmp_path, data):
    metrics = run(tmp_path, data, {"a": "杯子是红色的。", "b": "There are two cats."})
    assert metrics["mean_length"] == (6 + 4) / 2


def test_an_object_that_may_be_there_is_not_named(tmp_path, data):
    metrics = run(tmp_path, data, {"a": "There may be a cup.", "b": "A cat."})
    assert metrics["recall"] == pytest.approx(1 / 3) and metrics["chair_s"] == 0


def test_shares_of_0_and_1_have_intervals_with_a_width(tmp_path, data):
    metrics = intervals(tmp_path, data, {"a": "A red cup and a man.", "b": "There are two cats."})
    bound = 3.8415 / (2 + 3.8415)  # Wilson: z² / (n + z²) for 0 of n = 2 images
    for name in ("chair_s", "chair_i", "unknown_rate"):
        assert metrics[name] == {"value": 0, "low": 0, "high": pytest.approx(bound, abs=1e-4)}
    assert metrics["recall"] == {"value": 1, "low": pytest.approx(1 - bound, abs=1e-4), "high": 1}


def test_answers_that_are_wrong_throughout_score_0(tmp_path, data):
    metrics = run(tmp_path, data, {"a": "A dog."})
    assert (metrics["chair_i"], metrics["recall"], metrics["claim_f1"]) == (1, 0, 0)


def test_what_facts_do_not_decide_has_a_reason(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not read")
    rows = [
        {"id": "a", "image": "a.png", "prompt": question, "facts": [{"kind": "absent", "text": "dog"}]}
        for question in ("What?", "Who?")
    ]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    metrics = run(tmp_path, data, {"a": "A dog.", "a-2": "A tree."})  # two questions about a row of one id
    assert metrics["chair_s"] == 1 / 2 and metrics["recall"] is None
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "no fact lists an object" in json.dumps(result)


def test_rows_of_one_id_get_numbers_that_are_free(tmp_path, data):
    rows = write_lines(tmp_path / "rows.jsonl", [ROWS[0] | {"id": id_} for id_ in ("a", "a-2", "a", "a", "b")])
    for limit, ids in ((None, ["a", "a-2", "a-3", "a-4", "b"]), (3, ["a", "a-2", "a-3"])):
        benchmark = load_benchmark("facts")
        assert [example.id for example in benchmark.load(Task(rows, limit=limit, options=parse_options(benchmark, {})))] == ids


def test_facts_may_come_from_a_file(tmp_path, data):
    facts = write_lines(tmp_path / "facts.jsonl", [{"id": "c", "facts": [{"kind": "absent", "text": "cup"}]}])
    assert run(tmp_path, data, {"c": "A cup."}, facts_file=facts)["chair_s"] == 1


def test_files_of_one_name_are_both_hashed(tmp_path, data):
    (tmp_path / "facts").mkdir()
    facts = write_lines(tmp_path / "facts" / "rows.jsonl", [{"id": "c", "facts": [{"kind": "absent", "text": "cup"}]}])
    benchmark = load_benchmark("facts")
    hashes = data_hashes(benchmark, Task(data, options=parse_options(benchmark, {"facts_file": facts})))
    assert list(hashes) == [data, facts] and len(set(hashes.values())) == 2


def test_rows_without_facts_are_refused(tmp_path):
    (tmp_path / "c.png").write_bytes(b"not read")
    data = write_lines(tmp_path / "rows.jsonl", ROWS[2:])
    with pytest.raises(InputError, match=r"rows.jsonl has no row with facts: add `facts` to its rows, or give --facts_file"):
        run(tmp_path, data, {"c": "A cup."})
