"""Step 11 of FeatureDB: times, amplitudes, forms and the axis, from the bounds of a beat.

Times are to the unit those of the public program in its own example, R's amplitude too. Amplitudes of Q and T
and the type of the QRS are our own reading of the steps: there Q is 0.30 where the program has 0.27."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import not_allowed
from haversack.sense._ecg_beat import UP, Bounds
from haversack.sense._ecg_signal import RATE, scipy_signal

F64 = NDArray[np.float64]
QTC = ("bazett", "fridericia", "framingham", "hodges")


def corrected_qt(qt_ms: float, rr_s: float, formula: str = "bazett") -> float:
    """QT for a heart rate of 60, in ms. Raises UserError for an unknown formula.

    >>> round(corrected_qt(400, 0.64), 1), round(corrected_qt(400, 0.64, "fridericia"), 1)
    (500.0, 464.2)
    """
    if formula == "bazett":
        return qt_ms / math.sqrt(rr_s)
    if formula == "fridericia":
        return qt_ms / math.cbrt(rr_s)
    if formula == "framingham":
        return qt_ms + 154 * (1 - rr_s)
    if formula == "hodges":
        return qt_ms + 1.75 * (60 / rr_s - 60)
    raise not_allowed("qtc", formula, QTC)


def electrical_axis(lead_1: float, lead_3: float) -> tuple[float, str]:
    """(degrees, word) from the net QRS amplitudes of the leads I and III.

    >>> electrical_axis(1.0, 0.0)
    (30.0, 'normal')
    """
    foot = lead_3 + lead_1 / 2
    angle = math.degrees(math.atan2(2 / math.sqrt(3) * foot, lead_1))
    if -30 <= angle <= 90:
        word = "normal"
    elif -90 <= angle < -30:
        word = "left"
    elif 90 < angle <= 180:
        word = "right"
    else:
        word = "extreme"
    return round(angle, 1), word


def at_500(position: int | None) -> int | None:
    """A position at 2000 samples a second in samples at 500, cut."""
    return None if position is None else position // UP


def smoother(x: F64, r: float) -> F64:
    """The mean over a window of r samples around each."""
    reach = max(1, round(r))
    sums = np.concatenate([[0.0], np.cumsum(x)])
    at = np.arange(len(x))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(x))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def qrs_form(beat: F64, on: int, off: int, base: float) -> tuple[str, dict[str, float]]:
    """The type of a QRS (qR, rS, QS, RSR' ...) and its amplitudes against `base`: at most four extrema above
    5 % of the largest; the large ones in capitals."""
    part = beat[on : off + 1] - base
    limit = 0.05 * float(np.abs(part).max() or 1.0)
    find = scipy_signal().find_peaks
    found = sorted(
        [(int(at), float(part[at])) for at in find(part, height=limit)[0]]
        + [(int(at), float(part[at])) for at in find(-part, height=limit)[0]]
    )
    kept: list[tuple[int, float]] = []
    for at, value in found:  # neighbours of one sign are one wave
        if kept and (kept[-1][1] > 0) == (value > 0):
            if abs(value) > abs(kept[-1][1]):
                kept[-1] = (at, value)
        else:
            kept.append((at, value))
    kept = kept[:4]
    largest = max((abs(value) for _, value in kept), default=1.0)
    names, amplitudes, positive = [], {"q": 0.0, "r": 0.0, "s": 0.0, "r2": 0.0}, 0
    if len(kept) == 1 and kept[0][1] < 0:
        return "QS", {**amplitudes, "q": -kept[0][1]}
    for _, value in kept:
        if value > 0:
            letter = "r" + "'" * positive
            amplitudes["r" if positive == 0 else "r2"] = value
            positive += 1
        else:
            letter = "q" if positive == 0 else "s" + "'" * (positive - 1)
            if letter in amplitudes:
                amplitudes[letter] = -value
        names.append(letter.upper() if abs(value) >= 0.5 * largest else letter)
    return "".join(names) or "none", amplitudes


def t_form(beat: F64, on: int, off: int, base: float) -> tuple[float, str]:
    """(amplitude, form +, -, +- or -+) of T on the smoothed beat."""
    part = smoother(beat, 0.008 * RATE)[on : off + 1] - base
    if len(part) < 3:
        return 0.0, "none"
    top, low = int(part.argmax()), int(part.argmin())
    up, down = float(part[top]), -float(part[low])
    amplitude = up if up >= down else -down
    if up > 0 and down > 0 and min(up, down) > 0.3 * max(up, down):
        return amplitude, "+-" if top < low else "-+"
    return amplitude, "+" if amplitude >= 0 else "-"


def intervals(found: Bounds, *, published: bool) -> dict[str, float | None]:
    """PR, QRS, QT, P and ST in ms. `published`: whole samples at 500 a second, and QT from the end of the
    QRS."""

    def ms(start: int | None, end: int | None) -> float | None:
        if start is None or end is None:
            return None
        if published:
            return float((end // UP - start // UP) * 1000 // RATE)
        return (end - start) * 1000 / (UP * RATE)

    return {
        "pr_ms": ms(found.p_on, found.qrs_on),
        "qrs_ms": ms(found.qrs_on, found.qrs_off),
        "qt_ms": ms(found.qrs_off if published else found.qrs_on, found.t_off),
        "p_ms": ms(found.p_on, found.p_off),
        "st_ms": ms(found.qrs_off, found.t_on),
    }


def amplitudes(beat: F64, found: Bounds) -> dict[str, Any]:
    """Amplitudes against the level at the QRS's onset, in the beat's own unit, and the forms of QRS, ST and
    T."""
    rounded = np.round(beat, 3)
    on, off, r = at_500(found.qrs_on), at_500(found.qrs_off), at_500(found.r)
    assert on is not None and off is not None and r is not None
    base = float(rounded[on])
    kind, sizes = qrs_form(rounded, on, off, base)
    out: dict[str, Any] = {"qrs_type": kind, "r": float(rounded[r]) - base, "q": sizes["q"], "s": sizes["s"]}
    out["qrs_principle"] = "+" if max(sizes["r"], sizes["r2"]) >= max(sizes["q"], sizes["s"]) else "-"
    t_on, t_off, p = at_500(found.t_on), at_500(found.t_off), at_500(found.p)
    if t_on is not None and t_off is not None and t_off > t_on:
        out["t"], out["t_form"] = t_form(rounded, max(t_on, 0), t_off, base)
        st = rounded[off : max(t_on, off + 1)]
        if np.ptp(st) < 0.05:
            out["st_form"] = "horizontal"
        else:
            far = st[int(np.argmax(np.abs(st - st[0])))]
            out["st_form"] = "up" if far > st[0] else "down"
    else:
        out["t"], out["t_form"], out["st_form"] = None, None, None
    out["p"] = None if p is None else float(rounded[p]) - base
    out["r_over_t"] = out["r"] / out["t"] if out["t"] else None
    out["q_over_r"] = out["q"] / out["r"] if out["r"] else None
    return out
