"""Preferences to convert, and the fields that every format preserves."""

import base64
import io
from dataclasses import replace

from PIL import Image

from mmrlhf.datasets import FORMATS, to_pairs
from mmrlhf.records import Message, Preference

PREFERENCE_SAMPLES = (
    "trl_preference.jsonl",
    "trl_preference.parquet",
    "llava_rlhf_preference.json",
    "rlhf_v.parquet",
    "rlaif_v.jsonl",
    "mm_rlhf.jsonl",
    "vlfeedback.jsonl",
    "rankings.jsonl",
)
"""Files in data/samples with preferences, one or more per format."""


def make_pair(num_chosen_words, num_rejected_words, is_tie=False):
    """Build a pair with answers of these lengths."""
    prompt = (Message("user", "?"),)
    pair = Preference.from_pair("p", (), prompt, "a " * num_chosen_words, "b " * num_rejected_words)
    return replace(pair, ranks=(1, 1)) if is_tie else pair


def png_field(colour):
    """Build the value of an image field: a PNG of 2 x 2 pixels in base64."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(file, "PNG")
    return {"bytes": base64.b64encode(file.getvalue()).decode()}


def comparable_fields(preference):
    """Return the fields that every format preserves, without gaps in ranks: 1, 3 becomes 0, 1."""
    distinct_ranks = sorted(set(preference.ranks))
    return (
        [image.key for image in preference.images],
        preference.prompt,
        preference.answers,
        [distinct_ranks.index(rank) for rank in preference.ranks],
        preference.facts,
        preference.hallucinated,
    )


def representable(preferences, format_name):
    """Return the preferences, or their pairs, that a format can represent."""
    row_format = FORMATS[format_name]
    candidates = []
    for preference in preferences:
        candidates += [preference] if row_format.supports_rankings else to_pairs(preference)
    return [candidate for candidate in candidates if not row_format.unsupported_feature(candidate)]
