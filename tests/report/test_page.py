"""The report page on made-up numbers: self-contained, escaped, and true to the numbers."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrlhf.report.page import headline, write_report
from mmrlhf.report.plots import write_overview_image
from mmrlhf.report.results import Segment, format_duration, same_kl_sentence, split_at_claims
from mmrlhf.report.terminal import print_results_table, print_stage_times

VOID_TAGS = {"meta", "img", "br", "link", "input", "hr"}


def split_metrics(chair_s: float, coverage: float) -> dict[str, Any]:
    row: dict[str, Any] = {"n": 400}
    values = {
        "chair_s": chair_s, "chair_i": chair_s / 3, "cooccurrence_errors": chair_s / 2, "perception_errors": chair_s / 4,
        "coverage": coverage, "claim_f1": 0.9, "utility": 4.0, "mean_length": 21.5, "ead": 0.4, "distinct_2": 0.1,
        "yes_no_accuracy": 0.8, "yes_rate": 0.5,
    }  # fmt: skip
    for name, value in values.items():
        row |= {name: value, f"{name}_ci": [value - 0.02, value + 0.02]}
    return row


def fake_summary() -> dict[str, Any]:
    chair = {
        "sft": 0.42, "sft_t03": 0.44, "sft_t07": 0.5, "best_of_n": 0.2, "ppo_plain": 0.3, "ppo_fact": 0.06,
        "clean_sft": 0.05,
    }  # fmt: skip
    splits = ("held_out", "ood_1", "ood_2", "ood_3")
    return {
        "models": {name: {split: split_metrics(c, 0.9) for split in splits} for name, c in chair.items()},
        "reward_models": {"plain": {"accuracy": 0.7, "accuracy_ci": [0.68, 0.72]}, "fact": {"accuracy": 0.8}},
        "kl": {"ppo_plain": 2.5, "ppo_fact": 3.25},
        "same_kl": {"kl": 2.25, "policies": {"ppo_plain": {"claim_f1": 0.84}, "ppo_fact": {"claim_f1": 0.931}}},
        "seconds": {"sft": 42.0, "ppo_fact": 200.0},
    }


def fake_curves() -> dict[str, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = [{"step": step, "objective/scores": 0.01 * step, "objective/kl": None} for step in range(1, 60)]
    for row in rows[::20]:
        row |= {"eval/chair_s": 0.4, "eval/coverage": 0.9, "eval/cooccurrence_errors": 0.3, "eval/perception_errors": 0.1}
    return {"ppo_plain": rows, "ppo_fact": rows}


def png_bytes(size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def gallery_entry(sft: str = "A red star and a moon.", claims: Any = None) -> dict[str, Any]:
    if claims is None:
        claims = [{"start": 15, "end": 21, "verdict": "contradicted", "evidence": "the image has no moon"}]
    answers = [{"model": "sft", "text": sft, "claims": claims}, {"model": "ppo_fact", "text": "A star.", "claims": []}]
    return {"image": png_bytes(), "id": "held_out-1", "prompt": "Describe it.", "facts": "object star", "answers": answers}


class ParsedPage(HTMLParser):
    """Check that elements close in order; collect attributes, ids, struck-out text and all text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.struck_out: list[str] = []
        self.text = ""
        self.num_unfolded_tables = 0
        self.feed(source)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)
        if tag == "del":
            self.struck_out.append("")
        if tag == "table" and "details" not in self.open_tags:
            self.num_unfolded_tables += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID_TAGS:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def ids_of_sections(self) -> list[str]:
        return [value for tag, name, value in self.attributes if (tag, name) == ("section", "id")]

    def handle_data(self, data: str) -> None:
        self.text += data
        if "del" in self.open_tags:
            self.struck_out[-1] += data


def write_and_parse(directory: Path, **parts: Any) -> ParsedPage:
    defaults = {"summary": fake_summary(), "curves": fake_curves(), "gallery": [gallery_entry()], "notes": {}}
    write_report(directory / "report.html", **defaults | parts)
    return ParsedPage((directory / "report.html").read_text(encoding="utf-8"))


