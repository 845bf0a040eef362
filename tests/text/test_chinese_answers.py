"""Yes or no from Chinese sentences, asked in Chinese or English."""

import pytest

from mmrlhf.text.answer_parsing import leading_yes_no, parse_yes_no


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("图中的狗是黑色的吗？", "狗是白色的。", None),
        ("图中的狗是黑色的吗？", "狗是黑色的。", "yes"),
        ("图里有没有公交车？", "有公交车。", "yes"),
        ("图里有没有公交车？", "没看到公交车", "no"),
        ("图里有没有公交车？", "没有看到任何公交车，只有卡车。", "no"),
        ("图里有没有公交车？", "这是卡车而不是公交车。", "no"),
        ("这张图片中有两只猫吗？", "有三只猫", "no"),
        ("这张图片中有两只猫吗？", "是的，有两只猫", "yes"),
        ("这张图片中有两只猫吗？", "只有一只猫。", "no"),
        ("图中有猫吗？请回答是或否。", "是。", "yes"),
        ("图中有猫吗？请回答是或否。", "否。", "no"),
        ("图中有狗吗？", "图中有一只狗。", "yes"),
        ("图中有狗吗？", "图中没有狗。", "no"),
        ("图中有狗吗？", "图中有一只猫。", None),
        ("图中有狗吗？", "图中有一只猫，没有狗。", "no"),
        ("图中有狗吗？", "图片里没有猫，但有一只狗。", "yes"),
        ("Is there a dog in the image?", "图中没有狗", "no"),
        ("Is there a dog in the image?", "图中有一只狗。", "yes"),
        ("Is there a dog in the image?", "不确定", None),
        ("Is there a dog in the image?", "没错，图中有狗", "yes"),
        ("Is there a dog in the image?", "是的", "yes"),
        ("Is there a dog in the image?", "是", "yes"),
        ("Is there a dog in the image?", "不是", "no"),
        ("Is there a dog in the image?", "有", "yes"),
        ("Is there a dog in the image?", "没有", "no"),
        ("Is there a dog in the image?", "沒有", "no"),
        ("Is there a dog in the image?", "否", "no"),
        ("Is there a dog in the image?", "对", "yes"),
        ("Is there a dog in the image?", "不对", "no"),
        ("图片中有狗吗？", "是一只猫，不是狗。", "no"),
        ("图片中有狗吗？", "无法确定图中是否有狗。", None),
        ("图片中有狗吗？", "可能有一只狗。", None),
        ("图片中有狗吗？", "答案：没有", "no"),
        ("图片中有狗吗？", "答案是是的。", "yes"),
        ("这辆车是红色的吗？", "这辆车是红色的。", "yes"),
        ("这辆车是红色的吗？", "这辆车不是红色的。", "no"),
        ("这辆车是红色的吗？", "是的，这辆车是红色的。", "yes"),
        ("图中有四辆公交车吗？", "图中有两辆公交车。", "no"),
        ("图中有四辆公交车吗？", "图中有四辆公交车。", "yes"),
        ("Is there a dog in the image?", "這張圖片中沒有狗。", "no"),
        ("Is there a dog in the image?", "這張圖片中有一隻狗。", "yes"),
        ("图中是否有人？", "图中没有人。", "no"),
        ("图中是否有人？", "图中有一个人。", "yes"),
        ("Is there a dog in the image?", "我看不到狗。", "no"),
        ("Is there a dog in the image?", "图像中并没有出现狗", "no"),
        ("Is there a dog in the image?", "看不清，无法判断", None),
        ("Is there a dog in the image?", "不存在", "no"),
        ("Is there a dog in the image?", "存在", "yes"),
        ("Is there a dog in the image?", "正确", "yes"),
        ("Is there a dog in the image?", "错误", "no"),
        ("Is there a dog in the image?", "いいえ、犬はいません。", "no"),
        ("Is there a dog in the image?", "はい、犬がいます", "yes"),
        ("Is there a dog in the image?", "有的，左边有一只狗", "yes"),
        ("Is there a dog in the image?", "是否有狗不确定", None),
        ("Is there a dog in the image?", "图中有狗吗？是的。", "yes"),
        ("图中有狗吗？", "图中有狗吗？没有。", "no"),
        ("Is there a dog in the image?", "该图片不包含狗", "no"),
        ("Is there a dog in the image?", "不，图中没有狗", "no"),
        ("Is there a dog in the image?", "没有狗。", "no"),
        ("Is there a dog in the image?", "无", "no"),
        ("Is there a dog in the image?", "图中的动物是狗", "yes"),
    ],
)
def test_parse_yes_no_reads_chinese(question, answer, expected):
    assert parse_yes_no(answer, question) == expected


def test_leading_yes_no_reads_chinese_words_that_are_set_off():
    words = {
        "是的": "yes",
        "没错": "yes",
        "沒有": "no",
        "不确定": None,
        "有，在左边": "yes",
        "不，没有": "no",
        "犬はいません": None,
    }
    assert {word: leading_yes_no(word) for word in words} == words
