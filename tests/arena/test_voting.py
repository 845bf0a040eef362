"""People vote: nothing gives a model away, votes count once, and become ratings and preferences."""

import contextlib
import fcntl
import json
import re

import pytest
from PIL import Image

from mmrlhf.arena.export import export_arena
from mmrlhf.arena.leaderboard import make_boards
from mmrlhf.arena.page import arena_page, report_arena
from mmrlhf.arena.ratings import Vote
from mmrlhf.arena.serve import serving_arena
from mmrlhf.arena.votes import Ballots, read_ballots
from mmrlhf.cli import main
from mmrlhf.config import ArenaConfig
from mmrlhf.datasets import read_preferences
from mmrlhf.labeling.app import create_app
from mmrlhf.labeling.assignments import Assignments
from mmrlhf.labeling.pages import Pages
from mmrlhf.labeling.schedule import Schedule
from mmrlhf.labeling.sessions import Sessions
from mmrlhf.labeling.store import Store
from mmrlhf.labeling.tasks import read_tasks
from mmrlhf.records import InputError
from tests.arena.conftest import kept, voter_at

NAMES = ("zebrafinch", "kingfisher", "woodpecker")


def app_of(store, overlap=1):
    sessions = Sessions(store, None, "You may store my votes.")
    assignments = Assignments(store, Schedule(overlap, 0, "file", seed=0, secret=""))
    return create_app(assignments, sessions, Pages("Which is better?", "", "You may store my votes."))


@pytest.fixture
def arena(write_answers, make_arena):
    qualities = ("good", "fair", "poor")
    return make_arena(*(write_answers(name, kept(name, quality=quality)) for name, quality in zip(NAMES, qualities, strict=True)))


def by_quality(left, right):
    """Choose the better of two answers: 0 for the left one, 1 for the right one."""
    rank = {"good": 0, "fair": 1, "poor": 2}
    left, right = (next(rank[word] for word in rank if word in answer) for answer in (left, right))
    return int(right < left) if left != right else 2


def test_nothing_that_a_browser_gets_names_a_model(arena):
    """Neither do the pages, nor what they load, nor the headers; a row's name counts the models."""
    store, _ = arena
    voter = voter_at(app_of(store))
    num_pairs = 0
    while len(voter.answers) == 2:
        num_pairs += 1
        addresses = ["/", *re.findall(r'(?:src|href)="(/[^"]+)"', voter.page)]
        for response in map(voter.client.get, addresses):
            received = f"{response.headers} {response.content!r}".lower()
            assert response.status_code == 200
            assert not any(name in received for name in (*NAMES, "arena")) and not re.search(r"q\d+-\d-\d", received)
        voter.vote("left")
    assert num_pairs == 36


def test_sides_are_drawn_for_each_voter(arena):
    store, _ = arena
    left = {"good": 0, "fair": 0, "poor": 0}
    app = app_of(store, overlap=6)
    for number in range(6):
        voter = voter_at(app, f"voter {number}")
        while len(voter.answers) == 2:
            left[next(word for word in left if word in voter.answers[0])] += 1
            voter.vote("tie")
    assert sum(left.values()) == 6 * 36
    for count in left.values():  # 72 of 144 by chance, with a standard deviation of 6
        assert 45 < count < 99


def test_votes_become_ratings_in_the_true_order(arena, capsys):
    store, ledger = arena
    assert voter_at(app_of(store)).vote_for(by_quality) == 36
    ballots = read_ballots(store, ledger)
    votes = ballots.votes(ballots.people)
    assert len(votes) == 36
    assert all(
        (vote.score == 1) == (NAMES.index(vote.first) < NAMES.index(vote.second)) and vote.score in (0, 1) for vote in votes
    )
    report_arena(str(store.path))
    printed = capsys.readouterr().out
    assert printed.index("zebrafinch") < printed.index("kingfisher") < printed.index("woodpecker")
    assert "zebrafinch won every vote against the others (24)" in printed


