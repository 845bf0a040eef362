"""The examples run, and the notebook contains the outputs of its own cells."""

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK = EXAMPLES / "walkthrough.ipynb"
LAST_LINES = {
    "evaluate_from_python": "compare.html, with plots",
    "grpo_counting": "answer_format: 0.",
    "own_benchmark": "'accuracy': {'value': ",
    "own_data": "reward model: ",
    "own_reward_function": "colour words, reward ",
    "ppo_from_python": " words per answer",
}
"""Text in the last line that each script prints."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path / "out")
    assert LAST_LINES[path.stem] in capsys.readouterr().out.strip().splitlines()[-1]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_example_names_its_command(path):
    assert f"python examples/{path.name}" in path.read_text(encoding="utf-8").split('"""')[1]


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_notebook_cells_compile_and_were_run_in_order():
    cells = code_cells()
    for number, cell in enumerate(cells, start=1):
        compile("".join(cell["source"]), f"cell {number}", "exec")
        assert cell["execution_count"] == number
        assert not any(output["output_type"] == "error" for output in cell["outputs"])
    assert sum(bool(cell["outputs"]) for cell in cells) > len(cells) / 2


def test_notebook_imports_only_names_that_exist():
    for cell in code_cells():
        lines = [line for line in "".join(cell["source"]).splitlines() if line.startswith(("from mmrlhf", "import mmrlhf"))]
        exec("\n".join(lines), {})


def test_notebook_names_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not [word for word in ("/home/", "/root/", "/tmp/", "/work/", "/Users/") if word in text]
