"""Forged and repeated forms, other sites, other annotators."""

import json
import re
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from mmrlhf.claims import extract_claims
from mmrlhf.labeling.app import create_app
from mmrlhf.labeling.forms import claim_field, claims_of
from mmrlhf.labeling.guard import MAX_BODY_BYTES, MAX_SIGNED_OUT_BYTES
from mmrlhf.labeling.pages import Pages
from mmrlhf.labeling.sessions import Sessions
from mmrlhf.labeling.store import Store
from mmrlhf.labeling.tasks import MAX_TEXT, read_tasks
from tests.labeling.conftest import Person, assign, pairs, standing


@pytest.fixture
def store(make_store):
    return make_store(pairs(3))


# ---- labels --------------------------------------------------------------------------------------


def test_a_label_is_in_terms_of_the_row_not_of_the_page(store, make_app):
    person = Person(make_app(store))
    first = re.findall(r'<div class="text" dir="auto">([^<]+)</div>', person.page)[0]
    assert person.label(choice="left", strength="3").json() == {"next": "/", "note": ""}
    ((name, row, label),) = standing(store)
    assert (name, row) == ("heron", "row 0")
    assert label == {"ranks": [1, 2] if first == "First 0." else [2, 1], "strength": 3}


@pytest.mark.parametrize(("choice", "label"), [("tie", {"ranks": [1, 1]}), ("both_bad", {"ranks": [1, 1], "both_bad": True})])
def test_ties(store, make_app, choice, label):
    person = Person(make_app(store))
    person.label(choice=choice)
    assert standing(store)[0][2] == label


def test_a_browser_without_scripts_is_sent_on(store, make_app):
    person = Person(make_app(store))
    reply = person.send(json_reply=False, choice="left", strength="1", kind="label")
    assert reply.status_code == 200 and "Question 1?" in reply.text and len(standing(store)) == 1


def test_skip_flag_and_undo(store, make_app):
    person = Person(make_app(store))
    person.label(kind="skip")
    person.label(kind="flag", note="The picture is <i>broken</i>.")
    assert "Question 2?" in person.page and standing(store) == []
    person.undo()
    assert "Question 1?" in person.page
    assert person.undo().json()["note"] == ""
    assert "Question 0?" in person.page
    kinds = [event.kind for event in store.events()]
    assert kinds == ["joined", "shown", "skip", "shown", "flag", "shown", "undo", "shown", "undo", "shown"]


@pytest.mark.parametrize("number", ["9" * 30, "9" * 5000, "0"])
def test_undo_of_no_answer(store, make_app, number):
    person = Person(make_app(store))
    person.label()
    assert person.send("/undo", answer=number).json()["note"] == "there is nothing to take back"
    assert len(standing(store)) == 1


def test_replayed_late_and_duplicate_forms(store, make_app):
    person = Person(make_app(store))
    old = person.fields
    person.label()
    for _ in range(3):
        reply = person.client.post(
            "/answer", data=old | {"choice": "right", "strength": "1"}, headers={"Accept": "application/json"}
        )
        assert reply.json()["note"] == "this task has your answer already"
    assert len(standing(store)) == 1


def test_two_tabs_of_one_annotator(store, make_app):
    person = Person(make_app(store))
    first_tab = person.fields
    person.look()
    assert person.fields == first_tab  # both show the same task under the same token
    person.label()
    person.client.post("/answer", data=first_tab | {"choice": "tie"})
    assert len(standing(store)) == 1


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"token": "forged"}, 400),
        ({"token": ""}, 400),
        ({"form_key": "0" * 64}, 403),
        ({"form_key": "\u00e9"}, 403),
        ({"kind": "joined"}, 400),
        ({"choice": "middle"}, 400),
        ({"strength": "9"}, 400),
        ({"note": "x" * 5000}, 400),
    ],
)
def test_forged_forms_record_nothing(store, make_app, form, status):
    person = Person(make_app(store))
    reply = person.send(**({"choice": "left", "strength": "2"} | form))
    assert reply.status_code == status and reply.json()["error"]
    assert standing(store) == []


def test_a_token_of_another_annotator_is_refused(store, make_app):
    app = make_app(store)
    heron, robin = Person(app), Person(app, "robin")
    reply = robin.send(token=heron.fields["token"], choice="left", strength="2")
    assert reply.status_code == 400 and standing(store) == []


