"""S5, the trigger: from the evidence of hands at work to the list of clips that are kept.

Paper: AoE (arXiv 2602.23893). All rates and thresholds are [inferred] defaults.

Evidence of one look at the picture: e = max over hands of score (0.5 + 0.5 contact) min(1, motion / m0). Its
average a follows as a <- 0.3 e + 0.7 a (at five looks a second; other rates keep the same half-life). With
hysteresis: a clip STARTs when a has been above 0.55 for 0.6 s, and STOPs when it has been below 0.30 for 3 s.
It begins 2 s before START and ends 1 s after the average fell below 0.30: the 3 s only confirm it. Clips less
than 1.5 s apart become one; at 120 s a clip is split where the average was lowest in its last 20 s; what is
shorter than 2 s is dropped. The same samples always give the same clips, in any language: the vectors in
`trigger_vectors.json` are replayed by this file's tests and are there for an app to replay.

Cost: a few operations a look. Limits: one trigger for a stream; times must rise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from haversack.collect._tables import Hand
from haversack.core.errors import UserError

SYSTEM = 1
SECOND = 1_000_000_000


@dataclass(frozen=True)
class Thresholds:
    """The trigger's constants; `m0_px` is the residual motion that counts in full (px at 160 x 90 in 0.1 s),
    `follow` the weight of new evidence at `rate_hz` looks a second."""

    follow: float = 0.3
    rate_hz: float = 5.0
    start: float = 0.55
    start_s: float = 0.6
    stop: float = 0.30
    stop_s: float = 3.0
    pre_s: float = 2.0
    post_s: float = 1.0
    min_s: float = 2.0
    max_s: float = 120.0
    split_s: float = 20.0
    merge_s: float = 1.5
    m0_px: float = 0.6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < 1e6:
                raise UserError(f"{field.name}={value} is no threshold.", field=field.name, given=value)
        if not (0 < self.follow < 1 and self.stop < self.start < 1 and self.rate_hz > 0 and self.m0_px > 0):
            raise UserError("thresholds need 0 < follow < 1 and stop < start < 1.", field="start")
        if not self.min_s < self.max_s or not self.split_s < self.max_s:
            raise UserError("thresholds need min_s and split_s below max_s.", field="max_s", given=self.max_s)

    def record(self) -> dict[str, float]:
        """As a manifest says it."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True)
class Span:
    """A clip to keep: from, to (ns), the mean and the peak of the average over it."""

    begin_ns: int
    end_ns: int
    mean_a: float
    peak_a: float

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / SECOND


def evidence(hands: Iterable[Hand], motion_px: float, m0_px: float = 0.6) -> float:
    """e in [0, 1] of one look; 0 without hands or without motion."""
    moving = min(1.0, max(0.0, motion_px) / m0_px)
    return max((hand.score * (0.5 + 0.5 * hand.contact) * moving for hand in hands), default=0.0)


def follow_weight(limits: Thresholds, step_ns: int | None) -> float:
    """The weight of new evidence after `step_ns`: `follow` at `rate_hz`, the same half-life at others."""
    if step_ns is None:
        return limits.follow
    steps = step_ns * limits.rate_hz / SECOND
    if abs(steps - 1.0) < 1e-6:
        return limits.follow
    return float(1.0 - (1.0 - limits.follow) ** steps)


@dataclass
class _Open:
    """A clip that is going on, or has ended and may still be joined by the next."""

    begin_ns: int
    end_ns: int | None = None


