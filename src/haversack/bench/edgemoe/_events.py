"""Decoding as two queues, one that computes and one that reads, in simulated time.

The buffer's books, evictions and guesses are those of the engine (run/_shelf.py, run/_eviction.py,
run/_prediction.py, `Worth`); only clock and threads are replaced. What a layer computes and what a read takes
are given, so the same trace can be played with any ratio of the two, the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from haversack.core.storage import STEP
from haversack.run._expert_buffer import Worth
from haversack.run._prediction import Predictor
from haversack.run._reader import LIKELY, NEEDED, WAITED_FOR
from haversack.run._shelf import Eviction, Key, Shelf

I32 = NDArray[np.int32]


@dataclass
class Reads:
    """The reading side: free at `free_at`; a read of n bytes takes `call_s` + n / `bytes_per_s`."""

    bytes_per_s: float
    call_s: float
    free_at: float = 0.0

    def seconds(self, nbytes: int) -> float:
        """Of one read."""
        return self.call_s + nbytes / self.bytes_per_s


@dataclass
class Playback:
    """One run of a trace. `block_s` is what a layer computes before its router has chosen, `expert_s` what
    one expert computes; `nbytes` are a key's on storage, `held` its bytes in memory."""

    shelf: Shelf
    predictor: Predictor
    reads: Reads
    nbytes: Callable[[Key], int]
    held: Callable[[Key], int]
    block_s: float
    expert_s: float
    ahead: int
    worth: Worth
    now: float = 0.0
    stall_s: float = 0.0
    _arrives: dict[Key, float] = field(default_factory=dict)
    _guesses: list[Key] = field(default_factory=list)
    _guessed_at: float = 0.0

    def play(self, routes: I32) -> float:
        """Seconds that the tokens of `routes` i32 [tokens, layers, chosen] take."""
        began = self.now
        for token in routes:
            for layer, experts in enumerate(token):
                self._layer(layer, [int(expert) for expert in experts], len(token))
        return self.now - began

    def _layer(self, layer: int, experts: list[int], layers: int) -> None:
        window = self.block_s
        self.now += self.block_s
        self._guess_until(self.now)
        keys = [(layer, expert) for expert in sorted(experts)]
        for rank, key in enumerate(self._guesses):
            self.worth.learn(rank, key in keys)
        if self._guesses:
            self.worth.window(window + self.expert_s)
        self._guesses = []
        self._stop_wrong(keys)
        self.shelf.needed.clear()
        self.shelf.settle(layer)
        absent = [key for key in keys if self.shelf.ask(key) is None]
        late = [key for key in absent if not self._read(key, NEEDED)]
        for key in keys:
            if key in late:
                self._read(key, WAITED_FOR)
            arrives = self._arrives.get(key, 0.0)
            self.stall_s += max(0.0, arrives - self.now)
            self.now = max(self.now, arrives)
            self._arrive(self.now)
            self.shelf.pin(key)
            self.now += self.expert_s
            self.shelf.unpin(key)
        self.predictor.chose(layer, experts)
        following = (layer + 1) % layers
        self._guesses = [(following, e) for e in self.predictor.likely(following)[: self.ahead]]
        self._guessed_at = self.now - self.expert_s * len(keys)

    def _read(self, key: Key, priority: int) -> bool:
        """Demand, behind what is under way; False when there is no room yet."""
        start = max(self.now, self.reads.free_at)
        self._arrive(start)
        if self.shelf.admit(key, self.held(key), priority) is None:
            assert priority > WAITED_FOR, "the buffer holds a layer's choice"
            return False
        self.reads.free_at = start + self.reads.seconds(self.nbytes(key))
        self.worth.load(self.reads.seconds(self.nbytes(key)))
        self._arrives[key] = self.reads.free_at
        return True

    def _guess_until(self, time: float) -> None:
        """Guesses that the reading side begins before `time`."""
        self._arrive(time)
        for rank, key in enumerate(self._guesses):
            start = max(self.reads.free_at, self._guessed_at)
            if start >= time:
                return
            if key in self.shelf.items:
                continue
            full = self.shelf.taken + self.held(key) > self.shelf.budget
            if full and not self.worth(rank, min(1.0, STEP / self.nbytes(key))):
                continue
            if self.shelf.admit(key, self.held(key), LIKELY + rank) is None:
                continue
            self.reads.free_at = start + self.reads.seconds(self.nbytes(key))
            self._arrives[key] = self.reads.free_at
            self._arrive(time)

    def _stop_wrong(self, keys: Sequence[Key]) -> None:
        """A wrong guess under way ends with the step that it is in."""
        for key in [key for key in self._arrives if key not in keys]:
            if self.shelf.items[key].preloaded:
                rest = self._arrives.pop(key) - self.now
                step = STEP / self.reads.bytes_per_s
                self.reads.free_at = self.now + rest % step
                self.shelf.drop(key)

    def _arrive(self, time: float) -> None:
        for key in [key for key, when in self._arrives.items() if when <= time]:
            del self._arrives[key]
            self.shelf.arrived(key, None)


def bound_s(least_bytes: int, bytes_per_s: float, compute_s: float) -> float:
    """What no eviction and no guess can beat: reading what must be read, or computing."""
    return max(least_bytes / bytes_per_s, compute_s)


def playback(
    budget: int,
    eviction: Eviction,
    predictor: Predictor,
    *,
    mb_s: float,
    sizes: dict[Key, tuple[int, int]],
    block_s: float,
    expert_s: float,
    chance: float,
    call_s: float = 0.0,
    ahead: int = 1,
    keeps: bool = True,
) -> Playback:
    """A run with a buffer of `budget` bytes; `sizes`: key -> (bytes on storage, bytes in memory)."""
    return Playback(
        Shelf(budget, eviction, keeps),
        predictor,
        Reads(mb_s * 1e6, call_s),
        lambda key: sizes[key][0],
        lambda key: sizes[key][1],
        block_s,
        expert_s,
        ahead,
        Worth(chance),
    )
