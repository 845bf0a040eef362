"""Preferences in every format become the same record, and errors name the line and field."""

import json

import pytest

from mmrlhf.datasets import has_preferences, read_examples, read_preferences
from tests.helpers.rows import (
    ONE_IMAGE,
    PAIR,
    QUESTION,
    TEXT_PAIR,
    assistant_turn,
    content_parts,
    error_of,
    gpt_turn,
    human_turn,
    user_turn,
    without_field,
    write_jsonl,
)

QUESTION_PAIR = {"question": "What is it?", "chosen": "A cup.", "rejected": "A cat."}
LLAVA_PAIR = {
    "image": "a.png",
    "conversations": [human_turn("<image>\nWhat is it?"), gpt_turn("A cup.")],
    "output_1": gpt_turn("A cup."),
    "output_2": gpt_turn("A cat."),
    "preference": 1,
}


@pytest.mark.parametrize(
    "row",
    [
        {
            **ONE_IMAGE,
            "prompt": [user_turn("What is it?")],
            "chosen": [assistant_turn("A cup.")],
            "rejected": [assistant_turn("A cat.")],
        },
        {
            **ONE_IMAGE,
            "prompt": [user_turn(content_parts("What is it?"))],
            "chosen": [assistant_turn("A cup.")],
            "rejected": "A cat.",
        },
        {**ONE_IMAGE, "prompt": "What is it?", "chosen": " A cup.\n", "rejected": "A cat."},
        {**ONE_IMAGE, "prompt": "<image>\nWhat is it?", "chosen": "A cup.", "rejected": "A cat."},
        {"image": "a.png", "question": "What is it?", "chosen": "A cup.", "rejected": "A cat."},
        {
            "image": "a.png",
            "chosen": [user_turn("What is it?"), assistant_turn("A cup.")],
            "rejected": [user_turn("What is it?"), assistant_turn("A cat.")],
        },
        {
            **ONE_IMAGE,
            "prompt": "What is it?",
            "chosen": [user_turn(content_parts("What ", "is it?")), assistant_turn([{"type": "text", "text": "A cup."}])],
            "rejected": [user_turn(content_parts("What ", "is it?")), assistant_turn("A cat.")],
        },
        {
            "image": "a.png",
            "conversations": [human_turn("<image>\nWhat is it?"), gpt_turn("A cup.")],
            "output_1": gpt_turn("A cat."),
            "output_2": gpt_turn("A cup."),
            "preference": 2,
        },
    ],
)
def test_read_preferences_accepts_every_pair_layout(data_dir, row):
    (pair,) = read_preferences(write_jsonl(data_dir, row))
    assert (pair.id, pair.prompt, pair.chosen, pair.rejected) == ("1", (QUESTION,), "A cup.", "A cat.")
    assert [image.path for image in pair.images] == [str(data_dir / "a.png")]
    assert not pair.meta and not pair.facts
    (example,) = read_examples(write_jsonl(data_dir, row))
    assert (example.prompt, example.answer) == ((QUESTION,), None)
    assert has_preferences(write_jsonl(data_dir, row))


def test_read_preferences_keeps_unused_fields_in_meta(data_dir):
    row = {
        **ONE_IMAGE,
        "prompt": "What is it?",
        "chosen": "A cup.",
        "rejected": "A cat.",
        "rejected_reason": "No cat.",
        "source": 3,
    }
    assert read_preferences(write_jsonl(data_dir, row))[0].meta == {"rejected_reason": "No cat.", "source": 3}


