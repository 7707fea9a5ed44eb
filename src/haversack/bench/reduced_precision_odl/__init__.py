"""16-bit on-device learning (system 11): gradients and accuracy, kernels, memory, the C to the bit.

numerics.py: gradients beside 64 bits, counts, transforms. layers.py: the error of each layer's steps, and
where a whole step's comes from. accuracy.py: trainings in the emitted C. speed.py: kernels, threads, the
autotuner. steady.py: the C beside numpy, memory. elsewhere.py: what needs the paper's cores.
"""

from __future__ import annotations

from haversack.bench.reduced_precision_odl import accuracy, elsewhere, layers, numerics, speed, steady
from haversack.bench.reduced_precision_odl._bench import bench

__all__ = ["accuracy", "bench", "elsewhere", "layers", "numerics", "speed", "steady"]
