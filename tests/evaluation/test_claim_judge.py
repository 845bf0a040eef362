"""A judge as a verifier: one claim at a time, every reply on file, failures kept apart."""

import pytest

from mmrlhf.claims import load_lexicon
from mmrlhf.evaluation.claim_judge import INSTRUCTION, ClaimJudge
from mmrlhf.evaluation.openai_client import Endpoint
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import Claim, InputError
from mmrlhf.verifiers import AnswerClaims
from tests.helpers.fake_server import FAKE_MODEL, chat_completion, scripted_server

RING, MOON = Claim("object", "ring"), Claim("object", "moon")
NO_MOON = Claim("object", "moon", negated=True)


def reply_to(request):
    """Say yes to rings, nothing clear to stars, and no to everything else."""
    question = request["messages"][0]["content"][-1]["text"]
    text = "Yes, there is." if "ring" in question else "Who knows?" if "star" in question else "No."
    return 200, chat_completion(text)


def judge(server, path, **settings):
    return ClaimJudge(Endpoint(server.url, settings.pop("model", ""), **settings), load_lexicon(), path / "judgments.jsonl")


def values(verdicts):
    return [[verdict.value for verdict in row] for row in verdicts]


def test_each_claim_is_a_question_with_the_image(examples, tmp_path):
    with scripted_server(reply_to) as server:
        claims = (RING, MOON, NO_MOON, Claim("object", "star"))
        verdicts = judge(server, tmp_path)([AnswerClaims(examples[0].images, (), claims)])
    # "No moon" is asked as "a moon", and the reply is negated.
    assert values(verdicts) == [["supported", "contradicted", "supported", "unknown"]]
    assert [verdict.claim for verdict in verdicts[0]] == list(claims)
    assert len(server.requests) == 3
    image, text = server.requests[0]["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/") and text["text"].endswith(f"in the picture? {INSTRUCTION}")
    assert server.requests[0]["temperature"] == 0
    assert "says 'Yes, there is.' to 'Is there a ring in the picture?'" in verdicts[0][0].evidence


def test_replies_are_kept_and_only_new_questions_asked(examples, tmp_path):
    with scripted_server(reply_to) as server:
        first = judge(server, tmp_path)([AnswerClaims(examples[0].images, (), (RING,))])
        path = tmp_path / "judgments.jsonl"
        path.write_bytes(path.read_bytes() + b'{"key": "torn')  # as a kill leaves it
        again = judge(server, tmp_path)([AnswerClaims(examples[0].images, (), (RING, MOON))])
        other = judge(server, tmp_path)([AnswerClaims(examples[1].images, (), (RING,))])
        assert len(server.requests) == 3
    assert first[0] == again[0][:1] and values(other) == [["supported"]]
    assert [row["question"].split()[3] for row in read_jsonl(path)] == ["ring", "moon", "ring"]
    assert {row["model"] for row in read_jsonl(path)} == {FAKE_MODEL}


def test_claims_without_an_image_are_unknown_and_nothing_is_asked(tmp_path):
    with scripted_server(reply_to) as server:
        assert values(judge(server, tmp_path)([AnswerClaims((), (), (RING,)), AnswerClaims((), (), ())])) == [["unknown"], []]
        assert not server.requests and not (tmp_path / "judgments.jsonl").exists()


