"""Windows by the clock: a process for each sense, both with the same begin, and here the optimizer and the
fusion."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import HaversackError, UserError
from haversack.core.memory import MIB, MemoryPlan
from haversack.models.streams._folder import bundled
from haversack.models.streams._model import StreamsModel
from haversack.sense._pipeline_policy import Policy
from haversack.sense._pipeline_profile import RUNS, Profile, StageProfile, timed
from haversack.sense._pipeline_space import Config, Space
from haversack.sense._pipeline_window import FAST, SLOW, Network, Slowed
from haversack.sense.pipeline import Result, latency_after

LEAD_S = 0.02
"""From sending a window's orders until it begins."""
OPEN_S = 120.0
PROCESS_MIB = 47
"""An interpreter with numpy and this package, measured."""
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Units:
    """A window of a recording: frames u8 [n, side, side] in their places, sound f32 [m], numbers of frames
    that are missing."""

    frames: NDArray[np.uint8]
    sound: NDArray[np.float32]
    missing: tuple[int, ...] = ()


class Pipeline:
    """Both senses, each encoded in a process of its own while it is sensed; a context manager.

    `model` names one that ships or a folder. `config` fixes the configuration, else `deadline_ms` and a
    profile choose one for every window. `streams`: files of raw bytes, of the slow sense and of the fast
    one; without them `answer` plays recordings by the clock. `blocking`: encode after the window, so many
    units a call. `slower`: play a processor that many times slower."""

    def __init__(
        self,
        model: str | Path = "events",
        *,
        config: Config | str | None = None,
        deadline_ms: float | None = None,
        profile: Profile | None = None,
        skip: bool = True,
        blocking: int = 0,
        slower: int = 1,
        streams: tuple[Path, Path] | None = None,
    ) -> None:
        if slower < 1 or blocking < 0:
            name, value = ("slower", slower) if slower < 1 else ("blocking", blocking)
            raise UserError(f"{name}={value} is not supported (allowed 1 and more).", field=name, given=value)
        self.folder = bundled(model)
        network = StreamsModel.open(self.folder)
        self.network: Network = Slowed(network, slower) if slower > 1 else network
        self.shape, self.space = network.shape, Space(network.shape)
        self.config = self.space.read(str(config)) if config is not None else None
        self.skip, self.blocking, self.slower = skip, blocking, slower
        self.deadline_ms, self.streams = deadline_ms, streams
        self.policy: Policy | None = None
        self._workers: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._open()
        if self.config is None:
            self.use(profile or self.measure())

    def use(self, profile: Profile) -> None:
        """Choose by this profile from now on. Raises UserError without a deadline, and for one that fusing
        alone would miss."""
        if self.deadline_ms is None:
            raise UserError(
                "neither a configuration nor a deadline was given; use --deadline-ms MS, or --config.",
                field="deadline_ms",
            )
        least = min(profile.fuse.values()) if isinstance(profile, StageProfile) else 0.0
        self.policy = Policy(profile, self.deadline_ms, least_ms=least)

    def _open(self) -> None:
        for sense in (SLOW, FAST):
            ours, theirs = socket.socketpair()
            with theirs:
                self._workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "haversack.sense._pipeline_worker", str(theirs.fileno())],
                        pass_fds=[theirs.fileno()],
                        env={**os.environ, **ONE_THREAD},
                        stdin=subprocess.DEVNULL,
                    )
                )
            self._connections.append(Connection(ours.detach()))
            stream = None if self.streams is None else str(self.streams[sense])
            order = {
                "do": "open",
                "model": str(self.folder),
                "sense": sense,
                "slower": self.slower,
                "stream": stream,
            }
            self._send(sense, order)
        for sense in (SLOW, FAST):
            self._hear(sense, OPEN_S)

    def _send(self, sense: int, message: dict[str, Any]) -> None:
        try:
            self._connections[sense].send_bytes(msgspec.msgpack.encode(message))
        except OSError as error:
            raise self._gone(sense) from error

    def _hear(self, sense: int, patience_s: float) -> dict[str, Any]:
        if not self._connections[sense].poll(patience_s):
            raise HaversackError(f"the process of {self.shape.senses[sense].name} does not answer")
        try:
            message: dict[str, Any] = msgspec.msgpack.decode(self._connections[sense].recv_bytes())
        except (EOFError, OSError) as error:
            raise self._gone(sense) from error
        if message["said"] == "error":
            record = message["record"]
            raise UserError(record["error"], **{name: record[name] for name in ("field", "given", "nearest")})
        return message

    def _gone(self, sense: int) -> HaversackError:
        return HaversackError(f"the process of {self.shape.senses[sense].name} ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End both processes."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send_bytes(msgspec.msgpack.encode({"do": "close"}))
            connection.close()
        for worker in self._workers:
            try:
                worker.wait(5)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self._connections, self._workers = [], []

    def memory_plan(self) -> MemoryPlan:
        """What three processes will hold."""
        slow, fast = self.shape.senses
        units = slow.length * int(np.prod(slow.shape)) + 4 * fast.length
        return MemoryPlan(
            (
                ("three processes", 3 * PROCESS_MIB * MIB),
                ("weights in each", 3 * self.network.nbytes),
                ("units of a window", 3 * units),
            )
        )

    def measure(self, runs: int = RUNS, step: Callable[[str], None] = lambda text: None) -> StageProfile:
        """The profile of this device: both senses in their processes at the same time, as in a window (two
        that share a core or its caches are slower than one alone), then the fusion here."""
        encode, aggregate = [], []
        for sense in (SLOW, FAST):
            self._send(sense, {"do": "profile", "runs": runs})
        for sense in (SLOW, FAST):
            message = self._hear(sense, 600)
            encode.append({_key(name): value for name, value in message["encode"].items()})
            aggregate.append({_key(name): value for name, value in message["aggregate"].items()})
            step(f"profile: {self.shape.senses[sense].name}")
        feature = np.zeros(self.network.aggregate(SLOW, self.shape.sizes[0], self._some()).shape, np.float32)
        fuse = {
            (one, other): timed(functools.partial(self.network.fuse, (one, other), feature, feature), runs)
            for one in self.shape.sizes
            for other in self.shape.sizes
        }

        def there_and_back() -> None:
            self._send(SLOW, {"do": "ping"})
            self._hear(SLOW, 10)

        overhead = timed(there_and_back, runs, 0.9)
        return StageProfile(self.space, (encode[0], encode[1]), (aggregate[0], aggregate[1]), fuse, overhead)

    def _some(self) -> NDArray[np.float32]:
        frame = np.zeros((1, *self.shape.slow.shape), np.uint8)
        return self.network.encode(SLOW, self.shape.sizes[0], frame)

    def answer(self, units: Units | None = None) -> Result:
        """The answer of one window: of a recording, or of the streams from now on.

        Raises UserError where a sense stopped too early, sends at another rate, or has too many units
        missing."""
        if (units is None) != (self.streams is not None):
            raise UserError("give a recording to play, or streams, not both.", field="units")
        t0 = time.monotonic() + LEAD_S
        data: tuple[bytes | None, bytes | None] = (None, None)
        if units is not None:
            data = units.frames.tobytes(), np.ascontiguousarray(units.sound, np.float32).tobytes()
        for sense in (SLOW, FAST):
            self._send(
                sense,
                {
                    "do": "window",
                    "t0": t0,
                    "config": None if self.config is None else str(self.config),
                    "skip": self.skip,
                    "blocking": self.blocking,
                    "units": data[sense],
                    "missing": list(units.missing) if units is not None and sense == SLOW else [],
                },
            )
        return self._window(t0)

    def _window(self, t0: float) -> Result:
        config, share, optimizer = self.config, 1.0, 0.0
        shares: list[float] = []
        evidence: dict[int, Any] = {}
        done: dict[int, dict[str, Any]] = {}
        patience = max(sense.window_s for sense in self.shape.senses) + 60
        failed: UserError | None = None
        open_senses = {SLOW, FAST}
        while open_senses:
            ready = wait([self._connections[sense] for sense in open_senses], patience)
            if not ready:
                raise HaversackError("the processes of the senses do not answer")
            for sense in [each for each in sorted(open_senses) if self._connections[each] in ready]:
                try:
                    message = self._hear(sense, 0)
                except UserError as error:
                    failed = failed or error
                    open_senses.discard(sense)
                    if config is None:  # the other one waits for a choice that nobody can make any more
                        config = self.space.configs[0]
                        self._choose(1 - sense, config)
                    continue
                if message["said"] == "evidence":
                    evidence[sense] = np.frombuffer(message["feature"], np.float32)
                    shares.append(message["share"])
                    if len(evidence) == 2 and config is None:
                        start, share = time.perf_counter(), statistics.mean(shares)
                        config = self._decide(evidence, share)
                        optimizer = 1000 * (time.perf_counter() - start)
                        for each in (SLOW, FAST):
                            self._choose(each, config)
                    continue
                done[sense] = message
                open_senses.discard(sense)
                if sense == FAST and self.skip and SLOW in open_senses and not self.blocking:
                    self._send(SLOW, {"do": "fast", "feature": message["feature"]})
        if failed is not None:
            raise failed
        assert config is not None
        return self._result(t0, config, share, optimizer, done)

    def _choose(self, sense: int, config: Config) -> None:
        self._send(sense, {"do": "config", "config": str(config)})

    def _decide(self, evidence: dict[int, Any], share: float) -> Config:
        assert self.policy is not None
        s = self.network.evidence(evidence[SLOW], evidence[FAST])
        accuracy = self.network.accuracies(s, self.space.choices)
        return self.space.configs[self.policy.choose(accuracy.astype(np.float64), share)]

    def _result(
        self, t0: float, config: Config, share: float, optimizer: float, done: dict[int, dict[str, Any]]
    ) -> Result:
        start = time.monotonic()
        slow, fast = (np.frombuffer(done[sense]["feature"], np.float32) for sense in (SLOW, FAST))
        found = self.network.fuse((config.slow, config.fast), slow, fast)
        answered = time.monotonic()
        ends = (done[SLOW]["last"], done[FAST]["last"])
        latency, first = latency_after(answered, ends)
        stages = {"sense": 1000 * (max(ends) - t0), "optimizer": optimizer, "fuse": 1000 * (answered - start)}
        for name in ("encode", "aggregate", "gate"):
            stages[name] = sum(done[sense]["spent"][name] for sense in (SLOW, FAST))
        spans = [("fusion", "fuse", start - t0, answered - t0)]
        for sense in (SLOW, FAST):
            name = self.shape.senses[sense].name
            spans += [(name, kind, float(a), float(b)) for kind, a, b in done[sense]["spans"]]
        latest = max(done.values(), key=lambda one: one["spans"][-1][2])["spans"]
        behind = [
            max(0.0, b - max(a, max(ends) - t0)) for _, a, b in latest
        ]  # computed after the last sample
        stages["wait"] = max(0.0, latency - 1000 * sum(behind) - stages["fuse"])
        predicted = None
        if self.policy is not None:
            predicted = self.policy.predicted_ms
            if not done[SLOW]["stopped"]:
                self.policy.learn(latency)
        return Result(
            self.shape.labels[int(found.argmax())],
            found,
            config,
            (done[SLOW]["used"], done[FAST]["used"]),
            (done[SLOW]["planned"], done[FAST]["planned"]),
            stages,
            latency,
            first,
            1000 * (answered - t0),
            stopped=done[SLOW]["stopped"],
            deadline_ms=self.deadline_ms,
            warnings=[*done[SLOW]["warnings"], *done[FAST]["warnings"]],
            spans=spans,
            share=share,
            predicted_ms=predicted,
        )


def _key(name: str) -> tuple[str, int]:
    size, unit = name.split(":")
    return size, int(unit)
