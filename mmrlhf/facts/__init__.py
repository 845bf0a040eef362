"""Facts: typed evidence on a picture, read from files and written into a reward model's prompt.

Each module imports only those before it: `lists`, `annotations`, `reading`, `rendering`.
"""

from mmrlhf.facts.lists import LISTS, NUMBERS, typed
from mmrlhf.facts.reading import known, read_facts
from mmrlhf.facts.rendering import render, template_text

__all__ = ["LISTS", "NUMBERS", "known", "read_facts", "render", "template_text", "typed"]
