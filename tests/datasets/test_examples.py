"""Prompts, with or without an answer, become Examples, and errors name the row and field."""

import pytest

from mmrlhf.datasets import has_preferences, read_examples, read_preferences
from mmrlhf.datasets.write import FORMATS
from mmrlhf.files import bundled
from mmrlhf.records import InputError, Preference
from tests.helpers.rows import (
    ONE_IMAGE,
    QUESTION,
    assistant_turn,
    content_parts,
    error_of,
    gpt_turn,
    human_turn,
    user_turn,
    write_json,
    write_jsonl,
)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({**ONE_IMAGE, "messages": [user_turn("What is it?"), assistant_turn("A cup.")]}, "A cup."),
        ({**ONE_IMAGE, "messages": [user_turn(content_parts("What is it?")), assistant_turn("A cup.")]}, "A cup."),
        ({**ONE_IMAGE, "messages": [user_turn("What is it?")]}, None),
        ({**ONE_IMAGE, "prompt": "What is it?", "completion": "A cup."}, "A cup."),
        ({**ONE_IMAGE, "prompt": [user_turn("What is it?")], "completion": [assistant_turn("A cup.")]}, "A cup."),
        ({"image": "a.png", "question": "What is it?", "answer": "A cup."}, "A cup."),
        ({"image": "a.png", "problem": "What is it?", "solution": "A cup."}, "A cup."),
        ({**ONE_IMAGE, "prompt": [user_turn("What is it?")], "solution": "A cup."}, "A cup."),
        ({**ONE_IMAGE, "messages": [user_turn("What is it?")], "solution": "A cup."}, "A cup."),
        ({**ONE_IMAGE, "prompt": "What is it?", "solution": 3}, "3"),
        ({**ONE_IMAGE, "prompt": "What is it?", "answer": 0.5}, "0.5"),
        ({**ONE_IMAGE, "prompt": "What is it?", "solution": 3.0}, "3"),
        ({**ONE_IMAGE, "prompt": "What is it?"}, None),
        ({"image": "a.png", "conversations": [human_turn("What is it?\n<image>"), gpt_turn("A cup.")]}, "A cup."),
        ({"image": "a.png", "conversations": [human_turn("<image>What is it?")]}, None),
    ],
)
def test_read_examples_accepts_every_example_layout(data_dir, row, answer):
    path = write_jsonl(data_dir, row)
    (example,) = read_examples(path, require_answer=answer is not None)
    assert (example.prompt, example.answer, example.meta) == ((QUESTION,), answer, {})
    assert [image.path for image in example.images] == [str(data_dir / "a.png")]
    assert not has_preferences(path)
    if answer is None:
        assert "line 1: the row has no answer: add `completion`" in error_of(read_examples, path, require_answer=True)


def test_read_examples_keeps_earlier_turns_in_prompt(data_dir):
    turns = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Hello!"), ("user", "What is it?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    trl = {**ONE_IMAGE, "messages": [*messages, assistant_turn("A cup.")]}
    roles = {"system": "system", "user": "human", "assistant": "gpt"}
    llava = [{"from": roles[role], "value": text} for role, text in turns]
    llava[3]["value"] += "<image>"
    for row in (trl, {"image": "a.png", "conversations": [*llava, gpt_turn("A cup.")]}):
        (example,) = read_examples(write_jsonl(data_dir, row))
        assert [(turn.role, turn.content) for turn in example.prompt] == turns


def test_read_examples_ppo_row_uses_only_first_human_turn(data_dir):
    row = {
        "id": 12,
        "image": "a.png",
        "conversations": [human_turn("<image>\nWhat is it?"), gpt_turn(""), human_turn("And this?"), gpt_turn("A cup.")],
        "captions": ["A cup."],
        "caption_type": 1,
        "length_bonus": -0.5,
    }
    (example,) = read_examples(write_json(data_dir, row))
    assert (example.id, example.prompt, example.answer, example.facts) == ("12", (QUESTION,), None, ())
    assert example.meta == {"captions": ["A cup."], "caption_type": 1, "length_bonus": -0.5}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ONE_IMAGE, "`messages` is missing: add it, or `prompt` (the row has images)"),
        ({**ONE_IMAGE, "mesages": []}, "`messages` is missing: rename `mesages` to it"),
        ({**ONE_IMAGE, "promt": "a"}, "`prompt` is missing: rename `promt` to it"),
        ({**ONE_IMAGE, "messages": "a"}, "`messages` must be a list of turns, not text"),
        ({**ONE_IMAGE, "messages": [assistant_turn("a")]}, "the prompt must end with a user turn"),
        ({**ONE_IMAGE, "messages": [user_turn("a"), assistant_turn("")]}, "`messages[2]` is empty"),
        ({**ONE_IMAGE, "prompt": "a", "completion": ""}, "`completion` is empty"),
        (
            {**ONE_IMAGE, "prompt": "a", "chosen": "b", "rejected": "c"},
            "compares answers and has no SFT target: `mmrlhf data convert --to sft`",
        ),
        (
            {"image": "a.png", "conversations": [human_turn("<image>a")], "captions": []},
            "no answer: prompts for ppo have no SFT target",
        ),
    ],
)
def test_read_examples_errors_name_row_and_field(data_dir, row, message):
    path = write_json(data_dir, row)
    error = error_of(read_examples, path, require_answer=True)
    assert f"{path}, row 1: " in error and message in error


