"""Files of answers: their formats, and those that are broken or hold something else."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrlhf.cli import main
from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.evaluation.prediction_files import read_predictions
from mmrlhf.records import InputError
from tests.helpers.fake_data import write_jsonl
from tests.helpers.pope_files import pope_log, pope_samples, write_questions
from tests.helpers.results import metric_value, notes_of, robust_value


def test_read_predictions_accepts_logs_of_other_harnesses(tmp_path):
    data = str(write_questions(tmp_path / "coco_pope_random.json"))
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
    for name, format_rows in rows.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(format_rows[::-1]))
        result = evaluate("pope", EvalConfig(answers=str(path), data=data, output_dir=str(tmp_path / name)))
        assert result["answers"]["format"] == name and metric_value(result, "accuracy", "robust") == 1, name
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(list(rows["vlmevalkit"][0]))
    for row in rows["vlmevalkit"]:
        book.active.append(list(row.values()))
    book.save(tmp_path / "table.xlsx")
    result = evaluate("pope", EvalConfig(answers=str(tmp_path / "table.xlsx"), data=data, output_dir=str(tmp_path / "xlsx")))
    assert result["answers"]["format"] == "vlmevalkit" and metric_value(result, "accuracy") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question_id": 1, "answer": "Yes\xff"}\n', "line 1: not JSON"),
        (b'{"question_id": 1, "answer": 3}', "row 1: an answer must be text, not a number"),
        (b'{"question_id": 1, "reply": "Yes"}', "its fields are question_id, reply"),
        (b'{"question_id": 1, "answer": "Yes"}\n{"answer": "No"}', "row 2: nothing says which question is answered"),
        (b"[1, 2]", "row 1: an answer must be an object"),
        (b"", "holds no answers"),
        (b"PK\x03\x04xl", "a.jsonl is a binary file: save it as JSON, JSON lines, TSV, CSV or XLSX"),
        (b"{", "not JSON"),
        (b'{"question_id": 1, "answer": "\\ud800"}', "the answer is not valid Unicode: remove the unpaired surrogate"),
        (b'{"question_id": "\\ud800", "answer": "Yes"}', "the id is not valid Unicode: remove the unpaired surrogate"),
        (b'{"question_id": ' + b"9" * 4400 + b', "answer": "Yes"}', "line 1: not JSON"),
        (b'{"question_id": 1, "answer": "' + b"x" * 10_000_001 + b'"}', "row 1: the answer has 10000001 characters"),
    ],
)
def test_read_predictions_refuses_unusable_files(tmp_path, capsys, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    data = write_questions(tmp_path / "coco_pope_random.json")
    line = ["eval", "pope", "--answers", str(tmp_path / "a.jsonl"), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(line) == 2
    stderr = capsys.readouterr().err
    assert message in stderr and stderr.count("error:") == 1 and not (tmp_path / "out").exists()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.dictionaries(st.sampled_from(["question_id", "answer", "text", "prediction", "id", "answers", "resps", "doc", "image"]),
                                 st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.text(max_size=3), max_size=2))), max_size=3)
        .map(lambda rows: json.dumps(rows).encode()),
    ),
    st.sampled_from([".json", ".jsonl", ".tsv", ".csv", ".xlsx"]),
)  # fmt: skip
def test_read_predictions_accepts_or_refuses_any_file(tmp_path, content, ending):
    path = tmp_path / f"wild{ending}"
    path.write_bytes(content)
    data = tmp_path / "coco_pope_random.json"
    if not data.exists():
        write_questions(data)
    benchmark = load_benchmark("pope")
    task = Task(str(data), options=benchmark.options_type())
    task = replace(task, examples={e.id: e for e in benchmark.load(task)})
    try:
        predictions = read_predictions(str(path), benchmark, task).predictions
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(p.id, str) for p in predictions)


def test_answers_of_a_run_that_broke_off_are_read_without_the_torn_line(score, pope, tmp_path):
    rows = pope_log("random")
    path = tmp_path / "torn.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]) + json.dumps(rows[3])[:20])
    result = score("pope", path, pope / "coco_pope_random.json")
    assert result["n"] == 3 and "torn.jsonl line 4 is torn" in notes_of(result) and "cover 3 of 4" in notes_of(result)


def test_an_empty_list_of_answers_is_a_null_answer(score, pope):
    result = score("pope", [{"id": "random/1", "answers": []}, {"id": "random/2", "answers": ["yes"]}], pope)
    assert result["n"] == 1 and result["counts"]["null"] == 1


def test_failed_requests_are_no_answers(score, pope):
    rows = [
        {"question": f"Is there a {noun} in the image?", "image_path": "COCO_val2014_000000000000.jpg", "prediction": said}
        for noun, said in (("dog", "Failed to obtain answer via API."), ("zebra", "No"))
    ]
    result = score("pope", rows, pope / "coco_pope_random.json", suffix=".tsv")
    assert result["n"] == 1 and result["counts"]["null"] == 1 and '1 answers are "Failed to obtain answer"' in notes_of(result)
    assert "AttributeError" in result["reasons"]["official"]["f1"]


def test_folders_of_harnesses_are_read_without_what_they_made_of_answers(score, pope, tmp_path):
    lmms, sheets = tmp_path / "lmms", tmp_path / "sheets"
    lmms.mkdir()
    (lmms / "2026_results.json").write_text('{"results": {"pope": {"pope_accuracy": 1}}}')
    write_jsonl(lmms / "2026_samples_pope.jsonl", pope_samples("adversarial", "popular", "random"))
    result = score("pope", lmms, pope)
    assert result["n"] == 12 and "left out: 2026_results.json" in notes_of(result)
    sheets.mkdir()
    rows = [
        {
            "index": n,
            "question": f"Is there a {noun} in the image?",
            "image_path": "COCO_val2014_000000000000.jpg",
            "prediction": said,
        }
        for n, (noun, said) in enumerate((("dog", "Yes"), ("zebra", float("nan"))))
    ]
    (sheets / "m_POPE.json").write_text(json.dumps(rows))
    (sheets / "m_POPE_auxmatch.json").write_text(json.dumps(rows))
    result = score("pope", sheets, pope / "coco_pope_random.json")
    assert (result["n"], result["counts"]["null"], result["counts"]["duplicate"]) == (1, 1, 0)
    (tmp_path / "a.pkl").write_bytes(b"c")
    with pytest.raises(InputError, match="is a pickle"):
        score("pope", tmp_path / "a.pkl", pope)


def test_maps_of_id_to_answer_are_read(score, tmp_path):
    data = tmp_path / "gt.json"
    data.write_text(json.dumps({"11": ["dog"], "12": ["cup"]}))
    for rows in (
        {"11": "A dog.", "12": "A cat."},
        {"11": {"caption": "A dog."}, "12": {"caption": "A cat."}},
        {"overall": {}, "imgToEval": {"11": {"image_id": 11, "caption": "A dog."}, "12": {"image_id": 12, "caption": "A cat."}}},
    ):
        result = score("chair", rows, data, {"lineage": "portable"}, suffix=".json")
        assert robust_value(result, "chair_s") == 50 and result["n"] == 2


@pytest.mark.parametrize("name", ["predict", "pred"])
def test_predictions_go_before_the_reference_of_a_row(score, pope, name):
    rows = [
        {"prompt": f"user\nIs there a {noun} in the image?\nassistant\n", name: said, "label": "no", "answer": "no"}
        for noun, said in (("dog", "Yes"), ("zebra", "No")) * 2
    ]
    result = score("pope", rows, pope / "coco_pope_random.json")
    assert result["n"] == 4 and robust_value(result, "accuracy") == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"images": ["val/COCO_val2014_000000000007.jpg"], "response": "A dog."},
        {"images": [{"path": "7.jpg"}], "response": "A dog."},
        {"file_name": "COCO_val2014_000000000007.jpg", "caption": ["A dog."]},
    ],
)
def test_usual_names_of_images_and_lists_of_one_answer_are_read(score, tmp_path, fields):
    data = tmp_path / "gt.json"
    data.write_text(json.dumps({"7": ["dog"]}))
    result = score("chair", [fields], data, {"lineage": "portable"})
    assert result["n"] == 1 and robust_value(result, "recall") == 100


def test_questions_in_place_of_answers_are_refused(score, pope):
    with pytest.raises(InputError, match="holds the questions in place of answers"):
        score("pope", pope / "coco_pope_random.json", pope / "coco_pope_random.json")


def test_image_numbers_of_any_length_are_names(score, tmp_path):
    data = tmp_path / "gt.json"
    data.write_text(json.dumps({"9" * 4400: ["dog"], "7": ["dog"]}))
    result = score("chair", [{"image_id": "COCO_val2014_000000000007.jpg", "caption": "A dog."}], data, {"lineage": "portable"})
    assert result["n"] == 1 and robust_value(result, "chair_s") == 0