def test_forged_replayed_and_late_votes_count_once_or_not_at_all(arena):
    store, ledger = arena
    app = app_of(store)
    heron, crane = voter_at(app, "heron"), voter_at(app, "crane")
    old = heron.fields
    assert heron.vote("left").status_code == 200
    assert (
        "already"
        in heron.client.post(
            "/answer", data=old | {"choice": "right", "strength": "3"}, headers={"Accept": "application/json"}
        ).text
    )
    stolen = heron.fields["token"]
    assert crane.vote("left", token=stolen).status_code == 400  # another voter's form
    assert crane.vote("left", token="made-up").status_code == 400
    assert crane.vote("left", form_key="0" * 64).status_code == 403
    assert crane.vote("left").status_code == 200
    assert crane.vote("up").status_code == 400
    people = read_ballots(store, ledger).people
    assert sorted(name for judged in people.values() for name, _ in judged) == ["crane", "heron"]


def test_hostile_answers_and_names_stay_text(write_answers, make_arena, tmp_path):
    hostile = "<script>alert(1)</script> Verdict: A \u202egnp.exe <img src=x onerror=alert(2)>"
    first, second = write_answers("<b>bold", [hostile]), write_answers("x&y", ["fine"])
    store, _ = make_arena(first, second)
    voter = voter_at(app_of(store))
    assert "<script>alert" not in voter.page and "&lt;script&gt;alert(1)" in voter.page and "\u202e" not in voter.page
    voter.vote("left")
    report_arena(str(store.path), str(tmp_path / "arena.html"))
    page = (tmp_path / "arena.html").read_text()
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page and "<script" not in page


def test_votes_are_preference_rows(arena, tmp_path):
    store, _ = arena
    voter_at(app_of(store)).vote_for(by_quality)
    export_arena(str(store.path), "trl", str(tmp_path / "pairs.jsonl"))
    preferences = read_preferences(str(tmp_path / "pairs.jsonl"), "train", str(tmp_path), None)
    assert len(preferences) == 36 and all(by_quality(p.chosen, p.rejected) == 0 for p in preferences)
    assert len({preference.id for preference in preferences}) == 36


def test_the_page_says_what_is_real_and_opens_offline(arena, tmp_path):
    store, _ = arena
    voter_at(app_of(store)).vote_for(by_quality)
    report_arena(str(store.path), str(tmp_path / "arena.html"))
    page = (tmp_path / "arena.html").read_text()
    with pytest.raises(InputError, match=r"out .* is an input file: name another"):
        report_arena(str(store.path), str(store.path))
    assert store.path.read_bytes().startswith(b"SQLite")
    assert "zebrafinch is better than" in page and "By category" in page and "<svg" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "http" not in re.sub(r"http://www.w3.org/\S+", "", page)


