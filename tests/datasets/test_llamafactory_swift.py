"""Rows as LLaMA-Factory, ms-swift, OpenAI, tables and image folders have them."""

import json
import re

import pytest

from mmrlhf.datasets import detect_format, has_preferences, read_examples, read_preferences
from mmrlhf.files.rows import Row
from mmrlhf.records import Message, place_images
from tests.helpers.rows import (
    assistant_turn,
    error_of,
    gpt_turn,
    human_turn,
    make_data_dir,
    png_bytes,
    user_turn,
    write_jsonl,
)

IMAGE = {"images": ["a.png"]}
QUESTION = "<image>What is on the plate?"
PAIR_ROWS = {
    "LLaMA-Factory": {"conversations": [human_turn(QUESTION)], "chosen": gpt_turn("Broccoli."), "rejected": gpt_turn("Carrots.")},
    "LLaMA-Factory, messages": {
        "messages": [user_turn(QUESTION)],
        "chosen": assistant_turn("Broccoli."),
        "rejected": assistant_turn("Carrots."),
    },
    "LLaMA-Factory, texts": {"conversations": [human_turn(QUESTION)], "chosen": "Broccoli.", "rejected": "Carrots."},
    "LLaMA-Factory, no placeholder": {
        "conversations": [human_turn("What is on the plate?")],
        "chosen": gpt_turn("Broccoli."),
        "rejected": gpt_turn("Carrots."),
    },
    "LLaMA-Factory, from user": {
        "conversations": [{"from": "user", "value": QUESTION}],
        "chosen": {"from": "assistant", "value": "Broccoli."},
        "rejected": {"from": "assistant", "value": "Carrots."},
    },
    "LLaMA-Factory, role": {
        "conversations": [user_turn(QUESTION)],
        "chosen": assistant_turn("Broccoli."),
        "rejected": assistant_turn("Carrots."),
    },
    "ms-swift": {"messages": [user_turn(QUESTION), assistant_turn("Broccoli.")], "rejected_response": "Carrots."},
    "ms-swift, messages": {
        "messages": [user_turn(QUESTION), assistant_turn("Broccoli.")],
        "rejected_messages": [user_turn(QUESTION), assistant_turn("Carrots.")],
    },
    "ms-swift, query": {"query": QUESTION, "response": "Broccoli.", "rejected_response": "Carrots."},
    "OpenAI": {
        "input": {"messages": [user_turn(QUESTION)], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [assistant_turn("Broccoli.")],
        "non_preferred_output": [assistant_turn("Carrots.")],
    },
}


@pytest.fixture
def folder(tmp_path):
    """Create a folder with an image, `a.png`."""
    return make_data_dir(tmp_path)


@pytest.mark.parametrize("name", PAIR_ROWS)
def test_pairs_of_other_trainers_are_read(name, folder):
    path = write_jsonl(folder, {**IMAGE, **PAIR_ROWS[name]})
    (pair,) = read_preferences(path)
    assert (pair.chosen, pair.rejected, pair.meta) == ("Broccoli.", "Carrots.", {})
    assert pair.prompt == (Message("user", "What is on the plate?"),) and len(pair.images) == 1
    assert detect_format(Row("", 1, {**IMAGE, **PAIR_ROWS[name]})) == f"{name.partition(',')[0]} pairs"
    (example,) = read_examples(path)
    assert (example.prompt, example.answer) == (pair.prompt, None)
    message = error_of(read_examples, path, require_answer=True)
    assert "has no SFT target: `mmrlhf data convert --to sft` takes the chosen answers" in message


def test_system_texts_and_history_become_turns(folder):
    row = {"images": [], "query": "And now?", "history": [["Hi.", "Hello."]], "system": "Be short.", "response": "No."}
    pairs = {**row, "rejected_response": "Yes."}
    expected = [("system", "Be short."), ("user", "Hi."), ("assistant", "Hello."), ("user", "And now?")]
    for record in (*read_preferences(write_jsonl(folder, pairs)), *read_examples(write_jsonl(folder, row))):
        assert [(message.role, message.content) for message in record.prompt] == expected
    (example,) = read_examples(
        write_jsonl(folder, {"images": [], "system": "Be short.", "conversations": [human_turn("Hi."), gpt_turn("Yo.")]})
    )
    assert [message.role for message in example.prompt] == ["system", "user"] and example.answer == "Yo."


@pytest.mark.parametrize("roles", [("human", "gpt"), ("user", "assistant"), ("user", "gpt")])
def test_conversations_of_sharegpt_are_read_with_or_without_placeholders(roles, folder):
    user, assistant = roles
    turns = [(user, "Hi."), (assistant, "Hello."), (user, "What is on the plate?"), (assistant, "Broccoli.")]
    row = {**IMAGE, "conversations": [{"from": role, "value": text} for role, text in turns]}
    (example,) = read_examples(write_jsonl(folder, row), require_answer=True)
    assert (example.prompt[0].parts(), example.answer) == ([{"type": "text", "text": "Hi."}], "Broccoli.")
    assert place_images(example.prompt, 1)[0].parts() == [{"type": "image"}, {"type": "text", "text": "Hi."}]
    row["conversations"][2]["value"] = QUESTION
    (example,) = read_examples(write_jsonl(folder, row))
    assert [turn.image_positions for turn in example.prompt] == [(), (), (0,)]


@pytest.mark.parametrize("role", ["tool", "function_call", "observation", "Human"])
def test_turns_of_tools_are_refused(role, folder):
    row = {**IMAGE, "conversations": [human_turn(QUESTION), {"from": role, "value": "{}"}, gpt_turn("Broccoli.")]}
    message = f"`conversations[2].from` must be one of system, human, gpt, user, assistant, not '{role}'"
    assert message in error_of(read_examples, write_jsonl(folder, row))
    if role == "tool":
        row = {**IMAGE, "messages": [user_turn(QUESTION), {"role": role, "content": "{}"}, assistant_turn("Broccoli.")]}
        message = "`messages[2].role` must be one of system, user, assistant, not 'tool'"
        assert message in error_of(read_examples, write_jsonl(folder, row))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected_messages": [user_turn("What else?"), assistant_turn("No.")]}, "may differ only in their last turn"),
        ({"rejected_messages": [user_turn(QUESTION)]}, "`rejected_messages[1]` must be the assistant's turn, not the user's"),
        ({"rejected_response": "Broccoli."}, "the chosen and the rejected answer are the same"),
        ({"rejected_response": "\u200b"}, "`rejected_response` is empty"),
        ({"rejected_images": ["a.png"], "rejected_response": "No."}, "`rejected_images` has other images for the prompt"),
        ({"rejected_images": ["a.png"]}, "`rejected_response` is missing"),
    ],
)
def test_bad_pairs_of_ms_swift_are_refused(changes, message, folder):
    row = {**IMAGE, "messages": PAIR_ROWS["ms-swift"]["messages"], **changes}
    assert message in error_of(read_preferences, write_jsonl(folder, row))


