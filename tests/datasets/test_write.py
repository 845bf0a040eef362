"""Preferences survive a round trip through every format that can represent them."""

import base64
import json
import tracemalloc
from collections import Counter

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmrlhf.datasets import EXAMPLE_FORMATS, FORMATS, parse_preference, row_context, to_pairs
from mmrlhf.files.rows import Row
from mmrlhf.records import Example, InputError, Message, Preference
from tests.helpers.preferences import comparable_fields, png_field, representable

TEXTS = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["A cup.", "مرحبا", "日本", "a\u2028b", "\x00", "{}", '"', "data:", "[\\n]"]
)
CONVERSATIONS = st.lists(TEXTS, min_size=1, max_size=4)


@settings(max_examples=150)
@given(
    texts=CONVERSATIONS,
    system=st.booleans(),
    images=st.lists(st.sampled_from(["red", "blue"]), max_size=2),
    answers=st.lists(TEXTS, min_size=2, max_size=4, unique=True),
    ranks=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    ratings=st.none() | st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
    optional_fields=st.fixed_dictionaries({}, optional={"hallucination": st.booleans(), "source": TEXTS, "id": TEXTS}),
)
def test_formats_round_trip_any_preference(texts, system, images, answers, ranks, ratings, optional_fields):
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts[: max(1, len(texts) // 2 * 2 - 1)])
    ]
    row = {"images": [png_field(c) for c in images], "prompt": [{"role": "system", "content": "Be brief."}] * system + turns}
    row |= {"answers": answers, "ranks": ranks[: len(answers)], **optional_fields}
    row |= {"ratings": ratings[: len(answers)]} if ratings else {}
    context = row_context("none")
    try:
        before = parse_preference(Row("rows, line 1", 1, row), context)
    except InputError:
        assume(False)
    for name, row_format in FORMATS.items():
        for preference in representable([before], name):
            written = row_format.to_row(
                preference, [{"bytes": base64.b64encode(image.read()).decode()} for image in preference.images]
            )
            after = parse_preference(Row("rows, line 1", 1, json.loads(json.dumps(written))), context)
            assert comparable_fields(after) == comparable_fields(preference)
            assert (after.id, after.source) == (preference.id, preference.source)


def test_formats_keep_position_of_image_only_turn():
    prompt = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "At what?"}]
    image_only = {"role": "user", "content": [{"type": "image"}]}
    row = {"images": [png_field("red")], "prompt": [*prompt, image_only], "chosen": "A cup.", "rejected": "A cat."}
    preference = parse_preference(Row("rows", 1, row), row_context("none"))
    assert preference.prompt[-1] == Message("user", "", (0,))
    for name in ("trl", "llava-rlhf", "rankings"):
        after = parse_preference(Row("rows", 1, FORMATS[name].to_row(preference, row["images"])), row_context("none"))
        assert comparable_fields(after) == comparable_fields(preference)


def test_repeated_rows_are_found_without_keeping_their_texts():
    def examples():
        for number in (*range(100), 0):
            yield Example(str(number), (), (Message("user", f"{number:0100000}"),), "yes")

    skipped = Counter()
    tracemalloc.start()
    assert sum(1 for _ in EXAMPLE_FORMATS["sft"].select(examples(), skipped)) == 100  # ten million characters
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert skipped == {"repeated rows": 1} and peak < 1_500_000


def test_to_pairs_of_ranking_match_hand_enumeration():
    ranking = Preference("r", (), (Message("user", "?"),), ("a", "b", "c"), (1, 1, 2), (3.0, 3.0, 1.5), hallucinated=True)
    pairs = to_pairs(ranking)
    assert [(p.id, p.answers, p.ranks, p.ratings, p.hallucinated) for p in pairs] == [
        ("r-1-2", ("a", "b"), (1, 1), (3.0, 3.0), None),
        ("r-1-3", ("a", "c"), (1, 2), (3.0, 1.5), True),
        ("r-2-3", ("b", "c"), (1, 2), (3.0, 1.5), True),
    ]
    assert to_pairs(pairs[1]) == [pairs[1]]
