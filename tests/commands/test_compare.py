"""Comparing runs: what differs, what flipped, and what must not be compared."""

import json

import pytest
from PIL import Image

from mmrlhf.cli import main
from mmrlhf.commands.compare import compare
from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.paired import is_right
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


def evaluate_run(data, name, answers, options=None, ids=None):
    place = data.parent
    ids = ids or range(1, len(answers) + 1)
    (place / f"{name}.jsonl").write_text(
        "\n".join(json.dumps({"question_id": i, "answer": a}) for i, a in zip(ids, answers, strict=True))
    )
    evaluate("pope", EvalConfig(answers=str(place / f"{name}.jsonl"), data=str(data), output_dir=str(place / name)), options)
    return str(place / name)


def test_compare_reports_differences_and_flips(data, tmp_path, capsys):
    a = evaluate_run(data, "before", ["Yes"] * 20)  # every no is wrong
    b = evaluate_run(data, "after", [*CORRECT_ANSWERS[:16], "Yes", "Yes", "No", "<b>maybe</b> | so"])
    report = compare([a, b], str(tmp_path / "out"))
    pair = report["benchmarks"]["pope"]["pairs"][0]
    accuracy = pair["metrics"]["robust"]["accuracy"]
    assert (accuracy["a"], accuracy["b"]) == (0.5, 17 / 20) and accuracy["difference"] == pytest.approx(0.35)
    assert accuracy["low"] > 0 and accuracy["detectable"] > 0
    assert pair["mcnemar"] == {"only_a": 1, "only_b": 8, "both": 9, "p": pytest.approx(20 / 512)}
    shares = {c["name"]: c for c in pair["categories"]}
    assert shares["label no"]["n"] == 10 and shares["label no"]["difference"] == pytest.approx(0.8)
    worse, better = [[f["id"] for f in pair["flipped"] if f["better"] is way] for way in (False, True)]
    assert worse == ["19"] and better == [str(i) for i in range(2, 18, 2)]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1 and "no picture" in page and "http" not in page
    assert "<b>maybe" not in page and "accuracy" in (tmp_path / "out" / "compare.md").read_text()
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["benchmarks"]["pope"]["n"] == 20
    assert "McNemar" in capsys.readouterr().out


def test_compare_refuses_different_options_unless_forced(data, tmp_path, capsys):
    a, b = evaluate_run(data, "a", CORRECT_ANSWERS), evaluate_run(data, "b", ["Yes"] * 20, {"rule": "repope"})
    line = ["compare", a, b, "--out", str(tmp_path / "out")]
    assert main(line) == 2 and "options (prompt, parser) (rule pope and rule repope)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*line, "--force"]) == 0 and "warning: " in capsys.readouterr().err
    assert (
        "**Warning:**" in (tmp_path / "out" / "compare.md").read_text()
        and 'class="warning"' in (tmp_path / "out" / "compare.html").read_text()
    )
    c = evaluate_run(data, "c", CORRECT_ANSWERS[:18])
    with pytest.raises(InputError, match=r"subset \(2 of 20 examples are answered in one of them only"):
        compare([a, c], str(tmp_path / "out"))
    forced = compare([a, c], str(tmp_path / "out"), force=True)["benchmarks"]["pope"]
    assert forced["n"] == 18 and forced["pairs"][0]["metrics"]["official"]["accuracy"]["difference"] == 0


@pytest.mark.parametrize(("key", "told"), [("generation", "generation settings"), ("judge", "judge"), ("prompt_sha256", "prompts"),
                                           ("template_sha256", "chat template")])  # fmt: skip
def test_compare_refuses_different_settings(data, tmp_path, key, told):
    a, b = evaluate_run(data, "a", CORRECT_ANSWERS), evaluate_run(data, "b", CORRECT_ANSWERS)
    for place, value in ((a, {"x": 1}), (b, {"x": 2})):
        said = json.loads((tmp_path / place / "result.json").read_text())
        (tmp_path / place / "result.json").write_text(json.dumps(said | {key: value}))
    with pytest.raises(InputError, match=f"differ in {told} "):
        compare([a, b], str(tmp_path / "out"))


