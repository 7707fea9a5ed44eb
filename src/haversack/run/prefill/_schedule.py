"""Which subgraph a processor takes next: mllm-NPU's rules, for the executor that runs them and for the event
simulator of simulate/npu_prefill.py alike.

Paper: arXiv 2407.05858, out-of-order subgraph execution. Subgraph G(i, j) is number j of the sequence that
every chunk i goes through. It is ready when G(i, j-1) is done and, where it is attention, when G(0, j-1) to
G(i-1, j-1) are: the keys of earlier chunks. Policies: `serial`, one at a time, chunk after chunk; `chunk`,
the ready one of the lowest chunk; `out-of-order`, the ready one with the largest C(g): the time of the
integer processor's subgraphs that become ready once g is done, where g runs in floats; less the time of the
float processor's, where g runs in integers. Ties go to the lower chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

INTEGERS, FLOATS = "npu", "cpu"
PROCESSORS = (INTEGERS, FLOATS)
POLICIES = ("serial", "chunk", "out-of-order")
Times = Sequence[Sequence[float]]
"""Of each chunk, the time of each subgraph, in any unit."""
Place = tuple[int, int]
"""(chunk, index) of a subgraph."""


@dataclass(frozen=True)
class Subgraph:
    """One of a chunk's sequence: the `processor` that runs it, and whether it is `attention`, which depends
    on the chunk and reads what earlier chunks left. `label` is for people."""

    processor: str
    attention: bool = False
    label: str = ""


class Progress:
    """How far every chunk is: `done` subgraphs of each, and which chunks have one `running`."""

    def __init__(self, sequence: Sequence[Subgraph], chunks: int) -> None:
        self.sequence = tuple(sequence)
        self.done = [0] * chunks
        self.running: set[int] = set()

    @property
    def finished(self) -> bool:
        """True when every chunk is through."""
        return min(self.done) == len(self.sequence)

    def ready(self, processor: str) -> list[Place]:
        """The subgraphs that `processor` could start now, by chunk."""
        return [
            (chunk, index)
            for chunk, index in enumerate(self.done)
            if chunk not in self.running and self._may(chunk, index, self.done, processor)
        ]

    def released(self, place: Place, processor: str) -> list[Place]:
        """The subgraphs of `processor` that become ready once the one at `place` is done."""
        chunk, index = place
        after = list(self.done)
        after[chunk] = index + 1
        found = [(chunk, index + 1)] if self._may(chunk, index + 1, after, processor) else []
        for other in range(chunk + 1, len(after)):
            at = after[other]
            if other in self.running or at != index + 1 or not self._may(other, at, after, processor):
                continue
            if not self._may(other, at, self.done, processor):
                found.append((other, at))
        return found

    def start(self, place: Place) -> None:
        """Note that the subgraph at `place` runs."""
        self.running.add(place[0])

    def finish(self, place: Place) -> None:
        """Note that the subgraph at `place` is done."""
        self.running.discard(place[0])
        self.done[place[0]] = place[1] + 1

    def _may(self, chunk: int, index: int, done: Sequence[int], processor: str) -> bool:
        if index >= len(self.sequence) or self.sequence[index].processor != processor:
            return False
        return not self.sequence[index].attention or all(count >= index for count in done[:chunk])


def worth(progress: Progress, place: Place, times: Times) -> float:
    """C(g) of the subgraph at `place`."""
    here = progress.sequence[place[1]].processor
    other = FLOATS if here == INTEGERS else INTEGERS
    total = sum(times[chunk][index] for chunk, index in progress.released(place, other))
    return -total if here == INTEGERS else total


def choose(progress: Progress, processor: str, policy: str, times: Times) -> Place | None:
    """What a free `processor` starts now, None where nothing is ready for it."""
    if policy == "serial":
        if progress.running or progress.finished:
            return None
        chunk = next(i for i, count in enumerate(progress.done) if count < len(progress.sequence))
        index = progress.done[chunk]
        return (chunk, index) if progress.sequence[index].processor == processor else None
    ready = progress.ready(processor)
    if not ready:
        return None
    if policy == "chunk":
        return ready[0]
    return max(ready, key=lambda place: (worth(progress, place, times), -place[0]))
