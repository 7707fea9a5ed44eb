"""Decoding as two queues, one that computes and one that reads, in simulated time.

The buffer's books and its eviction are those of the engine (run/_shelf.py, run/_eviction.py), and so are the
orders of reading and of use (run/layers/_by_matrix.py); only clock and threads are replaced. What attention,
a matrix and a read take is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haversack.run._eviction import LeastRecentlyUsed
from haversack.run._reader import NEEDED
from haversack.run._shelf import Key, Shelf
from haversack.run.residency.smallthinker import order_of_use

I32 = NDArray[np.int32]
GATE, UP, DOWN = range(3)


@dataclass(frozen=True)
class Times:
    """Seconds of a layer's part before its experts, of one matrix of an expert, and of a read: `call_s` and
    then its bytes at `bytes_per_s`.
    """

    attention_s: float
    matrix_s: float
    bytes_per_s: float
    call_s: float = 0.0

    def load_s(self, nbytes: int) -> float:
        """Of one read."""
        return self.call_s + nbytes / self.bytes_per_s


@dataclass(frozen=True)
class Played:
    """`seconds` of a text, and how many matrices were read."""

    seconds: float
    loads: int


def play(routes: I32, places: int, times: Times, *, nbytes: int, early: bool, keeps: bool = True) -> Played:
    """The text whose routing is `routes` i32 [tokens, layers, k], the best expert first, with a buffer of
    `places` matrices of `nbytes`; `early`: reads begin before attention."""
    shelf, load_s = Shelf(places * nbytes, LeastRecentlyUsed(), keeps), times.load_s(nbytes)
    now = free_at = 0.0
    loads = 0
    for token in routes:
        for layer, experts in enumerate(token.tolist()):
            order = order_of_use([experts])
            keys: list[Key] = [(layer, expert, part) for expert in order for part in (GATE, UP)]
            keys += [(layer, expert, DOWN) for expert in sorted(order)]
            shelf.needed.clear()
            shelf.settle(layer)
            absent = [key for key in keys if shelf.ask(key) is None]
            arrives = dict.fromkeys(keys, 0.0)
            free_at = max(free_at, now if early else now + times.attention_s)
            for key in absent:
                admitted = shelf.admit(key, nbytes, NEEDED)
                assert admitted is not None, "the buffer holds a layer's choice"
                free_at += load_s
                arrives[key] = free_at
                shelf.arrived(key, None)
            loads += len(absent)
            now += times.attention_s
            left = list(order)
            while left:
                ready = (e for e in left if max(arrives[layer, e, GATE], arrives[layer, e, UP]) <= now)
                expert = next(ready, left[0])
                left.remove(expert)
                for part in (GATE, UP):
                    now = max(now, arrives[layer, expert, part]) + times.matrix_s
            for expert in sorted(order):
                now = max(now, arrives[layer, expert, DOWN]) + times.matrix_s
            for key in keys:
                shelf.pin(key)
                shelf.unpin(key)
    return Played(now, loads)
