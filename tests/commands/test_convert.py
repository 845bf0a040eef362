"""Preferences go from any format into any other and come back the same; what a format cannot hold is said."""

import base64
import json
import os

import numpy as np
import pytest
from PIL import Image

from mmrlhf.cli import main
from mmrlhf.commands.convert import convert
from mmrlhf.commands.stats import stats, summary_stats
from mmrlhf.datasets import FORMATS, detect_format, read_preferences
from mmrlhf.datasets.summary import DatasetSummary
from mmrlhf.facts import read_facts
from mmrlhf.files import bundled
from mmrlhf.files.tables import read_rows
from mmrlhf.records import InputError
from tests.helpers.preferences import comparable_fields, make_pair, png_field, representable

SAMPLES = bundled.find("data", "samples")
PREFERENCE_SAMPLES = (
    "trl_preference.jsonl", "trl_preference.parquet", "llava_rlhf_preference.json", "rlhf_v.parquet", "rlaif_v.jsonl",
    "mm_rlhf.jsonl", "vlfeedback.jsonl", "rankings.jsonl",
)  # fmt: skip


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


# ---- lengths ---------------------------------------------------------------------------------------------------------


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
