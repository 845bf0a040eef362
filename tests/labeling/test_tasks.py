"""Rows of any format become tasks."""

import json
from collections import Counter

import pytest

from mmrlhf.claims import extract_claims
from mmrlhf.commands.policy_outlook import WITH_FACTS, WITHOUT_FACTS
from mmrlhf.labeling.label_studio_argilla import numbered_answers, unpack_other_export
from mmrlhf.labeling.store import Store
from mmrlhf.labeling.tasks import Task, read_tasks
from mmrlhf.labeling.uncertainty import CONDITIONS, uncertainty_of_claims, uncertainty_of_margins
from mmrlhf.records import InputError


def tasks_of(path, mode=None, **kwargs):
    return read_tasks([path] if isinstance(path, str) else path, mode, None, "train", **kwargs)


@pytest.mark.parametrize(
    ("answers", "mode"), [([], "facts"), (["a"], "claims"), (["a", "b"], "pairwise"), (["a", "b", "c"], "ranking")]
)
def test_the_number_of_answers_decides_the_mode(write_rows, answers, mode):
    (task,) = tasks_of(write_rows({"answers": answers}))
    assert task.mode == mode and set(task.answers) == set(answers)


def test_a_row_may_name_its_mode(write_rows):
    modes = [task.mode for task in tasks_of(write_rows({"answers": ["a"], "mode": "facts"}, {"id": 2, "answers": ["b", "c"]}))]
    assert modes == ["facts", "pairwise"]
    with pytest.raises(InputError, match="`mode` must be one of pairwise, ranking, claims, facts, not 'pairs'"):
        tasks_of(write_rows({"answers": ["a"], "mode": "pairs"}))


def test_answers_of_several_policies_to_a_prompt_are_put_together(write_rows):
    row = {"id": "7", "prompt": [{"role": "user", "content": "What?"}]}
    sft, ppo = write_rows(row | {"answer": "A cup."}, name="sft.jsonl"), write_rows(row | {"answer": "A dog."}, name="ppo.jsonl")
    (task,) = tasks_of([sft, ppo])
    assert (task.mode, task.answers, task.models) == ("pairwise", ("A cup.", "A dog."), ("sft", "ppo"))


def test_an_answer_to_avoid_is_one_to_label(write_rows):
    for fields in ({"label": False}, {"kto_tag": 0}):
        (task,) = tasks_of(write_rows({"answer": "A cup.", **fields}))
        assert (task.mode, task.answers) == ("claims", ("A cup.",))


def test_a_split_is_not_asked_of_files_beside_the_one_that_has_it(write_rows, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({"test": [{"images": ["red.png"], "prompt": "What?", "answers": ["a", "b"]}]}))
    more = write_rows({"answers": ["c", "d"]}, name="more.jsonl")
    tasks = read_tasks([str(tmp_path / "rows.json"), more], None, None, "test")
    assert [task.answers for task in tasks] == [("a", "b"), ("c", "d")]
    gold = write_rows({"chosen": "right", "rejected": "wrong"}, name="gold.jsonl")
    assert read_tasks([gold], None, None, "test", is_gold=True)
    with pytest.raises(InputError, match="has no splits"):
        read_tasks([more], None, None, "test")


def test_equal_answers_are_one(write_rows, capsys):
    rows = [{"id": 1, "answers": ["same", "same", "other"]}, {"id": 2, "prompt": "Else?", "answers": ["same", "same"]}]
    (task,) = tasks_of(write_rows(*rows), "pairwise")
    assert sorted(task.answers) == ["other", "same"]
    assert "1 rows left out: pairwise needs two different answers" in capsys.readouterr().out


def test_more_answers_give_every_pair_or_each_answer(write_rows):
    path = write_rows({"id": "r", "answers": ["a", "b", "c"]})
    assert sorted((task.name, task.answers) for task in tasks_of(path, "pairwise")) == [
        ("r-1-2", ("a", "b")),
        ("r-1-3", ("a", "c")),
        ("r-2-3", ("b", "c")),
    ]
    assert sorted(task.answers for task in tasks_of(path, "claims")) == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize("mode", ["claims", "pairwise"])
