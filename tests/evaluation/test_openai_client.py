"""The client of OpenAI-compatible servers, against a local server that fails in every way it
can."""

import gzip
import threading
from dataclasses import replace

import pytest

from mmrlhf.evaluation import openai_client
from mmrlhf.evaluation.openai_client import (
    MAX_INITIAL_FAILURES,
    Endpoint,
    Reply,
    _is_same_model,
    chat_message,
    chat_messages,
    display_name,
    endpoint_answers,
    request_replies,
    resolve_model_name,
)
from mmrlhf.records import Example, ImageSource, InputError, Message
from tests.helpers.fake_server import chat_completion, free_port, scripted_server

GOOD_REPLY = (200, chat_completion("yes"))


def ask_server(server, num_questions=1, **settings):
    settings = {"timeout": 30.0, "max_retries": 2, "initial_backoff": 0.01, "concurrency": 1, **settings}
    endpoint = Endpoint(server.url, "stub", **settings)
    chats = [(str(i), lambda i=i: [chat_message(f"question {i}")]) for i in range(num_questions)]
    return [reply for _, reply in request_replies(endpoint, chats, {"temperature": 0})]


def test_request_replies_sends_request_and_parses_reply(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with scripted_server(GOOD_REPLY) as server:
        (reply,) = ask_server(server)
    assert (reply.text, reply.status, reply.model, reply.total_tokens, reply.attempts) == ("yes", "ok", "stub", 7, 1)
    assert server.requests == [
        {
            "model": "stub",
            "messages": [{"role": "user", "content": "question 0"}],
            "temperature": 0,
            "authorization": "Bearer secret",
        }
    ]


@pytest.mark.parametrize(
    ("faults", "status", "attempts", "reason"),
    [
        ([(500, b"oh no")], "http", 3, "HTTP 500: oh no"),
        ([(400, {"detail": "too long"})], "http", 1, "too long"),
        (["slow"], "timeout", 3, "no whole reply in 0.3 s"),
        (["cut"], "cut", 3, "the connection broke"),
        ([(200, b"<html><body>Login</body></html>")], "malformed", 3, "<html><body>Login"),
        ([(200, b"")], "malformed", 3, "not a chat completion: nothing"),
        ([(200, {"model": "stub", "choices": []})], "empty", 3, "holds no text"),
        ([(200, chat_completion(None))], "empty", 3, "holds no text"),
        ([(200, {"choices": [{"message": {"content": None, "refusal": "I can't help."}}]})], "refused", 1, "I can't help."),
        ([(200, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]})], "refused", 1, "content_filter"),
        ([(200, {"choices": 7})], "malformed", 3, "not a chat completion"),
        ([(200, chat_completion("yes", model="other-model"))], "other_model", 1, "asked for stub, other-model answered"),
        ([(200, b"[" * 100_000)], "malformed", 3, "not a chat completion"),
    ],
)
def test_request_replies_failure_states_its_reason(faults, status, attempts, reason):
    # Only a server that never answers should run into the timeout, however busy the machine is.
    timeout = 0.3 if faults == ["slow"] else 30.0
    with scripted_server(*faults) as server:
        (reply,) = ask_server(server, timeout=timeout)
    assert (reply.status, reply.attempts) == (status, attempts)
    assert reason in reply.reason
    assert reply.text is None or status == "other_model"


def test_request_replies_retries_and_honours_retry_after(monkeypatch):
    waits = []
    monkeypatch.setattr("mmrlhf.evaluation.openai_client.time.sleep", waits.append)
    with scripted_server((503, b"busy"), (429, b"later", {"retry-after": "20"}), "cut", GOOD_REPLY) as server:
        (reply,) = ask_server(server, max_retries=3, initial_backoff=0.5)
    assert (reply.status, reply.attempts) == ("ok", 4)
    assert waits == [0.5, 20.0, 2.0]  # twice as long each time, or as long as the server says


@pytest.mark.parametrize(
    ("added", "status"),
    [("", "ok"), ("-0613", "ok"), ("-2024-08-06", "ok"), ("-20240620", "ok"), ("-1106-preview", "ok"), (":latest", "ok"), ("@001", "ok"),
     ("-mini", "other_model"), ("-2", "other_model"), ("-mini-2024-07-18", "other_model"), ("-0613x", "other_model"), ("o", "other_model")],
)  # fmt: skip
def test_request_replies_accepts_dated_model_name(added, status):
    with scripted_server((200, chat_completion("yes", model=f"stub{added}"))) as server:
        assert ask_server(server)[0].status == status


