"""Rows of answer files are joined to the right examples, or to none, and notes report it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.evaluation.answer_rows import fold, image_key, lmms_eval_answer, lmms_eval_fields, read_facts, splits_in
from mmrlhf.evaluation.join import join_rows
from mmrlhf.evaluation.row_matching import Target

SPLITS = ("random", "popular", "adversarial")


def facts(row, splits=()):
    """Read a row whose id is its `id`, `question_id`, `index` or `doc_id`."""
    names = ("id", "question_id", "index", "doc_id")
    return read_facts(row, lambda r: next((str(r[n]) for n in names if n in r), None), fold, splits)


def target(id_, question="", image="", split=""):
    return Target(f"{split}/{id_}" if split else str(id_), str(id_), fold(question), image_key(image), split)


def join(rows, targets, splits=(), **more):
    """Return the id of each row's example, "?" for an unknown one, and the notes."""
    known = {t.id for t in targets}
    joined = join_rows([facts(row, splits) for row in rows], targets, bool(splits), **more)
    return ["+".join(i if i in known else "?" for i in ids) for ids in joined.ids], joined.notes


QUESTIONS = ("A dog?", "A cat?", "A dog?", "A bus?")
FOUR = [target(n, question, f"{n // 2}.jpg") for n, question in enumerate(QUESTIONS, 10)]
"""Ids 10 to 13 on images 5, 5, 6, 6; two examples share a question."""


def test_join_trusts_ids_that_nothing_contradicts():
    rows = [{"id": n} for n in (13, 10, 99)]
    assert join(rows, FOUR)[0] == ["13", "10", "?"]
    framed = [
        {"id": 10, "question": "<image>\na  DOG?\nAnswer yes or no."},
        {"id": 11, "prompt": "A cat?", "image": "other/name.png"},
    ]
    assert join([*framed, {"id": 13, "question": "A pig?"}], FOUR)[0] == ["10", "11", "?"]
    # a question inside a longer prompt, and one that only looks so
    long = [target(1, "Is there a car in the image?"), target(2, "Is there a cart?")]
    inside = [
        {"id": 1, "prompt": "USER: Is there a car in the image? ASSISTANT:"},
        {"id": 2, "prompt": "Is there a cart? Say yes."},
    ]
    assert join(inside, long)[0] == ["1", "2"]
    assert join([{"id": 1, "prompt": "Is there a carpet in the image?"}, inside[1]], long)[0] == ["?", "2"]


def test_join_question_decides_against_id():
    rows = [
        {"id": 10, "question": "A dog?"},
        {"id": 11, "question": "A cat?"},
        {"id": 12, "question": "A dog?"},
        {"id": 10, "question": "A bus?"},
    ]
    ids, notes = join(rows, FOUR)
    assert ids == ["10", "11", "12", "13"]
    assert notes["other id"] == "1 rows have the id of another question, and their own question decides (as 10, which is 13)"
    # with the image, the question tells which of the two dogs is meant
    rows = [{"id": 11, "question": "A dog?", "image": "a/6.jpg"}, {"id": 10, "question": "A cat?", "image": "5.png"}]
    assert join(rows, FOUR)[0] == ["12", "11"]


def test_join_needs_a_question_or_an_image_and_never_two_empty_ones():
    examples = [target("a", "A cat?"), target("b", "A cat?", "1.jpg"), target("c", "", "2.jpg"), target("d")]
    assert join([{"id": "x", "question": "A cat?", "image": ""}], examples)[0] == ["?"]  # with or without image
    assert join([{"id": "x", "question": "", "image": ""}, {"id": "y"}], examples)[0] == ["?", "?"]
    assert join([{"question": "A cat?", "image": "1.jpg"}], examples)[0] == ["b"]


