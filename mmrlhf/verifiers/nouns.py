"""Compare nouns: does one imply another, and may both name one thing?"""

from __future__ import annotations

from mmrlhf.claims import Lexicon


def is_a(specific: str, general: str, lexicon: Lexicon) -> bool:
    """Return whether one noun implies another: a puppy is a dog, a coffee table is a table."""
    if specific == general:
        return True
    if lexicon.coco_category.get(general) == general and lexicon.coco_class(specific) == general:
        return True
    # A compound is its last noun, unless the lexicon ("hot dog") or COCO says otherwise.
    if not specific.endswith(f" {general}") or specific in lexicon.word_sets["no category"]:
        return False
    return lexicon.coco_class(specific) in ("", lexicon.coco_class(general))


def may_be_same(a: str, b: str, lexicon: Lexicon) -> bool:
    """Return whether two nouns may name one thing: a pony and a horse, a vehicle and a car."""
    a_class, b_class = lexicon.coco_class(a), lexicon.coco_class(b)
    return not (a_class and b_class) or a_class == b_class
