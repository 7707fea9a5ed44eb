"""The process of one sense: it waits for units, encodes them, and sends its feature.

    python -m haversack.sense._pipeline_worker DESCRIPTOR

The descriptor is one end of a socket; messages are MessagePack. One thread computes: the environment says so
before numpy is loaded (_pipeline_run.py), since two pools on two cores stand in each other's way."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from multiprocessing.connection import Connection, wait
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.streams._model import StreamsModel
from haversack.sense._pipeline_policy import processor_share
from haversack.sense._pipeline_profile import timed
from haversack.sense._pipeline_sources import Replay, Stream
from haversack.sense._pipeline_space import Space
from haversack.sense._pipeline_window import FAST, SLOW, Network, SenseWindow, Slowed
from haversack.sense.pipeline import missed, stop_now, stopped_in

F32 = NDArray[np.float32]
PATIENCE_S = 30.0


class Worker:
    """Answers orders: open, profile, ping, window, close."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.network: Network
        self.sense = SLOW
        self.source: Replay | Stream
        self.early: list[dict[str, Any]] = []  # what came while a window waited for something else
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)

    def say(self, **message: Any) -> None:
        """Send a message."""
        self.connection.send_bytes(msgspec.msgpack.encode(message))

    def hear(self) -> dict[str, Any]:
        """The next message."""
        found: dict[str, Any] = msgspec.msgpack.decode(self.connection.recv_bytes())
        return found

    def serve(self) -> None:
        """Answer orders until the other end goes away."""
        while True:
            try:
                order = self.early.pop(0) if self.early else self.hear()
            except (EOFError, OSError):
                return
            do = order.pop("do")
            if do == "close":
                return
            try:
                if do in ("open", "profile", "ping", "window"):
                    getattr(self, do)(**order)
            except UserError as error:
                self.say(said="error", record=error.record())

    def open(self, model: str, sense: int, slower: int, stream: str | None) -> None:
        """Load the network, open the stream."""
        network: Network = StreamsModel.open(model)
        self.network = Slowed(network, slower) if slower > 1 else network
        self.sense = sense
        if stream is not None:
            self.source = Stream(stream, self.network.shape.senses[sense], self._awake)
        self.say(said="ready")

    def _awake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake already
            os.write(self._wake_write, b"x")

    def ping(self) -> None:
        """Say something back."""
        self.say(said="pong")

    def profile(self, runs: int) -> None:
        """Milliseconds of every stage of this sense, the median of `runs`."""
        space = Space(self.network.shape)
        record = self.network.shape.senses[self.sense]
        draw = np.random.default_rng(0)
        encode: dict[str, float] = {}
        aggregate: dict[str, float] = {}
        slow = self.sense == SLOW
        for size in self.network.shape.sizes:
            for unit in record.units:
                count = len(space.slow_arrivals(unit) if slow else space.fast_arrivals(unit))
                one = (
                    draw.integers(0, 256, (1, *record.shape)).astype(np.uint8)
                    if slow
                    else draw.normal(size=(1, unit)).astype(np.float32)
                )
                first = f"{size}:{record.units[0]}"
                key = f"{size}:{unit}"
                if slow and first in encode:  # a frame costs the same at any rate
                    encode[key] = encode[first]
                else:
                    encode[key] = timed(functools.partial(self.network.encode, self.sense, size, one), runs)
                x = np.repeat(self.network.encode(self.sense, size, one), count, 0)
                aggregate[key] = timed(functools.partial(self.network.aggregate, self.sense, size, x), runs)
        self.say(said="profile", encode=encode, aggregate=aggregate)

    def window(
        self,
        t0: float,
        config: str | None,
        skip: bool,
        blocking: int,
        units: bytes | None,
        missing: list[int],
    ) -> None:
        """Sense and encode one window. `blocking`: 0, or how many units one call encodes after the window."""
        record = self.network.shape.senses[self.sense]
        if units is not None:
            kind = np.uint8 if record.kind == "frames" else np.float32
            self.source = Replay(
                record, np.frombuffer(units, kind).reshape(-1, *record.shape), frozenset(missing)
            )
        WindowRun(self, t0, skip, blocking).run(config)


