"""The optimizer while a load comes and goes, beside the best fixed configuration; everything together beside
the largest networks that wait for the whole window.

The processor is played slower, so that there is something to choose: in the first part the medium encoder
takes six tenths of a frame's period (the largest cannot keep up at full rate), in the second the largest
does. The deadline is 1.4 times what the profile foretells, on an idle machine, for the largest
configuration that keeps up; in the first part it is longer where the smallest configuration would miss it
under the load (a machine whose own speed goes up and down): one that no choice meets tells nothing. The load
is a spinning process on every core but one, on and off every six windows. Before anything is counted the
fixed configuration is tried on `TRIALS` windows under the load, and the optimizer answers as many, half of
them under it."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row
from haversack.bench.mmedge._bench import (
    LARGEST,
    Answers,
    bench,
    model,
    points,
    recordings,
    test_answers,
    units_of,
)
from haversack.bench.mmedge.latency import best_batch, windows
from haversack.models.streams._events import Recordings
from haversack.sense._pipeline_policy import Policy, decide, margin
from haversack.sense._pipeline_profile import StageProfile
from haversack.sense._pipeline_run import Pipeline
from haversack.sense._pipeline_space import Config
from haversack.sense.pipeline import Result

WINDOWS, EVERY, TOTAL = 120, 6, 60
PERIOD_SHARE, DEADLINE = 0.6, 1.4
ROOM = 1.1
TRIALS, MARGINS = 40, (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Windows that a fixed configuration must answer in time, and how much longer its latency is reckoned."""
PACE = 100_000
KEEPS_UP = Config("medium", 30, "medium", 400)
"""The largest configuration that keeps up in the first part, idle."""
SPIN = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Ends with the process that started it, however that ended."""
RUNS = 15
"""Of each stage in a profile: stages take long on a processor that is played slower."""


@contextlib.contextmanager
def load() -> Iterator[None]:
    """Spinning processes, as many as cores less one."""
    count = max(1, len(os.sched_getaffinity(0)) - 1)
    hogs = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def pace() -> float:
    """Processor time of a fixed loop, in s."""
    start = time.thread_time()
    for _ in range(PACE):
        pass
    return time.thread_time() - start


@functools.cache
def slower(size: str) -> int:
    """How many times slower the processor is played for the encoder `size` to take PERIOD_SHARE of a
    period."""
    with Pipeline("events", config=LARGEST) as pipeline:
        profile = pipeline.measure(runs=25)
    period = 1000 / model().shape.slow.rate
    return max(1, round(PERIOD_SHARE * period / profile.encode[0][size, LARGEST.rate]))


@dataclass(frozen=True)
class Seen:
    """What the optimizer knew before a window: the share of a core, by how much computing is slower, and how
    much longer than that it reckons with."""

    share: float
    factor: float
    room: float

    def chosen(self, policy: Policy, s: float, choices: NDArray[np.int64]) -> int:
        """The configuration for a recording of evidence `s`."""
        accuracy = model().accuracies(s, choices).astype(np.float64)
        return policy.decided(accuracy, self.share, self.factor, self.room)


def adapted(pipeline: Pipeline, policy: Policy, data: Recordings, at: int) -> tuple[Result, Seen]:
    """A window whose configuration the optimizer chooses, and what it knew."""
    pipeline.config, pipeline.policy = None, policy
    factor, room = policy.factor, margin(policy.overruns)
    result = pipeline.answer(units_of(data, at))
    return result, Seen(result.share, factor, room)


@dataclass
class Trace:
    """What happened to the windows of a run. `state`: what the optimizer saw."""

    adaptive: list[Result] = field(default_factory=list)
    fixed: list[Result] = field(default_factory=list)
    state: list[Seen] = field(default_factory=list)
    loaded: list[bool] = field(default_factory=list)
    paces: list[float] = field(default_factory=list)
    """Processor time of a fixed loop before each window without load, in s."""

    @property
    def uneven(self) -> float:
        """How many times longer the loop took before slow windows (95th percentile) than before quick ones
        (5th), all without load: what the machine did by itself."""
        quick, slow = np.percentile(self.paces, (5, 95))
        return float(slow / quick)


def latencies(pipeline: Pipeline, config: Config, data: Recordings) -> Iterator[float]:
    """Of `TRIALS` windows of `data`, answered with `config`, in ms."""
    pipeline.config, pipeline.policy = config, None
    for at in range(TRIALS):
        yield pipeline.answer(units_of(data, at)).latency_ms


def fixed_for(pipeline: Pipeline, busy: StageProfile, data: Recordings, deadline_ms: float) -> Config:
    """The most accurate configuration, by the shipped table, that answers `TRIALS` windows of `data` in time
    under the load of now. A profile measured under it says where to look: its latencies are taken longer
    until the choice holds."""
    accuracy = model().table.mean(-1).reshape(-1).astype(np.float64)
    config, tried = None, set()
    for longer in MARGINS:
        config = busy.space.configs[decide(accuracy, longer * busy.latency_ms(1.0), deadline_ms)]
        if config in tried:
            continue
        tried.add(config)
        if all(took <= deadline_ms for took in latencies(pipeline, config, data)):
            break
    assert config is not None
    return config


def toggled(run: Run, count: int) -> tuple[Trace, Config, float, Pipeline]:
    """Windows in turns, adaptive and fixed, while the load is toggled; the deadline in ms."""
    data = recordings(count, run.seed % 1_000_000)
    trace = Trace()
    with Pipeline("events", config=LARGEST, skip=False, slower=slower(KEEPS_UP.slow)) as pipeline:
        idle = pipeline.measure(RUNS)
        with load():
            busy = pipeline.measure(RUNS)
            least = max(latencies(pipeline, pipeline.space.configs[0], data))
            pipeline.deadline_ms = deadline = max(DEADLINE * idle.of(KEEPS_UP), ROOM * least)
            fixed = fixed_for(pipeline, busy, data, deadline)
        pipeline.use(idle)
        policy = pipeline.policy
        assert policy is not None
        for start in range(0, TRIALS, EVERY):
            with load() if start // EVERY % 2 else contextlib.nullcontext():
                for at in range(start, min(start + EVERY, TRIALS)):
                    adapted(pipeline, policy, data, at)
        for start in range(0, count, EVERY):
            busy_now = start // EVERY % 2 == 1
            with load() if busy_now else contextlib.nullcontext():
                for at in range(start, min(start + EVERY, count)):
                    trace.paces += [] if busy_now else [pace()]
                    result, seen = adapted(pipeline, policy, data, at)
                    trace.adaptive.append(result)
                    trace.state.append(seen)
                    pipeline.config, pipeline.policy = fixed, None
                    trace.fixed.append(pipeline.answer(units_of(data, at)))
                    trace.loaded.append(busy_now)
        pipeline.policy = policy
    return trace, fixed, deadline, pipeline


def replayed(found: Answers, trace: Trace, pipeline: Pipeline) -> float:
    """The accuracy of the optimizer's choices over all recordings of the test, under the loads that were
    seen: the n-th recording meets the n-th window's state, in turns."""
    policy = pipeline.policy
    assert policy is not None
    choices, s = pipeline.space.choices, found.evidence()
    right: list[bool] = []
    answered: dict[int, NDArray[np.bool_]] = {}
    for at, each in enumerate(s):
        chosen = trace.state[at % len(trace.state)].chosen(policy, float(each), choices)
        if chosen not in answered:
            answered[chosen] = found.right(pipeline.space.configs[chosen])
        right.append(bool(answered[chosen][at]))
    return float(np.mean(right))