def test_the_order_of_tasks_does_not_tell_models(write_rows, mode):
    """With three policies' files in order, each is first about as often."""
    files = [
        write_rows(*({"prompt": f"{i}?", "answer": f"{policy} says {i}"} for i in range(60)), name=f"{policy}.jsonl")
        for policy in ("sft", "dpo", "ppo")
    ]
    tasks = read_tasks(files, mode, None, "train")
    first = Counter(tasks[3 * i].models[0] if mode == "claims" else "-".join(tasks[3 * i].models) for i in range(60))
    assert len(tasks) == 180 and len(first) == 3 and min(first.values()) >= 10


def test_preferences_are_pairs_and_gold_keeps_the_right_answer(write_rows):
    path = write_rows({"id": "g", "chosen": "right", "rejected": "wrong"})
    assert tasks_of(path)[0].gold == {}
    (gold,) = tasks_of(path, is_gold=True)
    assert (gold.answers, gold.gold) == (("right", "wrong"), {"ranks": [1, 2]})
    with pytest.raises(InputError, match="a gold question needs its right answer"):
        tasks_of(write_rows({"answers": ["a", "b"]}), is_gold=True)


def test_gold_questions_of_claims_and_facts(write_rows):
    answer, facts = "A red cup, a red dog.", [{"kind": "object", "text": "cup"}, {"kind": "absent", "text": "cat"}]
    rows = [
        {"answer": answer, "spans": ["red cup", {"text": "red", "start": 13}]},
        {"prompt": "Right?", "answer": answer, "spans": []},
        {"prompt": "No?", "answer": "no no no", "spans": [{"text": "no no", "start": 3}]},
        {"prompt": "Facts?", "facts": [*facts, {"kind": "caption", "text": "A cup."}]},
    ]
    tasks = tasks_of(write_rows(*rows), is_gold=True)
    assert [task.mode for task in tasks] == ["claims", "claims", "claims", "facts"]
    assert [task.gold for task in tasks] == [
        {"spans": [[2, 9], [13, 16]]},
        {"spans": []},
        {"spans": [[3, 8]]},
        {"facts": [["object", "cup"], ["absent", "cat"]]},
    ]
    ordinary = tasks_of(write_rows(*rows))
    assert [task.gold for task in ordinary] == [{}] * 4
    assert not {task.digest for task in tasks} & {task.digest for task in ordinary}


@pytest.mark.parametrize(
    ("row", "mode", "problem"),
    [
        ({"answers": ["a", "b"]}, None, "a gold question needs its right answer: give `chosen`"),
        ({"answer": "a cup", "spans": ["cup"]}, "pairwise", "a gold question needs its right answer"),
        ({"chosen": "a", "rejected": "b"}, "claims", "needs one answer, and `spans`"),
        ({"chosen": "a", "rejected": "b"}, "facts", "needs `facts` to state: give some of kind object, count"),
        ({"answer": "a cup"}, "claims", "needs one answer, and `spans`"),
        ({"answer": "a cup", "spans": ["dog"]}, None, r"line 1: `spans\[1\]` 'dog' is not in the answer: copy it"),
        ({"answer": "a cup", "spans": ["cup", " "]}, None, r"`spans\[2\]` must be words of the answer, not ' '"),
        ({"answer": "a cup", "spans": [{"start": 2}]}, None, r"`spans\[1\]` must be words of the answer, not null"),
        ({"answer": "a red cup, a red dog", "spans": ["red"]}, None, "'red' is 2 times in the answer: add the words around it"),
        ({"answer": "no no no", "spans": ["no no"]}, None, "'no no' is 2 times in the answer"),
        *(
            (
                {"answer": "a cup", "spans": [{"text": "cup", "start": start}]},
                None,
                f"'cup' does not start at character {start!r} of",
            )
            for start in (99, 0, -3, True, "2")
        ),
        ({"facts": [{"kind": "caption", "text": "A cup."}]}, None, "needs `facts` to state"),
    ],
)
def test_gold_questions_without_a_known_label(write_rows, row, mode, problem):
    with pytest.raises(InputError, match=problem):
        tasks_of(write_rows(row), mode, is_gold=True)


