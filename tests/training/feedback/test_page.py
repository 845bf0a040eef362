"""The page of a round: claims coloured by verdict, reasons, and nothing of a model as HTML."""

import dataclasses
from collections import Counter

from mmrlhf.claims import load_lexicon
from mmrlhf.records import Claim, Message, Verdict
from mmrlhf.training.feedback.labels import SampledAnswer, label_group
from mmrlhf.training.feedback.page import Segment, segments, write_round_page
from mmrlhf.training.feedback.pairs import select_pairs
from mmrlhf.training.feedback.round_files import summarise


def spanned(value, start, end, subject="ring"):
    return Verdict(Claim("object", subject, span=(start, end)), value)


def test_answers_are_split_where_verdicts_change():
    text = "A ring and a moon."
    parts = segments(text, [spanned("supported", 0, 6), spanned("contradicted", 11, 17, "moon")])
    assert parts == [
        Segment("A ring", "supported"),
        Segment(" and ", ""),
        Segment("a moon", "contradicted"),
        Segment(".", ""),
    ]
    assert "".join(part.text for part in parts) == text


def test_the_worst_of_overlapping_verdicts_colours_the_words():
    assert segments("ring", [spanned("contradicted", 0, 4), spanned("supported", 0, 4)]) == [Segment("ring", "contradicted")]
    parts = segments("red ring", [spanned("unknown", 0, 8), spanned("supported", 4, 8)])
    assert parts == [Segment("red ring", "unknown")]
    assert segments("", []) == [] and segments("ring", [spanned("supported", 2, 99)])[1] == Segment("ng", "supported")


def test_page_shows_pairs_with_picture_reasons_and_verdicts(examples, tmp_path):
    answers = [SampledAnswer(0, 0, "A <b>ring</b>.", 3), SampledAnswer(0, 1, "A moon.", 2), SampledAnswer(0, 2, "A star.", 2)]
    verdicts = [(spanned("supported", 0, 13),), (spanned("contradicted", 0, 6, "moon"),), (spanned("supported", 0, 6, "star"),)]
    groups = [label_group(list(zip(answers, verdicts, strict=True)), 4, true_utilities=[1, -4, 1])]
    selection = select_pairs(groups, 1, 1, False, 0)
    summary = summarise(1, "facts", groups, selection)
    assert summary["pairs"]["dropped"] == {"tie": 1, "beyond max_pairs_per_prompt": 1}
    write_round_page(tmp_path / "report.html", summary, selection, examples, 8, load_lexicon())
    page = (tmp_path / "report.html").read_text()
    assert '<del><span class="hidden">contradicted: </span>A moon</del>' in page
    assert "&lt;b&gt;ring" in page and "<b>ring" not in page
    assert "dropped: tie" in page and "beyond max_pairs_per_prompt" in page
    assert "data:image/jpeg" in page and page.count("<svg") == 2
    assert "Labels agree with the truth in 100.0%" in page and "in truth -4" in page


def test_page_shows_marks_that_would_act_on_other_text(examples, tmp_path):
    """Escape sequences and marks of direction in an id, prompt, answer, claim or its evidence."""
    asked = [Message("user", "What\u2066 is it?\x1b[2J")]
    examples = [dataclasses.replace(example, id="row\u202e", prompt=asked, images=[]) for example in examples]
    claim = Claim("object", "mo\u202eon", span=(0, 6))
    answers = [SampledAnswer(0, 0, "A ring\x07.", 2), SampledAnswer(0, 1, "A moon\u202e.", 2)]
    verdicts = [(spanned("supported", 0, 6),), (Verdict(claim, "contradicted", evidence="absent: \u2067moon"),)]
    groups = [label_group(list(zip(answers, verdicts, strict=True)), 4)]
    selection = select_pairs(groups, 1, 1, False, 0)
    write_round_page(tmp_path / "report.html", summarise(1, "facts", groups, selection), selection, examples, 8, load_lexicon())
    page = (tmp_path / "report.html").read_text()
    assert not set(page) & set("\u202e\u2066\u2067\x1b\x07")
    for shown in (
        "row\ufffd",
        "What\ufffd is it?\u241b[2J",
        "A ring</span>\u2407.",
        "A moon</del>\ufffd.",
        "mo\ufffdon",
        "absent: \ufffdmoon",
    ):
        assert shown in page
    assert page.count("<svg") == 2  # what the page draws itself is left as it is


def test_summary_counts_what_is_left_out():
    cut = SampledAnswer(0, 1, "A mo", 2, "cut off at response_length")
    groups = [label_group([(SampledAnswer(0, 0, "A ring.", 3), ()), (cut, ())], 4)]
    selection = select_pairs(groups, 1, 1, True, 0)
    summary = summarise(2, "vlm", groups, selection)
    assert summary["answers"] == {"sampled": 2, "usable": 1, "unusable": Counter({"cut off at response_length": 1})}
    assert summary["pairs"]["compared"] == 0 and "agreement" not in summary