def test_the_answer_of_another_annotator_cannot_be_taken_back(store, make_app):
    app = make_app(store)
    heron, robin = Person(app), Person(app, "robin")
    heron.label()
    robin.label()
    assert robin.send("/undo", answer=heron.fields["answer"]).json()["note"] == "there is nothing to take back"
    assert robin.send("/undo", form_key=heron.fields["form_key"], answer=heron.fields["answer"]).status_code == 403
    assert len(standing(store)) == 2


@pytest.fixture(scope="module")
def person_of_all_modes(tmp_path_factory):
    """Somebody with many tasks of every mode."""
    folder = tmp_path_factory.mktemp("modes")
    modes = {"claims": ["A red cup."], "facts": [], "pairwise": ["a", "b"], "ranking": ["a", "b", "c"]}
    rows = [{"images": [], "prompt": f"{n}?", "answers": a, "mode": m} for n in range(60) for m, a in modes.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(folder / "labels.db", create=True)
    store.add_tasks(read_tasks([str(folder / "rows.jsonl")], None, None, "train"))
    return Person(create_app(assign(store), Sessions(store, None, ""), Pages("t", "", "")))


CLAIM = claim_field(claims_of("A red cup.")[0])
FIELDS = ["choice", "strength", "kind", "note", "spans", "facts", CLAIM, "corrected", "rank-0", "seconds"]


VALUES = [
    "label",
    "skip",
    "1",
    "[]",
    "[{}]",
    "nan",
    '[{"kind": ["object"], "text": "x"}]',
    r'[{"kind": "object", "text": "\ud800"}]',
]
VALUES += [
    json.dumps([{"first": 0, "last": 0, "reason": reason, "correction": "x"}]) for reason in ("absent", ["absent"], {}, None)
]


@given(form=st.dictionaries(st.sampled_from(FIELDS), st.text() | st.sampled_from(VALUES)))
@settings(max_examples=60)
def test_wild_forms_never_fail(form, person_of_all_modes):
    assert person_of_all_modes.send(**form).status_code in (200, 400)
    person_of_all_modes.look()


def test_claims_are_extracted_once_for_views_saves_and_undos(make_store, make_app, monkeypatch):
    extracted = []
    monkeypatch.setattr("mmrlhf.labeling.forms.extract_claims", lambda *given: extracted.append(given) or extract_claims(*given))
    store = make_store([{"answers": ["A red cup that no other test has."], "mode": "claims"}])
    person = Person(make_app(store))
    person.look()
    field = re.search(r'name="(claim-\w+)"', person.page)[1]
    person.label(**{field: "true"})
    person.undo()
    assert f'name="{field}"' in person.page and len(extracted) == 1


# ---- who may ask ---------------------------------------------------------------------------------


def test_only_this_machine_is_answered_without_a_token(store, make_app):
    client = TestClient(make_app(store), base_url="http://evil.example")
    assert client.get("/").status_code == 403
    assert TestClient(make_app(store), base_url="http://localhost:8010").get("/").status_code == 200


def test_elsewhere_a_token_is_needed(store, make_app):
    app = make_app(store, access_token="sesame")
    refused = Person(app, base_url="http://192.168.0.9:8010")
    assert refused.joined.status_code == 403 and "not the token of this server" in refused.page
    assert refused.client.get("/images/" + "0" * 64).status_code == 401
    person = Person(app, "robin", token="sesame", base_url="http://192.168.0.9:8010")
    assert "Question 0?" in person.page
    assert 'value="sesame"' in refused.client.get("/?token=sesame").text  # the link that the command prints


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://["},
        {"Origin": "http://evil.example@127.0.0.1:8010"},
    ],
)
def test_forms_of_other_sites_are_refused(store, make_app, headers):
    person = Person(make_app(store))
    form = person.fields | {"choice": "left", "strength": "2"}
    for path in ("/answer", "/join", "/undo", "/leave"):
        assert person.client.post(path, data=form, headers=headers).status_code == 403
    assert standing(store) == []
    same = {"Origin": "http://127.0.0.1:8010", "Sec-Fetch-Site": "same-origin", "Accept": "application/json"}
    assert person.client.post("/answer", data=form, headers=same).status_code == 200


