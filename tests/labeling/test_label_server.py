"""The page's server is killed while people work, by the script that also times it."""

import json
import sys

import pytest

from mmrlhf.files.bundled import folder
from tests.labeling.conftest import first, label_all, pairs


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(folder("eval") / "speed"))
    import label_server

    yield label_server
    del sys.modules["label_server"]


def test_a_kill_loses_nothing_that_was_acknowledged(script, monkeypatch, capsys):
    sizes = {"tasks": 200, "annotators": 2, "labels": 9, "kills": 1}
    monkeypatch.setattr(sys, "argv", ["label_server", *(f"--{name}={size}" for name, size in sizes.items())])
    script.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["lost"], result["lost_undos"], result["doubled"], result["kills"]) == (0, 0, 0, 1)
    assert (result["labels"], result["skips"], result["undos"]) == (18, 2, 2)
    assert result["acknowledged"] >= 18 and result["acknowledged_undos"] >= 2  # more around the kills
    # At the kill, each annotator may have one label on its way.
    assert 0 <= result["in_file"] - result["acknowledged"] <= 2


def test_what_is_not_in_the_file_is_lost(script, make_store):
    store = make_store(pairs(2))
    label_all(store, {"heron": [first(), first()]})
    tokens = [event.token for event in store.events("label")]
    heron = script.Annotator("http://127.0.0.1:1", "heron")
    heron.acknowledged = [(tokens[0], "label"), (tokens[1], "skip"), ("another", "label")]
    heron.acknowledged_undos = [1]
    found = script.count_losses(store.path, [heron])
    assert (found["in_file"], found["acknowledged"], found["lost"], found["lost_undos"]) == (2, 2, 2, 1)
