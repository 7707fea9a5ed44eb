"""What a window costs on this device, stage by stage, and from that the latency of every configuration.

Measuring all configurations end to end would take each of them its window, fifty times: an hour. Their
stages are few, and a pipeline's time follows from them exactly (`finish_times`), under any load."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import read_json
from haversack.sense._pipeline_space import Config, Space, read_latency_table

F64 = NDArray[np.float64]
RUNS = 50
FORMAT = 1
MOST = 1 << 20


class Profile(Protocol):
    """Latencies of a device."""

    def latency_ms(self, scale: float) -> F64:
        """Of every configuration, after the last sample, where computing takes `scale` times as long."""


def finish_times(arrive: F64, cost: float) -> F64:
    """When each unit is encoded: units [n] arrive at these seconds, one is encoded at a time and takes `cost`
    seconds.

    The i-th is done at max over j <= i of arrive[j] + (i - j + 1) cost.
    """
    number = np.arange(len(arrive))
    return np.asarray((number + 1) * cost + np.maximum.accumulate(arrive - number * cost))


@dataclass(frozen=True)
class StageProfile:
    """Milliseconds of each stage. `encode[sense][size, unit]` of one unit, `aggregate[sense][size, unit]`
    of a window, `fuse` of a pair of encoders, `overhead` of the messages between processes."""

    space: Space
    encode: tuple[dict[tuple[str, int], float], dict[tuple[str, int], float]]
    aggregate: tuple[dict[tuple[str, int], float], dict[tuple[str, int], float]]
    fuse: dict[tuple[str, str], float]
    overhead: float

    def of(self, config: Config, scale: float = 1.0) -> float:
        """Latency in ms after the last sample."""
        ends, lasts = [], []
        for sense, key in enumerate(((config.slow, config.rate), (config.fast, config.chunk))):
            arrive = self.space.arrivals(sense, config)
            done = finish_times(arrive, scale * self.encode[sense][key] / 1000)[-1]
            ends.append(done + scale * self.aggregate[sense][key] / 1000)
            lasts.append(arrive[-1])
        last = scale * self.fuse[config.slow, config.fast] + self.overhead
        return float(1000 * (max(ends) - max(lasts)) + last)

    def latency_ms(self, scale: float) -> F64:
        """Latency of every configuration."""
        return np.array([self.of(config, scale) for config in self.space.configs])

    def record(self) -> dict[str, Any]:
        """As the file holds it."""
        sides = ("slow", "fast")
        return {
            "format": FORMAT,
            "stages": {
                "encode": {side: _flat(self.encode[at]) for at, side in enumerate(sides)},
                "aggregate": {side: _flat(self.aggregate[at]) for at, side in enumerate(sides)},
                "fuse": _flat(self.fuse),
                "overhead": round(self.overhead, 4),
            },
        }


@dataclass(frozen=True)
class TableProfile:
    """A table of latencies that was measured elsewhere; load multiplies all of it."""

    space: Space
    table: F64

    def latency_ms(self, scale: float) -> F64:
        """Latency of every configuration."""
        return np.asarray(self.table.reshape(-1) * scale)


def _flat(table: dict[tuple[str, Any], float]) -> dict[str, float]:
    return {f"{one}:{other}": round(value, 4) for (one, other), value in table.items()}


def read_profile(path: Path, space: Space) -> StageProfile | TableProfile:
    """A profile as `save_profile` wrote it, or a latency table [video][rate][audio][chunk] in ms.

    Raises UserError for a missing entry, DamagedFileError for what is neither.
    """
    raw = read_json(path, MOST)
    if "stages" not in raw:
        return TableProfile(space, read_latency_table(raw, space.axes))
    if raw.get("format") != FORMAT or not isinstance(raw["stages"], dict):
        raise DamagedFileError(path, f"it is no profile of format {FORMAT}")
    stages = raw["stages"]
    sizes, rates, fast, chunks = space.axes
    keys = (
        [(size, rate) for size in sizes for rate in rates],
        [(size, chunk) for size in fast for chunk in chunks],
    )
    try:
        encode, aggregate = (
            tuple(
                {key: _number(stages[stage][side], key) for key in keys[at]}
                for at, side in enumerate(("slow", "fast"))
            )
            for stage in ("encode", "aggregate")
        )
        fuse = {(one, other): _number(stages["fuse"], (one, other)) for one in sizes for other in fast}
        overhead = float(stages["overhead"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the profile {path} has no entry {error}; measure it again: leave --profile out.",
            field="profile",
            given=str(path),
        ) from error
    return StageProfile(space, encode, aggregate, fuse, overhead)  # type: ignore[arg-type]


def _number(table: Any, key: tuple[Any, Any]) -> float:
    value = float(table[f"{key[0]}:{key[1]}"])
    if not 0 <= value < 1e6:
        raise ValueError(f"{key[0]}:{key[1]} that is a time")
    return value


def profile_text(profile: StageProfile) -> bytes:
    """The file of a profile."""
    return (json.dumps(profile.record(), indent=1) + "\n").encode()


def timed(call: Callable[[], Any], runs: int = RUNS, quantile: float = 0.5) -> float:
    """Milliseconds of a call: the median of `runs` after one that warms up, or another quantile."""
    call()
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return float(np.quantile(taken, quantile))
