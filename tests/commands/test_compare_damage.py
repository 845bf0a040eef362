"""compare never runs code that a result names, and answers damaged results with one sentence."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrlhf.cli import main
from mmrlhf.commands.compare import compare
from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.records import InputError

OWN_BENCHMARK = """
from pathlib import Path
from mmrlhf.files.bundled import find, load_module
Path("EXECUTED").write_text("")
pope = load_module(find("eval", "pope"))


class Own(pope.Pope):
    pass
"""


@pytest.fixture(scope="module")
def run_files(tmp_path_factory):
    """Return a folder with two runs, `a` and `b`, and the contents of their files."""
    folder = tmp_path_factory.mktemp("runs")
    questions = [
        {"question_id": i, "image": f"{i // 2}.png", "text": f"Is there a {w}?", "label": "yes"} for i, w in enumerate("xyz")
    ]
    (folder / "q.json").write_text("\n".join(map(json.dumps, questions)))
    for name, answer in (("a", "Yes"), ("b", "No")):
        rows = [{"question_id": i, "answer": answer} for i in range(3)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        evaluate(
            "pope", EvalConfig(answers=str(folder / f"{name}.jsonl"), data=str(folder / "q.json"), output_dir=str(folder / name))
        )
    contents = {path: path.read_bytes() for name in ("a", "b") for path in (folder / name).iterdir()}
    return folder, contents


@pytest.fixture
def runs(run_files):
    """Return the folder of the two runs, undamaged."""
    folder, contents = run_files
    for path in folder.glob("[ab]/*"):
        path.unlink()
    for path, content in contents.items():
        path.write_bytes(content)
    return folder


def try_compare(runs, capsys, *flags):
    code = main(["compare", str(runs / "a"), str(runs / "b"), "--out", str(runs / "out"), *flags])
    return code, capsys.readouterr().err


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_row(path, **fields):
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | fields), *others]) + "\n")


# ---- code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evil.py", "a/../evil.py", "./evil.py"])
def test_compare_never_runs_a_file_that_a_result_names(runs, capsys, monkeypatch, name):
    monkeypatch.chdir(runs)
    (runs / "evil.py").write_text(OWN_BENCHMARK)
    for run in "ab":
        edit_json(runs / run / "result.json", benchmark=name)
    code, error = try_compare(runs, capsys)
    assert code == 2 and "its benchmark is the file" in error and "--benchmark_file PATH/evil.py" in error
    assert not (runs / "EXECUTED").exists()
    code, error = try_compare(runs, capsys, "--benchmark_file", str(runs / "evil.py"))  # asked for
    assert code == 0, error
    (runs / "EXECUTED").unlink()


@pytest.mark.parametrize("make_name", [lambda runs: str(runs / "evil"), lambda runs: "../" * 30 + str(runs / "evil")[1:]])
def test_compare_finds_no_benchmark_outside_the_package(runs, capsys, monkeypatch, make_name):
    monkeypatch.chdir(runs)
    (runs / "evil.py").write_text(OWN_BENCHMARK)
    for run in "ab":
        edit_json(runs / run / "result.json", benchmark=make_name(runs))
    code, error = try_compare(runs, capsys)
    assert code == 2 and "there is no" in error and not (runs / "EXECUTED").exists()


def test_compare_refuses_results_of_another_version(runs, capsys):
    for run in "ab":
        edit_json(runs / run / "result.json", version="0")
    code, error = try_compare(runs, capsys)
    assert code == 2 and "scored by version 0 of pope, which is" in error


# ---- damage --------------------------------------------------------------------------------------

SUMMARY_DAMAGE = {
    "list": lambda text: "[]",
    "null": lambda text: "null",
    "torn": lambda text: text[:200],
    "empty": lambda text: "",
    "deep": lambda text: "[" * 100_000,
    "headline": lambda text: text.replace('"headline": "f1"', '"headline": 3'),
    "no headline": lambda text: text.replace('"headline"', '"head"'),
    "direction": lambda text: text.replace('"higher"', '"up"'),
    "metrics": lambda text: text.replace('"metrics": {', '"metrics": 3, "old": {'),
    "cluster": lambda text: text.replace('"cluster": "image"', '"cluster": null'),
    "files": lambda text: text.replace('"files": {', '"files": 3, "old": {'),
    "hash": lambda text: text.replace('"files": {', '"files": {"x": 3,'),
    "options list": lambda text: text.replace('"options": {', '"options": [], "old": {'),
    "unknown option": lambda text: text.replace('"options": {', '"options": {"x": 3,'),
    "option type": lambda text: text.replace('"rule": "pope"', '"rule": {"a": []}'),
    "limit": lambda text: text.replace('"limit": null', '"limit": "all"'),
    "negative limit": lambda text: text.replace('"limit": null', '"limit": -1'),
    "limit true": lambda text: text.replace('"limit": null', '"limit": true'),
    "seed": lambda text: text.replace('"seed": 0', '"seed": 0.5'),
    "data": lambda text: text.replace('"data": "', '"data": 3, "old": "'),
    "data with NUL": lambda text: text.replace('"data": "', '"data": "\\u0000'),
    "answers": lambda text: text.replace('"answers": {', '"answers": "x", "old": {'),
    "answer path": lambda text: text.replace('"path": "', '"path": 3, "old": "'),
    "benchmark": lambda text: text.replace('"benchmark": "pope"', '"benchmark": 3'),
    "other benchmark": lambda text: text.replace('"benchmark": "pope"', '"benchmark": "chair"'),
    "no benchmark": lambda text: text.replace('"benchmark": "pope"', '"benchmark": "popes"'),
    "surrogate": lambda text: text.replace('"license": "', '"license": "\\ud800'),
    "huge number": lambda text: text.replace('"seed": 0', '"seed": ' + "9" * 5000),
}


@pytest.mark.parametrize("damage", SUMMARY_DAMAGE.values(), ids=SUMMARY_DAMAGE)
def test_compare_refuses_damaged_result_json_in_one_sentence(runs, capsys, damage):
    for run in "ab":
        path = runs / run / "result.json"
        original = path.read_text()
        path.write_text(damage(original))
        assert path.read_text() != original
    code, error = try_compare(runs, capsys)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error


SCORES_DAMAGE = {
    "id number": {"id": 3},
    "id null": {"id": None},
    "unknown id": {"id": "99"},
    "repeated id": {"id": "1"},
    "surrogate id": {"id": "\ud800"},
    "status": {"status": "fine"},
    "status list": {"status": ["ok"]},
    "answers text": {"answers": "Yes"},
    "no answers": {"answers": []},
    "null answer": {"answers": [None]},
    "answer number": {"answers": [3]},
    "said list": {"said": [["yes"]]},
    "said object": {"said": {"a": 1}},
    "surrogate answer": {"answers": ["\ud800"]},
}


@pytest.mark.parametrize("fields", SCORES_DAMAGE.values(), ids=SCORES_DAMAGE)
def test_compare_refuses_damaged_scores_in_one_sentence(runs, capsys, fields):
    for run in "ab":
        edit_row(runs / run / "scores.jsonl", **fields)
    code, error = try_compare(runs, capsys)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and "scores.jsonl" in error


@pytest.mark.parametrize("content", ["", "\n", "[]\n", "3\n", "{\n", "\x00\n", "[" * 10_000 + "\n"])
def test_compare_refuses_scores_that_are_no_rows(runs, capsys, content):
    for run in "ab":
        (runs / run / "scores.jsonl").write_text(content)
    code, error = try_compare(runs, capsys)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "row", [{}, {"key": 3}, {"key": "a", "text": 3}, {"key": "a", "text": "x", "status": []}, {"key": "\ud800"}]
)
def test_compare_refuses_damaged_judgments_in_one_sentence(runs, capsys, row):
    (runs / "a" / "judgments.jsonl").write_text(json.dumps(row) + "\n")
    code, error = try_compare(runs, capsys)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and "judgments.jsonl" in error


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON_VALUES, is_row=st.booleans())
def test_compare_survives_any_value_of_any_field(runs, data, value, is_row):
    """Run compare, which either works or raises one InputError."""
    path: Path = runs / "b" / ("scores.jsonl" if is_row else "result.json")
    original = path.read_bytes()
    lines = path.read_text().splitlines() if is_row else [path.read_text()]
    fields = json.loads(lines[0])
    name = data.draw(st.sampled_from(sorted(fields)))
    path.write_text("\n".join([json.dumps(fields | {name: value}), *lines[1:]]) + "\n")
    try:
        compare([str(runs / "a"), str(runs / "b")], str(runs / "out"), force=True)
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(original)


def test_compare_prints_no_control_characters_of_data(runs, capsys):
    """A category of the data reaches the terminal, and must not steer it."""
    for run in "ab":
        summary = json.loads((runs / run / "result.json").read_text())
        edit_json(runs / run / "result.json", headline="f1\x1b[2J\u202e", metrics=summary["metrics"])
    assert main(["compare", str(runs / "a"), str(runs / "b"), "--out", str(runs / "out"), "--force"]) == 0
    output = capsys.readouterr()
    assert "\x1b[2J" not in output.out + output.err and "\u202e" not in output.out + output.err
