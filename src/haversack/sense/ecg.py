"""FeatureDB ECG: PR, QRS, QT, QTc, rate and wave shapes of one lead, on the device.

Paper: "On-device Computation of Single-lead ECG Parameters for Real-time Remote Cardiac Health Assessment"
(arXiv 2502.17499, 2025). Its repository states no licence: nothing of it was copied, the steps were written
anew.
What is here: rate, baseline, scale and R peaks (_ecg_signal.py), bounds of the waves on one average beat by a
quadratic spline wavelet (_ecg_beat.py), times, amplitudes, forms and the axis (_ecg_features.py), variability
(hrv.py). The profile `published` does what the public program does, its slips included: a 14 ms moving mean
as the baseline, QT from the end of the QRS, intervals in samples taken for milliseconds (the rate is doubled
at 500 samples a second), scales that wrap around, T's onset counted from P.
What we changed: the profile `fixed` (_ecg_fixed.py) mends these and calibrates its bounds on the odd records
of LUDB 1-100, lead II; it measures every beat as well as the template, and gives no figure without a reason
to.
Cost: less than 100 ms for 10 s of one lead on one core.
Limits: one lead at a time but for the axis. An irregular rhythm has no PR. Amplitudes are relative unless the
file says its unit. In the profile `published` times and fiducial points are those of the public program in
its own example; amplitudes of Q and T and the type of the QRS are not. Not a medical device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.sense import _ecg_fixed as fixed
from haversack.sense._ecg_beat import FINE, Bounds, delineate
from haversack.sense._ecg_checks import LEAST_BEATS, checked, in_millivolts
from haversack.sense._ecg_features import QTC, amplitudes, corrected_qt, intervals
from haversack.sense._ecg_signal import (
    RATE,
    average_beat,
    histogram_scaled,
    less_moving_mean,
    published_peaks,
    resampled,
)
from haversack.sense.hrv import variability

SYSTEM = 3

F64 = NDArray[np.float64]
PROFILES = ("fixed", "published")
SEXES = ("unknown", "female", "male")
NOTICE = "Not for diagnosis: this is not a medical device."
IRREGULAR = 0.15
PR_CUT_MS = 200.0
QTC_CUT_MS = {"unknown": 450.0, "male": 450.0, "female": 460.0}
"""Clinical cuts [recalled from the specification]."""


@dataclass(frozen=True)
class Figure:
    """A figure in `unit`; None with the `reason` where it cannot be computed."""

    value: float | None
    unit: str
    reason: str = ""

    def record(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "unit": self.unit,
            "computable": self.value is not None,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Alarm:
    """A flag over one figure: raised above `cut_ms`; None where the figure cannot be computed."""

    name: str
    score_ms: float | None
    cut_ms: float
    operating_point: str

    @property
    def raised(self) -> bool | None:
        """Whether the score is above the cut."""
        return None if self.score_ms is None else self.score_ms > self.cut_ms

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "raised": self.raised,
            "score_ms": self.score_ms,
            "cut_ms": self.cut_ms,
            "operating_point": self.operating_point,
        }


@dataclass
class Reading:
    """What an ECG says. `beat`, `r` and `bounds` are the average beat at 500 samples a second and its waves;
    `signal` is what was measured, at 500; `peaks` are R peaks in it; `figures` by name; `beats`: one record
    each."""

    profile: str
    rate: float
    signal: F64
    peaks: NDArray[np.int64]
    beat: F64
    r: int
    bounds: Bounds
    figures: dict[str, Figure]
    forms: dict[str, Any]
    beats: list[dict[str, Any]]
    variability: dict[str, Any]
    reasons: dict[str, str]
    alarms: list[Alarm]
    quality: float
    unit: str
    warnings: list[str] = field(default_factory=list)

    def value(self, name: str) -> float | None:
        """A figure's number."""
        return self.figures[name].value

    def record(self) -> dict[str, Any]:
        """As plain data; fiducial points in samples of the recording's own rate."""
        scale = self.rate / FINE
        points = {
            name: None if at is None else round(at * scale)
            for name, at in vars(self.bounds).items()
            if name != "fallbacks"
        }
        return {
            "profile": self.profile,
            "figures": {name: figure.record() for name, figure in self.figures.items()},
            "forms": self.forms,
            "average_beat": {"fiducials": points, "fallbacks": list(self.bounds.fallbacks)},
            "beats": self.beats,
            "variability": self.variability,
            "reasons": self.reasons,
            "alarms": [alarm.record() for alarm in self.alarms],
            "quality": round(self.quality, 3),
            "amplitude_unit": self.unit,
            "warnings": self.warnings,
            "notice": NOTICE,
        }


