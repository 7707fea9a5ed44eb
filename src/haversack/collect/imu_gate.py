"""S2, the first gate: from the motion sensors alone, whether it is worth looking at all.

Paper: AoE (arXiv 2602.23893); features, states and thresholds are [inferred].

Every 0.5 s over the last second: variance of the accelerometer's magnitude, RMS of the gyroscope, direction
of gravity; over the last 4 s the spectrum of the magnitude, whose peak between 1.5 and 2.5 Hz is a gait when
it is above four times the median of 0.5 to 10 Hz. States: REST (the gyroscope below 0.02 rad/s for 30 s: one
look in ten seconds), WALK (one look a second), ACTIVE. The device counts as worn while gravity lies within 35
degrees of its direction at calibration (the median of the first 10 s, unless one is given); else it is in a
hand or on a table, and nothing is looked at.

What we changed: the gait's spectrum is taken over 4 s, since one second resolves 1 Hz.

Cost: an FFT of 4 s of samples twice a second. Limits: the sampling rate is taken from the time stamps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
SYSTEM = 1
REST, WALK, ACTIVE, UNWORN = "rest", "walk", "active", "unworn"
SECOND = 1_000_000_000


@dataclass(frozen=True)
class ImuLimits:
    """The gate's constants."""

    rest_rad_s: float = 0.02
    rest_s: float = 30.0
    gait_hz: tuple[float, float] = (1.5, 2.5)
    gait_over_median: float = 4.0
    gait_m_s2: float = 0.3
    worn_deg: float = 35.0
    window_s: float = 1.0
    gait_window_s: float = 4.0
    hop_s: float = 0.5
    calibrate_s: float = 10.0


@dataclass(frozen=True)
class Features:
    """Of one window: variance of |a| (m/s^2)^2, RMS of the gyroscope rad/s, the gait's amplitude m/s^2 and
    its share over the median, gravity f64 [3] as a unit vector."""

    accel_variance: float
    gyro_rms: float
    gait_m_s2: float
    gait_over_median: float
    gravity: F64


def features(t_ns: npt.NDArray[np.int64], samples: F64, limits: ImuLimits) -> Features:
    """Of samples [n, 6] (ax ay az gx gy gz) at times [n]: the last second, the gait over all of them."""
    last = samples[t_ns > t_ns[-1] - round(limits.window_s * SECOND)]
    magnitude = np.linalg.norm(samples[:, :3], axis=1)
    amplitude, over = gait(t_ns, magnitude, limits)
    mean = last[:, :3].mean(axis=0)
    length = float(np.linalg.norm(mean))
    return Features(
        float(np.linalg.norm(last[:, :3], axis=1).var()),
        float(np.sqrt((last[:, 3:] ** 2).sum(axis=1).mean())),
        amplitude,
        over,
        mean / length if length > 1e-9 else np.zeros(3),
    )


def gait(t_ns: npt.NDArray[np.int64], magnitude: F64, limits: ImuLimits) -> tuple[float, float]:
    """Amplitude of the strongest oscillation in the gait's band, and its power over the median of 0.5 to 10
    Hz; (0, 0) for less than two seconds."""
    seconds = (t_ns[-1] - t_ns[0]) / SECOND
    if seconds < 2.0 or len(magnitude) < 16:
        return 0.0, 0.0
    window = np.hanning(len(magnitude))
    spectrum = np.abs(np.fft.rfft((magnitude - magnitude.mean()) * window)) ** 2
    hz = np.fft.rfftfreq(len(magnitude), seconds / (len(magnitude) - 1))
    band = (hz >= 0.5) & (hz <= 10)
    inside = (hz >= limits.gait_hz[0]) & (hz <= limits.gait_hz[1])
    if not inside.any() or not band.any():
        return 0.0, 0.0
    peak = float(spectrum[inside].max())
    return 2 * float(np.sqrt(peak)) / float(window.sum()), peak / max(float(np.median(spectrum[band])), 1e-12)


class ImuGate:
    """Takes samples in order; `state` is that of the last whole hop. `mount` is gravity's direction when
    worn, [3], if it is known."""

    def __init__(self, limits: ImuLimits | None = None, mount: F64 | None = None) -> None:
        self.limits = limits or ImuLimits()
        self.state = ACTIVE
        self.features: Features | None = None
        self.mount = mount
        self._times: deque[int] = deque()
        self._samples: deque[tuple[float, ...]] = deque()
        self._hop: int | None = None
        self._still_since: int | None = None
        self._gravities: list[F64] = []
        self._begun: int | None = None

    def push(self, t_ns: int, sample: tuple[float, ...]) -> str:
        """One sample (ax ay az gx gy gz); the state after it."""
        limits = self.limits
        self._begun = t_ns if self._begun is None else self._begun
        self._hop = t_ns + round(limits.window_s * SECOND) if self._hop is None else self._hop
        self._times.append(t_ns)
        self._samples.append(sample)
        while self._times[0] < t_ns - round(limits.gait_window_s * SECOND):
            self._times.popleft()
            self._samples.popleft()
        if t_ns >= self._hop:
            self._hop += round(limits.hop_s * SECOND)
            self._judge(t_ns)
        return self.state

    def _judge(self, t_ns: int) -> None:
        limits = self.limits
        found = features(np.asarray(self._times, np.int64), np.asarray(self._samples, np.float64), limits)
        self.features = found
        assert self._begun is not None
        if self.mount is None:
            self._gravities.append(found.gravity)
            if t_ns - self._begun >= round(limits.calibrate_s * SECOND):
                middle = np.median(self._gravities, axis=0)
                self.mount = middle / max(float(np.linalg.norm(middle)), 1e-9)
        still = found.gyro_rms < limits.rest_rad_s
        self._still_since = (t_ns if self._still_since is None else self._still_since) if still else None
        if self.mount is not None and angle_deg(found.gravity, self.mount) > limits.worn_deg:
            self.state = UNWORN
        elif self._still_since is not None and t_ns - self._still_since >= round(limits.rest_s * SECOND):
            self.state = REST
        elif found.gait_over_median > limits.gait_over_median and found.gait_m_s2 > limits.gait_m_s2:
            self.state = WALK
        else:
            self.state = ACTIVE


def angle_deg(one: F64, other: F64) -> float:
    """Degrees between two directions."""
    lengths = max(float(np.linalg.norm(one)) * float(np.linalg.norm(other)), 1e-12)
    return float(np.degrees(np.arccos(np.clip(float(one @ other) / lengths, -1.0, 1.0))))
