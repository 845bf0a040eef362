"""compare reports differences and flipped answers, and refuses runs that are not comparable."""

import json

import pytest
from PIL import Image

from mmrlhf.cli import main
from mmrlhf.commands.compare import compare
from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.paired import is_right
from mmrlhf.files.bundled import find, load_module
from mmrlhf.records import InputError

LABELS = ["yes", "no"] * 10
CORRECT_ANSWERS = ["Yes", "No"] * 10


@pytest.fixture
def question_file(tmp_path):
    rows = [
        {"question_id": i + 1, "image": f"{i // 2}.png", "text": f"Is there thing {i}?", "label": label}
        for i, label in enumerate(LABELS)
    ]
    (tmp_path / "q.json").write_text("\n".join(map(json.dumps, rows)))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "0.png")
    return tmp_path / "q.json"


def evaluate_run(question_file, name, answers, options=None, ids=None):
    """Score answers to the questions; return the output folder, which is named after the run."""
    folder = question_file.parent
    ids = ids or range(1, len(answers) + 1)
    rows = [{"question_id": id_, "answer": answer} for id_, answer in zip(ids, answers, strict=True)]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = EvalConfig(answers=str(folder / f"{name}.jsonl"), data=str(question_file), output_dir=str(folder / name))
    evaluate("pope", config, options)
    return str(folder / name)


def test_compare_reports_differences_and_flips(question_file, tmp_path, capsys):
    a = evaluate_run(question_file, "before", ["Yes"] * 20)  # wrong for every label "no"
    b = evaluate_run(
        question_file, "after", ["Yes", "No. <script>x</script> | so", *CORRECT_ANSWERS[2:16], "Yes", "Yes", "No", "<b>maybe</b>"]
    )
    report = compare([a, b], str(tmp_path / "out"))
    pair = report["benchmarks"]["pope"]["pairs"][0]
    accuracy = pair["metrics"]["robust"]["accuracy"]
    assert (accuracy["a"], accuracy["b"]) == (0.5, 17 / 20) and accuracy["difference"] == pytest.approx(0.35)
    assert accuracy["low"] > 0 and accuracy["detectable"] > 0
    assert pair["mcnemar"] == {"only_a": 1, "only_b": 8, "both": 9, "p": pytest.approx(20 / 512), "questions": 20, "repeated": 0}
    categories = {category["name"]: category for category in pair["categories"]}
    assert categories["label no"]["n"] == 10 and categories["label no"]["difference"] == pytest.approx(0.8)
    assert [flip["id"] for flip in pair["flipped"] if not flip["better"]] == ["19"]
    assert [flip["id"] for flip in pair["flipped"] if flip["better"]] == [str(i) for i in range(2, 18, 2)]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert (
        page.count("data:image/jpeg;base64,") == 1 and "no image" in page and "http" not in page.replace("http://www.w3.org/", "")
    )
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "<b>maybe" not in page and "accuracy" in markdown
    assert r"| No. \<script\>x\</script\> \| so |" in markdown  # shown as text, in one cell
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["benchmarks"]["pope"]["n"] == 20
    assert "McNemar" in capsys.readouterr().out


