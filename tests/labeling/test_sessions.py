"""Who somebody is: cookies, names, codes, and what they have agreed to."""

import re

import pytest
from starlette.testclient import TestClient

from mmrlhf.labeling.app import create_app
from mmrlhf.labeling.pages import Pages
from mmrlhf.labeling.sessions import COOKIE_SECONDS, DAY_SECONDS, Sessions, consent_key
from tests.labeling.conftest import Person, assign, pairs, standing


@pytest.fixture
def store(make_store):
    return make_store(pairs(3))


def test_cookies_cannot_be_forged_and_are_hidden_from_scripts(store, make_app):
    app = make_app(store)
    person = Person(app)
    cookie = person.joined.history[0].headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    name, value = cookie.split(";")[0].split("=", 1)
    Person(app, "robin")
    _, issued, signature = value.split(".")
    changed = [
        f"2.{issued}.{signature}",
        f"1.{int(issued) + 1}.{signature}",
        f"1.{issued}.{'0' * 64}",
        f"1.{signature}",
        f"1.{issued}.",
    ]
    for forged in (*changed, "", "1", "-1.x.x", f"{'9' * 5000}.1.{signature}", f"²{value[1:]}"):
        client = TestClient(app, base_url="http://127.0.0.1:8010")
        page = client.get("/", headers=[(b"cookie", f"{name}={forged}".encode())]).text
        assert "Your name here" in page


def test_cookies_end_on_the_server_too(store, make_app, monkeypatch):
    person = Person(make_app(store))
    ((name, value),) = person.client.cookies.items()
    issued = int(value.split(".")[1])
    for now, page in ((issued + COOKIE_SECONDS - 1, "Question 0?"), (issued + COOKIE_SECONDS, "Your name here")):
        monkeypatch.setattr("mmrlhf.labeling.sessions.time.time", lambda now=now: now)
        assert page in person.client.get("/", headers={"cookie": f"{name}={value}"}).text


def test_a_visit_after_a_day_renews_the_cookie(store, make_app, monkeypatch):
    """Who comes every day is never asked for a code."""
    person = Person(make_app(store))
    ((name, value),) = person.client.cookies.items()
    issued = int(value.split(".")[1])
    now = issued + DAY_SECONDS - 1
    monkeypatch.setattr("mmrlhf.labeling.sessions.time.time", lambda: now)
    assert "set-cookie" not in person.client.get("/").headers
    for _ in range(40):
        now += DAY_SECONDS
        reply = person.client.get("/")
        assert "Question 0?" in reply.text and f"Max-Age={COOKIE_SECONDS}" in reply.headers["set-cookie"]
    assert person.client.cookies[name].split(".")[1] == str(now)
    forged = f"{value[:-1]}{'01'[value[-1] == '0']}"  # renews nothing
    assert (
        "set-cookie"
        not in TestClient(person.client.app, base_url="http://127.0.0.1:8010", cookies={name: forged}).get("/").headers
    )


def test_a_cookie_from_the_future_is_none(store, make_app, monkeypatch):
    """The clock was ahead when it was issued; it would be valid for that much longer."""
    person = Person(make_app(store))
    ((name, value),) = person.client.cookies.items()
    issued = int(value.split(".")[1])
    for now, page in ((issued - DAY_SECONDS, "Question 0?"), (issued - DAY_SECONDS - 1, "Your name here")):
        monkeypatch.setattr("mmrlhf.labeling.sessions.time.time", lambda now=now: now)
        assert page in person.client.get("/", headers={"cookie": f"{name}={value}"}).text


def test_a_name_is_its_owners(store, make_app):
    app = make_app(store)
    heron = Person(app)
    assert Person(app, "Heron").joined.status_code == 403  # the same name, in capitals
    code = store.find_annotator("heron")[1]
    assert code in heron.page
    again = TestClient(app, base_url="http://127.0.0.1:8010").post("/join", data={"name": "heron", "code": code.upper()})
    assert "Question 0?" in again.text


@pytest.mark.parametrize("name", ["", " ", "<script>", "a\u202eb", "x" * 41, "../etc", "a\nb\x00"])
def test_odd_names_are_refused(store, make_app, name):
    assert Person(make_app(store), name).joined.status_code == 403
    assert store.annotators() == {}


def test_nobody_starts_without_consent(store, make_app):
    client = TestClient(make_app(store), base_url="http://127.0.0.1:8010")
    assert "tick the box" in client.post("/join", data={"name": "heron"}).text
    assert store.annotators() == {}
    Person(make_app(store))
    assert next(iter(store.events())).content == {"consent": "You may store my labels."}