def hits(results: list[Result], deadline_ms: float) -> float:
    """The share of windows that were answered in time."""
    return statistics.mean(one.latency_ms <= deadline_ms for one in results)


@bench.measure(
    Row(
        "adaptive-accuracy",
        "accuracy of the optimizer less that of the best fixed configuration that meets the deadline "
        "under load",
        "percentage points",
        "quality",
        Bar(">=", 1.5),
        judged="ours",
    ),
    Row(
        "adaptive-hits",
        "windows answered before the deadline while the load is toggled",
        "share",
        "quality",
        Bar(">=", 0.99),
        judged="ours",
        published="latency-constrained",
    ),
    Row("fixed-hits", "the same for the fixed configuration", "share", "quality", judged="ours"),
    Row(
        "overhead",
        "optimizer and gate over the latency as the published code counts it, from the end of the first "
        "sense",
        "share",
        "quality",
        Bar("<=", 0.05),
        judged="ours",
    ),
    seconds=700,
)
def adaptive(run: Run) -> Outcomes:
    trace, fixed, deadline, pipeline = toggled(run, WINDOWS)
    found = test_answers(run)
    ours, other = replayed(found, trace, pipeline), float(found.right(fixed).mean())
    chosen = {
        state: statistics.mode(
            str(one.config) for one, busy in zip(trace.adaptive, trace.loaded, strict=True) if busy == state
        )
        for state in (False, True)
    }
    note = (
        f"{ours:.4f} and {other:.4f}; fixed {fixed}; chosen most often: idle {chosen[False]}, loaded "
        f"{chosen[True]}; "
        f"deadline {deadline:.1f} ms, processor played {slower(KEEPS_UP.slow)} times slower"
    )
    spent = [(one.stages["optimizer"] + one.stages["gate"]) / one.latency_first_ms for one in trace.adaptive]
    strict = statistics.median(one.stages["optimizer"] / one.latency_ms for one in trace.adaptive)
    count = (
        f"{len(trace.adaptive)} windows, the load toggled every {EVERY}; without load the machine's "
        f"own speed went up and down by {trace.uneven:.2f} times"
    )
    return {
        "adaptive-accuracy": Outcome.single(points(ours - other), note=note),
        "adaptive-hits": Outcome.single(hits(trace.adaptive, deadline), note=count),
        "fixed-hits": Outcome.single(hits(trace.fixed, deadline), note=f"{count}; {fixed}"),
        "overhead": Outcome.single(
            statistics.median(spent),
            note=f"of the latency after the last sample it would be {strict:.3f}; it runs during sensing",
        ),
    }


