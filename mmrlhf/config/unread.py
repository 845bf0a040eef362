"""Settings that were given but have no effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrlhf.records import InputError

POLICIES_SEE_NO_FACTS = "is for reward functions and reward models, and a policy that learns answers never sees facts"


def refuse_unread(config: Any, names: Sequence[str], reason: str) -> None:
    """Raise InputError with the reason if one of the settings is not at its default."""
    for name in names:
        if getattr(config, name) != type(config).__dataclass_fields__[name].default:
            raise InputError(f"{name} {reason}; leave it out")
