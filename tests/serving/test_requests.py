"""What requests may hold, and the sentence for what they may not."""

import base64
import io

import pytest
from PIL import Image

from mmrlhf.records import Fact, InputError
from mmrlhf.serving.requests import parse_chat, parse_score


@pytest.fixture(scope="module")
def data_url(examples):
    return "data:image/png;base64," + base64.b64encode(examples[0].images[0].read()).decode()


def turn(*parts):
    return {"role": "user", "content": list(parts)}


def image_part(url):
    return {"type": "image_url", "image_url": {"url": url}}


TEXT = {"type": "text", "text": "What is it?"}


def test_a_chat_request_in_openais_form(data_url, examples):
    body = {
        "model": "any", "messages": [{"role": "system", "content": "Be short."}, turn(TEXT, image_part(data_url))], "n": 2,
        "max_completion_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": "END", "stream": False, "user": None,
    }  # fmt: skip
    request = parse_chat(body, 64)
    assert request.example.images[0].read() == examples[0].images[0].read()
    assert [m.role for m in request.example.prompt] == ["system", "user"] and request.num_answers == 2
    assert request.params == request.params.__class__(9, 0.5, 0.9, 0, 0, ("END",), 7)


def test_defaults_are_openais_and_a_seed_makes_equal_requests_equal():
    messages = [{"role": "user", "content": "Hello"}]
    plain = parse_chat({"messages": messages}, 64)
    assert (plain.params.max_tokens, plain.params.temperature, plain.num_answers) == (64, 1.0, 1)
    assert plain.example.id != parse_chat({"messages": messages}, 64).example.id
    assert parse_chat({"messages": messages, "seed": 1}, 64) == parse_chat({"messages": messages, "seed": 1}, 64)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"messages": None}, "request: `messages` is missing"),
        ({"messages": []}, "`messages` must be a list of turns"),
        ({"messages": ["Hello"]}, "request"),
        ({"messages": [{"role": "robot", "content": "Hello"}]}, "robot"),
        ({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}, "the last message must be the user's"),
        ({"messages": [turn(TEXT, image_part("https://example.org/a.png"))]}, r"`messages\[1\].content\[2\].image_url` must be a data URL"),
        ({"messages": [turn(TEXT, image_part("file:///etc/passwd"))]}, "opens no files"),
        ({"messages": [turn(TEXT, image_part("/etc/passwd"))]}, "opens no files"),
        ({"messages": [turn(TEXT, {"type": "image_url", "image_url": {"path": "/etc/passwd"}})]}, "must be a data URL"),
        ({"messages": [turn(TEXT, {"type": "image", "image": "/etc/passwd"})]}, "must be text or image_url, not 'image'"),
        ({"messages": [turn(TEXT, {"type": "input_audio"})]}, "must be text or image_url"),
        ({"messages": [turn(TEXT, image_part("data:image/png;base64,AAAA"))]}, "damaged"),
        ({"messages": [turn(TEXT, image_part("data:image/png;base64,!"))]}, "base64"),
        ({"stream": True}, "`stream` is not supported: leave it out"),
        ({"tools": [{}]}, "`tools` is not supported"),
        ({"temprature": 1}, "`temprature` is not a field of this request"),
        ({"temperature": 3}, "`temperature` must be a number from 0 to 2, not 3"),
        ({"temperature": 1e-300}, "`temperature` must be 0, which takes the likeliest token, or at least 0.001"),
        ({"temperature": True}, "`temperature` must be a number"),
        ({"temperature": float("nan")}, "`temperature` must be a number"),
        ({"top_p": 0}, "`top_p` must be above 0"),
        ({"max_tokens": 65}, "`max_tokens` must be a whole number from 1 to 64, not 65"),
        ({"max_tokens": 1.5}, "`max_tokens` must be a whole number"),
        ({"n": 0}, "`n` must be a whole number from 1 to 64"),
        ({"seed": -1}, "`seed` must be a whole number"),
        ({"stop": ["a"] * 5}, "`stop` must be a text, or a list of at most 4"),
        ({"stop": [""]}, "`stop` must be"),
    ],
)  # fmt: skip
def test_bad_chat_requests_get_a_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence):
        parse_chat({"messages": [{"role": "user", "content": "Hello"}]} | change, 64)


def test_a_request_has_at_most_sixteen_pictures_over_all_turns(data_url):
    first = [turn(TEXT, *[image_part(data_url)] * 8), {"role": "assistant", "content": "Cups."}]
    sixteen, seventeen = ([*first, turn(TEXT, *[image_part(data_url)] * number)] for number in (8, 9))
    assert len(parse_chat({"messages": sixteen}, 64).example.images) == 16
    with pytest.raises(InputError, match="request: it has 17 images: give at most 16"):
        parse_chat({"messages": seventeen}, 64)
    with pytest.raises(InputError, match="request: it has 17 images: give at most 16"):
        parse_score({"messages": seventeen, "answers": ["A cup."]})


def test_an_oversized_picture_is_refused_before_it_waits_for_the_model():
    file = io.BytesIO()
    Image.new("1", (6400, 6400)).save(file, "PNG")  # a few kilobytes that would be 123 MB of pixels
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    with pytest.raises(InputError, match="has 6400 x 6400, more than 40,000,000 pixels: scale it down"):
        parse_chat({"messages": [turn(TEXT, image_part(url))]}, 64)


@pytest.mark.parametrize("body", [[], "text", 3, None])
def test_a_request_is_an_object(body):
    with pytest.raises(InputError, match="the request must be a JSON object"):
        parse_chat(body, 64)


def test_a_score_request_has_answers_and_may_have_facts():
    messages = [{"role": "user", "content": "What is it?"}]
    group = parse_score({"messages": messages, "answers": ["A cup.", ""], "facts": [{"kind": "object", "text": "cup"}]})
    assert group.answers == ("A cup.", "") and group.facts == (Fact("object", "cup"),)
    for change, sentence in (
        ({"answers": []}, "`answers` must be a list of 1 to 64 texts"),
        ({"answers": ["a"] * 65}, "`answers` must be a list of 1 to 64 texts"),
        ({"answers": ["a", 2]}, r"`answers\[2\]` must be text"),
        ({"facts": [{"kind": "smell", "text": "x"}]}, r"`facts\[1\].kind` must be one of"),
        ({"n": 2}, "`n` is not a field of this request"),
    ):
        with pytest.raises(InputError, match=sentence):
            parse_score({"messages": messages, "answers": ["a"]} | change)