@bench.measure(
    Row(
        "total-latency",
        "optimizer, pipeline and gate over the largest networks that block",
        "ms",
        "time",
        Bar("<=", 0.4),
        published="up to 75.8 % lower",
    ),
    Row(
        "total-accuracy",
        "accuracy of the former less that of the latter, over the same recordings",
        "percentage points",
        "quality",
        Bar(">=", -1.0),
        judged="ours",
    ),
    seconds=200,
)
def total(run: Run) -> Outcomes:
    count = max(MIN_PAIRS, TOTAL)
    data = recordings(count, run.seed % 1_000_000)
    ours, other, state = [], [], []
    with Pipeline("events", config=LARGEST, slower=slower(LARGEST.slow)) as pipeline:
        idle = pipeline.measure(RUNS)
        pipeline.deadline_ms = DEADLINE * idle.of(LARGEST)
        pipeline.use(idle)
        policy = pipeline.policy
        assert policy is not None

        def blocking(batch: int, at: int = 0) -> Result:
            windows(pipeline, batch, LARGEST)
            pipeline.policy = None
            return pipeline.answer(units_of(data, at))

        batch = best_batch(blocking)
        for at in range(count):
            other.append(blocking(batch, at).latency_ms)
            pipeline.blocking, pipeline.skip = 0, True
            result, seen = adapted(pipeline, policy, data, at)
            ours.append(result.latency_ms)
            state.append(seen)
    found = test_answers(run)
    accuracy, frames = skipped(found, state, pipeline, policy)
    largest = float(found.right(LARGEST).mean())
    note = f"blocking encodes {batch} units a call; processor played {slower(LARGEST.slow)} times slower"
    return {
        "total-latency": Outcome.of(
            {"ours": ours, "blocking": other}, ours="ours", baseline="blocking", note=note
        ),
        "total-accuracy": Outcome.single(
            points(accuracy - largest),
            note=f"{accuracy:.4f} and {largest:.4f}; {frames:.3f} of the largest's frames",
        ),
    }


def skipped(found: Answers, state: list[Seen], pipeline: Pipeline, policy: Policy) -> tuple[float, float]:
    """(accuracy, share of the largest's frames) of optimizer and gate over all recordings of the test."""
    choices = pipeline.space.choices
    right, frames = [], []
    for at, s in enumerate(found.evidence()):
        config = pipeline.space.configs[state[at % len(state)].chosen(policy, float(s), choices)]
        place = next((p for p in range(3) if found.stop(config, p)[at] >= model().shape.gate_cut), 3)
        right.append(bool(found.right(config, place)[at]))
        frames.append(found.places(config.rate)[place])
    return float(np.mean(right)), float(np.mean(frames)) / found.places(LARGEST.rate)[-1]
