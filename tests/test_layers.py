"""Imports point down: a folder imports only folders below it, and no stage imports another."""

import ast
from pathlib import Path

import pytest

import mmrlhf

ROOT = Path(mmrlhf.__file__).parent
STAGES = ("sft", "reward_model", "dpo", "ppo", "generate", "evaluate", "serve", "label")
ORDER = [
    "__main__", "cli", "demo", "replay", "feedback", "rft", "arena", *STAGES,
    "labeling", "serving", "commands", "evaluation", "training", "rewards",
    "datasets", "verifiers", "facts", "report", "engine", "models", "claims", "scenes", "metrics", "text", "files",
    "config", "background", "records",
]  # fmt: skip
"""Files and folders from top to bottom. Each may import those after it."""
WITHOUT_TORCH = ("datasets", "facts", "claims", "scenes", "text", "metrics", "files", "config", "records")
"""Files and folders that must not import torch, so that commands on files start fast."""


def layered_modules() -> list[Path]:
    """Return every module of the package, except those bundled in a wheel."""
    return [path for path in sorted(ROOT.rglob("*.py")) if "_content" not in path.parts and path != ROOT / "__init__.py"]


def part_of(path: Path) -> str:
    """Return the top-level file or folder that a module belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> list[str]:
    """Return the dotted names that a module imports; `from mmrlhf import ppo` gives mmrlhf.ppo."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_package = node.module == "mmrlhf" or (ROOT.parent / Path(*node.module.split("."))).is_dir()
            names += [f"{node.module}.{alias.name}" for alias in node.names] if is_package else [node.module]
    return names


def test_every_part_of_the_package_has_a_place_in_the_order():
    assert {part_of(path) for path in layered_modules()} == set(ORDER)


@pytest.mark.parametrize("path", layered_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    part = part_of(path)
    for name in imported_modules(path):
        if not name.startswith("mmrlhf."):
            continue
        other = name.split(".")[1]
        if other not in ORDER or other == part:  # a name in mmrlhf/__init__.py, or the folder itself
            continue
        assert ORDER.index(other) > ORDER.index(part), f"{path.name} imports {name}, which is above it"
        assert not (part in STAGES and other in STAGES), f"stage {part} imports stage {other}"


@pytest.mark.parametrize("path", layered_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_of_training_serves_its_own_stage(path):
    """What the stages share imports none of these folders; `replay` computes any stage's steps."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    stage = parts[1] if parts[0] == "training" and len(parts) > 2 else parts[0]
    for name in imported_modules(path):
        folder = name.removeprefix("mmrlhf.training.").partition(".")[0]
        if name.startswith("mmrlhf.training.") and (ROOT / "training" / folder).is_dir():
            assert stage in (folder, "replay"), f"{path.name} imports {name}, which is for {folder} alone"


def test_modules_import_each_other_in_one_direction():
    def module_of(name: str) -> str:
        """Return the module of an imported name, which is a module or something defined in one."""
        is_module = (ROOT.parent / Path(*name.split("."))).with_suffix(".py").is_file()
        return name if is_module else name.rpartition(".")[0]

    graph: dict[str, set[str]] = {}
    for path in layered_modules():
        name = ".".join(["mmrlhf", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        imported = {module_of(imported_name) for imported_name in imported_modules(path) if imported_name.startswith("mmrlhf.")}
        graph[name] = imported - {name, "mmrlhf"}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circular import: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in finished:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(
    "path",
    [path for path in layered_modules() if part_of(path) in WITHOUT_TORCH],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_file_commands_need_no_torch(path):
    assert not {name.split(".")[0] for name in imported_modules(path)} & {"torch", "transformers", "peft"}


@pytest.mark.parametrize("path", layered_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_processes_exchange_through_one_module(path):
    """Exchanges elsewhere would hang a base in shards, which has to be told of them first."""
    text = path.read_text(encoding="utf-8")
    if path.relative_to(ROOT).as_posix() in ("models/processes.py", "models/sharding.py"):
        return
    for name in ("gather_object", "broadcast_object_list", "PartialState().wait"):
        assert name not in text or "from mmrlhf.models.processes import" in text
    assert "accelerate.utils import gather" not in text
    assert "= Accelerator()" not in text or "from accelerate import Accelerator" not in text
