"""Configurations from files and flags: their fields as users see them, and one sentence for what is wrong with a value.

`load` turns what the user wrote into a configuration (`config`), or says which key or value is wrong. The types are checked by
pydantic because it reports all errors at once and as data, so that the sentence can be ours and can name the file or
the flag; tyro, jsonargparse and OmegaConf report finished text, the latter two on the first error only.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from mmrlhf.records import InputError


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field accepts, for messages and for `--help`; `choices` if it is one of a few words."""

    name: str
    kind: Literal["integer", "number", "text", "boolean"]
    bounds: str
    choices: tuple[str, ...]
    optional: bool
    required: bool
    default: Any
    help: str

    @property
    def allowed(self) -> str:
        """As it stands after "must be": "a number above 0", "lora or full"."""
        noun = {"integer": "an integer", "number": "a number", "text": "non-empty text", "boolean": "true or false"}
        text = " or ".join(self.choices) if self.choices else f"{noun[self.kind]} {self.bounds}".rstrip()
        return text + " or none" * self.optional


def settings(cls: type) -> dict[str, Setting]:
    """The fields of a configuration class by name, in order, read from its JSON schema."""
    schema = TypeAdapter(cls).json_schema()
    found = {}
    for name, prop in schema["properties"].items():
        variants = prop.get("anyOf", [prop])
        value = next(variant for variant in variants if variant.get("type") != "null")
        found[name] = Setting(
            name=name,
            kind={"string": "text"}.get(value["type"], value["type"]),
            bounds=_bounds(value),
            choices=tuple(value.get("enum", ())),
            optional=len(variants) > 1,
            required=name in schema.get("required", ()),
            default=prop.get("default"),
            help=_docstring(cls, name),
        )
    return found


def _docstring(cls: type, name: str) -> str:
    """From the class that defines the field: pydantic does not pass attribute docstrings on to subclasses."""
    owner: Any = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    return owner.__pydantic_fields__[name].description or ""


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high, above = (schema.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    words = ((above, "above"), (low, "of at least"), (high, "of at most"))
    return " and ".join(f"{word} {bound:g}" for bound, word in words if bound is not None)


def suggestion(name: str, valid: Iterable[str]) -> str:
    """How a message on an unknown name ends: with the nearest valid one, or with all of them if none is near."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(valid) or 'none'}"


Config = TypeVar("Config")


def load(cls: type[Config], file: Path | None, overrides: Mapping[str, Any]) -> Config:
    """The configuration that a YAML file and then the command line give.

    A string in `overrides` is read as on the command line: `none` empties a field that may be empty. Paths inside
    the file are relative to the current directory. Raises InputError, all problems of the input in one message.
    """
    fields = settings(cls)
    in_file = read_yaml(file) if file is not None else {}
    given = {name: None if value == "none" and _empties(fields, name) else value for name, value in overrides.items()}
    values: dict[Any, Any] = {**in_file, **given}
    bad: dict[Any, str] = {}  # what is wrong, by key

    for key in values.keys() - fields.keys():
        flag = "--" if key in given else ""
        bad[key] = f"is unknown: {suggestion(f'{flag}{key}', (flag + name for name in fields))}"
    for key in values.keys() & fields.keys():
        if isinstance(values[key], bool) and fields[key].kind in ("integer", "number"):  # pydantic takes True for 1
            bad[key] = _must_be(fields[key], values[key])
    missing = [name for name, field in fields.items() if field.required and name not in values]
    try:
        config = cls(**{str(key): value for key, value in values.items() if key in fields})
    except ValidationError as error:
        config = None
        for problem in error.errors():
            key = problem["loc"][0]
            if key in values:
                bad.setdefault(key, _must_be(fields[str(key)], values[key]))

    problems = [f"--{key} {bad[key]}" for key in given if key in bad]
    in_file_bad = [f"{key} {bad[key]}" for key in in_file if key in bad and key not in given]
    if in_file_bad:
        problems.append(f"{file}: {'; '.join(in_file_bad)}")
    if missing:
        give = " ".join(f"--{name} ..." for name in missing)
        where = f"to {file}" if file is not None else "to a file that --config names"
        be, line = ("is", "a line") if len(missing) == 1 else ("are", "a line for each")
        problems.append(f"{', '.join(missing)} {be} required: add {give}, or {line} {where}")
    if problems:
        raise InputError("; ".join(problems))
    assert config is not None
    return config


def save(config: Any, path: Path) -> None:
    """Write the resolved configuration as YAML that `load` reads back to an equal one; never half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=False)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_yaml(file: Path) -> dict[Any, Any]:
    """The top-level mapping of a YAML file; empty for an empty file. Raises InputError."""
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            found = "sequence" if isinstance(node, yaml.SequenceNode) else "scalar"
            raise InputError(f"{file} must hold `field: value` lines, not a {found}")
        keys = [key.value for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise InputError(f"{file} gives {', '.join(twice)} more than once")
        return dict(loader.construct_document(node))
    except FileNotFoundError:
        raise InputError(f"config file {file} does not exist") from None
    except OSError as error:
        raise InputError(f"config file {file} cannot be read ({error.strerror})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{file} is not valid YAML{where}: {error.problem}") from None
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-01
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None


def _empties(fields: Mapping[str, Setting], name: str) -> bool:
    return name in fields and fields[name].optional


def _must_be(field: Setting, value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    shown = words[value] if value is None or isinstance(value, bool) else repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    quote = field.kind == "text" and not field.choices and not isinstance(value, str | list | dict | None)
    return f"must be {field.allowed}, not {shown}" + " (put it in quotes)" * quote


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number, as YAML 1.2 has it; PyYAML alone wants `1.0e-4`."""


class _Dumper(yaml.SafeDumper):
    """Its counterpart: text that `_Loader` would take for a number is written in quotes."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
