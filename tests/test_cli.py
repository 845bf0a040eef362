"""The command line: what it hands to a stage, how it refuses, and that it is quick to do either."""

import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mmrlhf
from mmrlhf.cli import CALIBRATE_COMMANDS, COMMANDS, DATA_COMMANDS, main
from mmrlhf.config import SFTConfig
from mmrlhf.records import InputError

ROOT = Path(mmrlhf.__file__).parents[1]
REQUIRED = ["--model_name_or_path", "base", "--dataset_name", "rows", "--output_dir", "out"]


@pytest.fixture
def stub_stage(monkeypatch):
    """Put a stand-in for a module's function, and get the calls that it receives."""

    def put(module, function, result=None):
        calls = []

        def stand_in(*args, **kwargs):
            calls.append((*args, *kwargs.values()))
            if isinstance(result, BaseException):
                raise result
            return result

        stood = ModuleType(f"mmrlhf.{module}")
        setattr(stood, function, stand_in)
        monkeypatch.setitem(sys.modules, stood.__name__, stood)
        return calls

    return put


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_main_merges_config_file_and_flags(stage, tmp_path):
    calls = stage("sft", "sft")
    (tmp_path / "recipe.yaml").write_text("seed: 3\nlora_r: 4")
    assert main(["sft", "--config", str(tmp_path / "recipe.yaml"), *REQUIRED, "--lora_r", "8"]) == 0
    assert calls == [(SFTConfig(model_name_or_path="base", dataset_name="rows", output_dir="out", seed=3, lora_r=8),)]


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ([], False),
        (["--whiten_rewards"], True),
        (["--whiten_rewards", "true"], True),
        (["--whiten_rewards", "false"], False),
        (["--whiten_rewards", "--no-whiten_rewards"], False),
    ],
)
def test_main_parses_boolean_flags(stage, flags, value):
    calls = stage("ppo", "ppo")
    assert main(["ppo", *REQUIRED, "--reward_model_path", "r", *flags, "--max_steps", "-1"]) == 0
    assert calls[0][0].whiten_rewards is value


def test_main_eval_takes_benchmark_and_config(stage, tmp_path):
    calls = stage("evaluate", "evaluate")
    benchmark = tmp_path / "mine.py"
    benchmark.touch()
    flags = ["--model_name_or_path", "base", "--output_dir", "out", "--limit", "5"]
    assert main(["eval", str(benchmark), *flags]) == 0
    assert calls[0][0] == str(benchmark)
    assert calls[0][1].limit == 5
    assert main(["eval", str(tmp_path / "absent.py"), *flags]) == 2
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("line", "module", "function", "received"),
    [
        ("demo", "demo.pipeline", "demo", ("runs/demo", False, 0)),
        ("demo --output_dir d --seed 2 --fresh", "demo.pipeline", "demo", ("d", True, 2)),
        ("data check f.json --facts_file t", "commands.check", "check", ("f.json", None, "t", "train")),
        ("data stats f.json --facts_file t", "commands.stats", "stats", ("f.json", None, "t", "runs/stats", "train")),
        (
            "data convert f --to trl --output_file o",
            "commands.convert",
            "convert",
            ("f", "trl", "o", None, None, False, 0, "train"),
        ),
        (
            "data convert f --to trl --output_file o --balance_lengths --seed 3",
            "commands.convert",
            "convert",
            ("f", "trl", "o", None, None, True, 3, "train"),
        ),
        ("data scenes --output_dir d --rows 7 --seed 2", "scenes", "export_dataset", ("d", 7, 2)),
        ("data tiny-vlm --output_dir d", "demo.tiny_vlm", "train_tiny_vlm", ("d", 0, "float32")),
    ],
)
def test_main_dispatches_other_commands(stage, line, module, function, received):
    calls = stage(module, function)
    assert main(line.split()) == 0
    assert calls == [received]