@pytest.mark.parametrize("first", [0, 1, 10000001])
def test_join_finds_a_constant_distance_between_ids_and_questions(first):
    rows = [{"question_id": n + first, "prompt": question} for n, question in enumerate(QUESTIONS)]
    assert join(rows, FOUR)[0] == ["10", "11", "12", "13"]
    assert join(rows[::-1], FOUR)[0] == ["13", "12", "11", "10"]
    assert join(rows[1:], FOUR)[0] == ["11", "12", "13"]
    assert "4 rows have ids at a constant distance" in join(rows, FOUR)[1]["distance"]
    gaps = [target(n, q) for n, q in zip((10, 11, 15, 18), QUESTIONS, strict=True)]
    rows = [
        {"question_id": 1000 + n, "prompt": q}
        for n, q in zip((10, 11, 13, 15, 18), ("A dog?", "A cat?", "A pig?", "A dog?", "A bus?"), strict=True)
    ]
    assert join(rows, gaps)[0] == ["10", "11", "?", "15", "18"]


def test_a_note_on_a_distance_names_a_number_that_is_no_id():
    rows = [read_facts({"index": n, "question": question}, lambda row: None, fold, ()) for n, question in enumerate(QUESTIONS)]
    joined = join_rows(rows, FOUR)
    assert [ids[0] for ids in joined.ids] == ["10", "11", "12", "13"] and "(as 0, which is 10)" in joined.notes["distance"]


def test_join_goes_by_order_only_where_every_row_agrees():
    rows = [{"answer_id": str(n), "prompt": question} for n, question in enumerate(QUESTIONS)]
    ids, notes = join(rows, FOUR)
    assert ids == ["10", "11", "12", "13"] and "4 rows have no id of the data" in notes["order"]
    assert join(rows[:3], FOUR)[0] == ["10", "11", "12"]  # a run that broke off
    assert join(rows[1:], FOUR)[0] == ["11", "?", "13"]  # the first is lost: a dog may be either one
    assert join(rows[:1], FOUR)[0] == ["?"]
    assert join([{"text": "x"}] * 4, FOUR)[0] == ["", "", "", ""]


def test_join_does_not_guess_by_order_whether_a_question_came_with_its_image():
    examples = [target("a", "A dog?", "1.jpg"), target("b", "A cat?"), target("c", "A cat?", "2.jpg")]
    for ids in ([7, 8], [None, None]):  # b or c: a log may lack all questions without an image
        rows = [{"id": id_, "question": question} for id_, question in zip(ids, ("A dog?", "A cat?"), strict=True)]
        found, notes = join(rows, examples)
        assert found == ["a", "?"] and "unclear" in notes
    whole = [{"question": question} for question in ("A dog?", "A cat?", "A cat?")]
    assert join(whole, examples)[0] == ["a", "b", "c"]


def test_join_takes_bare_positions_only_if_they_count_all_examples():
    assert join([{"doc_id": n} for n in range(4)], FOUR)[0] == ["10", "11", "12", "13"]
    assert join([{"doc_id": n} for n in range(3)], FOUR)[0] == ["?", "?", "?"]
    # the second example has the id 1, but the position 1 is not it
    ones = [target(n, "A dog?") for n in range(1, 5)]
    ids, notes = join([{"index": n} for n in range(4)], ones)
    assert ids == ["1", "2", "3", "4"] and "4 rows have nothing but numbers" in notes["position"]
    assert join([{"id": n} for n in range(4)], ones)[0] == ["1", "2", "3", "4"]
    assert join([{"id": n} for n in range(1, 4)], ones)[0] == ["1", "2", "3"]


def test_join_takes_questions_that_the_data_has_twice_in_turn():
    examples = [target("a", "A cat?", "1.jpg"), target("b", "A cat?", "1.jpg")]
    row = {"index": 7, "question": "A cat?", "image_path": "1.jpg"}
    assert join([row, row, row], examples)[0] == ["a", "b", "a"]


