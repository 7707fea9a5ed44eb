"""What leaves an expert buffer first: the recipes, and the one that knows the future, which bounds them.

A recipe gives every item a number (`keep`); the smallest leaves. LRU and FIFO look at time, `frequency` at
how often an expert is chosen; EdgeMoE's `intent` and `printed` also at how far its layer is from running
(run/residency/edgemoe.py has both formulas). `Belady` evicts what is used last in a recorded trace, which no
recipe can beat where all items are of one size (for unequal sizes it is a yardstick, no bound).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import not_allowed
from haversack.run._shelf import Eviction, Key

F64 = npt.NDArray[np.float64]
EVICTIONS = ("intent", "printed", "frequency", "lru", "fifo")


class LeastRecentlyUsed:
    """Keeps what was used last."""

    def __init__(self) -> None:
        self._now = 0
        self._last: dict[Key, int] = {}

    def loaded(self, key: Key) -> None:
        """See Eviction; what was brought on a guess counts as used now."""
        self._now += 1
        self._last[key] = self._now

    def used(self, key: Key) -> None:
        """See Eviction."""
        self._now += 1
        self._last[key] = self._now

    def keep(self, key: Key, layer: int) -> float:
        """See Eviction."""
        return self._last[key]


class FirstInFirstOut:
    """Keeps what came last."""

    def __init__(self) -> None:
        self._now = 0
        self._came: dict[Key, int] = {}

    def loaded(self, key: Key) -> None:
        """See Eviction."""
        self._now += 1
        self._came[key] = self._now

    def used(self, key: Key) -> None:
        """See Eviction."""

    def keep(self, key: Key, layer: int) -> float:
        """See Eviction."""
        return self._came[key]


class Frequencies:
    """How often an expert is chosen, as a share of its layer's choices: as `profile` f64 [layers, experts]
    says, or, without one, as counted so far. Experts of the `first` layers, an encoder's, count as never
    chosen: a text passes them once.
    """

    def __init__(self, layers: int, experts: int, profile: F64 | None = None, first: int = 0) -> None:
        if profile is not None and profile.shape != (layers, experts):
            raise ValueError(f"a profile of {profile.shape} is not one of {(layers, experts)}")
        self.layers = layers
        self.first = first
        self._counts = np.zeros((layers, experts)) if profile is None else profile
        self._totals = self._counts.sum(axis=1)
        self._counting = profile is None

    def used(self, key: Key) -> None:
        """`key` was chosen."""
        if self._counting:
            self._counts[key[0], key[1]] += 1
            self._totals[key[0]] += 1

    def __getitem__(self, key: Key) -> float:
        total = self._totals[key[0]]
        return float(self._counts[key[0], key[1]] / total) if total and key[0] >= self.first else 0.0


class Frequency:
    """Keeps what is chosen most often."""

    def __init__(self, frequencies: Frequencies) -> None:
        self.frequencies = frequencies

    def loaded(self, key: Key) -> None:
        """See Eviction."""

    def used(self, key: Key) -> None:
        """See Eviction."""
        self.frequencies.used(key)

    def keep(self, key: Key, layer: int) -> float:
        """See Eviction."""
        return self.frequencies[key]


class Belady:
    """Keeps what `trace` uses next; asked for exactly the keys of the trace, in its order."""

    def __init__(self, trace: Sequence[Key]) -> None:
        self._next: dict[Key, deque[int]] = {}
        for index, key in enumerate(trace):
            self._next.setdefault(key, deque()).append(index)

    def loaded(self, key: Key) -> None:
        """See Eviction."""

    def used(self, key: Key) -> None:
        """See Eviction."""
        self._next[key].popleft()

    def keep(self, key: Key, layer: int) -> float:
        """See Eviction."""
        following = self._next[key]
        return -float(following[0]) if following else float("-inf")


def least_missed(
    trace: Sequence[Key],
    nbytes: Callable[[Key], int],
    budget: int,
    stored: Callable[[Key], int] | None = None,
) -> int:
    """Bytes that a buffer of `budget` bytes with Belady's eviction reads to serve `trace`; what `replay` with
    `Belady` counts, in less time. `stored`: what a key takes on storage, where not what it takes in memory.
    """
    read = nbytes if stored is None else stored
    following = [len(trace)] * len(trace)
    seen: dict[Key, int] = {}
    for index in range(len(trace) - 1, -1, -1):
        following[index] = seen.get(trace[index], len(trace))
        seen[trace[index]] = index
    held: dict[Key, int] = {}  # key -> when it is used next
    farthest: list[tuple[int, int, Key]] = []
    taken = missed = 0
    for index, key in enumerate(trace):
        if key not in held:
            size = nbytes(key)
            missed += read(key)
            while taken + size > budget and farthest:
                when, _, leaving = heappop(farthest)
                if held.get(leaving) == -when:
                    del held[leaving]
                    taken -= nbytes(leaving)
            taken += size
        held[key] = following[index]
        heappush(farthest, (-following[index], index, key))
    return missed


def eviction(name: str, layers: int, experts: int, profile: F64 | None = None, first: int = 0) -> Eviction:
    """The recipe `name` for `layers` layers of `experts` experts, of which `profile` f64 [layers, experts]
    says how often each is chosen (None: it is counted). The `first` are those of an encoder.
    """
    if name == "lru":
        return LeastRecentlyUsed()
    if name == "fifo":
        return FirstInFirstOut()
    if name not in EVICTIONS:
        raise not_allowed("eviction", name, EVICTIONS)
    frequencies = Frequencies(layers, experts, profile, first)
    if name == "frequency":
        return Frequency(frequencies)
    from haversack.run.residency import edgemoe

    kinds: dict[str, Any] = {"intent": edgemoe.Intent, "printed": edgemoe.Printed}
    found: Eviction = kinds[name](frequencies)
    return found
