"""Labels of each mode from forms, and the records that follow from several annotators."""

import json

import pytest
from PIL import Image

from mmrlhf.claims import extract_claims
from mmrlhf.facts import read_facts
from mmrlhf.labeling.assignments import Shown
from mmrlhf.labeling.export import export_labels
from mmrlhf.labeling.forms import apply_corrections, claim_field, claims_of, parse_label
from mmrlhf.labeling.results import preferences, read_labels, typed_facts
from mmrlhf.labeling.tasks import Task, read_tasks
from mmrlhf.labeling.typed_facts import facts_from_sentence
from mmrlhf.records import InputError, Message
from mmrlhf.verifiers import verify_against_facts
from tests.labeling.conftest import BAD, TIE, first, label_all, pairs, second

ANSWER = "A brown dog sits on a sofa, beside two cats."


def shown(mode, answers, order=None):
    task = Task(mode, "row", (), (Message("user", "What?"),), tuple(answers))
    return Shown("token", 1, task, tuple(order or range(len(answers))))


# ---- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "choice", "ranks"), [((0, 1), "left", [1, 2]), ((1, 0), "left", [2, 1]), ((1, 0), "right", [1, 2])]
)
def test_pairwise(order, choice, ranks):
    assert parse_label(shown("pairwise", "ab", order), {"choice": choice, "strength": "1"}) == {"ranks": ranks, "strength": 1}


def test_ranking_is_in_the_order_of_the_row_and_dense():
    form = {"rank-0": "3", "rank-1": "1", "rank-2": "3"}
    assert parse_label(shown("ranking", "abc", (2, 0, 1)), form) == {"ranks": [1, 2, 2]}
    with pytest.raises(InputError, match="give answer C a rank"):
        parse_label(shown("ranking", "abc"), {"rank-0": "1", "rank-1": "2", "rank-2": "4"})


def test_marks_give_a_corrected_answer():
    marks = [
        {"first": 1, "last": 2, "reason": "attribute", "correction": "white dog"},
        {"first": 7, "last": 9, "reason": "absent", "correction": ""},
    ]
    label = parse_label(shown("claims", [ANSWER]), {"spans": json.dumps(marks)})
    assert [span["text"] for span in label["spans"]] == ["brown dog", "beside two cats"]
    assert label["corrected"] == "A white dog sits on a sofa,."
    assert parse_label(shown("claims", [ANSWER]), {"spans": json.dumps(marks), "corrected": " \n"}) == label
    label = parse_label(shown("claims", [ANSWER]), {"spans": json.dumps(marks), "corrected": "A white dog sits on a sofa."})
    assert label["corrected"] == "A white dog sits on a sofa."


def test_a_mark_on_punctuation_alone_is_kept():
    answer = "A red cup !"
    marks = [{"first": 2, "last": 3, "reason": "absent", "correction": ""}]
    label = parse_label(shown("claims", [answer]), {"spans": json.dumps(marks)})
    assert [span["text"] for span in label["spans"]] == ["cup !"] and label["corrected"] == "A red"


def test_corrections_leave_no_gaps():
    spans = [{"start": 2, "end": 5, "correction": ""}, {"start": 10, "end": 13, "correction": ""}]
    assert apply_corrections("A red cup big.", spans) == "A cup."
    for text, removed, left in (("Red cup", "Red", "cup"), ("a\n  red cup", "red", "a\n  cup"), ("a cup\r\nb", "cup", "a\r\nb")):
        start = text.index(removed)
        assert apply_corrections(text, [{"start": start, "end": start + len(removed), "correction": ""}]) == left


def test_what_nobody_marked_stays_as_it_is():
    answer = " A brown dog.\r\n- one\r\n    - nested  code ,\n\u05e9\u05dc\u05d5\u05dd\u200f cat. \n"
    marks = [{"first": 1, "last": 1, "reason": "attribute", "correction": "white"}]
    label = parse_label(shown("claims", [answer]), {"spans": json.dumps(marks)})
    assert label["corrected"] == answer.replace("brown", "white")
    assert parse_label(shown("claims", [answer]), {"spans": "[]"})["corrected"] == answer


