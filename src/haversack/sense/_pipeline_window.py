"""One sense in one window: its planned units, encoded one by one, and the feature of those that are there."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from haversack.models.streams._record import CHECKPOINTS, Shape
from haversack.models.streams._units import checkpoints, chunk_count, planned_frames
from haversack.models.streams.temporal_shift import GrowingShift
from haversack.sense._pipeline_space import Config

F32 = NDArray[np.float32]
SLOW, FAST = 0, 1


class Network(Protocol):
    """What a pipeline computes with; `models.streams` has one, a task of one's own can be another. `sense` is
    SLOW or FAST, features are f32 [width]."""

    shape: Shape
    table: F32

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""

    def encode(self, sense: int, size: str, units: NDArray[Any]) -> F32:
        """Features [n, width] of units [n, ...]."""

    def aggregate(self, sense: int, size: str, features: F32, shifted: F32 | None = None) -> F32:
        """Feature of a window of features [steps, width]."""

    def fuse(self, sizes: tuple[str, str], slow: F32, fast: F32) -> F32:
        """Probabilities [classes]."""

    def evidence(self, slow: F32, fast: F32) -> float:
        """How alike the first units are."""

    def accuracies(self, s: float, choices: NDArray[np.int64]) -> F32:
        """The accuracy expected of configurations [n, 4]."""

    def stop(self, sizes: tuple[str, str], fast: F32, slow: F32) -> float:
        """How sure it is that the rest of the slow sense may be skipped."""


class Slowed:
    """A network on a processor that is played `times` slower: every computation is done that often."""

    def __init__(self, network: Network, times: int) -> None:
        self.inner, self.times = network, times
        self.shape, self.table = network.shape, network.table

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.inner.nbytes

    def _again(self, name: str, *arguments: Any) -> Any:
        call = getattr(self.inner, name)
        for _ in range(self.times - 1):
            call(*arguments)
        return call(*arguments)

    def encode(self, sense: int, size: str, units: NDArray[Any]) -> F32:
        """As the network does."""
        return np.asarray(self._again("encode", sense, size, units))

    def aggregate(self, sense: int, size: str, features: F32, shifted: F32 | None = None) -> F32:
        """As the network does."""
        return np.asarray(self._again("aggregate", sense, size, features, shifted))

    def fuse(self, sizes: tuple[str, str], slow: F32, fast: F32) -> F32:
        """As the network does."""
        return np.asarray(self._again("fuse", sizes, slow, fast))

    def evidence(self, slow: F32, fast: F32) -> float:
        """As the network does."""
        return float(self._again("evidence", slow, fast))

    def accuracies(self, s: float, choices: NDArray[np.int64]) -> F32:
        """As the network does."""
        return np.asarray(self._again("accuracies", s, choices))

    def stop(self, sizes: tuple[str, str], fast: F32, slow: F32) -> float:
        """As the network does."""
        return float(self._again("stop", sizes, fast, slow))


class SenseWindow:
    """The units of a sense in a window. `plan` [n] are numbers of frames, or of the first sample of each
    chunk."""

    def __init__(self, network: Network, sense: int, config: Config) -> None:
        self.network, self.sense, self.config = network, sense, config
        self.record = network.shape.senses[sense]
        self.size = config.slow if sense == SLOW else config.fast
        self.chunk = config.chunk
        if sense == SLOW:
            wanted = max(1, round(config.rate * self.record.window_s))
            self.plan = planned_frames(self.record.length, wanted)
            self.places = checkpoints(
                self.plan, 1 / self.record.rate, network.shape.fast.window_s, CHECKPOINTS
            )
        else:
            count = chunk_count(self.record.length, config.chunk)
            self.plan = np.arange(count, dtype=np.int64) * config.chunk
            self.places = ()
        self._shift: GrowingShift | None = None
        self.filled = 0

    @property
    def used(self) -> int:
        """Units that are encoded."""
        return 0 if self._shift is None else self._shift.steps

    @property
    def complete(self) -> bool:
        """Whether all planned units are encoded."""
        return self.used == len(self.plan)

    def encode(self, unit: NDArray[Any] | None) -> None:
        """Encode the next planned unit; None, which is missing, takes the features of the one before. A
        chunk that is shorter than planned is padded with zeros."""
        if unit is None and self._shift is not None and self.used:
            self._push(self._shift.plain[-1].copy())
            self.filled += 1
            return
        self.encode_all([unit])

    def encode_all(self, units: list[NDArray[Any] | None], batch: int = 1) -> None:
        """Encode the next planned units, `batch` in one call."""
        for start in range(0, len(units), batch):
            part = [self._unit(unit) for unit in units[start : start + batch]]
            for features in self.network.encode(self.sense, self.size, np.stack(part)):
                self._push(features)

    def _unit(self, unit: NDArray[Any] | None) -> NDArray[Any]:
        if unit is None:  # the first of all is missing: there is nothing to hold on to
            self.filled += 1
            shape = self.record.shape if self.sense == SLOW else (self.chunk,)
            return np.zeros(shape, np.uint8 if self.sense == SLOW else np.float32)
        if self.sense == FAST and len(unit) < self.chunk:
            return np.concatenate([unit, np.zeros(self.chunk - len(unit), np.float32)])
        return unit

    def _push(self, features: F32) -> None:
        if self._shift is None:
            self._shift = GrowingShift(len(self.plan), len(features))
        self._shift.push(features)

    def feature(self) -> F32:
        """The feature of the units so far."""
        assert self._shift is not None, "no unit was encoded"
        return self.network.aggregate(self.sense, self.size, self._shift.plain, self._shift.value)
