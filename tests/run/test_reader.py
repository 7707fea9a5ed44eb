"""The reading thread: the most urgent first, cancellation, and an end to every wait."""

from __future__ import annotations

import threading
import time

import pytest

from haversack.core.errors import UserError
from haversack.core.storage import ReadingStopped
from haversack.run._reader import LIKELY, NEEDED, WAITED_FOR, Reader, Reading


class Gate:
    """A first reading that holds the thread until it is let go, so that what waits behind it can be seen."""

    def __init__(self, reader: Reader) -> None:
        self.begun, self.open = threading.Event(), threading.Event()
        self.reading = reader.submit(Reading("the gate", NEEDED, self.read))
        assert self.begun.wait(10)

    def read(self) -> None:
        self.begun.set()
        assert self.open.wait(10)


@pytest.fixture
def reader():
    reader = Reader(timeout_s=20)
    yield reader
    reader.close()


def test_the_most_urgent_is_read_first_and_equals_in_order(reader: Reader) -> None:
    done: list[str] = []
    gate = Gate(reader)
    asked = [("g1", LIKELY), ("g2", LIKELY + 1), ("n1", NEEDED), ("w", WAITED_FOR), ("n2", NEEDED)]
    readings = {
        name: reader.submit(Reading(name, priority, lambda name=name: done.append(name)))
        for name, priority in asked
    }
    reader.hurry(readings["g2"], NEEDED)  # a guess that turned out to be right
    gate.open.set()
    for reading in readings.values():
        reader.wait(reading)
    assert done == ["w", "n1", "n2", "g2", "g1"]


def test_what_waits_can_be_cancelled_and_what_is_under_way_cannot(reader: Reader) -> None:
    done: list[str] = []
    gate = Gate(reader)
    guess = reader.submit(Reading("guess", LIKELY, lambda: done.append("guess")))
    assert not reader.cancel(gate.reading)
    assert reader.cancel(guess) and not reader.cancel(guess)
    needed = reader.submit(Reading("needed", NEEDED, lambda: done.append("needed")))
    gate.open.set()
    reader.wait(needed)
    reader.wait(gate.reading)
    assert done == ["needed"] and guess.state == "cancelled"


def test_a_reading_that_is_not_ready_lets_others_pass(reader: Reader) -> None:
    done: list[str] = []
    room = threading.Event()
    large = reader.submit(Reading("large", NEEDED, lambda: done.append("large"), room.is_set))
    small = reader.submit(Reading("small", LIKELY, lambda: done.append("small")))
    reader.wait(small)
    assert done == ["small"] and large.state == "queued"
    with reader.changed:
        room.set()
        reader.changed.notify_all()
    reader.wait(large)
    assert done == ["small", "large"]


def test_what_reading_raises_reaches_who_waits_and_the_thread_goes_on(reader: Reader) -> None:
    def fail() -> None:
        raise UserError("the card is gone.")

    broken = reader.submit(Reading("broken", NEEDED, fail))
    sound = reader.submit(Reading("sound", NEEDED, lambda: None))
    with pytest.raises(UserError, match="the card is gone"):
        reader.wait(broken)
    reader.wait(sound)
    assert reader.busy_s < 5


def test_a_fault_in_asking_whether_it_is_ready_reaches_who_waits(reader: Reader) -> None:
    def ready() -> bool:
        raise KeyError("books")

    broken = reader.submit(Reading("broken", NEEDED, lambda: None, ready))
    with pytest.raises(KeyError, match="books"):
        reader.wait(broken)
    reader.wait(reader.submit(Reading("sound", NEEDED, lambda: None)))


def test_a_wait_for_storage_that_stalls_ends() -> None:
    reader = Reader(timeout_s=0.2)
    gate = Gate(reader)
    behind = reader.submit(Reading("expert 3 of layer 1", NEEDED, lambda: None))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"gave nothing for 0\.2 s while expert 3 of layer 1"):
        reader.wait(behind)
    assert time.monotonic() - began < 5
    began = time.monotonic()
    assert not reader.close()  # what stalls is left to itself
    assert time.monotonic() - began < 5
    gate.open.set()


def test_a_slow_storage_that_gives_something_is_no_stall() -> None:
    """Six reads of 0.1 s each while the last is waited for: longer than the limit, never without progress."""
    reader = Reader(timeout_s=0.4)
    pause = threading.Event()
    readings = [reader.submit(Reading(f"{i}", NEEDED, lambda: pause.wait(0.1) and None)) for i in range(6)]
    reader.wait(readings[-1])
    assert all(reading.state == "done" for reading in readings)
    assert reader.close()


def test_a_reading_under_way_can_be_called_off(reader: Reader) -> None:
    begun, seen = threading.Event(), threading.Event()

    def read() -> None:
        begun.set()
        assert seen.wait(10)
        if reading.stopping:
            raise ReadingStopped

    reading = Reading("a guess", LIKELY, read)
    reader.submit(reading)
    assert begun.wait(10)
    reader.stop(reading)
    seen.set()
    reader.wait(reading)
    assert reading.state == "cancelled" and reading.error is None
    waiting = reader.submit(Reading("another", LIKELY, lambda: None, lambda: False))
    reader.stop(waiting)
    assert waiting.state == "cancelled"


def test_closing_cancels_what_waits_and_nothing_may_follow(reader: Reader) -> None:
    gate = Gate(reader)
    waiting = reader.submit(Reading("waiting", NEEDED, lambda: None))
    gate.open.set()
    assert reader.close()
    assert waiting.state in ("cancelled", "done") and reader.waiting == 0
    with pytest.raises(UserError, match="closed already"):
        reader.submit(Reading("late", NEEDED, lambda: None))


def test_a_timeout_is_a_time() -> None:
    with pytest.raises(UserError, match="timeout_s=0 is no time"):
        Reader(timeout_s=0)
