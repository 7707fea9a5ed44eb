"""Two processors: each takes what the schedule gives it, until a prompt is read; and the trace.

One runs what is integers, the other what is floats. `cores="apart"`: each is a thread and has one core.
`shared`: both are the same cores, so they take turns on one thread, and a kernel call has all threads of the
kernels; a second thread could only take from the first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from haversack.core._files import write_atomically
from haversack.kernels import set_threads, threads
from haversack.run.prefill._schedule import (
    FLOATS,
    INTEGERS,
    PROCESSORS,
    Place,
    Progress,
    Subgraph,
    Times,
    choose,
)

CORES = ("shared", "apart")
Run = Callable[[int, int], None]
"""Runs the subgraph of (chunk, index)."""


@dataclass(frozen=True)
class Span:
    """A subgraph that ran: seconds from the first one's start."""

    chunk: int
    index: int
    processor: str
    start: float
    end: float


class Executor:
    """Runs chunks through `sequence` by `policy`. `spans` are those of the last `execute`, by their ends."""

    def __init__(self, sequence: Sequence[Subgraph], policy: str, cores: str = "shared") -> None:
        self.sequence, self.policy, self.cores = sequence, policy, cores
        self.spans: list[Span] = []

    def execute(self, times: Times, run: Run) -> None:
        """Run every subgraph of every chunk; `times` [chunks][subgraphs] are what the schedule believes. What
        a subgraph raises ends it, and is raised here."""
        self.spans = []
        before = threads()
        if self.cores == "apart":
            set_threads(1)
        try:
            if self.policy == "serial":
                self._in_turn(len(times), run)
            elif self.cores == "shared":
                self._by_turns(times, run)
            else:
                self._side_by_side(times, run)
        finally:
            set_threads(before)

    def _in_turn(self, chunks: int, run: Run) -> None:
        origin = time.perf_counter()
        for chunk in range(chunks):
            for index, shape in enumerate(self.sequence):
                start = time.perf_counter() - origin
                run(chunk, index)
                self.spans.append(Span(chunk, index, shape.processor, start, time.perf_counter() - origin))

    def _by_turns(self, times: Times, run: Run) -> None:
        """The next of the one processor, then of the other, as each has something to do."""
        progress, origin = Progress(self.sequence, len(times)), time.perf_counter()
        while not progress.finished:
            for processor in (INTEGERS, FLOATS):
                place = choose(progress, processor, self.policy, times)
                if place is None:
                    continue
                progress.start(place)
                start = time.perf_counter() - origin
                run(*place)
                self.spans.append(Span(*place, processor, start, time.perf_counter() - origin))
                progress.finish(place)

    def _side_by_side(self, times: Times, run: Run) -> None:
        progress, changed = Progress(self.sequence, len(times)), Condition()
        raised: list[BaseException] = []
        origin = time.perf_counter()

        def take(processor: str) -> Place | None:
            with changed:
                while not raised and not progress.finished:
                    place = choose(progress, processor, self.policy, times)
                    if place is not None:
                        progress.start(place)
                        return place
                    changed.wait()
                return None

        def work(processor: str) -> None:
            try:
                while (place := take(processor)) is not None:
                    start = time.perf_counter() - origin
                    run(*place)
                    span = Span(*place, processor, start, time.perf_counter() - origin)
                    with changed:
                        self.spans.append(span)
                        progress.finish(place)
                        changed.notify_all()
            except BaseException as error:
                with changed:
                    raised.append(error)
                    changed.notify_all()

        other = Thread(target=work, args=(FLOATS,), name="haversack-floats")
        other.start()
        work(INTEGERS)
        other.join()
        if raised:
            raise raised[0]

    def busy_ms(self, processor: str) -> float:
        """Milliseconds that a processor worked."""
        return 1e3 * sum(span.end - span.start for span in self.spans if span.processor == processor)

    @property
    def span_ms(self) -> float:
        """Milliseconds until the last subgraph ended."""
        return 1e3 * max((span.end for span in self.spans), default=0.0)


def trace_events(sequence: Sequence[Subgraph], spans: Sequence[Span]) -> dict[str, Any]:
    """`spans` in the format that Chrome's and Perfetto's viewers open; a row for each processor."""
    rows = {processor: number for number, processor in enumerate(PROCESSORS)}
    named: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": number, "args": {"name": processor}}
        for processor, number in rows.items()
    ]
    found = [
        {
            "name": sequence[span.index].label,
            "ph": "X",
            "ts": round(1e6 * span.start, 1),
            "dur": round(1e6 * (span.end - span.start), 1),
            "pid": 0,
            "tid": rows[span.processor],
            "args": {"chunk": span.chunk, "subgraph": span.index},
        }
        for span in spans
    ]
    return {"traceEvents": named + found, "displayTimeUnit": "ms"}


def write_trace(path: Path, sequence: Sequence[Subgraph], spans: Sequence[Span]) -> None:
    """Write `trace_events` to `path`. Raises UserError where that cannot be written."""
    write_atomically(path, json.dumps(trace_events(sequence, spans)).encode())