@pytest.mark.parametrize("field", [{"images": None}, {"image": None}, {"images": [None]}, {"images": []}])
def test_null_images_mean_no_image(field, folder):
    (example,) = read_examples(write_jsonl(folder, {**field, "prompt": "Say hi.", "completion": "Hi."}))
    assert example.images == ()


def test_a_null_does_not_hide_a_misspelt_field(folder):
    row = {"images": None, "imagse": ["a.png"], "prompt": "What?", "completion": "A plate."}
    assert "rename `imagse` to it" in error_of(read_examples, write_jsonl(folder, row))


PNG_URL = "data:image/png;base64," + __import__("base64").b64encode(png_bytes()).decode()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image", "image": {"path": "a.png"}},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image_url", "image_url": {"url": PNG_URL, "detail": "low"}},
        {"type": "image", "base64": PNG_URL.partition(",")[2]},
    ],
)
def test_images_inside_parts_are_read_in_their_places(part, folder):
    content = [{"type": "text", "text": "Before:"}, part, {"type": "text", "text": " after."}]
    row = {"messages": [user_turn(content), assistant_turn("A plate.")]}
    (example,) = read_examples(write_jsonl(folder, row, {**row, "messages": row["messages"]}))[:1]
    assert example.images[0].read() == png_bytes()
    assert example.prompt == (Message("user", "Before: after.", (7,)),)
    pair = {"prompt": [user_turn(content)], "chosen": "A plate.", "rejected": "A cat."}
    assert read_preferences(write_jsonl(folder, pair))[0].images[0].read() == png_bytes()