def test_main_check_returns_the_commands_exit_code(stage):
    stage("commands.check", "check", result=1)
    assert main(["data", "check", "f.json"]) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("stf", "mmrlhf has no stf: did you mean sft?"),
        ("data convert f --to tlr --output_file o", "invalid choice: 'tlr'"),
        ("data chek", "mmrlhf data has no chek: did you mean check?"),
        ("sft --learning_rte 1", "mmrlhf sft has no flag --learning_rte: did you mean --learning_rate?"),
        ("sft --seed=x", "--seed must be an integer of at least 0, not 'x'"),
        ("sft --learning 1", "has no flag --learning"),
        ("sft rows.jsonl", "does not expect 'rows.jsonl' here"),
        ("sft --seed", "--seed: expected one argument"),
        ("sft --config nowhere/no.yaml", "there is no nowhere/no.yaml in configs"),
        ("sft", "model_name_or_path, dataset_name, output_dir are required: add --model_name_or_path ..."),
        ("data scenes --output_dir d --rows few", "must be an integer of at least 0, not 'few'"),
    ],
)
def test_main_refuses_bad_arguments_in_one_line(capsys, line, told):
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_main_turns_stage_errors_into_exit_codes(stage, capsys):
    stage("sft", "sft", result=InputError("row 3: no image"))
    assert main(["sft", *REQUIRED]) == 2
    assert capsys.readouterr().err == "error: row 3: no image\n"
    stage("sft", "sft", result=KeyboardInterrupt())
    assert main(["sft", *REQUIRED]) == 130
    assert "the same command resumes" in capsys.readouterr().err
    stage("sft", "sft", result=RuntimeError("a defect"))
    with pytest.raises(RuntimeError):
        main(["sft", *REQUIRED])


@pytest.mark.parametrize(
    "command", [*COMMANDS.values(), *DATA_COMMANDS.values(), *CALIBRATE_COMMANDS.values()], ids=lambda command: command.name
)
def test_help_shows_example_with_existing_flags(command, capsys):
    words = shlex.split(command.example)[1:]
    flags = {word for word in words if word.startswith("--")}
    about = command.name.split()[1:]
    try:
        assert main([*about, "--help"]) == 0
    except SystemExit as done:
        assert done.code == 0
    shown = capsys.readouterr().out
    assert command.example in shown
    if command.name != "mmrlhf data":
        usage, _ = shown.split("example:")
        assert all(f"{flag} " in usage for flag in flags)


def test_help_shows_docstring_range_choices_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["ppo", "--help"])
    shown = capsys.readouterr().out
    assert "Lambda of generalised advantage estimation. (from 0 to 1; default 0.95)" in shown
    assert "--dtype float32|bfloat16" in shown
    assert "Optimiser steps of linear warm-up. (at least 0; default 0)" in shown  # an inherited field


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command.example in shown for command in COMMANDS.values())
    assert main([]) == 2


def test_help_imports_no_heavy_packages():
    heavy = "torch transformers datasets peft accelerate numpy PIL"
    code = f"import sys, mmrlhf.cli; mmrlhf.cli.main(['--help']); print(sys.modules.keys() & set('{heavy}'.split()))"
    assert run_python("-c", code).stdout.splitlines()[-1] == "set()"


def test_module_entry_point_reports_errors_and_version():
    done = run_python("-m", "mmrlhf", "sft", "--lora_r", "0", *REQUIRED)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --lora_r must be an integer of at least 1, not '0'\n"
    assert run_python("-m", "mmrlhf", "--version").stdout == f"{mmrlhf.__version__}\n"


def test_package_exports_public_names_lazily():
    code = "import mmrlhf, sys; print(mmrlhf.SFTConfig, mmrlhf.Preference.__name__, 'torch' in sys.modules)"
    assert run_python("-c", code).stdout == "<class 'mmrlhf.config.SFTConfig'> Preference False\n"
    with pytest.raises(AttributeError, match="sfft"):
        _ = mmrlhf.sfft