def read_ecg(
    samples: Any,
    rate: float,
    *,
    profile: str = "fixed",
    qtc: str = "bazett",
    sex: str = "unknown",
    units: str = "",
    bounds: tuple[float, float] | None = None,
) -> Reading:
    """Measure one lead: samples [n] in `units` (mV, uV, V; "" relative) at `rate` a second.

    `bounds` are the recorder's limits, for finding samples that are clipped. Raises UserError for a rate
    below 100, samples that are not finite, a lead that is flat, clipped or off, values that are no mV where
    they are said to be, and fewer than 4 R peaks."""
    if profile not in PROFILES:
        raise not_allowed("profile", profile, PROFILES)
    if qtc not in QTC:
        raise not_allowed("qtc", qtc, QTC)
    if sex not in SEXES:
        raise not_allowed("sex", sex, SEXES)
    x = checked(samples, rate, bounds)
    unit, x = in_millivolts(x, units)
    at_rate = resampled(x, int(len(x) / rate * RATE))
    return (
        _published(at_rate, rate, qtc, sex)
        if profile == "published"
        else _fixed(at_rate, rate, qtc, sex, unit)
    )


def _enough(peaks: NDArray[np.int64]) -> None:
    if len(peaks) < LEAST_BEATS:
        raise UserError(
            f"{len(peaks)} heart beats were found, at least {LEAST_BEATS} are needed: the recording is too "
            "short, "
            "its rate (--fs) is wrong, or the lead is off.",
            field="file",
            given=len(peaks),
            nearest=LEAST_BEATS,
        )


def _published(x: F64, rate: float, qtc: str, sex: str) -> Reading:
    """Steps 1 to 11 as the public program takes them; `x` at 500 samples a second."""
    x = histogram_scaled(less_moving_mean(x))
    peaks = published_peaks(x)
    _enough(peaks)
    beat, r, period = average_beat(x, peaks)
    found = delineate(beat, r)
    times = intervals(found, published=True)
    figures = {
        name: Figure(value, "ms", "" if value is not None else "no such wave")
        for name, value in times.items()
    }
    figures["rr_ms"] = Figure(float(period), "ms")  # in samples, taken for milliseconds
    figures["rate_bpm"] = Figure(float(int(60 / (period / 1000))), "bpm")
    qt = times["qt_ms"]
    figures["qtc_ms"] = Figure(
        None if qt is None else float(int(corrected_qt(qt, period / 1000, qtc))), "ms", "" if qt else "no T"
    )
    rr = np.diff(peaks) * 1000 / RATE
    beats = [_bare(at, rate, previous) for at, previous in zip(peaks, [None, *rr], strict=True)]
    varied, reasons = variability(rr, _cut(x, peaks))
    warnings = [
        "published profile: QT runs from the end of the QRS, and rate and QTc take samples for milliseconds"
    ]
    return Reading(
        "published", rate, x, peaks, beat, r, found, figures, amplitudes(beat, found), beats, varied, reasons,
        _alarms(figures, sex, "published"), 1.0, "relative", warnings,
    )  # fmt: skip


