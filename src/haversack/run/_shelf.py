"""The books of an expert buffer: what lies in it, what may leave, and what was gained. No threads, no clock.

A key is (layer, expert), or (layer, expert, part) where parts of an expert come and go alone; layers here
count the layers that have experts, from 0. The bytes of what is there and of what is on its way never exceed
the budget. What leaves is what the eviction method (run/_eviction.py) would miss least, in this order: what
nobody expects; then, for what is needed, what was only predicted; last, and only for what someone already
waits for, what this layer itself still needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from haversack.core.errors import UserError
from haversack.run._reader import LIKELY, NEEDED, WAITED_FOR

Key = tuple[int, ...]


class Eviction(Protocol):
    """Says what to keep. What has the smallest `keep` leaves first; of equals the one that came first."""

    def loaded(self, key: Key) -> None:
        """`key` has arrived in the buffer."""

    def used(self, key: Key) -> None:
        """`key` was asked for, whether it was there or not."""

    def keep(self, key: Key, layer: int) -> float:
        """How much the buffer would miss `key` while layer number `layer` runs."""


@dataclass(slots=True)
class Item:
    """One key in the buffer: its bytes, and `value` once it has arrived (`loading` until then).

    `pins` count its users, `order` says when it came. `preloaded`: brought on a guess and not used yet;
    `expected`: on a guess about a layer that has yet to choose.
    """

    key: Key
    nbytes: int
    order: int
    preloaded: bool
    expected: bool
    loading: bool = True
    pins: int = 0
    value: Any = None


@dataclass
class Statistics:
    """What a buffer did. Every expert a router chose is `asked` for once: it was there (`hits`), on its way
    (`late`), or had to be loaded (`demands`). `preloads` were begun on a guess; of these `useful` were asked
    for, `wasted` left unused, and `stopped` were called off on their way. `nbytes` arrived, `peak_nbytes`
    were held at most. `stall_s` was waited.
    """

    asked: int = 0
    hits: int = 0
    late: int = 0
    demands: int = 0
    preloads: int = 0
    useful: int = 0
    wasted: int = 0
    stopped: int = 0
    evictions: int = 0
    nbytes: int = 0
    peak_nbytes: int = 0
    stall_s: float = 0.0

    @property
    def hit_ratio(self) -> float:
        """Share of what was asked for that was there; 0 when nothing was asked for."""
        return self.hits / self.asked if self.asked else 0.0

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**found, "stall_s": round(self.stall_s, 4), "hit_ratio": round(self.hit_ratio, 4)}


@dataclass
class Shelf:
    """A buffer of at most `budget` bytes. `keeps` False makes it none: what was used leaves at once."""

    budget: int
    eviction: Eviction
    keeps: bool = True
    statistics: Statistics = field(default_factory=Statistics)
    items: dict[Key, Item] = field(default_factory=dict)
    taken: int = 0
    layer: int = 0
    """The layer that runs."""
    needed: dict[Key, None] = field(default_factory=dict)
    """What the running layer has asked for and not used yet, in order of use."""
    _arrivals: int = 0

    def ask(self, key: Key) -> Item | None:
        """The router chose `key`: count it, and hold it until it is used. Returns its item, if it has one."""
        counts, item = self.statistics, self.items.get(key)
        counts.asked += 1
        if item is None:
            counts.demands += 1
        elif item.loading:
            counts.late += 1
        else:
            counts.hits += 1
        if item is not None and item.preloaded:
            counts.useful += 1
            item.preloaded = item.expected = False
        self.needed[key] = None
        self.eviction.used(key)
        return item

    def settle(self, layer: int) -> None:
        """Layer `layer` has chosen: it runs now, and what was expected of it no longer is."""
        self.layer = layer
        for item in self.items.values():
            if item.key[0] == layer:
                item.expected = False

    def admit(self, key: Key, nbytes: int, priority: int = NEEDED) -> list[Item] | None:
        """Make room for `key`, which is on its way from now on. Returns what left for it; None, with nothing
        changed, when there is no room for something of this priority.
        """
        leaving = self._leaving(nbytes, priority)
        if leaving is None:
            return None
        for item in leaving:
            self.drop(item.key)
        guess = priority >= LIKELY
        self._arrivals += 1
        self.items[key] = Item(key, nbytes, self._arrivals, guess, guess)
        self.taken += nbytes
        counts = self.statistics
        counts.preloads += guess
        counts.peak_nbytes = max(counts.peak_nbytes, self.taken)
        return leaving

    def arrived(self, key: Key, value: Any) -> None:
        """`key` was read."""
        item = self.items[key]
        item.value, item.loading = value, False
        self.statistics.nbytes += item.nbytes
        self.eviction.loaded(key)

    def drop(self, key: Key) -> None:
        """Let `key` go: it leaves, or did not arrive."""
        item = self.items.pop(key)
        self.taken -= item.nbytes
        if item.loading:
            self.statistics.stopped += item.preloaded
        else:
            self.statistics.evictions += 1
            self.statistics.wasted += item.preloaded

    def pin(self, key: Key) -> Item:
        """`key`, which is there, is in use until `unpin`."""
        item = self.items[key]
        item.pins += 1
        return item

    def unpin(self, key: Key) -> None:
        """`key` was used."""
        item = self.items[key]
        item.pins -= 1
        self.needed.pop(key, None)
        if not self.keeps and item.pins == 0:
            self.drop(key)

    def _leaving(self, nbytes: int, priority: int) -> list[Item] | None:
        excess = self.taken + nbytes - self.budget
        if excess <= 0:
            return []
        found = []
        for item in sorted(self._candidates(priority), key=self._rank):
            found.append(item)
            excess -= item.nbytes
            if excess <= 0:
                return found
        return None

    def _candidates(self, priority: int) -> Iterable[Item]:
        for item in self.items.values():
            if item.loading or item.pins:
                continue
            if item.key in self.needed and priority > WAITED_FOR:
                continue
            if item.expected and priority >= LIKELY:
                continue
            yield item

    def _rank(self, item: Item) -> tuple[bool, bool, float, int]:
        kept = self.eviction.keep(item.key, self.layer)
        return item.key in self.needed, item.expected, kept, item.order


def require_room(budget: int, needed: int, what: str) -> None:
    """Raises UserError naming the bytes when a buffer of `budget` bytes is too small for `what`."""
    if budget < needed:
        raise UserError(
            f"{what} need {needed} bytes of memory and the budget leaves {budget}; allow "
            f"{needed - budget} bytes more.",
            field="ram_mib",
            given=budget,
            nearest=needed,
        )


def replay(
    trace: Sequence[Key],
    nbytes: Callable[[Key], int],
    budget: int,
    eviction: Eviction,
) -> Statistics:
    """What a buffer of `budget` bytes would do with the keys of `trace`, one after the other, without
    guesses: an event is a use. Raises UserError when one of them does not fit.
    """
    shelf = Shelf(budget, eviction)
    for key in trace:
        shelf.layer = key[0]
        if shelf.ask(key) is None:
            if shelf.admit(key, nbytes(key), WAITED_FOR) is None:
                require_room(budget, nbytes(key), f"the bytes of {key}")
            shelf.arrived(key, None)
        shelf.pin(key)
        shelf.unpin(key)
    return shelf.statistics
