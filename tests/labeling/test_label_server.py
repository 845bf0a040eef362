"""The page's server is killed while people work, by the script that also times it."""

import json
import sys
import threading

import httpx2 as httpx
import pytest

from mmrlhf.files.bundled import folder
from tests.labeling.conftest import first, label_all, pairs


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(folder("eval") / "speed"))
    import label_server

    yield label_server
    del sys.modules["label_server"]


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_acknowledged(script, monkeypatch, capsys):
    sizes = {"tasks": 200, "annotators": 2, "labels": 9, "kills": 1}
    monkeypatch.setattr(sys, "argv", ["label_server", *(f"--{name}={size}" for name, size in sizes.items())])
    script.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["lost"], result["lost_undos"], result["doubled"], result["kills"]) == (0, 0, 0, 1)
    assert (result["labels"], result["skips"], result["undos"]) == (18, 2, 2)
    # Each annotator did something after the kill, besides the labels, skips and undos above.
    assert sum(result[f"acknowledged{kind}"] for kind in ("", "_skips", "_undos")) >= 18 + 2 + 2 + 2
    # At the kill, each annotator may have one label on its way.
    assert 0 <= result["in_file"] - result["acknowledged"] <= 2


def test_what_was_acknowledged_is_noted_before_the_next_page(script):
    """Else a kill during that request would hide a lost label."""

    def answer(request):
        methods.append(request.method)
        if request.method == "POST":
            return httpx.Response(200, json={"note": ""})
        if "POST" not in methods:
            return httpx.Response(200, text='name="form_key" value="key" name="token" value="task" name="answer" value="7"')
        raise httpx.ConnectError("killed")

    for num_before, noted in ((0, ([("task", "label")], [])), (9, ([], [7]))):  # the tenth action is an undo
        methods, heron = [], script.Annotator("http://127.0.0.1:1", "heron")
        heron._client, heron._num_actions = (
            httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer)),
            num_before,
        )
        with pytest.raises(httpx.ConnectError):
            heron.act()
        assert (heron.acknowledged, heron.acknowledged_undos) == noted


def test_a_refusal_ends_the_work(script):
    """Only a server that is away is waited for."""
    heron = script.Annotator("http://127.0.0.1:1", "heron")
    refused = httpx.MockTransport(lambda request: httpx.Response(403))
    heron._client = httpx.Client(base_url="http://server", transport=refused)
    with pytest.raises(httpx.HTTPStatusError):
        heron.work_through_crashes(threading.Event())


def test_annotators_who_stop_before_the_last_kill_are_noticed(script):
    heron = script.Annotator("http://127.0.0.1:1", "heron")
    no_task = httpx.MockTransport(lambda request: httpx.Response(200, text="Nothing is left"))
    heron._client = httpx.Client(base_url="http://server", transport=no_task)
    with pytest.raises(RuntimeError, match="did nothing after the last kill"):
        script.crash(script.ServerProcess("tasks", "labels"), [heron], 0, seed=0)


def test_what_is_not_in_the_file_is_lost(script, make_store):
    store = make_store(pairs(2))
    label_all(store, {"heron": [first(), first()]})
    tokens = [event.token for event in store.events("label")]
    heron = script.Annotator("http://127.0.0.1:1", "heron")
    heron.acknowledged = [(tokens[0], "label"), (tokens[1], "skip"), ("another", "label")]
    heron.acknowledged_undos = [1]
    found = script.count_losses(store.path, [heron])
    assert (found["in_file"], found["acknowledged"], found["lost"], found["lost_undos"]) == (2, 2, 2, 1)