def test_a_consent_line_that_has_changed_is_accepted_again(store, make_app):
    person = Person(make_app(store))
    old_form = {name: person.fields[name] for name in ("form_key", "token")} | {"choice": "left", "strength": "2"}

    def restart(line):
        app = create_app(assign(store), Sessions(store, None, line), Pages("t", "", line))
        person.client = TestClient(app, base_url="http://127.0.0.1:8010", cookies=person.client.cookies)

    restart("You may sell <b>my</b> labels.")
    assert "You may sell &lt;b&gt;my&lt;/b&gt; labels." in person.look() and "Question 0?" not in person.page
    reply = person.client.post("/answer", data=old_form, headers={"Accept": "application/json"})
    assert reply.status_code == 403 and "has changed" in reply.json()["error"] and standing(store) == []
    assert "tick the box" in person.send("/consent").text and "Question 0?" not in person.look()
    line = consent_key("You may sell <b>my</b> labels.")
    assert "Question 0?" in person.send("/consent", consent="yes", consent_line=line).text
    assert person.client.post("/answer", data=old_form, headers={"Accept": "application/json"}).status_code == 200
    accepted = [event.content["consent"] for event in store.events("joined")]
    assert accepted == ["You may store my labels.", "You may sell <b>my</b> labels."]
    restart("You may sell <b>my</b> labels.")
    assert "Question 1?" in person.look()
    restart("You may store my labels.")  # not the line that they have accepted last
    assert "Question 1?" not in person.look()


def test_nobody_accepts_a_line_that_their_page_did_not_show(store, make_app):
    """The server has started with another line while the form was open."""

    def app_with(line):
        return create_app(assign(store), Sessions(store, None, line), Pages("t", "", line))

    def fields_of(page):
        return dict(re.findall(r'name="(form_key|consent_line)" value="([^"]+)"', page)) | {"consent": "yes"}

    def client_of(line, **settings):
        return TestClient(app_with(line), base_url="http://127.0.0.1:8010", **settings)

    old = fields_of(client_of("First line.").get("/").text)
    client = client_of("Second line.")
    reply = client.post("/join", data=old | {"name": "heron"})
    assert reply.status_code == 403 and "has changed" in reply.text and 'value="heron"' in reply.text
    assert store.annotators() == {} and "Second line." in reply.text
    assert "Question 0?" in client.post("/join", data=fields_of(reply.text) | {"name": "heron"}).text
    old = fields_of(client_of("Third line.", cookies=client.cookies).get("/").text)
    client = client_of("Fourth line.", cookies=client.cookies)
    reply = client.post("/consent", data=old)
    assert reply.status_code == 403 and "has changed" in reply.text and "Fourth line." in reply.text
    assert "Question 0?" in client.post("/consent", data=fields_of(reply.text)).text
    assert [event.content["consent"] for event in store.events("joined")] == ["Second line.", "Fourth line."]


def test_a_form_that_does_not_name_its_line_agrees_to_nothing(store, make_app):
    """As from a script: nobody has read a line."""
    client = TestClient(make_app(store), base_url="http://127.0.0.1:8010")
    without = {"name": "heron", "consent": "yes"}
    for line, problem in (({}, "does not say which line you agree to"), ({"consent_line": ""}, "has changed")):
        reply = client.post("/join", data=without | line)
        assert reply.status_code == 403 and problem in reply.text and 'value="heron"' in reply.text
    assert store.annotators() == {} and list(store.events()) == []
    person = Person(make_app(store))
    app = create_app(assign(store), Sessions(store, None, "Another line."), Pages("t", "", "Another line."))
    person.client = TestClient(app, base_url="http://127.0.0.1:8010", cookies=person.client.cookies)
    reply = person.send("/consent", consent="yes")
    assert reply.status_code == 403 and "does not say which line you agree to" in reply.text
    assert len(list(store.events("joined"))) == 1


def test_who_comes_back_by_code_accepts_the_line_too(store, make_app):
    Person(make_app(store))
    app = create_app(assign(store), Sessions(store, None, "Another line."), Pages("t", "", "Another line."))
    come_back = {"name": "heron", "code": store.find_annotator("heron")[1]}
    accepted = {"consent": "yes", "consent_line": consent_key("Another line.")}
    for consent, page in (({}, "has changed"), (accepted, "Question 0?")):
        client = TestClient(app, base_url="http://127.0.0.1:8010")
        assert page in client.post("/join", data=come_back | consent).text
    assert len(list(store.events("joined"))) == 2
