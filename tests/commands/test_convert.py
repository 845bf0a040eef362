"""Preferences go from any format into any other and come back the same; what a format cannot hold is said."""

import base64
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmrlhf.cli import main
from mmrlhf.commands.convert import convert
from mmrlhf.commands.stats import stats, summary_stats
from mmrlhf.datasets import FORMATS, detect_format, parse_preference, read_examples, read_preferences, row_context, to_pairs
from mmrlhf.datasets.balance import balance_lengths
from mmrlhf.datasets.summary import DatasetSummary
from mmrlhf.facts import read_facts
from mmrlhf.files import bundled
from mmrlhf.files.rows import Row
from mmrlhf.files.tables import read_rows
from mmrlhf.records import InputError, Message, Preference

SAMPLES = bundled.find("data", "samples")
PREFERENCE_SAMPLES = (
    "trl_preference.jsonl", "trl_preference.parquet", "llava_rlhf_preference.json", "rlhf_v.parquet", "rlaif_v.jsonl",
    "mm_rlhf.jsonl", "vlfeedback.jsonl", "rankings.jsonl",
)  # fmt: skip


def comparable_fields(preference):
    """What every format can hold. Ranks without gaps: 1, 3 says no more than 1, 2."""
    places = sorted(set(preference.ranks))
    return (
        [image.key for image in preference.images],
        preference.prompt,
        preference.answers,
        [places.index(rank) for rank in preference.ranks],
        preference.facts,
        preference.hallucinated,
    )


def representable(preferences, to):
    form = FORMATS[to]
    split = [one for p in preferences for one in ([p] if form.supports_rankings else to_pairs(p))]
    return [one for one in split if not form.unsupported_feature(one)]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", PREFERENCE_SAMPLES)
def test_convert_round_trips_samples_through_every_format(name, to, tmp_path, capsys):
    facts = str(SAMPLES / "facts.jsonl")
    before = list(read_preferences(str(SAMPLES / name), facts=read_facts(facts)))
    for suffix in ("jsonl", "json", "parquet"):
        out = tmp_path / f"out.{suffix}"
        convert(str(SAMPLES / name), to, str(out), facts_file=facts)
        after = list(read_preferences(str(out), image_folder=str(SAMPLES)))
        assert [comparable_fields(p) for p in after] == [comparable_fields(p) for p in representable(before, to)]
        if to in ("trl", "mm-rlhf", "rankings"):
            margins = [[c.margin for p in part for c in p.comparisons] for part in (after, representable(before, to))]
            assert margins[0] == margins[1]
        assert [p.source for p in after] == [p.source for p in representable(before, to)]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_convert_reports_dropped_rows_in_one_line(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["data", "convert", str(SAMPLES / "rankings.jsonl"), "--to", "llava-rlhf", "--output_file", str(out)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{out}: 16 rows as llava-rlhf; image paths start from {SAMPLES} (--image_folder {SAMPLES}); "
        "left out: 2 ties, which llava-rlhf has no place for"
    )
    rows = [row.parse() for row in read_rows(str(out))]
    assert {detect_format(row) for row in rows} == {"LLaVA-RLHF pairs"}
    assert {row.fields["preference"] for row in rows} == {1, 2}  # where the better one stands says nothing
    assert rows[0].fields["id"].startswith("ranking-1-1-")


def test_convert_keeps_reasons_and_inlines_images_as_base64(tmp_path):
    convert(str(SAMPLES / "mm_rlhf.jsonl"), "mm-rlhf", str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text().count('"chosen_reason"') == 9
    convert(str(SAMPLES / "trl_preference.parquet"), "trl", str(tmp_path / "out.json"))
    first = json.loads((tmp_path / "out.json").read_text())[0]["images"][0]
    assert first.startswith("data:image/png;base64,")
    assert base64.b64decode(first.partition(",")[2]) == (SAMPLES / "images" / "red_mug.png").read_bytes()


def test_convert_parquet_images_decode_in_datasets(tmp_path):
    import datasets

    convert(str(SAMPLES / "rlaif_v.jsonl"), "vlfeedback", str(tmp_path / "out.parquet"))
    table = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table[0]["image"].size == (320, 240)
    assert table.column_names == ["id", "source", "image", "prompt", "completions"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target_format": "tlr"}, "there is no format tlr: did you mean trl?"),
        ({"output_file": "out.csv"}, "must end in .jsonl, .json, .parquet"),
        ({"path": "none.jsonl"}, "none.jsonl does not exist"),
        (
            {"should_balance": True, "target_format": "rankings"},
            "ranks 3 answers: lengths are balanced over pairs, so convert it to pairs first",
        ),
        ({"path": "ties.jsonl"}, "ties.jsonl has nothing that is left to write: 1 ties, which rlhf-v has no place for"),
        ({"path": "bad.jsonl"}, "bad.jsonl, line 2: `images` is missing"),
        ({"output_file": "no/such.jsonl", "path": "full"}, "cannot be written (No space left on device): free some space"),
    ],
)
def test_convert_refusal_leaves_no_file(options, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"images": [], "prompt": "What?", "chosen": "a", "rejected": "b"}
    (tmp_path / "ties.jsonl").write_text(json.dumps({**row, "is_tie": True}))
    (tmp_path / "bad.jsonl").write_text(f"{json.dumps(row)}\n{{}}")
    if options.get("path") == "full":

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        options = {**options, "path": str(SAMPLES / "rankings.jsonl")}
    there = sorted(tmp_path.rglob("*"))
    given = {"path": str(SAMPLES / "rankings.jsonl"), "target_format": "rlhf-v", "output_file": "out.jsonl", **options}
    with pytest.raises(InputError) as caught:
        convert(**given)
    assert sentence in str(caught.value)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in there and path.is_file()] == []


