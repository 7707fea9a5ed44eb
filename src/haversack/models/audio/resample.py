"""Another rate: sound at any rate as sound at 16 kHz.

Paper: none; the windowed-sinc interpolation of any textbook (Oppenheim and Schafer, "Discrete-Time Signal
Processing"), with Kaiser's window (1974).
What is here: with rates in the ratio up : down, output i lies at input i * down / up and is the sum of the
inputs around it times a sinc, whose cut-off is the lower of both Nyquist frequencies and which ends after 32
zero crossings; outputs of one phase share their weights, so that each phase is one product.
Cost: 64 multiplications a sample, more where the input's rate is higher.
Limits: the last twentieth below the cut-off is weakened; sound is not band-limited before 32 crossings of
silence at either end.
"""

from __future__ import annotations

from math import ceil, gcd

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

CROSSINGS = 32
BETA = 10.0  # of Kaiser's window: about 100 dB of what would be folded
PASSES = 0.95  # of the cut-off


def resample(samples: F32, rate: int, to: int) -> F32:
    """`samples` f32 [n] at `rate` -> f32 [ceil(n * to / rate)] at `to` samples a second."""
    if rate == to:
        return samples
    common = gcd(rate, to)
    up, down = to // common, rate // common
    cutoff = PASSES * min(1.0, to / rate)
    half = ceil(CROSSINGS / min(1.0, to / rate))
    count = ceil(len(samples) * up / down)
    padded = np.pad(samples, (half - 1, half + down))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)
    taps = np.arange(1 - half, half + 1, dtype=np.float64)
    found = np.empty(count, np.float32)
    for phase in range(min(up, count)):
        first, left = divmod(phase * down, up)
        offsets: F64 = taps - left / up
        weights = kernel(offsets, cutoff, half).astype(np.float32)
        outputs = -(-(count - phase) // up)
        found[phase::up] = windows[first::down][:outputs] @ weights
    return found


def kernel(offsets: F64, cutoff: float, half: int) -> F64:
    """The windowed sinc at `offsets` in samples of the input; `cutoff` in parts of its Nyquist frequency."""
    inside = np.clip(1.0 - np.square(offsets / half), 0.0, None)
    return cutoff * np.sinc(cutoff * offsets) * np.i0(BETA * np.sqrt(inside)) / np.i0(BETA)