def rating_annotations(**ratings):
    return {name.replace("_", " "): {"Rating": rating, "Rationale": "So."} for name, rating in ratings.items()}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**TEXT_PAIR, "margin": 2}, {"ratings": (2.0, 0.0)}),
        ({**TEXT_PAIR, "margin": -0.5, "is_tie": True}, {"ratings": (-0.5, 0.0), "ranks": (1, 1)}),
        ({**TEXT_PAIR, "is_tie": None, "margin": None}, {}),
        ({**TEXT_PAIR, "hallucination": False, "source": " lab "}, {"hallucinated": False, "source": "lab"}),
        (
            {"text": json.dumps(QUESTION_PAIR), "ds_name": "RLHF-V", "origin_dataset": "VQAv2", "idx": 7},
            {"id": "7", "source": "VQAv2"},
        ),
        ({"text": QUESTION_PAIR, "ds_name": "RLHF-V", "idx": "x"}, {"id": "x", "source": "RLHF-V"}),
        ({**QUESTION_PAIR, "idx": "3", "origin_dataset": "COCO", "id": 4}, {"id": "4", "source": "COCO"}),
        (
            {**TEXT_PAIR, "is_tie": True, "chosen_reason": "a", "rejected_reason": "b", "ls_factor": 0},
            {"ratings": (0.0, 0.0), "ranks": (1, 1)},
        ),
        (
            {**TEXT_PAIR, "is_tie": False, "ls_factor": 1.5, "source": 3, "ds_name": "MM"},
            {"ratings": (1.5, 0.0), "source": "MM"},
        ),
        ({"prompt": "What is it?", "answers": ["A cat.", "A cup."], "ranks": [5, 2]}, {"ranks": (2, 5)}),
        ({"prompt": [user_turn("What is it?")], "answers": ["A cat.", "A cup."], "ratings": [1, 4.5]}, {"ratings": (4.5, 1.0)}),
    ],
)
def test_read_preferences_accepts_other_datasets(data_dir, row, expected):
    (pair,) = read_preferences(write_jsonl(data_dir, {"image": "a.png", **row}))
    all_expected = {"id": "1", "ranks": (1, 2), "ratings": (), "source": "", "hallucinated": None, **expected}
    assert (pair.prompt, pair.answers) == ((QUESTION,), ("A cup.", "A cat."))
    assert {name: getattr(pair, name) for name in all_expected} == all_expected
    (example,) = read_examples(write_jsonl(data_dir, {"image": "a.png", **row}))
    assert (example.prompt, example.answer, example.id) == ((QUESTION,), None, pair.id)


@pytest.mark.parametrize("ratings", [[2, 5, 2], ["2", "5.0", "2"]])
def test_read_preferences_sorts_ranking_and_keeps_ties(data_dir, ratings):
    row = {**ONE_IMAGE, "prompt": "What is it?", "answers": ["A cat.", "A cup.", "A dog."]}
    ranked = {**row, "ranks": [2, 1, 2]}
    rated = {**row, "ratings": [2, 5, 2]}
    both = {**row, "ranks": [2, 1, 2], "ratings": [9, 0, 9]}  # the ranks decide
    completions = [
        {
            "response": text,
            "model": "m",
            "annotations": rating_annotations(Helpfulness=rating, Ethical_Considerations="N/A", Visual_Faithfulness=rating),
        }
        for text, rating in zip(row["answers"], ratings, strict=True)
    ]
    # Of repeated answers, the first one counts.
    repeated = {**completions[0], "response": " A cat.", "annotations": rating_annotations(Helpfulness="5")}
    feedback = {"id": 1, "prompt": "What is it?", "completions": [*completions, repeated], "img_path": "a.png"}
    table = {"response": [c["response"] for c in completions], "model": ["m"] * 3}
    table["annotations"] = {
        aspect: {part: [c["annotations"][aspect][part] for c in completions] for part in ("Rating", "Rationale")}
        for aspect in completions[0]["annotations"]
    }
    hub = {"id": 1, "prompt": "What is it?", "completions": table, "image": "a.png"}
    hub_listed_annotations = {**hub, "completions": {**table, "annotations": [c["annotations"] for c in completions]}}
    expected_ratings = [(ranked, ()), (both, (0, 9, 9))]
    expected_ratings += [(layout, (5, 2, 2)) for layout in (rated, feedback, hub, hub_listed_annotations)]
    for layout, expected in expected_ratings:
        (ranking,) = read_preferences(write_jsonl(data_dir, layout))
        assert ranking.answers == ("A cup.", "A cat.", "A dog.")
        assert ranking.ranks == (1, 2, 2)
        assert ranking.ratings == expected
        assert has_preferences(write_jsonl(data_dir, layout))


def test_read_preferences_rating_mean_skips_non_numbers(data_dir):
    mean_of_two = rating_annotations(Helpfulness="4", Ethical_Considerations="N/A", Visual_Faithfulness="1")
    completions = [
        {"response": "a", "annotations": mean_of_two},
        {"response": "b", "annotations": rating_annotations(Helpfulness=3)},
        {"response": "c", "annotations": rating_annotations(Helpfulness="N/A")},
        {"response": "d", "annotations": rating_annotations(Helpfulness="1e308", Visual_Faithfulness="1e308")},
    ]
    row = {"prompt": "?", "img_path": "a.png", "completions": completions}
    (ranking,) = read_preferences(write_jsonl(data_dir, row))
    assert (ranking.answers, ranking.ratings) == (("b", "a"), (3.0, 2.5))


