"""Texts and pictures of others appear as what they are, and nothing else is served."""

import json
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from mmrlhf.labeling.export import export_labels
from mmrlhf.text.visible_text import visible
from tests.labeling.conftest import Person, pairs, standing


@pytest.fixture
def store(make_store):
    return make_store(pairs(3))


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "</textarea></template></div>",
    "\u202egnp.exe\u2066 \u200f",
    "\x1b[31mred\x00",
    "javascript:alert(1)",
]


def test_hostile_text_appears_as_text(make_store, make_app):
    modes = {"pairwise": 2, "ranking": 3, "claims": 1, "facts": 0}
    rows = [
        {"id": text, "prompt": text.replace("\0", "") + mode, "answers": [f"{text}{i}" for i in range(number)], "mode": mode}
        for text in HOSTILE
        for mode, number in modes.items()
    ]
    store = make_store(rows)
    person = Person(make_app(store, guidelines="<script>guide</script>"))
    for _ in range(len(rows)):
        page = person.page
        assert "<img src=x" not in page and "<script>alert" not in page and "<script>guide" not in page
        assert "{{ 7 * 7 }}" in page or "7 * 7" not in page
        assert not set(page) & set("\u202e\u2066\u200f\x1b\x00")
        assert len(re.findall("<script", page)) == 1 and page.count("</template>") <= 1
        assert re.search('<script type="module" src="/static/task.js">', page)
        assert not re.search(r"\son\w+=|style=|javascript:[^a]", page.replace("onerror=alert", ""))
        person.label(kind="skip")
    assert "Nothing is left" in person.page


def test_a_word_of_a_megabyte(make_store, make_app):
    store = make_store([{"answers": ["x" * 990_000, "short"]}, {"id": 2, "answers": ["y" * 990_000], "mode": "claims"}])
    person = Person(make_app(store))
    assert "x" * 990_000 in person.page
    person.label()
    assert "y" * 990_000 in person.page
    mark = json.dumps([{"first": 0, "last": 0, "reason": "absent", "correction": "z"}])
    assert person.label(spans=mark).status_code == 200
    assert standing(store)[1][2]["corrected"] == "z"


@given(text=st.text())
def test_visible_text_keeps_offsets_and_has_no_controls(text):
    shown = visible(text)
    assert len(shown) == len(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown) and "\u202e" not in shown


def test_joiners_of_emoji_and_scripts_stay():
    assert visible("👩\u200d👧 می\u200cخواهم\n\t") == "👩\u200d👧 می\u200cخواهم\n\t"
    assert visible("\u202ea\x1b") == "\ufffda\u241b"
    assert visible("a\r\nb\rc") == "a \nb\u240dc"


def test_every_response_has_the_headers(store, make_app):
    person = Person(make_app(store))
    for path in ("/", "/static/label.css", "/static/task.js", "/nowhere", "/images/x"):
        headers = person.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"


def test_pages_fetch_nothing_from_elsewhere(store, make_app):
    person = Person(make_app(store))
    for address in re.findall(r'(?:src|href|action)="([^"]+)"', person.page):
        assert address.startswith("/") and not address.startswith("//")
        if address.startswith(("/static", "/images")):
            assert person.client.get(address).status_code == 200


def test_only_pictures_of_tasks_are_served(store, make_app, tmp_path):
    person = Person(make_app(store))
    (address,) = re.findall(r'<img src="([^"]+)"', person.page)
    reply = person.client.get(address)
    assert reply.headers["content-type"] == "image/png" and reply.content == (tmp_path / "red.png").read_bytes()
    for path in ("red.png", "..%2fred.png", "%2fetc%2fpasswd", "0" * 64, str(tmp_path / "red.png").replace("/", "%2f")):
        assert person.client.get(f"/images/{path}").status_code == 404
    for path in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", ""):
        assert person.client.get(f"/static/{path}").status_code in (404, 405)
    stranger = TestClient(make_app(store), base_url="http://127.0.0.1:8010")
    assert stranger.get(address).status_code == 401


HOSTILE_NAMES = [
    '" onerror="alert(1).png',
    "'><script>alert(1).png",
    "\u202egnp.exe\u2066.png",
    "twain\nlines\r.png",
    "..%2f..%2fetc%2fpasswd.png",
    "{{ 7 * 7 }}.png",
]


def test_names_of_pictures_are_not_on_the_page_and_open_nothing(make_store, make_app, tmp_path):
    """Pictures are known by their content's hash; a name comes out of an export as it went in."""
    for number, name in enumerate(HOSTILE_NAMES):
        Image.new("RGB", (4 + number, 4), "green").save(tmp_path / name, format="PNG")
    store = make_store([{"id": n, "prompt": f"{n}?", "images": [name]} for n, name in enumerate(HOSTILE_NAMES)])
    person = Person(make_app(store))
    for name in HOSTILE_NAMES:
        (address,) = re.findall(r'<img src="([^"]+)" alt="Picture 1 of 1 of this task"', person.page)
        assert re.fullmatch(r"/images/[0-9a-f]{64}", address)
        assert person.client.get(address).content == (tmp_path / name).read_bytes()
        assert person.client.get(f"/images/{quote(name, safe='')}").status_code == 404
        assert not any(part in person.page for part in ("alert(", "<script>", "gnp", "twain", "passwd", "7 * 7"))
        assert person.label(facts='[{"kind": "object", "text": "x"}]').status_code == 200
    for target, names_of in (("labels", lambda row: row["images"]), ("facts", lambda row: [row["image"]])):
        export_labels(str(store.path), target, str(tmp_path / f"{target}.jsonl"))
        rows = [json.loads(line) for line in (tmp_path / f"{target}.jsonl").read_text().splitlines()]
        assert [names_of(row) for row in rows] == [[name] for name in HOSTILE_NAMES]


def test_a_picture_that_has_changed_is_not_shown(store, make_app, tmp_path):
    person = Person(make_app(store))
    (address,) = re.findall(r'<img src="([^"]+)"', person.page)
    (tmp_path / "red.png").write_bytes(b"<script>")
    assert person.client.get(address).status_code == 410
    (tmp_path / "red.png").unlink()
    assert person.client.get(address).status_code == 410


def test_formats_that_browsers_do_not_show_are_converted(make_store, make_app, tmp_path):
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "blue.tiff")
    person = Person(make_app(make_store([{"images": ["blue.tiff"], "answers": ["a", "b"]}])))
    (address,) = re.findall(r'<img src="([^"]+)"', person.page)
    reply = person.client.get(address)
    assert reply.headers["content-type"] == "image/png" and reply.content.startswith(b"\x89PNG")
