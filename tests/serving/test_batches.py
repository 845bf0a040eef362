"""Batches form by themselves, one bad job fails alone, and a closed queue finishes what waits."""

import threading

import pytest

from mmrlhf.records import InputError
from mmrlhf.serving.batches import BatchQueue, BusyError


def double(key, items):
    if "bad" in items:
        raise InputError("bad is no number")
    if "broken" in items:
        raise RuntimeError("out of memory")
    return [2 * item for item in items]


def test_waiting_jobs_of_a_key_share_a_batch_and_the_oldest_goes_first():
    batches = []

    def run(key, items):
        batches.append((key, list(items)))
        return items

    queue = BatchQueue(run, max_batch=2, max_waiting=9)
    for key, item in (("a", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 5)):
        queue.submit(key, item)
    queue.close()
    queue.work()
    assert batches == [("a", [1, 3]), ("b", [2, 5]), ("a", [4])]


def test_one_bad_job_fails_alone():
    queue = BatchQueue(double, max_batch=4, max_waiting=9)
    futures = [queue.submit("a", item) for item in (1, "bad", 3)]
    queue.close()
    queue.work()
    assert [futures[0].result(), futures[2].result()] == [2, 6]
    with pytest.raises(InputError, match="bad is no number"):
        futures[1].result()


def test_a_failure_of_the_model_ends_its_batch_and_not_the_worker():
    queue = BatchQueue(double, max_batch=1, max_waiting=9)
    first, second = queue.submit("a", "broken"), queue.submit("a", 1)
    queue.close()
    queue.work()
    with pytest.raises(RuntimeError, match="out of memory"):
        first.result()
    assert second.result() == 2


def test_a_wrong_number_of_results_ends_its_batch_and_not_the_worker():
    queue = BatchQueue(lambda key, items: items[1:] if key == "short" else items, max_batch=2, max_waiting=9)
    jobs = [queue.submit("short", 1), queue.submit("short", 2), queue.submit("a", 3)]
    queue.close()
    queue.work()
    for job in jobs[:2]:
        with pytest.raises(ValueError, match="shorter"):
            job.result()
    assert jobs[2].result() == 3


def test_a_full_queue_and_a_closed_one_take_no_jobs():
    queue = BatchQueue(double, max_batch=1, max_waiting=2)
    waiting = [queue.submit("a", 1), queue.submit("a", 2)]
    with pytest.raises(BusyError, match=r"the queue is full \(2 waiting\): try again later"):
        queue.submit("a", 3)
    queue.close()
    with pytest.raises(BusyError, match="shutting down"):
        queue.submit("a", 4)
    queue.work()
    assert [future.result() for future in waiting] == [2, 4]


def test_a_worker_waits_for_jobs_and_ends_when_the_queue_is_closed():
    queue = BatchQueue(double, max_batch=4, max_waiting=9)
    worker = threading.Thread(target=queue.work)
    worker.start()
    assert queue.submit("a", 1).result(timeout=30) == 2
    queue.close()
    worker.join(timeout=30)
    assert not worker.is_alive()


def test_abandoned_jobs_end_at_once_and_their_results_are_dropped():
    running, go_on = threading.Event(), threading.Event()

    def run(key, items):
        running.set()
        go_on.wait(60)
        return items

    queue = BatchQueue(run, max_batch=1, max_waiting=9)
    futures = [queue.submit("a", item) for item in (1, 2)]
    worker = threading.Thread(target=queue.work)
    worker.start()
    assert running.wait(60)
    queue.close()
    queue.abandon()
    for future in futures:
        with pytest.raises(BusyError, match="the server is shutting down"):
            future.result(timeout=60)
    go_on.set()
    worker.join(60)
    assert not worker.is_alive()
