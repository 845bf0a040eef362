"""The final answer of a reply that reasons first, and the format that rewards it."""

import pytest

from mmrlhf.text.final_answers import final_answer, has_answer_format


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<think>two and one</think><answer> 3 </answer>", "3"),
        ("<answer>2</answer> no, <answer>3</answer>", "3"),
        ("<think>it may be <answer>2</answer></think>It is 3.", "It is 3."),
        ("<think>I count 3", ""),
        (r"So \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} or rather \boxed{ 2 }", "2"),
        (r"\boxed{3", r"\boxed{3"),
        ("three dogs ", "three dogs"),
        ("", ""),
    ],
)
def test_final_answer_by_hand(reply, expected):
    assert final_answer(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<think>two</think>\n<answer>3</answer>\n", True),
        ("<think>a\nb</think><answer>3</answer>", True),
        ("<answer>3</answer>", False),
        ("<think></think><answer>3</answer>", False),
        ("<think>two</think><answer> </answer>", False),
        ("Well, <think>two</think><answer>3</answer>", False),
        ("<think>two</think><answer>3</answer> dogs", False),
        ("<think>a</think><think>b</think><answer>3</answer>", False),
        ("<think>a</think><answer>3</answer><answer>4</answer>", False),
        ("<answer>3</answer><think>two</think>", False),
    ],
)
def test_format_by_hand(reply, expected):
    assert has_answer_format(reply) is expected
