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
class ConfigField:
    """What a field accepts, for messages and for `--help`; `choices` if it is one of a few words."""

    name: str
    value_type: Literal["integer", "number", "text", "boolean"]
    bounds: str
    choices: tuple[str, ...]
    is_optional: bool
    is_required: bool
    default: Any
    help: str

    @property
    def expected(self) -> str:
        """As it stands after "must be": "a number above 0", "lora or full"."""
        type_names = {"integer": "an integer", "number": "a number", "text": "non-empty text", "boolean": "true or false"}
        text = " or ".join(self.choices) if self.choices else f"{type_names[self.value_type]} {self.bounds}".rstrip()
        return text + " or none" * self.is_optional


def config_fields(cls: type) -> dict[str, ConfigField]:
    """The fields of a configuration class by name, in order, read from its JSON schema."""
    schema = TypeAdapter(cls).json_schema()
    fields = {}
    for name, property_schema in schema["properties"].items():
        variants = property_schema.get("anyOf", [property_schema])
        value_schema = next(variant for variant in variants if variant.get("type") != "null")
        fields[name] = ConfigField(
            name=name,
            value_type={"string": "text"}.get(value_schema["type"], value_schema["type"]),
            bounds=_bounds(value_schema),
            choices=tuple(value_schema.get("enum", ())),
            is_optional=len(variants) > 1,
            is_required=name in schema.get("required", ()),
            default=property_schema.get("default"),
            help=_docstring(cls, name),
        )
    return fields


def _docstring(cls: type, name: str) -> str:
    """From the class that defines the field: pydantic does not pass attribute docstrings on to subclasses."""
    owner: Any = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    return owner.__pydantic_fields__[name].description or ""


def _bounds(schema: Mapping[str, Any]) -> str:
    minimum, maximum, exclusive_minimum = (schema.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
    if minimum is not None and maximum is not None:
        return f"from {minimum:g} to {maximum:g}"
    prefixes = ((exclusive_minimum, "above"), (minimum, "of at least"), (maximum, "of at most"))
    return " and ".join(f"{prefix} {bound:g}" for bound, prefix in prefixes if bound is not None)


def suggestion(name: str, valid: Iterable[str]) -> str:
    """How a message on an unknown name ends: with the nearest valid one, or with all of them if none is near."""
    valid = sorted(valid)
    matches = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {matches[0]}?" if matches else f"there is {', '.join(valid) or 'none'}"


Config = TypeVar("Config")


def load_config(cls: type[Config], file: Path | None, overrides: Mapping[str, Any]) -> Config:
    """The configuration that a YAML file and then the command line give.

    A string in `overrides` is read as on the command line: `none` empties a field that may be empty. Paths inside
    the file are relative to the current directory. Raises InputError, all problems of the input in one message.
    """
    fields = config_fields(cls)
    file_values = read_yaml(file) if file is not None else {}
    flag_values = {name: None if value == "none" and _accepts_none(fields, name) else value for name, value in overrides.items()}
    values: dict[Any, Any] = {**file_values, **flag_values}
    errors_by_key: dict[Any, str] = {}  # what is wrong, by key

    for key in values.keys() - fields.keys():
        flag = "--" if key in flag_values else ""
        errors_by_key[key] = f"is unknown: {suggestion(f'{flag}{key}', (flag + name for name in fields))}"
    for key in values.keys() & fields.keys():
        if isinstance(values[key], bool) and fields[key].value_type in ("integer", "number"):  # pydantic takes True for 1
            errors_by_key[key] = _invalid_value_message(fields[key], values[key])
    missing_fields = [name for name, field in fields.items() if field.is_required and name not in values]
    try:
        config = cls(**{str(key): value for key, value in values.items() if key in fields})
    except ValidationError as error:
        config = None
        for problem in error.errors():
            key = problem["loc"][0]
            if key in values:
                errors_by_key.setdefault(key, _invalid_value_message(fields[str(key)], values[key]))

    problems = [f"--{key} {errors_by_key[key]}" for key in flag_values if key in errors_by_key]
    file_errors = [f"{key} {errors_by_key[key]}" for key in file_values if key in errors_by_key and key not in flag_values]
    if file_errors:
        problems.append(f"{file}: {'; '.join(file_errors)}")
    if missing_fields:
        missing_flags = " ".join(f"--{name} ..." for name in missing_fields)
        destination = f"to {file}" if file is not None else "to a file that --config names"
        verb, line_phrase = ("is", "a line") if len(missing_fields) == 1 else ("are", "a line for each")
        problems.append(f"{', '.join(missing_fields)} {verb} required: add {missing_flags}, or {line_phrase} {destination}")
    if problems:
        raise InputError("; ".join(problems))
    assert config is not None
    return config


def save_config(config: Any, path: Path) -> None:
    """Write the resolved configuration as YAML that `load` reads back to an equal one; never half a file."""
    temp_path = path.with_name(f".{path.name}.{os.getpid()}")
    text = yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=False)
    temp_path.write_text(text, encoding="utf-8")
    os.replace(temp_path, path)


def read_yaml(file: Path) -> dict[Any, Any]:
    """The top-level mapping of a YAML file; empty for an empty file. Raises InputError."""
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            node_type = "sequence" if isinstance(node, yaml.SequenceNode) else "scalar"
            raise InputError(f"{file} must hold `field: value` lines, not a {node_type}")
        keys = [key.value for key, _ in node.value]
        if duplicates := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise InputError(f"{file} gives {', '.join(duplicates)} more than once")
        return dict(loader.construct_document(node))
    except FileNotFoundError:
        raise InputError(f"config file {file} does not exist") from None
    except OSError as error:
        raise InputError(f"config file {file} cannot be read ({error.strerror})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        location = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{file} is not valid YAML{location}: {error.problem}") from None
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-01
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None


def _accepts_none(fields: Mapping[str, ConfigField], name: str) -> bool:
    return name in fields and fields[name].is_optional


def _invalid_value_message(field: ConfigField, value: Any) -> str:
    literal_names = {None: "null", True: "true", False: "false"}
    value_text = literal_names[value] if value is None or isinstance(value, bool) else repr(value)
    value_text = value_text if len(value_text) <= 80 else value_text[:77] + "..."
    needs_quotes = field.value_type == "text" and not field.choices and not isinstance(value, str | list | dict | None)
    return f"must be {field.expected}, not {value_text}" + " (put it in quotes)" * needs_quotes


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number, as YAML 1.2 has it; PyYAML alone wants `1.0e-4`."""


class _Dumper(yaml.SafeDumper):
    """Its counterpart: text that `_Loader` would take for a number is written in quotes."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
