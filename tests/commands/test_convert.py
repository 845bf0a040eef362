"""convert preserves preferences in every format, and reports or refuses the rest."""

import base64
import json
import os

import pytest

from mmrlhf.cli import main
from mmrlhf.commands.convert import convert
from mmrlhf.datasets import FORMATS, detect_format, read_examples, read_preferences
from mmrlhf.facts import read_facts
from mmrlhf.files import bundled
from mmrlhf.files.tables import read_rows
from mmrlhf.records import InputError
from tests.helpers.preferences import PREFERENCE_SAMPLES, comparable_fields, representable

SAMPLES = bundled.find("data", "samples")


def margins(preferences):
    return [comparison.margin for row in preferences for comparison in row.comparisons]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", PREFERENCE_SAMPLES)
def test_convert_round_trips_samples_through_every_format(name, to, tmp_path, capsys):
    facts = str(SAMPLES / "facts.jsonl")
    before = list(read_preferences(str(SAMPLES / name), facts=read_facts(facts)))
    for suffix in ("jsonl", "json", "parquet"):
        out = tmp_path / f"out.{suffix}"
        convert(str(SAMPLES / name), to, str(out), facts_file=facts)
        after = list(read_preferences(str(out), image_folder=str(SAMPLES)))
        expected = representable(before, to)
        assert [comparable_fields(row) for row in after] == [comparable_fields(row) for row in expected]
        if to in ("trl", "mm-rlhf", "rankings"):  # the formats with ratings
            assert margins(after) == margins(expected)
        assert [row.source for row in after] == [row.source for row in expected]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_convert_reports_dropped_rows_in_one_line(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["data", "convert", str(SAMPLES / "rankings.jsonl"), "--to", "llava-rlhf", "--output_file", str(out)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{out}: 16 rows as llava-rlhf; image paths start from {SAMPLES} (--image_folder {SAMPLES}); "
        "left out: 2 ties, which llava-rlhf cannot hold"
    )
    rows = [row.parse() for row in read_rows(str(out))]
    assert {detect_format(row) for row in rows} == {"LLaVA-RLHF pairs"}
    assert {row.fields["preference"] for row in rows} == {1, 2}  # the better answer is not always the first
    assert rows[0].fields["id"].startswith("ranking-1-1-")


def test_convert_keeps_reasons_and_inlines_images_as_base64(tmp_path):
    convert(str(SAMPLES / "mm_rlhf.jsonl"), "mm-rlhf", str(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text().count('"chosen_reason"') == 9
    convert(str(SAMPLES / "trl_preference.parquet"), "trl", str(tmp_path / "out.json"))
    image_field = json.loads((tmp_path / "out.json").read_text())[0]["images"][0]
    assert image_field.startswith("data:image/png;base64,")
    assert base64.b64decode(image_field.partition(",")[2]) == (SAMPLES / "images" / "red_mug.png").read_bytes()


def test_convert_parquet_images_decode_in_datasets(tmp_path):
    import datasets

    convert(str(SAMPLES / "rlaif_v.jsonl"), "vlfeedback", str(tmp_path / "out.parquet"))
    table = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table[0]["image"].size == (320, 240)
    assert table.column_names == ["id", "source", "image", "prompt", "completions"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_format": "tlr"}, "there is no format tlr: did you mean trl?"),
        ({"output_file": "out.csv"}, "must end in .jsonl, .json, .parquet"),
        ({"path": "none.jsonl"}, "none.jsonl does not exist"),
        ({"path": "ties.jsonl", "output_file": "./ties.jsonl"}, "output_file ties.jsonl is an input file: name another"),
        (
            {"should_balance": True, "target_format": "rankings"},
            "ranks 3 answers: lengths are balanced over pairs, so convert it to pairs first",
        ),
        ({"path": "ties.jsonl"}, "ties.jsonl has no rows left to write: 1 ties, which rlhf-v cannot hold"),
        ({"path": "bad.jsonl"}, "bad.jsonl, line 2: `images` is missing"),
        ({"output_file": "no/such.jsonl", "path": "full disk"}, "cannot be written (No space left on device): free some space"),
    ],
)
def test_convert_refusal_leaves_no_file(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"images": [], "prompt": "What?", "chosen": "a", "rejected": "b"}
    (tmp_path / "ties.jsonl").write_text(json.dumps({**row, "is_tie": True}))
    (tmp_path / "bad.jsonl").write_text(f"{json.dumps(row)}\n{{}}")
    if arguments.get("path") == "full disk":

        def raise_no_space(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", raise_no_space)
        arguments = {**arguments, "path": str(SAMPLES / "rankings.jsonl")}
    before = sorted(tmp_path.rglob("*"))
    defaults = {"path": str(SAMPLES / "rankings.jsonl"), "target_format": "rlhf-v", "output_file": "out.jsonl"}
    with pytest.raises(InputError) as error:
        convert(**{**defaults, **arguments})
    assert message in str(error.value)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.is_file()] == []


def test_convert_balance_lengths_flag_is_seeded(tmp_path, capsys):
    sizes = [(3, 2)] * 20 + [(2, 3)] * 10 + [(4, 4)] * 5
    rows = [{"images": [], "prompt": f"{n}?", "chosen": "a " * a, "rejected": "b " * b} for n, (a, b) in enumerate(sizes)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = ["data", "convert", str(tmp_path / "rows.jsonl"), "--to", "trl", "--output_file"]
    outputs = {}
    for name, seed in (("seed 1", "1"), ("seed 1 again", "1"), ("seed 2", "2")):
        assert main([*line, str(tmp_path / f"{name}.jsonl"), "--balance_lengths", "--seed", seed]) == 0
        printed = capsys.readouterr().out
        assert "25 rows as trl" in printed and printed.endswith("left out: 10 pairs to balance lengths\n")
        outputs[name] = (tmp_path / f"{name}.jsonl").read_text()
    assert outputs["seed 1"] == outputs["seed 1 again"] != outputs["seed 2"]


@pytest.mark.parametrize("name", PREFERENCE_SAMPLES)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_convert_takes_chosen_answers_and_prompts(name, suffix, tmp_path):
    preferences = list(read_preferences(str(SAMPLES / name)))
    for target, answered in (("sft", True), ("prompts", False)):
        out = tmp_path / f"{target}.{suffix}"
        convert(str(SAMPLES / name), target, str(out), facts_file=str(SAMPLES / "facts.jsonl"))
        examples = list(read_examples(str(out), image_folder=str(SAMPLES), require_answer=answered))
        best = [p for p in preferences if p.ranks[0] < p.ranks[1]] if answered else preferences
        expected = {(p.prompt, p.chosen if answered else None, p.images[0].key) for p in best}
        assert {(e.prompt, e.answer, e.images[0].key) for e in examples} == expected
        assert len(examples) == len(expected) and all(e.facts for e in examples)


def test_convert_to_sft_and_prompts_reports_ties_and_repeats(tmp_path, capsys):
    row = {"images": [], "prompt": "What?", "chosen": "a", "rejected": "b"}
    rows = [row, {**row, "rejected": "c"}, {**row, "chosen": "d", "is_tie": True}, {**row, "chosen": "e"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for target, note in (
        ("sft", "2 rows as sft; image paths start from {0} (--image_folder {0}); left out: 1 repeated rows; 1 ties, which have no chosen answer"),
        ("prompts", "1 rows as prompts; image paths start from {0} (--image_folder {0}); left out: 3 repeated prompts"),
    ):  # fmt: skip
        convert(str(tmp_path / "rows.jsonl"), target, str(tmp_path / "out.jsonl"))
        assert note.format(tmp_path) in capsys.readouterr().out
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "sft.jsonl").write_text(json.dumps({"images": [], "messages": conversation}))
    convert(str(tmp_path / "sft.jsonl"), "prompts", str(tmp_path / "out.jsonl"))
    (example,) = read_examples(str(tmp_path / "out.jsonl"))
    assert (example.prompt[0].content, example.answer) == ("a", None)
    with pytest.raises(InputError, match="has no preferences to convert to trl"):
        convert(str(tmp_path / "sft.jsonl"), "trl", str(tmp_path / "out.jsonl"))
    with pytest.raises(InputError, match="balance_lengths balances pairs, and sft has none"):
        convert(str(tmp_path / "rows.jsonl"), "sft", str(tmp_path / "out.jsonl"), should_balance=True)


def test_convert_keeps_the_places_of_images(tmp_path):
    (tmp_path / "a.png").write_bytes((SAMPLES / "images" / "red_mug.png").read_bytes())
    turns = [{"role": "user", "content": "Before: <image> After: <image> What changed?"}]
    row = {"images": ["a.png", "a.png"], "prompt": turns, "chosen": "a", "rejected": "b"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    convert(str(tmp_path / "rows.jsonl"), "prompts", str(tmp_path / "out.jsonl"))
    assert read_examples(str(tmp_path / "out.jsonl"))[0].prompt == read_preferences(str(tmp_path / "rows.jsonl"))[0].prompt
