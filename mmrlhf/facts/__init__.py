"""Facts: typed evidence on a picture, read from files and written into a reward model's prompt.

Each module imports only those before it: `lists`, `annotations`, `reading`, `rendering`.
"""

from mmrlhf.facts.lists import LISTS, NUMBERS, typed
from mmrlhf.facts.reading import FactsFile, known, read_facts, read_facts_file
from mmrlhf.facts.rendering import render, template_text

__all__ = ["LISTS", "NUMBERS", "FactsFile", "known", "read_facts", "read_facts_file", "render", "template_text", "typed"]
