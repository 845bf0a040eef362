"""Files of answers, an arena that is served, and voters without a browser."""

import json
import random
import re

import pytest
from PIL import Image
from starlette.testclient import TestClient

from mmrlhf.arena.kept_answers import make_pairs, read_answers_by_id
from mmrlhf.arena.ledger import Ledger
from mmrlhf.labeling.store import Store
from tests.helpers.annotators import come_in


@pytest.fixture
def write_answers(tmp_path):
    """Write a model's answers, one for each question, and return the file's path."""

    def write(model, texts, **fields):
        rows = []
        for number, text in enumerate(texts):
            image = tmp_path / f"{number}.png"
            if not image.exists():
                Image.new("RGB", (8, 6), (number * 7 % 256, 40, 90)).save(image)
            prompt = [{"role": "user", "content": f"What is in picture {number}?"}]
            category = ("count", "colour")[number % 2]
            rows.append(
                {"id": f"q{number}", "images": [image.name], "prompt": prompt, "answer": text, "category": category} | fields
            )
        path = tmp_path / f"{model}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def kept(name, number=12, quality="good"):
    """Return the answers of a model called `name`."""
    return [f"A {quality} answer {i}, number {sum(map(ord, name))}." for i in range(number)]


@pytest.fixture
def make_arena(tmp_path):
    """Return the store and the ledger of an arena with these files of answers."""
    opened = []

    def make(*paths, identity_words=()):
        store = Store(tmp_path / "votes.db", create=True)
        ledger = Ledger(store.path)
        opened.extend([store, ledger])
        if paths:
            answers = {path.rpartition("/")[2].removesuffix(".jsonl"): read_answers_by_id(path, None, "train") for path in paths}
            tasks, pairs = make_pairs(answers, {}, identity_words, random.Random(0))
            ledger.add_pairs(store, tasks, pairs)
        return store, ledger

    yield make
    for table in opened:
        table.close()


class Voter:
    """A voter's browser without scripts, at an app or at a server's URL."""

    def __init__(self, client, name="heron"):
        self.client = client
        self.page = come_in(client, name).text

    @property
    def fields(self):
        return dict(re.findall(r'name="(form_key|token)" value="([^"]+)"', self.page))

    @property
    def answers(self):
        """The two answers as they appear."""
        return re.findall(r'<div class="text" dir="auto">(.*?)</div>', self.page, re.S)[:2]

    def vote(self, choice, **form):
        """Vote on the pair on the page, and look at the next one."""
        fields = self.fields | {"choice": choice, "strength": "2"} | form
        reply = self.client.post("/answer", data=fields, headers={"Accept": "application/json"})
        self.page = self.client.get("/").text
        return reply

    def vote_for(self, wanted):
        """Vote for the answer that `wanted` chooses of the two on the page, until none is left."""
        count = 0
        while len(self.answers) == 2:
            self.vote(("left", "right", "tie")[wanted(*self.answers)])
            count += 1
        return count


def voter_at(app, name="heron"):
    return Voter(TestClient(app, base_url="http://127.0.0.1:8020", raise_server_exceptions=False), name)
