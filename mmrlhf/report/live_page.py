"""A run's report.html while it continues: rewritten from time to time, and complete at the end."""

from __future__ import annotations

import time
from pathlib import Path

from mmrlhf.records import InputError

MAX_SHARE_OF_TIME = 0.02
"""Share of a run's time for its page, which is not refreshed as long as that would take more."""


FIRST_SECONDS = 5.0
"""Time before the first page of a run: short runs get one only at their end."""


class LivePage:
    """The page of the run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._not_before = time.monotonic() + FIRST_SECONDS

    def refresh(self, *, is_final: bool = False) -> str:
        """Write the page unless it would take too much of the run's time; always if `is_final`.

        Return why the page cannot be written, or "".
        """
        start = time.monotonic()
        if start < self._not_before and not is_final:
            return ""
        from mmrlhf.report.runs import write_runs_page  # with matplotlib, which takes a second to load

        try:
            write_runs_page([str(self.folder)], main_curves_only=True)
        except InputError:  # no step is done yet
            return ""
        except OSError as error:
            return str(error)
        end = time.monotonic()
        self._not_before = end + (end - start) / MAX_SHARE_OF_TIME
        return ""
