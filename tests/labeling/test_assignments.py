"""Each answer is recorded once, whatever tabs, reloads, restarts and clocks do."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from mmrlhf.labeling.schedule import LEASE_SECONDS
from mmrlhf.labeling.store import DuplicateError, Store
from mmrlhf.labeling.tasks import read_tasks
from tests.labeling.conftest import Clock, assign, pairs, standing

LABEL = {"ranks": [1, 2], "strength": 2}


@pytest.fixture
def store(make_store):
    return make_store(pairs(4))


def join(store, name="heron"):
    return store.add_annotator(name, f"{name}-code", 0.0, "yes")


def test_a_reload_shows_the_same_task_and_order(store):
    work, heron = assign(store), join(store)
    assert work.current(heron) == work.current(heron)
    assert assign(store).current(heron) == work.current(heron)  # also after a restart


def test_a_form_that_is_sent_twice_is_recorded_once(store):
    work, heron = assign(store), join(store)
    shown = work.current(heron)
    assert work.submit(heron, shown, "label", LABEL) is not None
    assert work.submit(heron, shown, "label", LABEL | {"strength": 3}) is None
    assert assign(store).submit(heron, shown, "label", LABEL) is None
    assert standing(store) == [("heron", "row 0", LABEL)]


def test_forms_that_arrive_at_once_are_recorded_once(store):
    work, heron = assign(store), join(store)
    shown = work.current(heron)
    with ThreadPoolExecutor(8) as pool:
        events = list(pool.map(lambda strength: work.submit(heron, shown, "label", LABEL | {"strength": strength}), range(8)))
    (recorded,) = [event for event in events if event is not None]
    assert standing(store) == [("heron", "row 0", recorded.content)]
    with ThreadPoolExecutor(8) as pool:
        undone = list(pool.map(lambda _: work.undo(heron, recorded.id), range(8)))
    assert sum(shown is not None for shown in undone) == 1 and standing(store) == []


def test_the_file_itself_refuses_a_second_answer_and_any_change(store):
    work, heron = assign(store), join(store)
    shown = work.current(heron)
    work.submit(heron, shown, "label", LABEL)
    with pytest.raises(DuplicateError):
        store.append("skip", heron, shown.task_id, 0.0, {}, token=shown.token)
    for statement in ("UPDATE events SET time = 0", "DELETE FROM events"):
        with pytest.raises(Exception, match="events are only appended"):
            store._database.execute(statement)


def test_tokens_are_for_one_annotator(store):
    work, heron, robin = assign(store), join(store), join(store, "robin")
    token = work.current(heron).token
    assert work.find(heron, token) is not None
    assert work.find(robin, token) is None and work.find(heron, "forged") is None


def test_undo_takes_back_the_latest_answer_and_shows_it_again(store):
    work, heron = assign(store), join(store)
    events = []
    for _ in range(2):
        shown = work.current(heron)
        events.append(work.submit(heron, shown, "label", LABEL))
    assert work.undo(heron, events[0].id) is None  # not the latest
    again = work.undo(heron, events[1].id)
    assert again.task.name == "row 1" and again.previous == {"kind": "label", **LABEL} and again.token != shown.token
    assert work.undo(heron, events[1].id) is None  # a second click
    assert [row for _, row, _ in standing(store)] == ["row 0"]
    work.submit(heron, again, "label", {"ranks": [2, 1], "strength": 1})
    assert standing(store)[-1] == ("heron", "row 1", {"ranks": [2, 1], "strength": 1})
    assert assign(store).current(heron).task.name == "row 2"


def test_the_task_that_an_undo_interrupts_comes_back_under_its_token(store):
    work, heron = assign(store), join(store)
    answers = [work.submit(heron, work.current(heron), "label", LABEL) for _ in range(2)]
    interrupted = work.current(heron)
    undone = [work.undo(heron, answer.id) for answer in reversed(answers)]
    for again in (work, assign(store)):  # also after a restart
        assert again.current(heron) == undone[1]
    for shown, following in ((undone[1], undone[0]), (undone[0], interrupted)):
        work.submit(heron, shown, "label", LABEL)
        assert work.current(heron) == following == assign(store).current(heron)
    assert len(standing(store)) == 2


def test_an_undo_is_written_whole_or_not_at_all(store, monkeypatch):
    work, heron = assign(store), join(store)
    event = work.submit(heron, work.current(heron), "label", LABEL)
    shown = work.current(heron)
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: shown.token)  # which the index refuses
    with pytest.raises(DuplicateError):
        work.undo(heron, event.id)
    assert len(standing(store)) == 1 and work.current(heron) == shown == assign(store).current(heron)
    assert [e.kind for e in store.events()][-1] == "shown"


def test_a_form_from_before_an_undo_records_nothing(store):
    work, heron = assign(store), join(store)
    old = work.current(heron)
    work.undo(heron, work.submit(heron, old, "label", LABEL).id)
    assert work.submit(heron, old, "label", LABEL) is None
    assert standing(store) == []


def test_undo_reaches_back_through_skips(store):
    work, heron = assign(store), join(store)
    for kind in ("label", "skip"):
        work.submit(heron, work.current(heron), kind, LABEL if kind == "label" else {})
    assert work.undo(heron, work.progress(heron).last_answer).task.name == "row 1"
    assert work.undo(heron, work.progress(heron).last_answer).task.name == "row 0"
    assert work.progress(heron).num_labels == 0 and work.progress(heron).last_answer is None


def test_times_come_from_a_clock_that_does_not_jump(store):
    clock, now = Clock(), Clock(5e8)
    work, heron = assign(store, clock=clock, now=now), join(store)
    shown = work.current(heron)
    clock.value += 30
    now.value -= 1e6  # the time of day jumps back
    assert work.submit(heron, shown, "label", LABEL, seconds=20.0).seconds == 20.0
    shown = work.current(heron)
    clock.value += 10
    assert work.submit(heron, shown, "label", LABEL, seconds=5000.0).seconds == 10.0  # no page saw more than passed
    shown = work.current(heron)
    clock.value += 4
    assert work.submit(heron, shown, "label", LABEL).seconds == 4.0
    assert work.progress(heron).pace == 10.0
    assert [row for _, row, _ in standing(store)] == ["row 0", "row 1", "row 2"]  # in their order, not by time


def test_a_restart_does_not_lengthen_times(store):
    clock, now = Clock(), Clock(5e8)
    heron = join(store)
    shown = assign(store, clock=clock, now=now).current(heron)
    now.value += 60
    clock = Clock(7.0)  # of another process
    work = assign(store, clock=clock, now=now)
    clock.value += 3
    assert work.submit(heron, shown, "label", LABEL, seconds=62.5).seconds == 62.5
    shown = work.current(heron)
    now.value += 5
    assert assign(store, clock=clock, now=now).submit(heron, shown, "label", LABEL, seconds=900.0).seconds == 5.0


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_before_a_restart_loses_nothing(store, jump):
    now = Clock(5e8)
    heron = join(store)
    shown = assign(store, now=now).current(heron)
    now.value += jump
    clock = Clock(7.0)
    work = assign(store, clock=clock, now=now)
    assert work.current(heron) == shown
    clock.value += 3
    event = work.submit(heron, shown, "label", LABEL, seconds=2.5)
    assert event.seconds == 2.5 and standing(store) == [("heron", "row 0", LABEL)]


def test_a_task_that_others_took_over_is_shown_no_more(make_store):
    clock, now = Clock(), Clock(5e8)
    store = make_store(pairs(2))
    work, heron, robin = assign(store, clock=clock, now=now), join(store), join(store, "robin")
    shown = work.current(heron)
    clock.value += LEASE_SECONDS
    now.value += LEASE_SECONDS
    late = assign(store, clock=Clock(3.0), now=now)  # a restart knows how old it is
    for server in (work, late):
        assert server.current(robin).task.name == "row 0"
    assert work.current(heron).task.name == "row 1"
    # Late, it still counts, but nobody knows how long it took.
    assert work.submit(heron, shown, "label", LABEL, seconds=5.0).seconds is None


def test_a_task_that_nobody_took_over_stays(store):
    clock = Clock()
    work, heron, robin = assign(store, clock=clock), join(store), join(store, "robin")
    shown = work.current(heron)
    clock.value += LEASE_SECONDS
    assert work.current(heron) == shown and work.current(robin).task.name == "row 1"


def test_tasks_added_by_another_process_are_taken_up(store, write_rows):
    work, heron = assign(store), join(store)
    for _ in range(4):
        work.submit(heron, work.current(heron), "label", LABEL)
    assert work.current(heron) is None
    other = Store(store.path)
    assert other.add_tasks(read_tasks([write_rows({"id": "new", "answers": ["a", "b"]})], None, None, "train")) == 1
    assert work.current(heron).task.name == "new"


def test_a_restart_knows_what_everybody_did(store):
    work, heron, robin = assign(store), join(store), join(store, "robin")
    work.submit(heron, work.current(heron), "label", LABEL, seconds=None)
    work.submit(robin, work.current(robin), "skip", {})
    open_task = work.current(heron).task.name
    again = assign(store)
    assert again.current(heron).task.name == open_task
    assert again.progress(heron).num_labels == 1 and again.progress(robin).num_labels == 0
    assert open_task == "row 1" and again.current(robin).task.name == "row 2"


def test_orders_are_drawn_anew_for_each_time(make_store):
    store = make_store(pairs(60))
    work, heron = assign(store), join(store)
    orders = []
    for _ in range(60):
        shown = work.current(heron)
        orders.append(shown.order)
        work.submit(heron, shown, "label", LABEL)
    assert 12 < orders.count((0, 1)) < 48  # 4.6 standard deviations on either side
