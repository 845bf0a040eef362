"""Imports point down only, and no stage imports another."""

import ast
from pathlib import Path

import mmrlhf

LAYERS = [
    {
        "records",
        "answers",
        "config",
        "settings",
        "files",
        "rows",
        "tables",
        "nouns",
        "claims",
        "facts",
        "damage",
        "formats",
        "summary",
        "balance",
        "calibration",
        "scenes",
        "content",
        "lines",
        "intervals",
        "suites",
        "english",
        "coco_words",
    },
    {"losses"},
    {
        "images",
        "features",
        "encoder",
        "budget",
        "vlm",
        "loading",
        "roles",
        "kv",
        "plain",
        "prefix",
        "decoding",
        "sampling",
        "stems",
    },
    {
        "run",
        "verify",
        "growing",
        "terms",
        "claim_terms",
        "rewards",
        "artefact",
        "probe",
        "rollout",
        "benchmark",
        "endpoint",
        "judges",
        "answer_files",
        "training",
        "memory",
    },
    {
        "sft",
        "reward_model",
        "reward_bench",
        "ppo",
        "generate",
        "score",
        "encode",
        "calibrate",
        "plan",
        "best_of_n",
        "asking",
        "evaluate",
        "compare",
        "report",
        "scenes_base",
        "check",
        "stats",
        "convert",
        "extract",
    },
    {"demo", "cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SHARED_BY_STAGES = {("evaluate", "asking"), ("asking", "generate")}
"""A model under an adapter is opened in one place."""
WITHIN = {
    "claims": ["grammar", "lexicon", "chair", "tagging", "choosing", "phrases", "made", "predicates", "places", "extraction"],
    "verify": ["facts", "verifier", "sentences", "combined", "clip", "asking"],
    "facts": ["lists", "annotations", "reading", "rendering"],
    "formats": ["turns", "pictures", "preferences", "examples", "reading", "writing"],
    "scenes": ["things", "pictures", "graph", "language", "truth", "files"],
    "report": ["results", "plots", "page", "claims", "terminal"],
    "compare": ["runs", "paired", "diversity", "written"],
}
"""The modules of a package, each importing only those before it."""


def modules() -> list[tuple[str, Path]]:
    """Every file of the package and the name that has a layer: a module's, or that of the package it belongs to."""
    root = Path(mmrlhf.__file__).parent
    paths = [p.relative_to(root) for p in root.rglob("*.py")]
    return [(p.parts[0].removesuffix(".py"), root / p) for p in paths if p.parts[0] not in ("__init__.py", "_content")]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mmrlhf"):
            found |= {node.module.split(".")[1]} if "." in node.module else {a.name for a in node.names if a.name in LEVEL}
    return found


def test_every_module_has_a_layer_and_imports_point_down():
    for name, path in modules():
        for other in imports(path) - {name}:
            assert LEVEL[other] <= LEVEL[name], f"{name} imports {other}, which stands above it"
            if LEVEL[name] == 4 and LEVEL[other] == 4:
                assert (name, other) in SHARED_BY_STAGES, f"stage {name} imports stage {other}"


def test_a_package_is_read_in_one_direction():
    for package, order in WITHIN.items():
        root = Path(mmrlhf.__file__).parent / package
        assert {p.stem for p in root.glob("*.py")} == {*order, "__init__"}
        for place, name in enumerate(order):
            for node in ast.walk(ast.parse((root / f"{name}.py").read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"mmrlhf.{package}"):
                    assert (node.module or "").removeprefix(f"mmrlhf.{package}.") in order[:place], f"{name}: {node.module}"


def test_the_lowest_layer_knows_no_torch():
    for name, path in modules():
        if name not in LAYERS[0]:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            named = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not any(n and n.split(".")[0] in ("torch", "transformers", "peft") for n in named), name