def test_model_name_is_not_a_pattern():
    assert not _is_same_model("gpt-3x5-turbo-0125", "gpt-3.5-turbo") and _is_same_model("gpt-3.5-turbo-0125", "gpt-3.5-turbo")


def test_request_replies_failure_does_not_block_other_replies():
    def fail_one(request):
        return (500, b"no") if "question 1" in str(request["messages"]) else GOOD_REPLY

    with scripted_server(fail_one) as server:
        replies = ask_server(server, num_questions=3, max_retries=0)
    assert [r.status for r in replies] == ["ok", "http", "ok"]


def test_request_replies_sends_requests_concurrently():
    barrier = threading.Barrier(4, timeout=30)  # opens when four requests wait at it

    def wait_for_others(_):
        barrier.wait()
        return GOOD_REPLY

    with scripted_server(wait_for_others) as server:
        assert [r.status for r in ask_server(server, num_questions=8, concurrency=4, timeout=30.0)] == ["ok"] * 8


def test_request_replies_stops_at_token_budget():
    with scripted_server(GOOD_REPLY) as server:
        endpoint = Endpoint(server.url, "stub", concurrency=1)
        chats = [(str(i), lambda: [chat_message("?")]) for i in range(9)]
        replies = list(request_replies(endpoint, chats, {}, max_total_tokens=20))
    assert len(replies) == 3 == len(server.requests)  # 7 tokens each: 21


def test_request_replies_raises_when_server_is_down_or_refuses():
    down = Endpoint(f"http://127.0.0.1:{free_port()}/v1", "stub", max_retries=1, initial_backoff=0.01)
    with pytest.raises(InputError, match=r"cannot be reached .* start the server or correct the URL"):
        list(request_replies(down, [("a", lambda: [chat_message("?")])], {}))
    with (
        scripted_server((401, b"who are you?")) as server,
        pytest.raises(InputError, match="set the environment variable OPENAI_API_KEY"),
    ):
        ask_server(server)
    with scripted_server((404, b"no such model")) as server:
        with pytest.raises(
            InputError, match=f"the first {MAX_INITIAL_FAILURES} replies all failed .the last: HTTP 404: no such model."
        ):
            ask_server(server, num_questions=50)
        assert len(server.requests) == MAX_INITIAL_FAILURES


def test_resolve_model_name_finds_the_only_model_of_a_server():
    with scripted_server(GOOD_REPLY) as server:
        assert resolve_model_name(Endpoint(server.url, "")).model == "stub"
    with (
        scripted_server(GOOD_REPLY, models=("a", "b")) as server,
        pytest.raises(InputError, match="serves a, b: name one with --served_model"),
    ):
        resolve_model_name(Endpoint(server.url, ""))
    for response, reason in (((404, b"{}"), "HTTP 404, and no list"), ((200, b'{"data": [1]}'), "HTTP 200, and no list")):
        with scripted_server(GOOD_REPLY) as server:
            server.models_response = (*response, [])
            with pytest.raises(InputError, match=reason):
                resolve_model_name(Endpoint(server.url, ""))
    with pytest.raises(InputError, match="cannot be reached"):
        resolve_model_name(Endpoint(f"http://127.0.0.1:{free_port()}/v1", ""))
    with pytest.raises(InputError, match="is not a server URL"):
        Endpoint("http://", "")


def test_chat_message_embeds_images_as_data_urls():
    png = b"\x89PNG\r\n"
    assert chat_message("What?", (ImageSource(data=png), ImageSource(data=b"\xff\xd8\xff0"))) == {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0K"}},
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/MA=="}},
            {"type": "text", "text": "What?"},
        ],
    }


def test_chat_messages_show_images_in_their_places():
    png, jpeg = ImageSource(data=b"\x89PNG\r\n"), ImageSource(data=b"\xff\xd8\xff0")
    turns = [Message("system", "Be brief."), Message("user", "a  b", (2,)), Message("assistant", "c"), Message("user", "d", (0,))]

    def kinds(prompt, images):
        contents = [turn["content"] for turn in chat_messages(prompt, images)]
        return [
            content if isinstance(content, str) else [part.get("text") or part["image_url"]["url"][11:15] for part in content]
            for content in contents
        ]

    assert kinds(turns, (png, jpeg)) == ["Be brief.", ["a ", "png;", " b"], "c", ["jpeg", "d"]]
    in_front = [replace(turn, image_positions=()) for turn in turns]
    assert kinds(in_front, (png, jpeg)) == ["Be brief.", ["png;", "jpeg", "a  b"], "c", "d"]
    assert kinds(in_front, ()) == ["Be brief.", "a  b", "c", "d"]