def test_facts_and_rows_survive_the_store(write_rows, tmp_path):
    facts = [{"kind": "object", "text": "red cup", "box": [0.1, 0.2, 0.3, 0.4]}]
    (task,) = tasks_of(write_rows({"answers": ["a", "b"], "facts": facts, "uncertainty": 0.5}))
    store = Store(tmp_path / "l.db", create=True)
    assert store.add_tasks([task]) == 1 and store.add_tasks([task]) == 0
    stored = store.task(1)
    assert stored.facts == task.facts and stored.answers == task.answers and stored.uncertainty == 0.5
    assert stored.images[0].read() == task.images[0].read()


def test_a_row_that_is_added_again_corrects_what_may_change(write_rows, tmp_path):
    store = Store(tmp_path / "l.db", create=True)
    gold = {"id": "g", "chosen": "wrong", "rejected": "right"}
    store.add_tasks(tasks_of(write_rows(gold), is_gold=True))
    store.add_tasks(tasks_of(write_rows({"answers": ["a", "b"]})))
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "red.png").rename(moved / "blue.png")
    row = {"answers": ["a", "b"], "images": ["blue.png"]}
    corrected = [write_rows(gold | {"images": ["blue.png"], "chosen": "right", "rejected": "wrong"}, name="gold.jsonl")]
    again = read_tasks(corrected, None, str(moved), "train", is_gold=True)
    again += read_tasks([write_rows(row | {"uncertainty": 0.5})], None, str(moved), "train")
    assert store.add_tasks(again) == 0
    assert (store.task(1).answers, store.task(1).gold) == (("wrong", "right"), {"ranks": [2, 1]})
    assert store.task(2).uncertainty == 0.5 and store.task(2).images[0].path == str(moved / "blue.png")


def test_gold_questions_that_are_added_again_correct_what_is_known(write_rows, tmp_path):
    store = Store(tmp_path / "l.db", create=True)
    for spans, fact in ((["red"], "cup"), (["cup"], "dog")):
        rows = [{"answer": "a red cup", "spans": spans}, {"prompt": "Facts?", "facts": [{"kind": "object", "text": fact}]}]
        store.add_tasks(tasks_of(write_rows(*rows), is_gold=True))
    assert [store.task(n).gold for n in (1, 2)] == [{"spans": [[6, 9]]}, {"facts": [["object", "dog"]]}]
    assert [entry.is_gold for entry in store.task_entries()] == [True, True]


def test_files_from_before_have_ranks_alone(write_rows, tmp_path):
    (task,) = tasks_of(write_rows({"chosen": "a", "rejected": "b"}), is_gold=True)
    for kept, gold in (([1, 2], {"ranks": [1, 2]}), ([], {})):
        assert Task.from_dict("pairwise", task.to_dict() | {"gold": kept}, task.images, None).gold == gold


