"""The space of configurations: encoder of the slow sense, its rate, encoder of the fast sense, its chunks.

Also the public tables: table[video][rate][audio][chunk] in ms, and the same with a class below it, in
percent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, nearest_name
from haversack.models.streams._record import Shape
from haversack.models.streams._units import chunk_count, planned_frames

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Config:
    """One choice: `slow` and `fast` name encoders, `rate` is frames a second, `chunk` samples."""

    slow: str
    rate: int
    fast: str
    chunk: int

    def __str__(self) -> str:
        return f"{self.slow}:{self.rate}:{self.fast}:{self.chunk}"

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Space:
    """All configurations of a model, in the order of its accuracy table."""

    shape: Shape

    @property
    def axes(self) -> tuple[tuple[Any, ...], ...]:
        """What each of the four choices may be."""
        slow, fast = self.shape.senses
        return self.shape.sizes, slow.units, self.shape.sizes, fast.units

    @property
    def configs(self) -> list[Config]:
        """Every configuration."""
        return [Config(*each) for each in itertools.product(*self.axes)]

    @property
    def choices(self) -> NDArray[np.int64]:
        """Every configuration as numbers of its choices [n, 4]."""
        return np.array(list(itertools.product(*(range(len(axis)) for axis in self.axes))))

    def read(self, text: str) -> Config:
        """A configuration written as small:20:small:400. Raises UserError for one that is not in the
        space."""
        known = [str(each) for each in self.configs]
        if text not in known:
            shown = ", ".join("/".join(str(each) for each in axis) for axis in self.axes)
            raise UserError(
                f"the configuration {text!r} is not one of the model's; write ENCODER:RATE:ENCODER:CHUNK, "
                "one "
                f"of each of {shown}.",
                field="config",
                given=text,
                nearest=nearest_name(text, known) or known[0],
            )
        return self.configs[known.index(text)]

    def slow_arrivals(self, rate: int) -> F64:
        """Seconds from the window's begin when each planned frame is there: frame i after (i + 1) periods."""
        slow = self.shape.slow
        wanted = max(1, round(rate * slow.window_s))
        return (planned_frames(slow.length, wanted) + 1) / slow.rate

    def fast_arrivals(self, chunk: int) -> F64:
        """Seconds when each chunk is there; the last, shorter one with the window's end."""
        fast = self.shape.fast
        count = chunk_count(fast.length, chunk)
        return np.minimum(np.arange(1, count + 1) * chunk, fast.length) / fast.rate

    def arrivals(self, sense: int, config: Config) -> F64:
        """Arrivals of the slow sense's (0) or the fast sense's (1) units."""
        return self.slow_arrivals(config.rate) if sense == 0 else self.fast_arrivals(config.chunk)


def read_latency_table(raw: Any, axes: Sequence[Sequence[Any]]) -> F64:
    """ms [video, rate, audio, chunk] of a table with names as keys. Raises UserError for an entry that is
    missing or no time, and for one that no configuration has."""
    return _walk(raw, [[str(each) for each in axis] for axis in axes], ())


def read_accuracy_table(raw: Any, axes: Sequence[Sequence[Any]], classes: int) -> F64:
    """Shares of 1 [video, rate, audio, chunk, class] of a table in percent. Raises UserError where the number
    of classes is another."""
    labels = [str(at) for at in range(classes)]
    return _walk(raw, [*([str(each) for each in axis] for axis in axes), labels], (), most=100.0) / 100


def _walk(raw: Any, axes: Sequence[Sequence[str]], path: tuple[str, ...], most: float = math.inf) -> F64:
    where = ".".join(path) or "the table"
    if not axes:
        try:
            value = float(raw)
        except (TypeError, ValueError):
            value = math.nan
        if not (math.isfinite(value) and 0 <= value <= most):
            raise UserError(
                f"the profile's entry {where} is no number that fits: {raw!r:.40}.", field="profile"
            )
        return np.array(value)
    if not isinstance(raw, Mapping):
        raise UserError(f"the profile's entry {where} is no table.", field="profile", given=where)
    missing = [name for name in axes[0] if name not in raw]
    extra = [name for name in raw if name not in axes[0]]
    if missing or extra:
        what = (
            f"has no entry {'.'.join((*path, missing[0]))}"
            if missing
            else f"has {'.'.join((*path, extra[0]))}"
        )
        raise UserError(
            f"the profile {what}, "
            f"{'which a configuration needs' if missing else 'which no configuration has'}; "
            f"its entries at {where} are to be {', '.join(axes[0][:12])}.",
            field="profile",
            given=list(raw)[:12],
            nearest=list(axes[0]),
        )
    return np.stack([_walk(raw[name], axes[1:], (*path, name), most) for name in axes[0]])
