"""The setting `reward_terms`: names and weights of reward functions, and the functions they name.

A function is built in (`functions.REWARD_FUNCTIONS`), passed by the stage (`fact_rm`, claim
rewards), or loaded from a user's Python file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mmrlhf.config.loader import renamed
from mmrlhf.records import InputError
from mmrlhf.rewards.functions import REWARD_FUNCTIONS
from mmrlhf.rewards.types import RewardFunction

RENAMED_REWARDS = {"clip": "verifier_score"}
"""Old name of a reward function -> new name, which the error for the old name suggests."""


@dataclass(frozen=True)
class WeightedReward:
    """A reward function with its name in `reward_terms` and its weight."""

    name: str
    weight: float
    function: RewardFunction


def parse_reward_spec(reward_terms: str) -> dict[str, float]:
    """Parse a list such as `fact_rm=1, length=-1, my_rewards.py:polite=0.5` into weights by name.

    Raises InputError for an entry without a name or a finite weight, a repeated or renamed name, or
    an empty list.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in reward_terms.split(","))):
        # Split at the last equals sign: a file's path may contain one.
        name, equals, weight_text = (word.strip() for word in part.rpartition("="))
        try:
            value = float(weight_text)
        except ValueError:
            value = math.nan
        if not equals or not name or not math.isfinite(value):
            raise InputError(f"reward_terms has {part!r}: write NAME=WEIGHT, such as length=-0.5, separated by commas")
        reward_name, at_sign, verifier_name = name.partition("@")
        if new_name := RENAMED_REWARDS.get(reward_name):
            raise InputError(f"reward_terms: {renamed(name, f'{new_name}{at_sign}{verifier_name}')}")
        if name == "length_bounds":
            raise InputError("reward_terms names length_bounds, which is a setting: add --length_bounds auto, or two numbers")
        if name in weights:
            raise InputError(f"reward_terms names {name} twice: keep one")
        weights[name] = value
    if not weights:
        raise InputError("reward_terms is empty: write, for example, fact_rm=1")
    return weights


def resolve_rewards(reward_terms: str, extra: Mapping[str, RewardFunction]) -> list[WeightedReward]:
    """Return the reward functions in a list: built-in ones, those in `extra`, and `FILE.py:NAME`.

    Raises InputError for any other name, or if a file's function cannot be loaded.
    """
    available = {**REWARD_FUNCTIONS, **extra}
    weighted_rewards = []
    for name, weight in parse_reward_spec(reward_terms).items():
        if name not in available and ".py:" not in name:
            raise InputError(
                f"reward_terms names {name}, which does not exist: use {', '.join(sorted(available))}, a claim reward "
                "(hallucination, coverage, verifier_score), or FILE.py:NAME"
            )
        function = available[name] if name in available else _load_from_file(name)
        weighted_rewards.append(WeightedReward(name, weight, function))
    return weighted_rewards


def _load_from_file(name: str) -> RewardFunction:
    """Return the function of `FILE.py:NAME`.

    Raises InputError if either is missing or the import fails.
    """
    path, _, attribute = name.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise InputError(f"reward_terms names {name}: the file {path} does not exist")
    try:
        module = _import_file(file.resolve(), file.stat().st_mtime_ns)
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"reward_terms names {name}: {path} cannot be imported ({type(error).__name__}: {error})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"reward_terms names {name}: {path} has no function {attribute}")
    return function  # type: ignore[no-any-return]


@functools.cache
def _import_file(file: Path, modified_ns: int) -> ModuleType:
    """Import a user's file, once until it is modified: its functions share what it loads."""
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"mmrlhf_term_{file.stem}_{digest}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module
