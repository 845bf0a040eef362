"""One server over HTTP: its address and key, what it lacks, and how long it is waited for."""

import os
import socket

import httpx2
import pytest

from mmrlhf.engine import vllm_server
from mmrlhf.engine.vllm_requests import EngineError
from mmrlhf.engine.vllm_server import Server


def test_connections_are_kept_alive_unless_a_proxy_holds_them(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    kept_alive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert kept_alive in Server("http://10.0.0.1:8000", 0)._client._transport._pool._socket_options
    monkeypatch.setenv("http_proxy", "http://10.0.0.2:3128")
    client = Server("http://10.0.0.1:8000", 0)._client
    assert client._transport_for_url(httpx2.URL("http://10.0.0.1:8000")) is not client._transport


def test_what_a_server_lacks_is_found_before_the_run(vllm_fake):
    Server(vllm_fake.url, 0).check(4096)
    with pytest.raises(EngineError, match="takes 4096 tokens, and max_length is 5000: start it with --max-model-len 5000"):
        Server(vllm_fake.url, 0).check(5000)
    vllm_fake.allows_adapters = False
    with pytest.raises(EngineError, match="has no /v1/unload_lora_adapter: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        Server(vllm_fake.url, 0).check(1)
    with pytest.raises(EngineError, match=r"127.0.0.1:9 cannot be reached \(.*\): start the server, or correct the address"):
        Server("http://127.0.0.1:9", 0).check(1)


@pytest.mark.parametrize("key", ["secret", "secret\r", " secret\n"])
def test_api_key_goes_into_the_header(monkeypatch, key):
    monkeypatch.setenv("VLLM_API_KEY", key)
    assert Server("http://127.0.0.1:9", 0)._client.headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("key", ["secr\net", "secrét"])
def test_a_key_that_no_header_may_hold_is_not_printed(monkeypatch, key):
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(EngineError, match="VLLM_API_KEY holds characters that no key has") as caught:
        Server("http://127.0.0.1:9", 0)
    assert "secr" not in str(caught.value)


def test_what_is_no_address_is_refused():
    with pytest.raises(EngineError, match=r"rollout_engine http://\[::1 is not an address"):
        Server("http://[::1", 0)


def test_patience_counts_from_the_first_failure(monkeypatch):
    """A server that breaks the connection after a long answer is asked again."""
    clock, server = [0.0], Server("http://127.0.0.1:9", patience=2.0)
    calls = []

    def request(*_, **__):
        calls.append(clock[0])
        if len(calls) == 1:
            clock[0] += 3600.0
            raise httpx2.ReadError("gone")
        return httpx2.Response(200, json={"ok": True})

    monkeypatch.setattr(server._client, "request", request)
    monkeypatch.setattr(vllm_server, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(vllm_server.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(vllm_server.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    assert server.request("GET", "/x") == {"ok": True} and calls == [0.0, 3600.01]


@pytest.mark.parametrize(("status", "is_gone"), [(503, False), (504, True)])
def test_patience_counts_anew_after_long_work(monkeypatch, status, is_gone):
    """It is away at 0 s, then works for an hour and is away again. A 504 of a proxy is no work."""
    clock, server = [0.0], Server("http://127.0.0.1:9", patience=2.0)
    replies = [(0.0, 503), (3600.0, status), (0.0, 503), (0.0, 200)]
    calls = []

    def request(*_, **__):
        calls.append(clock[0])
        seconds, reply = replies[len(calls) - 1]
        clock[0] += seconds
        return httpx2.Response(reply, json={"ok": True})

    monkeypatch.setattr(server._client, "request", request)
    monkeypatch.setattr(vllm_server, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(vllm_server.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(vllm_server.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    if is_gone:
        with pytest.raises(EngineError, match="did not answer for 2 seconds"):
            server.request("GET", "/x")
        assert calls == [0.0, 0.5]
    else:
        assert server.request("GET", "/x") == {"ok": True} and calls == [0.0, 0.5, 3601.0, 3602.0]