def test_compare_counts_a_question_of_several_splits_once(tmp_path):
    """Of 3 splits with 2 questions each, 4 are distinct: one of them is right in b alone, not 3."""
    data = tmp_path / "POPE"
    data.mkdir()
    shared = {"image": "1.png", "text": "Is there a cup?", "label": "yes"}
    for split in ("random", "popular", "adversarial"):
        own = {"image": "2.png", "text": f"Is there a {split}?", "label": "no"}
        (data / f"coco_pope_{split}.json").write_text(
            "\n".join(map(json.dumps, [shared | {"question_id": 1}, own | {"question_id": 2}]))
        )
    runs = []
    for name, cup in (("a", "No"), ("b", "Yes")):
        rows = [
            {"id": f"{split}/{n}", "answers": [cup if n == 1 else "No"]}
            for split in ("random", "popular", "adversarial")
            for n in (1, 2)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        evaluate("pope", EvalConfig(answers=str(tmp_path / f"{name}.jsonl"), data=str(data), output_dir=str(tmp_path / name)))
        runs.append(str(tmp_path / name))
    pair = compare(runs, str(tmp_path / "out"))["benchmarks"]["pope"]["pairs"][0]
    assert pair["mcnemar"] == {"only_a": 0, "only_b": 1, "both": 3, "p": 1.0, "questions": 4, "repeated": 2}
    assert {c["name"]: c["n"] for c in pair["categories"]} == {
        "adversarial": 2, "popular": 2, "random": 2, "label yes": 1, "label no": 3,
    }  # fmt: skip
    assert len(pair["flipped"]) == 1 and pair["metrics"]["robust"]["mean"]["accuracy"]["difference"] == 0.5
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "Each of 4 questions counts once; 2 examples ask one of them again." in markdown


def test_compare_says_what_eval_noted_about_answers(question_file, tmp_path, capsys):
    a = evaluate_run(question_file, "a", CORRECT_ANSWERS)
    b = evaluate_run(question_file, "b", [*CORRECT_ANSWERS, "No"], ids=[*range(1, 21), 77])
    capsys.readouterr()
    report = compare([a, b], str(tmp_path / "out"))
    (note,) = report["benchmarks"]["pope"]["notes"]
    assert note.startswith("b: 1 answers have ids that --data lacks")
    assert f"note: {note}" in capsys.readouterr().err
    assert f"**Note:** {note}." in (tmp_path / "out" / "compare.md").read_text()
    assert f"Note: {note}." in (tmp_path / "out" / "compare.html").read_text()


def test_compare_refuses_different_options_unless_forced(question_file, tmp_path, capsys):
    a, b = evaluate_run(question_file, "a", CORRECT_ANSWERS), evaluate_run(question_file, "b", ["Yes"] * 20, {"rule": "repope"})
    line = ["compare", a, b, "--out", str(tmp_path / "out")]
    assert main(line) == 2 and "options (prompt, parser) (rule pope and rule repope)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*line, "--force"]) == 0 and "warning: " in capsys.readouterr().err
    assert "**Warning:**" in (tmp_path / "out" / "compare.md").read_text()
    assert 'class="warning"' in (tmp_path / "out" / "compare.html").read_text()
    c = evaluate_run(question_file, "c", CORRECT_ANSWERS[:18])
    with pytest.raises(InputError, match=r"subset \(2 of 20 examples are answered in one of them only"):
        compare([a, c], str(tmp_path / "out"))
    forced = compare([a, c], str(tmp_path / "out"), force=True)["benchmarks"]["pope"]
    assert forced["n"] == 18 and forced["pairs"][0]["metrics"]["official"]["accuracy"]["difference"] == 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("generation", "generation settings"),
        ("judge", "judge"),
        ("prompt_sha256", "prompts"),
        ("template_sha256", "chat template"),
    ],
)
def test_compare_refuses_different_settings(question_file, tmp_path, key, message):
    a, b = evaluate_run(question_file, "a", CORRECT_ANSWERS), evaluate_run(question_file, "b", CORRECT_ANSWERS)
    for run, value in ((a, {"x": 1}), (b, {"x": 2})):
        result = json.loads((tmp_path / run / "result.json").read_text())
        (tmp_path / run / "result.json").write_text(json.dumps(result | {key: value}))
    with pytest.raises(InputError, match=f"differ in {message}[: ]"):
        compare([a, b], str(tmp_path / "out"))


def test_compare_refuses_changed_data(question_file, tmp_path):
    a, b = evaluate_run(question_file, "a", CORRECT_ANSWERS), evaluate_run(question_file, "b", CORRECT_ANSWERS)
    question_file.write_text(question_file.read_text().replace("thing 3", "thing 4"))
    with pytest.raises(InputError, match="has changed since"):
        compare([a, b], str(tmp_path / "out"))
    c = evaluate_run(question_file, "c", CORRECT_ANSWERS)
    with pytest.raises(InputError, match="differ in data "):
        compare([a, c], str(tmp_path / "out"))
    question_file.unlink()
    with pytest.raises(InputError, match="does not exist"):
        compare([a, b], str(tmp_path / "out"))


