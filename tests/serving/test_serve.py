"""The server itself, over HTTP: answers, access, limits, many clients, and what a stop leaves."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection

import pytest
import torch

from mmrlhf import serve as serve_module
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.records import ImageSource, InputError
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.serve import CHAT_PATH, SCORE_PATH, Models, address_of, serving
from mmrlhf.serving import http
from tests.helpers.serving import config_of, facts_of, messages_of, request


@pytest.fixture(scope="module")
def models(tiny_vlm_path, reward_dir):
    adapters = Adapters(load(tiny_vlm_path))
    return Models(Role(adapters, None), load_reward_model(str(reward_dir), adapters))


@pytest.fixture
def server(models):
    with serving(config_of(), models) as running:
        yield running


def test_greedy_completions_are_those_of_generate(server, models, examples):
    with models.policy.active():
        batches = generate_batches(models.policy.vlm, examples[:4], SamplingParams(24, 0.0), batch_size=4)
        expected = {example.id: texts for example, texts in batches}
    for example in examples[:4]:
        status, reply = request(server, CHAT_PATH, {"messages": messages_of(example), "temperature": 0})
        assert status == 200 and reply["choices"][0]["message"] == {"role": "assistant", "content": expected[example.id][0]}
        assert reply["object"] == "chat.completion" and reply["model"] == "tiny"
        assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"] > 20
    status, reply = request(server, CHAT_PATH, {"messages": messages_of(examples[0]), "temperature": 0, "max_tokens": 2, "n": 2})
    assert [choice["finish_reason"] for choice in reply["choices"]] == ["length", "length"]
    assert reply["usage"]["completion_tokens"] == 4


def test_scores_are_those_of_the_reward_model(server, models, examples):
    answers = ["There is a cup.", "I can see a star."]
    body = {"messages": messages_of(examples[0]), "answers": answers, "facts": facts_of(examples[0])}
    status, reply = request(server, SCORE_PATH, body)
    group = AnswerGroup(examples[0].images, examples[0].prompt, tuple(answers), examples[0].facts, "score")
    assert status == 200 and reply["scores"] == pytest.approx(models.reward_model.score([group])[0])


def test_many_clients_at_once_lose_nothing_and_a_seed_does_not_depend_on_them(server, examples):
    bodies = [{"messages": messages_of(examples[i % 12]), "seed": i % 2, "temperature": 1, "max_tokens": 8} for i in range(32)]
    alone = [request(server, CHAT_PATH, bodies[i])[1]["choices"] for i in (0, 1)]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda body: request(server, CHAT_PATH, body), bodies))
    assert [status for status, _ in replies] == [200] * 32
    assert [replies[i][1]["choices"] for i in (0, 1)] == alone == [replies[i][1]["choices"] for i in (24, 25)]


@pytest.mark.parametrize(
    ("path", "options", "status", "sentence"),
    [
        (CHAT_PATH, {"data": b"{"}, 400, "request"),
        (CHAT_PATH, {"body": {"messages": []}}, 400, "request: `messages` must be a list"),
        (CHAT_PATH, {"body": {}, "headers": {"Content-Type": "text/plain"}}, 415, "Content-Type: application/json"),
        (CHAT_PATH, {"body": {}, "headers": {"Host": "example.org"}}, 403, "localhost only"),
        (CHAT_PATH, {}, 405, "takes POST requests"),
        ("/v1/completions", {"body": {}}, 404, "this server has /v1/chat/completions, /score, /v1/models, /health"),
    ],
)
def test_bad_requests_get_a_status_and_a_sentence(server, path, options, status, sentence):
    given, reply = request(server, path, **options)
    assert given == status and sentence in reply["error"]["message"] and reply["error"]["code"] == status


@pytest.mark.parametrize(
    ("text", "status", "sentence"),
    [
        (b"PUT /score HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "/score takes POST requests"),
        (b"OPTIONS /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "/health takes GET requests"),
        (b"DELETE /x HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "there is no such path"),
        (b"PUT /score HTTP/1.1\r\nHost: example.org\r\n\r\n", 403, "localhost only"),
        (b"nonsense\r\n\r\n", 400, "the request cannot be read (Bad request syntax ('nonsense')): send HTTP/1.1"),
        (b"GET /health HTTP/7\r\n\r\n", 400, "the request cannot be read (Bad request version ('HTTP/7'))"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, "the request cannot be read"),
        (b"GET /health HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431, "the request cannot be read (Line too long)"),
        (b"GET /health HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431, "the request cannot be read (Too many headers)"),
    ],
)
def test_what_is_no_request_gets_a_status_and_a_sentence(server, text, status, sentence):
    with socket.create_connection(server.server_address[:2], timeout=60) as client:
        client.sendall(text)
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"Content-Type: application/json" in head
    assert sentence in json.loads(body)["error"]["message"]


def test_a_head_request_gets_no_body(server):
    connection = HTTPConnection(*server.server_address[:2], timeout=60)
    connection.request("HEAD", "/health")
    response = connection.getresponse()
    assert response.status == 405 and response.read() == b""
    connection.close()


def test_too_many_connections_are_refused_until_one_ends(models, monkeypatch):
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)
    with serving(config_of(), models) as running:
        idle = [HTTPConnection(*running.server_address[:2]) for _ in range(2)]
        for connection in idle:
            connection.request("GET", "/health")
            connection.getresponse().read()  # and the connection stays open
        with socket.create_connection(running.server_address[:2], timeout=30) as refused:
            reply = refused.makefile("rb").read().decode()
        idle[0].close()
        status = 0
        for _ in range(100):  # the thread of the closed connection has to notice
            with contextlib.suppress(OSError):
                status = request(running, "/health")[0]
            if status == 200:
                break
            time.sleep(0.05)
        idle[1].close()
    assert reply.startswith("HTTP/1.1 503 ") and "too many connections" in reply and status == 200


def test_surplus_clients_that_say_nothing_do_not_keep_others_waiting(models, monkeypatch):
    """Here each of them would take an hour."""
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(http, "LINGER_SECONDS", 3600.0)
    with serving(config_of(), models) as running, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(running.server_address[:2], timeout=60)) for _ in range(6)]
        for client in clients[3:]:
            assert b"too many connections" in client.makefile("rb").read()


def test_a_client_that_still_sends_its_body_gets_the_refusal(models):
    with serving(config_of(host="0.0.0.0"), models) as server:
        address, token = server.server_address, {"Authorization": f"Bearer {server.service.token}"}
        server.server_address = ("127.0.0.1", address[1])
        body = b" " * (8 << 20)
        for path, headers, data, status in (
            (CHAT_PATH, {}, body, 401),
            ("/v1/completions", token, body, 404),
            (CHAT_PATH, token, body * 9, 413),
        ):
            assert request(server, path, headers=headers, data=data)[0] == status
        server.server_address = address


def test_a_stop_does_not_wait_for_clients_that_keep_their_connections(models, monkeypatch):
    """Here a server that waited for them would never stop."""
    monkeypatch.setattr(http._Handler, "timeout", None)
    with serving(config_of(), models) as running:
        idle = HTTPConnection(*running.server_address[:2], timeout=60)
        idle.request("GET", "/health")
        assert idle.getresponse().read()
    assert idle.sock is not None and idle.sock.recv(1) == b""
    idle.close()


def test_a_request_that_a_stop_cuts_off_may_be_sent_again(models, monkeypatch):
    reading, read_body = threading.Event(), http._Handler._body

    def body(handler):
        reading.set()
        return read_body(handler)

    monkeypatch.setattr(http._Handler, "_body", body)
    with serving(config_of(), models) as running:
        connection = HTTPConnection(*running.server_address[:2])
        connection.putrequest("POST", CHAT_PATH)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", "100")):
            connection.putheader(name, value)
        connection.endheaders()
        assert reading.wait(timeout=60)
    response = connection.getresponse()
    assert response.status == 503 and b"shutting down" in response.read()
    connection.close()


def test_openais_own_client_gets_answers_and_errors(models, examples):
    openai = pytest.importorskip("openai")
    with serving(config_of(), models) as running:
        client = openai.OpenAI(base_url=address_of(running) + "/v1", api_key="none", max_retries=0)
        reply = client.chat.completions.create(model="tiny", messages=messages_of(examples[0]), temperature=0, max_tokens=8, n=2)
        assert reply.choices[0].message.content == reply.choices[1].message.content != ""
        assert reply.usage.completion_tokens > 0 and client.models.list().data[0].id == "tiny"
        with pytest.raises(openai.BadRequestError, match="stream"):
            client.chat.completions.create(model="tiny", messages=messages_of(examples[0]), stream=True)


def test_every_name_of_this_machine_is_answered_and_no_other(server):
    for host, status in (("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.2:8000", 200), ("[::1]", 200), ("[::1]:80", 200),
                         ("localhost.example.org", 403), ("10.0.0.1", 403), ("[bad", 403), ("", 403)):  # fmt: skip
        assert request(server, "/health", headers={"Host": host})[0] == status, host


def test_bodies_have_a_length_and_a_limit(server):
    for headers, status in (
        ({"Content-Length": str(1 << 30)}, 413),
        ({"Content-Length": "9" * 5000}, 413),
        ({"Content-Length": "0" * 5000}, 400),  # an empty body, which is no JSON
        ({"Transfer-Encoding": "chunked"}, 411),
    ):
        connection = HTTPConnection(*server.server_address[:2], timeout=30)
        connection.putrequest("POST", CHAT_PATH)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


def test_one_bad_picture_does_not_harm_the_others_in_its_batch(server, examples):
    picture = examples[1].images[0].read()
    cut_off = replace(examples[1], images=(ImageSource(data=picture[: len(picture) // 2]),))  # its header is whole
    good, bad = messages_of(examples[0]), messages_of(cut_off)
    with ThreadPoolExecutor(6) as pool:
        bodies = [{"messages": m, "temperature": 0} for m in (good, bad, good, bad, good, good)]
        replies = list(pool.map(lambda body: request(server, CHAT_PATH, body), bodies))
    assert [status for status, _ in replies] == [200, 400, 200, 400, 200, 200]
    assert "truncated or damaged" in replies[1][1]["error"]["message"]


def test_a_server_on_a_network_asks_for_its_token(models):
    with serving(config_of(host="0.0.0.0"), models) as server:
        token, address = server.service.token, server.server_address
        assert len(token) >= 32
        server.server_address = ("127.0.0.1", address[1])
        assert request(server, "/health")[0] == 401
        assert request(server, "/health", headers={"Authorization": "Bearer wrong"})[0] == 401
        assert request(server, "/health", headers={"Authorization": f"Bearer {token}"}) == (200, {"status": "ok", "waiting": 0})
        server.server_address = address


def test_the_token_is_in_no_refusal_and_in_no_log(models, monkeypatch, capsys):
    monkeypatch.setattr(serve_module, "complete_chats", lambda *_: 1 / 0)
    chat = b'{"messages": [{"role": "user", "content": "Hello"}]}'
    replies = []
    with serving(config_of(host="0.0.0.0"), models) as server:
        token = server.service.token.encode()
        for line, given, body in (
            (b"GET /health HTTP/1.1", b"x" + token, b""),  # 401
            (b"GET /nothing HTTP/1.1", token, b""),  # 404
            (b"PUT /score HTTP/1.1", token, b""),  # 405
            (b"POST /score HTTP/1.1", token, b"{"),  # 400
            (b"POST /v1/chat/completions HTTP/1.1", token, chat),  # 500, which is logged
            (b"GET /health HTTP/7", token, b""),  # 400, before the headers are read
        ):
            headers = b"Authorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d" % (given, len(body))
            with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=60) as client:
                client.sendall(line + b"\r\n" + headers + b"\r\n\r\n" + body)
                replies.append(client.makefile("rb").read())
    assert [reply.split()[1] for reply in replies] == [b"401", b"404", b"405", b"400", b"500", b"400"]
    output = capsys.readouterr()
    assert "ZeroDivisionError" in output.err and token not in b"".join(replies) + (output.out + output.err).encode()


def test_a_full_queue_answers_503_and_a_stop_answers_what_waits(models, examples, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    run_batch = serve_module.run_batch

    def slow(*arguments):
        started.set()
        assert go_on.wait(60)
        return run_batch(*arguments)

    monkeypatch.setattr(serve_module, "run_batch", slow)
    body = {"messages": messages_of(examples[0]), "temperature": 0, "max_tokens": 4}
    with ThreadPoolExecutor(2) as pool:
        with serving(config_of(max_waiting=1, batch_size=1), models) as server:
            running = pool.submit(request, server, CHAT_PATH, body)
            assert started.wait(60)
            waiting = pool.submit(request, server, CHAT_PATH, body)
            while request(server, "/health")[1]["waiting"] == 0:
                pass
            status, reply = request(server, CHAT_PATH, body)
            assert status == 503 and "the queue is full (1 waiting)" in reply["error"]["message"]
            go_on.set()
        assert (running.result()[0], waiting.result()[0]) == (200, 200)


def test_a_device_that_failed_for_good_makes_the_server_unhealthy(models, examples, monkeypatch):
    def fail(*_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(serve_module, "complete_chats", fail)
    with serving(config_of(), models) as server:
        assert request(server, CHAT_PATH, {"messages": messages_of(examples[0])})[0] == 500
        status, reply = request(server, "/health")
        assert status == 503 and "CUDA error: an illegal memory access" in reply["error"]["message"]
        status, reply = request(server, CHAT_PATH, {"messages": messages_of(examples[0])})
        assert status == 503 and "start the server again" in reply["error"]["message"]


def test_a_failure_of_the_model_is_a_500_and_the_server_goes_on(models, examples, monkeypatch, capsys):
    monkeypatch.setattr(serve_module, "complete_chats", lambda *_: 1 / 0)
    with serving(config_of(), models) as server:
        status, reply = request(server, CHAT_PATH, {"messages": messages_of(examples[0])})
        assert status == 500 and "ZeroDivisionError" in reply["error"]["message"]
        assert request(server, "/health")[0] == 200
    assert "error: /v1/chat/completions: ZeroDivisionError" in capsys.readouterr().err


def test_an_address_that_cannot_be_used_is_named(models):
    with (
        serving(config_of(), models) as server,
        pytest.raises(InputError, match=r"cannot listen on 127.0.0.1, port \d+ \(Address already in use\)"),
        serving(config_of(port=server.server_address[1]), models),
    ):
        pass
