"""Collect the errors of a dataset's rows and group them by cause."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAX_ROWS_NAMED = 5
"""Number of rows that are named for each cause."""
MAX_CAUSES_NAMED = 5
"""Number of causes in a one-line summary."""
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
IMAGE_NAME = re.compile(r"^(the prompt of )?image .*?(?= \(| is | has | does )")


@dataclass
class ErrorGroup:
    """Rows with the same cause: their number, the first ones, and the first one's message."""

    message: str
    first_error: str
    """The first one's message with its location, as it was raised."""
    count: int = 0
    first_rows: list[str] = field(default_factory=list)

    @property
    def rows_text(self) -> str:
        """The first rows by name, such as `line 2, line 7, ...`."""
        return ", ".join(self.first_rows) + (", ..." if self.count > len(self.first_rows) else "")


class RowErrors:
    """Errors of rows. Only the first rows of each cause are kept, so any number may be added."""

    def __init__(self) -> None:
        self._groups: dict[str, ErrorGroup] = {}
        self.count = 0

    def add(self, row_name: str, message: str, location: str = "") -> None:
        """Add a row's error. `location` is the row's place in the message."""
        first_error = message
        if location:
            message = message.removeprefix(f"{location}: ").replace(f" ({location}, ", " (")
        self.count += 1
        group = self._groups.setdefault(_cause(message), ErrorGroup(message, first_error))
        group.count += 1
        if len(group.first_rows) < MAX_ROWS_NAMED:
            group.first_rows.append(row_name)

    @property
    def groups(self) -> list[ErrorGroup]:
        """Return the groups, the largest first."""
        return sorted(self._groups.values(), key=lambda group: -group.count)

    def summary(self, noun: str = "rows") -> str:
        """Return the causes in one line, with counts and first rows. `noun` names the rows."""
        groups = self.groups
        parts = [
            f"{group.count} {noun}: " * (group.count > 1) + f"{group.message} ({group.rows_text})"
            for group in groups[:MAX_CAUSES_NAMED]
        ]
        if num_more := sum(group.count for group in groups[MAX_CAUSES_NAMED:]):
            parts.append(f"and {num_more} for other reasons")
        return "; ".join(parts)


def _cause(message: str) -> str:
    """Return a message without the parts that vary by row: quoted values, numbers, images."""
    return re.sub(r"\d[\d,.]*", "#", QUOTED.sub("'...'", IMAGE_NAME.sub("image", message)))
