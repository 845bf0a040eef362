"""A store of tasks, annotators without a browser and with one, and the app that they use."""

import json
import re

import pytest
from PIL import Image
from starlette.testclient import TestClient

from mmrlhf.labeling.app import create_app
from mmrlhf.labeling.assignments import Assignments
from mmrlhf.labeling.pages import Pages
from mmrlhf.labeling.schedule import Schedule
from mmrlhf.labeling.sessions import Sessions
from mmrlhf.labeling.store import Store
from mmrlhf.labeling.tasks import read_tasks
from tests.helpers.annotators import come_in
from tests.labeling.browsing import CHROMIUM


class Clock:
    """A clock that tests set."""

    def __init__(self, value=1000.0):
        self.value = value

    def __call__(self):
        return self.value


@pytest.fixture
def write_rows(tmp_path):
    """Write rows about one picture, whose fields may be overridden, and return the file's path."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "red.png")

    def write(*rows, name="rows.jsonl"):
        defaults = {"images": ["red.png"], "prompt": "What is it?"}
        (tmp_path / name).write_text("".join(json.dumps(defaults | row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def pairs(number):
    return [{"id": f"row {i}", "prompt": f"Question {i}?", "answers": [f"First {i}.", f"Second {i}."]} for i in range(number)]


@pytest.fixture
def make_store(tmp_path, write_rows):
    """Return a store with the tasks of rows."""

    def make(rows, mode=None, gold=(), name="labels.db"):
        store = Store(tmp_path / name, create=True)
        store.add_tasks(read_tasks([write_rows(*rows)], mode, None, "train"))
        if gold:
            store.add_tasks(read_tasks([write_rows(*gold, name="gold.jsonl")], mode, None, "train", is_gold=True))
        return store

    return make


def assign(store, overlap=1, gold_every=0, order="file", **clocks):
    return Assignments(store, Schedule(overlap, gold_every, order, seed=0, secret="a"), **clocks)


class Person:
    """An annotator's browser without scripts."""

    def __init__(self, app, name="heron", token="", base_url="http://127.0.0.1:8010"):
        self.client = TestClient(app, base_url=base_url, raise_server_exceptions=False)
        self.joined = come_in(self.client, name, token)
        self.page = self.joined.text

    def look(self):
        self.page = self.client.get("/").text
        return self.page

    @property
    def fields(self):
        return dict(re.findall(r'name="(form_key|token|answer)" value="([^"]+)"', self.page))

    def send(self, path="/answer", json_reply=True, **form):
        fields = {name: self.fields[name] for name in ("form_key", "token") if name in self.fields}
        headers = {"Accept": "application/json"} if json_reply else {}
        return self.client.post(path, data=fields | form, headers=headers)

    def label(self, **form):
        """Label the task on the page, and look at the next one."""
        reply = self.send(**({"choice": "left", "strength": "2"} | form))
        self.look()
        return reply

    def undo(self):
        reply = self.send("/undo", answer=self.fields["answer"])
        self.look()
        return reply


@pytest.fixture
def make_app():
    """Return an app on a store."""

    def make(store, access_token=None, guidelines="Be fair.", assignments=None, lexicon=None, **settings):
        assignments = assignments or assign(store, **settings)
        pages = Pages("A <b>title</b>", guidelines, "You may store my labels.", lexicon)
        return create_app(assignments, Sessions(store, access_token, "You may store my labels."), pages)

    return make


def standing(store):
    """Return the labels that stand, as (annotator, row, content)."""
    from mmrlhf.labeling.results import read_labels

    found = read_labels(store)
    return [(found.names[label.annotator], label.task.name, dict(label.content)) for label in found.labels]


def label_all(store, labels_by_annotator):
    """Let each annotator give their labels to the tasks in turn."""
    work = assign(store, overlap=9)
    for name, labels in labels_by_annotator.items():
        annotator = store.add_annotator(name, f"{name}-code", 0.0, "yes")
        for label in labels:
            work.submit(annotator, work.current(annotator), "label", label, seconds=None)


def first(strength=2):
    return {"ranks": [1, 2], "strength": strength}


def second(strength=2):
    return {"ranks": [2, 1], "strength": strength}


TIE, BAD = {"ranks": [1, 1]}, {"ranks": [1, 1], "both_bad": True}


# ---- a browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Return a page that fails the test on any error of a script, or of the content policy."""
    contexts, problems = [], []

    def open_(**settings):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings}))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.problems = problems
        return page

    yield open_
    for context in contexts:
        context.close()
    assert problems == []
