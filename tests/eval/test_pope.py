"""POPE on questions that a reader can count: three images, two questions each."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmrlhf.cli import main
from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate, evaluate_all
from mmrlhf.files.bundled import folder
from mmrlhf.records import InputError
from tests.helpers.pope_files import write_answers, write_questions
from tests.helpers.results import metric_value


def evaluate_pope(tmp_path, texts, ids=None, options=None, **settings):
    answers = write_answers(tmp_path / "answers.jsonl", texts, ids)
    data = write_questions(tmp_path / "coco_pope_random.json")
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    return evaluate("pope", EvalConfig(answers=str(answers), data=str(data), output_dir=str(out), **settings), options)


def test_pope_metrics_match_hand_computation(tmp_path):
    # yes no yes yes no no against yes no yes no yes no: TP 2, FP 1, TN 2, FN 1
    result = evaluate_pope(tmp_path, ["Yes", "No", "yes, it is", "Yes.", "There is no dog", "No"])
    for mode in ("official", "robust"):
        assert metric_value(result, "accuracy", mode) == 4 / 6 and metric_value(result, "yes_ratio", mode) == 3 / 6
        assert metric_value(result, "precision", mode) == metric_value(result, "recall", mode) == 2 / 3
        assert metric_value(result, "f1", mode) == pytest.approx(2 / 3)
        assert 0 <= result["metrics"][mode]["f1"]["low"] <= 2 / 3 <= result["metrics"][mode]["f1"]["high"] <= 1
    assert result["n"] == 6 and result["yes_ratio"] == 0.5 and result["headline"] == "f1" and len(result["data_sha256"]) == 64


def test_pope_official_pairs_by_line_and_robust_by_id(tmp_path):
    texts = ["No", "Yes", "Yes", "No", "Yes", "No"]
    result = evaluate_pope(tmp_path, texts, ids=[2, 1, 3, 4, 5, 6])
    assert metric_value(result, "accuracy") == 4 / 6 and metric_value(result, "accuracy", "robust") == 1
    # a repeated and an unknown id move all that follow by two lines
    result = evaluate_pope(tmp_path, ["Yes", "Yes", "Yes", "No", "Yes", "No"], ids=[1, 1, 77, 2, 3, 4])
    assert result["counts"] == {"missing": 2, "unknown_ids": 1, "duplicate": 1, "null": 0, "unparsed": 0, "judge_errors": 0}
    assert metric_value(result, "accuracy") == 5 / 6 and metric_value(result, "accuracy", "robust") == 1 and result["n"] == 4


def test_pope_official_yes_ratio_counts_all_answers(tmp_path):
    right = ["Yes", "No"] * 3
    # a repeated first answer moves all by a line: yes yes no yes no yes|no, TP 1+0+0, FP 3-1, ...;
    # 4 labels of 6 are missed
    result = evaluate_pope(tmp_path, ["Yes", *right], ids=[1, 1, 2, 3, 4, 5, 6])
    assert (
        metric_value(result, "accuracy") == 1 / 6
        and metric_value(result, "yes_ratio") == 4 / 7
        and metric_value(result, "yes_ratio", "robust") == 0.5
    )
    # answers after the last label count in no other metric
    result = evaluate_pope(tmp_path, [*right, "Yes", "Yes"], ids=[*range(1, 7), 98, 99])
    assert (
        metric_value(result, "accuracy") == 1
        and metric_value(result, "yes_ratio") == 5 / 8
        and "other_line" not in result["metrics"]["official"]
    )
    low, high = (result["metrics"]["official"]["yes_ratio"][k] for k in ("low", "high"))
    assert low < 5 / 8 < high


def test_pope_notes_answers_on_another_questions_line(tmp_path, capsys):
    result = evaluate_pope(tmp_path, ["No", "Yes", "Yes", "No", "Yes", "No"], ids=[2, 1, 3, 4, 5, 6])
    alignment = result["metrics"]["official"]["other_line"]
    note = "official pairs by line; 2 of 6 answers are on another question's line"
    assert alignment["value"] == 2 / 6 and alignment["note"] == note and note in capsys.readouterr().err
    evaluate_pope(tmp_path, ["Yes", "No"] * 2)
    assert "by line" not in capsys.readouterr().err  # a file may end early


def write_answers_with_questions(path: Path, rows) -> Path:
    """Write rows of (id, question, answer) as JSON lines."""
    path.write_text("\n".join(json.dumps({"question_id": i, "question": q, "answer": t}) for i, q, t in rows))
    return path


QUESTIONS = [f"Is there a {('dog', 'cat')[i % 2]} in the image?" for i in range(6)]


def evaluate_file(tmp_path, answers, data=None):
    data = data or write_questions(tmp_path / "coco_pope_random.json")
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    return evaluate("pope", EvalConfig(answers=str(answers), data=str(data), output_dir=str(out)))


def test_pope_drops_answers_to_other_questions(tmp_path, capsys):
    rows = [(i + 1, q, "Yes" if i % 2 == 0 else "No") for i, q in enumerate(QUESTIONS)]
    rows[3] = (4, "Is there a bus in the image?", "Yes")
    result = evaluate_file(tmp_path, write_answers_with_questions(tmp_path / "a.jsonl", rows))
    assert result["n"] == 5 and result["counts"]["unknown_ids"] == result["counts"]["missing"] == 1
    assert (
        metric_value(result, "accuracy", "robust") == 1 and metric_value(result, "accuracy") == 5 / 6
    )  # the script does not read questions
    assert "note: 1 answers are to questions that --data does not have: is it another version?" in capsys.readouterr().err
    # spelling and instructions make no other question
    framed = "<image>\nIS there an {} in the imange?\nAnswer briefly."
    rows = [(i + 1, framed.format(("dog", "cat")[i % 2]), "Yes") for i in range(6)]
    assert evaluate_file(tmp_path, write_answers_with_questions(tmp_path / "a.jsonl", rows))["n"] == 6
    # two of three questions are others: none of these answers is to this file
    rows = [(i + 1, QUESTIONS[0], "Yes") if i < 2 else (i + 1, "Is there a bus in the image?", "Yes") for i in range(6)]
    result = evaluate_file(tmp_path, write_answers_with_questions(tmp_path / "a.jsonl", rows))
    assert result["n"] == 0 and "6 answers are to questions that --data does not have" in capsys.readouterr().err


def test_pope_selects_split_from_log_of_all_splits(tmp_path):
    data = write_questions(tmp_path / "coco_pope_adversarial.json")
    rows = [
        {"question_id": i % 6 + 1, "question": QUESTIONS[i % 6], "category": ("random", "popular", "adversarial")[i // 6],
         "answer": ("Yes", "No")[i % 2] if i >= 12 else "No"} for i in range(18)
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = evaluate_file(tmp_path, tmp_path / "a.jsonl", data)
    assert (
        metric_value(result, "accuracy") == metric_value(result, "accuracy", "robust") == 1
        and metric_value(result, "yes_ratio") == 0.5
    )
    assert result["counts"]["unknown_ids"] == 12 and result["counts"]["duplicate"] == 0
    # as a table without ids, with images and without
    for columns in (["image_path", "question", "category", "prediction"], ["question", "category", "prediction"]):
        lines = ["\t".join(columns)]
        for i, row in enumerate(rows):
            cells = {**row, "image_path": f"{i % 6 // 2}.jpg", "prediction": row["answer"]}
            lines.append("\t".join(str(cells[c]) for c in columns))
        (tmp_path / "a.tsv").write_text("\n".join(lines))
        result = evaluate_file(tmp_path, tmp_path / "a.tsv", data)
        assert (
            metric_value(result, "accuracy") == metric_value(result, "accuracy", "robust") == 1
            and result["counts"]["unknown_ids"] == 12
        )


def test_pope_reads_all_splits_from_one_file_in_any_order(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split, thing in (("random", "cat"), ("popular", "bus"), ("adversarial", "car")):
        write_questions(data / f"coco_pope_{split}.json", f"dog {thing}")
    # adversarial is right, popular says yes to all, random is wrong: 1, 1/2, 0
    answers_by_object = [("car", ["Yes", "No"]), ("bus", ["Yes", "Yes"]), ("cat", ["No", "Yes"])]
    questions_and_answers = [
        (f"Is there a {('dog', thing)[i % 2]} in the image?", says[i % 2]) for thing, says in answers_by_object for i in range(6)
    ]
    for ids in (lambda n: n % 6 + 1, lambda n: n):  # restarting, and unique over the whole file
        path = write_answers_with_questions(
            tmp_path / "a.jsonl", [(ids(n), q, t) for n, (q, t) in enumerate(questions_and_answers)]
        )
        result = evaluate_file(tmp_path, path, data)
        robust = result["metrics"]["robust"]
        assert [robust[s]["accuracy"]["value"] for s in ("adversarial", "popular", "random")] == [1, 0.5, 0], ids(7)
        assert result["counts"]["unknown_ids"] == result["counts"]["duplicate"] == 0 and result["n"] == 18
        assert result["metrics"]["official"]["adversarial"]["accuracy"]["value"] == 1
    # a repeated answer moves no other to another split
    twice = [(n % 6 + 1, q, t) for n, (q, t) in enumerate(questions_and_answers)]
    result = evaluate_file(tmp_path, write_answers_with_questions(tmp_path / "a.jsonl", [*twice[:6], twice[5], *twice[6:]]), data)
    assert result["counts"]["duplicate"] == 1 and result["metrics"]["robust"]["popular"]["accuracy"]["value"] == 0.5
    # questions of no split are unknown
    none = [(n, "Is there a bear in the image?", "Yes") for n in range(1, 7)]
    result = evaluate_file(tmp_path, write_answers_with_questions(tmp_path / "a.jsonl", none), data)
    assert result["n"] == 0 and result["counts"]["unknown_ids"] == 6


def test_pope_questions_a_model_left_out_are_null(tmp_path, monkeypatch):
    data = write_questions(tmp_path / "coco_pope_random.json")
    for name in "012":
        (tmp_path / f"{name}.jpg").write_bytes(b"x")

    @contextmanager
    def flaky(benchmark, task, missing, *rest):
        yield ((e, ["Yes" if e.meta["label"] == "yes" else "No"]) for e in missing if e.id != "1"), {}

    monkeypatch.setattr("mmrlhf.evaluation.predict.open_predictions", flaky)
    config = EvalConfig(model_name_or_path="http://127.0.0.1:9/v1", data=str(data), output_dir=str(tmp_path / "out"))
    result = evaluate("pope", config)
    assert result["counts"]["null"] == result["counts"]["missing"] == 1 and metric_value(result, "accuracy", "robust") == 1
    assert result["metrics"]["official"]["accuracy"] is None and "AttributeError" in result["reasons"]["official"]["accuracy"]


def test_pope_unparsed_answer_is_neither_yes_nor_no(tmp_path):
    result = evaluate_pope(tmp_path, ["maybe", "", "Yes", "No", "Yes", "No"])
    assert result["counts"]["unparsed"] == 2
    assert metric_value(result, "accuracy", "robust") == 4 / 6 and metric_value(result, "recall", "robust") == 2 / 3
    assert metric_value(result, "precision", "robust") == 1 and metric_value(result, "yes_ratio", "robust") == 2 / 4
    assert metric_value(result, "yes_ratio") == 4 / 6  # the script reads both as yes


def test_pope_official_is_null_where_script_fails(tmp_path):
    result = evaluate_pope(tmp_path, ["No"] * 6)
    assert set(result["metrics"]["official"].values()) == {None}
    assert "ZeroDivisionError at precision" in result["reasons"]["official"]["accuracy"]
    assert metric_value(result, "accuracy", "robust") == 0.5 and metric_value(result, "f1", "robust") == 0
    result = evaluate_pope(tmp_path, ["No", "Yes"] * 3)
    assert "f1 (no true positive)" in result["reasons"]["official"]["f1"]
    result = evaluate_pope(tmp_path, ["Yes", None, "Yes", "No", "Yes", "No"])
    assert (
        "AttributeError" in result["reasons"]["official"]["f1"] and result["counts"]["null"] == result["counts"]["missing"] == 1
    )
    assert metric_value(result, "accuracy", "robust") == 1


def test_pope_repope_rule_matches_hand_computation(tmp_path):
    result = evaluate_pope(tmp_path, ["I know not", "who?", "eyes", "No", "Yes", "none"], options={"rule": "repope"})
    # no, dropped, yes (in eyes), no, yes, no against yes no yes no yes no
    assert metric_value(result, "accuracy") == 4 / 5 and metric_value(result, "recall") == 2 / 3


def test_pope_folder_gives_three_splits_and_their_mean(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_questions(data / "coco_pope_random.json")
    write_questions(data / "coco_pope_popular.json", "dog bus")
    write_questions(data / "coco_pope_adversarial.json", "dog car")
    right = ["Yes", "No"] * 3
    (tmp_path / "answers").mkdir()
    write_answers(tmp_path / "answers" / "popular.jsonl", right)
    write_answers(tmp_path / "answers" / "answers_random.jsonl", ["Yes"] * 6)
    config = EvalConfig(answers=str(tmp_path / "answers"), data=str(data), output_dir=str(tmp_path / "out"))
    result = evaluate("pope", config)
    official = result["metrics"]["official"]
    assert official["popular"]["f1"]["value"] == 1 and official["random"]["f1"]["value"] == pytest.approx(2 / 3)
    assert official["adversarial"]["f1"] is None and official["mean"]["f1"] is None
    assert "no answers to this split" in result["reasons"]["official"]["adversarial"]["f1"] and result["counts"]["missing"] == 0
    # a file that does not name its split is of the one whose questions it asks
    questions = [f"Is there a {('dog', 'car')[i % 2]} in the image?" for i in range(6)]
    lines = [json.dumps({"question_id": i + 1, "question": questions[i], "answer": t}) for i, t in enumerate(right)]
    (tmp_path / "alone.jsonl").write_text("\n".join(lines))
    alone = evaluate(
        "pope", EvalConfig(answers=str(tmp_path / "alone.jsonl"), data=str(data), output_dir=str(tmp_path / "alone"))
    )
    assert (
        alone["metrics"]["official"]["adversarial"]["f1"]["value"] == 1 and alone["metrics"]["official"]["random"]["f1"] is None
    )
    # three splits one after another in one file
    (tmp_path / "alone.jsonl").write_text(
        "\n".join(line.replace("car", thing) for thing in ("cat", "bus", "car") for line in lines)
    )
    alone = evaluate(
        "pope", EvalConfig(answers=str(tmp_path / "alone.jsonl"), data=str(data), output_dir=str(tmp_path / "three"))
    )
    assert alone["metrics"]["official"]["mean"]["f1"]["value"] == 1 and alone["counts"]["duplicate"] == 0
    write_answers(tmp_path / "answers" / "x.jsonl", right, category="adversarial")
    result = evaluate("pope", EvalConfig(answers=str(tmp_path / "answers"), data=str(data), output_dir=str(tmp_path / "out2")))
    assert result["metrics"]["official"]["mean"]["f1"]["value"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert result["metrics"]["robust"]["mean"]["yes_ratio"]["value"] == pytest.approx(4 / 6)


def test_pope_accepts_a_megabyte_answer(tmp_path):
    result = evaluate_pope(tmp_path, ["Yes. " + "x" * 1_000_000, "No", "Yes", "No", "Yes", "No"])
    assert metric_value(result, "accuracy") == metric_value(result, "accuracy", "robust") == 1


def test_pope_warns_about_unknown_data_version(tmp_path, capsys):
    evaluate_pope(tmp_path, ["Yes"] * 6)
    stderr = capsys.readouterr().err
    assert "is not a known version" in stderr and "RePOPE random, 2774" in stderr and "coco_pope_random.json (sha256" in stderr


def test_pope_names_all_missing_images_at_once(tiny_vlm_path, tmp_path):
    data = write_questions(tmp_path / "coco_pope_random.json")
    with pytest.raises(InputError, match=r"3 of 3 images are missing \(.*0\.jpg, .*1\.jpg, .*2\.jpg\)"):
        evaluate("pope", EvalConfig(model_name_or_path=tiny_vlm_path, data=str(data), output_dir=str(tmp_path / "out")))


def test_pope_options_follow_the_benchmark_name(tmp_path, capsys):
    data, answers = write_questions(tmp_path / "coco_pope_random.json"), write_answers(tmp_path / "a.jsonl", ["Yes"] * 6)
    line = ["eval", "pope", "--answers", str(answers), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*line, "--rule", "repope"]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["options"]["rule"] == "repope"
    assert main([*line, "--rule", "mine"]) == 2 and "--rule must be pope or repope, not 'mine'" in capsys.readouterr().err
    assert main([*line, "--rul", "pope"]) == 2 and "did you mean --rule?" in capsys.readouterr().err
    assert main([*line[:2], "--strict", *line[2:]]) == 0
    assert main([*line, "--format", "llava"]) == 2 and "`text` is missing" in capsys.readouterr().err
    assert main([*line, "--format", "plain"]) == 0


def test_eval_takes_several_answer_files_and_a_suite(tmp_path, capsys):
    data = write_questions(tmp_path / "coco_pope_random.json")
    a, b = write_answers(tmp_path / "a.jsonl", ["Yes"] * 6), write_answers(tmp_path / "b.jsonl", ["Yes", "No"] * 3)
    assert main(["eval", "pope", "--answers", str(a), str(b), "--data", str(data), "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "b" / "pope" / "result.json").read_text())
    assert result["metrics"]["official"]["f1"]["value"] == 1 and (tmp_path / "out" / "a" / "pope" / "scores.jsonl").exists()
    (tmp_path / "suite.yaml").write_text(
        f"benchmarks:\n  pope: {{data: {data}, rule: repope}}\nmodels:\n  one: {{answers: {a}}}\n  two: {{answers: {b}}}\n"
    )
    assert main(["eval", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "suite")]) == 0
    result = json.loads((tmp_path / "suite" / "one" / "pope" / "result.json").read_text())
    assert result["metrics"]["official"]["accuracy"]["value"] == 0.5 and result["options"]["rule"] == "repope"
    (tmp_path / "suite.yaml").write_text(f"benchmarks:\n  pope: {{data: {data}, rull: repope}}\n")
    assert main(["eval", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "s"), "--answers", str(a)]) == 2
    assert "did you mean --rule?" in capsys.readouterr().err


def test_evaluate_all_runs_a_suite_from_python(tmp_path):
    data = write_questions(tmp_path / "coco_pope_random.json")
    a, b = write_answers(tmp_path / "a.jsonl", ["Yes"] * 6), write_answers(tmp_path / "b.jsonl", ["Yes", "No"] * 3)
    models = {"one": {"answers": str(a)}, "two": {"answers": str(b)}}
    results = evaluate_all({"pope": {"data": str(data), "rule": "repope"}}, models, str(tmp_path / "out"), seed=3)
    assert results["two"]["pope"]["metrics"]["official"]["accuracy"]["value"] == 1 and results["one"]["pope"]["seed"] == 3
    assert (tmp_path / "out" / "one" / "pope" / "result.json").exists()


def test_readme_benchmark_example_works(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (folder("eval") / "README.md").read_text(), re.S)
    (example,) = (block for block in blocks if "(Benchmark):" in block)
    (tmp_path / "mine.py").write_text(example)
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "image": "a.png", "question": "A cat?", "label": "yes"}\n')
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "answer": "Yes, a cat."}\n')
    config = EvalConfig(
        answers=str(tmp_path / "answers.jsonl"), data=str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "out")
    )
    result = evaluate(str(tmp_path / "mine.py"), config, {"hint": "short"})
    assert result["metrics"]["robust"]["accuracy"]["value"] == 1 and result["yes_ratio"] == 1


def test_pope_null_of_an_unknown_id_is_an_answer_that_the_script_fails_on(tmp_path):
    result = evaluate_pope(tmp_path, ["Yes", "No", "Yes", "No", "Yes", None], ids=["1", "2", "3", "4", "5", "99"])
    assert "AttributeError" in result["reasons"]["official"]["f1"] and result["counts"]["unknown_ids"] == 1
