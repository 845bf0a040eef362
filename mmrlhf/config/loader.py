"""Load configurations from files and flags, and report errors in one sentence.

pydantic checks the types because it reports all errors at once, as data from which the message can
name the file or the flag. tyro, jsonargparse and OmegaConf report finished text, and the latter two
only the first error.
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

from mmrlhf.config.base import SettingsError
from mmrlhf.config.foreign_settings import EXPLAINED_SETTINGS, OTHER_VALUES, SAME_SETTINGS
from mmrlhf.config.setting_families import SETTING_FAMILIES
from mmrlhf.records import InputError

SIMILAR = 0.75
"""Minimum similarity (difflib's ratio) for suggesting a valid name."""
MISSPELT = 0.87
"""Minimum similarity for treating a name as misspelt, not as another tool's."""
MAX_CHOICES_LISTED = 40
"""Maximum number of valid names in a message."""
MAX_FILE_ERRORS = 20
"""Maximum number of wrong lines of a file in a message."""
MAX_YAML_DEPTH = 16
"""Levels of nesting in a file; a suite needs three."""
_OPENING_TOKENS = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING_TOKENS = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
RENAMED_FIELDS = {
    "train": "tuning",
    "prefix": "share_prefix",
    "facts_budget": "max_facts_tokens",
    "planted_claims": "injected_claim_rate",
    "spans_paid": "span_credit",
    "watch_verifiers": "monitor_verifiers",
    "same_verifier": "allow_monitoring_reward_verifiers",
    "min_probe_rate": "min_probe_detection_rate",
    "claims_from": "claim_source",
    "judgments": "recorded_judgments",
    "judge_tokens": "judge_max_tokens",
    "judge_budget": "judge_token_budget",
    "hard": "occluded_share",
    "habit": "cooccurrence_bias",
    "planted": "injected_share",
    "listed": "fact_recall",
    "wrong": "fact_error_rate",
    "near_tie": "min_utility_gap",
    "lambda_": "false_claim_penalty",
}
"""Old names of fields with the new ones. They are refused, not accepted as aliases."""
DEPRECATED_FIELDS = {"allow_worse_judge": "allow_worse_reward_model"}
"""Old names of fields with the new ones. They are still accepted, with a note."""
RENAMED_VALUES = {
    "loss_type": {"margin": "bt_margin", "smoothed": "bt_label_smoothing"},
    "head_init": {"review": "yes_no"},
    "span_credit": {"where_said": "token", "at_end": "last_token"},
}
"""Old values of a field with the new ones, refused in the same way."""


@dataclasses.dataclass(frozen=True)
class ConfigField:
    """The accepted values of a field, for messages and `--help`; `choices` lists a Literal's."""

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
        """Return the text that follows "must be": "a number above 0", "lora or full"."""
        type_names = {"integer": "an integer", "number": "a number", "text": "non-empty text", "boolean": "true or false"}
        text = " or ".join(self.choices) if self.choices else f"{type_names[self.value_type]} {self.bounds}".rstrip()
        return text + " or none" * self.is_optional


def config_fields(cls: type) -> dict[str, ConfigField]:
    """Return the fields of a configuration class by name, in order, read from its JSON schema."""
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
    """Return a field's docstring as one line, from the class that defines the field.

    pydantic does not pass attribute docstrings on to subclasses.
    """
    owner: Any = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    return " ".join((owner.__pydantic_fields__[name].description or "").split())


def _bounds(schema: Mapping[str, Any]) -> str:
    prefixes = {
        "exclusiveMinimum": "above", "minimum": "of at least", "maximum": "of at most", "exclusiveMaximum": "below",
    }  # fmt: skip
    bounds = {key: schema[key] for key in prefixes if schema.get(key) is not None}
    if set(bounds) == {"minimum", "maximum"}:
        return f"from {bounds['minimum']:g} to {bounds['maximum']:g}"
    return " and ".join(f"{prefixes[key]} {bound:g}" for key, bound in bounds.items())


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest valid name, or all of them."""
    names = sorted(valid)
    if nearest := nearest_name(name, names):
        return f"did you mean {nearest}?"
    return f"the choices are {', '.join(names[:MAX_CHOICES_LISTED]) or 'none'}" + ", ..." * (len(names) > MAX_CHOICES_LISTED)


def nearest_name(name: str, valid: Iterable[str], similar: float = SIMILAR) -> str | None:
    """Return the valid name most similar to an unknown one; None if none is similar enough."""
    names = sorted(valid)
    transposed = [other for other in names if sorted(other) == sorted(name)]
    return next(iter(transposed or difflib.get_close_matches(name, names, n=1, cutoff=similar)), None)


def unknown_setting(name: str, valid: Iterable[str], dashes: str = "") -> str | None:
    """Return what to use instead of an unknown setting; None if nothing is known about it.

    It may be a setting of another tool, or a misspelt one. `dashes` is the prefix of a setting's
    name on the command line.
    """
    names, key = set(valid), name.replace("-", "_")
    if same := next((other for other in SAME_SETTINGS.get(key, "").split() if other in names), None):
        return f"use {dashes}{same}"
    if key in EXPLAINED_SETTINGS:
        return EXPLAINED_SETTINGS[key]
    if not nearest_name(key, names, MISSPELT):
        for pattern, sentence in SETTING_FAMILIES.items():
            if re.search(pattern, key):
                return sentence
    nearest = nearest_name(key, names)
    return f"did you mean {dashes}{nearest}?" if nearest else None


def renamed(old: str, new: str) -> str:
    """Return the message about a name that is no longer used."""
    return f"`{old}` was renamed: use `{new}`"


def renamed_field(name: str, valid: Iterable[str]) -> str | None:
    """Return a field's new name; None if `name` is valid or was not renamed to one of `valid`."""
    valid = set(valid)
    new_name = (RENAMED_FIELDS | DEPRECATED_FIELDS).get(name)
    return new_name if name not in valid and new_name in valid else None


def current_names(settings: Mapping[Any, Any], valid: Iterable[str] = DEPRECATED_FIELDS.values()) -> dict[Any, Any]:
    """Return settings, each deprecated name replaced by the new one if that is in `valid`.

    If both names are given, both stay.
    """
    free = set(valid) - settings.keys()
    new_names = {old: new for old, new in DEPRECATED_FIELDS.items() if new in free}
    return {new_names.get(name, name): value for name, value in settings.items()}


Config = TypeVar("Config")


def load_config(cls: type[Config], file: Path | None, overrides: Mapping[str, Any]) -> Config:
    """Build a configuration from a YAML file and then from the command line.

    `none` clears an optional field, and a string in `overrides` is read as on the command line.
    Paths inside the file are relative to the current directory. Prints a note for each deprecated
    name. Raises InputError with all problems of the input in one message.
    """
    fields = config_fields(cls)
    given_values = read_yaml(file) if file is not None else {}
    file_values = current_names(given_values, fields)
    for name in given_values.keys() - file_values.keys():
        print(f"note: {file}: {renamed(name, DEPRECATED_FIELDS[name])}")
    overrides = current_names(overrides, fields)
    values = {
        key: None if value == "none" and _accepts_none(fields, key) else value
        for key, value in {**file_values, **overrides}.items()
    }
    labels = {key: f"--{key}" if key in overrides else str(key) for key in values}
    errors_by_key: dict[Any, str] = {}

    for key in values.keys() - fields.keys():
        errors_by_key[key] = _unknown_field_message(str(key), "--" if key in overrides else "", fields)
    for key in values.keys() & fields.keys():
        is_boolean = isinstance(values[key], bool)
        if is_boolean and fields[key].value_type in ("integer", "number"):  # pydantic takes True for 1
            errors_by_key[key] = _invalid_value_message(labels[key], fields[key], values[key])
    missing_fields = [name for name, field in fields.items() if field.is_required and name not in values]
    try:
        config = cls(**{str(key): value for key, value in values.items() if key in fields})
    except (SettingsError, ValidationError) as error:
        config = None
        for problem in error.errors():
            key = problem["loc"][0]
            if key in values:
                errors_by_key.setdefault(key, _invalid_value_message(labels[key], fields[str(key)], values[key]))

    problems = [errors_by_key[key] for key in overrides if key in errors_by_key]
    file_errors = [errors_by_key[key] for key in file_values if key in errors_by_key and key not in overrides]
    if file_errors:
        more = f"; and {len(file_errors) - MAX_FILE_ERRORS} more" if len(file_errors) > MAX_FILE_ERRORS else ""
        problems.append(f"{file}: {'; '.join(file_errors[:MAX_FILE_ERRORS])}{more}")
    if missing_fields:
        missing_flags = " ".join(f"--{name} ..." for name in missing_fields)
        destination = f"to {file}" if file is not None else "to a file for --config"
        verb, line_phrase = ("is", "a line") if len(missing_fields) == 1 else ("are", "a line for each")
        problems.append(f"{', '.join(missing_fields)} {verb} required: add {missing_flags}, or {line_phrase} {destination}")
    if problems:
        raise InputError("; ".join(problems))
    assert config is not None
    return config


def save_config(config: Any, path: Path) -> None:
    """Write a configuration, atomically, as YAML that `load_config` reads back to an equal one."""
    temp_path = path.with_name(f".{path.name}.{os.getpid()}")
    text = yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=False)
    temp_path.write_text(text, encoding="utf-8")
    os.replace(temp_path, path)


