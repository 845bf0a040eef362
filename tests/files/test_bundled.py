"""Bundled recipes, samples and benchmarks are found by name and loaded by path."""

import os
import subprocess
import sys

import pytest

from mmrlhf.files import bundled
from mmrlhf.records import InputError


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Create a repository with one file of each kind, around a fake package folder."""
    for name in ("mmrlhf/files/bundled.py", "configs/demo/sft.yaml", "data/cards/one.jsonl", "eval/pope.py", "eval/_part.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "mmrlhf/files/bundled.py"))
    return tmp_path


def test_find_accepts_names_with_and_without_suffix(repository):
    assert bundled.find("eval", "pope") == repository / "eval/pope.py"
    for name in ("demo/sft", "demo/sft.yaml", "configs/demo/sft.yaml"):
        assert bundled.find("configs", name) == repository / "configs/demo/sft.yaml"
    assert bundled.find("data", "cards") == repository / "data/cards"
    assert bundled.names("eval") == ["pope"]


def test_find_prefers_bundled_copy(repository):
    wheel_copy = repository / "mmrlhf/_content/eval/pope.py"
    wheel_copy.parent.mkdir(parents=True)
    wheel_copy.touch()
    assert bundled.find("eval", "pope") == wheel_copy
    assert bundled.find("configs", "demo/sft") == repository / "configs/demo/sft.yaml"


def test_find_suggests_nearest_name(repository):
    with pytest.raises(InputError, match=r"there is no popee in eval: did you mean pope\?"):
        bundled.find("eval", "popee")
    with pytest.raises(InputError, match="there is no zzz in configs: the choices are demo/sft"):
        bundled.find("configs", "zzz")
    with pytest.raises(InputError):
        bundled.find("eval", "")


def test_find_treats_py_names_as_paths(repository, monkeypatch):
    monkeypatch.chdir(repository / "eval")
    assert bundled.find("eval", "pope.py").samefile(repository / "eval/pope.py")
    with pytest.raises(InputError, match=r"pop\.py does not exist: did you mean pope\.py"):
        bundled.find("eval", "pop.py")


def test_load_module_same_file_name_gives_distinct_modules(tmp_path):
    modules = []
    for number in (1, 2):
        file = tmp_path / str(number) / "same.py"
        file.parent.mkdir()
        file.write_text(
            "from __future__ import annotations\n"
            "from dataclasses import dataclass\n"
            f"@dataclass\nclass Row:\n    number: int = {number}\n"
        )
        modules.append(bundled.load_module(file))
    assert [module.Row().number for module in modules] == [1, 2]
    assert all(sys.modules[module.__name__] is module for module in modules)


def test_load_module_failure_leaves_no_module(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0")
    modules_before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        bundled.load_module(tmp_path / "bad.py")
    assert not [name for name in set(sys.modules) - modules_before if "bad" in name]
    with pytest.raises(InputError):
        bundled.load_module(tmp_path / "absent.py")


def test_find_accepts_every_spelling_of_a_benchmark(repository):
    (repository / "eval/mmhal_bench.py").touch()
    for name in ("MMHal-Bench", "mmhal", "mmhalbench", "mmhal_bench.py".removesuffix(".py")):
        assert bundled.find("eval", name) == repository / "eval/mmhal_bench.py"
    with pytest.raises(InputError, match="did you mean mmhal_bench"):
        bundled.find("eval", "mmhal_bnch")


def test_find_accepts_a_path_that_is_no_regular_file(repository):
    os.mkfifo(repository / "pipe.py")
    assert bundled.find("eval", str(repository / "pipe.py")) == repository / "pipe.py"
    (repository / "folder.py").mkdir()
    with pytest.raises(InputError, match=r"folder\.py does not exist"):
        bundled.find("eval", str(repository / "folder.py"))


def test_shell_scripts_beside_the_recipes_parse():
    scripts = sorted(bundled.folder("configs").rglob("*.sh"))
    assert [script.name for script in scripts] == ["slurm.sh"]
    for script in scripts:
        checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert checked.returncode == 0 and not checked.stderr, checked.stderr