def test_images_inside_parts_and_in_a_field_must_be_the_same(folder):
    (folder / "b.png").write_bytes(png_bytes("blue"))
    row = {"images": ["a.png"], "messages": [user_turn([{"type": "image", "image": "b.png"}]), assistant_turn("A plate.")]}
    message = error_of(read_examples, write_jsonl(folder, row))
    assert "`images` and `messages[1].content[1].image` give different images: keep one of them" in message
    assert len(read_examples(write_jsonl(folder, {**row, "images": ["b.png"]}))[0].images) == 1
    row = {"messages": [user_turn([{"type": "image", "image": "none.png"}]), assistant_turn("A plate.")]}
    assert "`messages[1].content[1].image` does not exist" in error_of(read_examples, write_jsonl(folder, row))


def test_an_image_folder_is_read_by_its_metadata(folder):
    rows = [{"file_name": "a.png", "prompt": "What is it?", "completion": "A plate."}]
    path = write_jsonl(folder, *rows, name="metadata.jsonl")
    for name in (path, str(folder)):
        (example,) = read_examples(name)
        assert example.images[0].read() == png_bytes() and example.answer == "A plate." and example.meta == {}
    write_jsonl(folder, {"file_name": "a.png", "text": "a plate"}, name="metadata.jsonl")
    assert "line 1: `messages` is missing: add it, or `prompt` (the row has file_name, text)" in error_of(
        read_examples, str(folder)
    )


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_inside_a_json_object_are_read(indent, folder):
    rows = [{**IMAGE, "prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(3)]
    path = folder / "rows.json"
    for value in ({"data": rows}, {"version": "1.0", "n": 3, "data": rows}, {"train": rows, "test": rows[:1]}):
        path.write_text(json.dumps(value, indent=indent))
        assert [pair.prompt[0].content for pair in read_preferences(str(path))] == ["0?", "1?", "2?"]
    assert len(read_preferences(str(path), split="test")) == 1
    assert "has no split tets: did you mean test?" in error_of(read_preferences, str(path), split="tets")
    path.write_text(json.dumps({"data": [rows[0], {**rows[1], "chosen": ""}]}))
    assert f"{path}, row 2: `chosen` is empty" in error_of(read_preferences, str(path))


@pytest.mark.parametrize(("value", "expected"), [(1.0, "1"), (12, "12"), (None, "1"), ("1.0", "1.0")])
def test_ids_of_pandas_are_whole_numbers(value, expected, folder):
    assert read_examples(write_jsonl(folder, {"id": value, "images": [], "prompt": "What?"}))[0].id == expected


@pytest.mark.parametrize("text", ["\u200b", " \u200b\ufeff ", "\u2060\n", "\u3164", "\u2800 ", "\ufe0f"])
def test_answers_of_invisible_characters_are_empty(text, folder):
    row = {"images": [], "prompt": "What?", "chosen": "a", "rejected": text}
    assert "`rejected` is empty: fill it in or drop the row" in error_of(read_preferences, write_jsonl(folder, row))
    assert "is empty" in error_of(read_examples, write_jsonl(folder, {"images": [], "prompt": text}))


def test_instructions_and_problems_are_prompts(folder):
    alpaca = {**IMAGE, "instruction": "Answer.", "input": "<image>What is it?", "output": "A cup."}
    (example,) = read_examples(write_jsonl(folder, alpaca))
    assert (example.prompt[0].parts()[0]["text"], example.answer) == ("Answer.\n", "A cup.")
    pair = {**IMAGE, "instruction": "What is it?", "input": "", "chosen": "A cup.", "rejected": "A cat."}
    (preference,) = read_preferences(write_jsonl(folder, pair))
    assert (preference.prompt[0].content, preference.chosen, preference.meta) == ("What is it?", "A cup.", {})
    (example,) = read_examples(write_jsonl(folder, {**IMAGE, "problem": "<image>How many?", "answer": "3"}))
    assert (example.prompt[0].content, example.answer) == ("How many?", "3")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "And now?", "completion": "No."},
        {"instruction": "And now?", "output": "No."},  # Alpaca's
        {"query": "And now?", "response": "No."},
        {"question": "And now?", "chosen": "No.", "rejected": "Yes."},
        {"prompt": "And now?", "answers": ["No.", "Yes."], "ranks": [1, 2]},
    ],
)
def test_every_prompt_that_is_text_follows_its_history_and_system(row, folder):
    path = write_jsonl(folder, {"images": [], "system": "Be short.", "history": [["Hi.", "Hello."]], **row})
    read = read_preferences if has_preferences(path) else read_examples
    assert [(message.role, message.content) for message in read(path)[0].prompt] == [
        ("system", "Be short."), ("user", "Hi."), ("assistant", "Hello."), ("user", "And now?")
    ]  # fmt: skip