class Trigger:
    """The state machine. `step` takes samples in order and returns the clips that are final by then."""

    def __init__(self, limits: Thresholds | None = None) -> None:
        self.limits = limits or Thresholds()
        self.a = 0.0
        self.running = False
        self._last: int | None = None
        self._above: int | None = None
        self._below: int | None = None
        self._clip: _Open | None = None
        self._done_to = -(1 << 62)
        self._trace: deque[tuple[int, float]] = deque()

    def step(self, t_ns: int, e: float) -> list[Span]:
        """One sample of evidence. Raises ValueError for a time that does not rise."""
        if self._last is not None and t_ns <= self._last:
            raise ValueError(f"times must rise: {t_ns} after {self._last}")
        weight = follow_weight(self.limits, None if self._last is None else t_ns - self._last)
        self.a = weight * min(1.0, max(0.0, e)) + (1.0 - weight) * self.a
        self._last = t_ns
        self._trace.append((t_ns, self.a))
        found = self._settled(t_ns)
        if not self.running:
            found += self._look_for_start(t_ns)
        else:
            self._look_for_stop(t_ns)
        if self.running:
            found += self._split(t_ns)
        self._forget(t_ns)
        return found

    def end(self) -> list[Span]:
        """The stream is over: what goes on ends now."""
        if self._clip is None or self._last is None:
            return []
        if self._clip.end_ns is None:
            self._clip.end_ns = self._last
        clip, self._clip, self.running = self._clip, None, False
        return self._emit(clip.begin_ns, min(int(clip.end_ns or 0), self._last))

    @property
    def open(self) -> bool:
        """Whether a clip is being made: it goes on, or has ended and may still be joined by the next."""
        return self._clip is not None

    @property
    def needs_from_ns(self) -> int | None:
        """The earliest time of which pictures may still be wanted; None before the first sample."""
        if self._last is None:
            return None
        soonest = self._last - self._ns(self.limits.pre_s + self.limits.start_s)
        return min(soonest, self._clip.begin_ns) if self._clip is not None else soonest

    def _ns(self, seconds: float) -> int:
        return round(seconds * SECOND)

    def _look_for_start(self, t_ns: int) -> list[Span]:
        limits = self.limits
        if self.a <= limits.start:
            self._above = None
            return []
        self._above = t_ns if self._above is None else self._above
        if t_ns - self._above < self._ns(limits.start_s):
            return []
        self.running, self._above, self._below = True, None, None
        before, self._clip = self._clip, None
        if before is not None and t_ns - before.begin_ns < self._ns(limits.max_s):
            self._clip = _Open(before.begin_ns)  # the gap is too short to be one
            return []
        found = [] if before is None else self._emit(before.begin_ns, int(before.end_ns or 0))
        self._clip = _Open(max(t_ns - self._ns(limits.pre_s), self._done_to))
        return found

    def _look_for_stop(self, t_ns: int) -> None:
        limits = self.limits
        if self.a >= limits.stop:
            self._below = None
            return
        self._below = t_ns if self._below is None else self._below
        if t_ns - self._below >= self._ns(limits.stop_s):
            assert self._clip is not None
            self._clip.end_ns = self._below + self._ns(limits.post_s)
            self.running, self._below = False, None

    def _settled(self, t_ns: int) -> list[Span]:
        """The clip that has ended and that none which begins from now on can join."""
        clip = self._clip
        if clip is None or clip.end_ns is None or self.running:
            return []
        if t_ns - self._ns(self.limits.pre_s) - clip.end_ns < self._ns(self.limits.merge_s):
            return []
        self._clip = None
        return self._emit(clip.begin_ns, clip.end_ns)

    def _split(self, t_ns: int) -> list[Span]:
        limits, clip = self.limits, self._clip
        assert clip is not None
        if t_ns - clip.begin_ns < self._ns(limits.max_s):
            return []
        since = t_ns - self._ns(limits.split_s)
        at = min((a, when) for when, a in self._trace if when >= since)[1]
        found = self._emit(clip.begin_ns, at)
        clip.begin_ns = at
        return found

    def _emit(self, begin: int, end: int) -> list[Span]:
        self._done_to = max(self._done_to, end)
        if end - begin < self._ns(self.limits.min_s):
            return []
        values = [a for when, a in self._trace if begin <= when <= end] or [self.a]
        return [Span(begin, end, sum(values) / len(values), max(values))]

    def _forget(self, t_ns: int) -> None:
        keep = self._clip.begin_ns if self._clip is not None else t_ns - self._ns(self.limits.pre_s + 1)
        while self._trace and self._trace[0][0] < keep:
            self._trace.popleft()


def replay(samples: Iterable[tuple[int, float]], limits: Thresholds | None = None) -> dict[str, Any]:
    """The average after every sample, and the clips, of a whole stream: what a vector holds."""
    trigger, averages, clips = Trigger(limits), [], []
    for t_ns, e in samples:
        clips += trigger.step(t_ns, e)
        averages.append(trigger.a)
    clips += trigger.end()
    return {"a": averages, "clips": [[span.begin_ns, span.end_ns] for span in clips]}
