"""Yes or no from a stated number: two buses, asked for four."""

import pytest

from mmrlhf.text.answer_parsing import parse_yes_no


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Are there two dogs?", "There are no other dogs.", None),
        ("Are there two dogs?", "There are none.", "no"),
        ("Are there two dogs?", "Two", "yes"),
        ("Are there two dogs?", "I count three", "no"),
        ("Is there one dog in the image?", "There are two dogs.", "no"),
        ("Are there 3 people in the image?", "The image shows a group of 5 people.", "no"),
        ("Are there 3 people in the image?", "The image shows 3 people.", "yes"),
        ("Are there three people?", "There is a person in the picture.", None),
        ("Are there three people?", "One person is in the picture.", "no"),
        ("Are there two dogs on the two sofas?", "There are two dogs.", None),
        ("Does the image show two dogs?", "There are three dogs.", "no"),
        ("Are there four?", "There are two buses", "no"),
        ("Are there four buses in the image?", "There are two buses in the image.", "no"),
        ("Are there four buses in the image?", "There are four buses.", "yes"),
        ("Are there four buses in the image?", "Four.", "yes"),
        ("Are there four buses in the image?", "There are 4.", "yes"),
        ("Are there four buses in the image?", "There are three.", "no"),
        ("Are there four buses in the image?", "I can see two red buses.", "no"),
        ("Are there four buses in the image?", "There are two cars.", None),
        ("Are there four buses in the image?", "There are two cars and four buses.", "yes"),
        ("Are there four buses in the image?", "There are not four buses.", "no"),
        ("Are there four buses in the image?", "There are only three buses", "no"),
        ("Are there four buses in the image?", "There are more than four buses.", "no"),
        ("Are there four buses in the image?", "There are at least four buses.", "yes"),
        ("Are there four buses in the image?", "There are several buses.", None),
        ("Are there four buses in the image?", "There are no buses.", "no"),
        ("Are there four buses in the image?", "There are about four buses", "yes"),
        ("Are there four buses in the image?", "No, there are four cars", "no"),
        ("Are there at least two dogs?", "There are three dogs.", "yes"),
        ("Are there more than two dogs?", "There are two dogs.", "no"),
        ("Are there two pieces of pizza in this image? Please answer yes or no.", "There are three pieces of pizza.", "no"),
        (
            "Are there two pieces of pizza in this image? Please answer yes or no.",
            "There is only one piece of pizza in this image.",
            "no",
        ),
        ("Is there only one bottle in the image? Please answer yes or no.", "There are two bottles in the image.", "no"),
        ("Is there only one bottle in the image?", "There is one bottle.", "yes"),
        ("Are there a total of two trains in the picture?", "There is one train.", "no"),
        ("Are there two dogs?", "One of the dogs is black.", None),
        ("Are there two dogs?", "There are two dogs, one black and one white.", "yes"),
        ("Are there four buses?", "Two buses are parked.", "no"),
        ("Are there twelve people?", "There are 12 people.", "yes"),
        ("Are there 12 people?", "There are a dozen people.", "yes"),
        ("Are there four people in the image?", "There are three men and one woman.", None),
    ],
)
def test_parse_yes_no_compares_numbers(question, answer, expected):
    assert parse_yes_no(answer, question) == expected