def test_verdicts_on_claims_that_were_found():
    first, *_ = claims_of(ANSWER)
    count = next(claim for claim in claims_of(ANSWER) if claim.kind == "count")
    label = parse_label(shown("claims", [ANSWER]), {claim_field(count): "false", claim_field(first): "true"})
    assert [(c["kind"], c["verdict"]) for c in label["claims"]] == [("object", "supported"), ("count", "contradicted")]
    assert label["corrected"] == ANSWER


def test_a_verdict_on_a_claim_that_is_no_more_is_refused():
    """As from a page before the server had another lexicon: nothing that was judged is dropped."""
    (claim, *_) = claims_of(ANSWER)
    for unknown in ("claim-0", "claim-0123456789ab"):
        with pytest.raises(InputError, match="the claims of this answer have changed: load the page again, and save"):
            parse_label(shown("claims", [ANSWER]), {claim_field(claim): "true", unknown: "false"})


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ("{}", "must be a list"),
        ("[", "not JSON"),
        ('[{"first": 0, "last": 99, "reason": "absent", "correction": ""}]', "not in the answer"),
        ('[{"first": true, "last": 1, "reason": "absent", "correction": ""}]', "not in the answer"),
        ('[{"first": 0, "last": 1, "reason": "because", "correction": ""}]', "needs a reason"),
        ('[{"first": 0, "last": 1, "reason": ["absent"], "correction": ""}]', "needs a reason"),
        ('[{"first": 0, "last": 1, "reason": "absent", "correction": 1}]', "must be text"),
        (r'[{"first": 0, "last": 1, "reason": "absent", "correction": "\ud800"}]', "not valid Unicode"),
        (json.dumps([{"first": i, "last": i + 1, "reason": "other", "correction": ""} for i in (0, 1)]), "two marks overlap"),
    ],
)
def test_bad_marks(spans, problem):
    with pytest.raises(InputError, match=problem):
        parse_label(shown("claims", [ANSWER]), {"spans": spans})


def test_facts():
    facts = [{"kind": "object", "text": "  red   cup "}]
    label = parse_label(shown("facts", []), {"facts": json.dumps(facts), "complete": "yes"})
    assert label == {"facts": [{"kind": "object", "text": "red cup"}], "complete": True}
    for bad in (
        '[{"kind": ["object"], "text": "x"}]',
        "[]",
        '[{"kind": "scope", "text": "complete"}]',
        '[{"kind": "object", "text": ""}]',
        '[{"kind": "object"}]',
    ):
        with pytest.raises(InputError):
            parse_label(shown("facts", []), {"facts": bad})


@pytest.mark.parametrize(
    ("sentence", "facts"),
    [
        ("Two brown dogs sit on a sofa.", {("object", "dog"), ("count", "two dogs"), ("attribute", "brown dog"), ("relation", "dog on couch"), ("object", "couch")}),
        ("A man is riding a horse.", {("object", "man"), ("relation", "man riding horse"), ("object", "horse")}),
        ("There are no cats.", {("absent", "cat")}),
        ('The sign says "STOP".', {("ocr", "STOP"), ("object", "sign")}),
        ("It might be a dog.", {("caption", "It might be a dog.")}),
        ("The cup is not red.", {("object", "cup"), ("caption", "The cup is not red.")}),
        ("Gorgeous!", {("caption", "Gorgeous!")}),
        (" ", set()),
    ],
)  # fmt: skip
def test_a_sentence_becomes_typed_facts(sentence, facts):
    assert {(fact.kind, fact.text) for fact in facts_from_sentence(sentence)} == facts


@pytest.mark.parametrize("sentence", ["Two brown dogs sit on a sofa.", "A man is riding a horse.", "There are no cats."])
def test_the_facts_of_a_sentence_support_it(sentence):
    verdicts = verify_against_facts(extract_claims(sentence), facts_from_sentence(sentence))
    assert {verdict.value for verdict in verdicts} == {"supported"}


# ---- several annotators --------------------------------------------------------------------------


