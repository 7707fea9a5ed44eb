"""The bench of R-Sparse: the kernel on a block of real size, and what sparsity costs a model.

speed.py: one token through a block of 4096 by 11008, beside the faster dense product, and the bytes it
reads. quality.py: the reference model `code` with inputs skipped, low rank, both, and CATS.
"""

from __future__ import annotations

from haversack.bench.r_sparse import quality, speed
from haversack.bench.r_sparse._bench import bench

__all__ = ["bench", "quality", "speed"]