@pytest.mark.parametrize(
    "name",
    [
        "trl_preference.jsonl", "trl_preference.parquet", "llava_rlhf_preference.json", "rlhf_v.parquet", "rlaif_v.jsonl",
        "mm_rlhf.jsonl", "vlfeedback.jsonl", "rankings.jsonl",
    ],
)  # fmt: skip
def test_read_examples_reads_prompts_of_every_preference_sample(name):
    path = str(bundled.find("data", "samples") / name)
    examples = read_examples(path)
    assert [example.prompt for example in examples] == [preference.prompt for preference in read_preferences(path)]
    assert {example.answer for example in examples} == {None}


TWO_IMAGES = {"images": ["a.png", "a.png"]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Before: <image> After: <image> What changed?"}, [("Before:  After:  What changed?", (8, 16))]),
        ({"prompt": "<image>\n<image>\nWhat changed?"}, [("What changed?", ())]),
        ({"prompt": " <image> <image> What changed? "}, [("What changed?", ())]),
        ({"prompt": "What changed? <image><image>"}, [("What changed? ", (14, 14))]),
        ({"prompt": "<image>"}, None),  # the row has two images
        ({"prompt": "<image>\n<image>"}, [("", ())]),
        ({"prompt": "<image>\nBefore this: <image>\nWhat changed?"}, [("Before this: \nWhat changed?", (0, 13))]),
        (
            {"prompt": [user_turn([{"type": "image"}, {"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": " b"}])]},
            [("a  b", (0, 2))],
        ),
        ({"prompt": [user_turn([{"type": "text", "text": "a <image>"}, {"type": "text", "text": "b"}, {"type": "image"}])]}, [("a b", (2, 3))]),
        (
            {"prompt": [user_turn("<image>First?"), assistant_turn("A cup."), user_turn("<image>\nAnd this?")]},
            [("First?", (0,)), ("A cup.", ()), ("And this?", (0,))],
        ),
        (
            {"conversations": [human_turn("First?\n<image>"), gpt_turn("A cup."), human_turn("And this?\n<image>"), gpt_turn("A cat.")]},
            [("First?", (0,)), ("A cup.", ()), ("And this?", (0,))],
        ),
        ({"conversations": [human_turn("Is <image>\nlike <image>?"), gpt_turn("Yes.")]}, [("Is \nlike ?", (3, 9))]),
        (
            {"prompt": [user_turn("First?"), assistant_turn("A cup."), user_turn("<image><image>And these?")]},
            [("First?", ()), ("A cup.", ()), ("And these?", (0, 0))],
        ),
        ({"prompt": [user_turn("First?"), assistant_turn("A <image> cup."), user_turn("And <image>this?")]}, None),
    ],
)  # fmt: skip
def test_images_keep_their_place(data_dir, row, expected):
    path = write_jsonl(data_dir, {**TWO_IMAGES, **row})
    if expected is None:
        with pytest.raises(InputError, match=r"make the numbers equal|contains an image, but is not a user turn"):
            list(read_examples(path))
        return
    (example,) = read_examples(path)
    assert [(turn.content, turn.image_positions) for turn in example.prompt] == expected
    if len(expected) == 1 and expected[0][1]:  # written out again, the places are the same
        preference = Preference.from_pair("r", example.images, example.prompt, "A cup.", "A cat.")
        for name in ("trl", "llava-rlhf", "rankings", "mm-rlhf", "rlhf-v", "vlfeedback"):
            (again,) = read_examples(
                write_jsonl(data_dir, FORMATS[name].to_row(preference, ["a.png", "a.png"]), name=f"{name}.jsonl")
            )
            assert again.prompt == example.prompt, name