def test_the_most_frequent_choice_decides_pairs(make_store):
    store = make_store(pairs(4))
    label_all(
        store,
        {
            "a": [first(3), first(1), second(3), TIE],
            "b": [first(1), second(1), first(1), BAD],
            "c": [second(1), TIE, first(1), TIE],
        },
    )
    records = list(preferences(read_labels(store)))
    assert [record.chosen[:5] for record in records] == ["First"] * 4
    assert [record.ranks for record in records] == [(1, 2), (1, 1), (1, 2), (1, 1)]
    # 3 + 1 - 1 over 3; 1 - 1 + 0; two votes against a stronger one, so no margin; ties.
    assert [record.ratings for record in records] == [(1.0, 0.0), (0.0, 0.0), (), (0.0, 0.0)]


@pytest.mark.parametrize(
    ("votes", "answers", "ranks"),
    [
        ([second(1), TIE, TIE], None, (1, 1)),  # the mean rank would prefer the second
        ([first(), BAD, BAD], None, None),
        ([first(), first(), BAD], "First", (1, 2)),
        ([second(), second(), first(), BAD], "Second", (1, 2)),
        ([first(), BAD], None, (1, 1)),
        ([first(), first(), second(), second(), TIE], None, (1, 1)),
    ],
)
def test_pairs_by_plurality(make_store, votes, answers, ranks):
    store = make_store(pairs(1))
    label_all(store, {f"annotator {number}": [vote] for number, vote in enumerate(votes)})
    records = list(preferences(read_labels(store)))
    assert [record.ranks for record in records] == ([] if ranks is None else [ranks])
    if answers:
        assert records[0].chosen.startswith(answers)


def test_mean_ranks_decide_rankings(make_store):
    store = make_store([{"answers": ["one", "two", "three"]}])
    label_all(store, {"a": [{"ranks": [2, 1, 3]}], "b": [{"ranks": [3, 1, 2]}]})
    (record,) = preferences(read_labels(store))
    assert (record.answers, record.ranks) == (("two", "one", "three"), (1, 2, 2))


def claim_label(spans=(), corrected=ANSWER, verdict="supported"):
    (claim, *_) = claims_of(ANSWER)
    row = {"kind": claim.kind, "subject": claim.subject, "value": "", "relation": "", "target": "", "category": "dog"}
    return {
        "spans": list(spans),
        "corrected": corrected,
        "claims": [row | {"span": [8, 11], "negated": False, "hedged": False, "verdict": verdict}],
    }


SPAN = {"start": 2, "end": 7, "text": "brown", "reason": "attribute", "correction": "white"}
CORRECTED = "A white dog sits on a sofa, beside two cats."


def test_corrected_pairs_need_a_majority(make_store):
    store = make_store([{"id": "x", "answers": [ANSWER]}, {"id": "y", "prompt": "y?", "answers": [ANSWER]}])
    wrong = claim_label([SPAN], CORRECTED, "contradicted")
    label_all(store, {"a": [wrong, wrong], "b": [wrong, claim_label()]})
    (record,) = preferences(read_labels(store))
    assert (record.id, record.chosen, record.rejected, record.hallucinated) == ("x", CORRECTED, ANSWER, True)


def test_a_correction_without_marks_counts(make_store):
    store = make_store([{"id": "x", "answers": [ANSWER]}, {"id": "y", "prompt": "y?", "answers": [ANSWER]}])
    label_all(store, {"a": [claim_label(corrected=CORRECTED), claim_label(corrected=f"{ANSWER} ")]})
    (record,) = preferences(read_labels(store))
    assert (record.id, record.chosen, record.hallucinated) == ("x", CORRECTED, True)


def test_claims_are_what_reward_eval_reads(make_store, tmp_path):
    from mmrlhf.commands.claim_truth import _verdicts_of_labels
    from mmrlhf.rewards.reward_model import AnswerGroup

    store = make_store([{"id": "x", "answers": [ANSWER]}])
    label_all(
        store, {"a": [claim_label(verdict="contradicted")], "b": [claim_label(verdict="contradicted")], "c": [claim_label()]}
    )
    export_labels(str(store.path), "claims", str(tmp_path / "claims.jsonl"))
    (((verdict,),),) = _verdicts_of_labels(str(tmp_path / "claims.jsonl"), [AnswerGroup((), (), (ANSWER,), (), "x")])
    assert (verdict.value, verdict.claim.subject, verdict.claim.span) == ("contradicted", "dog", (8, 11))


