"""Statistics match hand computation, cover the bundled samples, and are null where undefined."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from mmrlhf.cli import main
from mmrlhf.commands.stats import stats, summary_stats
from mmrlhf.datasets.summary import DatasetSummary
from mmrlhf.files import bundled
from mmrlhf.records import InputError
from tests.helpers.preferences import PREFERENCE_SAMPLES, make_pair, png_field

SAMPLES = bundled.find("data", "samples")


def test_stats_match_hand_computation(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(base64.b64decode(png_field("red")["bytes"]))
    common = {"images": ["a.png"], "prompt": "What?", "source": "one"}
    rows = [
        {**common, "chosen": "a b c", "rejected": "d", "margin": 2},
        {**common, "chosen": "a b c", "rejected": "d", "margin": -1, "source": "two"},
        {**common, "chosen": "a", "rejected": "b c", "hallucination": True},
        {**common, "chosen": "a b", "rejected": "c d", "images": []},
        {**common, "chosen": "a b c d", "rejected": "x", "is_tie": True, "facts": [{"kind": "ocr", "text": "A"}]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["data", "stats", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "out")]) == 0
    statistics = json.loads((tmp_path / "out" / "stats.json").read_text())
    expected = {
        "layout": "TRL preference pairs",
        "rows": 5,
        "images": 1,
        "images_per_row": {"0": 1, "1": 4},
        "answers_per_row": {"2": 5},
        "rows_with_facts": 1,
        "rows_with_ties": 1,
        "rows_with_ratings": 2,
        "mean_margin": 0.5,
        "ratings_against_ranks": 1,
        "hallucinated": {"yes": 1, "no": 0, "not stated": 4},
        "rows_repeated": 1,
        "images_in_several_rows": 1,
        "chosen_mean_words": 9 / 4,
        "rejected_mean_words": 6 / 4,
        "answer_mean_words": None,
    }
    assert {name: statistics[name] for name in expected} == expected
    longer = statistics["chosen_longer"]
    # Wilson, 2 of 3: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (longer["of"], longer["share"]) == (3, pytest.approx(2 / 3))
    assert longer["ci"] == pytest.approx([0.20766, 0.93851], abs=1e-4)
    lengths, labels = [3, 3, 1, 2, 1, 1, 2, 2], [1, 1, 1, 1, 0, 0, 0, 0]
    assert statistics["length_label_correlation"]["r"] == pytest.approx(np.corrcoef(labels, lengths)[0, 1])
    low, high = statistics["length_label_correlation"]["ci"]
    assert low < statistics["length_label_correlation"]["r"] < high
    assert {name: source["rows"] for name, source in statistics["by_source"].items()} == {"one": 4, "two": 1}
    assert Image.open(tmp_path / "out" / "stats.png").width > 1000
    assert "chosen longer" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*PREFERENCE_SAMPLES, "sft.jsonl", "llava_rlhf_ppo.json"])
def test_stats_cover_bundled_samples(name, tmp_path, capsys):
    statistics = stats(str(SAMPLES / name), facts_file=str(SAMPLES / "facts.jsonl"), output_dir=str(tmp_path))
    assert statistics["rows_with_facts"] > 5 and statistics["images"] == 6
    assert json.loads((tmp_path / "stats.json").read_text()) == statistics


def test_stats_are_null_when_undefined():
    equal_lengths = DatasetSummary()
    for _ in range(4):  # without pairs, and with one to three
        statistics = summary_stats(equal_lengths)
        assert statistics["chosen_longer"] is statistics["length_label_correlation"] is None
        equal_lengths.add(make_pair(3, 3))
    chosen_longer = DatasetSummary()
    for _ in range(3):
        chosen_longer.add(make_pair(3, 1))
    assert summary_stats(chosen_longer)["length_label_correlation"] == {
        "r": pytest.approx(1),
        "ci": [pytest.approx(1)] * 2,
        "of": 6,
    }


def test_stats_bad_row_writes_nothing(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"images": [], "prompt": "?", "chosen": "a"}')
    with pytest.raises(InputError, match="line 1: `rejected` is missing"):
        stats(str(tmp_path / "rows.jsonl"), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