@pytest.mark.parametrize("value", [["a", "b"], {"x": 1}, True, 10**400])
def test_a_reference_that_is_no_text_is_kept_for_reward_functions(data_dir, value):
    path = write_jsonl(data_dir, {**ONE_IMAGE, "prompt": "What is it?", "answer": value})
    (example,) = read_examples(path)
    assert (example.answer, example.meta) == (None, {"answer": value})
    assert "line 1: `answer" in error_of(read_examples, path, require_answer=True)


@pytest.mark.parametrize("value", ["", " ", [{"role": "assistant"}], {"role": "user", "content": "A cup."}])
def test_a_reference_that_is_empty_or_a_malformed_turn_is_refused(data_dir, value):
    path = write_jsonl(data_dir, {**ONE_IMAGE, "prompt": "What is it?", "answer": value})
    assert "line 1: `answer" in error_of(read_examples, path)


ANSWERED = [user_turn("What is it?"), assistant_turn("A cup.")]
PAIR_ANSWERS = {"chosen": "A cup.", "rejected": "A cat."}


@pytest.mark.parametrize(
    ("read", "other"),
    [
        ({"prompt": "What is it?"}, {"question": "Who?"}),
        ({"prompt": "What is it?"}, {"question": "Who?", "problem": "2?", "query": "Why?"}),
        ({"messages": ANSWERED}, {"prompt": "Who?", "question": "Why?"}),
        ({"messages": ANSWERED}, {"solution": "A cat.", "answer": "A cat.", "response": "A cat.", "completion": "A cat."}),
        ({"messages": ANSWERED[:1], "solution": "A cup."}, {"query": "Who?", "response": "A cat."}),
        ({"conversations": [human_turn("What is it?"), gpt_turn("A cup.")]}, {"messages": ANSWERED, "prompt": "Who?"}),
        ({"query": "What is it?", "response": "A cup."}, {"question": "Who?", "completion": "A cat."}),
        ({"prompt": "What is it?", "completion": "A cup."}, {"response": "A cat.", "solution": "A cat."}),
        ({"prompt": "What is it?", "answer": "A cup."}, {"solution": "A cat."}),
        ({"instruction": "What is it?", "output": "A cup."}, {"source": "a"}),
        ({"prompt": "What is it?", **PAIR_ANSWERS}, {"question": "Who?", "query": "Why?", "problem": "2?"}),
        ({"question": "What is it?", **PAIR_ANSWERS}, {"query": "Who?"}),
        ({"messages": ANSWERED, "rejected_response": "A cat."}, {"prompt": "Who?", "query": "Why?"}),
        ({"query": "What is it?", "response": "A cup.", "rejected_response": "A cat."}, {"prompt": "Who?", "question": "Why?"}),
        ({"conversations": [human_turn("What is it?")], **PAIR_ANSWERS}, {"prompt": "Who?", "response": "A dog."}),
        (
            {"prompt": "What is it?", "answers": ["A cup.", "A cat."], "ranks": [1, 2]},
            {"question": "Who?", "messages": [user_turn("Why?")]},
        ),
    ],
)
def test_fields_beside_those_that_are_read_are_kept_as_unread(data_dir, read, other):
    path = write_jsonl(data_dir, {**ONE_IMAGE, **read, **other})
    (example,) = read_examples(path)
    assert example.prompt[-1].content == "What is it?" and example.answer in ("A cup.", None)
    assert example.meta.keys() >= other.keys() and not example.meta.keys() & (read.keys() - {"answers", "ranks"})
    if has_preferences(path):
        (pair,) = read_preferences(path)
        assert (pair.chosen, pair.rejected) == ("A cup.", "A cat.") and pair.meta.keys() == other.keys()


QUERY = {"image": "a.png", "query": "What is it?"}


@pytest.mark.parametrize(
    "answers",
    [
        {"answers": ["A cup.", "A cat."], "ranks": [1, 2]},
        {"chosen": "A cup.", "rejected": "A cat."},
        {
            "completions": [
                {"response": text, "annotations": {"Help": {"Rating": n}}} for n, text in enumerate(("A cat.", "A cup."))
            ]
        },
    ],
)
def test_answers_to_a_query_are_compared_and_give_a_prompt(data_dir, answers):
    path = write_jsonl(data_dir, QUERY | answers)
    (example,), (pair,) = read_examples(path), read_preferences(path)
    assert example.prompt == pair.prompt == (QUESTION,) and example.answer is None
    assert pair.answers == ("A cup.", "A cat.") and "query" not in pair.meta