def test_uncertainty_of_margins(write_rows, tmp_path, capsys):
    path = write_rows({"id": "a", "chosen": "x", "rejected": "y"}, {"id": "b", "chosen": "x", "rejected": "z"})
    for name, margins in (("one", (2.0, -0.5)), ("two", (2.0, 1.5))):
        lines = [{"id": i, "score_chosen": m, "score_rejected": 0.0} for i, m in zip("ab", margins, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def uncertainties(*names):
        uncertainty_of = uncertainty_of_margins([str(tmp_path / f"{name}.jsonl") for name in names])
        return [task.uncertainty for task in tasks_of(path, uncertainty_of=uncertainty_of)]

    assert uncertainties("one") == [-2.0, -0.5]
    # Standard deviations of (2, 2) and (-0.5, 1.5).
    assert uncertainties("one", "two") == [0.0, 1.0]
    # A pair without a score of each model has none: one margin is on another scale.
    lines = (tmp_path / "two.jsonl").read_text().splitlines()
    (tmp_path / "half.jsonl").write_text(lines[0].replace("2.0", "1.5"))
    assert uncertainties("one", "half") == [0.25, None]
    assert "uncertainty: 1 of 2 tasks have one" in capsys.readouterr().out
    (tmp_path / "half.jsonl").write_text(lines[0].replace('"a"', '"other"'))
    with pytest.raises(InputError, match="says nothing of these rows"):
        uncertainties("half")


def test_uncertainty_of_claims_is_the_mean_of_1_minus_j(write_rows, tmp_path):
    """The report has J 0.8 for objects, none for counts, and 0.5 over all kinds."""
    path = write_rows(
        {"prompt": "1", "answers": ["There is a dog.", "There is a cat."]},
        {"prompt": "2", "answers": ["There are two dogs.", "There is a dog."]},
        {"prompt": "3", "answers": ["Yes.", "No."]},
        {"prompt": "4", "answers": ["It is nice.", "Fine."], "uncertainty": 0.1},
    )

    def report(**conditions):
        (tmp_path / "results.json").write_text(json.dumps({"policy": {"detection": conditions}}))
        return uncertainty_of_claims(str(tmp_path / "results.json"))

    rates = {"all": {"J": {"value": 0.5}}, "object": {"J": {"value": 0.8}}, "count": {"J": None}}
    uncertainty_of = report(**{"without facts": {}, "with facts": rates})
    values = [task.uncertainty for task in tasks_of(path, uncertainty_of=uncertainty_of)]
    counts_and_objects = [claim.kind for text in ("There are two dogs.", "There is a dog.") for claim in extract_claims(text)]
    assert sorted(counts_and_objects) == ["count", "object", "object"]
    assert values == [pytest.approx(0.2), pytest.approx((0.2 + 0.2 + 0.5) / 3), None, 0.1]
    assert CONDITIONS == (WITH_FACTS, WITHOUT_FACTS)
    with pytest.raises(InputError, match="has no J by kind of claim"):
        report()
    with pytest.raises(InputError, match=r"cannot be read \(No such file"):
        uncertainty_of_claims(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"answers": "a"}, "`answers` must be a list"),
        ({"answers": ["a"], "mode": ["claims"]}, "`mode` must be one of"),
        ({"answers": ["a", ""]}, r"`answers\[2\]` is empty"),
        ({"answers": [{"text": 3}]}, r"`answers\[1\]` must be text"),
        ({"answers": ["a", "b"], "uncertainty": "much"}, "`uncertainty` must be a finite number"),
        ({"answers": ["a"], "images": ["../secret.png"]}, "outside the image folder"),
        ({"answers": ["a"], "images": ["rows.jsonl"]}, "is damaged, or not a"),
        ({"answers": ["x" * 1_000_001]}, "more than 1,000,000 characters"),
        (
            {
                "images": ["red.png"] * 3,
                "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}],
                "chosen": [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}],
                "rejected": [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "y"}]}],
            },
            "its answers contain images, which the page does not show: drop the row",
        ),
        ({"answers": [str(i) for i in range(10)]}, "a ranking on the page takes 9"),
    ],
)
def test_bad_rows(write_rows, row, problem):
    with pytest.raises(InputError, match=problem):
        tasks_of(write_rows(row))


# ---- Label Studio and Argilla --------------------------------------------------------------------

LABEL_STUDIO = {
    "id": 12,
    "data": {"image": "/data/local-files/?d=photos/1.png", "prompt": "What is it?", "answer1": "A cup.", "answer2": "A dog."},
    "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
}
ARGILLA = {
    "id": "a-1",
    "fields": {"image": "red.png", "prompt": "What is it?", "response_a": "A cup.", "response_b": "A dog."},
    "responses": {"preference": [{"value": "response_a", "user_id": "u"}]},
    "status": "completed",
}


def row_of(fields):
    from mmrlhf.files.rows import Row

    return Row("export.json, row 1", 1, fields)


def test_rows_of_other_tools():
    fields = unpack_other_export(row_of(LABEL_STUDIO)).fields
    assert fields == {"images": ["photos/1.png"], "prompt": "What is it?", "answers": ["A cup.", "A dog."], "id": 12}
    fields = unpack_other_export(row_of(ARGILLA)).fields
    assert fields == {"images": ["red.png"], "prompt": "What is it?", "answers": ["A cup.", "A dog."], "id": "a-1"}
    flat = {"id": "a-1", "status": "completed", **ARGILLA["fields"], "preference.responses": ["response_a"]}
    assert unpack_other_export(row_of(flat)).fields == fields