def _fixed(x: F64, rate: float, qtc: str, sex: str, unit: str) -> Reading:
    """The mended pipeline; `x` at 500 samples a second."""
    x = fixed.cleaned(x)
    peaks = fixed.fixed_peaks(x)
    _enough(peaks)
    middle = fixed.template(x, peaks)
    found = fixed.fixed_bounds(middle.beat, middle.r, middle.period)
    rr = np.diff(peaks) * 1000 / RATE
    steady = float(rr.std(ddof=1) / rr.mean()) <= IRREGULAR
    there = fixed.p_is_there(middle.beat, found, middle.noise)
    why = "" if steady and there else "no P wave was found" if steady else "the rhythm is irregular"
    times = intervals(found, published=False)
    figures = {}
    for name, value in times.items():
        of_p = name in ("pr_ms", "p_ms")
        reason = why if of_p and why else "" if value is not None else "no such wave"
        figures[name] = Figure(None if reason else value, "ms", reason)
    mean_rr = float(np.median(rr))
    figures["rr_ms"] = Figure(mean_rr, "ms")
    figures["rate_bpm"] = Figure(60_000 / mean_rr, "bpm")
    qt = figures["qt_ms"].value
    figures["qtc_ms"] = Figure(
        None if qt is None else corrected_qt(qt, mean_rr / 1000, qtc),
        "ms",
        "" if qt is not None else "no T wave",
    )
    beats = _each(middle, peaks, rate, rr, qtc, bool(why))
    varied, reasons = variability(rr, _cut(x, peaks))
    quality = float(np.mean(middle.correlations > fixed.ALIKE)) * min(1.0, len(peaks) / 6)
    warnings = []
    if not steady:
        warnings.append("the rhythm is irregular: no PR is given, and means hide changes from beat to beat")
    qrs = figures["qrs_ms"].value
    if not 30 <= 60_000 / mean_rr <= 220 or (qrs is not None and not 40 <= qrs <= 240):
        warnings.append("rate or QRS are unusual: check the sampling rate (--fs)")
    forms = amplitudes(middle.beat, found)
    return Reading(
        "fixed", rate, x, peaks, middle.beat, middle.r, found, figures, forms, beats, varied, reasons,
        _alarms(figures, sex, "fixed"), quality, unit, warnings,
    )  # fmt: skip


def _each(
    middle: fixed.Template, peaks: NDArray[np.int64], rate: float, rr: F64, qtc: str, no_p: bool
) -> list[dict[str, Any]]:
    """Every beat's own figures: bounds on itself, None at the edges and where it is unlike the template."""
    known = {
        int(at): (row, like)
        for at, row, like in zip(middle.places, middle.rows, middle.correlations, strict=True)
    }
    out = []
    for at, previous in zip(peaks.tolist(), [None, *rr.tolist()], strict=True):
        record = _bare(at, rate, previous)
        row, like = known.get(at, (None, 0.0))
        record["quality"] = round(float(like), 3)
        if row is not None and like > fixed.ALIKE:
            times = intervals(fixed.fixed_bounds(row, middle.r, middle.period), published=False)
            record["pr_ms"] = None if no_p else times["pr_ms"]
            record["qrs_ms"], record["qt_ms"] = times["qrs_ms"], times["qt_ms"]
            qt = times["qt_ms"]
            if qt is not None and previous is not None:
                record["qtc_ms"] = corrected_qt(qt, previous / 1000, qtc)
        out.append(record)
    return out


def _bare(at: int, rate: float, rr_ms: float | None) -> dict[str, Any]:
    names = ("pr_ms", "qrs_ms", "qt_ms", "qtc_ms")
    sample = round(at * rate / RATE)
    return {"sample": sample, "rr_ms": rr_ms, **dict.fromkeys(names), "quality": None}


def _cut(x: F64, peaks: NDArray[np.int64]) -> list[F64]:
    """Each beat from 0.4 of its interval before R to 0.6 of it behind."""
    out = []
    for at, following in zip(peaks[:-1], np.diff(peaks), strict=True):
        low, high = int(at - 0.4 * following), int(at + 0.6 * following)
        if low >= 0 and high <= len(x):
            out.append(x[low:high])
    return out


def _alarms(figures: Mapping[str, Figure], sex: str, profile: str) -> list[Alarm]:
    measured = "sensitivity and specificity: haversack bench featuredb-ecg --rows 'alarm*'"
    pr, qtc = figures["pr_ms"].value, figures["qtc_ms"].value
    cut = QTC_CUT_MS[sex]
    return [
        Alarm("first-degree AV block", pr, PR_CUT_MS, f"PR above {PR_CUT_MS:g} ms; {measured}"),
        Alarm("long QT", qtc, cut, f"QTc above {cut:g} ms (sex {sex}); {measured}"),
    ]
