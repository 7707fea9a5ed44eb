"""What a server counts, as Prometheus scrapes it and as the page shows it."""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from haversack.core.memory import PAGE
from haversack.run._batch import Batch
from haversack.run._jobs import Job

if TYPE_CHECKING:
    from haversack.share._verifier import Verifier

FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
RATE_S = 2.0
"""Tokens a second are those of so many last seconds."""


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Tally(Collector):
    """A histogram that one thread adds to at every step: without locks, at a tenth of a Histogram's time."""

    def __init__(self, name: str, what: str, bounds: Sequence[float]) -> None:
        self._name, self._what, self._bounds = name, what, tuple(float(bound) for bound in bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        """As the registry reads it: how many values are at most each bound, and their sum."""
        bounds = [*(str(bound) for bound in self._bounds), "+Inf"]
        buckets = list(zip(bounds, itertools.accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._what, buckets, self._sum)


class Telemetry:
    """Told by the batch (see its `Watch`) and by the application."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.batch: Batch | None = None
        self.verifier: Verifier | None = None
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "haversack_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self.answers = Counter("haversack_answers", "Answers that ended", ["reason"], registry=registry)
        tokens = Counter("haversack_tokens", "Tokens read, taken over, written", ["kind"], registry=registry)
        self._prompt, self._cached = tokens.labels("prompt"), tokens.labels("cached")
        self._answer = tokens.labels("answer")
        prefixes = Counter("haversack_prefix_lookups", "Prompts looked up", ["found"], registry=registry)
        self._hit, self._miss = prefixes.labels("yes"), prefixes.labels("no")
        self._first = Histogram(
            "haversack_first_token_seconds", "Until the first token", buckets=FIRST_S, registry=registry
        )
        self._token = Tally("haversack_token_seconds", "Between tokens of an answer", TOKEN_S)
        self._waited = Histogram(
            "haversack_queue_seconds", "In the queue", buckets=FIRST_S, registry=registry
        )
        self._texts = Tally("haversack_batch_size", "Texts in a step", TEXTS)
        self._step = Tally("haversack_step_seconds", "Of a step", TOKEN_S)
        for tally in (self._token, self._texts, self._step):
            registry.register(tally)
        for name, what, value in (
            ("running", "Answers that run", lambda: self._state("running")),
            ("queue", "Answers that wait", lambda: self._state("waiting")),
            ("contexts", "Answers that can run at once", lambda: self._state("contexts")),
            ("cache_bytes", "Room for keys and values", lambda: self._of("together.pool.nbytes")),
            ("prefix_bytes", "Room for prefixes", lambda: self._of("prefixes.nbytes")),
            ("prefix_blocks", "Blocks of prefixes that are kept", lambda: self._of("prefixes.used")),
            ("resident_bytes", "Memory held now", resident_bytes),
            ("devices", "Devices whose drafts are verified", self._devices),
        ):
            Gauge(f"haversack_{name}", what, registry=registry).set_function(value)
        self._rounds = Counter("haversack_rounds", "Rounds of drafts verified", registry=registry)
        drafts = Counter("haversack_drafts", "Drafts verified", ["accepted"], registry=registry)
        self._right, self._wrong = drafts.labels("yes"), drafts.labels("no")
        self._written: deque[tuple[float, int]] = deque()
        self.total = 0

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        made: bytes = generate_latest(self.registry)
        return made

    def rate(self) -> float:
        """Tokens a second of all answers."""
        now = time.monotonic()
        while self._written and now - self._written[0][0] > RATE_S:
            self._written.popleft()
        return sum(count for _, count in list(self._written)) / RATE_S

    # ---- told by the batch, from its thread

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)
        self._answer.inc()
        self._note(1)

    def step(self, texts: int, rows: int, seconds: float, gaps: Sequence[float]) -> None:
        self._texts.add(texts)
        self._step.add(seconds)
        for gap in gaps:
            self._token.add(gap)
        if gaps:
            self._answer.inc(len(gaps))
            self._note(len(gaps))

    def began(self, prompt: int, cached: int, waited: float) -> None:
        self._prompt.inc(prompt)
        self._cached.inc(cached)
        (self._hit if cached else self._miss).inc()
        self._waited.observe(waited)

    def over(self, job: Job) -> None:
        self.answers.labels(job.stop or "failed").inc()

    def verified(self, drafted: int, accepted: int) -> None:
        """A device's round was verified (told by the event loop)."""
        self._rounds.inc()
        self._right.inc(accepted)
        self._wrong.inc(drafted - accepted)
        self._answer.inc(accepted + 1)
        self._note(accepted + 1)

    def _devices(self) -> float:
        return float(len(self.verifier.devices)) if self.verifier is not None else 0.0

    def _note(self, count: int) -> None:
        now = time.monotonic()
        self.total += count
        if self._written and now - self._written[-1][0] < 0.05:
            self._written[-1] = (self._written[-1][0], self._written[-1][1] + count)
        else:
            self._written.append((now, count))
            while now - self._written[0][0] > 2 * RATE_S:
                self._written.popleft()

    def _state(self, name: str) -> float:
        return float(getattr(self.batch.state(), name)) if self.batch is not None else 0.0

    def _of(self, path: str) -> float:
        value: Any = self.batch
        for name in path.split("."):
            value = getattr(value, name, 0)
        return float(value)
