"""Ctrl-C in a real process: once, it answers what waits; twice, it does not wait for the model."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.slow  # each starts a server of its own

SERVER = """
import pathlib, sys, torch
from mmrlhf import serve
from mmrlhf.cli import app as cli
from mmrlhf.files import stop_signals

def run_batch(models, config, key, items):
    print("the model is at work", flush=True)
    while not pathlib.Path(sys.argv[1], "go_on").exists():
        torch.randn(300, 300) @ torch.randn(300, 300)
    return [{"object": "answer"} for _ in items]

stop_signals.REPEAT_SECONDS = float(sys.argv[2])
serve.run_batch, serve.load_models = run_batch, lambda config: serve.Models(object(), None)
sys.exit(cli.main(["serve", sys.argv[1], "--port", "0"]))
"""
"""A server whose model answers once there is a file `go_on`."""


def ask(address):
    """Return the status and the JSON of a request."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
    request = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def is_closed(address):
    """Return whether a server takes no more requests."""
    try:
        urllib.request.urlopen(f"{address}/health", timeout=60).close()
    except urllib.error.HTTPError as error:
        return error.code == 503
    return False


def wait_until_closed(address, max_requests=2400):
    """Ask until a server takes no more requests; fail after many, so that no test runs for ever."""
    for _ in range(max_requests):
        if is_closed(address):
            return
        time.sleep(0.05)
    pytest.fail(f"the server still takes requests after {max_requests}")


@contextlib.contextmanager
def working_server(folder, repeat_seconds=0):
    """Yield a server whose model is at work, its address, and the reply to a request that waits."""
    command = [sys.executable, "-c", SERVER, str(folder), str(repeat_seconds)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            address = re.search(r" at (http://\S+):? ", server.stdout.readline())[1].rstrip(":")
            reply = pool.submit(ask, address)
            assert server.stdout.readline() == "the model is at work\n"
            yield server, address, reply
        finally:
            server.kill()


@pytest.mark.parametrize(("num_signals", "status", "exit_code"), [(1, 200, 0), (2, 503, 130)])
def test_ctrl_c_answers_what_waits_and_a_second_one_does_not_wait(tmp_path, num_signals, status, exit_code):
    with working_server(tmp_path) as (server, _, reply):
        server.send_signal(signal.SIGINT)
        assert server.stdout.readline().startswith("stopping: answering the requests that wait")
        if num_signals == 2:
            server.send_signal(signal.SIGINT)
        else:
            (tmp_path / "go_on").touch()
        assert reply.result()[0] == status and server.wait(timeout=60) == exit_code


def test_a_notice_that_nobody_reads_drops_no_request(tmp_path):
    """Ctrl-C ends both sides of `mmrlhf serve RUN | tee log`."""
    with working_server(tmp_path) as (server, address, reply):
        server.stdout.close()
        server.send_signal(signal.SIGINT)
        wait_until_closed(address)
        (tmp_path / "go_on").touch()
        assert reply.result()[0] == 200 and server.wait(timeout=60) == 0


def test_a_second_ctrl_c_ends_a_server_whose_notices_nobody_reads(tmp_path):
    with working_server(tmp_path) as (server, address, reply):
        server.stdout.close()
        server.send_signal(signal.SIGINT)
        wait_until_closed(address)
        server.send_signal(signal.SIGINT)
        assert reply.result()[0] == 503 and server.wait(timeout=60) == 130


def test_a_repeated_signal_is_the_same_one_and_another_is_a_second(tmp_path):
    """Launchers pass on what Slurm or `timeout` has sent to the server as well."""
    with working_server(tmp_path, repeat_seconds=3600) as (server, address, reply):
        for _ in range(3):
            server.send_signal(signal.SIGTERM)
            wait_until_closed(address)
        assert not reply.done()
        server.send_signal(signal.SIGINT)
        assert reply.result()[0] == 503 and server.wait(timeout=60) == 130