# ---- any preference --------------------------------------------------------------------------------------------------


def png_field(colour):
    file = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(file, "PNG")
    return {"bytes": base64.b64encode(file.getvalue()).decode()}


TEXTS = st.text(max_size=12) | st.sampled_from(["A cup.", "مرحبا", "日本", "a\u2028b", "\x00", "{}", '"', "data:", "[\\n]"])
CONVERSATIONS = st.lists(TEXTS, min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    texts=CONVERSATIONS,
    system=st.booleans(),
    images=st.lists(st.sampled_from(["red", "blue"]), max_size=2),
    answers=st.lists(TEXTS, min_size=2, max_size=4),
    ranks=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    ratings=st.none() | st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
    more=st.fixed_dictionaries({}, optional={"hallucination": st.booleans(), "source": TEXTS, "id": TEXTS}),
)
def test_formats_round_trip_any_preference(texts, system, images, answers, ranks, ratings, more):
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts[: len(texts) // 2 * 2 - 1 or 1])
    ]
    row = {"images": [png_field(c) for c in images], "prompt": [{"role": "system", "content": "Be brief."}] * system + turns}
    row |= {"answers": answers, "ranks": ranks[: len(answers)], **more}
    row |= {"ratings": ratings[: len(answers)]} if ratings else {}
    beside = row_context("none")
    try:
        before = parse_preference(Row("rows, line 1", 1, row), beside)
    except InputError:
        assume(False)
    for to, form in FORMATS.items():
        for one in representable([before], to):
            written = form.to_row(one, [{"bytes": base64.b64encode(image.read()).decode()} for image in one.images])
            after = parse_preference(Row("rows, line 1", 1, json.loads(json.dumps(written))), beside)
            assert comparable_fields(after) == comparable_fields(one)
            assert (after.id, after.source) == (one.id, one.source)


def test_formats_keep_position_of_image_only_turn():
    prompt = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "At what?"}]
    alone = {"role": "user", "content": [{"type": "image"}]}
    row = {"images": [png_field("red")], "prompt": [*prompt, alone], "chosen": "A cup.", "rejected": "A cat."}
    one = parse_preference(Row("rows", 1, row), row_context("none"))
    assert one.prompt[-1] == Message("user", "")
    for to in ("trl", "llava-rlhf", "rankings"):
        again = parse_preference(Row("rows", 1, FORMATS[to].to_row(one, row["images"])), row_context("none"))
        assert comparable_fields(again) == comparable_fields(one)


