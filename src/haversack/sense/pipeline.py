"""Answers from several live sensors before a deadline: each unit is encoded while the next is being sensed.

Paper: MMEdge (arXiv 2510.25327, SenSys 2026), "Accelerating On-device Multimodal Inference via Pipelined
Sensing and Encoding". A window is cut into units (a frame, a chunk of samples). As soon as one is there its
light encoder runs; after the last, only temporal aggregation and fusion remain. Before each window an
optimizer chooses encoders and sensing rates under a deadline (`_pipeline_policy.py`). When the fast sense
has ended, a gate may stop the slow one at half, 70 % or 90 % of its planned frames (`stop_now`).

Here: `PipelinedSession`, one window to push units into, in one process; `Pipeline` (`_pipeline_run.py`) is
the same with a process for each sense and the clock. What we changed: the gate waits until the fast sense
can have ended, since before there is nothing to decide by; its logit is averaged with that of the answer's
confidence, and its cut is the model's, chosen on recordings of its own; where no configuration meets the
deadline the fastest is taken [inferred]; what a unit's time says (order, gaps, rate, skew) is checked.
Latency is counted from the last sample that was sensed; also from the end of the first sense, as the
published code does, and from the window's begin.

Limits: two senses, one of frames and one of samples. The published generator that imputes skipped frames is
not built: the aggregation takes an unfinished window as it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed, unknown_name
from haversack.models.streams._units import chunk_count
from haversack.sense._pipeline_clock import LATE, FrameClock, SampleClock, check_skew
from haversack.sense._pipeline_policy import Policy
from haversack.sense._pipeline_space import Config, Space
from haversack.sense._pipeline_window import FAST, SLOW, Network, SenseWindow

SYSTEM = 6

F32 = NDArray[np.float32]
LEAST_SHARE = 0.5
"""Of the planned units: a sense that stopped before it has no answer."""


def stop_now(probability: float, cut: float) -> bool:
    """Whether the gate stops the slow sense."""
    return probability >= cut


def latency_after(answered: float, ends: tuple[float, float]) -> tuple[float, float]:
    """Milliseconds from the last sample of all, and from the end of the first sense (as the published code
    counts)."""
    return 1000 * (answered - max(ends)), 1000 * (answered - min(ends))


@dataclass
class Result:
    """A window's answer. `used` and `planned`: units of the slow sense, of the fast one. `stages`:
    milliseconds of computing {sense, encode, wait, aggregate, fuse, optimizer, gate}; `sense` is the window's
    length until the last sample. `stopped`: the gate ended the slow sense."""

    label: str
    probabilities: F32
    config: Config
    used: tuple[int, int]
    planned: tuple[int, int]
    stages: dict[str, float]
    latency_ms: float
    latency_first_ms: float
    wall_ms: float
    stopped: bool = False
    deadline_ms: float | None = None
    warnings: list[str] = field(default_factory=list)
    spans: list[tuple[str, str, float, float]] = field(default_factory=list)
    share: float = 1.0
    predicted_ms: float | None = None

    @property
    def in_time(self) -> bool | None:
        """Whether the deadline was met; None without one."""
        return None if self.deadline_ms is None else self.latency_ms <= self.deadline_ms

    def record(self) -> dict[str, Any]:
        """As `--json` prints it, without the spans."""
        return {
            "label": self.label,
            "probability": float(self.probabilities.max()),
            "config": self.config.record(),
            "used": list(self.used),
            "planned": list(self.planned),
            "stopped": self.stopped,
            "latency_ms": round(self.latency_ms, 3),
            "latency_first_ms": round(self.latency_first_ms, 3),
            "wall_ms": round(self.wall_ms, 3),
            "in_time": self.in_time,
            "predicted_ms": None if self.predicted_ms is None else round(self.predicted_ms, 3),
            "stages": {name: round(value, 3) for name, value in self.stages.items()},
            "warnings": self.warnings,
        }


class PipelinedSession:
    """One window of two sensors, in this process: `push` units as they come, then `result`.

    `config` fixes the configuration; `policy` chooses it from the first frame and the first samples. Frames
    are u8 of the sense's shape, one a push; samples are f32 [n], any number a push; `t` is the unit's own
    time in seconds (of a frame, of the first sample). `late`: units out of order are refused or dropped;
    `skew_s`: by how much the slow sense's clock is known to be ahead.

        session = PipelinedSession(network, config=Config("small", 20, "small", 400))
        session.push("camera", frame, t=0.0)
        session.push("microphone", samples, t=0.0)
        session.result().label
    """

    def __init__(
        self,
        network: Network,
        *,
        config: Config | None = None,
        policy: Policy | None = None,
        skip: bool = True,
        late: str = "refuse",
        skew_s: float = 0.0,
    ) -> None:
        if (config is None) == (policy is None):
            raise UserError("give a configuration or a policy that chooses one, not both.", field="config")
        if late not in LATE:
            raise not_allowed("late", late, LATE)
        shape = network.shape
        self.network, self.space, self.policy = network, Space(shape), policy
        self.skip, self.skew_s = skip, skew_s
        self.config = None if config is None else self.space.read(str(config))
        self._names = [sense.name for sense in shape.senses]
        self._frames: dict[int, NDArray[np.uint8]] = {}
        self._sound = np.zeros(shape.fast.length, np.float32)
        self._heard = 0
        self._seen, self._listened = FrameClock(shape.slow, late), SampleClock(shape.fast, late)
        self._windows: list[SenseWindow] = []
        self._stages = dict.fromkeys(("encode", "aggregate", "fuse", "optimizer", "gate"), 0.0)
        self._fast: F32 | None = None
        self._asked: set[int] = set()
        self.stopped = False
        if self.config is not None:
            self._begin(self.config)

    def push(self, modality: str, unit: Any, t: float) -> None:
        """Take one unit. Raises UserError for a sense that is not known, a unit of another shape or type, and
        for what its time says (see _pipeline_clock.py)."""
        if modality not in self._names:
            raise unknown_name("modality", modality, self._names)
        if modality == self._names[SLOW]:
            self._take_frame(np.asarray(unit), t - self.skew_s)
        else:
            self._take_samples(np.asarray(unit), t)
        first, heard = self._seen.first, self._listened.first
        if first is not None and heard is not None:
            check_skew(*self.network.shape.senses, first, heard)
        self._go_on()

    def _take_frame(self, frame: NDArray[Any], t: float) -> None:
        sense = self.network.shape.slow
        if frame.shape != sense.shape or frame.dtype != np.uint8:
            raise UserError(
                f"a frame of {sense.name} is {frame.dtype} {list(frame.shape)}; the model takes uint8 "
                f"{list(sense.shape)}.",
                field="unit",
                given=[str(frame.dtype), *frame.shape],
                nearest=["uint8", *sense.shape],
            )
        place = self._seen.place(t)
        if place is not None and place < sense.length:
            self._frames[place] = frame

    def _take_samples(self, samples: NDArray[Any], t: float) -> None:
        sense = self.network.shape.fast
        if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating) or not len(samples):
            raise UserError(
                f"samples of {sense.name} are {samples.dtype} {list(samples.shape)}; the model takes "
                "floats [n] "
                "from -1 to 1.",
                field="unit",
                given=[str(samples.dtype), *samples.shape],
            )
        if not np.isfinite(samples).all():
            raise UserError(f"samples of {sense.name} hold what is no number.", field="unit")
        place = self._listened.place(t, len(samples))
        if place is not None and place < sense.length:
            end = min(place + len(samples), sense.length)
            self._sound[place:end] = samples[: end - place]
            self._heard = end

    def _begin(self, config: Config) -> None:
        self.config = config
        self._windows = [SenseWindow(self.network, sense, config) for sense in (SLOW, FAST)]

    def _go_on(self) -> None:
        """Choose, encode and ask the gate: whatever has become possible."""
        if self.config is None:
            chunk = self.network.shape.fast.units[0]
            if 0 not in self._frames or self._heard < chunk:
                return
            assert self.policy is not None
            start = time.perf_counter()
            small = self.network.shape.sizes[0]
            first = self.network.encode(SLOW, small, self._frames[0][None])[0]
            heard = self.network.encode(FAST, small, self._sound[None, :chunk])[0]
            accuracy = self.network.accuracies(self.network.evidence(first, heard), self.space.choices)
            self._begin(self.space.configs[self.policy.choose(accuracy.astype(np.float64))])
            self._spent("optimizer", start)
        slow, fast = self._windows
        while not fast.complete and self._heard >= min(fast.plan[fast.used] + fast.chunk, fast.record.length):
            start = time.perf_counter()
            begin = int(fast.plan[fast.used])
            fast.encode(self._sound[begin : min(begin + fast.chunk, fast.record.length)])
            self._spent("encode", start)
        if fast.complete and self._fast is None:
            self._fast = self._aggregated(fast)
            self._ask(slow)
        while not (slow.complete or self.stopped):
            number = int(slow.plan[slow.used])
            if number not in self._frames and self._seen.last < number:
                break
            start = time.perf_counter()
            slow.encode(self._frames.pop(number, None))
            self._spent("encode", start)
            self._ask(slow)

    def _ask(self, slow: SenseWindow) -> None:
        """The gate, at a checkpoint, once the fast sense is whole."""
        due = [place for place in slow.places if place <= slow.used and place not in self._asked]
        if not (self.skip and due) or self._fast is None or slow.complete:
            return
        self._asked.update(due)
        partial = self._aggregated(slow)
        start = time.perf_counter()
        assert self.config is not None
        sure = self.network.stop((self.config.slow, self.config.fast), self._fast, partial)
        self.stopped = stop_now(sure, self.network.shape.gate_cut)
        self._spent("gate", start)

    def _aggregated(self, window: SenseWindow) -> F32:
        start = time.perf_counter()
        feature = window.feature()
        self._spent("aggregate", start)
        return feature

    def _spent(self, stage: str, start: float) -> None:
        self._stages[stage] += 1000 * (time.perf_counter() - start)

    @property
    def complete(self) -> bool:
        """Whether `result` has all it needs; units that come later are not looked at."""
        return (
            bool(self._windows)
            and self._windows[FAST].complete
            and (self._windows[SLOW].complete or self.stopped)
        )

    def result(self) -> Result:
        """The answer from what has come. Latencies count from the last push's computing, since no clock runs
        here. Raises UserError where a sense stopped before half of its units had come."""
        asked = time.perf_counter()
        warnings = self._finish()
        slow, fast = self._windows
        assert self.config is not None
        last = self._aggregated(slow)
        heard = self._fast if self._fast is not None else self._aggregated(fast)
        start = time.perf_counter()
        found = self.network.fuse((self.config.slow, self.config.fast), last, heard)
        self._spent("fuse", start)
        took = 1000 * (time.perf_counter() - asked)
        ends = [self.network.shape.senses[at].window_s for at in (SLOW, FAST)]
        return Result(
            self.network.shape.labels[int(found.argmax())],
            found,
            self.config,
            (slow.used, fast.used),
            (len(slow.plan), len(fast.plan)),
            {"sense": 1000 * max(ends), "wait": 0.0, **self._stages},
            took,
            took + 1000 * (max(ends) - min(ends)),
            took + 1000 * max(ends),
            stopped=self.stopped,
            warnings=warnings,
        )

    def _finish(self) -> list[str]:
        """What is said about units that are missing; a sound that stopped is closed with zeros."""
        if self.config is None:
            raise stopped_early(self._names[FAST if 0 in self._frames else SLOW], 0, 0)
        slow, fast = self._windows
        warnings = []
        if not (slow.complete or self.stopped):
            warnings.append(stopped_in(slow))
        if not fast.complete:
            if self._heard and self._heard > fast.plan[fast.used]:
                fast.encode(self._sound[int(fast.plan[fast.used]) : self._heard])
            warnings.append(stopped_in(fast))
        for name, lost, dropped in (
            (self._names[SLOW], self._seen.lost, self._seen.dropped),
            (self._names[FAST], self._listened.lost, self._listened.dropped),
        ):
            if lost or dropped:
                warnings.append(missed(name, lost, dropped))
        return warnings


def stopped_in(window: SenseWindow) -> str:
    """The warning for a sense that stopped in mid-window. Raises UserError where too little had come."""
    if window.used < LEAST_SHARE * len(window.plan):
        raise stopped_early(window.record.name, window.used, len(window.plan))
    return (
        f"{window.record.name} stopped after {window.used} of {len(window.plan)} units; the answer is from "
        "those"
    )


def stopped_early(name: str, used: int, planned: int) -> UserError:
    """The error for a sense that stopped too early."""
    return UserError(
        f"{name} stopped after {used} of {planned or 'the'} units, too few for an answer (at least half are "
        "needed); look at the sensor and its connection.",
        field=name,
        given=used,
        nearest=-(-planned // 2) or None,
    )


def missed(name: str, lost: int, dropped: int) -> str:
    """The warning for units that were lost or came late."""
    return f"{name}: {lost} units missing, filled from what was before; {dropped} late, dropped"


def units_of(space: Space, config: Config) -> tuple[int, int]:
    """Planned units of the slow sense and of the fast one."""
    return len(space.slow_arrivals(config.rate)), chunk_count(space.shape.fast.length, config.chunk)
