"""POPE on questions that a reader can count: three pictures, two questions each."""

import json
import re
from pathlib import Path

import pytest

from mmrlhf.cli import main
from mmrlhf.config import EvalConfig
from mmrlhf.content import folder
from mmrlhf.evaluate import evaluate
from mmrlhf.records import InputError

LABELS = ["yes", "no"] * 3


def questions(path: Path, things: str = "dog cat") -> Path:
    rows = [
        {
            "question_id": i + 1,
            "image": f"{i // 2}.jpg",
            "text": f"Is there a {things.split()[i % 2]} in the image?",
            "label": label,
        }
        for i, label in enumerate(LABELS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def answered(path: Path, texts, ids=None, **more) -> Path:
    ids = ids or range(1, len(texts) + 1)
    path.write_text("\n".join(json.dumps({"question_id": i, "answer": t, **more}) for i, t in zip(ids, texts, strict=True)))
    return path


def run(tmp_path, texts, ids=None, options=None, **how):
    answers = answered(tmp_path / "answers.jsonl", texts, ids)
    data = questions(tmp_path / "coco_pope_random.json")
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    return evaluate("pope", EvalConfig(answers=str(answers), data=str(data), output_dir=str(out), **how), options)


def value(result, name, mode="official"):
    return result["metrics"][mode][name]["value"]


def test_figures_by_hand(tmp_path):
    # yes no yes yes no no against yes no yes no yes no: TP 2, FP 1, TN 2, FN 1
    result = run(tmp_path, ["Yes", "No", "yes, it is", "Yes.", "There is no dog", "No"])
    for mode in ("official", "robust"):
        assert value(result, "accuracy", mode) == 4 / 6 and value(result, "yes_ratio", mode) == 3 / 6
        assert value(result, "precision", mode) == value(result, "recall", mode) == 2 / 3
        assert value(result, "f1", mode) == pytest.approx(2 / 3)
        assert 0 <= result["metrics"][mode]["f1"]["low"] <= 2 / 3 <= result["metrics"][mode]["f1"]["high"] <= 1
    assert result["n"] == 6 and result["yes_ratio"] == 0.5 and result["headline"] == "f1" and len(result["data_sha256"]) == 64


def test_official_goes_line_by_line_and_robust_by_id(tmp_path):
    texts = ["No", "Yes", "Yes", "No", "Yes", "No"]
    result = run(tmp_path, texts, ids=[2, 1, 3, 4, 5, 6])
    assert value(result, "accuracy") == 4 / 6 and value(result, "accuracy", "robust") == 1
    # a repeated and an unknown id push all that follow by two lines
    result = run(tmp_path, ["Yes", "Yes", "Yes", "No", "Yes", "No"], ids=[1, 1, 77, 2, 3, 4])
    assert result["counts"] == {"missing": 2, "unknown_ids": 1, "duplicate": 1, "null": 0, "unparsed": 0, "judge_errors": 0}
    assert value(result, "accuracy") == 5 / 6 and value(result, "accuracy", "robust") == 1 and result["n"] == 4


def test_what_cannot_be_read_is_neither(tmp_path):
    result = run(tmp_path, ["maybe", "", "Yes", "No", "Yes", "No"])
    assert result["counts"]["unparsed"] == 2
    assert value(result, "accuracy", "robust") == 4 / 6 and value(result, "recall", "robust") == 2 / 3
    assert value(result, "precision", "robust") == 1 and value(result, "yes_ratio", "robust") == 2 / 4
    assert value(result, "yes_ratio") == 4 / 6  # the script takes both for yes


def test_where_the_script_stops_is_null_with_the_reason(tmp_path):
    result = run(tmp_path, ["No"] * 6)
    assert set(result["metrics"]["official"].values()) == {None}
    assert "ZeroDivisionError at precision" in result["reasons"]["official"]["accuracy"]
    assert value(result, "accuracy", "robust") == 0.5 and value(result, "f1", "robust") == 0
    result = run(tmp_path, ["No", "Yes"] * 3)
    assert "f1 (no true positive)" in result["reasons"]["official"]["f1"]
    result = run(tmp_path, ["Yes", None, "Yes", "No", "Yes", "No"])
    assert (
        "AttributeError" in result["reasons"]["official"]["f1"] and result["counts"]["null"] == result["counts"]["missing"] == 1
    )
    assert value(result, "accuracy", "robust") == 1


def test_repopes_rule(tmp_path):
    result = run(tmp_path, ["I know not", "who?", "eyes", "No", "Yes", "none"], options={"rule": "repope"})
    # no, dropped, yes (in eyes), no, yes, no against yes no yes no yes no
    assert value(result, "accuracy") == 4 / 5 and value(result, "recall") == 2 / 3


def test_a_folder_is_three_splits_and_their_mean(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    questions(data / "coco_pope_random.json")
    questions(data / "coco_pope_popular.json", "dog bus")
    questions(data / "coco_pope_adversarial.json", "dog car")
    right = ["Yes", "No"] * 3
    (tmp_path / "answers").mkdir()
    answered(tmp_path / "answers" / "popular.jsonl", right)
    answered(tmp_path / "answers" / "answers_random.jsonl", ["Yes"] * 6)
    config = EvalConfig(answers=str(tmp_path / "answers"), data=str(data), output_dir=str(tmp_path / "out"))
    result = evaluate("pope", config)
    official = result["metrics"]["official"]
    assert official["popular"]["f1"]["value"] == 1 and official["random"]["f1"]["value"] == pytest.approx(2 / 3)
    assert official["adversarial"]["f1"] is None and official["mean"]["f1"] is None
    assert "no answers to this split" in result["reasons"]["official"]["adversarial"]["f1"] and result["counts"]["missing"] == 0
    answered(tmp_path / "answers" / "x.jsonl", right, category="adversarial")
    result = evaluate("pope", EvalConfig(answers=str(tmp_path / "answers"), data=str(data), output_dir=str(tmp_path / "out2")))
    assert result["metrics"]["official"]["mean"]["f1"]["value"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert result["metrics"]["robust"]["mean"]["yes_ratio"]["value"] == pytest.approx(4 / 6)


def test_logs_of_other_harnesses(tmp_path):
    data = str(questions(tmp_path / "coco_pope_random.json"))
    right = ["Yes", "No"] * 3
    rows = {
        "llava": [
            {"question_id": i + 1, "prompt": "?", "text": t, "answer_id": "x", "model_id": "m"} for i, t in enumerate(right)
        ],
        "lmms-eval": [
            {
                "doc_id": i,
                "doc": {"question_id": str(i + 1), "image_source": f"{i // 2}"},
                "target": "x",
                "resps": [[t]],
                "filtered_resps": [t],
            }
            for i, t in enumerate(right)
        ],
        "vlmevalkit": [
            {
                "index": i,
                "image_path": f"{i // 2}.jpg",
                "question": f"Is there a {['dog', 'cat'][i % 2]} in the image?",
                "prediction": t,
            }
            for i, t in enumerate(right)
        ],
        "predictions": [{"id": str(i + 1), "answers": [t]} for i, t in enumerate(right)],
    }
    for name, of in rows.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(of[::-1]))
        result = evaluate("pope", EvalConfig(answers=str(path), data=data, output_dir=str(tmp_path / name)))
        assert result["answers"]["format"] == name and value(result, "accuracy", "robust") == 1, name
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(list(rows["vlmevalkit"][0]))
    for row in rows["vlmevalkit"]:
        book.active.append(list(row.values()))
    book.save(tmp_path / "table.xlsx")
    result = evaluate("pope", EvalConfig(answers=str(tmp_path / "table.xlsx"), data=data, output_dir=str(tmp_path / "xlsx")))
    assert result["answers"]["format"] == "vlmevalkit" and value(result, "accuracy") == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"question_id": 1, "answer": "Yes\xff"}\n', "line 1: not JSON"),
        (b'{"question_id": 1, "answer": 3}', "row 1: an answer must be text, not a number"),
        (b'{"question_id": 1, "reply": "Yes"}', "its fields are question_id, reply"),
        (b'{"question_id": 1, "answer": "Yes"}\n{"answer": "No"}', "row 2: nothing says which question is answered"),
        (b"[1, 2]", "row 1: an answer must be an object"),
        (b"", "holds no answers"),
        (b"{", "not JSON"),
        (b'{"question_id": 1, "answer": "\\ud800"}', "unpaired surrogate"),
    ],
)
def test_answers_that_cannot_be_used(tmp_path, capsys, content, told):
    (tmp_path / "a.jsonl").write_bytes(content)
    data = questions(tmp_path / "coco_pope_random.json")
    line = ["eval", "pope", "--answers", str(tmp_path / "a.jsonl"), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("error:") == 1 and not (tmp_path / "out").exists()


def test_a_megabyte_of_answer(tmp_path):
    result = run(tmp_path, ["Yes. " + "x" * 1_000_000, "No", "Yes", "No", "Yes", "No"])
    assert value(result, "accuracy") == value(result, "accuracy", "robust") == 1


def test_questions_of_no_known_version(tmp_path, capsys):
    run(tmp_path, ["Yes"] * 6)
    said = capsys.readouterr().err
    assert "no version that is known" in said and "RePOPE random, 2774" in said and "coco_pope_random.json (sha256" in said


def test_missing_pictures_are_named_all_at_once(base, tmp_path):
    data = questions(tmp_path / "coco_pope_random.json")
    with pytest.raises(InputError, match=r"3 of 3 pictures are missing \(.*0\.jpg, .*1\.jpg, .*2\.jpg\)"):
        evaluate("pope", EvalConfig(model_name_or_path=base, data=str(data), output_dir=str(tmp_path / "out")))


def test_options_follow_the_benchmarks_name(tmp_path, capsys):
    data, answers = questions(tmp_path / "coco_pope_random.json"), answered(tmp_path / "a.jsonl", ["Yes"] * 6)
    line = ["eval", "pope", "--answers", str(answers), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main([*line, "--rule", "repope"]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["options"]["rule"] == "repope"
    assert main([*line, "--rule", "mine"]) == 2 and "--rule must be pope or repope, not 'mine'" in capsys.readouterr().err
    assert main([*line, "--rul", "pope"]) == 2 and "did you mean --rule?" in capsys.readouterr().err
    assert main([*line[:2], "--strict", *line[2:]]) == 0
    assert main([*line, "--format", "llava"]) == 2 and "`text` is missing" in capsys.readouterr().err


def test_several_answers_and_a_suite(tmp_path, capsys):
    data = questions(tmp_path / "coco_pope_random.json")
    a, b = answered(tmp_path / "a.jsonl", ["Yes"] * 6), answered(tmp_path / "b.jsonl", ["Yes", "No"] * 3)
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


def test_the_benchmark_that_the_readme_writes(tmp_path):
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", (folder("eval") / "README.md").read_text(), re.S)[0])
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "image": "a.png", "question": "A cat?", "label": "yes"}\n')
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "answer": "Yes, a cat."}\n')
    config = EvalConfig(
        answers=str(tmp_path / "answers.jsonl"), data=str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "out")
    )
    result = evaluate(str(tmp_path / "mine.py"), config, {"hint": "short"})
    assert result["metrics"]["robust"]["accuracy"]["value"] == 1 and result["yes_ratio"] == 1