@pytest.mark.parametrize(("temperature", "seeds"), [(1.0, [3, 4, 3, 4]), (0.0, [None] * 4)])
def test_endpoint_answers_seed_each_answer_of_an_example(temperature, seeds):
    examples = [Example(name, (), (Message("user", f"{name}?"),)) for name in ("a", "b")]
    with scripted_server(lambda request: (200, chat_completion(f"seed {request.get('seed')}"))) as server:
        endpoint = Endpoint(server.url, "stub", timeout=30.0, max_retries=0, initial_backoff=0.01, concurrency=1)
        answers = {e.id: texts for e, texts in endpoint_answers(endpoint, examples, {"temperature": temperature}, 2, 3)}
    assert answers == {name: [f"seed {seed}" for seed in seeds[:2]] for name in ("a", "b")}
    assert [request.get("seed") for request in server.requests] == seeds


def test_endpoint_answers_come_by_sample_number(monkeypatch):
    replies = [("0/2", "c"), ("1/1", "e"), ("0/0", "a"), ("1/0", "d"), ("0/1", "b"), ("1/2", "f")]
    monkeypatch.setattr(openai_client, "request_replies", lambda *_, **__: [(key, Reply(text, "ok")) for key, text in replies])
    examples = [Example(name, (), (Message("user", f"{name}?"),)) for name in ("x", "y")]
    endpoint = Endpoint("http://localhost/v1", "stub")
    answers = {e.id: texts for e, texts in endpoint_answers(endpoint, examples, {"temperature": 1.0}, 3, 0)}
    assert answers == {"x": ["a", "b", "c"], "y": ["d", "e", "f"]}


@pytest.mark.parametrize("key", ["sk-“secret”", "sk-secret\n"])
def test_endpoint_refuses_a_key_that_no_header_can_hold(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=r"^OPENAI_API_KEY holds a curly quote or another character that no key has"):
        Endpoint("http://localhost/v1", "stub")


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        ((500, b"key sk-secret-123 of user:hunter22 is unknown"), "http"),
        ((500, b"x" * 100 + b" sk-secret-123"), "http"),  # the quote would be cut in the middle of the key
        ((200, b"not json, sk-secret-123, hunter22"), "malformed"),
        ((200, chat_completion("you sent sk-secret-123 and dXNlcjpodW50ZXIyMg==")), "ok"),
        ((200, chat_completion("yes", model="sk-secret-123")), "other_model"),
    ],
)
def test_request_replies_keep_no_secret_that_a_server_repeats(monkeypatch, entry, status):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    with scripted_server(entry) as server:
        server.url = server.url.replace("http://", "http://user:hunter22@")
        (reply,) = ask_server(server, max_retries=0)
    kept = repr(reply)
    assert reply.status == status and "[redacted]" in kept
    assert not any(secret in kept for secret in ("sk-secret", "hunter22", "dXNlcjpodW50ZXIyMg=="))


def test_request_replies_replace_what_no_file_or_terminal_can_hold(monkeypatch):
    completion = b'{"model": "stub", "choices": [{"message": {"content": "a \\ud800 cat \\ud83d\\udc08"}}]}'
    with scripted_server((200, completion), (500, "\x1b[2J\u202eoh no".encode())) as server:
        first, second = ask_server(server, num_questions=2, max_retries=0)
    assert first.text == "a \ufffd cat \N{CAT}" and second.reason == "HTTP 500: \ufffd[2J\ufffdoh no"


@pytest.mark.parametrize("compressed", [False, True])
def test_resolve_model_name_reads_a_bounded_list(monkeypatch, compressed):
    body = b'{"data": [{"id": "' + b"a" * 20_000 + b'"}]}'
    headers = [("content-encoding", "gzip")] if compressed else []
    monkeypatch.setattr(openai_client, "MAX_REPLY_BYTES", 10_000)
    with scripted_server(GOOD_REPLY) as server:
        server.models_response = (200, gzip.compress(body) if compressed else body, headers)
        with pytest.raises(InputError, match=r"/models lists no models \(HTTP 200, and no list\): correct the URL, or name"):
            resolve_model_name(Endpoint(server.url, ""))


def test_resolve_model_name_prints_no_control_code():
    with scripted_server(GOOD_REPLY) as server:
        server.models = ["\x1b[31mred", "blue"]
        with pytest.raises(InputError, match="serves \ufffd\\[31mred, blue: name one with --served_model"):
            resolve_model_name(Endpoint(server.url, ""))


def test_display_name_leaves_out_the_password():
    assert display_name("http://user:hunter22@host:8000/v1") == "http://host:8000/v1"
    assert display_name("runs/model") == "runs/model" and display_name(None) is None