def page_of_votes(votes):
    """Return the page of votes by people."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ballots, "votes", lambda *_: votes)
        return arena_page("votes.db", make_boards(Ballots({}, {}, {}, {}, {})), [], [])


def test_ranks_in_a_category_are_those_of_its_real_differences():
    """In one category, a wins 20 of 20 votes, in the other one 10."""
    sure = [Vote("a", "b", 1.0, f"x{i}", category="sure") for i in range(20)]
    undecided = [Vote("a", "b", float(i % 2), f"y{i}", category="undecided") for i in range(20)]
    page = page_of_votes(sure + undecided)
    rows = {name: re.search(f'<th scope="row">{name}</th>(.*?)</tr>', page)[1] for name in ("sure", "undecided")}
    assert re.findall("rank ([^<]+)<", rows["sure"]) == ["1", "2"]
    assert page.count("with 12 categories of equal models") == 1
    assert re.findall("rank ([^<]+)<", rows["undecided"]) == ["1 to 2", "1 to 2"]


def test_the_page_says_how_many_categories_it_leaves_out(monkeypatch):
    """Category c0 has one vote, c1 two, and so on: of 5, the first two are left out."""
    monkeypatch.setattr("mmrlhf.arena.leaderboard.MAX_CATEGORIES", 3)

    def page_of(numbers):
        return page_of_votes([Vote("a", "b", float(i % 2), f"{n} {i}", category=f"c{n}") for n in numbers for i in range(n + 1)])

    note = "These are the 3 categories with the most votes; 2 more categories, with 3 votes together, are left out."
    page = page_of(range(5))
    assert note in page and ">c2<" in page and ">c1<" not in page
    assert "; 1 more category, with 1 vote, is left out." in page_of((0, *range(2, 5)))
    assert "left out" not in page_of(range(2, 5))


def test_serve_adds_pairs_once_and_continues(write_answers, tmp_path, capsys):
    models = ",".join(write_answers(name, kept(name, 4)) for name in NAMES)
    config = ArenaConfig(output_file=str(tmp_path / "votes.db"), models=models, port=0)
    for count in (12, 0):
        with serving_arena(config) as running:
            assert running.url.startswith("http://127.0.0.1:") and running.access_token is None
        assert f"{count} new pairs" in capsys.readouterr().out
    with serving_arena(ArenaConfig(output_file=str(tmp_path / "votes.db"), port=0)) as running:
        assert len(running.store.task_entries()) == 12


def test_a_second_server_adds_no_pairs(write_answers, tmp_path):
    paths = [write_answers(name, kept(name, 4)) for name in NAMES]
    votes = tmp_path / "votes.db"
    with serving_arena(ArenaConfig(output_file=str(votes), models=",".join(paths[:2]), port=0)) as running:
        assert len(running.store.task_entries()) == 4
    with open(f"{votes}.lock", "w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)  # as another process would
        second = ArenaConfig(output_file=str(votes), models=",".join(paths), port=0)
        with pytest.raises(InputError, match=r"votes.db is being written by another command"), serving_arena(second):
            pass
    with contextlib.closing(Store(votes)) as store:
        assert len(store.task_entries()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--output_file", "votes.db"], "votes.db has no pairs: give models"),
        (["serve", "a=x.jsonl", "--output_file", "votes.db"], "an arena compares two models or more"),
        (["serve", "a=x.jsonl", "b=y.jsonl", "--output_file", "votes.db"], "x.jsonl does not exist"),
        (["serve", "a=runs/a", "b=runs/b", "--output_file", "votes.db"], "live models need questions"),
        (["report", "votes.db"], "votes.db does not exist"),
        (["judge", "--output_file", "votes.db", "--judge", "gpt"], "--judge gpt is no URL of a server"),
        (["judge", "--output_file", "votes.db", "--judge", "http://localhost:1/v1"], "votes.db does not exist: give the file that"),
        (["serve", "a=x.jsonl", "b=y.jsonl", "--models", "c,d", "--output_file", "votes.db"], "models are given twice"),
        (["judge", "a=runs/a", "b=b.jsonl", "--output_file", "votes.db", "--judge", "http://localhost:1/v1"], "runs/a is no file of answers"),
        (["export", "votes.db", "--to", "tlr", "--output_file", "x.jsonl"], "no format tlr"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["arena", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_votes_has_no_leaderboard(arena):
    with pytest.raises(InputError, match="has no votes on models yet"):
        report_arena(str(arena[0].path))


def test_a_picture_that_is_none_is_refused(write_answers, tmp_path):
    path = write_answers("a", ["x"])
    (tmp_path / "0.png").write_text("not a picture")
    with (
        pytest.raises(InputError, match=r"0\.png"),
        serving_arena(ArenaConfig(output_file=str(tmp_path / "votes.db"), models=f"a={path},b={path}", port=0)),
    ):
        pass
    Image.new("RGB", (1, 1)).save(tmp_path / "0.png")


def test_pairs_of_the_labelling_page_count_if_their_models_are_known(tmp_path, capsys):
    """A file of `mmrlhf label serve` whose rows name the models of their answers."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    rows = [
        {"id": f"r{i}", "images": ["a.png"], "prompt": f"Question {i}?", "answers": [{"text": f"good {i}", "model": "one"}, {"text": f"poor {i}", "model": "two"}]}
        for i in range(10)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(tmp_path / "labels.db", create=True)
    store.add_tasks(read_tasks([str(tmp_path / "rows.jsonl")], None, None, "train"))
    assert voter_at(app_of(store)).vote_for(by_quality) == 10
    store.close()
    report_arena(str(tmp_path / "labels.db"))
    assert "one is the best of 2 models (10 votes on 10 questions by 1 person)" in capsys.readouterr().out
