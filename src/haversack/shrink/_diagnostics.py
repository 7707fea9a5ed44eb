"""Where a compressed model goes wrong: signal to noise by matrix, cosine of outputs, channels that stand out.

Pure functions on arrays [rows, channels]; shrink walks a model, these look at what it saw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from haversack.shrink._rounding import F32

F64 = NDArray[np.float64]


def signal_to_noise_db(reference: F32, found: F32) -> float:
    """10 log10 of the reference's energy over the difference's, in dB; infinite where they are equal."""
    noise = float(np.square(reference.astype(np.float64) - found).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(signal / noise)) if signal > 0.0 else float("-inf")


def cosine(reference: F32, found: F32) -> float:
    """Cosine between two arrays of one shape, seen as vectors; 1.0 between two of zeros."""
    a, b = reference.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 0.0 else float(not (a.any() or b.any()))


def channel_maxima(inputs: F32) -> F32:
    """The largest magnitude of each channel: f32 [channels]."""
    return np.abs(inputs).max(axis=0)


def kurtosis(inputs: F32) -> F64:
    """Fourth moment over the squared second of each channel: 3 for normal ones, more where few values stand
    out; 0 for a channel that is constant. f64 [channels]."""
    centred = inputs - inputs.mean(axis=0, dtype=np.float64)
    second, fourth = np.square(centred).mean(axis=0), np.square(np.square(centred)).mean(axis=0)
    found = np.zeros(len(second))
    return np.divide(fourth, np.square(second), out=found, where=second > 0)
