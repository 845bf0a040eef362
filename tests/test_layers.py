"""Imports point down only, and no stage imports another."""

import ast
from pathlib import Path

import mmrlhf

LAYERS = [
    {"records", "config", "rows", "formats", "facts", "scenes", "content"},
    {"losses"},
    {"images", "vlm", "roles", "prefix"},
    {"run", "rewards", "rollout", "benchmark", "training"},
    {"sft", "reward_model", "ppo", "generate", "score", "best_of_n", "evaluate", "report", "scenes_base", "check"},
    {"demo", "cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SHARED_BY_STAGES = {("evaluate", "generate")}
"""A model under an adapter is opened in one place."""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mmrlhf"):
            found |= {node.module.split(".")[1]} if "." in node.module else {a.name for a in node.names if a.name in LEVEL}
    return found


def test_every_module_has_a_layer_and_imports_point_down():
    package = Path(mmrlhf.__file__).parent
    for path in package.glob("*.py"):
        name = path.stem
        if name == "__init__":
            continue
        for other in imports(path):
            assert LEVEL[other] <= LEVEL[name], f"{name} imports {other}, which stands above it"
            if LEVEL[name] == 4 and LEVEL[other] == 4:
                assert (name, other) in SHARED_BY_STAGES, f"stage {name} imports stage {other}"


def test_the_lowest_layer_knows_no_torch():
    package = Path(mmrlhf.__file__).parent
    for name in LAYERS[0]:
        tree = ast.parse((package / f"{name}.py").read_text())
        for node in ast.walk(tree):
            named = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not any(n and n.split(".")[0] in ("torch", "transformers", "peft") for n in named), name
