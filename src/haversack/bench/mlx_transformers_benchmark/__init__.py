"""The bench of system 21: one encoder in several frameworks, proved equal, forced, timed side by side.

compare.py: the benchmark itself, as `haversack compare` runs it. _backends.py and the files it names: the
backends. parity.py, speed.py, grid.py, operations.py: the rows of `haversack bench 21`.
"""

from __future__ import annotations

from haversack.bench.mlx_transformers_benchmark import grid, operations, parity, speed
from haversack.bench.mlx_transformers_benchmark._bench import bench

__all__ = ["bench", "grid", "operations", "parity", "speed"]
