"""What leaves the file of labels: exports, and the report for the lead."""

import json

import pytest

from mmrlhf.cli import main
from mmrlhf.datasets import read_examples, read_preferences
from mmrlhf.labeling.export import export_labels
from mmrlhf.labeling.lead_report import report_labels
from mmrlhf.labeling.results import preferences, read_labels
from mmrlhf.labeling.sessions import Sessions
from mmrlhf.records import InputError
from tests.labeling.conftest import TIE, Clock, assign, first, label_all, pairs, second


@pytest.mark.parametrize("target", ["trl", "llava-rlhf", "rlhf-v", "rlaif-v", "mm-rlhf", "vlfeedback", "rankings"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_every_format_is_read_again(make_store, tmp_path, target, suffix):
    store = make_store(pairs(3))
    label_all(store, {"a": [first(), second(), first(1)]})
    path = tmp_path / f"out.{suffix}"
    export_labels(str(store.path), target, str(path))
    records = read_preferences(str(path), image_folder=str(tmp_path))
    assert [record.chosen for record in records] == ["First 0.", "Second 1.", "First 2."]
    assert all(image.read() for record in records for image in record.images)


def test_rows_for_sft(make_store, tmp_path):
    store = make_store(pairs(2))
    label_all(store, {"a": [second(), TIE]})
    export_labels(str(store.path), "sft", str(tmp_path / "sft.jsonl"))
    assert [row.answer for row in read_examples(str(tmp_path / "sft.jsonl"), image_folder=str(tmp_path))] == ["Second 0."]


def test_gold_questions_and_undone_labels_are_not_exported(make_store):
    store = make_store(pairs(1), gold=[{"id": "g", "prompt": "g?", "chosen": "Right.", "rejected": "Wrong."}])
    annotator = store.add_annotator("a", "code", 0.0, "yes")
    work = assign(store, gold_every=1)
    work.submit(annotator, work.current(annotator), "label", first())
    event = work.submit(annotator, work.current(annotator), "label", second())
    assert [record.id for record in preferences(read_labels(store))] == ["row 0"]
    work.undo(annotator, event.id)
    assert list(preferences(read_labels(store))) == []


def label_and_flag(store):
    """Let robin, heron and wren label, skip and flag, with notes that name them."""
    work = assign(store, overlap=3)
    for name, label in (("robin", first()), ("heron", second()), ("wren", second())):
        annotator = store.add_annotator(name, f"{name}-code", 0.0, "yes")
        for kind, content in (("label", label), ("skip", {}), ("flag", {})):
            work.submit(annotator, work.current(annotator), kind, content | {"note": f"{name} was here"})


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def export_rows(store, path, *arguments):
    """Export by the command, and return the rows."""
    assert main(["label", "export", str(store.path), "--output_file", str(path), *arguments]) == 0
    return read_rows(path)


def test_flags_and_skips_are_exported(make_store, tmp_path):
    store = make_store(pairs(3))
    label_and_flag(store)
    work, annotator = assign(store, overlap=3), store.add_annotator("late", "code", 0.0, "yes")
    undone = work.submit(annotator, work.current(annotator), "flag", {})
    work.undo(annotator, undone.id)
    work.submit(annotator, work.current(annotator), "skip", {})
    *rows, last = export_rows(store, tmp_path / "flags.jsonl", "--to", "flags")
    expected = [("row 1", "skip"), ("row 2", "flag")]
    assert [(row["annotator"], row["id"], row["kind"], row["note"]) for row in rows] == [
        (name, id_, kind, f"{name} was here") for name in ("robin", "heron", "wren") for id_, kind in expected
    ]
    assert all(row["time"] > 0 for row in rows)
    assert {**last, "time": 0} == {"id": "row 1", "annotator": "late", "time": 0, "kind": "skip", "note": ""}


def test_anonymous_files_have_no_names_and_the_same_numbers(make_store, tmp_path, capsys):
    store = make_store(pairs(3))
    label_and_flag(store)
    named = export_rows(store, tmp_path / "named.jsonl", "--to", "labels")
    assert [(row["annotator"], row["note"], row["time"] > 0) for row in named] == [
        (name, f"{name} was here", True) for name in ("robin", "heron", "wren")
    ]
    labels = export_rows(store, tmp_path / "labels.jsonl", "--to", "labels", "--anonymous")
    flags = export_rows(store, tmp_path / "flags.jsonl", "--to", "flags", "--anonymous")
    # By their codes: heron's comes first.
    assert [row["annotator"] for row in labels] == ["annotator 2", "annotator 1", "annotator 3"]
    assert [row["annotator"] for row in flags] == [f"annotator {number}" for number in (2, 2, 1, 1, 3, 3)]
    assert [row["ranks"] for row in labels] == [row["ranks"] for row in named]
    some = export_rows(store, tmp_path / "some.jsonl", "--to", "labels", "--anonymous", "--without", "robin")
    assert some == labels[1:]
    capsys.readouterr()
    assert main(["label", "report", str(store.path), "--out", str(tmp_path / "page.html"), "--anonymous"]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert all(f"annotator {number}" in text for number in (1, 2, 3) for text in (printed, page))
    files = [printed, page, *((tmp_path / f"{name}.jsonl").read_text() for name in ("labels", "flags", "some"))]
    for text in files:
        assert not any(word in text for word in ("robin", "heron", "wren", "was here"))
    assert {row["time"] for row in labels + flags} == {None}


def test_annotators_are_left_out(make_store, tmp_path, capsys):
    store = make_store(pairs(3))
    label_and_flag(store)
    whole = export_rows(store, tmp_path / "whole.jsonl", "--to", "rankings")
    without = export_rows(store, tmp_path / "some.jsonl", "--to", "rankings", "--without", "Heron, wren")
    assert [row["answers"][0] for row in whole + without] == ["Second 0.", "First 0."]
    flags = export_rows(store, tmp_path / "flags.jsonl", "--to", "flags", "--without", "heron")
    assert {row["annotator"] for row in flags} == {"robin", "wren"}
    capsys.readouterr()
    assert main(["label", "report", str(store.path), "--out", str(tmp_path / "page.html"), "--without", "robin"]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert "2 labels of 1 of 3 tasks by 2 annotators" in printed and "robin" not in printed + page
    for command in (["report"], ["export", "--to", "trl", "--output_file", str(tmp_path / "none.jsonl")]):
        assert main(["label", command[0], str(store.path), *command[1:], "--without", "herron"]) == 2
        assert "labels.db has no annotator herron: did you mean heron?" in capsys.readouterr().err
    assert not (tmp_path / "none.jsonl").exists()


def test_without_may_be_repeated(make_store, tmp_path):
    store = make_store(pairs(1))
    label_all(store, {name: [first()] for name in ("robin", "heron", "wren")})
    left = export_rows(store, tmp_path / "left.jsonl", "--to", "labels", "--without", "robin", "--without", "heron")
    assert [row["annotator"] for row in left] == ["wren"]


def test_names_to_leave_out_are_written_as_for_signing_in(make_store, tmp_path):
    store = make_store(pairs(1))
    names = ("Grey  Heron", "caf\u00e9", "wren")
    sessions = Sessions(store, None, "yes")
    work = assign(store, overlap=3)
    for name in names:
        annotator = sessions.join(name, "", "", has_consented=True)
        work.submit(annotator, work.current(annotator), "label", first())
    without = "grey   HERON,cafe\u0301"  # an accent of its own, as macOS writes it
    (row,) = export_rows(store, tmp_path / "left.jsonl", "--to", "labels", "--without", without)
    assert row["annotator"] == "wren"


@pytest.mark.parametrize(
    ("target", "nothing"),
    [("trl", "labels that compare answers"), ("labels", "labels"), ("claims", "claims"), ("flags", "flags and no skips")],
)
def test_leaving_out_everybody_says_so(make_store, tmp_path, target, nothing):
    store = make_store(pairs(3))
    label_and_flag(store)
    with pytest.raises(InputError, match=f"has no {nothing} without robin, heron, wren: leave out fewer annotators"):
        export_labels(str(store.path), target, str(tmp_path / "o.jsonl"), without=["robin", "heron", "wren"])
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    ("target", "output", "problem"),
    [
        ("trll", "o.jsonl", "there is no format trll: did you mean trl"),
        ("trl", "o.txt", "must end in"),
        ("labels", "o.parquet", "must end in .jsonl"),
        ("trl", "o.jsonl", "no labels that compare answers"),
        ("facts", "o.jsonl", "has no facts yet"),
        ("flags", "o.jsonl", "has no flags and no skips"),
    ],
)
def test_exports_that_cannot_be(make_store, tmp_path, target, output, problem):
    store = make_store(pairs(1))
    with pytest.raises(InputError, match=problem):
        export_labels(str(store.path), target, str(tmp_path / output))
    assert not (tmp_path / output).exists()


def test_the_report_shows_hostile_notes_as_text(make_store, tmp_path, capsys):
    store = make_store(pairs(2))
    label_all(store, {"a": [first() | {"note": "<script>x</script>\u202e"}], "b": [second(), TIE]})
    report_labels(str(store.path), str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;x" in page and "<script>x" not in page and "\u202e" not in page
    with pytest.raises(InputError, match=r"out .* is an input file: name another"):
        report_labels(str(store.path), str(store.path))
    assert store.path.read_bytes().startswith(b"SQLite")
    out = capsys.readouterr().out
    assert "3 labels of 2 of 2 tasks by 2 annotators\n" in out and "alpha" in out


def test_the_report_has_the_agreement_on_facts(make_store, tmp_path, capsys):
    """By hand in `test_alpha_of_facts_by_hand`."""
    store = make_store([{"id": name, "prompt": name, "answers": []} for name in "xy"])
    lists = {"a": [["dog", "cat"], ["cup"]], "b": [["dog"], ["cup"]]}
    typed = {
        name: [{"facts": [{"kind": "object", "text": text} for text in texts], "complete": True} for texts in both]
        for name, both in lists.items()
    }
    label_all(store, typed)
    report_labels(str(store.path), str(tmp_path / "page.html"))
    assert "facts: lists of facts, by the F1 of two: alpha 0.77 (" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert '<th scope="row">facts: lists of facts, by the F1 of two</th><td>alpha 0.77' in page


def test_the_report_counts_gold_questions_apart(make_store, capsys):
    store = make_store(pairs(3), gold=[{"id": "g", "prompt": "g?", "chosen": "Right.", "rejected": "Wrong."}])
    work, annotator = assign(store, gold_every=2), store.add_annotator("a", "code", 0.0, "yes")
    for _ in range(3):
        work.submit(annotator, work.current(annotator), "label", first())
    report_labels(str(store.path))
    assert "2 labels of 2 of 3 tasks by 1 annotators, and 1 of gold questions\n" in capsys.readouterr().out


def test_the_report_has_speed_by_mode_and_first_places(make_store, tmp_path, capsys):
    rankings = [{"id": f"{n}", "prompt": f"{n}?", "answers": ["one", "two", "three"]} for n in range(2)]
    store, clock = make_store([*pairs(2), *rankings]), Clock()
    work, annotator = assign(store, clock=clock), store.add_annotator("a", "code", 0.0, "yes")
    for seconds in (10, 10, 20, 20):
        shown = work.current(annotator)
        clock.value += seconds
        ranks = [1 + (index != shown.order[1]) for index in range(len(shown.order))]  # B is the best
        work.submit(annotator, shown, "label", {"ranks": ranks, "strength": 2}, seconds)
    report_labels(str(store.path), str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "<td>pairwise 10.0 s<br>ranking 20.0 s</td><td>pairwise 360<br>ranking 180</td>" in page
    assert "<td>A 0%, B 100%, C 0%<small>of 2</small></td>" in page and "<th>gold questions</th>" not in page
    assert "A 0%, B 100%, C 0%" in capsys.readouterr().out
