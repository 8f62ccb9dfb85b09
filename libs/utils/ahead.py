"""`ahead`: the items of an iterator, made by a thread before they are asked for.

    for frame in ahead(read_frames("video.mp4"), 8): ...       decoding goes on while the frame is used

It pays where making and using an item release the interpreter's lock, as decoding, OpenCV and torch do.
"""
from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import Queue
from typing import TypeVar, cast

Item = TypeVar("Item")


def ahead(items: Iterator[Item], most: int) -> Generator[Item, None, None]:
    """The same items, of which up to `most` wait to be used; an exception comes at its place.

    Closing the iterator, or leaving it to be collected, ends the thread after the item that it is at.
    """
    waiting: Queue[tuple[bool, Item | BaseException | None]] = Queue(most)  # (whether it is an item, item or exception or end)
    closed = threading.Event()

    def work() -> None:
        try:
            for item in items:
                waiting.put((True, item))
                if closed.is_set():
                    return
            waiting.put((False, None))
        except BaseException as error:  # of any kind: it is raised where the item is asked for
            waiting.put((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            is_item, found = waiting.get()
            if is_item:
                yield cast(Item, found)
            elif isinstance(found, BaseException):
                raise found
            else:
                return
    finally:
        closed.set()
        while thread.is_alive():  # it may wait for room
            while not waiting.empty():
                waiting.get_nowait()
            thread.join(0.01)
