"""The documents mention only commands, flags, files and Python objects that exist."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from mmrlhf.cli import app as cli
from mmrlhf.cli.parser import Parser
from mmrlhf.records import InputError

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / name / "README.md" for name in ("data", "eval")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CURRENT_DOCUMENTS = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
"""The changelog also mentions what was removed."""
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
TOP_FOLDERS = "mmrlhf|tests|eval|docs|configs|data|examples"


def document_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class ParsedError(Exception):
    """Raised instead of running a command, once its arguments have proved valid."""


def commands_in(text: str) -> list[str]:
    """Return the command lines in a text, one string each, without comments and placeholders."""
    text = re.sub(r"\\\n[#\s]*", " ", text)  # join continued lines
    lines = re.findall(r"^(?:#\s+|for .*; do )?mmrlhf (.+)$", text, re.M)
    lines = [re.sub(r"(?:\s#.*|; done.*)$", "", line) for line in lines]
    lines = [re.sub(r"\$\w+", "0", line) for line in lines]  # shell variables hold numbers
    lines = [re.sub(r"\s\.\.\.", "", line) for line in lines]
    return [" ".join(line.split()) for line in lines]


def commands_in_document(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return commands_in(text if path.suffix == ".yaml" else "\n".join(FENCE.findall(text)))


def parse_command(command: str) -> None:
    """Parse a command's arguments with the parser of the command. Raises ParsedError if valid."""
    argv = shlex.split(command)
    name = "mmrlhf"
    commands = cli.COMMANDS
    while (
        group := {
            "data": cli.DATA_COMMANDS,
            "calibrate": cli.CALIBRATE_COMMANDS,
            "label": cli.LABEL_COMMANDS,
            "arena": cli.ARENA_COMMANDS,
        }.get(argv[0])
    ) and commands is cli.COMMANDS:
        name, argv, commands = f"{name} {argv[0]}", argv[1:], group
    if argv[0] not in commands:
        raise InputError(f"{name} has no command {argv[0]}")
    commands[argv[0]].run(commands[argv[0]], argv[1:])


@pytest.fixture
def parse_only(monkeypatch, tmp_path):
    """Stop every command once its arguments are parsed, so that it writes nothing."""
    parse = Parser.parse

    def parse_and_stop(parser, argv):
        raise ParsedError(parse(parser, argv))

    monkeypatch.setattr(Parser, "parse", parse_and_stop)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.yaml").write_text("benchmarks: {pope: {data: x}}\nmodels: {sft: {model: x}}\n")
    (tmp_path / "examples").symlink_to(ROOT / "examples")


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES], ids=document_id)
def test_commands_in_documents_parse(path, parse_only):
    for command in commands_in_document(path):
        if command.split()[0].isupper() or command.startswith("-"):  # such as `mmrlhf STAGE --help`
            continue
        with pytest.raises(ParsedError):
            parse_command(command)


def test_commands_in_finds_continued_and_commented_lines():
    text = "```\nmmrlhf sft --a 1 \\\n  --b 2   # why\nfor s in 0; do mmrlhf demo --seed $s; done\n#   mmrlhf ppo ... --c 3\n```"
    assert commands_in(text) == ["sft --a 1 --b 2", "demo --seed 0", "ppo --c 3"]


def test_parse_command_refuses_unknown_flags(parse_only):
    with pytest.raises(InputError, match="learning_rte"):
        parse_command("sft --learning_rte 1")


def headings(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to a document's headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=document_id)
def test_links_have_targets(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{target} does not exist"
        assert not anchor or anchor in headings(linked), f"{target} has no such heading"


# data_errors.md is left out: it shows messages about files that do not exist.
@pytest.mark.parametrize("path", [p for p in (*CURRENT_DOCUMENTS, *RECIPES) if p.name != "data_errors.md"], ids=document_id)
def test_named_paths_exist(path):
    for name in re.findall(rf"(?<![\w/.\-])(?:{TOP_FOLDERS})/[\w./\-]*\w/?", path.read_text(encoding="utf-8")):
        is_placeholder = name.rpartition("/")[2].isupper()
        assert is_placeholder or (ROOT / name).exists(), f"{name} does not exist"


def top_level_names(module: Path) -> set[str]:
    """Return the names that a module defines or imports."""
    names: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", CURRENT_DOCUMENTS, ids=document_id)
def test_named_python_objects_exist(path):
    for dotted in re.findall(r"`(mmrlhf(?:\.\w+)+)[(`]", path.read_text(encoding="utf-8")):
        module, names = ROOT / "mmrlhf", dotted.split(".")[1:]
        while names and (module / names[0]).is_dir():
            module /= names.pop(0)
        if names and (module / f"{names[0]}.py").is_file():
            module /= f"{names.pop(0)}.py"
        if module.is_dir():
            module /= "__init__.py"
        assert not names or names[0] in top_level_names(module), f"{dotted} does not exist"