def test_write_report_is_one_self_contained_file(tmp_path):
    parsed = write_and_parse(tmp_path)
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert not any(tag in ("script", "link", "iframe") for tag, _, _ in parsed.attributes)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in source and "@import" not in source and "url(http" not in source
    assert len(parsed.ids) == len(set(parsed.ids))
    anchors = {value[1:] for _, name, value in parsed.attributes if name.endswith("href") and value.startswith("#")}
    assert anchors <= set(parsed.ids)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_write_report_shows_images_and_plots_before_folded_tables(tmp_path):
    parsed = write_and_parse(tmp_path, gallery=[gallery_entry()] * 6)
    assert parsed.ids_of_sections() == ["gallery", "precision", "training", "results", "rewards", "time", "reading"]
    # Tables are folded, each with one sentence of summary.
    assert parsed.num_unfolded_tables == 0
    assert "Answers with a false claim: SFT 42.0%; PPO, facts 6.0%." in parsed.text
    assert "without facts 70.0%; with facts 80.0%." in parsed.text
    assert "2 more images" in parsed.text


def test_write_report_compares_before_and_after_and_folds_other_models(tmp_path):
    entry = gallery_entry()
    entry["answers"].append({"model": "clean_sft", "text": "A clean answer.", "claims": []})
    text = write_and_parse(tmp_path, gallery=[entry]).text
    assert text.index("A red star and") < text.index("A star.") < text.index("Other models") < text.index("A clean answer.")
    assert "Other models" not in write_and_parse(tmp_path).text


def test_write_report_escapes_data(tmp_path):
    attack = "<script>alert(1)</script> \"' onload=x & <b>"
    entry = gallery_entry(attack, [{"start": 0, "end": 8, "verdict": "contradicted", "evidence": attack}])
    entry |= {"id": '"><img onerror=x>', "prompt": attack, "facts": attack}
    entry["answers"].append({"model": attack, "text": attack, "claims": []})
    parsed = write_and_parse(tmp_path, gallery=[entry], notes={attack: attack})
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in source and "<b>" not in source
    assert not any(name.startswith("on") for _, name, _ in parsed.attributes)
    assert parsed.text.count("alert(1)") == 8  # two answers, evidence, prompt, facts, a model's name, a note's name and text
    assert parsed.struck_out[1] == "false: <script>"


def test_write_report_strikes_out_overlapping_claims(tmp_path):
    text = "There is a small red moon and a star."
    claims = [
        {"start": 9, "end": 25, "verdict": "contradicted", "evidence": "no moon"},
        {"start": 9, "end": 25, "verdict": "contradicted", "evidence": "no moon"},
        {"start": 17, "end": 25, "verdict": "contradicted", "evidence": "nothing red"},
        {"start": 30, "end": 36, "verdict": "supported", "evidence": "a star"},
        {"start": 0, "end": 0, "verdict": "contradicted", "evidence": "no place"},
    ]
    assert split_at_claims(text, claims) == [
        Segment("There is "),
        Segment("a small red moon", True, ("no moon", "nothing red")),
        Segment(" and a star."),
        Segment("", True, ("no place",)),
    ]
    parsed = write_and_parse(tmp_path, gallery=[gallery_entry(text, claims)])
    assert parsed.struck_out == ["struck out", "false: a small red moon"]  # the first is the legend
    assert "no moon" in parsed.text and "nothing red" in parsed.text and "no place" in parsed.text


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 3), (2, 5)], [("abcde", True), ("fgh", False)]),  # overlap
        ([(0, 3), (3, 5)], [("abc", True), ("de", True), ("fgh", False)]),  # touch: two claims
        ([(4, 6), (0, 8)], [("abcdefgh", True)]),  # one within the other
        ([(6, 99)], [("abcdef", False), ("gh", True)]),  # past the end
        ([], [("abcdefgh", False)]),
    ],
)
def test_split_at_claims_merges_overlapping_spans(spans, expected):
    claims = [{"start": a, "end": b, "verdict": "contradicted", "evidence": ""} for a, b in spans]
    assert [(piece.text, piece.false) for piece in split_at_claims("abcdefgh", claims)] == expected