def test_facts_are_what_facts_file_reads(make_store, tmp_path):
    store = make_store([{"id": "x", "answers": []}])
    dog, cat = {"kind": "object", "text": "dog"}, {"kind": "absent", "text": "cat"}
    label_all(store, {"a": [{"facts": [dog], "complete": True}], "b": [{"facts": [dog, cat], "complete": False}]})
    export_labels(str(store.path), "facts", str(tmp_path / "facts.jsonl"))
    facts = read_facts(tmp_path / "facts.jsonl")["red.png"]
    assert [(fact.kind, fact.text) for fact in facts] == [("scope", "incomplete"), ("object", "dog")]


def test_facts_name_images_by_folder_and_file(make_store, tmp_path):
    """Two folders may have an image of one name."""
    for folder, colour in (("train", "red"), ("test", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 6), colour).save(tmp_path / folder / "a.png")
    store = make_store(
        [{"id": f"{n}", "answers": [], "images": [f"{folder}/a.png"]} for n, folder in enumerate(("train", "test"))]
    )
    label_all(store, {"a": [{"facts": [{"kind": "object", "text": text}], "complete": True} for text in ("dog", "cat")]})
    export_labels(str(store.path), "facts", str(tmp_path / "facts.jsonl"))
    facts = read_facts(tmp_path / "facts.jsonl")
    assert {name: fact.text for name, (_, fact) in facts.items()} == {"train/a.png": "dog", "test/a.png": "cat"}


def test_facts_keep_the_names_of_their_rows_whatever_else_is_labelled(make_store, write_rows, tmp_path, capsys):
    """Neither pairs and gold questions in another folder nor `without` change the names."""
    for name, colour in (("coco/a", "red"), ("coco/new/b", "blue"), ("vg/c", "green"), ("gold/d", "white")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), colour).save(tmp_path / f"{name}.png")
    rows = [{"id": name, "answers": [], "images": [f"coco/{name}.png"]} for name in ("new/b", "a")]
    store = make_store(
        rows, gold=[{"id": "d", "mode": "facts", "images": ["gold/d.png"], "facts": [{"kind": "object", "text": "cup"}]}]
    )
    elsewhere = write_rows(pairs(1)[0] | {"images": ["vg/c.png"]}, name="elsewhere.jsonl")
    store.add_tasks(read_tasks([elsewhere], None, None, "train"))
    typed = {"facts": [{"kind": "object", "text": "cup"}], "complete": True}
    label_all(store, {"a": [typed, typed, first()], "b": [typed]})
    for without, names in (((), ["new/b.png", "a.png"]), (("a",), ["new/b.png"])):
        export_labels(str(store.path), "facts", str(tmp_path / "facts.jsonl"), without=without)
        assert list(read_facts(tmp_path / "facts.jsonl")) == names
        folder = tmp_path / "coco"
        assert f"rows as facts; image paths start from {folder} (--image_folder {folder})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([["dog", "dog"]], ["complete", "dog"]),
        ([["dog"], ["cat"]], ["incomplete"]),  # half are no majority
        ([["dog"], ["dog", "cat"], ["cat"]], ["complete", "dog", "cat"]),
        ([["dog"], ["dog"], ["dog", "cat"]], ["incomplete", "dog"]),  # a cat may be there
        ([["dog"], ["dog"]], ["complete", "dog"]),
    ],
)
def test_facts_that_most_annotators_typed(make_store, lists, expected):
    store = make_store([{"id": "x", "answers": []}])
    typed = [[{"facts": [{"kind": "object", "text": text} for text in texts], "complete": True}] for texts in lists]
    label_all(store, {f"annotator {number}": labels for number, labels in enumerate(typed)})
    ((_, facts),) = typed_facts(read_labels(store))
    assert [fact.text for fact in facts] == expected
