"""Read yes or no from Chinese sentences, whose words have no spaces between them.

Traditional characters are read as simplified ones. No torch.
"""

from __future__ import annotations

import re
from typing import Literal

YesNo = Literal["yes", "no"]
Certainty = Literal["stated", "implied", "unsure"]
_HAN = re.compile(r"[\u4e00-\u9fff]")
_KANA_OR_HANGUL = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")
_SIMPLIFIED = str.maketrans(
    "沒無對圖張這裡裏嗎個隻輛為錯確認斷難說沒見顯電車狗貓鳥馬兩條頭從實當過還讓請紅藍綠黃",
    "没无对图张这里里吗个只辆为错确认断难说没见显电车狗猫鸟马两条头从实当过还让请红蓝绿黄",
)
_NEUTRAL = re.compile(
    r"是否|是不是|有没有|有无|能否|能不能|在不在|不仅|不只|不光|无论|不管|不论|没错|不错|没问题|毫无疑问|无疑|不只是"
)
"""Phrases with a negation that denies nothing."""
_AFFIRMS = re.compile(r"没错|毫无疑问")
_UNSURE = re.compile(
    r"不确定|不知道|不清楚|不好说|说不准|看不清|不明显|(?:无法|不能|难以|很难|不容易)(?:准确|明确|完全)?(?:判断|确定|看出|识别|辨认|分辨|回答|得知|知道|确认|说)"
    r"|可能|也许|或许|大概|似乎|好像"
)
_CONCLUSION = re.compile(
    r"(?:答案|结论|回答)(?:应该|应当)?(?:是|为)?[\s:\"'「“]*(?:(?P<no>否|不是|不对|不|没有|没|无|错误|错)|(?P<yes>是的|是|有|对|正确))(?=$|[\s,.。,!;:\"'」”的])"
)
_LEADS = re.compile(
    r"^[\s\"'「“(*]*(?:(?P<no>否|不是的?|不对|不正确|不存在|没有|没|无|错误|错|不)|(?P<yes>是的|是|对的|对|有的|有|正确|当然|确实|存在))(?:[啊呢哦呀])?(?=$|[\s,.。!;:\"'」”)])"
)
"""A verdict that begins a sentence and is set off from what follows."""
_NO = re.compile(
    r"没有|没|无|不是|不存在|不包含|不包括|不在|不见|不含|不属于|不对|不正确|并非|并不|未|看不到|看不见|找不到|缺少|缺乏|非|不"
)
_YES = re.compile(r"有|是|存在|包含|包括|出现|看到|看见|可见|显示|展示|位于|画着|拍摄|在")
_CLAUSES = re.compile(r"[,，。.;；!！、:\n]|但是|但|不过|而是|而|然而|只有|只是|却|可是")
_QUESTION_WORDS = re.compile(
    r"是否|是不是|有没有|有无|能否|能不能|可以|看到|看见|请问|请|回答|仅|只用|使用|用|单词|短语|图片|图像|照片|画面|场景|图中|图里|图|"
    r"这张|这幅|这个|那个|这|那|存在|出现|一[只个条辆位名些张把件台棵头匹架艘座]|两者|任何|吗|呢|吧|么|的|了|着|里|中|上|内|有|是|在|张|幅|[\s?,.。,!:;\"'“”]"
)
"""Characters of a question that do not name its subject."""
_ELLIPTIC = re.compile(
    r"^(?:我们?|认为|觉得|想|看来|应该|应当|里面|这里|其中|图片?中?|画面中?|是|并)*"
    r"(?:(?P<no>没有|没看到|没看见|看不到|未发现|没发现|不存在|没|无)|(?P<yes>有|看到|看见|存在))(?:的|了|呢|啊)*$"
)
"""A clause that affirms or denies the thing in question without naming it."""
_DIGITS = {
    char: value
    for value, chars in enumerate(("零", "一1", "二两2", "三3", "四4", "五5", "六6", "七7", "八8", "九9", "十"))
    for char in chars
}
_MEASURE = "只个条辆位名张把件台棵头匹架艘座人"


def is_chinese(text: str) -> bool:
    """Return whether a text has Chinese characters, and none of Japanese or Korean."""
    return _HAN.search(text) is not None and _KANA_OR_HANGUL.search(text) is None


def chinese_yes_no(sentence: str, question: str = "") -> tuple[YesNo | None, Certainty]:
    """Return a sentence's yes or no, or None, and whether it is stated, implied or unsure.

    In this order: a stated conclusion; a yes or no set off at the beginning; the statement or
    denial of a clause about the thing in question. Without a Chinese question, all clauses count.
    """
    text = sentence.translate(_SIMPLIFIED)
    if match := _CONCLUSION.search(text):
        return ("no" if match["no"] else "yes"), "stated"
    if _AFFIRMS.match(text.strip(" \"'")):
        return "yes", "stated"
    if match := _LEADS.search(text):
        return ("no" if match["no"] else "yes"), "stated"
    text = _NEUTRAL.sub("", text)
    if _UNSURE.search(text):
        return None, "unsure"
    asked = _QUESTION_WORDS.sub("", question.translate(_SIMPLIFIED)) if is_chinese(question) else ""
    verdicts = {_clause_verdict(clause.strip(" \"'"), asked) for clause in _CLAUSES.split(text)} - {None}
    return (verdicts.pop() if len(verdicts) == 1 else None), "implied"


def _clause_verdict(clause: str, asked: str) -> YesNo | None:
    """Return the yes or no of a clause about the thing that these characters name."""
    if not clause:
        return None
    if elliptic := _ELLIPTIC.match(clause):
        return "no" if elliptic["no"] else "yes"
    asked_digits = {_DIGITS[char] for char in asked if char in _DIGITS}
    named = {char for char in asked if not asked_digits or char not in {*_DIGITS, *_MEASURE}}
    # "Is the person a man?" may be answered with "is a man".
    predicate = _QUESTION_WORDS.sub("", _NO.sub("", clause))
    if not named <= {*clause} and not (predicate and asked.endswith(predicate)):
        return None
    is_denied = _NO.search(clause) is not None
    stated_digits = {_DIGITS[char] for char in clause if char in _DIGITS}
    if len(asked_digits) == 1 and stated_digits and not is_denied:
        return "yes" if stated_digits == asked_digits else "no"
    if is_denied:
        return "no"
    return "yes" if asked or _YES.search(clause) else None
