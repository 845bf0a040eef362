"""Facts: typed evidence about an image, read from files and put into a reward model's prompt.

parse          the facts of a data file's row
annotations    facts from COCO files and from scene graphs
load           files of facts, recognised by their content
render         facts as text
corrupt        drop, swap and negate facts
"""

from mmrlhf.facts.annotations import FactsByImage
from mmrlhf.facts.load import FactsFile, facts_for_image, read_captions, read_facts, read_facts_file
from mmrlhf.facts.parse import FACT_FIELDS, NUMBER_WORDS, parse_typed_facts
from mmrlhf.facts.render import load_facts_template, render_facts

__all__ = [
    "FACT_FIELDS",
    "NUMBER_WORDS",
    "FactsByImage",
    "FactsFile",
    "facts_for_image",
    "load_facts_template",
    "parse_typed_facts",
    "read_captions",
    "read_facts",
    "read_facts_file",
    "render_facts",
]
