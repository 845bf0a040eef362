"""Who gets which task, with pencil and paper."""

import random

from mmrlhf.labeling.schedule import LEASE_SECONDS, Schedule
from mmrlhf.labeling.store import TaskEntry


def schedule_of(number=3, overlap=1, gold_every=0, order="file", num_gold=0, uncertainties=(), secret="a"):
    schedule = Schedule(overlap, gold_every, order, seed=0, secret=secret)
    for i in range(1, number + 1):
        schedule.add(TaskEntry(i, False, uncertainties[i - 1] if uncertainties else None))
    for i in range(num_gold):
        schedule.add(TaskEntry(100 + i, True, None))
    return schedule


def work(schedule, annotator, now=0.0, kind="label"):
    task = schedule.next(annotator, now)
    if task is not None:
        schedule.lease(annotator, task, now)
        schedule.answer(annotator, task, kind)
    return task


def test_two_annotators_get_different_tasks_without_overlap():
    schedule = schedule_of()
    schedule.lease(1, schedule.next(1, 0), 0)
    schedule.lease(2, schedule.next(2, 0), 0)
    assert schedule.next(1, 0) == 1 and schedule.next(2, 0) == 2 and schedule.next(3, 0) == 3


def test_overlap_gives_each_task_to_that_many():
    schedule = schedule_of(number=2, overlap=2)
    assert [work(schedule, annotator) for annotator in (1, 1, 1, 2, 3, 2, 3)] == [1, 2, None, 1, 2, None, None]


def test_a_task_that_waits_too_long_is_given_to_others_too():
    schedule = schedule_of(number=1)
    schedule.lease(1, 1, 0.0)
    assert schedule.next(2, LEASE_SECONDS - 1) is None
    assert schedule.next(2, LEASE_SECONDS) == 1
    schedule.lease(2, 1, LEASE_SECONDS)
    schedule.answer(2, 1, "label")
    schedule.answer(1, 1, "label")  # the late one counts as well
    assert schedule.num_labels(1) == schedule.num_labels(2) == 1


def test_a_skipped_task_is_for_others():
    schedule = schedule_of(number=1)
    assert work(schedule, 1, kind="skip") == 1
    assert schedule.next(1, 0) is None and schedule.next(2, 0) == 1
    assert schedule.num_left(1) == 0 and schedule.num_left(2) == 1


def test_an_answer_taken_back_opens_the_task_again():
    schedule = schedule_of(number=2)
    work(schedule, 1)
    assert schedule.num_left(1) == 1
    schedule.take_back(1, 1, "label")
    assert schedule.next(2, 0) == 1 and schedule.num_labels(1) == 0 and schedule.num_left(1) == 2


def test_one_of_every_three_tasks_is_a_gold_question():
    schedule = schedule_of(number=60, gold_every=3, num_gold=30)
    tasks = [work(schedule, 1) for _ in range(90)]
    assert [task for task in tasks if task < 100] == list(range(1, 61))
    assert [task for task in tasks if task >= 100] == list(range(100, 130))  # everybody gets them in one order
    assert all(sum(task >= 100 for task in tasks[start : start + 3]) == 1 for start in range(0, 90, 3))
    assert work(schedule, 1) is None  # gold alone is no work


def test_the_place_of_a_gold_question_follows_from_no_count():
    """Each place of the three is drawn, for each annotator anew; a restart draws the same ones.

    Whoever knows the seed cannot draw them, without the secret of the file.
    """

    def places(annotator, secret="a"):
        schedule = schedule_of(number=90, gold_every=3, num_gold=30, secret=secret)
        tasks = [work(schedule, annotator) for _ in range(90)]
        return [index % 3 for index, task in enumerate(tasks) if task >= 100]

    assert all(places(1).count(place) >= 4 for place in range(3))
    assert places(1) != places(2) and places(1) == places(1)
    assert places(1, secret="b") != places(1)


def test_the_counter_does_not_give_gold_questions_away():
    """With each answer one task less is left, whether it is a gold question or not."""
    assert schedule_of(number=3, gold_every=1, num_gold=4).num_left(1) == 7  # all gold questions come first
    for seed in range(100):
        rng = random.Random(seed)
        schedule = schedule_of(number=rng.randint(1, 30), gold_every=rng.randint(0, 7), num_gold=rng.randint(0, 6))
        left = schedule.num_left(1)
        while work(schedule, 1, kind=rng.choice(["label", "label", "skip"])) is not None:
            left -= 1
            assert schedule.num_left(1) == left
        assert left == 0


def test_order_by_uncertainty_and_at_random():
    schedule = schedule_of(number=3, order="uncertainty", uncertainties=(0.1, None, 0.7))
    assert [work(schedule, 1) for _ in range(3)] == [3, 1, 2]
    drawn = [work(schedule_of(number=50, order="random"), 1) for _ in range(2)]
    schedule = schedule_of(number=50, order="random")
    everything = [work(schedule, 1) for _ in range(50)]
    assert drawn[0] == drawn[1] == everything[0]
    assert sorted(everything) == list(range(1, 51)) and everything != sorted(everything)