def read_yaml(file: Path) -> dict[Any, Any]:
    """Return the top-level mapping of a YAML file; empty for an empty file. Raises InputError."""
    try:
        text = file.read_text(encoding="utf-8")
        _refuse_costly_yaml(file, text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            node_type = "sequence" if isinstance(node, yaml.SequenceNode) else "scalar"
            raise InputError(f"{file} must hold `field: value` lines, not a {node_type}")
        if repeated := sorted(_repeated_keys(node)):
            raise InputError(f"{file} gives {', '.join(repeated)} more than once")
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
    except (yaml.YAMLError, ValueError, TypeError) as error:  # not UTF-8, a date such as 2026-13-01, a list as a key
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None


def _repeated_keys(node: yaml.Node) -> set[str]:
    """Return the keys that a mapping at any level gives more than once: PyYAML keeps the last."""
    if isinstance(node, yaml.SequenceNode):
        return set().union(*map(_repeated_keys, node.value))
    if not isinstance(node, yaml.MappingNode):
        return set()
    keys = [key.value for key, _ in node.value]
    repeated = {str(key) for key in keys if keys.count(key) > 1}
    return repeated.union(*(_repeated_keys(value) for _, value in node.value))


def _refuse_costly_yaml(file: Path, text: str) -> None:
    """Raise InputError for anchors, tags and deep nesting.

    No setting needs them, and a few hundred bytes of nested aliases expand to more than memory
    holds.
    """
    depth = 0
    for token in yaml.scan(text, Loader=_Loader):
        line = token.start_mark.line + 1
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            raise InputError(f"{file} line {line} uses a YAML anchor, alias or tag: write the value itself")
        if isinstance(token, _OPENING_TOKENS):
            depth += 1
        elif isinstance(token, _CLOSING_TOKENS):
            depth -= 1
        if depth > MAX_YAML_DEPTH:
            raise InputError(
                f"{file} line {line} is nested more than {MAX_YAML_DEPTH} levels deep: a file holds `field: value` lines"
            )


def _accepts_none(fields: Mapping[str, ConfigField], name: Any) -> bool:
    return name in fields and fields[name].is_optional


def _unknown_field_message(name: str, dashes: str, fields: Mapping[str, ConfigField]) -> str:
    new_name = renamed_field(name, fields)
    if new_name is not None:
        return renamed(f"{dashes}{name}", f"{dashes}{new_name}")
    hint = unknown_setting(name, fields, dashes) or "leave it out (the command's --help lists its settings)"
    return f"{dashes}{name} is unknown: {hint}"


def _invalid_value_message(label: str, field: ConfigField, value: Any) -> str:
    new_value = RENAMED_VALUES.get(field.name, {}).get(value) if isinstance(value, str) else None
    if new_value is not None:
        return f"{label}: {renamed(str(value), new_value)}"
    other_value = OTHER_VALUES.get(field.name, {}).get(str(value).lower()) if field.choices else None
    hint = f": use {other_value}" if other_value and other_value.split()[0] in field.choices else ""
    literal_names = {None: "null", True: "true", False: "false"}
    value_text = literal_names[value] if value is None or isinstance(value, bool) else repr(value)
    value_text = value_text if len(value_text) <= 80 else value_text[:77] + "..."
    needs_quotes = field.value_type == "text" and not field.choices and not isinstance(value, str | list | dict | None)
    return f"{label} must be {field.expected}, not {value_text}" + " (put it in quotes)" * needs_quotes + hint


class _Loader(yaml.SafeLoader):
    """Reads values as in YAML 1.2. In PyYAML's 1.1, `off` is false, 016 is 14 and 1:30 is 90."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Read an integer: decimal, 0x10 or 0o17."""
        return int(node.value, {"0x": 16, "0o": 8}.get(node.value[:2], 10))


class _Dumper(yaml.SafeDumper):
    """The counterpart of `_Loader`: it quotes text that `_Loader` would read as another value."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012


_VALUES = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?\d+|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    "float": (r"[-+]?((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)", list("-+.0123456789")),
}
"""Pattern of each kind of value except text, and its possible first characters."""
for _kind, (_pattern, _first) in _VALUES.items():
    for _yaml in (_Loader, _Dumper):
        _yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def stage_of(settings: Mapping[str, Any]) -> str:
    """Return the command to which settings belong: each has a setting that all later ones lack."""
    own_settings = {
        "feedback": "false_claim_penalty", "rft": "num_rounds", "reward-eval": "probes", "ppo": "reward_terms", "dpo": "precompute_ref_log_probs", "reward": "loss_type",
    }  # fmt: skip
    return next((stage for stage, name in own_settings.items() if name in settings), "sft")
