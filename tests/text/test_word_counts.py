"""Words are counted between blanks, and by character where there are none."""

import pytest

from mmrlhf.text.word_counts import count_words, split_words_and_marks


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" a red\ncup. ", 3),
        ("红色的杯子", 5),
        ("桌上有 two 杯子", 6),
        ("두 개의 컵", 3),
        ("你好，世界。", 4),
        ("他说“好”！", 3),
        ("（两个）", 2),
        ("ที่", 1),
        ("a - b", 3),
    ],
)
def test_count_words_counts_characters_where_there_are_no_blanks(text, count):
    assert count_words(text) == count


@pytest.mark.parametrize("text", ["", " a red\ncup. ", "두 개의\t컵 … “", "¿Qué\u00a0es? \x1f . . ."])
def test_words_and_marks_are_split_at_blanks_alone(text):
    assert split_words_and_marks(text) == text.split()


def test_words_and_marks_of_a_text_without_blanks():
    assert split_words_and_marks("两个 cups，在。") == ["两", "个", "cups，", "在", "。"]
