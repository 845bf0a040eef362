"""Recipes, samples and benchmarks are found by name and loaded by path."""

import sys

import pytest

from mmrlhf.files import bundled
from mmrlhf.records import InputError


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one file of each kind, around an imagined package directory."""
    for name in ("mmrlhf/files/bundled.py", "configs/demo/sft.yaml", "data/cards/one.jsonl", "eval/pope.py", "eval/_part.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "mmrlhf/files/bundled.py"))
    return tmp_path


def test_names_are_found_with_and_without_what_goes_without_saying(repository):
    assert bundled.find("eval", "pope") == repository / "eval/pope.py"
    for name in ("demo/sft", "demo/sft.yaml", "configs/demo/sft.yaml"):
        assert bundled.find("configs", name) == repository / "configs/demo/sft.yaml"
    assert bundled.find("data", "cards") == repository / "data/cards"
    assert bundled.names("eval") == ["pope"]


def test_the_wheels_own_copy_comes_first(repository):
    wheel_copy = repository / "mmrlhf/_content/eval/pope.py"
    wheel_copy.parent.mkdir(parents=True)
    wheel_copy.touch()
    assert bundled.find("eval", "pope") == wheel_copy
    assert bundled.find("configs", "demo/sft") == repository / "configs/demo/sft.yaml"


def test_an_unknown_name_gets_the_nearest(repository):
    with pytest.raises(InputError, match=r"there is no popee in eval: did you mean pope\?"):
        bundled.find("eval", "popee")
    with pytest.raises(InputError, match="there is no zzz in configs: there is demo/sft"):
        bundled.find("configs", "zzz")
    with pytest.raises(InputError):
        bundled.find("eval", "")


def test_what_ends_in_py_is_a_path(repository, monkeypatch):
    monkeypatch.chdir(repository / "eval")
    assert bundled.find("eval", "pope.py").samefile(repository / "eval/pope.py")
    with pytest.raises(InputError, match=r"pop\.py does not exist: did you mean pope\.py"):
        bundled.find("eval", "pop.py")


def test_two_files_of_one_name_are_two_modules(tmp_path):
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


def test_a_file_that_fails_raises_its_own_error_and_leaves_nothing(tmp_path):
    (tmp_path / "bad.py").write_text("1 / 0")
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        bundled.load_module(tmp_path / "bad.py")
    assert not [name for name in set(sys.modules) - before if "bad" in name]
    with pytest.raises(InputError):
        bundled.load_module(tmp_path / "absent.py")


def test_a_benchmark_goes_by_every_spelling_of_its_name(repository):
    (repository / "eval/mmhal_bench.py").touch()
    for name in ("MMHal-Bench", "mmhal", "mmhalbench", "mmhal_bench.py".removesuffix(".py")):
        assert bundled.find("eval", name) == repository / "eval/mmhal_bench.py"
    with pytest.raises(InputError, match="did you mean mmhal_bench"):
        bundled.find("eval", "mmhal_bnch")