def test_has_preferences_ignores_fields_shared_with_examples(data_dir):
    for fields in ({"completions": ["a", "b"]}, {"answers": ["a"]}, {"ranks": [1]}, {"text": "a"}, {"ratings": 3, "is_tie": 1}):
        path = write_jsonl(data_dir, {**ONE_IMAGE, "prompt": "What is it?", "completion": "A cup.", **fields})
        assert not has_preferences(path)
        assert read_examples(path, require_answer=True)[0].answer == "A cup."


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("x\u00b2 = 4", "x2 = 4"),
        ("A cup.", "A\ncup."),
        ("A cup", "A  cup"),
        ("\u043eil", "oil"),  # a Cyrillic letter
        ("caf\u00e9", "cafe"),
        ("\u4e00\u500b", "\u4e00\u4e2a"),
        ("Yes.", "yes."),
        ("\u0645\u06cc\u200c\u0631\u0648\u062f", "\u0645\u06cc\u0631\u0648\u062f"),  # Persian, with a ZWNJ and without
        ("\U0001f468\u200d\U0001f467", "\U0001f468\U0001f467"),  # a family, and its members
        # The flags of England and Scotland.
        (
            "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        ),
        ("\u0645\u06cc\u200c\u0631\u0648\u062f \u200f", "\u0645\u06cc \u0631\u0648\u062f"),
    ],
)
def test_answers_that_look_different_are_a_pair_as_they_are_written(data_dir, chosen, rejected):
    (pair,) = read_preferences(write_jsonl(data_dir, {"images": [], "prompt": "?", "chosen": chosen, "rejected": rejected}))
    assert (pair.chosen, pair.rejected) == (chosen, rejected)


@pytest.mark.parametrize(
    "rejected",
    [
        "\u200dA cup.",
        "A c\u200dup.",
        "A cup\u200c.",
        "A \u200ccup.\u200d",
        "A cup.\U000e0067\U000e007f",
        "A \u200bcup.\ufe0f",
    ],
)
def test_joiners_and_tags_that_change_nothing_are_invisible(data_dir, rejected):
    row = {"images": [], "prompt": "?", "chosen": "A cup.", "rejected": rejected}
    assert "differ only in invisible characters" in error_of(read_preferences, write_jsonl(data_dir, row))