def test_same_kl_sentence_gives_both_policies_or_nothing():
    expected = "At the same KL from SFT, 2.25 nats per answer, claim F1 on selection images is 84.0% for PPO, plain and 93.1% for PPO, facts"
    assert same_kl_sentence(fake_summary()) == expected
    assert same_kl_sentence({}) == "" and same_kl_sentence({"same_kl": {"kl": None, "policies": {}}}) == ""


def test_headline_states_what_the_numbers_say():
    summary = fake_summary()
    assert headline(summary) == (
        "After PPO with facts in the reward, answers with a false claim fell from 42.0% to 6.0%; "
        "recall did not change measurably, 90.0% before and 90.0% after (400 held-out images)"
    )
    after = summary["models"]["ppo_fact"]["held_out"]
    for chair_s, words in (
        (0.40, "did not fall measurably, 42.0% before and 40.0% after"),
        (0.43, "did not fall, 42.0% before and 43.0% after"),
        (0.60, "rose from 42.0% to 60.0%"),
    ):
        after.update(split_metrics(chair_s, 0.7))
        assert f"a false claim {words}; recall fell from 90.0% to 70.0%" in headline(summary)
    del summary["models"]["ppo_fact"]
    assert headline(summary).startswith("After PPO without facts in the reward, ")


def test_write_report_omits_what_is_missing(tmp_path, capsys):
    summary = fake_summary()
    assert "ood" not in write_and_parse(tmp_path, summary={"models": {"sft": {"held_out": {"chair_s": 0.4}}}}).ids
    for key in summary:
        write_and_parse(tmp_path, summary={k: v for k, v in summary.items() if k != key}, curves={})
    for name in summary["models"]:
        reduced = copy.deepcopy(summary)
        del reduced["models"][name]
        write_and_parse(tmp_path, summary=reduced, curves={})
        write_overview_image(tmp_path / "overview.png", reduced, [gallery_entry()])
        print_results_table(reduced)
    for key in list(summary["models"]["sft"]["held_out"]):
        reduced = copy.deepcopy(summary)
        for splits in reduced["models"].values():
            del splits["held_out"][key]
        reduced["models"]["sft"]["held_out"][key] = None
        write_and_parse(tmp_path, summary=reduced, curves={})
    parsed = write_and_parse(tmp_path, summary={}, curves={}, gallery=[])
    assert "There is no run before and after PPO to compare." in parsed.text
    assert parsed.ids == ["reading"]
    write_overview_image(tmp_path / "overview.png", {}, [])
    print_results_table({})
    assert "nan" not in capsys.readouterr().out


def test_write_overview_image_accepts_any_text(tmp_path):
    long = gallery_entry("$\\frac{ costs $5 and " * 40, [{"start": 2, "end": 30, "verdict": "contradicted", "evidence": ""}])
    write_overview_image(tmp_path / "overview.png", fake_summary(), [long, gallery_entry(), gallery_entry()])
    with Image.open(tmp_path / "overview.png") as image:
        assert image.format == "PNG" and image.width == 1800


def test_print_results_table_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_results_table(fake_summary())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    values = next(number for number, line in enumerate(lines) if line.startswith("PPO, facts"))
    assert lines[values].split()[2:] == ["6.0%", "2.0%", "0.03", "0.01", "90.0%", "90.0%", "4.00", "21.50"]
    assert lines[values + 1].split() == ["4–8", "0–4", ".01–.05", "-.01–.04", "88–92", "88–92", "4.0–4.0", "21.5–21.5"]


def test_print_stage_times_ends_with_the_total(capsys):
    print_stage_times({"sft": 62.0, "evaluation": 3600.0, "summary and report": 0.44})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:] == [
        ["sft", "1", "min", "2", "s"],
        ["evaluation", "1", "h", "0", "min"],
        ["summary", "and", "report", "0.4", "s"],
        ["total", "1", "h", "1", "min"],
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.2, "59.2 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")])
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_pages_without_plots_import_none():
    """Importing matplotlib takes longer than writing such a page."""
    code = "import sys, mmrlhf.labeling.lead_report, mmrlhf.report.claims; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