class WindowRun:
    """One window: what was sensed and encoded when (`spans`, seconds after t0)."""

    def __init__(self, worker: Worker, t0: float, skip: bool, blocking: int) -> None:
        self.worker, self.t0, self.skip, self.blocking = worker, t0, skip, blocking
        self.network, self.sense, self.source = worker.network, worker.sense, worker.source
        self.record = self.network.shape.senses[self.sense]
        self.spans: list[tuple[str, float, float]] = []
        self.spent = {"encode": 0.0, "aggregate": 0.0, "gate": 0.0}
        self.fast: F32 | None = None
        self.config: str | None = None
        self.stopped = False
        self.asked: set[int] = set()
        self.last = t0
        self.warnings: list[str] = []
        self.first: NDArray[Any] | None = None

    def run(self, config: str | None) -> None:
        """Sense, encode, aggregate, send."""
        self.source.begin(self.t0)
        self.config = config
        if config is None:
            self._evidence()
            while self.config is None:
                if not self._until(time.monotonic() + PATIENCE_S):
                    continue
                raise UserError("no configuration was chosen in time.", field="config")
        assert self.config is not None
        window = SenseWindow(self.network, self.sense, Space(self.network.shape).read(self.config))
        if self.blocking:
            self._after(window)
        else:
            self._pipelined(window)
        if not (window.complete or self.stopped):
            self.warnings.append(stopped_in(window))
        feature = self._timed("aggregate", window.feature)
        if window.filled:
            self.warnings.append(missed(self.record.name, window.filled, 0))
        self.worker.say(
            said="done",
            feature=feature.tobytes(),
            used=window.used,
            planned=len(window.plan),
            stopped=self.stopped,
            last=self.last,
            spans=self.spans,
            spent=self.spent,
            warnings=self.warnings,
        )

    def _until(self, moment: float) -> bool:
        """Wait until a moment; False when a message or a unit came before."""
        connection, wake = self.worker.connection, self.worker._wake_read
        left = moment - time.monotonic()
        if left <= 0:
            while connection.poll(0):
                self._take(self.worker.hear())
            return True
        ready = wait([connection, wake] if self.source.live else [connection], left)
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        if connection in ready:
            self._take(self.worker.hear())
        return not ready

    def _take(self, message: dict[str, Any]) -> None:
        if message["do"] == "config":
            self.config = message["config"]
        elif message["do"] == "fast":
            self.fast = np.frombuffer(message["feature"], np.float32)
        else:
            self.worker.early.append(message)

    def _evidence(self) -> None:
        """The first unit through the smallest encoder; meanwhile, how much of a core there is."""
        end = 1 if self.sense == SLOW else self.record.units[0]
        taken = self.source.take(0, end, self._until)
        if taken is None or taken[0] is None:
            raise UserError(
                f"{self.record.name} sends nothing; look at the sensor and its connection.",
                field=self.record.name,
                given=0,
            )
        first = taken[0]
        self.first = first
        size = self.network.shape.sizes[0]
        start = time.monotonic()
        feature = self.network.encode(self.sense, size, first[None])[0]
        self.spans.append(("evidence", start - self.t0, time.monotonic() - self.t0))
        self.worker.say(said="evidence", feature=feature.tobytes(), share=processor_share())

    def _bounds(self, window: SenseWindow, at: int) -> tuple[int, int]:
        begin = int(window.plan[at])
        return begin, begin + 1 if self.sense == SLOW else min(begin + window.chunk, self.record.length)

    def _sensed(self, window: SenseWindow, at: int) -> tuple[NDArray[Any] | None] | None:
        """The planned unit as a tuple of one, (None,) where it is missing; None where the sense stopped or
        the gate stopped it."""
        begin, end = self._bounds(window, at)
        if begin == 0 and self.sense == SLOW and self.first is not None:
            self.last = max(self.last, self.t0 + 1 / self.record.rate)
            return (self.first,)  # a live source has given it away already

        def until(moment: float) -> bool:
            there = self._until(moment)
            if not there and self._ask(window):
                raise _StoppedError
            return there

        taken = self.source.take(begin, end, until)
        if taken is None:
            return None
        self.last = taken[1]
        return (taken[0],)

    def _pipelined(self, window: SenseWindow) -> None:
        try:
            for at in range(len(window.plan)):
                found = self._sensed(window, at)
                if found is None:
                    return
                self._timed("encode", functools.partial(window.encode, found[0]))
                if self._ask(window):
                    return
        except _StoppedError:
            return

    def _after(self, window: SenseWindow) -> None:
        """The blocking way: the whole window first."""
        units = []
        for at in range(len(window.plan)):
            found = self._sensed(window, at)
            if found is None:
                break
            units.append(found[0])
        self._timed("encode", lambda: window.encode_all(units, self.blocking))

    def _ask(self, window: SenseWindow) -> bool:
        """The gate at a checkpoint that was reached; True when it stopped the sense."""
        if self.sense == FAST or not self.skip or self.stopped or self.blocking or window.complete:
            return False
        while self.worker.connection.poll(0):
            self._take(self.worker.hear())
        due = [place for place in window.places if place <= window.used and place not in self.asked]
        if self.fast is None or not due:
            return False
        self.asked.update(due)
        partial = self._timed("aggregate", window.feature)
        fast = self.fast
        sizes = (window.config.slow, window.config.fast)
        probability = self._timed("gate", lambda: self.network.stop(sizes, fast, partial))
        self.stopped = stop_now(probability, self.network.shape.gate_cut)
        return self.stopped

    def _timed(self, stage: str, call: Any) -> Any:
        start = time.monotonic()
        found = call()
        end = time.monotonic()
        self.spent[stage] += 1000 * (end - start)
        self.spans.append((stage, start - self.t0, end - self.t0))
        return found


class _StoppedError(Exception):
    """The gate stopped the sense while it waited for a unit."""


if __name__ == "__main__":
    Worker(Connection(int(sys.argv[1]))).serve()