def test_repeated_joiners_look_like_one(data_dir):
    row = {"images": [], "prompt": "?", "chosen": "\u06cc\u200c\u0631", "rejected": "\u06cc\u200c\u200c\u0631"}
    assert "differ only in invisible characters" in error_of(read_preferences, write_jsonl(data_dir, row))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without_field(PAIR, "chosen"), "`chosen` is missing: add it (the row has id, images, prompt, rejected)"),
        ({**PAIR, "chosen": None}, "`chosen` is missing: add it"),
        ({**without_field(PAIR, "chosen"), "chosne": "A cup."}, "`chosen` is missing: rename `chosne` to it"),
        (without_field(PAIR, "prompt"), "`prompt` is missing: add it"),
        (without_field(PAIR, "images"), "`images` is missing: add it, `[]` for a row without images"),
        ({**without_field(PAIR, "images"), "imagse": ["a.png"]}, "`images` is missing: rename `imagse` to it"),
        ({**PAIR, "image": "a.png"}, "both `images` and `image` are given: keep one"),
        ({**PAIR, "id": 1.5}, "`id` must be text or a whole number, not a number"),
        ({**PAIR, "prompt": 3}, "`prompt` must be text or a list of turns, not a number"),
        ({**PAIR, "prompt": []}, "`prompt` must be text or a list of turns, not an empty one"),
        ({**PAIR, "prompt": ["Hello?"]}, "`prompt[1]` must be an object with role and content, not text"),
        (
            {**PAIR, "prompt": [{"role": "human", "content": "a"}]},
            "`prompt[1].role` must be one of system, user, assistant, not 'human'",
        ),
        ({**PAIR, "prompt": [{"role": "user"}]}, "`prompt[1].content` must be text, not null"),
        ({**PAIR, "prompt": [user_turn([{"type": "video"}])]}, "`prompt[1].content[1]` must be a part of type text or image"),
        (
            {**PAIR, "prompt": [user_turn([*content_parts(), {"type": "text", "text": 1}])]},
            "`prompt[1].content[2].text` must be text",
        ),
        ({**PAIR, "prompt": [user_turn("Hi."), assistant_turn("Hi.")]}, "the prompt must end with a user turn"),
        (
            {**PAIR, "prompt": [user_turn("Hi."), {"role": "system", "content": "a"}, user_turn("Hi.")]},
            "turn 2 of the prompt is a system turn: only the first may be one",
        ),
        ({**PAIR, "prompt": " "}, "turn 1 of the prompt is empty"),
        (
            {**PAIR, "prompt": [user_turn("Hi."), assistant_turn("<image>Hi."), user_turn("So?")]},
            "turn 2 of the prompt contains an image, but is not a user turn",
        ),
        (
            {**PAIR, "prompt": [user_turn([*content_parts("a"), {"type": "image"}])]},
            "has placeholders for 2 images and the row has 1",
        ),
        ({**PAIR, "prompt": [user_turn([{"type": "text", "text": "a"}])]}, "has placeholders for 0 images and the row has 1"),
        ({**PAIR, "prompt": "<image><image>What is it?"}, "has placeholders for 2 images and the row has 1"),
        ({**PAIR, "images": [], "prompt": [user_turn(content_parts("a"))]}, "has placeholders for 1 image and the row has 0"),
        ({**PAIR, "prompt": "half \ud800"}, "is not valid Unicode: remove the unpaired surrogate"),
        ({**PAIR, "rejected": "A cup. "}, "the chosen and the rejected answer are the same"),
        ({**PAIR, "rejected": " "}, "`rejected` is empty: fill it in or drop the row"),
        ({**PAIR, "rejected": 4}, "`rejected` must be text or a list of turns, not a number"),
        ({**PAIR, "rejected": [user_turn("A cat.")]}, "`rejected` must be the assistant's turn, not the user's"),
        ({**PAIR, "rejected": "<image> A cat."}, "one answer contains an image or <image>, and the other none"),
        ({**PAIR, "rejected": [assistant_turn("a"), assistant_turn("b")]}, "`rejected` must be one assistant turn, not 2 turns"),
        (
            {**ONE_IMAGE, "chosen": [user_turn("a"), assistant_turn("b")], "rejected": [user_turn("c"), assistant_turn("d")]},
            "`chosen` and `rejected` may differ only in their last turn",
        ),
        ({**PAIR, "images": "a.png"}, "`images` must be a list, not text: write a single image as `image`"),
        ({**PAIR, "images": [3]}, "`images[1]` must be a path or an object with bytes, not 3"),
        ({**PAIR, "images": [{"bytes": "iVBOR"}]}, "`images[1]` is not base64 ("),
        ({**PAIR, "images": ["b.png"]}, "`images[1]` does not exist in "),
        ({**PAIR, "images": ["a.png\0"]}, "`images[1]` does not exist in "),
        ({**PAIR, "images": ["../secret.png"]}, "`images[1]` is outside the image folder "),
        ({**PAIR, "images": [{"path": "x/../../secret.png"}]}, "`images[1]` is outside the image folder "),
        ({**PAIR, "images": ["/etc/passwd"]}, "`images[1]` is outside the image folder "),
        ({**PAIR, "images": ["https://example.org/a.png"]}, "`images[1]` is a URL, "),
        ({**PAIR, "facts": {"kind": "ocr"}}, "`facts` must be a list, not an object"),
        ({**PAIR, "facts": ["A cup."]}, "`facts[1]` must be an object with kind and text, not text"),
        (without_field(LLAVA_PAIR, "output_2"), "`output_2` is missing: add it (the row has image, conversations, output_1,"),
        (without_field(LLAVA_PAIR, "preference"), "`preference` is missing: add it"),
        ({**LLAVA_PAIR, "preference": 0}, "`preference` must be 1 or 2, the number of the better output, not 0"),
        ({**LLAVA_PAIR, "preference": True}, "`preference` must be 1 or 2, the number of the better output, not True"),
        ({**LLAVA_PAIR, "preference": "1"}, "`preference` must be 1 or 2, the number of the better output, not '1'"),
        ({**LLAVA_PAIR, "output_1": gpt_turn("A cat.")}, "the chosen and the rejected answer are the same"),
        ({**LLAVA_PAIR, "output_1": human_turn("A cup.")}, "`output_1` must be the assistant's turn, not the user's"),
        ({**LLAVA_PAIR, "output_1": "A cup."}, "`output_1` must be an object with from and value, not text"),
        ({**LLAVA_PAIR, "conversations": []}, "`conversations` must be a list of turns, not an empty one"),
        ({**LLAVA_PAIR, "conversations": [gpt_turn("A cup.")]}, "the prompt must end with a user turn"),
        (
            {**LLAVA_PAIR, "conversations": [{"from": "tool", "value": "a"}]},
            "`conversations[1].from` must be one of system, human, gpt, user, assistant, not 'tool'",
        ),
        ({**LLAVA_PAIR, "conversations": [human_turn("<image><image>?")]}, "has placeholders for 2 images and the row has 1"),
        (without_field(LLAVA_PAIR, "image"), "has placeholders for 1 image and the row has 0"),
    ],
)
def test_read_preferences_errors_name_line_and_field(data_dir, row, message):
    path = write_jsonl(data_dir, PAIR, "", row)
    assert f"{path}, line 3: " in error_of(read_preferences, path)
    assert message in error_of(read_preferences, path)