def test_join_leaves_questions_of_another_image_alone():
    # The words are those of one example, but the id is of none: an example that --limit left out.
    rows = [{"id": 10, "question": "A dog?"}, {"id": 11, "question": "A cat?"}, {"id": 55, "question": "A bus?"}]
    assert join(rows, FOUR)[0] == ["10", "11", "?"]


def split_targets(**words):
    """Return the questions of splits, whose ids restart in each."""
    return [target(n, f"A {word}?", split=split) for split, text in words.items() for n, word in enumerate(text.split(), 1)]


THREE = split_targets(random="dog cat", popular="dog car", adversarial="dog bus")


def asked(*words, first=1, **more):
    return [{"question_id": n, "prompt": f"A {word}?", **more} for n, word in enumerate(words, first)]


def test_join_cuts_logs_of_several_splits():
    restarting = asked("dog", "bus") + asked("dog", "cat") + asked("dog", "car")
    running_on = asked("dog", "bus") + asked("dog", "cat", first=10000001) + asked("dog", "car", first=20000001)
    contiguous = asked("dog", "bus", "dog", "cat", "dog", "car")
    expected = [f"{split}/{n}" for split in ("adversarial", "random", "popular") for n in (1, 2)]
    for rows in (restarting, running_on, contiguous):
        assert join(rows, THREE, SPLITS)[0] == expected
        assert join(rows[:5], THREE, SPLITS)[0] == expected[:5]  # broke off: what is left is popular
    shuffled = [running_on[n] for n in (3, 0, 5, 2, 1, 4)]
    assert join(shuffled, THREE, SPLITS)[0] == [expected[n] for n in (3, 0, 5, 2, 1, 4)]
    # the first answer of the first split is lost, and its id is the second split's
    assert join(restarting[1:], THREE, SPLITS)[0] == expected[1:]
    # a single row that all splits have, and nothing else to tell
    ids, notes = join(running_on[2:3], THREE, SPLITS)
    assert ids == ["?"] and "1 rows fit several splits" in notes["several splits"]


def test_join_finds_the_splits_of_ids_that_run_on_where_answers_are_lost():
    absent = {"random": "zebra bear cow pig hen", "popular": "car chair bed sink cup", "adversarial": "fork bat tie vase kite"}
    words = {split: f"dog {text} man bus sun cat" for split, text in absent.items()}
    targets = split_targets(**words)
    rows = asked(*" ".join(words.values()).split())  # 1 to 30, ten in each split
    kept = [number for number in range(30) if number not in (3, 16, 29)]
    ids, notes = join([rows[number] for number in kept], targets, SPLITS)
    assert ids == [targets[number].id for number in kept] and "18 rows have ids at a constant distance" in notes["distance"]


def test_join_counts_a_row_in_each_split_that_it_names():
    rows = [
        {"index": 0, "question": "A dog?", "category": "adversarial,popular,random"},
        {"index": 1, "question": "A car?", "category": "popular"},
    ]
    ids, notes = join(rows, THREE, SPLITS)
    assert ids[1] == "popular/2"
    assert sorted(ids[0].split("+")) == ["adversarial/1", "popular/1", "random/1"]
    assert "1 rows name several splits" in notes["counted again"]
    ids, notes = join([{"index": 0, "question": "A car?", "category": "popular,random"}, rows[0]], THREE, SPLITS)
    assert ids[0] == "popular/2" and "1 rows name a split of --data that does not have" in notes["some splits"]


def test_join_takes_only_its_split_out_of_a_log():
    only = [target(n, f"A {word}?") for n, word in enumerate(("dog", "cat"), 1)]
    ids, notes = join(asked("dog", "bus") + asked("dog", "cat"), only, SPLITS)
    assert ids == ["?", "?", "1", "2"] and "2 answers are to questions of another split" in notes["other split"]
    rows = asked("dog", "bus", category="adversarial") + asked("dog", "cat", category="random")
    assert join(rows, only, SPLITS, only_split="random")[0] == ["?", "?", "1", "2"]