def test_compare_refuses_changed_data(data, tmp_path):
    a, b = evaluate_run(data, "a", CORRECT_ANSWERS), evaluate_run(data, "b", CORRECT_ANSWERS)
    data.write_text(data.read_text().replace("thing 3", "thing 4"))
    with pytest.raises(InputError, match="has changed since"):
        compare([a, b], str(tmp_path / "out"))
    c = evaluate_run(data, "c", CORRECT_ANSWERS)
    with pytest.raises(InputError, match="differ in data "):
        compare([a, c], str(tmp_path / "out"))
    data.unlink()
    with pytest.raises(InputError, match="does not exist"):
        compare([a, b], str(tmp_path / "out"))


def test_compare_expands_folders_and_refuses_what_is_not_a_run(data, tmp_path):
    place = tmp_path / "all"
    for name, answers in (("one", CORRECT_ANSWERS), ("two", ["Yes"] * 20)):
        evaluate_run(data, name, answers)
        (place / name).mkdir(parents=True)
        (tmp_path / name).rename(place / name / "pope")
    found = compare([str(place)], str(tmp_path / "out"))["benchmarks"]["pope"]
    assert found["models"] == ["one", "two"]
    assert compare([str(place / "one"), str(place / "two")], str(tmp_path / "out"))["benchmarks"]["pope"]["models"] == [
        "one",
        "two",
    ]
    with pytest.raises(InputError, match=r"holds no result\.json"):
        compare([str(tmp_path / "nowhere")], str(tmp_path / "out"))
    with pytest.raises(InputError, match="no benchmark in common"):
        compare([str(place / "one")], str(tmp_path / "out"))
    (place / "one" / "pope" / "result.json").write_text("{}")
    with pytest.raises(InputError, match="is not what eval writes"):
        compare([str(place)], str(tmp_path / "out"))


def test_compare_reports_diversity(tmp_path):
    (tmp_path / "there.json").write_text(json.dumps({str(i): ["dog"] for i in range(4)}))
    runs = []
    for name, captions in (("same", ["a dog and a cat here"] * 4), ("many", [f"the {w} dog sits by tree {w}" for w in "abcd"])):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"image_id": i, "caption": c}) for i, c in enumerate(captions))
        )
        config = EvalConfig(
            answers=str(tmp_path / f"{name}.jsonl"), data=str(tmp_path / "there.json"), output_dir=str(tmp_path / name)
        )
        evaluate("chair", config, {"lineage": "portable"})
        runs.append(str(tmp_path / name))
    found = compare(runs, str(tmp_path / "out"))["benchmarks"]["chair"]
    same, many = found["diversity"]
    assert same["distinct_2"] == 5 / 20 and many["distinct_2"] > same["distinct_2"] and many["ead"] > same["ead"]
    assert found["pairs"][0]["mcnemar"]["only_b"] == 4
    assert [a["false"] for a in found["pairs"][0]["flipped"][0]["answers"]] == [[[12, 15]], []]  # "cat"
    page, text = ((tmp_path / "out" / f"compare.{ending}").read_text() for ending in ("html", "md"))
    assert "<mark>cat</mark>" in page and all("EAD can be above 1" in written for written in (page, text))


def test_compare_reports_scenes_by_split(tmp_path):
    from mmrlhf.files.bundled import find, load_module

    module, runs = load_module(find("eval", "scenes")), []
    examples = module.prompts("held_out,ood_1", 6)
    for name, text in (("a", "There is a star. There is a ring."), ("b", "")):
        rows = [{"id": e.id, "answers": [text if e.meta["kind"] == "describe" else "yes"]} for e in examples]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = EvalConfig(
            answers=str(tmp_path / f"{name}.jsonl"), data="held_out,ood_1", output_dir=str(tmp_path / name), limit=6
        )
        evaluate("scenes", config)
        runs.append(str(tmp_path / name))
    found = compare(runs, str(tmp_path / "out"))["benchmarks"]["scenes"]
    metrics = found["pairs"][0]["metrics"]["official"]
    assert metrics["ood_1"]["coverage"]["b"] == 0 and metrics["held_out"]["yes_no_accuracy"]["difference"] == 0
    assert {c["name"] for c in found["pairs"][0]["categories"]} >= {"describe", "yes_no"}


def test_is_right_is_none_without_label():
    assert is_right({"right": False, "said": "yes", "label": "yes"}) is False
    assert is_right({"said": None, "label": "yes"}) is False and is_right({"said": ["no", "no"], "truth": "no"}) is True
    assert is_right({"said": "yes"}) is None and is_right({}) is None
