"""Work on threads: in order, ahead of the consumer, and without a trace afterwards."""

import os
import threading

import pytest
import torch

from mmrlhf.models.prefetch import map_ahead, num_cores


def test_map_ahead_keeps_the_order_and_raises_what_work_raises():
    assert list(map_ahead(3, lambda item: 10 // item, [1, 2, 5])) == [10, 5, 2]
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(3, lambda item: 10 // item, [1, 0, 5]))


def test_map_ahead_gives_later_threads_their_cores_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(map_ahead(2, lambda _: torch.get_num_threads(), [0, 1])) == [1, 1]
        numbers = []
        thread = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert numbers == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this platform has no affinity")
def test_num_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7})
    assert num_cores() == 3
