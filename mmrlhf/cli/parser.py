"""Parse the arguments of a command: flags from a configuration, and errors in one sentence.

argparse only splits the command line; `loader.load_config` checks values from flags and from
files, with the same messages. Configuration fields are therefore not declared again here.
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mmrlhf.config.loader import (
    DEPRECATED_FIELDS,
    ConfigField,
    config_fields,
    load_config,
    renamed,
    renamed_field,
    unknown_setting,
)
from mmrlhf.files import bundled
from mmrlhf.records import InputError


@dataclass(frozen=True)
class Command:
    """A command: its name (without `mmrlhf`), help, example arguments, and what it runs."""

    name: str
    summary: str
    example_arguments: str
    run: Callable[[Command, list[str]], int | None]

    @property
    def prog(self) -> str:
        """Return the command as the user types it."""
        return f"mmrlhf {self.name}"

    @property
    def example(self) -> str:
        """Return a complete line to copy."""
        return f"{self.prog} {self.example_arguments}".rstrip()


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises InputError and suggests the nearest flag."""

    def __init__(self, command: Command, usage: str, description: str = "") -> None:
        super().__init__(
            prog=command.prog,
            usage=f"%(prog)s {usage}".rstrip(),
            description=description or command.summary[0].upper() + command.summary[1:] + ".",
            epilog=f"example:\n  {command.example}",
            formatter_class=_Formatter,
            allow_abbrev=False,  # a flag's meaning must not change when another is added
            argument_default=argparse.SUPPRESS,
        )
        # argparse takes only plain negative numbers for values: neither -1e-3 nor -5,5.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """Return the arguments that were given or have a default. Raises InputError."""
        args, unknown = self.parse_known_args([self._respelled(argument) for argument in argv])
        if unknown:
            # The values of unknown flags are among them.
            flags = (
                [argument for argument in unknown if re.match("--?[a-zA-Z]", argument)]
                if unknown[0].startswith("-")
                else unknown[:1]
            )
            raise InputError("; ".join(self._unknown_argument_message(flag) for flag in dict.fromkeys(flags or unknown[:1])))
        return vars(args)

    def _respelled(self, argument: str) -> str:
        """Return a flag written with hyphens (--learning-rate) as it is spelled here.

        A deprecated flag becomes the new one, and a note is printed.
        """
        flag, equals, value = argument.partition("=")
        dashes = "--no-" if flag.startswith("--no-") else "--"
        name = flag.removeprefix(dashes).replace("-", "_")
        respelled = dashes + DEPRECATED_FIELDS.get(name, name)
        if not flag.startswith("--") or respelled not in self._option_string_actions:
            return argument
        if name in DEPRECATED_FIELDS:
            print(f"note: {renamed(flag, respelled)}")
        return respelled + equals + value

    def _unknown_argument_message(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{self.prog} does not expect {argument!r} here: flags are written --name value"
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        names = [flag.removeprefix("--") for flag in flags]
        flag = argument.partition("=")[0]
        dashes = "--no-" if flag.startswith("--no-") else "--" if flag.startswith("--") else "-"
        name = flag.removeprefix(dashes)
        if (new_name := renamed_field(name, names)) is not None:
            return renamed(flag, f"{dashes}{new_name}")
        hint = unknown_setting(name, names, "--") or f"`{self.prog} --help` lists its flags"
        positional = next((action.metavar for action in self._actions if not action.option_strings), None)
        if positional == "FILE" and name in ("data", "dataset", "dataset_name") and "dataset_name" not in names:
            hint = f"give the file without a flag, `{self.prog} FILE`"
        return f"{self.prog} has no flag {flag}: {hint}"

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that starts the help of long flags on the flag's own line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def non_negative_int(text: str) -> int:
    """Parse the value of a flag such as --seed. Raises ArgumentTypeError."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, not {text!r}")
    return int(text)


def positive_int(text: str) -> int:
    """Parse the value of a flag such as --held_out. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """Parse the value of a flag such as --confidence. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


# ---- flags from a configuration ------------------------------------------------------------------

FLAG_ALIASES = {
    "model_name_or_path": "--model",
    "dataset_name": "--data",
    "output_dir": "--out",
    "output_file": "--out",
    "dataset_train_split": "--split",
    "lexicon_file": "--lexicon",
}
"""Short names of flags by field."""

Config = TypeVar("Config")


def parse_config(cls: type[Config], command: Command, argv: list[str]) -> Config:
    """Build a configuration from a command's arguments. Raises InputError."""
    return load_named_config(cls, make_config_parser(cls, command).parse(argv))


def load_named_config(cls: type[Config], flag_values: dict[str, Any]) -> Config:
    """Build a configuration from flags, and from the file that the flag `config` names, if given.

    The file is a path, or the name of one that comes with the package (`demo/sft`). Raises
    InputError.
    """
    name = flag_values.pop("config", None)
    if name is None:
        return load_config(cls, None, flag_values)
    file = Path(name) if os.path.exists(name) and not os.path.isdir(name) else bundled.find("configs", name)
    return load_config(cls, file, flag_values)


def make_config_parser(cls: type, command: Command, usage: str = "", multi_value_fields: Sequence[str] = ()) -> Parser:
    """Build a parser with a flag per field; `multi_value_fields` take one or more values."""
    description = " ".join((cls.__doc__ or "").split())
    parser = Parser(command, f"{usage} [--config FILE] [--FIELD VALUE ...]".strip(), description)
    parser.add_argument("--config", metavar="FILE", help="YAML with `field: value` lines; flags win over it")
    fields = config_fields(cls)
    required_group = parser.add_argument_group("required, as a flag or in the config file")
    for name in [name for name, field in fields.items() if field.is_required]:
        _add_config_flag(required_group, fields.pop(name), multi_value_fields)
    # The command's own settings first, then shared ones, the most general ones last.
    for owner in cls.__mro__:
        own_fields = [fields.pop(name) for name in inspect.get_annotations(owner) if name in fields]
        docstring = " ".join((owner.__doc__ or "").split()).rstrip(".")
        group = parser.add_argument_group("optional" if owner is cls else f"optional: {docstring[:1].lower()}{docstring[1:]}")
        for field in own_fields:
            _add_config_flag(group, field, multi_value_fields)
    return parser


def _add_config_flag(group: argparse._ArgumentGroup, field: ConfigField, multi_value_fields: Sequence[str]) -> None:
    add_flag(group, field, **({"nargs": "+", "action": "extend"} if field.name in multi_value_fields else {}))


def add_flag(group: argparse._ArgumentGroup, field: ConfigField, **kwargs: Any) -> None:
    """Add a flag that accepts any text, which `load_config` checks later.

    A boolean flag needs no value, and its negation is --no-FIELD.
    """
    hints = [field.bounds.removeprefix("of ")] if field.bounds else []
    if not field.is_required:
        hints.append(f"default {_format_default(field.default)}")
    help_text = (field.help + f" ({'; '.join(hints)})" * bool(hints)).replace("%", "%%")
    if field.value_type == "boolean":
        group.add_argument(f"--{field.name}", nargs="?", const="true", metavar="true|false", help=help_text)
        group.add_argument(f"--no-{field.name}", dest=field.name, action="store_const", const="false")
        return
    metavar = "|".join(field.choices) or field.value_type.upper()
    names = [FLAG_ALIASES[field.name], f"--{field.name}"] if field.name in FLAG_ALIASES else [f"--{field.name}"]
    group.add_argument(*names, dest=field.name, metavar=metavar, help=help_text, **kwargs)


def _format_default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- commands that are interrupted ---------------------------------------------------------------

STARTS_OVER = ("data", "compare", "report", "plan", "env", "export", "calibrate", "replay")
"""Commands that keep no output when they are interrupted."""
STARTS_OVER_WITHIN = {"label": ("add", "export", "report"), "arena": ("export", "report")}
"""Subcommands that keep no output, by command; the other subcommands continue."""


def stop_message(signal_name: str, arguments: Sequence[str]) -> str:
    """Return why a command stopped, and what repeating it would do."""
    reason = "interrupted" if signal_name == "SIGINT" else f"stopped by {signal_name}"
    return f"{reason}: the same command {'starts over' if _starts_over(arguments) else 'resumes from what is already written'}"


def _starts_over(arguments: Sequence[str]) -> bool:
    """Return whether an interrupted command keeps no output. A captioner's replies are kept."""
    command, *rest = arguments
    if command == "data" and any(word.partition("=")[0] == "--captioner" for word in rest):
        return False
    return command in STARTS_OVER or (rest[:1] != [] and rest[0] in STARTS_OVER_WITHIN.get(command, ()))
