"""What every reader of biosignals gives: channels at one rate, with names and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
RATES = (1.0, 100_000.0)
MOST_CHANNELS = 512
LARGEST = 1 << 30


@dataclass(frozen=True)
class Signals:
    """`samples` [n, channels] in `units` (one a channel; "" where the file does not say), `rate` a second.

    `bounds`: the least and the greatest value that the recorder could write, a pair a channel, None where
    unknown. `facts`: what else the file says of the person and the recording.
    """

    samples: F64
    rate: float
    names: tuple[str, ...]
    units: tuple[str, ...]
    bounds: tuple[tuple[float, float] | None, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mark:
    """An annotation: its sample and its symbol."""

    sample: int
    symbol: str
