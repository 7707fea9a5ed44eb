"""The bench of MobileQuant: static integer activations beside floats and the methods before it.

perplexity.py: round to nearest, SmoothQuant, layer-wise and end-to-end learning on a small decoder with
outliers, at W8A8 and W4A8, with ablations. integers.py: the runner in integers and the engine beside the
simulation. costs.py: bit operations, bytes, time of a matrix product, memory of learning at real size.
"""

from __future__ import annotations

from haversack.bench.mobilequant import costs, integers, perplexity
from haversack.bench.mobilequant._bench import bench

__all__ = ["bench", "costs", "integers", "perplexity"]