def test_compare_expands_folders_and_refuses_what_is_not_a_run(question_file, tmp_path):
    folder = tmp_path / "all"
    for name, answers in (("one", CORRECT_ANSWERS), ("two", ["Yes"] * 20)):
        evaluate_run(question_file, name, answers)
        (folder / name).mkdir(parents=True)
        (tmp_path / name).rename(folder / name / "pope")
    for runs in ([str(folder)], [str(folder / "one"), str(folder / "two")]):
        comparison = compare(runs, str(tmp_path / "out"))["benchmarks"]["pope"]
        assert comparison["models"] == ["one", "two"]
    with pytest.raises(InputError, match=r"holds no result\.json"):
        compare([str(tmp_path / "nowhere")], str(tmp_path / "out"))
    with pytest.raises(InputError, match="no benchmark in common"):
        compare([str(folder / "one")], str(tmp_path / "out"))
    (folder / "one" / "pope" / "result.json").write_text("{}")
    with pytest.raises(InputError, match="was not written by eval"):
        compare([str(folder)], str(tmp_path / "out"))


def test_compare_reports_diversity(tmp_path):
    (tmp_path / "objects.json").write_text(json.dumps({str(i): ["dog"] for i in range(4)}))
    captions_by_run = {
        "same": ["a dog and a cat here"] * 4,
        "varied": [f"the {word} dog sits by tree {word}" for word in "abcd"],
    }
    runs = []
    for name, captions in captions_by_run.items():
        rows = [{"image_id": i, "caption": caption} for i, caption in enumerate(captions)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = EvalConfig(
            answers=str(tmp_path / f"{name}.jsonl"), data=str(tmp_path / "objects.json"), output_dir=str(tmp_path / name)
        )
        evaluate("chair", config, {"lineage": "portable"})
        runs.append(str(tmp_path / name))
    comparison = compare(runs, str(tmp_path / "out"))["benchmarks"]["chair"]
    same, varied = comparison["diversity"]
    assert same["distinct_2"] == 5 / 20 and varied["distinct_2"] > same["distinct_2"] and varied["ead"] > same["ead"]
    pair = comparison["pairs"][0]
    assert pair["mcnemar"]["only_b"] == 4
    assert [answer["false"] for answer in pair["flipped"][0]["answers"]] == [[[12, 15]], []]  # "cat"
    page = (tmp_path / "out" / "compare.html").read_text()
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "<mark>cat</mark>" in page and "EAD can be above 1" in page and "EAD can be above 1" in markdown


def test_compare_reports_scenes_by_split(tmp_path):
    module = load_module(find("eval", "scenes"))
    examples = module.prompts("held_out,ood_1", 6)
    runs = []
    for name, description in (("a", "There is a star. There is a ring."), ("b", "")):
        rows = [{"id": e.id, "answers": [description if e.meta["kind"] == "describe" else "yes"]} for e in examples]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = EvalConfig(
            answers=str(tmp_path / f"{name}.jsonl"), data="held_out,ood_1", output_dir=str(tmp_path / name), limit=6
        )
        evaluate("scenes", config)
        runs.append(str(tmp_path / name))
    pair = compare(runs, str(tmp_path / "out"))["benchmarks"]["scenes"]["pairs"][0]
    metrics = pair["metrics"]["official"]
    assert metrics["ood_1"]["coverage"]["b"] == 0 and metrics["held_out"]["yes_no_accuracy"]["difference"] == 0
    assert {category["name"] for category in pair["categories"]} >= {"describe", "yes_no"}


def test_is_right_is_none_without_label():
    assert is_right({"right": False, "said": "yes", "label": "yes"}) is False
    assert is_right({"said": None, "label": "yes"}) is False and is_right({"said": ["no", "no"], "truth": "no"}) is True
    assert is_right({"said": "yes"}) is None and is_right({}) is None
