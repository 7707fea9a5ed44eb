"""What an ECG has to be before it is measured: a rate, samples, a lead that is on and not clipped, a unit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed

F64 = NDArray[np.float64]
UNITS = {"mV": 1.0, "uV": 1e-3, "V": 1e3}
LEAST_RATE, LEAST_BEATS, MOST_FLAT, MOST_CLIPPED = 100.0, 4, 0.20, 0.05
LARGEST_MV = 20.0


def checked(samples: Any, rate: float, bounds: tuple[float, float] | None = None) -> F64:
    """The samples as f64 [n]. Raises UserError for what cannot be read (see read_ecg)."""
    x = np.asarray(samples, np.float64).ravel()
    if not rate >= LEAST_RATE:
        raise UserError(
            f"fs={rate:g} is too low for an ECG (at least {LEAST_RATE:g} samples a second).",
            field="fs",
            given=rate,
            nearest=LEAST_RATE,
        )
    if len(x) < 2 * rate:
        raise UserError(
            f"the recording lasts {len(x) / rate:.1f} s; at least 2 s with {LEAST_BEATS} beats are needed.",
            field="file",
            given=round(len(x) / rate, 3),
            nearest=10.0,
        )
    broken = ~np.isfinite(x)
    if broken.any():
        at = int(np.argmax(broken))
        raise UserError(
            f"{int(broken.sum())} samples are missing or not finite, the first at {at / rate:.2f} s; cut "
            "them out "
            "or give a whole piece.",
            field="file",
            given=at,
        )
    flat = flat_share(x, rate)
    if flat > MOST_FLAT:
        raise UserError(
            f"{100 * flat:.0f} % of the lead is flat (at most {100 * MOST_FLAT:.0f} %): the lead is off, or "
            "the "
            "wrong one; choose another with --lead.",
            field="lead",
            given=round(flat, 3),
            nearest=MOST_FLAT,
        )
    clipped = clipped_share(x, bounds)
    if clipped > MOST_CLIPPED:
        raise UserError(
            f"{100 * clipped:.0f} % of the samples are clipped (at most {100 * MOST_CLIPPED:.0f} %): the "
            "recorder "
            "was saturated; lower its gain.",
            field="file",
            given=round(clipped, 3),
            nearest=MOST_CLIPPED,
        )
    return x


def flat_share(x: F64, rate: float) -> float:
    """The share of samples in runs of 200 ms and more that do not change."""
    still = np.concatenate([[False], np.diff(x) == 0, [False]])
    edges = np.flatnonzero(still[1:] != still[:-1])
    runs = edges[1::2] - edges[::2]
    return float(runs[runs >= 0.2 * rate].sum() / len(x))


def clipped_share(x: F64, bounds: tuple[float, float] | None = None) -> float:
    """The share of samples at the recorder's limits or, where these are unknown, in runs of three and more at
    the least or the greatest value."""
    if bounds is not None:
        margin = 1e-6 * (bounds[1] - bounds[0])
        return float(np.mean((x <= bounds[0] + margin) | (x >= bounds[1] - margin)))
    count = 0
    for end in (x.min(), x.max()):
        at = np.concatenate([[False], x == end, [False]])
        edges = np.flatnonzero(at[1:] != at[:-1])
        runs = edges[1::2] - edges[::2]
        count += int(runs[runs >= 3].sum())
    return count / len(x)


def in_millivolts(x: F64, units: str) -> tuple[str, F64]:
    """(mV, the samples in it), or ("relative", the samples) without a unit. Raises UserError for an unknown
    unit, and for values that cannot be of it."""
    if not units:
        return "relative", x
    if units not in UNITS:
        raise not_allowed("units", units, tuple(UNITS))
    x = x * UNITS[units]
    swing = float(np.quantile(x, 0.999) - np.quantile(x, 0.001))
    if swing > LARGEST_MV:
        raise UserError(
            f"the values swing by {swing:.0f} mV where an ECG has less than {LARGEST_MV:g}: they are not "
            f"{units}, "
            "perhaps counts of the converter; name their unit with --units, or leave it out for relative "
            "ones.",
            field="units",
            given=units,
            nearest="uV" if units == "mV" else None,
        )
    return "mV", x
