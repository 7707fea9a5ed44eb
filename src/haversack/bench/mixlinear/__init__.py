"""The bench of MixLinear: a hundred numbers beside more than a hundred thousand on the transformer tables.

accuracy.py: errors on ETTh1 and ETTh2 at four horizons, all forecasters fitted by one solver on one split.
ablations.py: without a path, at rank 1, in eight bits, on a tenth of the data. speed.py: fitting,
forecasting."""

from __future__ import annotations

from haversack.bench.mixlinear import ablations, accuracy, speed
from haversack.bench.mixlinear._bench import bench

__all__ = ["ablations", "accuracy", "bench", "speed"]
