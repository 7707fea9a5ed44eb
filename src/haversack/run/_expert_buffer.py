"""Experts in memory, no more bytes of them than the budget, and the thread that brings the others.

The computing thread says what a layer's router chose (`need`), what the next layer's may choose (`guess`),
and uses one expert after the other (`use`); the reading thread fills the buffer meanwhile. A guess changes
what is there already, never what is computed: an expert that is not there is waited for.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from haversack.core.storage import STEP
from haversack.run._eviction import least_missed
from haversack.run._reader import CANCELLED, LIKELY, NEEDED, TIMEOUT_S, WAITED_FOR, Reader, Reading
from haversack.run._shelf import Item, Key, Shelf, Statistics

Going = Callable[[], bool]

TRACED = 1 << 18
"""Uses that are remembered, for the bound on what had to be read."""
LEARNING = 0.05
"""Share of what was just seen in the running means of times and of right guesses."""


class Worth:
    """Whether a guess is worth the place of what must leave for it.

    A right guess saves what of its reading is done when the layer chooses: at most the time between guess and
    choice (`window_s`), at most the time a read takes (`load_s`). A wrong one delays what is needed by the
    rest of the step that is being read (a `step` of 1: the whole of it). What left costs a read if it is
    chosen in its turn, which an expert is `chance` of the time. The share of right guesses is that of the
    guesses of the same rank so far.
    """

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self.window_s: float | None = None
        self.load_s: float | None = None
        self._right: list[float] = []

    def right(self, rank: int) -> float:
        """Share of the guesses of this rank that were chosen; one half before there were any."""
        return self._right[rank] if rank < len(self._right) else 0.5

    def learn(self, rank: int, chosen: bool) -> None:
        """A guess of this rank was chosen, or was not."""
        while len(self._right) <= rank:
            self._right.append(0.5)
        self._right[rank] += LEARNING * (chosen - self._right[rank])

    def window(self, seconds: float) -> None:
        """So much time was between a guess and the choice. The shortest counts most: reading for a guess
        takes processor time too and makes it longer."""
        before = self.window_s
        if before is None or seconds < before:
            self.window_s = seconds
        else:
            self.window_s = before + LEARNING / 4 * (seconds - before)

    def load(self, seconds: float) -> None:
        """A read took so long."""
        before = self.load_s
        self.load_s = seconds if before is None else before + LEARNING * (seconds - before)

    def __call__(self, rank: int, step: float = 1.0) -> bool:
        if self.window_s is None or self.load_s is None:
            return True
        right, done = self.right(rank), min(self.window_s, self.load_s)
        delay = min(self.load_s - done, self.load_s * step)
        return right * done > (1 - right) * delay + self.chance * self.load_s


class ExpertBuffer:
    """What `shelf` keeps the books of.

    `load(key, leaving, going)` reads a key, in the reading thread, and gives its tensors by name; `leaving`
    are the items that made room for it, whose memory it may take over and must let go of; where it is given
    `going`, it raises ReadingStopped when that says False. `nbytes` says what each key takes, `stored` what
    it takes on storage (default: the same), `chance` how often an expert is chosen. `names` says how a key is
    called in errors.
    """

    def __init__(
        self,
        shelf: Shelf,
        nbytes: Mapping[Key, int],
        load: Callable[[Key, list[Item], Going | None], Mapping[str, Any]],
        *,
        stored: Mapping[Key, int] | None = None,
        chance: float = 0.0,
        timeout_s: float = TIMEOUT_S,
        names: Callable[[Key], Any] = str,
    ) -> None:
        self.shelf = shelf
        self.reader = Reader(timeout_s)
        self._nbytes = nbytes
        self._stored = nbytes if stored is None else stored
        self._load = load
        self._names = names
        self._numbers = {key: number for number, key in enumerate(nbytes)}
        self._trace = array("i")
        self._readings: dict[Key, Reading] = {}
        self._leaving: dict[Key, list[Item]] = {}
        self._guessed: tuple[Key, ...] = ()
        self._guessed_at = (0.0, 0.0)  # the clock, and what had been waited
        self.worth = Worth(chance)

    @property
    def statistics(self) -> Statistics:
        """What the buffer did so far."""
        return self.shelf.statistics

    @property
    def trace(self) -> list[Key]:
        """The keys that were asked for, in order, as far as they are remembered."""
        keys = list(self._numbers)
        return [keys[number] for number in self._trace]

    def least_bytes(self) -> int | None:
        """Bytes that no eviction could have avoided reading on demand; None when the run was longer than what
        is remembered."""
        if len(self._trace) >= TRACED:
            return None
        sizes, stored = self._nbytes.__getitem__, self._stored.__getitem__
        return least_missed(self.trace, sizes, self.shelf.budget, stored)

    def forget_trace(self) -> None:
        """Begin anew what `trace` and `least_bytes` say."""
        del self._trace[:]

    def need(self, layer: int, keys: Sequence[Key]) -> None:
        """The router of `layer` chose `keys`, which will be used in this order. What is absent is read, ahead
        of all guesses; guesses that were wrong are called off.
        """
        with self.reader.changed:
            chosen = set(keys)
            if self._guessed and self._guessed[0][0] == layer:
                then, waited = self._guessed_at
                self.worth.window(time.monotonic() - then - (self.statistics.stall_s - waited))
                for rank, key in enumerate(self._guessed):
                    self.worth.learn(rank, key in chosen)
            self._guessed = ()
            self._call_off(chosen)
            self.shelf.needed.clear()
            self.shelf.settle(layer)
            for key in keys:
                self._ask(key, NEEDED)
            self._roomier()

    def guess(self, keys: Sequence[Key]) -> None:
        """`keys` will perhaps be needed next, the first most likely; replaces the guesses before it."""
        with self.reader.changed:
            self._guessed = tuple(keys)
            self._guessed_at = (time.monotonic(), self.statistics.stall_s)
            self._call_off(set(keys), LIKELY)
            for rank, key in enumerate(keys):
                if key in self._readings:
                    self._readings[key].stopping = False
                elif key not in self.shelf.items:
                    self._read(key, LIKELY + rank)

    def there(self, key: Key) -> bool:
        """Whether `key` has arrived and can be used without waiting, now."""
        with self.reader.changed:
            item = self.shelf.items.get(key)
            return item is not None and not item.loading

    @contextmanager
    def use(self, key: Key) -> Iterator[Mapping[str, Any]]:
        """The tensors of `key`, valid inside the `with`. Raises what reading it raised, and UserError when
        the storage stalls.
        """
        with self.reader.changed:
            if key not in self.shelf.needed:
                self._ask(key, WAITED_FOR)
            self._await(key)
            item = self.shelf.pin(key)
        tensors = dict(item.value)
        del item
        try:
            yield tensors
        finally:
            tensors.clear()  # a name that the caller still has keeps no memory
            with self.reader.changed:
                self.shelf.unpin(key)
                self._roomier()

    def close(self) -> bool:
        """End the thread and let everything go; False when a read did not end in time (see Reader)."""
        ended = self.reader.close()
        if ended:
            self.shelf.items.clear()
            self.shelf.taken = 0
            self._readings.clear()
        return ended

    def _roomier(self) -> None:
        """Something may have room now: wake the reading thread, where anything waits for that."""
        if self.reader.waiting:
            self.reader.changed.notify_all()

    def _call_off(self, kept: set[Key], least: int = NEEDED) -> None:
        """End the readings of this priority or less urgent, but those of `kept`."""
        for key, reading in list(self._readings.items()):
            if key not in kept and reading.priority >= least:
                if reading.priority >= LIKELY:
                    self.reader.stop(reading)
                if reading.state == CANCELLED or self.reader.cancel(reading):
                    del self._readings[key]

    def _ask(self, key: Key, priority: int) -> None:
        if len(self._trace) < TRACED:
            self._trace.append(self._numbers[key])
        there, reading = self.shelf.ask(key), self._readings.get(key)
        if reading is not None:
            reading.stopping = False
            self.reader.hurry(reading, priority)
        elif there is None:
            self._read(key, priority)

    def _await(self, key: Key) -> None:
        """Wait until `key` is there; once more, if its reading had been called off too late to take that
        back."""
        began = time.monotonic()
        try:
            while (item := self.shelf.items.get(key)) is None or item.loading:
                reading = self._readings.get(key) or self._read(key, WAITED_FOR)
                self.reader.hurry(reading, WAITED_FOR)
                self.reader.wait(reading)
        finally:
            self.statistics.stall_s += time.monotonic() - began

    def _read(self, key: Key, priority: int) -> Reading:
        reading = Reading(
            self._names(key), priority, lambda: self._fetch(key, reading), lambda: self._admit(key, reading)
        )
        self._readings[key] = reading
        self.reader.submit(reading)
        return reading

    def _admit(self, key: Key, reading: Reading) -> bool:
        """Whether there is room for `key` now; runs in the reading thread, under the lock."""
        nbytes, rank = self._nbytes[key], reading.priority - LIKELY
        full = self.shelf.taken + nbytes > self.shelf.budget
        if rank >= 0 and full and not self.worth(rank, min(1.0, STEP / self._stored[key])):
            return False
        leaving = self.shelf.admit(key, nbytes, reading.priority)
        if leaving is None:
            return False
        self._leaving[key] = leaving
        return True

    def _fetch(self, key: Key, reading: Reading) -> None:
        began = time.monotonic()
        try:
            guess = reading.priority >= LIKELY
            going = (lambda: not reading.stopping) if guess else None
            value = self._load(key, self._leaving.pop(key), going)
        except BaseException:
            with self.reader.changed:
                self.shelf.drop(key)
                del self._readings[key]
            raise
        with self.reader.changed:
            self.worth.load(time.monotonic() - began)
            self.shelf.arrived(key, value)
            del self._readings[key]