def test_large_and_odd_bodies(store, make_app):
    person = Person(make_app(store))
    large = person.client.post("/answer", content=b"x" * (MAX_BODY_BYTES + 1), headers={"Accept": "application/json"})
    assert large.status_code == 413 and large.json() == {"error": "the form is larger than 16 MiB: shorten it"}
    odd_length = person.client.post("/answer", content=b"x", headers={"Content-Length": "9" * 5000})
    assert odd_length.status_code == 413

    def pieces():
        for _ in range(MAX_BODY_BYTES // (1 << 20) + 1):
            yield b"x" * (1 << 20)

    form_type = {"Content-Type": "application/x-www-form-urlencoded"}
    assert person.client.post("/answer", content=pieces(), headers=form_type).status_code == 413  # without a length
    assert person.client.post("/answer", json={}).status_code == 415
    assert person.client.post("/answer", content=b"a=%ff", headers=form_type).status_code == 400
    assert person.client.post("/answer", content="&".join(f"f{i}=1" for i in range(1000)), headers=form_type).status_code == 400
    assert person.client.delete("/").status_code == 405
    assert standing(store) == []


def test_strangers_send_small_forms_only(store, make_app):
    stranger = TestClient(make_app(store), base_url="http://127.0.0.1:8010")
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    whole = b"x" * (MAX_SIGNED_OUT_BYTES + 1)
    for content in (whole, iter([whole])):  # with and without a length
        reply = stranger.post("/join", content=content, headers=headers)
        assert reply.status_code == 413 and "come in again" in reply.json()["error"]
    (name,) = Person(make_app(store)).client.cookies
    forged = headers | {"Cookie": f"{name}=1.1.{'0' * 64}"}
    assert stranger.post("/answer", content=whole, headers=forged).status_code == 413
    assert Person(make_app(store), "robin").client.post("/answer", content=whole, headers=headers).status_code == 403


def test_the_longest_corrected_answer_fits_into_a_form():
    character = "\U00020000"  # of twelve bytes, percent-encoded
    assert len(urlencode({"corrected": character})) == len("corrected=") + 12
    assert 12 * (MAX_TEXT + 10_000) + (1 << 20) < MAX_BODY_BYTES  # with a megabyte for all else


# ---- what annotators must not learn --------------------------------------------------------------


def test_models_gold_and_other_labels_are_not_on_the_page(make_store, make_app):
    answers = [{"text": f"Text {i}.", "model": f"secret-model-{i}"} for i in range(2)]
    rows = [{"id": f"secret row {n}", "prompt": f"{n}?", "answers": answers} for n in range(3)]
    gold = [{"id": "secret gold", "prompt": "Gold?", "chosen": "Right.", "rejected": "Wrong."}]
    store = make_store(rows, gold=gold)
    app = make_app(store, overlap=2, gold_every=3)
    robin = Person(app, "robin")
    robin.label(note="secret note")
    heron = Person(app)
    pages = [heron.page]
    while "Nothing is left" not in heron.page:
        heron.label()
        pages.append(heron.page)
    everything = "".join(pages)
    assert "secret" not in everything and "robin" not in everything
    (golden,) = (page for page in pages if "Gold?" in page)
    ordinary = pages[2 if pages[1] == golden else 1]  # not the first page, which has nothing to take back
    # Apart from its texts, tokens and counts, a gold question's page is that of any task.
    golden, ordinary = (
        re.sub(r"Gold|Right|Wrong|Text \d|value=\"[^\"]*\"|data-token=\"[^\"]+\"|\d+", "", page) for page in (golden, ordinary)
    )
    assert golden == ordinary


def test_sides_say_nothing_about_the_row(make_store, make_app):
    store = make_store([{"id": i, "prompt": f"{i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)])
    person = Person(make_app(store))
    good_left = 0
    for _ in range(40):
        good_left += re.findall(r'dir="auto">(good|bad)', person.page)[0] == "good"
        person.label()
    assert 6 < good_left < 34  # 4.4 standard deviations on either side


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"prompt": "Compare <image> and <image>."}, "Compare [picture 1] and [picture 2]."),
        ({"prompt": "Compare."}, "Compare."),
        ({"prompt": "<image><image>Compare."}, "Compare."),
        (
            {
                "prompt": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "One?"}]},
                    {"role": "assistant", "content": "Yes."},
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And?"}]},
                ]
            },
            "[picture 2] And?",
        ),
    ],
)
def test_the_places_of_pictures_are_shown(make_store, make_app, row, shown):
    person = Person(make_app(make_store([{"images": ["red.png", "red.png"], "answers": ["a", "b"], **row}])))
    assert f'<h1 dir="auto">{shown}</h1>' in person.page
