"""nn4mc and predictive control in the material (system 18): compiled networks, closed loops, the rate of a
tick."""

from __future__ import annotations

from haversack.bench.smart_composites_nn4mc import (
    boards,
    compiler,
    litert,
    loops,
    onnx_codes,
    rate,
    sizes,
    speed,
)
from haversack.bench.smart_composites_nn4mc._bench import bench

__all__ = ["bench", "boards", "compiler", "litert", "loops", "onnx_codes", "rate", "sizes", "speed"]