@pytest.mark.parametrize("answer", ["completion", "answer", "response"])
def test_an_answer_labelled_as_one_to_avoid_is_no_target(answer, folder):
    row = {"images": [], "prompt": "What?", answer: "A cat."}
    assert read_examples(write_jsonl(folder, {**row, "label": True}))[0].answer == "A cat."
    for field, value in (("label", False), ("kto_tag", False), ("kto_tag", 0), ("kto_tag", 0.0)):
        path = write_jsonl(folder, {**row, field: value})
        assert f"`{field}` is false, so the answer is one to avoid (KTO)" in error_of(read_examples, path, require_answer=True)
        assert read_examples(path)[0].answer is None  # a prompt, for ppo and generate
    for label in (0, 0.0):  # a class
        assert read_examples(write_jsonl(folder, {**row, "label": label}), require_answer=True)[0].answer == "A cat."


@pytest.mark.parametrize("url", ["file://a.png", "file://sub%20folder/a.png"])
def test_images_named_by_file_urls_are_read(url, folder):
    (folder / "sub folder").mkdir()
    (folder / "sub folder" / "a.png").write_bytes(png_bytes())
    (example,) = read_examples(write_jsonl(folder, {"image": url, "prompt": "What?", "completion": "A cat."}))
    assert example.images[0].path.endswith(url.removeprefix("file://").replace("%20", " "))
    outside = {"image": "file:///etc/passwd", "prompt": "What?", "completion": "A cat."}
    assert "outside" in error_of(read_examples, write_jsonl(folder, outside))


def test_an_empty_field_of_images_does_not_contradict_those_in_parts(folder):
    turns = [user_turn([{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]), assistant_turn("A cat.")]
    for images in ([], [None]):
        (example,) = read_examples(write_jsonl(folder, {"images": images, "messages": turns}))
        assert len(example.images) == 1


@pytest.mark.parametrize("part", [{"source": {"type": "base64", "data": "iVBO"}}, {"value": "a.png"}, {}])
def test_a_part_that_does_not_hold_its_image_is_named(part, folder):
    content = [{"type": "text", "text": "What?"}, {"type": "image", **part}]
    message = error_of(read_examples, write_jsonl(folder, {"messages": [user_turn(content), assistant_turn("A cat.")]}))
    assert "`messages[1].content[2]` does not hold its image: add `image` to it" in message


@pytest.mark.parametrize("field", ["video", "videos", "audios"])
def test_rows_about_videos_are_refused(field, folder):
    row = {"messages": [user_turn("<video>What?"), assistant_turn("A cat.")], field: ["a.mp4"]}
    for images in ({}, {"images": []}):
        assert f"`{field}` is given and no image" in error_of(read_examples, write_jsonl(folder, {**row, **images}))


def test_lists_of_turns_next_to_messages_are_a_pair_of_trl(folder):
    conversations = [[user_turn("What?"), assistant_turn(answer)] for answer in ("A cup.", "A cat.")]
    row = {
        "images": [],
        "prompt": "What?",
        "messages": conversations[0],
        "chosen": conversations[0],
        "rejected": conversations[1],
    }
    path = write_jsonl(folder, row)
    (pair,) = read_preferences(path)
    assert (pair.prompt[0].content, pair.chosen, pair.rejected) == ("What?", "A cup.", "A cat.")
    (example,) = read_examples(path)
    assert (example.prompt, example.answer) == (pair.prompt, None)


@pytest.mark.parametrize("turns", ["messages", "conversations"])
def test_text_only_rows_of_conversations_need_no_field_of_images(folder, turns):
    messages = [user_turn("What?"), assistant_turn("A cup.")]
    assert read_examples(write_jsonl(folder, {turns: messages}))[0].images == ()
    shown = {"messages": [user_turn("<image>What?"), assistant_turn("A cup.")]}
    for row in (shown, {turns: messages, "img": "a.png"}, {turns: messages, "iamges": ["a.png"]}):
        assert re.search(r"`images?` is missing: ", error_of(read_examples, write_jsonl(folder, row)))
    for name in ("media", "visual", "file", "path", "file_path", "screenshot", "frame", "jpg", "pixel_values"):
        for value in ("a.png", "sub/A b.JPG", ["a.png"], "data:image/png;base64,AAAA", {"bytes": "AAAA"}, {"path": "a.png"}):
            error = error_of(read_examples, write_jsonl(folder, {turns: messages, name: value}))
            assert re.search(r"`images?` is missing: ", error), (name, value)
    for row in ({"id": "a.png"}, {"source": "a book"}, {"score": 0.5}):
        assert read_examples(write_jsonl(folder, {turns: messages, **row}))[0].images == ()
    tagged = [user_turn("Picture 1: <img>a.png</img>\nWhat?"), assistant_turn("A cup.")]  # Qwen-VL's
    error = error_of(read_examples, write_jsonl(folder, {turns: tagged}))
    assert "its text shows an image as '<img>a.png</img>': write <image> there, and the path in `images`" in error


def test_parts_of_the_responses_api_are_read(folder):
    question = [{"type": "input_image", "image_url": "a.png"}, {"type": "input_text", "text": "What?"}]
    answer = {"role": "assistant", "content": [{"type": "output_text", "text": "A cup."}]}
    (example,) = read_examples(write_jsonl(folder, {"messages": [{"role": "user", "content": question}, answer]}))
    assert (example.prompt[0].content, example.answer, len(example.images)) == ("What?", "A cup.", 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": "What?"}, "`input` must be an object with messages, not 'What?'"),
        ({"preferred_output": []}, "`preferred_output` must be a list of one message of the assistant, not []"),
        (
            {"non_preferred_output": [user_turn("A cup.")]},
            "`non_preferred_output` must be a list of one message of the assistant",
        ),
    ],
)
def test_pairs_of_openai_are_refused_by_field(fields, message, folder):
    assert message in error_of(read_preferences, write_jsonl(folder, {**PAIR_ROWS["OpenAI"], **IMAGE, **fields}))


