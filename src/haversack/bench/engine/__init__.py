"""The bench `engine`: the language engine beside llama.cpp, beside its own definitions, and what compression
costs.

exactness.py and parity.py: kernels, packed weights and whole models compute what they should. quality.py:
losses of compression and of the reference models. three_bits.py: what 3 bits a weight cost and keep.
footprint.py: memory, install size, start of the command. windows.py: layers that keep their window alone.
against_llama_cpp.py and bandwidth.py: speed.
"""

from __future__ import annotations

from haversack.bench.engine import (
    against_llama_cpp,
    bandwidth,
    exactness,
    footprint,
    parity,
    quality,
    three_bits,
    windows,
)
from haversack.bench.engine._bench import bench

__all__ = [
    "against_llama_cpp",
    "bandwidth",
    "bench",
    "exactness",
    "footprint",
    "parity",
    "quality",
    "three_bits",
    "windows",
]
