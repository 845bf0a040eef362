"""Errors of rows are grouped by cause, however their messages name rows, values and images."""

from mmrlhf.files.row_errors import RowErrors


def collect(*messages):
    errors = RowErrors()
    for number, message in enumerate(messages, 1):
        errors.add(f"line {number}", message.format(n=number), f"rows.jsonl, line {number}")
    return errors


def test_messages_that_differ_in_values_have_one_cause():
    errors = collect(*["rows.jsonl, line {n}: `images[{n}]` does not exist in x: 'a {n}.png'; correct it"] * 7)
    (group,) = errors.groups
    assert group.count == errors.count == 7
    assert group.message == "`images[1]` does not exist in x: 'a 1.png'; correct it"
    assert group.rows_text == "line 1, line 2, line 3, line 4, line 5, ..."
    assert errors.summary() == f"7 rows: {group.message} ({group.rows_text})"


def test_images_of_any_name_have_one_cause():
    errors = collect(*["image /x/my photo {n}.jpg (rows.jsonl, line {n}, `image`) is empty ({n} bytes): replace it"] * 3)
    (group,) = errors.groups
    assert group.message == "image /x/my photo 1.jpg (`image`) is empty (1 bytes): replace it"
    assert group.first_error == "image /x/my photo 1.jpg (rows.jsonl, line 1, `image`) is empty (1 bytes): replace it"


def test_the_largest_groups_come_first_and_the_rest_is_counted():
    causes = [f"cause {letter}" for letter in "abcdefg"]
    errors = collect("cause g", "cause g", *causes)
    assert errors.groups[0].message == "cause g" and errors.groups[0].count == 3
    summary = errors.summary()
    assert summary.startswith("3 rows: cause g (line 1, line 2, line 9); cause a (line 3); ")
    assert summary.endswith("; and 2 for other reasons")