def test_to_pairs_of_ranking_match_hand_enumeration():
    ranking = Preference("r", (), (Message("user", "?"),), ("a", "b", "c"), (1, 1, 2), (3.0, 3.0, 1.5), hallucinated=True)
    found = to_pairs(ranking)
    assert [(p.id, p.answers, p.ranks, p.ratings, p.hallucinated) for p in found] == [
        ("r-1-2", ("a", "b"), (1, 1), (3.0, 3.0), None),
        ("r-1-3", ("a", "c"), (1, 2), (3.0, 1.5), True),
        ("r-2-3", ("b", "c"), (1, 2), (3.0, 1.5), True),
    ]
    pair = found[1]
    assert to_pairs(pair) == [pair]


# ---- lengths ---------------------------------------------------------------------------------------------------------


def make_pair(ours, theirs, tie=False):
    one = Preference.from_pair("p", (), (Message("user", "?"),), "a " * ours, "b " * theirs)
    return replace(one, ranks=(1, 1)) if tie else one


def test_balance_lengths_uses_one_bin_for_few_pairs():
    pairs = [make_pair(4, 2), make_pair(6, 3), make_pair(9, 4), make_pair(2, 4), make_pair(5, 5), make_pair(9, 1, tie=True)]
    kept = balance_lengths(pairs, seed=0)
    assert {3, 4, 5} < set(kept) and len(kept) == 4  # the one whose rejected answer is longer, and one of three against it
    assert balance_lengths(iter(pairs), seed=0) == kept
    assert {tuple(balance_lengths(pairs, seed)) for seed in range(20)} == {(0, 3, 4, 5), (1, 3, 4, 5), (2, 3, 4, 5)}


def test_balance_lengths_handles_empty_and_one_sided_input():
    assert balance_lengths([], seed=0) == []
    assert balance_lengths([make_pair(3, 1), make_pair(2, 1)], seed=0) == []
    assert balance_lengths([make_pair(2, 2)], seed=0) == [0]


def test_balance_lengths_equalises_longer_chosen_at_every_gap():
    rng = np.random.default_rng(0)
    pairs = [make_pair(int(a) + 5, int(b) + 1) for a, b in rng.integers(1, 60, (2000, 2))]
    kept = [pairs[row] for row in balance_lengths(pairs, seed=0)]
    gaps = np.array([len(p.chosen.split()) - len(p.rejected.split()) for p in kept])
    longest = np.array([max(len(text.split()) for text in p.answers) for p in kept])
    assert len(kept) > 1000 and (gaps > 0).sum() == (gaps < 0).sum()
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = gaps[(abs(gaps) / longest > low) & (abs(gaps) / longest <= low + 0.25)]
        assert abs((inside > 0).mean() - 0.5) < 0.05
    asked = np.mean([len(p.chosen.split()) > len(p.rejected.split()) for p in pairs])
    assert asked > 0.55  # and so it was not before