def test_numbered_answers_are_in_the_order_of_their_numbers():
    fields = {f"answer_{number}": "A cup." for number in (10, 2, 1)} | {"response_b": "B.", "response_a": "A.", "text_1": None}
    assert numbered_answers(fields) == ["answer_1", "answer_2", "answer_10", "response_a", "response_b"]


def test_flat_tables_of_other_tools_before_and_after_an_answer():
    """Argilla's has no columns of responses while nothing is answered; JSON-MIN has no `data`."""
    answered = {"id": "a-1", "status": "pending", **ARGILLA["fields"]}
    for flat in (answered, answered | {"_server_id": "5"}):
        assert unpack_other_export(row_of(flat)).fields == unpack_other_export(row_of(ARGILLA)).fields
    json_min = {**LABEL_STUDIO["data"], "id": 12, "better": "left", "annotator": 1, "annotation_id": 3, "lead_time": 2.5}
    assert unpack_other_export(row_of(json_min)).fields == unpack_other_export(row_of(LABEL_STUDIO)).fields
    one = {"image": "/data/upload/3/ab-1.png", "caption": "A cup.", "id": 1, "annotation_id": 3, "lead_time": 2.5}
    assert unpack_other_export(row_of(one)).fields["answers"] == ["A cup."]
    answers, pair = {"answers": [{"text": "A.", "model": "m"}]}, {"chosen": "A.", "rejected": "B."}
    beside = {"status": "new", "caption_1": "A cup."}
    for own in (
        answers | {"status": "new"},
        answers | beside | {"facts": ["a cup"]},
        pair | {"lead_time": 1},
        pair | beside | {"score_chosen": 2.0, "score_rejected": 1.0},
    ):
        assert unpack_other_export(row_of(own)).fields == own


def test_answers_that_nothing_reads_are_refused(write_rows):
    rows = write_rows({"response_a": "A cup.", "response_b": "A dog."})
    with pytest.raises(InputError, match=r"line 1: `response_a`, `response_b` look like answers to label: put them into one"):
        tasks_of(rows)
    one = "`caption_1` looks like an answer to label: put it into one list, `answers`, or give --mode facts to leave it out"
    with pytest.raises(InputError, match=one):
        tasks_of(write_rows({"caption_1": "A cup."}, name="one.jsonl"))
    assert [task.answers for task in tasks_of(rows, "facts")] == [()]
    assert tasks_of(write_rows({"chosen": "A.", "rejected": "B.", "caption_1": "A cup."}))[0].mode == "pairwise"
    assert tasks_of(write_rows({"answers": ["A.", "B."], "caption_1": "A cup."}))[0].mode == "pairwise"
    assert tasks_of(write_rows({"answer": "A.", "caption_1": "A cup."}))[0].answers == ("A.",)


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        ({"items": [{"id": 1, "title": "one", "body": "first"}, {"id": 2, "body": "second"}]}, ["first", "second"]),
        ({"left": "l", "right": "r"}, ["l", "r"]),
        ({"responses": ["a", "b", "c"]}, ["a", "b", "c"]),
        ({"Response 2": "b", "Response 1": "a"}, ["a", "b"]),
        ({"caption": "only"}, ["only"]),
    ],
)
def test_answers_of_other_tools(data, answers):
    row = row_of({"data": {"img": "/data/upload/3/ab-1.png", "question": "?"} | data, "annotations": []})
    fields = unpack_other_export(row).fields
    assert fields["answers"] == answers and fields["images"] == ["ab-1.png"]


def test_an_export_without_a_picture_is_refused():
    with pytest.raises(InputError, match=r"no field called image, .* \(it has text\)"):
        unpack_other_export(row_of({"data": {"text": "a"}, "annotations": []}))


def test_exports_give_tasks(tmp_path, write_rows):
    write_rows({})
    exported = LABEL_STUDIO | {"data": LABEL_STUDIO["data"] | {"image": "/data/upload/1/red.png"}}
    (tmp_path / "export.json").write_text(json.dumps([exported, ARGILLA]))
    tasks = tasks_of(str(tmp_path / "export.json"))
    assert [(task.name, task.mode, task.answers) for task in tasks] == [("12", "pairwise", ("A cup.", "A dog."))]
