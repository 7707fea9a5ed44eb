"""Which restoration comes next (TZ-LLM's three queues), and where restored tensors lie in shared memory.

Light on purpose: the process that holds the key imports it, and so does the simulation of larger machines.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

from haversack.formats.sealed import BLOCK

STAGES = ("allocate", "read", "decrypt")
MEMORY_LAYER, HEAD_LAYER = -1, 999
"""Layers of what is needed before the first block (norms, rows of the embedding) and after the last."""
SCHEDULES = ("pipelined", "at-once", "random", "whole-tensors")
LINE = 64
"""Tensors begin at a multiple of this in a region."""


def order_key(layer: int, sequence: int) -> int:
    """The smaller, the sooner: layers in the order of their use, then tensors in order of theirs."""
    return (layer << 32) | sequence


class Queues:
    """One queue a stage, smallest key first; tasks of one key in the order they came."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[tuple[Any, int, Any]]] = {stage: [] for stage in STAGES}
        self._numbers = count()

    def put(self, stage: str, key: Any, task: Any) -> None:
        """Add a task; its key may be anything that compares with the other keys."""
        heapq.heappush(self._heaps[stage], (key, next(self._numbers), task))

    def take(self, *stages: str) -> tuple[str, Any, Any] | None:
        """(stage, key, task) with the smallest key of the first of `stages` that has any, or None."""
        for stage in stages:
            if self._heaps[stage]:
                key, _, task = heapq.heappop(self._heaps[stage])
                return stage, key, task
        return None

    def sooner(self, stage: str, key: Any) -> bool:
        """Whether a task of `stage` waits whose key is smaller."""
        heap = self._heaps[stage]
        return bool(heap) and bool(heap[0][0] < key)

    def step(self) -> tuple[str, Any, Any] | None:
        """What a free processor does: decrypt what has arrived, else allocate for what comes next."""
        return self.take("decrypt", "allocate")

    def read(self) -> tuple[str, Any, Any] | None:
        """What the storage does."""
        return self.take("read")

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))


@dataclass(frozen=True)
class Span:
    """`count` blocks from `first` of a tensor, `nbytes` when restored, from byte `at` of a region."""

    name: str
    first: int
    count: int
    nbytes: int
    at: int


@dataclass(frozen=True)
class Wanted:
    """`count` bytes from byte `start` of the tensor `name`, which has `nbytes`."""

    name: str
    nbytes: int
    start: int
    count: int


def lay_out(wanted: Iterable[Wanted]) -> tuple[tuple[Span, ...], int]:
    """The blocks that hold what is `wanted`, one tensor after the other, and the bytes they take."""
    spans, at = [], 0
    for one in wanted:
        first = one.start // BLOCK
        last = max(first, -(-(one.start + one.count) // BLOCK))
        nbytes = min(last * BLOCK, one.nbytes) - first * BLOCK
        spans.append(Span(one.name, first, last - first, nbytes, at))
        at += -(-nbytes // LINE) * LINE
    return tuple(spans), at


def pieces(span: Span, most: int) -> list[tuple[int, int]]:
    """(first block, blocks) of the reads of a span, at most `most` blocks each."""
    stop = span.first + span.count
    return [(at, min(most, stop - at)) for at in range(span.first, stop, most)]