def test_convert_balance_lengths_flag_is_seeded(tmp_path, capsys):
    sizes = [(3, 2)] * 20 + [(2, 3)] * 10 + [(4, 4)] * 5
    rows = [{"images": [], "prompt": f"{n}?", "chosen": "a " * a, "rejected": "b " * b} for n, (a, b) in enumerate(sizes)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = ["data", "convert", str(tmp_path / "rows.jsonl"), "--to", "trl", "--output_file"]
    for name, seed in (("one", "1"), ("again", "1"), ("two", "2")):
        assert main([*line, str(tmp_path / f"{name}.jsonl"), "--balance_lengths", "--seed", seed]) == 0
        assert "25 rows as trl" in (told := capsys.readouterr().out) and told.endswith("left out: 10 pairs for balance\n")
    one, again, two = ((tmp_path / f"{name}.jsonl").read_text() for name in ("one", "again", "two"))
    assert one == again != two


# ---- stats -----------------------------------------------------------------------------------------------------------


def test_stats_match_hand_computation(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(base64.b64decode(png_field("red")["bytes"]))
    base = {"images": ["a.png"], "prompt": "What?", "source": "one"}
    rows = [
        {**base, "chosen": "a b c", "rejected": "d", "margin": 2},
        {**base, "chosen": "a b c", "rejected": "d", "margin": -1, "source": "two"},
        {**base, "chosen": "a", "rejected": "b c", "hallucination": True},
        {**base, "chosen": "a b", "rejected": "c d", "images": []},
        {**base, "chosen": "a b c d", "rejected": "x", "is_tie": True, "facts": [{"kind": "ocr", "text": "A"}]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["data", "stats", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "out")]) == 0
    figures = json.loads((tmp_path / "out" / "stats.json").read_text())
    expected = {
        "layout": "TRL preference pairs", "rows": 5, "pictures": 1, "images_per_row": {"0": 1, "1": 4},
        "answers_per_row": {"2": 5}, "rows_with_facts": 1, "rows_with_ties": 1, "rows_with_ratings": 2, "mean_margin": 0.5,
        "ratings_against_ranks": 1, "hallucinated": {"yes": 1, "no": 0, "not said": 4}, "rows_repeated": 1,
        "pictures_in_several_rows": 1, "chosen_mean_words": 9 / 4, "rejected_mean_words": 6 / 4, "answer_mean_words": None,
    }  # fmt: skip
    assert {name: figures[name] for name in expected} == expected
    longer = figures["chosen_longer"]
    # Wilson, 2 of 3: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (longer["of"], longer["share"]) == (3, pytest.approx(2 / 3))
    assert longer["ci"] == pytest.approx([0.20766, 0.93851], abs=1e-4)
    words, labels = [3, 3, 1, 2, 1, 1, 2, 2], [1, 1, 1, 1, 0, 0, 0, 0]
    assert figures["length_label_correlation"]["r"] == pytest.approx(np.corrcoef(labels, words)[0, 1])
    low, high = figures["length_label_correlation"]["ci"]
    assert low < figures["length_label_correlation"]["r"] < high
    assert {name: part["rows"] for name, part in figures["by_source"].items()} == {"one": 4, "two": 1}
    assert Image.open(tmp_path / "out" / "stats.png").width > 1000
    assert "chosen longer" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*PREFERENCE_SAMPLES, "sft.jsonl", "llava_rlhf_ppo.json"])
def test_stats_cover_bundled_samples(name, tmp_path, capsys):
    figures = stats(str(SAMPLES / name), facts_file=str(SAMPLES / "facts.jsonl"), output_dir=str(tmp_path))
    assert figures["rows_with_facts"] > 5 and figures["pictures"] == 6
    assert json.loads((tmp_path / "stats.json").read_text()) == figures


def test_stats_are_null_when_undefined():
    one = DatasetSummary()
    assert summary_stats(one)["chosen_longer"] is summary_stats(one)["length_label_correlation"] is None
    for _ in range(3):
        one.add(make_pair(3, 3))
    assert summary_stats(one)["chosen_longer"] is summary_stats(one)["length_label_correlation"] is None
    two = DatasetSummary()
    for _ in range(3):
        two.add(make_pair(3, 1))
    assert summary_stats(two)["length_label_correlation"] == {"r": pytest.approx(1), "ci": [pytest.approx(1)] * 2, "of": 6}


def test_stats_bad_row_writes_nothing(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"images": [], "prompt": "?", "chosen": "a"}')
    with pytest.raises(InputError, match="line 1: `rejected` is missing"):
        stats(str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_read_examples_reads_prompts_of_every_preference_sample(tmp_path):
    for name in PREFERENCE_SAMPLES:
        examples = read_examples(str(SAMPLES / name))
        assert [e.prompt for e in examples] == [p.prompt for p in read_preferences(str(SAMPLES / name))]
        assert {e.answer for e in examples} == {None}