def test_refused_questions_are_unknown_and_not_asked_again(examples, tmp_path, capsys):
    """A filter that dislikes a picture must not stop the others for good."""

    def refuses_moons(request):
        return (400, {"error": "no moons"}) if "moon" in str(request["messages"][0]["content"][-1]) else reply_to(request)

    answer = AnswerClaims(examples[0].images, (), (RING, MOON))
    with scripted_server(refuses_moons) as server:
        for _ in range(2):
            assert values(verdicts := judge(server, tmp_path)([answer])) == [["supported", "unknown"]]
        assert len(server.requests) == 2 and "refuses the question 'Is there a moon" in verdicts[0][1].evidence
        assert "refuses 1 of 2 questions (the last: HTTP 400: " in capsys.readouterr().out
        with pytest.raises(InputError, match=r"gave no usable reply to 1 of 1 questions \(the last: HTTP 400"):
            judge(server, tmp_path / "other")([AnswerClaims(examples[0].images, (), (MOON,))])
        assert (tmp_path / "other" / "judgments.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("choice", "num_requests", "reason"),
    [
        ({"message": {"content": None, "refusal": "I won't say."}}, 2, "it refuses: I won't say."),
        ({"message": {"role": "assistant"}, "finish_reason": "content_filter"}, 2, "it refuses: content_filter"),
        ({"message": {"content": ""}}, 3, "the reply holds no text"),
    ],
)
def test_a_polite_refusal_is_unknown_and_not_asked_again(examples, tmp_path, capsys, choice, num_requests, reason):
    """Hosted models refuse with status 200; such a question must not stop every later call."""

    def refuses_moons(request):
        return (200, {"choices": [choice]}) if "moon" in str(request["messages"][0]["content"][-1]) else reply_to(request)

    answer = AnswerClaims(examples[0].images, (), (RING, MOON))
    with scripted_server(refuses_moons) as server:
        for _ in range(2):
            assert values(judge(server, tmp_path, max_retries=1, initial_backoff=0.0)([answer])) == [["supported", "unknown"]]
        assert len(server.requests) == num_requests  # no text at all is asked for again at once
        assert f"refuses 1 of 2 questions (the last: {reason}" in capsys.readouterr().out
        with pytest.raises(InputError, match="gave no usable reply to 1 of 1 questions"):  # this server has answered nothing
            judge(server, tmp_path / "other", max_retries=0)([AnswerClaims(examples[0].images, (), (MOON,))])


def test_an_image_with_many_refused_questions_stops_one_call_only(examples, tmp_path):
    """The client gives up after eight failures without a success; the next call is past them."""
    shapes = ("moon", "star", "cross", "heart", "circle", "square", "diamond", "arrow", "triangle")

    def refuses(request):
        text = request["messages"][0]["content"][-1]["text"]
        return (400, {"error": "no"}) if any(shape in text for shape in shapes) else reply_to(request)

    many = AnswerClaims(examples[0].images, (), tuple(Claim("object", shape) for shape in shapes))
    ring = AnswerClaims(examples[1].images, (), (RING,))
    with scripted_server(refuses) as server:
        judge(server, tmp_path)([ring])
        with pytest.raises(InputError, match="the first 8 replies all failed"):
            judge(server, tmp_path, concurrency=1)([many])
        assert set(values(judge(server, tmp_path)([many, ring]))[0]) == {"unknown"}


def test_failed_questions_stop_the_call_and_are_asked_again(examples, tmp_path):
    def fails_on_moons(request):
        return (404, {"error": "no moons"}) if "moon" in str(request["messages"][0]["content"][-1]) else reply_to(request)

    answer = AnswerClaims(examples[0].images, (), (RING, MOON))
    with scripted_server(fails_on_moons) as server:
        with pytest.raises(
            InputError, match=r"gave no usable reply to 1 of 2 questions \(the last: HTTP 404.*run the same command again"
        ):
            judge(server, tmp_path)([answer])
        server.script[:] = [reply_to]
        assert values(judge(server, tmp_path)([answer])) == [["supported", "contradicted"]]
        assert len(server.requests) == 3  # the ring is on file


def test_a_server_that_cannot_be_reached_is_one_sentence(examples, tmp_path):
    unreachable = Endpoint("http://127.0.0.1:9/v1", "m", max_retries=0)
    with pytest.raises(InputError, match=r"m at http://127\.0\.0\.1:9/v1 cannot be reached"):
        ClaimJudge(unreachable, load_lexicon(), tmp_path / "j.jsonl")([AnswerClaims(examples[0].images, (), (RING,))])
