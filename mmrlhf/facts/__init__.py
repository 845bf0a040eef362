"""Facts: typed evidence about an image, read from files and put into a reward model's prompt.

parse          the facts of a data file's row
annotations    facts from COCO files and from scene graphs
load           files of facts, recognised by their content
render         facts as text
scope          whether a list of facts is complete
corrupt        drop, swap and negate facts
"""

from mmrlhf.facts.annotations import FactsByImage
from mmrlhf.facts.load import (
    NAMES_HINT,
    FactsFile,
    ImageMatches,
    facts_about,
    facts_for_image,
    matching_name,
    read_captions,
    read_facts,
    read_facts_file,
)
from mmrlhf.facts.parse import FACT_FIELDS, NUMBER_WORDS, parse_typed_facts
from mmrlhf.facts.render import load_facts_template, render_facts
from mmrlhf.facts.scope import mark_incomplete, split_scope

__all__ = [
    "FACT_FIELDS",
    "NAMES_HINT",
    "NUMBER_WORDS",
    "FactsByImage",
    "FactsFile",
    "ImageMatches",
    "facts_about",
    "facts_for_image",
    "load_facts_template",
    "mark_incomplete",
    "matching_name",
    "parse_typed_facts",
    "read_captions",
    "read_facts",
    "read_facts_file",
    "render_facts",
    "split_scope",
]
