"""`mmrlhf data check` names every bad row and summarises the good ones."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from mmrlhf.cli import main
from mmrlhf.commands.check import check
from mmrlhf.files import bundled
from tests.helpers.rows import ONE_IMAGE, PAIR, error_of, make_data_dir, png_bytes, without_field, write_jsonl

SAMPLES = bundled.find("data", "samples")


@pytest.fixture
def data_dir(tmp_path):
    """Create a folder with an image, `a.png`."""
    return make_data_dir(tmp_path)


def test_check_names_each_bad_row_and_counts_the_rest(data_dir, capsys):
    (data_dir / "broken.png").write_bytes(png_bytes()[:45])
    (data_dir / "[bold].png").write_bytes(b"")
    path = write_jsonl(
        data_dir,
        PAIR,
        "{",
        without_field(PAIR, "chosen"),
        {**PAIR, "images": ["broken.png"]},
        {**PAIR, "images": ["[bold].png"]},
    )
    facts = write_jsonl(data_dir, {"image": "a.png", "objects": [["cup", 2]]}, name="facts.jsonl")
    assert check(path, facts_file=facts) == 1
    printed = capsys.readouterr().out
    assert f"{path}: TRL preference pairs\n" in printed
    assert f"{path}, line 2: not JSON" in printed
    assert f"{path}, line 3: `chosen` is missing: add it" in printed
    assert f"image {data_dir / 'broken.png'} ({path}, line 4, `images[1]`) is truncated or damaged" in printed
    assert f"image {data_dir / '[bold].png'} ({path}, line 5, `images[1]`) is empty (0 bytes)" in printed
    summary = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in printed.splitlines() if "│" in line}
    assert summary == {
        "good rows": "1",
        "bad rows": "4",
        "distinct images": "3",
        "chosen, mean words": "2.0",
        "rejected, mean words": "2.0",
        "rows with facts": "1 of 1, 2.0 each",
    }


def test_check_counts_the_answers_that_sft_learns(data_dir, capsys):
    turns = [{"role": role, "content": "Text."} for role in ("user", "assistant") * 2]
    greeting = [{"role": "assistant", "content": "Hello."}, *turns[:2]]
    rows = [{**ONE_IMAGE, "messages": messages} for messages in (turns, greeting, turns[:3])]
    assert check(write_jsonl(data_dir, *rows)) == 0
    assert "3 in 2 rows (with --train_on last: 2)" in capsys.readouterr().out


def test_check_groups_errors_by_cause(data_dir, capsys):
    missing = [{**PAIR, "images": [f"photo {n}.png"]} for n in range(23)]
    empty = [{**PAIR, "chosen": " "}] * 2
    path = write_jsonl(data_dir, *missing, *empty, PAIR, PAIR, {**PAIR, "images": 3}, PAIR)
    assert check(path) == 1
    printed = capsys.readouterr().out
    first = f"first {path}, line 1: `images[1]` does not exist in {data_dir}: 'photo 0.png'; correct the path"
    assert f"  23 rows (line 1, line 2, line 3, line 4, line 5, ...), {first}" in printed
    assert f"  2 rows (line 24, line 25), first {path}, line 24: `chosen` is empty" in printed
    assert f"  {path}, line 28: `images` must be a list" in printed
    assert "repeated rows" in printed and "2: prompt, answers and images of an earlier row" in printed
    assert len(printed.splitlines()) < 20


def test_check_writes_bad_rows_on_request(data_dir, capsys):
    path = write_jsonl(data_dir, PAIR, {**PAIR, "chosen": ""}, '{"id": 1, "id": 2}', "{")
    out = data_dir / "bad.jsonl"
    assert main(["data", "check", path, "--bad_rows_file", str(out)]) == 1
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["location"] for line in lines] == [f"{path}, line {n}" for n in (2, 3, 4)]
    assert lines[0]["row"] == {**PAIR, "chosen": ""} and lines[2]["row"] == "{"
    assert lines[1]["row"] == '{"id": 1, "id": 2}\n'
    assert "`chosen` is empty" in lines[0]["error"] and f"{out}: 3 bad rows" in capsys.readouterr().out


def test_check_reports_comparisons_that_are_read_as_prompts(data_dir, capsys):
    pair, prompt = without_field(PAIR, "id"), {**ONE_IMAGE, "prompt": "What is it?"}
    ranking = {**prompt, "answers": ["A cup.", "A cat."], "ranks": [1, 2]}
    assert check(write_jsonl(data_dir, prompt, pair, prompt, ranking)) == 0
    assert "note: 2 rows (line 2, line 4): answers are compared but read as prompts" in capsys.readouterr().out
    assert check(write_jsonl(data_dir, pair)) == check(write_jsonl(data_dir, prompt)) == 0
    assert "note" not in capsys.readouterr().out


def test_check_reports_images_too_narrow_for_processors(data_dir, capsys):
    for name, size in (("thin.png", (1, 30_000)), ("flat.png", (402, 2)), ("wide.png", (400, 2))):
        Image.new("RGB", size).save(data_dir / name)
    rows = [{"image": name, "prompt": "?"} for name in ("a.png", "thin.png", "flat.png", "wide.png", "thin.png")]
    assert check(write_jsonl(data_dir, *rows)) == 0  # models without this limit take them
    printed = capsys.readouterr().out
    assert "note: 2 rows (line 2, line 3): an image has 1 x 30000 pixels, and processors such as Qwen-VL's refuse" in printed


def test_check_reports_answers_to_avoid(data_dir, capsys):
    prompt = {**ONE_IMAGE, "prompt": "What is it?"}
    answered = {**prompt, "completion": "A cup."}
    messages = {**ONE_IMAGE, "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cup."}]}
    rows = [{**answered, "label": True}, {**answered, "label": False}, {**messages, "label": False}, {**messages, "kto_tag": 0}]
    assert check(write_jsonl(data_dir, *rows, {**prompt, "label": False}, {**answered, "label": 0})) == 0
    printed = capsys.readouterr().out
    assert "note: 2 rows (line 2, line 3): `label` is false, so the answer is one to avoid (KTO)" in printed
    assert "note: 1 row (line 4): `kto_tag` is false" in printed


def test_check_refuses_missing_files(data_dir):
    assert "does not exist" in error_of(check, str(data_dir / "none.jsonl"))
    assert "does not exist" in error_of(check, write_jsonl(data_dir, PAIR), facts_file=str(data_dir / "none.json"))


@pytest.mark.parametrize(
    ("name", "layout", "num_rows", "num_with_facts"),
    [
        ("trl_preference.jsonl", "TRL preference pairs", 8, 8),
        ("trl_preference.parquet", "TRL preference pairs", 8, 8),
        ("llava_rlhf_preference.json", "LLaVA-RLHF pairs", 8, 8),
        ("llava_rlhf_ppo.json", "LLaVA-RLHF prompts", 7, 7),
        ("rlhf_v.parquet", "RLHF-V pairs", 8, 8),
        ("rlaif_v.jsonl", "RLAIF-V pairs", 8, 8),
        ("mm_rlhf.jsonl", "MM-RLHF pairs", 9, 9),
        ("vlfeedback.jsonl", "VLFeedback rankings", 6, 6),
        ("rankings.jsonl", "rankings", 6, 6),
        ("sft.jsonl", "TRL messages", 7, 6),
    ],
)
@pytest.mark.parametrize("facts", ["facts.jsonl", "image_to_caption.json"])
def test_check_accepts_bundled_samples(name, layout, num_rows, num_with_facts, facts, capsys):
    assert check(str(SAMPLES / name), facts_file=str(SAMPLES / facts)) == 0
    printed = capsys.readouterr().out
    assert f"{name}: {layout}\n" in printed
    assert f"{num_with_facts} of {num_rows}," in printed


def test_check_counts_repeated_ids(data_dir, capsys):
    rows = [{**PAIR, "id": id_, "chosen": f"Cup {n}."} for n, id_ in enumerate(("a", "b", "a", "a"))]
    assert check(write_jsonl(data_dir, *rows)) == 0
    assert "repeated ids" in (printed := capsys.readouterr().out) and "2: facts of rows without" in printed


@pytest.mark.parametrize("depth", [600, 100_000])
def test_check_writes_the_text_of_deeply_nested_rows(data_dir, depth):
    line = '{"images": ' + "[" * depth + "]" * depth + "}"
    out = data_dir / "bad.jsonl"
    assert check(write_jsonl(data_dir, line), bad_rows_file=str(out)) == 1
    row = json.loads(out.read_text())["row"]
    assert row == (line if depth == 100_000 else json.loads(line))


def test_check_needs_no_torch(data_dir):
    code = "import sys; sys.modules['torch'] = None; from mmrlhf.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, "data", "check", write_jsonl(data_dir, PAIR)]
    run = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
