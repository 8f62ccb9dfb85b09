"""Items made by a thread in advance are the same, in order, in bounded number, with the exception in its place."""
from __future__ import annotations

import threading

import pytest

from libs.utils.ahead import ahead


def test_the_items_and_the_exception_in_their_order():
    def items():
        yield from range(5)
        raise ValueError("after five")

    found = ahead(items(), 2)
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="after five"):
        next(found)
    assert list(ahead(iter([None, None]), 1)) == [None, None]
    assert list(ahead(iter(()), 1)) == []


def test_made_in_another_thread_and_no_more_than_asked_for():
    made, threads, four = [], set(), threading.Event()

    def items():
        for i in range(100):
            made.append(i)
            threads.add(threading.get_ident())
            if i == 4:
                four.set()
            yield i

    found = ahead(items(), 3)
    assert next(found) == 0
    assert four.wait(10)  # 0 is used, 1 to 3 wait, 4 is made and waits for room
    assert made == [0, 1, 2, 3, 4]
    assert threading.get_ident() not in threads
    found.close()
    assert made in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])
    assert not any(thread.ident in threads for thread in threading.enumerate())
