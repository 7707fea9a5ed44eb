"""Statistics of a data set's features: of each episode, and of all of them from those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SAMPLES_LEAST, SAMPLES_MOST = 100, 10_000


def sample_count(frames: int) -> int:
    """How many of an episode's pictures its statistics look at: frames^0.75, from 100 to 10,000, at most all.

    >>> [sample_count(n) for n in (1000, 2000, 5000, 10000, 20000)]
    [177, 299, 594, 1000, 1681]
    """
    return min(frames, max(SAMPLES_LEAST, min(int(frames**0.75), SAMPLES_MOST)))


def sample_indices(frames: int) -> npt.NDArray[np.int64]:
    """Which pictures: evenly spread, first and last included."""
    return np.round(np.linspace(0, frames - 1, sample_count(frames))).astype(np.int64)


def of_values(values: npt.NDArray[Any]) -> dict[str, F64]:
    """min, max, mean, std, count and quantiles of [n, ...], over its first axis."""
    data = np.asarray(values, np.float64)
    data = data.reshape(len(data), -1)
    found = {
        **{"min": data.min(axis=0), "max": data.max(axis=0), "mean": data.mean(axis=0)},
        **{"std": data.std(axis=0), "count": np.array([float(len(data))])},
    }
    return found | {name: np.quantile(data, q, axis=0) for name, q in QUANTILES.items()}


def of_pictures(pictures: Sequence[npt.NDArray[np.uint8]]) -> dict[str, F64]:
    """The same for each channel of pictures [height, width, 3], as shares of 255, shaped [3, 1, 1]; `count`
    is that of the pictures."""
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]) / 255.0
    found = {name: values.reshape(3, 1, 1) for name, values in of_values(pixels).items() if name != "count"}
    return found | {"count": np.array([float(len(pictures))])}


def joined(parts: Sequence[Mapping[str, F64]]) -> dict[str, F64]:
    """Of all episodes: exact but for the quantiles, the episodes' means weighted by their counts."""
    counts = np.array([float(part["count"][0]) for part in parts])
    weights = counts / counts.sum()

    def mean(name: str) -> F64:
        return np.asarray(sum(weight * part[name] for weight, part in zip(weights, parts, strict=True)))

    total = mean("mean")
    spread = sum(
        weight * (part["std"] ** 2 + (part["mean"] - total) ** 2)
        for weight, part in zip(weights, parts, strict=True)
    )
    found = {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        **{"mean": total, "std": np.sqrt(np.asarray(spread)), "count": np.array([counts.sum()])},
    }
    return found | {name: mean(name) for name in QUANTILES}


def plain(stats: Mapping[str, F64]) -> dict[str, Any]:
    """As JSON has it."""
    return {
        name: [int(value) for value in values] if name == "count" else values.tolist()
        for name, values in stats.items()
    }