@given(st.permutations(range(6)), st.integers(10, 10**9), st.integers(0, 6))
def test_join_finds_the_same_examples_in_any_order_and_at_any_distance(order, first, length):
    examples = [target(f"x{n}", f"Is there a {['dog', 'cat', 'bus'][n % 3]}?") for n in range(6)]
    rows = [{"question_id": first + n, "prompt": f"Is there a {['dog', 'cat', 'bus'][n % 3]}?"} for n in range(6)]
    ids, _ = join([rows[n] for n in order[:length]], examples)
    assert all(found in (f"x{n}", "?") for n, found in zip(order, ids, strict=False))
    if length == 6:
        assert "?" not in ids


def test_row_facts_read_the_fields_of_other_programs():
    row = facts(
        {"index": "3", "question": "A cat?", "image_path": "a/COCO_val2014_000000000042.jpg", "category": "popular,random"},
        SPLITS,
    )
    assert (row.id, row.is_position, row.number, row.image, row.splits) == ("3", True, 3, "42", ("random", "popular"))
    assert facts({"question_id": "adversarial/17"}, SPLITS).id == "17" and facts(
        {"question_id": "adversarial/17"}, SPLITS
    ).splits == ("adversarial",)
    assert facts({"id": "9" * 5000}).number is None
    assert [image_key(n) for n in ("5_0.png", "000000000042.jpg", "COCO_val2014_000000000042", "a\\b.jpg", "")] == [
        "5_0",
        "42",
        "42",
        "b",
        "",
    ]
    assert splits_in("coco_pope_random", SPLITS) == ("random",) and splits_in("randomised", SPLITS) == ()
    assert splits_in("Random; POPULAR", SPLITS) == ("random", "popular")
    row = facts({"id": "coco_pope_adversarial_17", "prompt": [{"role": "user", "content": [{"text": "A cat?"}]}]}, SPLITS)
    assert (row.id, row.splits, row.asked) == ("17", ("adversarial",), "A cat?")
    assert facts({"id": "random_popular_17"}, SPLITS).id == "random_popular_17"  # which of the two?
    assert facts({"id": "5", "subset": "Popular"}, SPLITS).splits == ("popular",)


@pytest.mark.parametrize(
    "asked",
    [
        "Is there a cat? Please answer yes or no.",
        "USER: <image>\nIs there a cat? ASSISTANT:",
        "Look closely.\nAnswer this question: Is there a cat?\nOne word.",
    ],
)
def test_row_facts_find_the_only_question_among_instructions(asked):
    assert fold("Is there a cat?") in facts({"id": "1", "prompt": asked}).wordings
    assert fold("Is there a cat?") not in facts({"id": "1", "prompt": f"{asked} Is there a dog?"}).wordings


def test_lmms_eval_samples_say_what_was_asked():
    assert lmms_eval_answer({"filtered_resps": "Yes"}) == lmms_eval_answer({"resps": [["Yes", "No"]]}) == "Yes"
    assert lmms_eval_answer({"filtered_resps": ["Yes"], "resps": [["<think>No?</think> Yes"]]}) == "Yes"
    assert lmms_eval_answer({"resps": []}) is None
    new = {"doc_id": 4, "input": "A cat?\nAnswer.", "pope_accuracy": {"question_id": "5", "score": 1.0}, "target": "yes"}
    assert lmms_eval_fields(new) == {"question_id": "5", "doc_id": 4, "input": "A cat?\nAnswer."}
    old = {"doc_id": 4, "doc": {"question_id": "5", "question": "A cat?", "image": None}, "pope_accuracy": {"question_id": "6"}}
    assert lmms_eval_fields(old) == {"question_id": "5", "question": "A cat?", "doc_id": 4}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A cat?"}]},
    ]
    assert lmms_eval_fields({"doc_id": 0, "input": chat})["input"] == "A cat?"
    assert lmms_eval_fields({"doc_id": 0, "arguments": [["A cat?", {"until": ["\n"]}]]})["input"] == "A cat?"
