"""Whisper's log-mel spectrogram: the ears of a model that hears 16 kHz.

Paper: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section 2.2;
filters as in Slaney's Auditory Toolbox (1998).
What is here: windows of 400 samples (a periodic Hann window) every 160, the signal reflected at both ends;
power; triangular filters of equal area, evenly spaced in mel from 0 to 8 kHz; log10, at most 8 below its
largest value over the whole signal; (x + 4) / 4.
What we changed: everything up to the logarithm is in double precision.
Cost: one real transform of 400 numbers for every 10 ms, about 5 ms a second of sound.
Limits: the largest value is that of all the sound there is, so a stream that is heard bit by bit differs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

SYSTEM = 16
RATE = 16_000
WINDOW = 400
HOP = 160
HIGHEST_HZ = 8_000.0
FLOOR = 1e-10
DEPTH = 8.0
AT_ONCE = 1024  # windows transformed at once


def mel(hertz: F64) -> F64:
    """Hertz -> mel of Slaney: linear to 1 kHz (15 mel), then 27 mel for every factor of 6.4."""
    above = 15.0 + 27.0 / np.log(6.4) * np.log(np.maximum(hertz, 1000.0) / 1000.0)
    return np.where(hertz < 1000.0, 3.0 * hertz / 200.0, above)


def hertz(mels: F64) -> F64:
    """Mel of Slaney -> hertz."""
    above = 1000.0 * np.exp(np.log(6.4) / 27.0 * (np.maximum(mels, 15.0) - 15.0))
    return np.where(mels < 15.0, 200.0 * mels / 3.0, above)


def filters(bands: int) -> F64:
    """Weights f64 [bands, 201] of each frequency of a window's transform in each band."""
    ends = mel(np.array([0.0, HIGHEST_HZ]))
    edges = hertz(np.linspace(ends[0], ends[1], bands + 2))
    bins = np.linspace(0.0, RATE / 2, WINDOW // 2 + 1)
    rising = (bins[None, :] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins[None, :]) / np.diff(edges)[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def frames_of(samples: int) -> int:
    """Windows of a signal of `samples`."""
    return samples // HOP


def log_mel(samples: F32, bands: int, length: int = 0) -> F32:
    """The spectrogram f32 [windows, bands] of `samples` f32 [n] at 16 kHz, one window for every 160.

    Silence is put behind a signal of fewer than `length` samples. At least 201 samples are needed, with
    silence.
    """
    half = WINDOW // 2
    if len(samples) < length:
        samples = np.pad(samples, (0, length - len(samples)))
    signal = np.pad(samples, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[::HOP]
    count = frames_of(len(signal) - 2 * half)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    weights = filters(bands).T
    found = np.empty((count, bands), np.float32)
    for start in range(0, count, AT_ONCE):
        part = slice(start, min(start + AT_ONCE, count))
        spectrum = np.fft.rfft(windows[part] * hann, axis=1)
        found[part] = np.log10(np.maximum((spectrum.real**2 + spectrum.imag**2) @ weights, FLOOR))
    np.maximum(found, found.max(initial=-np.inf) - np.float32(DEPTH), out=found)
    found += np.float32(4)
    found /= np.float32(4)
    return found