@pytest.mark.parametrize("fields", [{"instruction": "What?", "output": "A cup."}, {"query": "What?", "response": "A cup."}])
def test_a_column_of_text_does_not_make_a_row_rlhf_v(fields, folder):
    (example,) = read_examples(write_jsonl(folder, {"images": [], "text": "### Instruction: What?", **fields}))
    assert (example.prompt[0].content, example.answer) == ("What?", "A cup.")


@pytest.mark.parametrize("fields", [{"instruction": "Do it.", "output": "A cup."}, {"response": "A cup."}, {"problem": "2?"}])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_text_that_holds_a_pair_is_rlhf_v_next_to_any_column(fields, as_json, folder):
    text = {"question": "What?", "chosen": "A cup.", "rejected": "A cat."}
    path = write_jsonl(folder, {"images": [], "text": json.dumps(text) if as_json else text, **fields})
    (pair,) = read_preferences(path)
    assert (pair.prompt[0].content, pair.chosen, pair.rejected) == ("What?", "A cup.", "A cat.")


@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": "What?", "output": "A cup."},
        {"problem": "What?", "solution": "A cup."},
        {"prompt": "What?", "answer": "A cup."},
    ],
)
@pytest.mark.parametrize("conversation", ["c-17", [{"human": "Else?", "assistant": "No."}]])
def test_a_column_conversation_beside_a_prompt_is_not_read(fields, conversation, folder):
    row = {"images": [], "conversation": conversation, **fields}
    (example,) = read_examples(write_jsonl(folder, row), require_answer=True)
    assert (example.prompt[0].content, example.answer) == ("What?", "A cup.")
    turns = [user_turn("What?")]
    pair = {"chosen": [*turns, assistant_turn("A cup.")], "rejected": [*turns, assistant_turn("A cat.")]}
    assert read_preferences(write_jsonl(folder, {"images": [], "conversation": conversation, **pair}))[0].chosen == "A cup."


def test_conversations_of_human_and_assistant_are_read(folder):
    exchanges = [{"human": "Hi.", "assistant": "Hello."}, {"human": "<image>What?", "assistant": "A cup."}]
    row = {"system": "Be short.", "images": ["a.png"], "conversation": exchanges}
    path = write_jsonl(folder, row)
    (example,) = read_examples(path, require_answer=True)
    assert [message.role for message in example.prompt] == ["system", "user", "assistant", "user"]
    assert (example.answer, example.meta) == ("A cup.", {})
    assert detect_format(Row("", 1, row)) == "ms-swift conversations"
    (pair,) = read_preferences(write_jsonl(folder, {**row, "rejected_response": "A cat."}))
    assert (pair.chosen, pair.rejected) == ("A cup.", "A cat.")
    error = error_of(read_examples, write_jsonl(folder, {**row, "conversation": ["Hi."]}))
    assert "`conversation` must be a list of objects with human and assistant" in error
